//! Crash-safe files and folders. A file is written under a unique temporary name, synced and renamed, and its
//! parent folder is synced too. Neither a kill nor a power cut leaves a partial file under the final name,
//! and writers of one file do not disturb each other: the last rename wins.
//!
//! A temporary file is locked while its writer lives. The next writer of the same file removes its unlocked
//! temporary files, which killed processes have left.
//!
//! In a run of several ranks only rank 0 writes: [`write_atomic`] and [`write_text`] do nothing on the other
//! ranks.

pub(crate) mod cache;
pub(crate) mod hub;
pub(crate) mod input;

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::terminal::{complain, follows, on_stdout};
use crate::{Error, Result};

/// Number of temporary files that this process has created.
static CREATED: AtomicU64 = AtomicU64::new(0);

/// New temporary name of `path`: `<name>.<process id>-<number>.tmp`.
fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{}.tmp", std::process::id(), CREATED.fetch_add(1, Ordering::Relaxed)));
    name.into()
}

/// Name of the final file, if `name` is a temporary name.
fn final_name(name: &str) -> Option<&str> {
    let (rest, writer) = name.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (process, number) = writer.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(process) && digits(number)).then_some(rest)
}

/// Creates and locks a temporary file of `path`.
fn create_temporary(path: &Path) -> Result<(PathBuf, File)> {
    loop {
        let temporary = temporary_path(path);
        let file = match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => file,
            // A file of this name was left by an earlier process with this id, or by a process on a different
            // host.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(Error::io("create", &temporary)(e)),
        };
        // A failed lock is ignored. On a file system without locks, the temporary files of killed processes are
        // not removed.
        let _ = file.lock();
        // Before the lock, another writer may have removed the file as a leftover; another file is then
        // created.
        if file.metadata().is_ok_and(|found| found.nlink() > 0) {
            return Ok((temporary, file));
        }
    }
}

/// Removes the temporary files that killed processes have left in a folder: those of the file `of`, or all of
/// them for `None`.
pub fn remove_leftovers(folder: &Path, of: Option<&str>) {
    for path in entries(folder).unwrap_or_default() {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(final_name);
        if name.is_none_or(|name| of.is_some_and(|of| of != name)) || !path.is_file() {
            continue;
        }
        // The file is removed while it is locked. A writer that has just created it waits for the lock, and
        // then sees that the file is gone. A leftover that cannot be removed does no harm.
        if let Ok(file) = OpenOptions::new().write(true).open(&path)
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Folder of a file.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A complete file under its temporary name. It is removed on drop unless it was renamed.
#[derive(Debug)]
pub struct Unfinished {
    temporary: PathBuf,
    path: PathBuf,
    renamed: bool,
    /// The open file, which holds the lock.
    _file: Option<File>,
}

/// Temporary files that this process may leave behind if it ends now.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the temporary files of this process, which is about to end. If another thread holds the list of
/// files, they stay, and the next writer removes them.
pub(crate) fn remove_unfinished() {
    if let Ok(unfinished) = UNFINISHED.try_lock() {
        unfinished.iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Unfinished {
    /// Writes `path` under its temporary name through `write` and syncs it.
    pub fn write(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<Self> {
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            remove_leftovers(parent(path), Some(name));
        }
        let (mut unfinished, file) = Self::create(path)?;
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        let file = out.into_inner().map_err(|e| Error::io("write", path)(e.into_error()))?;
        match file.sync_all() {
            Err(e) if !refuses_sync(&e) => return Err(Error::io("write", path)(e)),
            _ => {}
        }
        unfinished._file = Some(file);
        Ok(unfinished)
    }

    /// Creates the temporary file, which is removed on drop.
    fn create(path: &Path) -> Result<(Self, File)> {
        let mut list = unfinished();
        let (temporary, file) = create_temporary(path)?;
        list.push(temporary.clone());
        Ok((Self { temporary, path: path.to_path_buf(), renamed: false, _file: None }, file))
    }

    /// Renames the file to its final name, and replaces a file or link of that name. The caller syncs the
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
        unfinished().retain(|path| *path != self.temporary);
    }
}

/// Writes a file under its temporary name, syncs it, renames it and syncs its folder. A link of
/// that name is replaced; its target keeps its content.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    if follows() {
        return Ok(());
    }
    Unfinished::write(path, |out| out.write_all(bytes).map_err(Error::io("write", path)))?.rename()?;
    sync_parent(path)
}

/// Writes new files that belong together into one folder, which is created if it does not exist. No file gets
/// its final name before all are complete, and the files are renamed in the given order. A failure leaves none
/// of them.
pub fn write_new_files(folder: &Path, files: &[(&str, &[u8])]) -> Result<()> {
    let created = !folder.exists();
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let mut named = Vec::new();
    let mut write = || -> Result<()> {
        let mut complete = Vec::new();
        for (name, bytes) in files {
            let path = folder.join(name);
            complete.push(Unfinished::write(&path, |out| out.write_all(bytes).map_err(Error::io("write", &path)))?);
        }
        for file in complete {
            let path = file.path.clone();
            file.rename()?;
            named.push(path);
        }
        sync(folder)
    };
    write().inspect_err(|_| {
        // Failed removals must not hide the first error; a folder with other files stays.
        named.iter().for_each(|path| drop(fs::remove_file(path)));
        if created {
            let _ = fs::remove_dir(folder);
        }
    })
}

/// JSON with two-space indents and a final newline.
pub fn json_text(value: &serde_json::Value) -> String {
    // `{:#}` prints indented JSON and cannot fail, unlike a serialiser into a writer.
    format!("{value:#}\n")
}

/// A path as a JSON string. Bytes that are not UTF-8, which JSON cannot hold, become U+FFFD.
pub(crate) fn path_json(path: &Path) -> serde_json::Value {
    path.to_string_lossy().into()
}

/// Writes the [`json_text`] of a value with [`write_text`].
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write_text(path, &json_text(value))
}

/// Writes a text file that a user named, with [`write_atomic`], so that no reader sees half of it. The target
/// of a link is written in the same way. A pipe or device, such as `/dev/stdout`, is written to directly,
/// because a rename would replace it by a regular file. Returns [`Error::ReaderLeft`] if the reader of a pipe
/// has closed it.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    if follows() {
        return Ok(());
    }
    if is_stdout(path) {
        // If the path were opened again, a file to which stdout is redirected would get a second offset, and
        // later lines would overwrite its start.
        return on_stdout(|out| out.write_all(text.as_bytes()));
    }
    let packed = path.extension().is_some_and(|end| end == "gz").then(|| gzip(text.as_bytes())).transpose();
    let packed = packed.map_err(Error::io("compress", path))?;
    let text = packed.as_deref().unwrap_or(text.as_bytes());
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        if let (true, Ok(target)) = (path.is_file(), path.canonicalize()) {
            return write_atomic(&target, text);
        }
        let mut file = OpenOptions::new().write(true).truncate(true).open(path).map_err(Error::io("open", path))?;
        return file.write_all(text).map_err(Error::written(path));
    }
    write_atomic(path, text)
}

/// Compresses a text with gzip. The bytes depend only on the text: no name or time is stored.
fn gzip(text: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text)?;
    encoder.finish()
}

/// Whether a path names this process's stdout.
pub fn is_stdout(path: &Path) -> bool {
    is_dash(path) || ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| path == Path::new(name))
}

/// Checks, before any work, that [`write_text`] can write to a path. For a regular file, a temporary file is
/// created and removed; a pipe or device is opened only when it is written.
pub fn check_writable(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        _ if is_stdout(path) => Ok(()),
        Ok(found) if !found.is_file() => Ok(()),
        Ok(_) => check_temporary(&path.canonicalize().map_err(Error::io("write", path))?, path),
        // The path is a link without a target.
        Err(e) if input::is_named(path) => Err(Error::io("write", path)(e)),
        Err(_) => check_temporary(path, path),
    }
}

/// Checks, before any work, that files can be written into a folder, which need not exist yet. Nothing
/// is left behind.
pub fn check_folder_writable(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|above| !above.exists()).collect();
    let missing = &missing[..missing.len() - usize::from(missing.last() == Some(&Path::new("")))];
    let created = fs::create_dir_all(folder).map_err(Error::io("create", folder));
    let checked = created.and_then(|()| check_temporary(&folder.join("mapl"), folder));
    for above in missing {
        // The removal fails if another process has written into the folder by now.
        let _ = fs::remove_dir(above);
    }
    checked
}

fn check_temporary(path: &Path, named: &Path) -> Result<()> {
    match Unfinished::create(path) {
        Ok(_) => Ok(()),
        Err(Error::Io { source, .. }) => Err(Error::io("write", named)(source)),
        Err(other) => Err(other),
    }
}

/// Whether a sync failed because the file system or the rights of the process do not allow it. Such a failure
/// says nothing about the content. A folder must be opened for a sync, and a folder of mode 711 can be used
/// by others but not opened.
fn refuses_sync(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
}

/// Syncs a file's content, or a folder's list of names, to the disk. A path that does not allow a sync causes
/// a warning, once per process: the files there are complete, but a power cut may lose them.
pub fn sync(path: &Path) -> Result<()> {
    static WARNED: AtomicBool = AtomicBool::new(false);
    match File::open(path).and_then(|f| f.sync_all()) {
        Err(e) if refuses_sync(&e) => {
            if !WARNED.swap(true, Ordering::Relaxed) {
                let path = path.display();
                complain(&format!("warning: cannot sync {path} ({e}): a power cut may lose the last written files"));
            }
            Ok(())
        }
        done => done.map_err(Error::io("sync", path)),
    }
}

/// Syncs the parent folder of `path`.
pub fn sync_parent(path: &Path) -> Result<()> {
    sync(parent(path))
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

/// Returns an error text if the content is a Git LFS pointer: the few lines that stand in for a file that was
/// not downloaded.
pub fn lfs_pointer(bytes: &[u8]) -> Option<&'static str> {
    let is = bytes.starts_with(b"version https://git-lfs.github.com/spec/");
    is.then_some("is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`, or download it again")
}

/// BLAKE3 hash of a regular file's content, in hexadecimal digits.
pub fn hash(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(input::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether a path stands for standard input or output.
pub(crate) fn is_dash(path: &Path) -> bool {
    path == Path::new("-")
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
    fn writers_of_one_file_do_not_disturb_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        // Several temporary files of one path are open at a time, each with a unique name.
        let open: Vec<Unfinished> = (0..3).map(|_| Unfinished::write(&path, |_| Ok(())).unwrap()).collect();
        assert_eq!(entries(folder.path()).unwrap().len(), 3);
        drop(open);
        let texts: Vec<String> = (0..8).map(|i| format!("{i}").repeat(100_000)).collect();
        std::thread::scope(|scope| {
            for text in &texts {
                scope.spawn(|| (0..20).for_each(|_| write_atomic(&path, text.as_bytes()).unwrap()));
            }
        });
        assert!(texts.contains(&fs::read_to_string(&path).unwrap()));
        assert_eq!(entries(folder.path()).unwrap(), [path]);
    }

    #[test]
    fn the_next_writer_removes_what_a_killed_one_left_of_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let [path, left] = ["a.json", "a.json.4194303999-7.tmp"].map(|name| folder.path().join(name));
        let others = ["b.json.4194303999-7.tmp", "a.json.tmp", "a.json.1-x.tmp"].map(|name| folder.path().join(name));
        others.iter().chain([&left]).for_each(|path| fs::write(path, "half").unwrap());
        let open = Unfinished::write(&path, |_| Ok(())).unwrap();
        write_atomic(&path, b"new").unwrap();
        assert!(!left.exists() && others.iter().all(|other| other.exists()));
        // The temporary file of a living writer stays.
        open.rename().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        remove_leftovers(folder.path(), None);
        assert!(!others[0].exists() && others[1].exists() && others[2].exists());
    }

    #[test]
    fn new_files_that_belong_together_appear_all_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("tok");
        fs::create_dir_all(dir.join("b")).unwrap();
        // The second name is a folder, so its rename fails after the first one.
        assert!(write_new_files(&dir, &[("a", b"1"), ("b", b"2")]).is_err());
        assert_eq!(entries(&dir).unwrap(), [dir.join("b")]);
        write_new_files(&dir, &[("a", b"1"), ("c", b"2")]).unwrap();
        assert_eq!(
            (fs::read(dir.join("a")).unwrap(), fs::read(dir.join("c")).unwrap()),
            (b"1".to_vec(), b"2".to_vec())
        );
        let new = folder.path().join("new");
        assert!(write_new_files(&new, &[("a", b"1"), ("no/b", b"2")]).is_err());
        assert!(!new.exists());
    }

    #[test]
    fn a_place_that_cannot_be_synced_is_no_error() {
        // The proc file system rejects a sync of a folder.
        let folder = Path::new("/proc/self");
        let refused = File::open(folder).and_then(|f| f.sync_all()).unwrap_err();
        assert!(refuses_sync(&refused), "{refused}");
        sync(folder).unwrap();
        assert_eq!(sync(Path::new("/proc/self/none")).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn an_output_is_tried_without_a_trace() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("old"), "kept").unwrap();
        std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
        let before = entries(folder.path()).unwrap().len();
        for name in ["old", "new"] {
            check_writable(&at(name)).unwrap();
        }
        for path in ["/dev/stdout", "/dev/null"] {
            check_writable(Path::new(path)).unwrap();
        }
        check_folder_writable(&at("a/b")).unwrap();
        check_folder_writable(folder.path()).unwrap();
        for path in [at("dangling"), at("none/new"), "/proc/mapl.json".into()] {
            let why = check_writable(&path).unwrap_err().to_string();
            assert!(why.starts_with(&format!("cannot write {}", path.display())), "{why}");
        }
        for path in ["/proc/mapl/a".into(), at("old/a")] {
            assert_eq!(check_folder_writable(&path).unwrap_err().exit_code(), 1);
        }
        assert_eq!((entries(folder.path()).unwrap().len(), fs::read(at("old")).unwrap()), (before, b"kept".to_vec()));
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
