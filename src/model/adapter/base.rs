//! Finds the folder of an adapter's base model. The first of these is used:
//! - the folder that the user names (`--base-model`)
//! - `base_model_name_or_path` of `adapter_config.json` as a folder, relative to the current folder as in PEFT,
//!   or else to the adapter's folder
//! - the model of that name in the local cache of the Hugging Face Hub
//! - the adapter's folder, if it also holds a whole model

use std::path::{Path, PathBuf};

use super::config::{AdapterConfig, CONFIG_FILE};
use crate::files::hub::{cached_model, download_command, is_hub_name};
use crate::files::input::is_named;
use crate::{Error, Result};

/// An adapter with the folder of its base.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFolder {
    /// The folder of the adapter.
    pub path: PathBuf,
    /// Folder of the base model.
    pub base: PathBuf,
    /// Configuration of the adapter.
    pub config: AdapterConfig,
}

/// Whether a folder holds an adapter.
pub fn is_adapter(folder: &Path) -> bool {
    is_named(&folder.join(CONFIG_FILE))
}

impl AdapterFolder {
    /// Returns the adapter in a folder with its base, which is `given` or else the one that the adapter names.
    /// Returns `None` if the folder holds no adapter.
    ///
    /// # Errors
    /// [`Error::Model`] if the adapter is not supported, or its base is not found.
    pub fn find(path: &Path, given: Option<&Path>) -> Result<Option<Self>> {
        if !is_adapter(path) {
            return Ok(None);
        }
        let mut config = AdapterConfig::read(path)?;
        let base = match given {
            Some(base) => base.to_path_buf(),
            None => find_base(path, &mut config)?,
        };
        if is_adapter(&base) && !same_folder(&base, path) {
            let why = format!(
                "is the base of {} and an adapter itself; merge it first with `mapl export --merge`, and name the result \
                 with --base-model",
                path.display()
            );
            return Err(Error::model(&base, why));
        }
        Ok(Some(Self { path: path.to_path_buf(), base, config }))
    }

    /// One line that names the adapter and the base that are merged.
    pub fn line(&self) -> String {
        format!("the adapter {} is merged with its base {}", self.path.display(), self.base.display())
    }
}

/// Whether a folder holds a whole model.
fn is_whole(folder: &Path) -> bool {
    folder.join("config.json").is_file()
}

fn same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn find_base(adapter: &Path, config: &mut AdapterConfig) -> Result<PathBuf> {
    let named = config.base_model_name_or_path.clone();
    if let Some(name) = &named {
        let places = [PathBuf::from(name), adapter.join(name)];
        let other_adapter = |folder: &Path| is_adapter(folder) && !same_folder(folder, adapter);
        if let Some(found) = places.into_iter().find(|folder| is_whole(folder) || other_adapter(folder)) {
            return Ok(found);
        }
        if let Some(found) = cached_model(name, config.revision.as_deref(), "config.json") {
            return Ok(found);
        }
    }
    if is_whole(adapter) {
        let why = match named {
            Some(name) => format!("its base {name:?} is not here"),
            None => "it names no base".to_owned(),
        };
        config.notes.push(format!("the adapter is merged with the model in its own folder, because {why}"));
        return Ok(adapter.to_path_buf());
    }
    let why = match named {
        None => "names no base (\"base_model_name_or_path\"); name its folder with --base-model".to_owned(),
        Some(name) if is_hub_name(&name) => {
            let (command, local) = download_command(&name);
            format!(
                "needs its base {name:?}, which is neither a local folder nor in the local cache of the Hugging Face \
                 Hub; download it with `{command}`, then give --base-model {local}"
            )
        }
        Some(name) => format!(
            "needs its base {name:?}, which is not a model folder relative to the current folder or to the adapter's \
             folder; name the folder with --base-model"
        ),
    };
    Err(Error::model(&adapter.join(CONFIG_FILE), why))
}
