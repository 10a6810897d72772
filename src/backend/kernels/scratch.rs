//! Scratch memory: one allocation that the ops of a backend share. Each op uses it for its own
//! launches.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use super::device::{ConstPtr, Device, Element, MutPtr};
use super::{Kernels, hopper};
use crate::Result;

impl<D: Device, A: Element> Kernels<D, A> {
    /// Size of the scratch allocation: the most that an op has requested so far, in bytes.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map_or(0, |(_, bytes)| *bytes)
    }

    /// Preallocates `bytes` of scratch memory. Ops that need at most this much then allocate nothing.
    pub fn reserve_scratch(&self, bytes: usize) -> Result<()> {
        self.reserve_turns()?;
        self.scratch_after(bytes)?.take()
    }

    /// Preallocates the split-K semaphores, if the device's kernels need them.
    pub fn reserve_turns(&self) -> Result<()> {
        hopper::reserve(self)
    }

    /// Address of `count` zeroed semaphores; null for 0. Every call must pass the same count or 0.
    pub(super) fn semaphores(&self, count: usize) -> Result<u64> {
        if count == 0 {
            return Ok(0);
        }
        let mut semaphores = self.semaphores.lock().unwrap_or_else(|e| e.into_inner());
        if semaphores.is_none() {
            *semaphores = Some(self.device.allocate(count * size_of::<i32>())?);
        }
        Ok(semaphores.as_ref().map_or(0, D::address))
    }

    /// Scratch memory for the launches of one op. The launches must be enqueued while the returned guard is
    /// held. The contents are left over from earlier ops.
    pub(super) fn scratch(&self) -> Result<Scratch<'_, D>> {
        let held = self.scratch.lock().unwrap_or_else(|e| e.into_inner());
        Ok(Scratch { device: &self.device, held, freed: &self.freed, used: 0, requested: 0 })
    }

    /// Scratch memory after the first `bytes`, which are left to the ops that this op calls. After
    /// [`Scratch::take`] the guard may be dropped. The addresses then stay valid until this op has enqueued
    /// its last launch, provided that no op in between requests more than `bytes`.
    pub(super) fn scratch_after(&self, bytes: usize) -> Result<Scratch<'_, D>> {
        let mut scratch = self.scratch()?;
        scratch.requested = bytes;
        Ok(scratch)
    }
}

/// Scratch memory of one op: [`Scratch::request`] requests its pieces, then [`Scratch::take`]
/// provides the memory.
pub(super) struct Scratch<'a, D: Device> {
    device: &'a D,
    held: MutexGuard<'a, Option<(D::Memory, usize)>>,
    freed: &'a AtomicU64,
    used: usize,
    requested: usize,
}

/// A piece of scratch memory; [`Scratch::read`] and [`Scratch::write`] return pointers to it.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    start: usize,
}

impl<D: Device> Scratch<'_, D> {
    /// Requests `len` elements.
    pub(super) fn request<T>(&mut self, len: usize) -> Piece {
        let start = self.requested;
        self.requested += (len * size_of::<T>()).next_multiple_of(256);
        Piece { start }
    }

    /// Bytes requested so far.
    pub(super) fn requested(&self) -> usize {
        self.requested
    }

    /// Provides the requested memory; allocates if the shared allocation is too small.
    pub(super) fn take(&mut self) -> Result<()> {
        if self.held.as_ref().is_none_or(|(_, bytes)| *bytes < self.requested) {
            *self.held = None;
            self.freed.fetch_add(1, Ordering::Relaxed);
            *self.held = Some((self.device.allocate(self.requested.max(1))?, self.requested));
        }
        self.used = self.requested;
        Ok(())
    }

    pub(super) fn address(&self, piece: Piece) -> u64 {
        assert!(piece.start <= self.used, "piece of scratch memory at byte {} was not taken", piece.start);
        self.held.as_ref().map_or(0, |(memory, _)| D::address(memory)) + piece.start as u64
    }

    pub(super) fn read<T>(&self, piece: Piece) -> ConstPtr<T> {
        ConstPtr::new(self.address(piece), 0)
    }

    pub(super) fn write<T>(&self, piece: Piece) -> MutPtr<T> {
        MutPtr::new(self.address(piece), 0)
    }
}
