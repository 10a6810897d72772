//! Worker thread that packs the micro-batches of the next step while a step runs.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::packing::{PackedStep, Packer};
use crate::data::tokenized::TokenizedGroup;
use crate::train::share::Share;
use crate::{Error, Result};

/// A step to pack.
struct Job {
    packer: Packer,
    groups: Arc<Vec<TokenizedGroup>>,
    /// The global batch: indices into `groups`.
    batch: Vec<usize>,
    share: Share,
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
                let of = |indices: &Vec<usize>| -> Vec<&TokenizedGroup> {
                    indices.iter().map(|&i| &job.groups[i]).collect()
                };
                let own: Vec<Vec<&TokenizedGroup>> =
                    job.share.micro_batches(&job.groups, &job.batch).iter().map(of).collect();
                let batch = job.batch.iter().map(|&i| &job.groups[i]);
                let result = job.packer.pack_part(batch, &own, &mut job.into);
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

    /// Requests the packing of this rank's share of a step; `batch` holds indices into `groups`.
    pub fn request(
        &self,
        packer: &Packer,
        groups: &Arc<Vec<TokenizedGroup>>,
        (batch, share): (Vec<usize>, Share),
        into: PackedStep,
    ) -> Result<()> {
        let job = Job { packer: packer.clone(), groups: groups.clone(), batch, share, into };
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
