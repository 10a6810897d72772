//! Optimiser state of a checkpoint, as tensors of one safetensors file: moments, control vector
//! and, unless `Act` is f32, the exact weights. Of a sharded state every rank writes its slice. Damaged files and files of a model of another size
//! are refused, and so are values that are not finite.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::files::input;
use crate::model::store;
use crate::train::step::Trainer;
use crate::{Error, Result};

/// Name of the file of a rank in `state/`. A state that is not sharded is that of rank 0.
pub fn optimizer_file(rank: usize) -> String {
    format!("optimizer-rank{rank:05}.safetensors")
}

/// Elements read at a time.
const CHUNK: usize = 1 << 18;

/// Restores moments, control vector and exact weights, for any precision of the checkpoint and any
/// number of ranks that wrote it. The policy has already been loaded from the checkpoint's weight files.
pub fn restore<B: Backend>(trainer: &mut Trainer<'_, B>, folder: &Path) -> Result<()> {
    let state_dir = folder.join("state");
    let paths = (0..).map(|rank| state_dir.join(optimizer_file(rank)));
    let mut paths: Vec<PathBuf> = paths.take_while(|path| path.is_file()).collect();
    if paths.is_empty() {
        paths.push(state_dir.join(optimizer_file(0)));
    }
    let (backend, total, own) = (trainer.backend, trainer.policy.trained().len, trainer.optimizer.slice());
    let (mut start, mut has_exact) = (0, false);
    for path in &paths {
        let bytes = input::read(path, u64::MAX - 1).map_err(|e| super::unreadable(path, &e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::model(path, format!("is damaged: {e}")))?;
        let file = StateFile { path, file };
        // The parts of several ranks follow each other; the last one must end with the parameters.
        let len = match paths.len() {
            1 => total,
            _ => file.values("m", None)?.len(),
        };
        let part = start..start + len;
        let both = part.start.max(own.start)..part.end.min(own.end).max(part.start.max(own.start));
        let read = |name: &str| file.values(name, Some(len));
        let within = |values: &[f64]| values[both.start.min(part.end) - start..both.end.min(part.end) - start].to_vec();
        let to = |buffer| ViewMut::new(buffer, both.start.saturating_sub(own.start).min(own.len()), both.len());
        let (m, v) = (within(&read("m")?), within(&read("v")?));
        if !both.is_empty() {
            backend.write_acc(to(&mut trainer.optimizer.m), &m)?;
            backend.write_acc(to(&mut trainer.optimizer.v), &v)?;
        }
        // Weight files in f32 are exact. For other precisions the exact weights are in these files.
        if file.file.tensor("weights").is_ok() {
            has_exact = true;
            let exact = read("weights")?;
            if part.end > total {
                return Err(file.too_long(part.end, total));
            }
            backend.write_act(ViewMut::new(trainer.policy.trained_weights_mut(), start, len), &exact)?;
            if let Some(master) = trainer.optimizer.master.as_mut().filter(|_| !both.is_empty()) {
                backend.write_acc(to(master), &within(&exact))?;
            }
        }
        if start == 0 {
            let control = file.values("control", Some(CONTROL))?;
            backend.write_acc(ViewMut::first(&mut trainer.optimizer.control, CONTROL), &control)?;
        }
        start = part.end;
        if start > total {
            return Err(file.too_long(start, total));
        }
    }
    if start != total {
        let why =
            format!("holds the optimiser state of {start} parameters instead of {total}; a file of a rank is missing");
        return Err(Error::model(&state_dir, why));
    }
    match &mut trainer.optimizer.master {
        Some(master) if !has_exact && own.len() == total => {
            store::read_in_full(backend, &trainer.policy, folder, master)
        }
        Some(master) if !has_exact => {
            let mut whole = backend.zeros_acc(total)?;
            store::read_in_full(backend, &trainer.policy, folder, &mut whole)?;
            let mut values = vec![0.0; own.len()];
            backend.read_acc(View::new(&whole, own.start, own.len()), &mut values)?;
            backend.write_acc(ViewMut::first(master, own.len()), &values)
        }
        _ => Ok(()),
    }
}

/// A file of optimiser state.
struct StateFile<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
}

impl StateFile<'_> {
    /// Values of a tensor, all finite; `len` is their number, if it is known.
    fn values(&self, name: &str, len: Option<usize>) -> Result<Vec<f64>> {
        let tensor = self.file.tensor(name).map_err(|e| Error::model(self.path, format!("tensor {name}: {e}")))?;
        let values = decode(&tensor);
        if let Some(len) = len.filter(|len| values.len() != *len) {
            let why = format!("tensor {name} has {} elements instead of {len}", values.len());
            return Err(Error::model(self.path, why));
        }
        // The norm of the last gradient may be infinite: then its update was skipped.
        let valid = |i: usize, x: f64| x.is_finite() || (name == "control" && i == CONTROL_NORM);
        let count = values.iter().enumerate().filter(|&(i, &x)| !valid(i, x)).count();
        if count > 0 {
            let why = format!(
                "tensor {name} holds values that are not finite ({count} of {}); resume from another checkpoint",
                values.len()
            );
            return Err(Error::model(self.path, why));
        }
        Ok(values)
    }

    fn too_long(&self, end: usize, total: usize) -> Error {
        Error::model(self.path, format!("ends at parameter {end} of {total}; it belongs to a larger model"))
    }
}

/// First moment with elements that are not finite, and their number.
pub fn not_finite<B: Backend>(trainer: &Trainer<'_, B>) -> Result<Option<(&'static str, usize)>> {
    let (backend, len) = (trainer.backend, trainer.optimizer.slice().len());
    let mut chunk = vec![0.0; CHUNK.min(len)];
    for (name, buffer) in [("first moment", &trainer.optimizer.m), ("second moment", &trainer.optimizer.v)] {
        let mut count = 0;
        for start in (0..len).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(len - start)];
            backend.read_acc(View::new(buffer, start, chunk.len()), chunk)?;
            count += chunk.iter().filter(|x| !x.is_finite()).count();
        }
        if count > 0 {
            return Ok(Some((name, count)));
        }
    }
    Ok(None)
}

/// Writes the state; the caller syncs the file.
pub fn save<B: Backend>(trainer: &Trainer<'_, B>, path: &Path) -> Result<()> {
    let (backend, slice) = (trainer.backend, trainer.optimizer.slice());
    let len = slice.len();
    let dtype = if B::PRECISION == Precision::F64 { Dtype::F64 } else { Dtype::F32 };
    let dtype_bytes = if dtype == Dtype::F64 { 8 } else { 4 };
    let mut values = vec![0.0; len];
    let mut tensors: Vec<(&str, Vec<u8>)> = Vec::new();
    for (name, buffer) in [("m", &trainer.optimizer.m), ("v", &trainer.optimizer.v)] {
        backend.read_acc(View::first(buffer, len), &mut values)?;
        tensors.push((name, encode(&values, dtype)));
    }
    // Stored as a tensor, because JSON has no number for a norm that is not finite.
    let mut control = vec![0.0; CONTROL];
    backend.read_acc(View::first(&trainer.optimizer.control, CONTROL), &mut control)?;
    tensors.push(("control", encode(&control, dtype)));
    match (&trainer.optimizer.master, B::PRECISION) {
        (Some(master), _) => {
            backend.read_acc(View::first(master, len), &mut values)?;
            tensors.push(("weights", encode(&values, dtype)));
        }
        (None, Precision::F32) => {}
        (None, _) => {
            backend.read_act(View::new(trainer.policy.trained_weights(), slice.start, len), &mut values)?;
            tensors.push(("weights", encode(&values, dtype)));
        }
    }
    let mut views = Vec::new();
    for (name, bytes) in &tensors {
        let view = TensorView::new(dtype, vec![bytes.len() / dtype_bytes], bytes)
            .map_err(|e| Error::Runtime(format!("cannot write optimiser state {name}: {e}")))?;
        views.push((*name, view));
    }
    safetensors::serialize_to_file(views, None, path)
        .map_err(|e| Error::Runtime(format!("cannot write {}: {e}", path.display())))
}

/// Little-endian bytes of `values` as f32 or f64. The conversion is exact, because the values have
/// that precision.
fn encode(values: &[f64], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
    }
}

fn decode(tensor: &TensorView<'_>) -> Vec<f64> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        _ => Vec::new(),
    }
}
