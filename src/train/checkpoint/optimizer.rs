//! Optimiser state of a checkpoint, as tensors of one safetensors file: moments, control vector and, unless
//! `Act` is f32, the exact weights. If the state is sharded, every rank writes its slice to a separate file.
//! Damaged files, files of a model of a different size, and values that are not finite are errors.

use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::files::input;
use crate::model::part::{Overlap, assemble};
use crate::model::store;
use crate::ranks::buffers::wire;
use crate::ranks::collective::shard_of;
use crate::train::step::Trainer;
use crate::{Error, Result};

/// Returns the name of a rank's file in `state/`. A state that is not sharded has only the file of rank 0.
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
    let (backend, total) = (trainer.backend, trainer.policy.trained().len);
    let held = trainer.optimizer.part().clone();
    let (mut start, mut has_exact) = (0, false);
    for path in &paths {
        let bytes = input::read(path, u64::MAX - 1).map_err(|e| super::unreadable(path, &e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::model(path, format!("is damaged: {e}")))?;
        let file = StateFile { path, file };
        // The parts of the ranks are consecutive; the last one must end at the last parameter.
        let len = match paths.len() {
            1 => total,
            _ => file.values("m", None)?.len(),
        };
        let part = start..start + len;
        if part.end > total {
            return Err(file.too_long(part.end, total));
        }
        let read = |name: &str| file.values(name, Some(len));
        // Copies those elements of the file that belong to this rank.
        let write = |to: &mut B::Acc, values: &[f64]| {
            held.within(&part).try_for_each(|Overlap { at, offsets }| {
                backend.write_acc(ViewMut::new(to, at, offsets.len()), &values[offsets])
            })
        };
        write(&mut trainer.optimizer.m, &read("m")?)?;
        write(&mut trainer.optimizer.v, &read("v")?)?;
        // Weight files in f32 are exact. For other precisions, the optimiser files hold the exact weights.
        if file.file.tensor("weights").is_ok() {
            has_exact = true;
            let exact = read("weights")?;
            trainer.policy.write_trained(backend, start, &exact)?;
            trainer.optimizer.master.as_mut().map_or(Ok(()), |master| write(master, &exact))?;
        }
        if start == 0 {
            let control = file.values("control", Some(CONTROL))?;
            backend.write_acc(ViewMut::first(&mut trainer.optimizer.control, CONTROL), &control)?;
        }
        start = part.end;
    }
    if start != total {
        let why =
            format!("holds the optimiser state of {start} parameters instead of {total}; a file of a rank is missing");
        return Err(Error::model(&state_dir, why));
    }
    match &mut trainer.optimizer.master {
        Some(master) if !has_exact => store::read_in_full(&trainer.policy, folder, &mut |start, values| {
            held.within(&(start..start + values.len())).try_for_each(|Overlap { at, offsets }| {
                backend.write_acc(ViewMut::new(master, at, offsets.len()), &values[offsets])
            })
        }),
        _ => Ok(()),
    }
}

/// A file of optimiser state.
struct StateFile<'a> {
    path: &'a Path,
    file: SafeTensors<'a>,
}

impl StateFile<'_> {
    /// Returns the values of a tensor. Values that are not finite are an error. `len` is the expected number
    /// of values, if it is known.
    fn values(&self, name: &str, len: Option<usize>) -> Result<Vec<f64>> {
        let tensor = self.file.tensor(name).map_err(|e| Error::model(self.path, format!("tensor {name}: {e}")))?;
        let values = decode(&tensor);
        if let Some(len) = len.filter(|len| values.len() != *len) {
            let why = format!("tensor {name} has {} elements instead of {len}", values.len());
            return Err(Error::model(self.path, why));
        }
        // The norm of the last gradient may be non-finite, because its update is then skipped.
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

/// Returns the name of the first moment buffer with elements that are not finite, and the number of these
/// elements.
pub fn not_finite<B: Backend>(trainer: &Trainer<'_, B>) -> Result<Option<(&'static str, usize)>> {
    let (backend, len) = (trainer.backend, trainer.optimizer.part().len());
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

/// Writes the state; the caller syncs the file. If the state is sharded, every rank calls it. The files of
/// the ranks hold consecutive slices of the parameters, whichever parameters each rank keeps in memory.
pub fn save<B: Backend>(trainer: &Trainer<'_, B>, path: &Path) -> Result<()> {
    let (backend, optimizer) = (trainer.backend, &trainer.optimizer);
    let dtype = if B::PRECISION == Precision::F64 { Dtype::F64 } else { Dtype::F32 };
    let dtype_bytes = if dtype == Dtype::F64 { 8 } else { 4 };
    let encoded = |buffer: &B::Acc| {
        own_range(trainer, &|at, to| backend.read_acc(View::new(buffer, at, to.len()), to)).map(|x| encode(&x, dtype))
    };
    let mut tensors: Vec<(&str, Vec<u8>)> = vec![("m", encoded(&optimizer.m)?), ("v", encoded(&optimizer.v)?)];
    // The control vector is a tensor, because JSON has no number for a norm that is not finite.
    let mut control = vec![0.0; CONTROL];
    backend.read_acc(View::first(&optimizer.control, CONTROL), &mut control)?;
    tensors.push(("control", encode(&control, dtype)));
    match (&optimizer.master, B::PRECISION) {
        (Some(master), _) => tensors.push(("weights", encoded(master)?)),
        (None, Precision::F32) => {}
        (None, _) => {
            let (weights, first) = (trainer.policy.trained_weights(), optimizer.slice().start);
            let values = own_range(trainer, &|at, to| backend.read_act(View::new(weights, first + at, to.len()), to))?;
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

/// Returns the values of this rank's file. `read` copies elements from index `at` of the buffer that this
/// rank keeps.
fn own_range<B: Backend>(trainer: &Trainer<'_, B>, read: &dyn Fn(usize, &mut [f64]) -> Result<()>) -> Result<Vec<f64>> {
    let Some((units, rank, Some(ranks))) = trainer.policy.trained_units() else {
        let mut values = vec![0.0; trainer.optimizer.part().len()];
        return read(0, &mut values).map(|()| values);
    };
    let total = trainer.policy.trained().len;
    let ranges: Vec<Range<usize>> = (0..ranks.size()).map(|rank| shard_of(total, rank, ranks.size())).collect();
    let longest = ranges.iter().map(Range::len).max().unwrap_or(0);
    let mut values = Vec::with_capacity(ranges[rank].len());
    for start in (0..longest).step_by(CHUNK) {
        let chunk =
            |range: &Range<usize>| (range.start + start).min(range.end)..(range.start + start + CHUNK).min(range.end);
        let wanted: Vec<Range<usize>> = ranges.iter().map(chunk).collect();
        values.extend(assemble(ranks, (units.parts(), wire::<B>()), &wanted, read)?);
    }
    Ok(values)
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
