//! Signals of a run: SIGINT and SIGTERM ask it to stop after the current step, SIGUSR1 to save and go on. A second
//! SIGINT or SIGTERM ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::{Error, Result};

/// What has been asked for since the run began.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Number of the signal that asks to stop; 0 for none.
    stop: Arc<AtomicUsize>,
    save: Arc<AtomicBool>,
}

impl Signals {
    /// Listens from now on.
    pub fn listen() -> Result<Self> {
        let signals = Self::default();
        let seen = Arc::new(AtomicBool::new(false));
        let register = || -> std::io::Result<()> {
            for signal in [SIGINT, SIGTERM] {
                // In this order: the shutdown sees whether an earlier signal had set the flag.
                flag::register_conditional_shutdown(signal, 128 + signal, seen.clone())?;
                flag::register(signal, seen.clone())?;
                flag::register_usize(signal, signals.stop.clone(), signal as usize)?;
            }
            flag::register(SIGUSR1, signals.save.clone()).map(|_| ())
        };
        register().map_err(|e| Error::Runtime(format!("cannot listen for signals: {e}")))?;
        Ok(signals)
    }

    /// The signal that asked to stop.
    pub fn stop(&self) -> Option<i32> {
        match self.stop.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(signal as i32),
        }
    }

    /// Whether a save was asked for since the last call.
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }
}
