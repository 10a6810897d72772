//! Crash-safe files and folders. A file is written under a temporary name, synced and renamed, and
//! its parent folder is synced too. Neither a kill nor a power cut leaves a partial file under the
//! final name.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::terminal::on_stdout;
use crate::{Error, Result};

/// Temporary name of `path` until it is complete: the whole name with `.tmp` appended.
pub fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// A complete file under its temporary name. It is removed on drop unless it was renamed.
#[derive(Debug)]
pub struct Unfinished {
    temporary: PathBuf,
    path: PathBuf,
    renamed: bool,
}

impl Unfinished {
    /// Writes `path` under its temporary name through `write` and syncs it.
    pub fn write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<Self> {
        let temporary = temporary_path(path);
        let file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
        // From here on the temporary file is this one's to remove.
        let unfinished = Self { temporary, path: path.to_path_buf(), renamed: false };
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        let file = out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
        file.sync_all().map_err(Error::io("write", path))?;
        Ok(unfinished)
    }

    /// Gives the file its name and replaces a file or link of that name. The caller syncs the
    /// folder.
    pub fn rename(mut self) -> Result<()> {
        fs::rename(&self.temporary, &self.path).map_err(Error::io("rename a temporary file to", &self.path))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.renamed {
            // A failed removal must not hide the first error.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a file under its temporary name, syncs it, renames it and syncs its folder. A link of
/// that name is replaced; its target keeps its content.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    Unfinished::write(path, |out| out.write_all(bytes).map_err(Error::io("write", path)))?.rename()?;
    sync_parent(path)
}

/// JSON with two-space indents and a final newline.
pub fn json_text(value: &serde_json::Value) -> String {
    // `{:#}` prints indented JSON and cannot fail, unlike a serialiser into a writer.
    format!("{value:#}\n")
}

/// Writes [`json_text`] as [`write_text`] writes.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write_text(path, &json_text(value))
}

/// Writes a text file that a user named, with [`write_atomic`], so that no reader sees half of it. A
/// link, pipe or device, such as `/dev/stdout`, is written to directly: a rename would replace it by
/// a regular file. A pipe whose reader has left is [`Error::ReaderLeft`].
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    if is_stdout(path) {
        // Opened again, a file behind stdout would have a second position, and later lines would
        // overwrite its start.
        return on_stdout(|out| out.write_all(text.as_bytes()));
    }
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(path).map_err(Error::io("open", path))?;
        return file.write_all(text.as_bytes()).map_err(Error::written(path));
    }
    write_atomic(path, text.as_bytes())
}

/// Whether a path names this process's stdout.
pub fn is_stdout(path: &Path) -> bool {
    ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
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

/// Reason to refuse a file with this content if it is a Git LFS pointer: the few lines that stand in
/// for a file that was not downloaded.
pub fn lfs_pointer(bytes: &[u8]) -> Option<&'static str> {
    let is = bytes.starts_with(b"version https://git-lfs.github.com/spec/");
    is.then_some("is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`, or download it again")
}

/// BLAKE3 hash of a file's content, in hexadecimal digits.
pub fn hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Error {
        Error::Runtime("no value".into())
    }

    #[test]
    fn a_file_that_cannot_be_completed_leaves_the_old_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, b"old").unwrap();
        let written = Unfinished::write(&path, |out| {
            out.write_all(b"half").map_err(Error::io("write", &path))?;
            Err(failed())
        });
        assert!(written.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(folder.path()).unwrap(), [path]);
    }

    #[test]
    fn a_temporary_file_is_removed_only_by_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let first = Unfinished::write(&path, |_| Ok(())).unwrap();
        first.rename().unwrap();
        // Another writer's file of the same temporary name must survive.
        let other = temporary_path(&path);
        fs::write(&other, "other").unwrap();
        drop(Unfinished { temporary: other.clone(), path: path.clone(), renamed: true });
        assert_eq!(fs::read(&other).unwrap(), b"other");
        fs::remove_file(&other).unwrap();
        // The obstacle at the temporary name belongs to someone else, so it stays.
        fs::create_dir(&other).unwrap();
        assert!(write_atomic(&path, b"new").is_err());
        assert!(other.is_dir() && fs::read(&path).unwrap().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn an_atomic_write_replaces_a_link_and_a_text_goes_through_it() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write_text(&link, "through").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"through");
        write_atomic(&link, b"replaced").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"through");
        assert!(fs::symlink_metadata(&link).unwrap().is_file());
    }
}
