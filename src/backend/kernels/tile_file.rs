//! Constants of the tile choice that `mapl bench --tune` fitted on a GPU. The file is `tiles/NAME.json` in
//! the cache folder, named after the GPU, or the file that `MAPL_TILES` names. `MAPL_TILES=0` selects the
//! built-in constants.
//!
//! A file for a different GPU, for different kernels or with an invalid value is reported once and ignored.
//! Tiles change the time of a call, but never a result.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, fs};

use serde::{Deserialize, Serialize};

use super::device::Device;
use super::driver::Driver;
use super::emulator::Emulator;
use super::geometry::TileTimes;
use super::own::shipped_hash;
use crate::files::{cache, input, write_text};
use crate::terminal::complain;
use crate::{Error, Result};

/// Environment variable that names a file; `0` selects the built-in constants.
pub(crate) const VARIABLE: &str = "MAPL_TILES";
/// Version of the format.
const SCHEMA: u32 = 1;

/// A file of constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TileFile {
    schema: u32,
    /// Name of the GPU as the driver gives it.
    pub card: String,
    /// Version of the program, and hash of its kernels.
    version: String,
    kernels: String,
    pub nanoseconds: TileTimes,
    /// Number of measured times in the fit, and the error of the fit: root mean square of the relative
    /// differences between predicted and measured times.
    pub times: usize,
    pub error: f64,
}

impl TileFile {
    /// Creates a file with the version and kernel hash of this program.
    pub fn new(card: &str, nanoseconds: TileTimes, times: usize, error: f64) -> Self {
        let (version, kernels) = (env!("CARGO_PKG_VERSION").to_owned(), shipped_hash());
        Self { schema: SCHEMA, card: card.to_owned(), version, kernels, nanoseconds, times, error }
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::Runtime(format!("the constants of the tile choice: {e}")))?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|source| Error::Io { action: "create", path: folder.into(), source })?;
        }
        write_text(path, &(text + "\n"))
    }

    /// Reads the file of a GPU. An error says why the file is not used.
    pub fn read(path: &Path, card: &str) -> Result<Self, String> {
        let bytes = input::read(path, input::MAX_CONFIG).map_err(|e| format!("cannot be read: {e}"))?;
        let file: Self = serde_json::from_slice(&bytes).map_err(|e| format!("is not a file of --tune: {e}"))?;
        let TileTimes { launch, cluster, cooperative, ping_pong, last_ping_pong, split, split_column, stage } =
            file.nanoseconds;
        let mut all = vec![launch, cluster, cooperative, ping_pong, last_ping_pong, split, split_column];
        all.extend(stage);
        if file.schema != SCHEMA {
            return Err(format!("has schema {}; this program reads {SCHEMA}", file.schema));
        }
        if file.card != card {
            return Err(format!("was fitted on {}, not on {card}", file.card));
        }
        if (file.version.as_str(), &file.kernels) != (env!("CARGO_PKG_VERSION"), &shipped_hash()) {
            return Err(format!("was fitted with different kernels ({} {})", file.version, file.kernels));
        }
        if !all.iter().all(|x| x.is_finite() && (0.0..1e9).contains(x)) || stage.contains(&0.0) {
            return Err("has a constant that is not a number of nanoseconds".into());
        }
        Ok(file)
    }
}

/// Source of the constants of a GPU.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// No file.
    BuiltIn,
    File(PathBuf, Box<TileFile>),
    /// A file that is ignored, and why.
    Ignored(PathBuf, String),
}

/// Path of a GPU's file in the cache folder; `None` if there is no cache folder.
pub(crate) fn path_of(card: &str) -> Option<PathBuf> {
    let name: String =
        card.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    Some(cache::folder(|name| env::var_os(name))?.join("tiles").join(format!("{name}.json")))
}

/// Finds the constants of a GPU in the current environment.
pub(crate) fn source(card: &str) -> Source {
    let named = env::var_os(VARIABLE).filter(|value| !value.is_empty());
    let path = match &named {
        Some(value) if value == "0" => return Source::BuiltIn,
        Some(value) => PathBuf::from(value),
        None => match path_of(card).filter(|path| path.exists()) {
            Some(path) => path,
            None => return Source::BuiltIn,
        },
    };
    match TileFile::read(&path, card) {
        Ok(file) => Source::File(path, Box::new(file)),
        Err(why) => Source::Ignored(path, why),
    }
}

/// Constants of a device's tile choice, read once in a process; `None` for the built-in ones.
pub(super) fn of_device<D: Device>(card: &str) -> Option<&'static TileTimes> {
    static KNOWN: Mutex<Option<HashMap<String, Option<&'static TileTimes>>>> = Mutex::new(None);
    if D::NAME != Driver::NAME && D::NAME != Emulator::NAME {
        return None;
    }
    let mut known = KNOWN.lock().unwrap_or_else(|e| e.into_inner());
    *known.get_or_insert_default().entry(card.to_owned()).or_insert_with(|| match source(card) {
        Source::BuiltIn => None,
        Source::File(path, file) => {
            complain(&format!("note: tile constants from {} ({VARIABLE}=0 selects the built-in ones)", path.display()));
            Some(&Box::leak(file).nanoseconds)
        }
        Source::Ignored(path, why) => {
            complain(&format!(
                "note: {} {why}; it is ignored, and the built-in tile constants are used; `mapl bench --tune` writes a \
                 new file",
                path.display()
            ));
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::geometry::H200_TIMES;
    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written_and_others_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/h200.json");
        let file = TileFile::new("NVIDIA H200", TileTimes { launch: 1500.0, ..H200_TIMES }, 40, 0.1);
        file.write(&path).unwrap();
        assert_eq!(TileFile::read(&path, "NVIDIA H200"), Ok(file.clone()));
        let ignored = |text: String, part: &str| {
            fs::write(&path, text).unwrap();
            let why = TileFile::read(&path, "NVIDIA H200").unwrap_err();
            assert!(why.contains(part), "{why}");
        };
        let text = fs::read_to_string(&path).unwrap();
        ignored(text.replace("NVIDIA H200", "NVIDIA H100"), "was fitted on NVIDIA H100, not on NVIDIA H200");
        ignored(text.replace(&shipped_hash(), "0123456789ab"), "with different kernels");
        ignored(
            text.replace(&format!("\"{}\"", env!("CARGO_PKG_VERSION")), "\"0.0.1\""),
            "with different kernels (0.0.1",
        );
        ignored(text.replace("\"launch\"", "\"start\""), "is not a file of --tune: unknown field `start`");
        ignored(text.replace("1500.0", "-1.0"), "not a number of nanoseconds");
        ignored(text.replace("\"schema\": 1", "\"schema\": 2"), "has schema 2");
        ignored(text[..text.len() / 2].to_owned(), "is not a file of --tune");
        fs::remove_file(&path).unwrap();
        assert!(TileFile::read(&path, "NVIDIA H200").unwrap_err().contains("cannot be read"));
    }
}
