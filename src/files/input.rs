//! Opens and reads input files. A path of a model, checkpoint or run folder may name anything: a named pipe
//! would block, a device never ends, and a link may lead to a private file. [`open`] and [`read`] accept
//! regular files only, and [`read`] rejects a file above its limit before it reads. [`read_once`] is for a
//! file that a user named: a pipe is accepted, because it is read once.
//!
//! Links are followed for reading. A file that a command copies into its output must be in the folder that it
//! is read from ([`check_copied`]).

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::memory::handling_failure;
use crate::{Error, Result};

/// Largest configuration, template, manifest, index or state that is read; real ones have kilobytes.
pub(crate) const MAX_CONFIG: u64 = 16 << 20;

/// Largest file of a tokenizer that is read; large vocabularies have 40 MB.
pub(crate) const MAX_TOKENIZER: u64 = 512 << 20;

/// Largest record of a run, benchmark or evaluation that is read.
pub(crate) const MAX_RECORD: u64 = 8 << 30;

/// Reason why a path is rejected before any of its bytes are used, for messages that start with the path.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, Refused(why))
}

/// Returns the reason of an error that rejects the path itself; `None` for a failed system call.
fn refusal(error: &io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<Refused>().map(ToString::to_string)
}

/// Converts a failed read of a file of a model, tokenizer or checkpoint folder: a path that is not a readable
/// file is [`Error::Model`], and a failed system call is [`Error::Io`].
pub(crate) fn model_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |e| match refusal(&e) {
        Some(why) => Error::model(&path, why),
        None => Error::io("read", &path)(e),
    }
}

/// Like [`model_error`], for a file of data or results: a path that is not a readable file is [`Error::Data`].
pub(crate) fn data_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |e| match refusal(&e) {
        Some(why) => Error::data(&path, 0, None, why),
        None => Error::io("read", &path)(e),
    }
}

/// Whether a folder has an entry of this name, be it a file, a link without a target, or a pipe.
pub(crate) fn is_named(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Kind of a file that is not regular; `None` for a regular file.
fn kind(found: &Metadata) -> Option<&'static str> {
    let of = found.file_type();
    match () {
        () if of.is_file() => None,
        () if of.is_dir() => Some("a folder"),
        () if of.is_fifo() => Some("a pipe"),
        () if of.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

fn check_kind(found: &Metadata) -> io::Result<()> {
    match kind(found) {
        None => Ok(()),
        Some(kind) => Err(refused(format!("is {kind}, not a regular file"))),
    }
}

/// Opens a regular file for reading. It never waits for the writer of a pipe.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let found = fs::metadata(path).map_err(|e| match (e.kind(), fs::read_link(path)) {
        (io::ErrorKind::NotFound, Ok(target)) => {
            refused(format!("is a link to {}, which does not exist; is the download complete?", target.display()))
        }
        _ => e,
    })?;
    check_kind(&found)?;
    // The path may name a different file since the check, so the open file is checked too.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check_kind(&file.metadata()?)?;
    Ok(file)
}

/// Content of a regular file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let size = file.metadata()?.len();
    if size > limit {
        return Err(refused(format!("has {size} bytes; at most {limit} are read. Is this the right file?")));
    }
    read_at_most(file, size, limit)
}

/// Content of a file, pipe or device of at most `limit` bytes. Waits for the writer of a pipe.
pub(crate) fn read_once(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    match kind(&fs::metadata(path)?) {
        Some("a folder") => Err(refused("is a folder, not a file".into())),
        Some(_) => read_at_most(File::open(path)?, 0, limit),
        None => read(path, limit),
    }
}

fn read_at_most(file: File, expected: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let expected = usize::try_from(expected).unwrap_or(usize::MAX);
    handling_failure(|| {
        bytes.try_reserve_exact(expected).map_err(|_| io::ErrorKind::OutOfMemory)?;
        file.take(limit + 1).read_to_end(&mut bytes)
    })?;
    if bytes.len() as u64 > limit {
        return Err(refused(format!("has more than {limit} bytes, the limit. Is this the right file?")));
    }
    Ok(bytes)
}

/// Returns an error if a file of `folder` that a command would copy into its output is a link out of the
/// folder, because the output could publish a private file. In a Hugging Face cache,
/// `REPOSITORY/snapshots/REVISION/NAME` may link into `REPOSITORY/blobs`.
pub(crate) fn check_copied(folder: &Path, files: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<()> {
    let home = folder.canonicalize().map_err(Error::io("read", folder))?;
    let snapshots = home.ancestors().find(|above| above.file_name() == Some(OsStr::new("snapshots")));
    let blobs: Option<PathBuf> = snapshots.and_then(|found| found.with_file_name("blobs").canonicalize().ok());
    for file in files {
        let file = file.as_ref();
        let target = file.canonicalize().map_err(Error::io("read", file))?;
        if !target.starts_with(&home) && (blobs.is_none() || target.parent() != blobs.as_deref()) {
            let why = format!(
                "is a link to {}, outside of its folder, and would be copied into the output; replace the link with a \
                 copy if the output may hold it, or remove it",
                target.display()
            );
            return Err(Error::model(file, why));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn fifo(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "fern").unwrap();
        fifo(&at("pipe"));
        fs::create_dir(at("dir")).unwrap();
        for (name, target) in [("link", "file"), ("none", "nowhere"), ("zero", "/dev/zero"), ("piped", "pipe")] {
            symlink(target, at(name)).unwrap();
        }
        assert_eq!((read(&at("file"), 4).unwrap(), read(&at("link"), 4).unwrap()), (b"fern".into(), b"fern".into()));
        for (name, part) in [
            ("file", "has 4 bytes; at most 3 are read"),
            ("pipe", "is a pipe"),
            ("piped", "is a pipe"),
            ("dir", "is a folder"),
            ("zero", "is a device"),
            ("none", "is a link to nowhere, which does not exist"),
        ] {
            let path = at(name);
            let why = read(&path, 3).map_err(model_error(&path)).unwrap_err();
            assert!(why.exit_code() == 6 && why.to_string().contains(part), "{why}");
            let why = read(&path, 3).map_err(data_error(&path)).unwrap_err();
            assert_eq!(why.exit_code(), 3);
        }
        assert_eq!(read(&at("absent"), 3).map_err(model_error(&at("absent"))).unwrap_err().exit_code(), 1);
    }

    #[test]
    fn a_named_pipe_or_device_is_read_up_to_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        fifo(&pipe);
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::write(pipe, "fern").unwrap()
        });
        assert_eq!(read_once(&pipe, 4).unwrap(), b"fern");
        writer.join().unwrap();
        let why = read_once(Path::new("/dev/zero"), 9).unwrap_err();
        assert_eq!(why.to_string(), "has more than 9 bytes, the limit. Is this the right file?");
    }

    #[test]
    fn copied_files_are_in_their_folder_or_in_the_blobs_of_their_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for dir in ["models--a/snapshots/1/more", "models--a/blobs", "models--b/blobs", "plain"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        for file in ["models--a/blobs/x", "models--b/blobs/x", "plain/own", "private"] {
            fs::write(at(file), "x").unwrap();
        }
        let allowed = |dir: &str, name: &str, target: &str| {
            let link = at(dir).join(name);
            symlink(target, &link).unwrap();
            let found = check_copied(&at(dir), [link.as_path()]);
            fs::remove_file(link).unwrap();
            found.inspect_err(|e| assert_eq!(e.exit_code(), 6)).is_ok()
        };
        let snapshot = "models--a/snapshots/1";
        assert!(allowed(snapshot, "a", "../../blobs/x") && allowed(snapshot, "more/a", "../../../blobs/x"));
        assert!(allowed("plain", "a", "own"));
        for target in ["../../../models--b/blobs/x", "../../../private", "/etc/passwd"] {
            assert!(!allowed(snapshot, "a", target), "{target}");
        }
        assert!(!allowed("plain", "a", "../private") && !allowed("plain", "a", "../models--a/blobs/x"));
    }
}
