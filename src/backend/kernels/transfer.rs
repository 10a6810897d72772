//! Batches to the device and results from it beside the work that is under way, and recorded work.

use std::sync::atomic::Ordering;

use super::device::{Device, Element};
use super::{Array, Kernels};
use crate::backend::View;
use crate::backend::contract::expect_len;
use crate::{Error, Result};

/// A batch on its way to a device: indices first, numbers after them.
pub struct Inlet<D: Device> {
    inlet: D::Inlet,
    /// Byte where the numbers begin.
    numbers_at: usize,
    /// Bytes in all.
    room: usize,
    /// Bytes of indices and of numbers that were sent last.
    sent: (usize, usize),
}

/// Results on their way from a device.
pub struct Outlet<D: Device> {
    outlet: D::Outlet,
    len: usize,
}

/// Recorded launches, good as long as no memory has been freed since.
pub struct Graph<D: Device> {
    graph: D::Graph,
    freed: u64,
}

const INDEX: usize = size_of::<i32>();
const NUMBER: usize = size_of::<f32>();

impl<D: Device, A: Element> Kernels<D, A> {
    pub(super) fn new_inlet(&self, indices: usize, numbers: usize) -> Result<Inlet<D>> {
        let numbers_at = (indices * INDEX).next_multiple_of(256);
        let room = numbers_at + numbers * NUMBER;
        Ok(Inlet { inlet: self.device.inlet(room)?, numbers_at, room, sent: (0, 0) })
    }

    pub(super) fn send_batch(&self, to: &mut Inlet<D>, indices: &[i32], numbers: &[f64]) -> Result<()> {
        let (i, n) = (indices.len() * INDEX, numbers.len() * NUMBER);
        if i > to.numbers_at || to.numbers_at + n > to.room {
            return Err(Error::Runtime(format!("a batch of {} bytes in an inlet of {}", i + n, to.room)));
        }
        let bytes = self.device.fill(&mut to.inlet)?;
        // A device that only counts gives no bytes.
        if !bytes.is_empty() {
            bytes[..i].copy_from_slice(bytemuck::cast_slice(indices));
            let places = bytes[to.numbers_at..][..n].chunks_exact_mut(NUMBER);
            places.zip(numbers).for_each(|(place, &x)| place.copy_from_slice(&(x as f32).to_ne_bytes()));
        }
        to.sent = (i, n);
        self.device.send(&mut to.inlet, to.numbers_at + n)
    }

    pub(super) fn receive_batch(
        &self,
        from: &mut Inlet<D>,
        indices: &mut Array<D, i32>,
        numbers: &mut Array<D, f32>,
    ) -> Result<()> {
        let (i, n) = from.sent;
        if indices.len * INDEX < i || numbers.len * NUMBER < n {
            return Err(Error::Runtime("a batch was received into buffers that are too short for it".into()));
        }
        self.device.receive(&mut from.inlet, 0, i, &mut indices.memory)?;
        self.device.receive(&mut from.inlet, from.numbers_at, n, &mut numbers.memory)
    }

    pub(super) fn new_outlet(&self, len: usize) -> Result<Outlet<D>> {
        Ok(Outlet { outlet: self.device.outlet(len * NUMBER)?, len })
    }

    pub(super) fn fetch_view(&self, from: View<'_, Array<D, f32>>, to: &mut Outlet<D>, at: usize) -> Result<()> {
        if at + from.len > to.len {
            return Err(Error::Runtime(format!("{} results at {at} of an outlet of {}", from.len, to.len)));
        }
        let (start, bytes) = (from.start * NUMBER, from.len * NUMBER);
        self.device.fetch(&from.buffer.memory, start, bytes, &mut to.outlet, at * NUMBER)
    }

    pub(super) fn open_outlet(&self, from: &mut Outlet<D>, to: &mut [f64]) -> Result<()> {
        expect_len("open", "to", to.len().min(from.len), to.len())?;
        let bytes = self.device.open(&mut from.outlet)?;
        for (to, bytes) in to.iter_mut().zip(bytes.chunks_exact(NUMBER)) {
            *to = f64::from(f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
        Ok(())
    }

    pub(super) fn record_ops(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Graph<D>>> {
        let graph = self.device.record(work)?;
        Ok(graph.map(|graph| Graph { graph, freed: self.freed.load(Ordering::Relaxed) }))
    }

    pub(super) fn replay_ops(&self, graph: &Graph<D>) -> Result<bool> {
        if graph.freed != self.freed.load(Ordering::Relaxed) {
            return Ok(false);
        }
        // SAFETY: launches of this backend touch its arrays and its scratch memory alone. Each was allocated when the work
        // was recorded, because it was borrowed then, and none has been freed since, because every free is counted.
        unsafe { self.device.replay(&graph.graph) }.map(|()| true)
    }
}
