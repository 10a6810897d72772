//! A run's state on disk. `checkpoint-<step>/` holds a model folder that transformers can load, the
//! tokenizer's files byte for byte, `trainer_state.json`, the optimiser state (one file per rank if it is
//! sharded), and `DONE`.
//!
//! A checkpoint is written to `checkpoint-<step>.tmp`, synced, and renamed. Before removal it is renamed to
//! `checkpoint-<step>.old`. A folder without either extension is therefore complete, whenever the process was
//! killed. `state.json` holds the BLAKE3 of every file; `DONE`, written last, holds the BLAKE3 of
//! `state.json`. [`verify`] rejects a checkpoint with a single changed bit and names the file.

mod optimizer;
mod state;

use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::json;

use super::step::Trainer;
use crate::backend::Backend;
use crate::data::tokenizer::Tokenizer;
use crate::files::{
    entries, files_below, hash, input, remove_leftovers, sync, sync_parent, sync_tree, write_atomic, write_json,
};
use crate::model::store;
use crate::ranks::world::host_of;
use crate::terminal::shown;
use crate::{Error, Result};
use optimizer::optimizer_file;
pub(super) use optimizer::{not_finite, restore};
pub use state::{Best, LENGTH_KEY, RunState, SCHEMA};

/// Logged events in the format of transformers' trainer.
pub const HISTORY_FILE: &str = "trainer_state.json";

const STATE_FILE: &str = "state/state.json";
const DONE: &str = "DONE";

/// Extension of a folder that is being written. The name needs no unique part, because the lock of the output
/// folder admits only one writer.
const UNFINISHED_EXTENSION: &str = "tmp";

/// Extension of a folder that is being removed.
const REMOVED_EXTENSION: &str = "old";

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
            (e.path() == folder(output_dir, step) && e.path().join(DONE).is_file()).then(|| (step, e.path()))
        })
        .collect();
    found.sort();
    found
}

/// Returns the text about checkpoints for the error message of a failed run.
pub(crate) fn advice(output_dir: &Path) -> String {
    match list(output_dir).pop() {
        Some((_, path)) => {
            format!("; last checkpoint: {0} (continue with --resume-from-checkpoint {0})", path.display())
        }
        None => "; no checkpoint has been written (--save-steps N writes one every N steps)".to_owned(),
    }
}

/// Returns the newest checkpoint with files that all match their hashes. Calls `damaged` with the error
/// of every newer one. If every checkpoint is damaged, fails with the error of the newest.
pub fn latest(output_dir: &Path, mut damaged: impl FnMut(&Error)) -> Result<Option<PathBuf>> {
    let mut first = None;
    for (_, folder) in list(output_dir).into_iter().rev() {
        match verify(&folder) {
            Ok(_) => {
                first.iter().for_each(&mut damaged);
                return Ok(Some(folder));
            }
            Err(e) if first.is_none() => first = Some(e),
            Err(e) => damaged(&e),
        }
    }
    first.map_or(Ok(None), Err)
}

/// Writes a checkpoint and returns its folder. Sets the hashes and the schema of `state`.
pub(super) fn save<B: Backend>(
    trainer: &Trainer<'_, B>,
    tokenizer: &Tokenizer,
    output_dir: &Path,
    state: RunState,
    history: &serde_json::Value,
) -> Result<PathBuf> {
    let target = folder(output_dir, state.step);
    let unfinished = target.with_extension(UNFINISHED_EXTENSION);
    remove_folder(&unfinished)?;
    if let Err(e) = write_folder(trainer, tokenizer, &unfinished, state, history) {
        // An incomplete checkpoint is useless and may fill the disk. A failed removal must not hide
        // the first error.
        let _ = fs::remove_dir_all(&unfinished);
        return Err(e);
    }
    // `target` exists only if the run was resumed from an earlier checkpoint. That checkpoint still exists,
    // so `target` may be removed before the rename.
    if target.exists() {
        // If it cannot be removed now, `prune` tries again and reports it.
        let _ = remove_folder(&set_aside(&target)?);
    }
    fs::rename(&unfinished, &target).map_err(Error::io("rename", &unfinished))?;
    sync(output_dir)?;
    Ok(target)
}

/// Writes the optimiser state of a rank other than 0 into the checkpoint that rank 0 writes; returns the
/// folder of the checkpoint.
pub(super) fn save_shard<B: Backend>(trainer: &Trainer<'_, B>, output_dir: &Path, step: u64) -> Result<PathBuf> {
    let target = folder(output_dir, step);
    let ranks = trainer.ranks();
    // If the weights are sharded, rank 0 reads the parts of all ranks.
    trainer.policy.serve_trained(trainer.backend)?;
    ranks.barrier()?;
    let path = target.with_extension(UNFINISHED_EXTENSION).join("state").join(optimizer_file(ranks.rank()));
    optimizer::save(trainer, &path)?;
    sync(&path)?;
    ranks.barrier()?;
    Ok(target)
}

fn write_folder<B: Backend>(
    trainer: &Trainer<'_, B>,
    tokenizer: &Tokenizer,
    folder: &Path,
    mut state: RunState,
    history: &serde_json::Value,
) -> Result<()> {
    let state_dir = folder.join("state");
    // The output folder was created at the start of the run. If it is missing now, this is an error and it is
    // not recreated.
    fs::create_dir(folder).and_then(|()| fs::create_dir(&state_dir)).map_err(Error::io("create", &state_dir))?;
    store::save(trainer.backend, &trainer.policy, folder)?;
    tokenizer.copy_to(folder)?;
    if trainer.is_sharded() {
        // The folder exists now, so every rank can write its part into it.
        trainer.ranks().barrier()?;
    }
    optimizer::save(trainer, &state_dir.join(optimizer_file(trainer.ranks().rank())))?;
    if trainer.is_sharded() {
        trainer.ranks().barrier()?;
        let missing = |rank: &usize| !state_dir.join(optimizer_file(*rank)).is_file();
        if let Some(rank) = (0..trainer.ranks().size()).find(missing) {
            return Err(Error::Runtime(format!(
                "the optimiser state of rank {rank} on {} did not arrive in {}; with --shard-optimizer the output folder \
                 must be visible to all ranks",
                host_of(rank),
                state_dir.display()
            )));
        }
    }
    write_json(&folder.join(HISTORY_FILE), history)?;
    for path in files_below(folder)? {
        let digest = hash(&path).map_err(Error::io("read", &path))?;
        state.files.insert(name_in(folder, &path), digest);
    }
    state.schema = SCHEMA;
    let path = folder.join(STATE_FILE);
    write_json(&path, &serde_json::to_value(&state).map_err(encoding_error)?)?;
    sync_tree(folder)?;
    let digest = hash(&path).map_err(Error::io("read", &path))?;
    write_atomic(&folder.join(DONE), done_text(&digest).as_bytes())
}

/// Content of `DONE`: the hash of `state.json`, and a hash of that line, so that a mismatch shows which of
/// the two files is damaged.
fn done_text(state_hash: &str) -> String {
    let line = format!("{STATE_FILE} {state_hash}\n");
    format!("{line}{}\n", blake3::hash(line.as_bytes()).to_hex())
}

/// Path of a file relative to its checkpoint, as `state.json` lists it.
fn name_in(folder: &Path, path: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned()
}

/// Removes a checkpoint. The folder is renamed first, so it is never listed in a partial state.
pub fn remove(folder: &Path) -> Result<()> {
    remove_folder(&set_aside(folder)?)
}

/// Renames a checkpoint that is to be removed; returns its new path.
fn set_aside(folder: &Path) -> Result<PathBuf> {
    let old = folder.with_extension(REMOVED_EXTENSION);
    remove_folder(&old)?;
    fs::rename(folder, &old).map_err(Error::io("rename", folder))?;
    sync_parent(folder)?;
    Ok(old)
}

fn remove_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(Error::io("remove", folder))?;
    }
    Ok(())
}

/// Retention policy, applied after each new checkpoint and when a run is resumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Retention {
    /// Maximum number of checkpoints, not counting multiples of `every`.
    pub limit: Option<usize>,
    /// Checkpoints at multiples of this step are kept and not counted.
    pub every: Option<u64>,
    /// Step of the best checkpoint, which is kept and counted.
    pub best: Option<u64>,
    /// Step of the last good checkpoint while updates are skipped; it is kept and counted.
    pub good: Option<u64>,
}

/// Removes the oldest checkpoints that `retention` does not keep; `step` is the newest one. Later checkpoints
/// are kept: they belong to a run that was resumed from an earlier step. Also removes folders that an earlier
/// call failed to remove. Returns the errors of failed removals; no other checkpoint is removed instead.
pub(super) fn prune(output_dir: &Path, step: u64, retention: Retention) -> Vec<Error> {
    let mut failed: Vec<Error> =
        set_aside_before(output_dir).iter().filter_map(|folder| remove_folder(folder).err()).collect();
    let Some(limit) = retention.limit else { return failed };
    let mut counted = list(output_dir);
    counted.retain(|(n, _)| *n <= step && retention.every.is_none_or(|every| !n.is_multiple_of(every)));
    let mut surplus = counted.len().saturating_sub(limit);
    for (n, folder) in counted {
        if surplus > 0 && n != step && ![retention.best, retention.good].contains(&Some(n)) {
            failed.extend(remove(&folder).err());
            surplus -= 1;
        }
    }
    failed
}

/// Folders of checkpoints whose removal was begun and not completed.
fn set_aside_before(output_dir: &Path) -> Vec<PathBuf> {
    let mut found = entries(output_dir).unwrap_or_default();
    found.retain(|path| path.is_dir() && unfinished_extension(path) == Some(REMOVED_EXTENSION));
    found.sort_unstable();
    found
}

/// Extension of a checkpoint folder that is being written or removed.
fn unfinished_extension(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let (step, end) = name.strip_prefix("checkpoint-")?.split_once('.')?;
    (step.parse::<u64>().is_ok() && (end == "tmp" || end == REMOVED_EXTENSION)).then_some(end)
}

/// Removes files and folders that a killed process left partly written or partly removed.
pub fn clean(output_dir: &Path) -> Result<()> {
    remove_leftovers(output_dir, None);
    for path in folders(output_dir)? {
        match unfinished_extension(&path) {
            // A leftover does no harm; `prune` tries again and reports it.
            Some(REMOVED_EXTENSION) => drop(remove_folder(&path)),
            Some(_) => remove_folder(&path)?,
            None => {}
        }
    }
    Ok(())
}

/// Returns all folders named like checkpoints, complete or not.
pub fn folders(output_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(output_dir)?;
    found.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.strip_prefix("checkpoint-").map(|rest| rest.split_once('.').unwrap_or((rest, "")));
        let ends = ["", UNFINISHED_EXTENSION, REMOVED_EXTENSION];
        path.is_dir() && step.is_some_and(|(step, end)| step.parse::<u64>().is_ok() && ends.contains(&end))
    });
    Ok(found)
}

/// Reads `state/state.json` of a checkpoint and checks it against `DONE`.
pub fn read_state(folder: &Path) -> Result<RunState> {
    let done = folder.join(DONE);
    if !done.is_file() {
        return Err(Error::model(
            folder,
            "is not a complete checkpoint (its file DONE is missing); name a checkpoint-N folder",
        ));
    }
    let path = folder.join(STATE_FILE);
    let expected = input::read(&done, input::MAX_CONFIG).map_err(|e| unreadable(&done, &e))?;
    let bytes = input::read(&path, input::MAX_CONFIG).map_err(|e| unreadable(&path, &e))?;
    if expected != done_text(&blake3::hash(&bytes).to_hex()).as_bytes() {
        let listed = String::from_utf8(expected).ok().filter(|text| {
            let hash = text.lines().next().and_then(|line| line.strip_prefix(STATE_FILE)).unwrap_or_default();
            done_text(hash.trim_start()) == *text
        });
        return Err(damaged(if listed.is_some() { &path } else { &done }));
    }
    let state: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::model(&path, format!("is damaged: {e}")))?;
    if state["schema"] != SCHEMA {
        let why = format!("has schema {}; this version of mapl reads schema {SCHEMA}", state["schema"]);
        return Err(Error::model(&path, why));
    }
    serde_json::from_value(state).map_err(|e| Error::model(&path, format!("is damaged: {e}")))
}

/// Reads a checkpoint's state and checks every file against its hash.
pub fn verify(folder: &Path) -> Result<RunState> {
    let state = read_state(folder)?;
    for (name, expected) in &state.files {
        if Path::new(name).components().any(|part| !matches!(part, Component::Normal(_))) {
            let why = format!("names {:?}, which is not in the checkpoint; resume from another one", shown(name));
            return Err(Error::model(&folder.join(STATE_FILE), why));
        }
        let path = folder.join(name);
        let found = hash(&path).map_err(|e| unreadable(&path, &e))?;
        if found != *expected {
            return Err(damaged(&path));
        }
    }
    Ok(state)
}

/// Error for a file that cannot be read; it makes the whole checkpoint unusable.
fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::model(path, format!("cannot be read ({error}); resume from another checkpoint"))
}

fn damaged(path: &Path) -> Error {
    Error::model(path, "is damaged: its content does not match its hash; resume from another checkpoint")
}

/// Reads the logged events of a checkpoint.
pub(super) fn read_history(folder: &Path) -> Result<Vec<serde_json::Value>> {
    let path = folder.join(HISTORY_FILE);
    let bytes = input::read(&path, input::MAX_RECORD).map_err(|e| unreadable(&path, &e))?;
    let state: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::model(&path, format!("is damaged: {e}")))?;
    Ok(state["log_history"].as_array().cloned().unwrap_or_default())
}

/// Content of [`HISTORY_FILE`].
pub(super) fn history(
    (step, total): (u64, u64),
    epochs: f64,
    best: Option<(Best, PathBuf)>,
    log_history: &[serde_json::Value],
) -> serde_json::Value {
    json!({
        "best_global_step": best.as_ref().map(|(best, _)| best.step),
        "best_metric": best.as_ref().map(|(best, _)| best.value),
        "best_model_checkpoint": best.as_ref().map(|(_, folder)| folder.display().to_string()),
        "epoch": epochs,
        "global_step": step,
        "max_steps": total,
        "log_history": log_history,
    })
}

fn encoding_error(e: serde_json::Error) -> Error {
    Error::Runtime(format!("cannot encode JSON: {e}"))
}
