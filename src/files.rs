//! Crash-safe files and folders. A file is written under a temporary name, synced and renamed, and
//! its parent folder is synced too. Neither a kill nor a power cut leaves a partial file under the
//! final name.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Temporary name of `path` until it is complete: the whole name with `.tmp` appended.
pub fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// A file under its temporary name. It is removed on drop unless it was renamed.
#[derive(Debug)]
pub struct Unfinished {
    temporary: PathBuf,
    path: PathBuf,
}

impl Unfinished {
    /// Writes `path` under its temporary name through `write` and syncs it.
    pub fn write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<Self> {
        let unfinished = Self { temporary: temporary_path(path), path: path.to_path_buf() };
        let file = File::create(&unfinished.temporary).map_err(Error::io("create", &unfinished.temporary))?;
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        let file = out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
        file.sync_all().map_err(Error::io("write", path))?;
        Ok(unfinished)
    }

    /// Gives the file its name. The caller syncs the folder.
    pub fn rename(self) -> Result<()> {
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename a temporary file to", &self.path))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After a rename nothing is left to remove. A failed removal must not hide the first error.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a file under its temporary name, syncs it, renames it and syncs its folder.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Unfinished::write(path, |out| out.write_all(bytes).map_err(Error::io("write", path)))?.rename()?;
    sync_parent(path)
}

/// Writes JSON with two-space indents and a final newline, as [`write_text`] writes.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    // `{:#}` prints indented JSON and cannot fail, unlike a serialiser into a writer.
    write_text(path, &format!("{value:#}\n"))
}

/// Writes a text file with [`write_atomic`], so no reader sees half of it. A link, pipe or device, such as `/dev/stdout`,
/// is written to directly: a rename would replace it by a regular file.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path).map_err(Error::io("open", path))?;
        return file.write_all(text.as_bytes()).map_err(Error::io("write", path));
    }
    write_atomic(path, text.as_bytes())
}

/// Brings a file's content, or a folder's list of names, to the disk.
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
