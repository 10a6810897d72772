//! Worker processes, which run code on untrusted input outside the main process.
//!
//! The tokenizer and the chat template of a model folder are in effect programs by the folder's author. For
//! some of them, the libraries that run them panic, overflow the stack, allocate without bound or never
//! return. [`enable`] makes [`crate::data::tokenizer::Tokenizer`] run both in child processes. A child has
//! limits of memory, processor time and stack; every failure in it becomes an error that names the file and
//! the limit. The binary enables this at its start. Without it, or on a system other than Linux, the work is
//! done in the calling process: panics still become errors, but exhausted memory or stack ends the process,
//! and nothing limits time.
//!
//! - `frame`: messages on a pipe
//! - `process`: one child, with its start, its requests and the cause of its end
//! - `pool`: the children of a tokenizer, at most one for each thread that sends requests
//! - `host`: code that runs in a child
//! - `guard`: converts panics to errors, and records the step that a child is running

pub(crate) mod frame;
pub(crate) mod guard;
#[cfg(target_os = "linux")]
pub(crate) mod host;
#[cfg(target_os = "linux")]
mod pool;
#[cfg(target_os = "linux")]
mod process;
#[cfg(not(target_os = "linux"))]
mod unsupported;

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

pub(crate) use guard::Stage;
#[cfg(target_os = "linux")]
pub(crate) use pool::Pool;
#[cfg(not(target_os = "linux"))]
pub(crate) use unsupported::Pool;

/// First argument of a program that is started as a worker.
pub const COMMAND: &str = "__worker";

/// Limits of one child process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Address space in bytes.
    pub memory: u64,
    /// Seconds of processor time of one request about a short text; a longer text adds
    /// [`SECONDS_PER_BYTE`] for each byte.
    pub seconds: u64,
}

/// The default limits are far above the needs of any tokenizer and row. The largest public tokenizers need 1
/// GiB and a few seconds to load, and a row needs milliseconds.
impl Default for Limits {
    fn default() -> Self {
        Self { memory: 4 << 30, seconds: 10 }
    }
}

/// Additional processor time in seconds for each byte of text. The value allows 100 kB per second, a tenth of
/// the speed of slow tokenizers.
pub const SECONDS_PER_BYTE: f64 = 1e-5;

/// Program that the child processes run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Path of an executable that calls [`crate::data::serve::main`] if its first argument is [`COMMAND`].
    pub path: PathBuf,
    /// Limits of a worker process.
    pub limits: Limits,
}

static ENABLED: OnceLock<Program> = OnceLock::new();

/// Makes tokenizers that are loaded from now on run in child processes of a program. Later calls
/// have no effect.
pub fn enable(program: Program) {
    let _ = ENABLED.set(program);
}

/// The enabled program; `None` if the work is done in this process.
pub(crate) fn enabled() -> Option<&'static Program> {
    ENABLED.get().filter(|_| cfg!(target_os = "linux"))
}

/// Reason why a worker did not respond.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// No child could be started.
    Start(String),
    /// A child ended during a request.
    Died { stage: Stage, cause: String },
    /// Children ended so often that no more are started.
    GivenUp { stage: Stage, cause: String },
}

impl Failure {
    pub(crate) fn stage(&self) -> Option<Stage> {
        match self {
            Failure::Start(_) => None,
            Failure::Died { stage, .. } | Failure::GivenUp { stage, .. } => Some(*stage),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Start(why) => write!(
                f,
                "cannot start the worker process for the tokenizer: {why}; allow more processes and memory (ulimit -u, \
                 ulimit -v, the limits of the container)"
            ),
            Failure::Died { stage, cause } => write!(f, "{} {cause}; {}", stage.action(), stage.advice()),
            Failure::GivenUp { stage, cause } => write!(
                f,
                "{} {cause}, and earlier rows failed too, so no more rows are tried; {}",
                stage.action(),
                stage.advice()
            ),
        }
    }
}
