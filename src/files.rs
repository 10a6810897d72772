//! Files and folders that outlive a crash: a file is written under a temporary name, synced and renamed, and the folder
//! that lists it is synced too, so neither a kill nor a power cut leaves half of one under its own name.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The name under which `path` is written before it is complete: `.tmp` behind the whole name.
pub fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Writes a file under its temporary name, syncs it, renames it and syncs its folder.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = temporary(path);
    let written = File::create(&unfinished).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if let Err(e) = written {
        // What is there is of no use and may fill the disk; a failed removal must not hide the first error.
        let _ = fs::remove_file(&unfinished);
        return Err(Error::io("write", &unfinished)(e));
    }
    fs::rename(&unfinished, path).map_err(Error::io("rename", &unfinished))?;
    sync_parent(path)
}

/// Brings a file's content, or a folder's list of names, to the disk.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io("sync", path))
}

/// Syncs the folder that lists `path`.
pub fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync(parent),
        Some(_) => sync(Path::new(".")),
        None => Ok(()),
    }
}

/// Syncs everything below a folder, then the folder.
pub fn sync_tree(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(folder)
}

/// Every file below a folder, sorted.
pub fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() { found.extend(files_below(&path)?) } else { found.push(path) }
    }
    found.sort_unstable();
    Ok(found)
}

/// Files and folders in a folder, in no particular order.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(folder).map_err(Error::io("list", folder))?;
    list.map(|entry| entry.map(|e| e.path()).map_err(Error::io("list", folder))).collect()
}

/// BLAKE3 of a file's content, in hexadecimal digits.
pub fn hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}
