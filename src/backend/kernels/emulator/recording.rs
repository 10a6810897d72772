//! Recorded work of the emulator: launches with their parameters, and clears, run again in order. It refuses what a GPU
//! cannot record, so that host code which does any of it fails here too.

use std::ffi::c_void;

use super::Emulator;
use crate::backend::kernels::device::{Device, Grid, Kernel, TensorMap};
use crate::{Error, Result};

/// Bytes of one parameter, aligned for every kind.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Parameter([u8; size_of::<TensorMap>()]);

/// One recorded call.
#[derive(Debug)]
pub enum Step {
    Launch { kernel: &'static Kernel, grid: Grid, shared_bytes: usize, parameters: Vec<Parameter> },
    Clear { address: u64, bytes: usize },
}

/// Recorded calls in order.
#[derive(Debug)]
pub struct Graph(Vec<Step>);

impl Step {
    /// A launch with a copy of its parameters.
    ///
    /// # Safety
    /// As [`Device::launch`].
    pub unsafe fn launch(kernel: &'static Kernel, grid: Grid, shared_bytes: usize, parameters: &[*mut c_void]) -> Self {
        let copy = |(&parameter, &bytes): (&*mut c_void, &usize)| {
            let mut copy = Parameter([0; size_of::<TensorMap>()]);
            // SAFETY: the parameter has so many bytes by the kernel's line (this function's contract), and no kind has more
            // than a tensor map.
            unsafe { std::ptr::copy_nonoverlapping(parameter.cast::<u8>(), copy.0.as_mut_ptr(), bytes) };
            copy
        };
        let parameters = parameters.iter().zip(kernel.parameters).map(copy).collect();
        Self::Launch { kernel, grid, shared_bytes, parameters }
    }
}

impl Emulator {
    fn recorded(&self) -> std::sync::MutexGuard<'_, Option<Vec<Step>>> {
        self.recording.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Keeps a step while work is being recorded, and tells whether it did.
    pub(super) fn keep(&self, step: impl FnOnce() -> Step) -> bool {
        let mut recording = self.recorded();
        recording.as_mut().map(|steps| steps.push(step())).is_some()
    }

    /// Refuses what cannot be recorded.
    pub(super) fn not_recording(&self, what: &str) -> Result<()> {
        match *self.recorded() {
            None => Ok(()),
            Some(_) => Err(Error::Runtime(format!("{what} while work is recorded, which no device can record"))),
        }
    }

    pub(super) fn record_steps(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        self.not_recording("a second recording")?;
        *self.recorded() = Some(Vec::new());
        let done = work();
        let steps = self.recorded().take().unwrap_or_default();
        done.map(|()| Graph(steps))
    }

    /// # Safety
    /// As [`Device::replay`].
    pub(super) unsafe fn replay_steps(&self, graph: &Graph) -> Result<()> {
        self.not_recording("a replay")?;
        for step in &graph.0 {
            match step {
                Step::Launch { kernel, grid, shared_bytes, parameters } => {
                    let mut copies = parameters.clone();
                    let mut addresses: Vec<_> = copies.iter_mut().map(|p| p.0.as_mut_ptr().cast()).collect();
                    // SAFETY: the parameters of the recorded launch; what they point to is still there (this function's
                    // contract).
                    unsafe { self.launch(kernel, *grid, *shared_bytes, &mut addresses)? };
                }
                // SAFETY: the range lay in memory that is still there (this function's contract).
                Step::Clear { address, bytes } => unsafe { std::ptr::write_bytes(*address as *mut u8, 0, *bytes) },
            }
        }
        Ok(())
    }
}
