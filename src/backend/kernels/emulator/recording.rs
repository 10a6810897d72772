//! Capture and replay on the emulator: launches with their parameters, and clears, in order. Calls that a
//! CUDA graph capture rejects are errors here too, so that tests on the emulator find them.

use std::ffi::c_void;

use super::Emulator;
use crate::backend::kernels::device::{Grid, Kernel, TensorMap};
use crate::backend::kernels::own::Entry;
use crate::{Error, Result};

/// Copy of one parameter, with the size and alignment of the largest parameter type.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Parameter([u8; size_of::<TensorMap>()]);

/// A captured call.
#[derive(Debug)]
pub enum Step {
    Launch { kernel: &'static Kernel, entry: Entry, grid: Grid, shared_bytes: usize, parameters: Vec<Parameter> },
    Clear { address: u64, bytes: usize },
}

/// Captured calls in order.
#[derive(Debug)]
pub struct Graph(Vec<Step>);

impl Step {
    /// Returns a launch step with a copy of its parameters.
    ///
    /// # Safety
    /// Like [`Device::launch`](crate::backend::kernels::device::Device::launch).
    pub unsafe fn launch(
        kernel: &'static Kernel,
        entry: Entry,
        grid: Grid,
        shared_bytes: usize,
        parameters: &[*mut c_void],
    ) -> Self {
        let copy = |(&parameter, &bytes): (&*mut c_void, &usize)| {
            let mut copy = Parameter([0; size_of::<TensorMap>()]);
            // SAFETY: the parameter has `bytes` bytes (contract of this function), and a tensor map is the
            // largest parameter type.
            unsafe { std::ptr::copy_nonoverlapping(parameter.cast::<u8>(), copy.0.as_mut_ptr(), bytes) };
            copy
        };
        let parameters = parameters.iter().zip(kernel.parameters).map(copy).collect();
        Self::Launch { kernel, entry, grid, shared_bytes, parameters }
    }
}

impl Emulator {
    fn capture(&self) -> std::sync::MutexGuard<'_, Option<Vec<Step>>> {
        self.recording.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Records a step if a capture is in progress. Returns whether a capture is in progress.
    pub(super) fn record_step(&self, step: impl FnOnce() -> Step) -> bool {
        let mut capture = self.capture();
        capture.as_mut().map(|steps| steps.push(step())).is_some()
    }

    /// Returns [`Error::Runtime`] if a capture is in progress.
    pub(super) fn not_recording(&self, what: &str) -> Result<()> {
        match *self.capture() {
            None => Ok(()),
            Some(_) => {
                Err(Error::Runtime(format!("{what} during a graph capture; only launches and clears can be captured")))
            }
        }
    }

    pub(super) fn record_steps(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        self.not_recording("a second capture")?;
        *self.capture() = Some(Vec::new());
        let done = work();
        let steps = self.capture().take().unwrap_or_default();
        done.map(|()| Graph(steps))
    }

    /// # Safety
    /// Like [`Device::replay`](crate::backend::kernels::device::Device::replay).
    pub(super) unsafe fn replay_steps(&self, graph: &Graph) -> Result<()> {
        self.not_recording("a replay")?;
        for step in &graph.0 {
            match step {
                Step::Launch { kernel, entry, grid, shared_bytes, parameters } => {
                    let mut copies = parameters.clone();
                    let mut addresses: Vec<_> = copies.iter_mut().map(|p| p.0.as_mut_ptr().cast()).collect();
                    // SAFETY: the parameters are copies of those of the captured launch, and the memory they
                    // point to is still allocated (contract of this function).
                    unsafe { self.run(kernel, *entry, *grid, *shared_bytes, &mut addresses)? };
                }
                // SAFETY: the range is in memory that is still allocated (contract of this
                // function).
                Step::Clear { address, bytes } => unsafe { std::ptr::write_bytes(*address as *mut u8, 0, *bytes) },
            }
        }
        Ok(())
    }
}
