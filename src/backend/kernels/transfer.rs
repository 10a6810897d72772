//! Asynchronous transfers of batches to the device and of results to the host, and captured ops.

use std::sync::atomic::Ordering;

use super::device::{Device, Element};
use super::{Array, Kernels};
use crate::backend::contract::expect_len;
use crate::backend::{View, ViewMut};
use crate::{Error, Result};

/// Staging buffer for a batch on its way to the device: indices first, then numbers.
pub struct UploadBuffer<D: Device> {
    upload_buffer: D::UploadBuffer,
    /// Offset of the numbers in bytes.
    numbers_at: usize,
    /// Size in bytes.
    capacity: usize,
    /// Bytes of indices and of numbers of the last `send_batch`.
    sent: (usize, usize),
}

/// Staging buffer for results on their way to the host.
pub struct ReadbackBuffer<D: Device> {
    readback_buffer: D::ReadbackBuffer,
    len: usize,
}

/// Captured launches. They are valid while no memory has been freed.
pub struct Graph<D: Device> {
    graph: D::Graph,
    /// Count of freed allocations at the time of the capture.
    freed: u64,
}

const INDEX: usize = size_of::<i32>();
const NUMBER: usize = size_of::<f32>();

impl<D: Device, A: Element> Kernels<D, A> {
    /// Enqueues the copy of a view to another buffer.
    pub(super) fn copy<T>(&self, from: View<'_, Array<D, T>>, to: ViewMut<'_, Array<D, T>>) -> Result<()> {
        expect_len("copy", "to", to.len, from.len)?;
        let size = size_of::<T>();
        let (start, at, bytes) = (from.start * size, to.start * size, from.len * size);
        self.device.copy(&from.buffer.memory, start, &mut to.buffer.memory, at, bytes)
    }

    pub(super) fn new_upload_buffer(&self, indices: usize, numbers: usize) -> Result<UploadBuffer<D>> {
        let numbers_at = (indices * INDEX).next_multiple_of(256);
        let capacity = numbers_at + numbers * NUMBER;
        Ok(UploadBuffer { upload_buffer: self.device.upload_buffer(capacity)?, numbers_at, capacity, sent: (0, 0) })
    }

    pub(super) fn send_batch(&self, to: &mut UploadBuffer<D>, indices: &[i32], numbers: &[f64]) -> Result<()> {
        let (i, n) = (indices.len() * INDEX, numbers.len() * NUMBER);
        if i > to.numbers_at || to.numbers_at + n > to.capacity {
            return Err(Error::Runtime(format!(
                "a batch of {} bytes does not fit an upload buffer of {}",
                i + n,
                to.capacity
            )));
        }
        let bytes = self.device.fill(&mut to.upload_buffer)?;
        // On a rehearsal device, `bytes` is empty.
        if !bytes.is_empty() {
            bytes[..i].copy_from_slice(bytemuck::cast_slice(indices));
            let places = bytes[to.numbers_at..][..n].chunks_exact_mut(NUMBER);
            places.zip(numbers).for_each(|(place, &x)| place.copy_from_slice(&(x as f32).to_ne_bytes()));
        }
        to.sent = (i, n);
        self.device.send(&mut to.upload_buffer, to.numbers_at + n)
    }

    pub(super) fn receive_batch(
        &self,
        from: &mut UploadBuffer<D>,
        indices: &mut Array<D, i32>,
        numbers: &mut Array<D, f32>,
    ) -> Result<()> {
        let (i, n) = from.sent;
        if indices.len * INDEX < i || numbers.len * NUMBER < n {
            return Err(Error::Runtime("the buffers are too short for the batch that was sent".into()));
        }
        self.device.receive(&mut from.upload_buffer, 0, i, &mut indices.memory)?;
        self.device.receive(&mut from.upload_buffer, from.numbers_at, n, &mut numbers.memory)
    }

    pub(super) fn new_readback_buffer(&self, len: usize) -> Result<ReadbackBuffer<D>> {
        Ok(ReadbackBuffer { readback_buffer: self.device.readback_buffer(len * NUMBER)?, len })
    }

    pub(super) fn fetch_view(
        &self,
        from: View<'_, Array<D, f32>>,
        to: &mut ReadbackBuffer<D>,
        at: usize,
    ) -> Result<()> {
        if at + from.len > to.len {
            return Err(Error::Runtime(format!(
                "{} results do not fit at {at} of a readback buffer of {}",
                from.len, to.len
            )));
        }
        let (start, bytes) = (from.start * NUMBER, from.len * NUMBER);
        self.device.fetch(&from.buffer.memory, start, bytes, &mut to.readback_buffer, at * NUMBER)
    }

    pub(super) fn open_readback_buffer(&self, from: &mut ReadbackBuffer<D>, to: &mut [f64]) -> Result<()> {
        expect_len("open", "to", to.len().min(from.len), to.len())?;
        let bytes = self.device.open(&mut from.readback_buffer)?;
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
        // SAFETY: launches of this backend access its arrays and its scratch memory only. Each was
        // allocated at the time of the capture, because it was borrowed then. None has been freed
        // since, because every free is counted.
        unsafe { self.device.replay(&graph.graph) }.map(|()| true)
    }
}
