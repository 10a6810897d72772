//! Worker thread that packs the micro-batches of the next step while a step runs.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::packing::{PackedStep, Packer};
use crate::data::tokenized::TokenizedGroup;
use crate::{Error, Result};

/// A step to pack.
struct Job {
    packer: Packer,
    groups: Arc<Vec<TokenizedGroup>>,
    /// Indices into `groups`.
    micro_batches: Vec<Vec<usize>>,
    into: PackedStep,
}

/// Handle of the worker thread. Dropping it ends the thread after its current job.
pub struct Prefetch {
    jobs: Sender<Job>,
    packed: Receiver<Result<PackedStep>>,
}

impl Prefetch {
    /// Starts the worker thread.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the system cannot start a thread.
    pub fn start() -> Result<Self> {
        let (jobs, requests) = channel::<Job>();
        let (done, packed) = channel();
        let work = move || {
            for mut job in requests {
                let groups: Vec<Vec<&TokenizedGroup>> =
                    job.micro_batches.iter().map(|indices| indices.iter().map(|&i| &job.groups[i]).collect()).collect();
                let result = job.packer.pack(&groups, &mut job.into);
                if done.send(result.map(|()| job.into)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("packing".into()).spawn(work).map_err(|e| {
            Error::Runtime(format!("cannot start the packing thread: {e}; raise the process limit (ulimit -u)"))
        })?;
        Ok(Self { jobs, packed })
    }

    /// Requests the packing of a step; `micro_batches` holds indices into `groups`.
    pub fn request(
        &self,
        packer: &Packer,
        groups: &Arc<Vec<TokenizedGroup>>,
        micro_batches: Vec<Vec<usize>>,
        into: PackedStep,
    ) -> Result<()> {
        let job = Job { packer: packer.clone(), groups: groups.clone(), micro_batches, into };
        self.jobs.send(job).map_err(|_| thread_ended())
    }

    /// Waits for the oldest requested step and returns it.
    pub fn take(&self) -> Result<PackedStep> {
        self.packed.recv().map_err(|_| thread_ended())?
    }
}

fn thread_ended() -> Error {
    Error::Runtime("the packing thread ended before it returned a step".into())
}
