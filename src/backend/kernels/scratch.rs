//! Scratch memory: one allocation that the ops of a backend share, each for its own launches.

use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use super::device::{Device, Element, Read, Write};
use super::{Kernels, hopper};
use crate::Result;

impl<D: Device, A: Element> Kernels<D, A> {
    /// Bytes of scratch memory that ops have asked for so far.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch.lock().unwrap_or_else(|e| e.into_inner()).as_ref().map_or(0, |(_, bytes)| *bytes)
    }

    /// Sets scratch memory aside, so that ops that need no more allocate nothing.
    pub fn reserve_scratch(&self, bytes: usize) -> Result<()> {
        self.reserve_turns()?;
        self.scratch_behind(bytes)?.take()
    }

    /// Sets the words aside by which parts of sums take turns, where the device's kernels need them.
    pub fn reserve_turns(&self) -> Result<()> {
        hopper::reserve(self)
    }

    /// Scratch memory for the launches of one op, which must all be enqueued while the guard is held. Its contents are
    /// whatever an earlier op left.
    pub(super) fn scratch(&self) -> Result<Scratch<'_, D>> {
        let held = self.scratch.lock().unwrap_or_else(|e| e.into_inner());
        Ok(Scratch { device: &self.device, held, freed: &self.freed, used: 0, wanted: 0 })
    }

    /// Scratch memory behind the first `bytes`, which are left to the ops that this one calls. Once it is taken the guard may be
    /// dropped and the addresses used until this op has enqueued its last launch, as long as no op in between asks for more than
    /// `bytes`.
    pub(super) fn scratch_behind(&self, bytes: usize) -> Result<Scratch<'_, D>> {
        let mut scratch = self.scratch()?;
        scratch.wanted = bytes;
        Ok(scratch)
    }
}

/// Scratch memory of one op: first every piece is asked for, then the memory is there.
pub(super) struct Scratch<'a, D: Device> {
    device: &'a D,
    held: MutexGuard<'a, Option<(D::Memory, usize)>>,
    freed: &'a AtomicU64,
    used: usize,
    wanted: usize,
}

/// A piece of scratch memory, to be turned into pointers.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    start: usize,
}

impl<D: Device> Scratch<'_, D> {
    /// Asks for `len` elements.
    pub(super) fn want<T>(&mut self, len: usize) -> Piece {
        let start = self.wanted;
        self.wanted += (len * size_of::<T>()).next_multiple_of(256);
        Piece { start }
    }

    /// Bytes that were asked for so far.
    pub(super) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Makes sure of the memory that was asked for.
    pub(super) fn take(&mut self) -> Result<()> {
        if self.held.as_ref().is_none_or(|(_, bytes)| *bytes < self.wanted) {
            *self.held = None;
            self.freed.fetch_add(1, Ordering::Relaxed);
            *self.held = Some((self.device.allocate(self.wanted.max(1))?, self.wanted));
        }
        self.used = self.wanted;
        Ok(())
    }

    pub(super) fn address(&self, piece: Piece) -> u64 {
        assert!(piece.start <= self.used, "scratch memory that was not taken");
        self.held.as_ref().map_or(0, |(memory, _)| D::address(memory)) + piece.start as u64
    }

    pub(super) fn read<T>(&self, piece: Piece) -> Read<T> {
        Read::new(self.address(piece), 0)
    }

    pub(super) fn write<T>(&self, piece: Piece) -> Write<T> {
        Write::new(self.address(piece), 0)
    }
}
