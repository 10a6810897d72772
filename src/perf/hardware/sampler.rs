//! The thread that samples the hardware during a run.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Meter, Sample};
use crate::{Error, Result};

/// Maximum number of samples in memory. When it is exceeded, every second sample is dropped and the
/// sampling rate is halved.
pub const MAX_SAMPLES: usize = 1 << 14;

/// Result of sampling.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    /// Samples in order.
    pub samples: Vec<Sample>,
    /// Readings that were unavailable at some time, with the first reason.
    pub missing: Vec<(String, String)>,
    /// Time origin of the samples.
    pub began: Option<Instant>,
}

/// Meters to read, and readings that are unavailable from the start, with the reason.
pub type Meters = (Vec<Box<dyn Meter>>, Vec<(String, String)>);

/// A sampling thread. It also ends when it is dropped without [`Sampler::stop`].
pub struct Sampler {
    stop: Sender<()>,
    thread: Option<JoinHandle<Readings>>,
}

impl Sampler {
    /// Starts sampling every `interval`. `meters` runs on the sampling thread, and returns the meters and the
    /// readings that are unavailable from the start. If `log` is given, every sample is written to it as a line.
    pub fn start(
        interval: Duration,
        log: Option<&Path>,
        meters: impl FnOnce() -> Meters + Send + 'static,
    ) -> Result<Self> {
        let create = |path: &Path| {
            // The old file is removed first, because opening a pipe of this name would block.
            let file = match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => File::create_new(path),
            };
            file.map_err(|source| Error::Io { action: "create", path: path.to_owned(), source })
        };
        let mut log = log.map(create).transpose()?.map(BufWriter::new);
        let (stop, stopped) = channel::<()>();
        let work = move || {
            let began = Instant::now();
            let (mut meters, missing) = meters();
            let mut readings = Readings { samples: Vec::new(), missing, began: Some(began) };
            let (mut count, mut every) = (0u64, 1u64);
            loop {
                let mut sample = Sample { time_s: began.elapsed().as_secs_f64(), ..Sample::default() };
                meters.iter_mut().for_each(|meter| meter.read(&mut sample));
                // A full disk ends the log, but not the run.
                let written = log.as_mut().map(|log| {
                    serde_json::to_writer(&mut *log, &sample).map_err(std::io::Error::from)?;
                    log.write_all(b"\n")
                });
                if let Some(Err(why)) = written {
                    readings.missing.push(("hw.jsonl".into(), why.to_string()));
                    log = None;
                }
                if count.is_multiple_of(every) {
                    readings.samples.push(sample);
                    if readings.samples.len() > MAX_SAMPLES {
                        let mut place = 0;
                        readings.samples.retain(|_| {
                            place += 1;
                            place % 2 == 1
                        });
                        every *= 2;
                    }
                }
                count += 1;
                // The next sample is due relative to the start, so that slow readings do not accumulate delay.
                let next = interval.mul_f64(count as f64).saturating_sub(began.elapsed());
                match stopped.recv_timeout(next.max(Duration::from_millis(1))) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            if let Some(Err(why)) = log.map(|mut log| log.flush()) {
                readings.missing.push(("hw.jsonl".into(), why.to_string()));
            }
            readings.missing.extend(meters.iter().flat_map(|meter| meter.missing()));
            readings
        };
        let thread = std::thread::Builder::new().name("sampler".into()).spawn(work);
        let thread = thread.map_err(|e| Error::Runtime(format!("cannot start the sampler's thread: {e}")))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the thread and returns its samples. If the thread has panicked, there are none.
    pub fn stop(mut self) -> Readings {
        let _ = self.stop.send(());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_else(|| Readings {
            missing: vec![("all".into(), "the sampler's thread failed".into())],
            ..Readings::default()
        })
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
