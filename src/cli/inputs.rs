//! Inputs of a command. Before a command removes or writes anything, it checks with [`Inputs::spare`] that no
//! input is, or lies in, a file or folder that it would remove or overwrite.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::data::tokenizer::{ADDITIONAL_TEMPLATES, FILES};
use crate::files::entries;
use crate::model::adapter::config::CONFIG_FILE;
use crate::report::run::RUN_LOGS;
use crate::train::checkpoint;
use crate::{Error, Result};

/// Additional files that are read from a model folder, a checkpoint or a run folder.
const FOLDER_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    CONFIG_FILE,
    checkpoint::HISTORY_FILE,
    "DONE",
];

/// Subfolders of a model folder or a checkpoint that are read.
const SUBFOLDERS: [&str; 2] = [ADDITIONAL_TEMPLATES, "state"];

/// Files and folders that a command reads, each with the flag that names it.
#[derive(Clone, Debug, Default)]
pub struct Inputs(Vec<(String, PathBuf)>);

impl Inputs {
    /// Adds paths of one flag.
    pub fn with(mut self, flag: &str, paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        self.0.extend(paths.into_iter().map(|path| (flag.to_owned(), path.as_ref().to_path_buf())));
        self
    }

    /// Returns an error for an output if one of the `written` files and folders is, or contains, an input.
    /// Symbolic links and `..` are resolved, and hard links to one file are the same file. `output` is the
    /// flag and path that a user gave.
    pub fn spare(&self, output: (&str, &Path), written: &[PathBuf]) -> Result<()> {
        let written: Vec<Written> = written.iter().filter_map(|path| Written::of(path)).collect();
        if written.is_empty() {
            return Ok(());
        }
        for (flag, input) in &self.0 {
            let Some(file) = files_of(input).into_iter().find(|file| written.iter().any(|w| w.covers(file))) else {
                continue;
            };
            let (out_flag, out) = (output.0, output.1.display());
            let part = if file == *input { String::new() } else { format!("{}, a file of ", file.display()) };
            let kind = if output.1.is_dir() { "folder" } else { "file" };
            return Err(Error::Usage(format!(
                "{out_flag} {out}: this would remove or write over {part}{}, which is an input of this command \
                 ({flag}); name another {kind}, or copy the input to another place first",
                input.display()
            )));
        }
        Ok(())
    }
}

/// Existing file or folder that a command removes or overwrites.
enum Written {
    File { path: PathBuf, id: (u64, u64) },
    Folder(PathBuf),
}

impl Written {
    /// Returns `None` if writing to the path destroys no data, because it is a new file, a pipe or a device.
    fn of(path: &Path) -> Option<Self> {
        let (found, path) = (fs::metadata(path).ok()?, path.canonicalize().ok()?);
        match (found.is_dir(), found.is_file()) {
            (true, _) => Some(Written::Folder(path)),
            (_, true) => Some(Written::File { path, id: (found.dev(), found.ino()) }),
            _ => None,
        }
    }

    fn covers(&self, input: &Path) -> bool {
        let (Ok(found), Ok(input)) = (fs::metadata(input), input.canonicalize()) else { return false };
        match self {
            Written::Folder(folder) => input.starts_with(folder),
            Written::File { path, id } => input == *path || (found.is_file() && (found.dev(), found.ino()) == *id),
        }
    }
}

/// An input and, for a folder, the files in it that commands read.
fn files_of(input: &Path) -> Vec<PathBuf> {
    let mut files = vec![input.to_path_buf()];
    if !input.is_dir() {
        return files;
    }
    // A folder that cannot be listed cannot be read as an input either.
    for path in entries(input).unwrap_or_default() {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_dir() && SUBFOLDERS.contains(&name) {
            files.extend(entries(&path).unwrap_or_default());
        } else if FOLDER_FILES.iter().chain(&FILES).chain(&RUN_LOGS).any(|known| *known == name)
            || path.extension().is_some_and(|end| end == "safetensors")
        {
            files.push(path);
        }
    }
    files.sort_unstable();
    files
}

/// Existing configurations of a model folder, whose unknown keys are kept in the trained model.
pub(super) fn config_files(folder: &Path) -> Vec<PathBuf> {
    let named = ["config.json", "generation_config.json"].map(|name| folder.join(name));
    named.into_iter().filter(|path| path.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_found_under_every_name_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("out/checkpoint-2/state")).unwrap();
        fs::create_dir(at("model")).unwrap();
        for name in ["rows.jsonl", "other.jsonl", "out/checkpoint-2/state/state.json", "model/config.json"] {
            fs::write(at(name), name).unwrap();
        }
        fs::hard_link(at("rows.jsonl"), at("hard.jsonl")).unwrap();
        std::os::unix::fs::symlink(at("rows.jsonl"), at("soft.jsonl")).unwrap();
        std::os::unix::fs::symlink(at("out"), at("link")).unwrap();
        let refused = |input: &str, written: &str| {
            let inputs = Inputs::default().with("--input", [at(input)]);
            let outcome = inputs.spare(("--output", &at(written)), &[at(written)]);
            if let Err(why) = &outcome {
                assert_eq!(why.exit_code(), 2);
                let why = why.to_string();
                assert!(
                    why.contains(at(input).to_str().unwrap()) && why.contains(at(written).to_str().unwrap()),
                    "{why}"
                );
            }
            outcome.is_err()
        };
        for written in ["rows.jsonl", "out/../rows.jsonl", "hard.jsonl", "soft.jsonl"] {
            assert!(refused("rows.jsonl", written) && refused("soft.jsonl", written), "{written}");
        }
        for input in ["out/checkpoint-2", "link/checkpoint-2", "out/checkpoint-2/state/state.json"] {
            assert!(refused(input, "out/checkpoint-2"), "{input}");
        }
        assert!(refused("out/checkpoint-2", "out/checkpoint-2/state/state.json"));
        assert!(refused("model", "model/config.json"));
        // Other files, new files, and files of a model folder that no command reads are accepted.
        fs::write(at("model/scores.jsonl"), "").unwrap();
        for (input, written) in [
            ("rows.jsonl", "other.jsonl"),
            ("rows.jsonl", "new.jsonl"),
            ("none.jsonl", "rows.jsonl"),
            ("model", "model/scores.jsonl"),
            ("rows.jsonl", "out"),
        ] {
            assert!(!refused(input, written), "{input} {written}");
        }
    }
}
