//! Signals of a training command.
//!
//! ```text
//! SIGINT, SIGTERM   in the training loop, the first:     stop after this step and save
//!                   within 2 s of the first:             ignored
//!                   later, or outside of the loop:       record the end in run.json, end the process
//! SIGUSR1           in the training loop:                save a checkpoint and continue
//!                   earlier:                             the same after the first step
//! ```
//!
//! Repeats are ignored because one request often arrives twice: `timeout -s INT` signals its child
//! and then the process group, and Linux sends a parent-death signal at the death of each thread of the parent.
//! Outside of the loop no training can be lost.
//!
//! Every command except `watch` has these handlers. Outside of a training loop nothing is saved: the first
//! signal removes temporary files and ends the process with 128 + signal.
//!
//! A separate thread handles the stop signals, so the handling may take locks and write files. If this thread
//! takes more than 2 s to end the process, a further signal ends the process directly in the signal handler.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::{flag, iterator, low_level};

use crate::files::remove_unfinished;
use crate::ranks::world::end_by_signal;
use crate::{Error, Result};

/// Time after the first stop signal during which further ones count as repeats of it.
const REPEATS: Duration = Duration::from_secs(2);

/// Maximum wait for the notice of a stop to be printed; a closed or full pipe must not delay the
/// stop.
const NOTICE_WAIT: Duration = Duration::from_millis(100);

/// Text printed at the first stop signal.
const NOTICE: &str = "stopping after this step; repeat the signal to stop at once";

/// Function that prints a line while a run has a progress bar.
type Printer = Box<dyn FnOnce(&str) + Send>;

/// Function that records that a signal ends the process.
type Recorder = Box<dyn FnOnce(i32) + Send>;

/// Requests received by signal.
#[derive(Clone, Default)]
pub struct Signals {
    /// Number of the stop signal; 0 for none.
    stop: Arc<AtomicUsize>,
    save: Arc<AtomicBool>,
    rules: Arc<Mutex<Rules>>,
}

/// State that determines the action of the next stop signal.
#[derive(Default)]
struct Rules {
    /// Whether a training loop runs, so that a stop waits for its step.
    deferred: bool,
    /// Time of the first stop signal of the loop.
    first: Option<Instant>,
    printer: Option<Printer>,
    recorder: Option<Recorder>,
}

/// Action of a stop signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Stop,
    Ignore,
    End,
}

impl Rules {
    fn received(&mut self, now: Instant) -> Action {
        match self.first {
            Some(first) if now.saturating_duration_since(first) < REPEATS => Action::Ignore,
            None if self.deferred => {
                self.first = Some(now);
                Action::Stop
            }
            _ => Action::End,
        }
    }
}

/// Lets a signal end the process directly once the time has passed, or at once if no thread can be started.
fn end_directly_after(time: Duration, ending: Arc<AtomicBool>) {
    let later = ending.clone();
    let wait = move || {
        std::thread::sleep(time);
        later.store(true, Ordering::SeqCst);
    };
    if std::thread::Builder::new().name("late-signals".into()).spawn(wait).is_err() {
        ending.store(true, Ordering::SeqCst);
    }
}

/// Handlers of the process. They are registered once, because the default handlers cannot be
/// restored.
static HANDLERS: Mutex<Option<Signals>> = Mutex::new(None);

impl Signals {
    /// Installs the signal handlers; the whole process shares them.
    pub fn listen() -> Result<Self> {
        let mut handlers = lock(&HANDLERS);
        if let Some(signals) = &*handlers {
            return Ok(signals.clone());
        }
        let signals = Self::default();
        let register = || -> std::io::Result<()> {
            let ending = Arc::new(AtomicBool::new(false));
            for signal in [SIGINT, SIGTERM] {
                flag::register_conditional_shutdown(signal, 128 + signal, ending.clone())?;
            }
            flag::register(SIGUSR1, signals.save.clone())?;
            // Without a handler, exceeding the file size limit (`ulimit -f`) ends the process; with it, the
            // write fails.
            flag::register(SIGXFSZ, Arc::default())?;
            let mut received = iterator::Signals::new([SIGINT, SIGTERM])?;
            let shared = signals.clone();
            let each = move || received.forever().for_each(|signal| shared.received(signal, &ending));
            std::thread::Builder::new().name("signals".into()).spawn(each).map(|_| ())
        };
        register().map_err(|e| Error::Runtime(format!("cannot install signal handlers: {e}")))?;
        Ok(handlers.insert(signals).clone())
    }

    /// Acts on a stop signal, on the signal thread.
    fn received(&self, signal: i32, ending: &Arc<AtomicBool>) {
        let mut rules = lock(&self.rules);
        match rules.received(Instant::now()) {
            Action::Ignore => {}
            Action::Stop => {
                let printer = rules.printer.take();
                drop(rules);
                announce(printer);
                self.stop.store(signal as usize, Ordering::SeqCst);
            }
            Action::End => {
                let recorder = rules.recorder.take();
                drop(rules);
                end_directly_after(REPEATS, ending.clone());
                end_by_signal();
                if let Some(record) = recorder {
                    record(signal);
                }
                remove_unfinished();
                low_level::exit(128 + signal);
            }
        }
    }

    /// Sets the function that records the end of the current run if a signal ends the process.
    pub fn record_end(&self, recorder: impl FnOnce(i32) + Send + 'static) {
        lock(&self.rules).recorder = Some(Box::new(recorder));
    }

    /// Defers stop signals: until the returned guard is dropped, the first stop signal requests a stop after
    /// the step instead of ending the process. `printer` prints the notice of that request.
    pub(crate) fn defer(&self, printer: impl FnOnce(&str) + Send + 'static) -> Deferred {
        let mut rules = lock(&self.rules);
        self.stop.store(0, Ordering::SeqCst);
        (rules.deferred, rules.first) = (true, None);
        rules.printer = Some(Box::new(printer));
        Deferred(self.clone())
    }

    /// Removes temporary files and ends the process with exit code 128 + `signal`, as a stop signal outside
    /// of a training loop does.
    pub(crate) fn end(signal: i32) -> ! {
        remove_unfinished();
        low_level::exit(128 + signal)
    }

    /// Number of the stop signal that was received.
    pub fn stop(&self) -> Option<i32> {
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

/// Prints the stop notice on a separate thread and waits briefly, so that the notice precedes the further
/// output of the run. Printing can block, and the next signal must still be received.
fn announce(printer: Option<Printer>) {
    let Some(print) = printer else { return };
    let (done, printed) = mpsc::channel::<()>();
    let print = move || {
        print(NOTICE);
        drop(done);
    };
    if std::thread::Builder::new().spawn(print).is_ok() {
        let _ = printed.recv_timeout(NOTICE_WAIT);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Guard that defers stop signals while it lives.
#[must_use]
pub(crate) struct Deferred(Signals);

impl Drop for Deferred {
    fn drop(&mut self) {
        let mut rules = lock(&self.0.rules);
        (rules.deferred, rules.printer) = (false, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_within_two_seconds_is_ignored_and_a_later_signal_ends_the_process() {
        let start = Instant::now();
        let at = |rules: &mut Rules, ms: u64| rules.received(start + Duration::from_millis(ms));
        let mut rules = Rules::default();
        assert_eq!(at(&mut rules, 0), Action::End, "outside of a loop");
        rules.deferred = true;
        assert_eq!(
            [0, 0, 20, 1999].map(|ms| at(&mut rules, ms)),
            [Action::Stop, Action::Ignore, Action::Ignore, Action::Ignore]
        );
        assert_eq!(at(&mut rules, 2000), Action::End);
        // A signal within 2 s of the first is ignored even if the loop has already ended.
        rules.deferred = false;
        assert_eq!([1000, 2500].map(|ms| at(&mut rules, ms)), [Action::Ignore, Action::End]);
    }
}
