//! Optimiser state of a checkpoint, as tensors of one safetensors file: moments, control vector
//! and, unless `Act` is f32, the exact weights. Damaged files and files of a model of another size
//! are refused, and so are values that are not finite.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::files::input;
use crate::model::store;
use crate::train::step::Trainer;
use crate::{Error, Result};

/// Name of the file in `state/`.
pub const OPTIMIZER_FILE: &str = "optimizer-rank00000.safetensors";

/// Elements read at a time.
const CHUNK: usize = 1 << 18;

/// Restores moments, control vector and exact weights, for any precision of the checkpoint. The
/// policy has already been loaded from the checkpoint's weight files.
pub fn restore<B: Backend>(trainer: &mut Trainer<'_, B>, folder: &Path) -> Result<()> {
    let path = folder.join("state").join(OPTIMIZER_FILE);
    let bytes = input::read(&path, u64::MAX - 1).map_err(|e| super::unreadable(&path, &e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::model(&path, format!("is damaged: {e}")))?;
    let len = trainer.policy.trained().len;
    let backend = trainer.backend;
    let read = |name: &str, len: usize| -> Result<Vec<f64>> {
        let tensor = file.tensor(name).map_err(|e| Error::model(&path, format!("tensor {name}: {e}")))?;
        let values = decode(&tensor);
        if values.len() != len {
            let why = format!("tensor {name} has {} elements instead of {len}", values.len());
            return Err(Error::model(&path, why));
        }
        // The norm of the last gradient may be infinite: then its update was skipped.
        let valid = |i: usize, x: f64| x.is_finite() || (name == "control" && i == CONTROL_NORM);
        let count = values.iter().enumerate().filter(|&(i, &x)| !valid(i, x)).count();
        if count > 0 {
            let why = format!(
                "tensor {name} holds values that are not finite ({count} of {len}); resume from another checkpoint"
            );
            return Err(Error::model(&path, why));
        }
        Ok(values)
    };
    backend.write_acc(ViewMut::first(&mut trainer.optimizer.m, len), &read("m", len)?)?;
    backend.write_acc(ViewMut::first(&mut trainer.optimizer.v, len), &read("v", len)?)?;
    // Weight files in f32 are exact. For other precisions the exact weights are in this file.
    let exact = if file.tensor("weights").is_ok() { Some(read("weights", len)?) } else { None };
    match (exact, &mut trainer.optimizer.master) {
        (Some(exact), master) => {
            backend.write_act(ViewMut::first(trainer.policy.trained_weights_mut(), len), &exact)?;
            if let Some(master) = master {
                backend.write_acc(ViewMut::first(master, len), &exact)?;
            }
        }
        (None, Some(master)) => store::read_in_full(backend, &trainer.policy, folder, master)?,
        (None, None) => {}
    }
    backend.write_acc(ViewMut::first(&mut trainer.optimizer.control, CONTROL), &read("control", CONTROL)?)
}

/// First moment with elements that are not finite, and their number.
pub fn not_finite<B: Backend>(trainer: &Trainer<'_, B>) -> Result<Option<(&'static str, usize)>> {
    let (backend, len) = (trainer.backend, trainer.policy.trained().len);
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
    let (backend, len) = (trainer.backend, trainer.policy.trained().len);
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
            backend.read_act(View::first(trainer.policy.trained_weights(), len), &mut values)?;
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
