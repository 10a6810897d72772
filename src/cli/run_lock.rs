//! Lock of an output folder: only one run at a time writes into it. It is an operating system lock on
//! `run.lock` in the folder, so it is released however the process ends. The file that a killed process
//! leaves is reused.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::terminal::{complain, follows};
use crate::{Error, Result};

/// Name of the lock file; it holds the process id.
pub(super) const LOCK_FILE: &str = "run.lock";

/// Lock held while a run writes into its folder. Dropping it removes the file and releases the
/// lock.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    /// Lock file, open while the lock is held; `None` on file systems without locks, and for ranks that do not write.
    file: Option<File>,
    /// Open handle of the folder. While it is open, no other folder can get its inode number.
    folder: Option<File>,
}

impl RunLock {
    /// Locks an existing folder. For a folder in use, [`Error::Usage`] names the folder and the
    /// process.
    pub fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK_FILE);
        let folder = File::open(dir).ok();
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(Error::io("write", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(in_use(dir, &mut file)),
                Err(TryLockError::Error(e)) if has_no_locks(&e) => {
                    complain(&format!(
                        "warning: {} cannot be locked ({e}); do not start another run in this folder",
                        dir.display()
                    ));
                    return Ok(Self { path, file: None, folder });
                }
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
            }
            // The previous holder may have removed the file after it was opened here and before it was
            // locked. Then this lock is on a file that no other run will find.
            if !is_at(&file, &path) {
                continue;
            }
            let number = format!("{}\n", std::process::id());
            let written = file.set_len(0).and_then(|()| file.write_all(number.as_bytes()));
            let lock = Self { path, file: Some(file), folder };
            return written.map(|()| lock).map_err(Error::io("write", &dir.join(LOCK_FILE)));
        }
    }
}

impl RunLock {
    /// Returns an empty lock for a rank that writes nothing. Rank 0 holds the lock of the folder.
    pub fn of_another_rank(dir: &Path) -> Self {
        Self { path: dir.join(LOCK_FILE), file: None, folder: None }
    }

    /// Checks that the folder still has this lock. If it does not, the folder is created again if necessary
    /// and locked again, and a warning to print is returned. Returns [`Error::Runtime`] if the folder was
    /// replaced by one that another run locks or that holds files.
    pub fn keep(&mut self, dir: &Path) -> Result<Option<String>> {
        if follows() {
            return Ok(None);
        }
        let held = match &self.file {
            Some(file) => is_at(file, &self.path),
            None => dir.is_dir(),
        };
        if held {
            return Ok(None);
        }
        let removed = !dir.exists();
        // Another run may have created a folder with this name, written to it and ended.
        let is_other = !removed && self.folder.as_ref().is_some_and(|folder| !is_at(folder, dir));
        let is_written = is_other && fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        match Self::take(dir) {
            Ok(_) if is_written => {
                return Err(Error::Runtime(format!(
                    "the output folder {} was replaced by one that holds other files; this run ends without writing \
                     there",
                    dir.display()
                )));
            }
            Ok(lock) => *self = lock,
            Err(Error::Usage(_)) => {
                return Err(Error::Runtime(format!(
                    "the output folder {} was replaced, and another run writes into it now; this run ends without \
                     writing there",
                    dir.display()
                )));
            }
            Err(other) => return Err(other),
        }
        let what = match removed {
            true => "was removed; it was created again, and its earlier files are lost",
            false => "lost its run.lock",
        };
        Ok(Some(format!("the output folder {} {what}", dir.display())))
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // If the folder was replaced, the path may be the lock of another run. A lock file that remains
            // does no harm.
            if is_at(&file, &self.path) {
                let _ = fs::remove_file(&self.path);
            }
            drop(file);
        }
    }
}

/// Whether locking failed because the file system has no locks, such as a network file system without a lock service.
fn has_no_locks(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput)
        || matches!(error.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP))
}

/// Whether an open file is the one now at `path`.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn in_use(dir: &Path, file: &mut File) -> Error {
    let mut number = String::new();
    let holder = match file.read_to_string(&mut number) {
        Ok(_) if !number.trim().is_empty() => format!("process {}", number.trim()),
        _ => "another process".to_owned(),
    };
    Error::Usage(format!(
        "--output-dir {} is in use by another run ({holder}); wait for it or stop it, or name another folder",
        dir.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_locks_is_told_from_a_failure() {
        for code in [libc::ENOLCK, libc::ENOSYS, libc::EOPNOTSUPP, libc::EINVAL] {
            assert!(has_no_locks(&io::Error::from_raw_os_error(code)), "{code}");
        }
        assert!(!has_no_locks(&io::Error::from_raw_os_error(libc::EIO)));
    }

    #[test]
    fn a_removed_folder_is_made_again_and_a_replaced_one_refused() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("out");
        fs::create_dir(&dir).unwrap();
        let mut lock = RunLock::take(&dir).unwrap();
        assert_eq!(lock.keep(&dir).unwrap(), None);
        fs::remove_dir_all(&dir).unwrap();
        let warning = lock.keep(&dir).unwrap().unwrap();
        assert!(warning.contains("was removed; it was created again"), "{warning}");
        assert_eq!(RunLock::take(&dir).unwrap_err().exit_code(), 2);
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        let other = RunLock::take(&dir).unwrap();
        let why = lock.keep(&dir).unwrap_err();
        assert!(why.exit_code() == 1 && why.to_string().contains("another run writes into it"), "{why}");
        // The lock of the other run stays.
        drop(lock);
        assert!(dir.join(LOCK_FILE).exists());
        drop(other);
        // A folder in which another run has ended is not overwritten either.
        let mut lock = RunLock::take(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("run.json"), "{}").unwrap();
        let why = lock.keep(&dir).unwrap_err();
        assert!(why.exit_code() == 1 && why.to_string().contains("holds other files"), "{why}");
    }

    #[test]
    fn a_folder_is_locked_once_and_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let lock = RunLock::take(dir.path()).unwrap();
        let why = RunLock::take(dir.path()).unwrap_err();
        assert_eq!(why.exit_code(), 2);
        let number = format!("process {}", std::process::id());
        assert!(why.to_string().contains(&number), "{why}");
        assert!(why.to_string().contains(&dir.path().display().to_string()), "{why}");
        drop(lock);
        assert!(!dir.path().join(LOCK_FILE).exists());
        // The file of a killed process is not locked.
        std::fs::write(dir.path().join(LOCK_FILE), "4194303999\n").unwrap();
        let lock = RunLock::take(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
        drop(lock);
    }
}
