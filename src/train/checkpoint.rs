//! A run's state on disk: `checkpoint-<step>/` holds a model folder that transformers loads, the tokenizer's files byte
//! for byte, `trainer_state.json`, the optimiser's state, and `DONE`, written last. The folder is made under a temporary
//! name, synced and renamed, so a half-written one is never taken for a checkpoint.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::step::Trainer;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::data::loader::Position;
use crate::data::tokenizer::Tokenizer;
use crate::model::store;
use crate::{Error, Result};

/// Version of `state/state.json`.
const SCHEMA: u32 = 1;

/// What a resumed run continues from, beside weights and moments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    pub schema: u32,
    /// Optimiser steps taken, skipped ones included.
    pub step: u64,
    /// Where the data order continues.
    pub position: Position,
    /// Tokens the policy ran over so far.
    pub num_tokens: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Control vector of AdamW.
    pub control: Vec<f64>,
    /// What must be the same for a resumed run to continue this one: option or file, and its value or hash.
    pub fingerprint: Vec<(String, String)>,
}

impl RunState {
    /// State after `step` steps.
    pub fn new(step: u64, position: Position, num_tokens: u64, seconds: f64, control: Vec<f64>) -> Self {
        Self { schema: SCHEMA, step, position, num_tokens, seconds, control, fingerprint: Vec::new() }
    }

    /// Refuses to continue under other settings or data, naming what changed.
    pub fn check(&self, folder: &Path, fingerprint: &[(String, String)]) -> Result<()> {
        let mut changed = Vec::new();
        for (name, now) in fingerprint {
            match self.fingerprint.iter().find(|(known, _)| known == name) {
                Some((_, before)) if before == now => {}
                Some((_, before)) => changed.push(format!("{name} was {before}, is {now}")),
                None => changed.push(format!("{name} was not set, is {now}")),
            }
        }
        for (name, before) in &self.fingerprint {
            if !fingerprint.iter().any(|(known, _)| known == name) {
                changed.push(format!("{name} was {before}, is not set"));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(Error::model(folder, format!("cannot resume a different run: {}", changed.join("; "))))
    }
}

/// Folder of the checkpoint after `step` steps.
pub fn folder(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(format!("checkpoint-{step}"))
}

/// Complete checkpoints of a run, ascending by step.
pub fn list(output_dir: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(output_dir).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|e| {
            let step = e.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
            e.path().join("DONE").is_file().then(|| (step, e.path()))
        })
        .collect();
    found.sort();
    found
}

/// Contents of [`HISTORY_FILE`].
pub fn history(step: u64, epochs: f64, log_history: &[serde_json::Value]) -> serde_json::Value {
    json!({ "global_step": step, "epoch": epochs, "log_history": log_history })
}

/// Writes a checkpoint and returns its folder.
pub fn save<B: Backend>(
    trainer: &Trainer<'_, B>,
    tokenizer: &Tokenizer,
    output_dir: &Path,
    state: &RunState,
    history: &serde_json::Value,
) -> Result<PathBuf> {
    let target = folder(output_dir, state.step);
    let temporary = target.with_extension("tmp");
    if temporary.exists() {
        fs::remove_dir_all(&temporary).map_err(Error::io("remove", &temporary))?;
    }
    let state_dir = temporary.join("state");
    fs::create_dir_all(&state_dir).map_err(Error::io("create", &state_dir))?;
    store::save(trainer.backend, &trainer.policy, &temporary)?;
    tokenizer.copy_to(&temporary)?;
    save_optimizer(trainer, &state_dir.join(OPTIMIZER_FILE))?;
    write_json(&state_dir.join("state.json"), &serde_json::to_value(state).map_err(json_error)?)?;
    write_json(&temporary.join(HISTORY_FILE), history)?;
    sync_tree(&temporary)?;
    let done = temporary.join("DONE");
    fs::write(&done, "").map_err(Error::io("write", &done))?;
    sync(&done)?;
    if target.exists() {
        fs::remove_dir_all(&target).map_err(Error::io("replace", &target))?;
    }
    fs::rename(&temporary, &target).map_err(Error::io("rename", &temporary))?;
    sync(output_dir)?;
    Ok(target)
}

/// Deletes the oldest checkpoints beyond `limit`.
pub fn prune(output_dir: &Path, limit: usize) -> Result<()> {
    let all = list(output_dir);
    for (_, folder) in &all[..all.len().saturating_sub(limit)] {
        fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
    }
    Ok(())
}

/// Reads `state/state.json` of a checkpoint.
pub fn read_state(folder: &Path) -> Result<RunState> {
    if !folder.join("DONE").is_file() {
        return Err(Error::model(
            folder,
            "is not a complete checkpoint (it holds no DONE); name a checkpoint-N folder",
        ));
    }
    let path = folder.join("state").join("state.json");
    let text = fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
    let state: RunState = serde_json::from_str(&text).map_err(|e| Error::model(&path, format!("is damaged: {e}")))?;
    if state.schema != SCHEMA || state.control.len() != CONTROL {
        let why = format!("is of schema {}; this program reads schema {SCHEMA}", state.schema);
        return Err(Error::model(&path, why));
    }
    Ok(state)
}

/// A part of a checkpoint that cannot be read makes the whole checkpoint useless.
fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::model(path, format!("cannot be read ({error}); resume from another checkpoint"))
}

/// Reads the logged events of a checkpoint.
pub fn read_history(folder: &Path) -> Result<Vec<serde_json::Value>> {
    let path = folder.join(HISTORY_FILE);
    let text = fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
    let state: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::model(&path, format!("is damaged: {e}")))?;
    Ok(state["log_history"].as_array().cloned().unwrap_or_default())
}

/// Puts moments, step count and (where `Act` is not f32) exact weights back. The policy has been loaded from the
/// checkpoint's weight files before.
pub fn restore<B: Backend>(trainer: &mut Trainer<'_, B>, folder: &Path, state: &RunState) -> Result<()> {
    let path = folder.join("state").join(OPTIMIZER_FILE);
    let bytes = fs::read(&path).map_err(|e| unreadable(&path, &e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::model(&path, format!("is damaged: {e}")))?;
    let len = trainer.policy.layout.len;
    let backend = trainer.backend;
    let read = |name: &str| -> Result<Vec<f64>> {
        let tensor = file.tensor(name).map_err(|e| Error::model(&path, format!("tensor {name}: {e}")))?;
        let values = decode(&tensor);
        if values.len() != len {
            let why = format!("tensor {name} has {} elements, the model {len}", values.len());
            return Err(Error::model(&path, why));
        }
        Ok(values)
    };
    backend.write_acc(ViewMut::first(&mut trainer.optimizer.m, len), &read("m")?)?;
    backend.write_acc(ViewMut::first(&mut trainer.optimizer.v, len), &read("v")?)?;
    if let Some(master) = &mut trainer.optimizer.master {
        backend.write_acc(ViewMut::first(master, len), &read("weights")?)?;
    }
    if B::PRECISION != Precision::F32 {
        backend.write_act(ViewMut::first(&mut trainer.policy.weights, len), &read("weights")?)?;
    }
    backend.write_acc(ViewMut::first(&mut trainer.optimizer.control, CONTROL), &state.control)
}

const OPTIMIZER_FILE: &str = "optimizer-rank00000.safetensors";

/// Logged events in the shape of transformers' trainer.
pub const HISTORY_FILE: &str = "trainer_state.json";

fn save_optimizer<B: Backend>(trainer: &Trainer<'_, B>, path: &Path) -> Result<()> {
    let (backend, len) = (trainer.backend, trainer.policy.layout.len);
    let dtype = if B::PRECISION == Precision::F64 { Dtype::F64 } else { Dtype::F32 };
    let mut values = vec![0.0; len];
    let mut tensors: Vec<(&str, Vec<u8>)> = Vec::new();
    for (name, buffer) in [("m", &trainer.optimizer.m), ("v", &trainer.optimizer.v)] {
        backend.read_acc(View::first(buffer, len), &mut values)?;
        tensors.push((name, encode(&values, dtype)));
    }
    match (&trainer.optimizer.master, B::PRECISION) {
        (Some(master), _) => {
            backend.read_acc(View::first(master, len), &mut values)?;
            tensors.push(("weights", encode(&values, dtype)));
        }
        (None, Precision::F32) => {}
        (None, _) => {
            backend.read_act(View::first(&trainer.policy.weights, len), &mut values)?;
            tensors.push(("weights", encode(&values, dtype)));
        }
    }
    let mut views = Vec::new();
    for (name, bytes) in &tensors {
        let view = TensorView::new(dtype, vec![len], bytes)
            .map_err(|e| Error::Runtime(format!("cannot write optimiser state {name}: {e}")))?;
        views.push((*name, view));
    }
    safetensors::serialize_to_file(views, None, path)
        .map_err(|e| Error::Runtime(format!("cannot write {}: {e}", path.display())))
}

/// Little-endian bytes of `values` as f32 or f64; exact, because the values have that precision.
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

fn json_error(e: serde_json::Error) -> Error {
    Error::Runtime(format!("cannot write state: {e}"))
}

/// Writes pretty JSON under a temporary name and renames it.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(json_error)?;
    write_text(path, &(text + "\n"))
}

/// Writes a text file under a temporary name and renames it, so no reader sees half of it. A link, pipe or device, such
/// as `/dev/stdout`, is written to directly: a rename would put a file in its place.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path).map_err(Error::io("open", path))?;
        return file.write_all(text.as_bytes()).map_err(Error::io("write", path));
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary).map_err(Error::io("write", &temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("rename", &temporary))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path))
}

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(folder)
}
