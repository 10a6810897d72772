//! Signals of a training command. While the loop runs, SIGINT and SIGTERM ask it to stop after the current step, SIGUSR1
//! to save and go on, and a second SIGINT or SIGTERM ends the process at once. Before and after the loop, where nothing
//! trained can be lost, the first SIGINT or SIGTERM ends it, and SIGUSR1 waits for the first step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::{Error, Result};

/// What has been asked for since the run began.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Number of the signal that asks to stop; 0 for none.
    stop: Arc<AtomicUsize>,
    save: Arc<AtomicBool>,
    /// The next signal that asks to stop ends the process.
    at_once: Arc<AtomicBool>,
}

/// The process's handlers: they are registered once, since a handler cannot give way to the system's own again.
static LISTENING: Mutex<Option<Signals>> = Mutex::new(None);

impl Signals {
    /// Listens from now on; the whole process shares one listener.
    pub fn listen() -> Result<Self> {
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signals) = &*listening {
            return Ok(signals.clone());
        }
        let signals = Self::default();
        signals.at_once.store(true, Ordering::SeqCst);
        let register = || -> std::io::Result<()> {
            for signal in [SIGINT, SIGTERM] {
                // In this order: the shutdown sees whether an earlier signal, or no loop, had set the flag.
                flag::register_conditional_shutdown(signal, 128 + signal, signals.at_once.clone())?;
                flag::register(signal, signals.at_once.clone())?;
                flag::register_usize(signal, signals.stop.clone(), signal as usize)?;
            }
            flag::register(SIGUSR1, signals.save.clone()).map(|_| ())
        };
        register().map_err(|e| Error::Runtime(format!("cannot listen for signals: {e}")))?;
        Ok(listening.insert(signals).clone())
    }

    /// From now until the result is dropped, the first signal is an order to stop and not the end of the process.
    pub fn defer(&self) -> Deferred {
        self.stop.store(0, Ordering::SeqCst);
        self.at_once.store(false, Ordering::SeqCst);
        Deferred(self.clone())
    }

    /// The signal that asked to stop.
    pub fn stop(&self) -> Option<i32> {
        match self.stop.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal as i32),
        }
    }

    /// Whether a signal waits to be heeded.
    pub fn pending(&self) -> bool {
        self.stop().is_some() || self.save.load(Ordering::SeqCst)
    }

    /// Whether a save was asked for since the last call.
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::SeqCst)
    }
}

/// Signals wait for the loop while this lives.
#[must_use]
pub struct Deferred(Signals);

impl Drop for Deferred {
    fn drop(&mut self) {
        self.0.at_once.store(true, Ordering::SeqCst);
    }
}
