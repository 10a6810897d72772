//! Crash-safe files and folders. A file is written under a temporary name, synced and renamed, and
//! its parent folder is synced too. Neither a kill nor a power cut leaves a partial file under the
//! final name.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Name of the incomplete file for `path`: `.tmp` appended to the whole name.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Writes a file atomically: temporary name, sync, rename, sync of the parent folder.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = temporary(path);
    let written = File::create(&partial).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if let Err(e) = written {
        // The partial file is useless and may fill the disk; a failed removal must not hide the
        // first error.
        let _ = fs::remove_file(&partial);
        return Err(Error::io("write", &partial)(e));
    }
    fs::rename(&partial, path).map_err(Error::io("rename", &partial))?;
    sync_parent(path)
}

/// Flushes a file's content, or a folder's list of names, to the disk.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path))
}

/// Syncs the parent folder of `path`.
pub fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        Some(_) => sync(Path::new(".")),
        None => Ok(()),
    }
}

/// Syncs everything below a folder, then the folder itself.
pub fn sync_tree(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

/// All files below a folder, recursively, sorted.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() { found.extend(files_below(&path)?) } else { found.push(path) }
    }
    found.sort_unstable();
    Ok(found)
}

/// Files and folders directly inside a folder, in no particular order.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    list.map(|entry| entry.map(|e| e.path()).map_err(Error::io("list", folder))).collect()
}

/// BLAKE3 hash of a file's content, in hexadecimal digits.
pub fn hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}
