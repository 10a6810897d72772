//! The error type of the library. Every variant has a process exit code, and every message says
//! what went wrong, where, why, and one thing to try. Library code returns these errors; it never
//! exits and never panics on input.

use std::path::{Path, PathBuf};

use crate::terminal::shown;

/// Result of every fallible function of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, grouped by the exit code a user sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag or a combination of flags that cannot work (exit code 2).
    #[error("{0}")]
    Usage(String),

    /// Invalid training or evaluation data (exit code 3). `line` counts from 1; 0 means the whole
    /// file.
    #[error("{}{}: {why}", Place(file, *line), Row(id.as_deref()))]
    Data {
        /// File.
        file: PathBuf,
        /// Line, from 1; 0 for the whole file.
        line: usize,
        /// Id of the row, if it has one.
        id: Option<String>,
        /// Cause of the error.
        why: String,
    },

    /// Training produced a value that is not finite (exit code 4).
    #[error("{0}")]
    Diverged(String),

    /// No usable device or driver (exit code 5).
    #[error("{0}")]
    Device(String),

    /// A model folder, tokenizer or checkpoint that is incompatible or damaged (exit code 6).
    #[error("{}: {why}", path.display())]
    Model {
        /// Path.
        path: PathBuf,
        /// Cause of the error.
        why: String,
    },

    /// The run needs more memory than is available (exit code 7).
    #[error("{0}")]
    Memory(String),

    /// An operating-system call on a file failed (exit code 1, or 7 if memory ran out).
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Verb of the failed action, such as `read`.
        action: &'static str,
        /// Path.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },

    /// An op was called with arguments that violate its contract: a bug in the caller (exit code
    /// 1).
    #[error("{op}: {what}: expected {expected}, got {got}")]
    Contract {
        /// Name of the op.
        op: &'static str,
        /// Argument or condition that violates the contract.
        what: &'static str,
        /// Value or condition that the contract requires.
        expected: String,
        /// Value that the caller passed.
        got: String,
    },

    /// A signal asked the run to stop; the state was saved first (exit code 128 + signal).
    #[error("stopped by signal {signal} after step {step}; state saved in {}", path.display())]
    Stopped {
        /// Number of the signal.
        signal: i32,
        /// Number of the last step.
        step: u64,
        /// Path of the saved state.
        path: PathBuf,
    },

    /// The command ends with this exit code and without a further message, because a child process has printed
    /// the message or a signal stopped the command.
    #[error("ended with exit code {0}")]
    Ended(i32),

    /// Any other run-time failure (exit code 1).
    #[error("{0}")]
    Runtime(String),

    /// The reader of a pipe that a command prints to has closed it, as `head` does. The command stops without
    /// a message (exit code 0).
    #[error("the reader of the output has left")]
    ReaderLeft,
}

impl Error {
    /// Process exit code of this error (table in docs/commands.md).
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Usage(_) => 2,
            Error::Data { .. } => 3,
            Error::Diverged(_) => 4,
            Error::Device(_) => 5,
            Error::Model { .. } => 6,
            Error::Memory(_) => 7,
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::OutOfMemory => 7,
            Error::Io { .. } | Error::Contract { .. } | Error::Runtime(_) => 1,
            Error::Stopped { signal, .. } => 128 + signal,
            Error::Ended(code) => *code,
            Error::ReaderLeft => 0,
        }
    }

    /// A data error at `file:line` (line 0: the whole file).
    pub fn data(file: &Path, line: usize, id: Option<&str>, why: impl Into<String>) -> Self {
        Error::Data { file: file.to_path_buf(), line, id: id.map(str::to_owned), why: why.into() }
    }

    /// A damaged or incompatible model folder, tokenizer or checkpoint.
    pub fn model(path: &Path, why: impl Into<String>) -> Self {
        Error::Model { path: path.to_path_buf(), why: why.into() }
    }

    /// Wraps a failed write of a command's result. A write to a closed pipe becomes [`Error::ReaderLeft`].
    pub fn written(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            std::io::ErrorKind::BrokenPipe => Error::ReaderLeft,
            _ => Error::Io { action: "write", path, source },
        }
    }

    /// Wraps an I/O failure; use as `.map_err(Error::io("read", path))`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}

/// Returns [`Error::Usage`] "FLAG has no effect WHY" for the first flag that is given.
pub(crate) fn refuse_given(flags: &[(&str, bool)], why: &str) -> Result<()> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Error::Usage(format!("{flag} has no effect {why}"))),
        None => Ok(()),
    }
}

/// Rejects a number that is infinite in f32, the precision of training, and a nonzero number that rounds to 0
/// in f32.
pub(crate) fn refuse_outside_f32(flag: &str, value: f64) -> Result<()> {
    let rounded = value as f32;
    let (becomes, advice) = match () {
        () if !rounded.is_finite() => ("infinite", "lower"),
        () if rounded == 0.0 && value != 0.0 => ("0", "raise"),
        () => return Ok(()),
    };
    Err(Error::Usage(format!("{flag} {value:e}: it is {becomes} in f32, the precision of training; {advice} it")))
}

/// `file:line`, or only `file` for line 0.
struct Place<'a>(&'a Path, usize);

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            0 => write!(f, "{}", self.0.display()),
            line => write!(f, "{}:{line}", self.0.display()),
        }
    }
}

/// ` (id X)` if the row has an id.
struct Row<'a>(Option<&'a str>);

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => write!(f, " (id {})", shown(id)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_of_f32_are_refused() {
        for value in [0.0, 1e-45, 3.4e38, -3.4e38] {
            refuse_outside_f32("--x", value).unwrap();
        }
        for (value, text) in [(1e39, "--x 1e39: it is infinite in f32"), (1e-46, "--x 1e-46: it is 0 in f32")] {
            let e = refuse_outside_f32("--x", value).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().starts_with(text), "{e}");
        }
    }

    #[test]
    fn data_errors_name_file_line_and_id() {
        let e = Error::data(Path::new("d.jsonl"), 17, Some("4711"), "\"rejected\" is missing");
        assert_eq!(e.to_string(), "d.jsonl:17 (id 4711): \"rejected\" is missing");
        assert_eq!(e.exit_code(), 3);
        assert_eq!(Error::data(Path::new("d.jsonl"), 0, None, "is empty").to_string(), "d.jsonl: is empty");
    }
}
