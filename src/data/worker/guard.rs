//! Calls a library that may panic, and records the step that a child process is running.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Once, OnceLock};

/// Step of a request, recorded before it starts. If a child dies, its parent reads the last recorded step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Other = 0,
    LoadTokenizer = 1,
    Compile = 2,
    Render = 3,
    Encode = 4,
    Decode = 5,
}

impl Stage {
    #[cfg(target_os = "linux")]
    pub(crate) fn from_byte(byte: u8) -> Self {
        let all = [Stage::LoadTokenizer, Stage::Compile, Stage::Render, Stage::Encode, Stage::Decode];
        all.into_iter().find(|stage| *stage as u8 == byte).unwrap_or(Stage::Other)
    }

    /// True if the step runs the chat template, not the tokenizer.
    pub(crate) fn is_template(self) -> bool {
        matches!(self, Stage::Compile | Stage::Render)
    }

    /// Advice after a failure.
    pub(crate) fn advice(self) -> &'static str {
        match self {
            Stage::Compile | Stage::Render => "does it loop or grow without end? try --chat-template-path",
            Stage::Encode => "if other texts work, shorten this one, else use another tokenizer",
            Stage::Other | Stage::LoadTokenizer | Stage::Decode => "use another tokenizer",
        }
    }

    /// Subject of a sentence about a failure.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Stage::Other => "the worker process",
            Stage::LoadTokenizer => "reading the tokenizer",
            Stage::Compile => "compiling the chat template",
            Stage::Render => "rendering the chat template",
            Stage::Encode => "encoding a text",
            Stage::Decode => "decoding ids",
        }
    }
}

/// File that holds the current step; set only in a child process.
static NOTE: OnceLock<File> = OnceLock::new();

/// Sets the file that [`note`] writes to.
#[cfg(target_os = "linux")]
pub(super) fn note_to(file: File) {
    let _ = NOTE.set(file);
}

/// Records the step that starts now.
pub(crate) fn note(stage: Stage) {
    #[cfg(unix)]
    if let Some(file) = NOTE.get() {
        // If the write fails, only the parent's error message is less exact.
        let _ = std::os::unix::fs::FileExt::write_at(file, &[stage as u8], 0);
    }
}

/// Calls a library and converts its panic to an error text.
pub(crate) fn guarded<T>(stage: Stage, call: impl FnOnce() -> T) -> Result<T, String> {
    note(stage);
    // `AssertUnwindSafe` is correct because calls only read loaded library objects, and an object that a failed
    // call was building is discarded.
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("the library stopped: {}", text.unwrap_or("no reason was given"))
    })
}

thread_local! {
    /// True while panics of this thread print nothing.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Like [`guarded`], without the message that a panic prints.
pub(crate) fn guarded_quietly<T>(stage: Stage, call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    // The hook is global to the process, so it is set once and checks the flag of the panicking thread.
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let outcome = guarded(stage, call);
    QUIET.set(false);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_text() {
        assert_eq!(guarded(Stage::Encode, || 7), Ok(7));
        let why = guarded(Stage::Encode, || -> u8 { panic!("at {}", 3) }).unwrap_err();
        assert_eq!(why, "the library stopped: at 3");
        let quiet = || -> u8 {
            assert!(QUIET.get());
            panic!("at {}", 4)
        };
        assert_eq!(guarded_quietly(Stage::Other, quiet).unwrap_err(), "the library stopped: at 4");
        assert!(!QUIET.get());
    }
}
