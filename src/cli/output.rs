//! Checks of output files and folders, before any work is done. An input is never overwritten. A
//! model, a tokenizer or a run is only replaced on request.

use std::path::{Path, PathBuf};

use super::config_record::CONFIG_FILE;
use super::inputs::Inputs;
use super::run_lock::{LOCK_FILE, RunLock};
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::{ADDITIONAL_TEMPLATES, FILES};
use crate::files::{check_folder_writable, check_writable, entries, is_stdout, sync_parent};
use crate::report::run::REPORT_FILE;
use crate::terminal::{complain, emit, follows, say, shown};
use crate::train::checkpoint::{self, HISTORY_FILE};
use crate::train::logs::EVAL_SCORES_FILE;
use crate::train::tensorboard;
use crate::{Error, Result};

/// Returns an error if the file `output` of `flag` is an input or a folder, has an unsupported extension,
/// lies in a folder that does not exist, or cannot be written.
pub fn check_output(flag: &str, output: &Path, inputs: &Inputs) -> Result<()> {
    let refuse = |why: &str| Err(Error::Usage(format!("cannot write {}: {why}", output.display())));
    if output.is_dir() {
        return refuse("it is a folder; name a file");
    }
    let name = output.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if [".zst", ".bz2", ".xz", ".parquet", ".arrow"].iter().any(|end| name.ends_with(end)) {
        return refuse("outputs are plain or gzipped (.gz) JSON; use a matching file name");
    }
    inputs.spare((flag, output), &[output.to_path_buf()])?;
    match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => refuse("its folder does not exist"),
        _ => check_writable(output),
    }
}

/// Rejects `--json`, which prints on stdout, if the output of `flag` is stdout too.
pub fn refuse_two_on_stdout(json: bool, flag: &str, output: &Path) -> Result<()> {
    if json && is_stdout(output) {
        return Err(Error::Usage(format!(
            "--json prints on standard output, and {flag} {} is standard output too; leave out one of them, or name a \
             file",
            output.display()
        )));
    }
    Ok(())
}

/// Prints a result of a command that also writes `output`: on stdout, or on stderr if `output` is stdout itself.
pub fn emit_beside(output: Option<&PathBuf>, text: &str) -> Result<()> {
    match output.is_some_and(|output| is_stdout(output)) {
        true => {
            complain(text);
            Ok(())
        }
        false => emit(text),
    }
}

/// Prints warnings on stderr, one line each.
pub fn warn(texts: impl IntoIterator<Item = String>) {
    texts.into_iter().for_each(|text| complain(&format!("warning: {text}")));
}

/// Prints a line about a command that writes `output`; on stderr if `output` is stdout itself.
pub fn remark(output: &Path, text: &str) {
    if is_stdout(output) { complain(text) } else { say(text) }
}

/// Rejects a folder for a new model or tokenizer if it already holds one or cannot be written.
pub fn check_new_folder(flag: &str, dir: &Path, files: &[&str]) -> Result<()> {
    if dir.exists() && !dir.is_dir() {
        return Err(Error::Usage(format!("{flag} {} is a file; name a folder", dir.display())));
    }
    match files.iter().find(|name| dir.join(name).exists()) {
        None => check_folder_writable(dir),
        Some(name) => Err(Error::Usage(format!(
            "{flag} {} already holds {name}; name another folder or remove it first",
            dir.display()
        ))),
    }
}

/// Files that identify a model folder.
pub const MODEL_FILES: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    // A folder with this file would be read as an adapter.
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// Files of a run other than checkpoints and the final model.
const RUN_FILES: [&str; 7] =
    ["metrics.jsonl", "run.json", CONFIG_FILE, "profile.json", HISTORY_FILE, EVAL_SCORES_FILE, REPORT_FILE];

/// Returns the files and folders of an existing output folder that a run may remove or overwrite.
pub fn written_by_run(dir: &Path) -> Result<Vec<PathBuf>> {
    // Only rank 0 writes. Other ranks must not inspect the folder, because rank 0 creates and removes a missing
    // folder when it checks that it can write there.
    if follows() || !dir.is_dir() {
        return Ok(Vec::new());
    }
    let named = MODEL_FILES.iter().chain(&RUN_FILES).chain(&FILES).chain(&["generation_config.json", LOCK_FILE]);
    let mut found: Vec<PathBuf> = named.map(|name| dir.join(name)).collect();
    found.extend(entries(dir)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "safetensors")));
    found.push(dir.join(ADDITIONAL_TEMPLATES));
    found.extend(tensorboard::list(dir)?);
    found.extend(checkpoint::folders(dir)?);
    Ok(found)
}

/// Output folder of a training run.
pub struct RunFolder<'a> {
    pub dir: &'a Path,
    pub resuming: bool,
    pub overwrite: bool,
}

impl RunFolder<'_> {
    /// Returns an error if the folder holds a different model or a run that is neither continued nor
    /// replaced, or if another run writes to it. If the folder exists, it is locked, and the lock is returned.
    pub fn check(&self) -> Result<Option<RunLock>> {
        if follows() {
            return Ok(None);
        }
        let dir = self.dir;
        if dir.exists() && !dir.is_dir() {
            return Err(Error::Usage(format!("--output-dir {} is a file; name a folder", dir.display())));
        }
        let lock = match dir.is_dir() {
            true => Some(RunLock::take(dir)?),
            false => check_folder_writable(dir).map(|()| None)?,
        };
        self.check_contents().map(|()| lock)
    }

    fn check_contents(&self) -> Result<()> {
        let dir = self.dir;
        if self.resuming || self.overwrite {
            return Ok(());
        }
        if self.holds_run() {
            return Err(Error::Usage(format!(
                "--output-dir {} already holds a run; name another folder, continue with --resume-from-checkpoint \
                 true, or replace it with --overwrite-output-dir",
                dir.display()
            )));
        }
        if let Some(name) = MODEL_FILES.iter().find(|name| dir.join(name).exists()) {
            return Err(Error::Usage(format!(
                "--output-dir {} holds {name} of another model; name another folder, or replace it with \
                 --overwrite-output-dir",
                dir.display()
            )));
        }
        Ok(())
    }

    fn holds_run(&self) -> bool {
        RUN_FILES.iter().any(|name| self.dir.join(name).exists()) || !checkpoint::list(self.dir).is_empty()
    }

    /// Creates and locks the folder, and removes a run that is replaced.
    pub fn prepare(&self, lock: Option<RunLock>) -> Result<RunLock> {
        if follows() {
            return Ok(RunLock::of_another_rank(self.dir));
        }
        std::fs::create_dir_all(self.dir).map_err(Error::io("create", self.dir))?;
        let lock = match lock {
            Some(lock) => lock,
            None => {
                let lock = RunLock::take(self.dir)?;
                // Another run may have written to the folder since the first check.
                self.check_contents()?;
                lock
            }
        };
        if self.overwrite && !self.resuming {
            // Checkpoints are removed newest first, and weights before the files that describe them. If the
            // process is killed in between, a shorter but complete run is left.
            for (_, folder) in checkpoint::list(self.dir).into_iter().rev() {
                checkpoint::remove(&folder)?;
            }
            let named = MODEL_FILES.iter().rev().chain(&RUN_FILES).chain(&["generation_config.json"]);
            let named = named.map(|name| self.dir.join(name));
            for path in named.filter(|path| path.exists()).chain(tensorboard::list(self.dir)?) {
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        sync_parent(self.dir)?;
        Ok(lock)
    }
}

/// Whether two paths name the same file or folder, which need not exist.
pub fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| match (path.canonicalize(), path.parent(), path.file_name()) {
        (Ok(path), ..) => path,
        (Err(_), Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            parent.canonicalize().map_or_else(|_| path.to_path_buf(), |parent| parent.join(name))
        }
        _ => path.to_path_buf(),
    };
    real(a) == real(b) || (is_stdout(a) && is_stdout(b))
}

/// Rejects groups with token ids beyond the vocabulary of the model in `folder`.
pub fn check_ids(groups: &[TokenizedGroup], folder: &Path, vocab: usize) -> Result<()> {
    for group in groups {
        let ids = group.prompt_ids.iter().chain(group.sequences.iter().map(|s| &s.response_ids)).flatten();
        if let Some(id) = ids.copied().max().filter(|&id| id as usize >= vocab) {
            return Err(Error::model(
                folder,
                format!(
                    "the tokenizer gives row {} the token id {id}, but the model's vocabulary has {vocab} entries; \
                     tokenizer and model of this folder do not belong together",
                    shown(&group.group.id)
                ),
            ));
        }
    }
    Ok(())
}
