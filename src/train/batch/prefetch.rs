//! The worker thread that packs the next step's micro-batches while a step runs.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::packing::{PackedStep, Packer};
use crate::data::tokenized::TokenizedGroup;
use crate::{Error, Result};

/// One step to pack.
struct Job {
    packer: Packer,
    groups: Arc<Vec<TokenizedGroup>>,
    /// Indices into `groups`.
    micro_batches: Vec<Vec<usize>>,
    into: PackedStep,
}

/// A worker thread; it ends with this value, after the job it is at.
pub struct Prefetch {
    jobs: Sender<Job>,
    packed: Receiver<Result<PackedStep>>,
}

impl Prefetch {
    /// Starts the worker. [`Error::Io`] when the system gives no thread.
    pub fn start() -> Result<Self> {
        let (jobs, todo) = channel::<Job>();
        let (done, packed) = channel();
        let work = move || {
            for mut job in todo {
                let groups: Vec<Vec<&TokenizedGroup>> =
                    job.micro_batches.iter().map(|indices| indices.iter().map(|&i| &job.groups[i]).collect()).collect();
                let result = job.packer.pack(&groups, &mut job.into);
                if done.send(result.map(|()| job.into)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("packing".into()).spawn(work).map_err(|e| {
            Error::Runtime(format!("cannot start the packing thread: {e}; raise the limit on processes"))
        })?;
        Ok(Self { jobs, packed })
    }

    /// Asks for a step: `micro_batches` are indices into `groups`.
    pub fn ask(
        &self,
        packer: &Packer,
        groups: &Arc<Vec<TokenizedGroup>>,
        micro_batches: Vec<Vec<usize>>,
        into: PackedStep,
    ) -> Result<()> {
        let job = Job { packer: packer.clone(), groups: groups.clone(), micro_batches, into };
        self.jobs.send(job).map_err(|_| ended())
    }

    /// The step that was asked for first; waits for it.
    pub fn take(&self) -> Result<PackedStep> {
        self.packed.recv().map_err(|_| ended())?
    }
}

fn ended() -> Error {
    Error::Runtime("the packing thread ended before its work was done".into())
}
