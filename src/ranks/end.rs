//! Hooks for a run that ends because a rank failed: advice on the last checkpoint for the error message, and a
//! recorder of the outcome for the manifest. Rank 0 writes the outcome; the other ranks write no files.

use std::sync::{Mutex, PoisonError};

/// Advice on the last checkpoint of a run.
type LastCheckpoint = Box<dyn Fn() -> String + Send>;

/// Records why a run has ended, and the exit code if it is known.
type Recorder = Box<dyn FnOnce(&str, Option<i32>) + Send>;

static LAST_CHECKPOINT: Mutex<Option<LastCheckpoint>> = Mutex::new(None);

static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

/// Sets the advice on the last checkpoint for a message about a failed rank.
pub(crate) fn set_last_checkpoint(text: impl Fn() -> String + Send + 'static) {
    *LAST_CHECKPOINT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(text));
}

/// Advice on the last checkpoint.
pub(super) fn last_checkpoint() -> String {
    // A poisoned lock is used too, because a failed rank must be reported in any case. The lock is held only
    // briefly.
    LAST_CHECKPOINT.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(String::new(), |text| text())
}

/// Sets the recorder of the end of the run, for a failed rank that ends it.
pub(crate) fn set_recorder(recorder: impl FnOnce(&str, Option<i32>) + Send + 'static) {
    *RECORDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(recorder));
}

/// Records the end of the run, once. The process must end after this call.
pub(super) fn record(why: &str, code: Option<i32>) {
    let recorder = RECORDER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(record) = recorder {
        record(why, code);
    }
}
