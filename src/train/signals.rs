//! Signals of a training command.
//!
//! - During the training loop, SIGINT and SIGTERM stop the run after the current step; a second one
//!   ends the process immediately. SIGUSR1 saves a checkpoint and continues.
//! - Before and after the loop no training can be lost, so the first SIGINT or SIGTERM ends the
//!   process. SIGUSR1 waits for the first step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::{Error, Result};

/// Requests received by signal.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Number of the stop signal; 0 for none.
    stop: Arc<AtomicUsize>,
    save: Arc<AtomicBool>,
    /// Whether the next stop signal ends the process.
    exit_on_signal: Arc<AtomicBool>,
}

/// Handlers of the process. They are registered once, because the default handlers cannot be
/// restored.
static HANDLERS: Mutex<Option<Signals>> = Mutex::new(None);

impl Signals {
    /// Installs the signal handlers; the whole process shares them.
    pub fn listen() -> Result<Self> {
        let mut handlers = HANDLERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signals) = &*handlers {
            return Ok(signals.clone());
        }
        let signals = Self::default();
        signals.exit_on_signal.store(true, Ordering::SeqCst);
        let register = || -> std::io::Result<()> {
            for signal in [SIGINT, SIGTERM] {
                // Handlers run in this order. The shutdown thus sees the flag as it was before this
                // signal: set by an earlier signal, or because no loop is running.
                flag::register_conditional_shutdown(signal, 128 + signal, signals.exit_on_signal.clone())?;
                flag::register(signal, signals.exit_on_signal.clone())?;
                flag::register_usize(signal, signals.stop.clone(), signal as usize)?;
            }
            flag::register(SIGUSR1, signals.save.clone()).map(|_| ())
        };
        register().map_err(|e| Error::Runtime(format!("cannot install signal handlers: {e}")))?;
        Ok(handlers.insert(signals).clone())
    }

    /// Defers stop signals: until the result is dropped, the first one is a request instead of the
    /// end of the process.
    pub(super) fn defer(&self) -> Deferred {
        self.stop.store(0, Ordering::SeqCst);
        self.exit_on_signal.store(false, Ordering::SeqCst);
        Deferred(self.clone())
    }

    /// Number of the stop signal that was received.
    pub(super) fn stop(&self) -> Option<i32> {
        match self.stop.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal as i32),
        }
    }

    /// Whether a stop or save request is waiting.
    pub(super) fn pending(&self) -> bool {
        self.stop().is_some() || self.save.load(Ordering::SeqCst)
    }

    /// Whether a save was requested since the last call.
    pub(super) fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::SeqCst)
    }
}

/// Guard that defers stop signals while it lives.
#[must_use]
pub(super) struct Deferred(Signals);

impl Drop for Deferred {
    fn drop(&mut self) {
        self.0.exit_on_signal.store(true, Ordering::SeqCst);
    }
}
