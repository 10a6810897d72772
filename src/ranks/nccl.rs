//! Sends messages of the host between ranks on GPUs, through a staging buffer on the device and by the same
//! communicator as the collectives on buffers.
//!
//! ```text
//! all_gather   AllGather of 8-byte lengths; then AllGather of pieces, each as long as the longest part
//! exchange     all_gather of lengths and of all parts; a rank keeps what is sent to it
//! broadcast    AllGather of lengths; Broadcast of pieces by rank 0
//! barrier      all_gather of nothing
//! ```
//!
//! Only bytes are sent: sums of host numbers are formed by [`Collective`] in the order of the ranks. A
//! message waits for the device, so a step sends none before its results are read. `exchange` moves every
//! part to every rank; the sums of gradients do not use it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::collective::Collective;
use crate::backend::kernels::device::Device;
use crate::backend::kernels::nccl::{Calls, Number, Operands};
use crate::{Error, Result};

/// Maximum number of bytes of a rank in one call.
const PIECE: usize = 1 << 20;

/// Ranks whose messages pass through `device`.
pub(crate) struct Nccl<D: Device> {
    calls: Arc<dyn Calls>,
    /// (size, piece)
    staging: Mutex<D::Memory>,
    piece: usize,
    /// Device whose stream the ranks use. Dropped last.
    device: D,
}

impl<D: Device> Nccl<D> {
    /// Creates the collective of ranks that communicate by `calls`.
    pub fn new(device: D, calls: Arc<dyn Calls>) -> Result<Self> {
        Self::with_piece(device, calls, PIECE)
    }

    fn with_piece(device: D, calls: Arc<dyn Calls>, piece: usize) -> Result<Self> {
        let staging = Mutex::new(device.allocate(piece * calls.size())?);
        Ok(Self { calls, staging, piece, device })
    }

    /// The calls, for collectives on buffers of a backend.
    pub fn calls(&self) -> Arc<dyn Calls> {
        self.calls.clone()
    }

    fn staging(&self) -> MutexGuard<'_, D::Memory> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Concatenates the bytes of all ranks; every rank passes the same number.
    fn gather_equal(&self, own: &[u8]) -> Result<Vec<u8>> {
        // A rank that waits for its GPU uses processor time, because the driver polls.
        let _waiting = super::watch::Waiting::begin();
        let (rank, size, len) = (self.calls.rank(), self.calls.size(), own.len());
        let mut staging = self.staging();
        self.device.upload(&mut staging, rank * len, own)?;
        let start = D::address(&staging);
        let on = Operands { from: start + (rank * len) as u64, to: start, len, number: Number::Byte };
        // SAFETY: the staging buffer has room for `piece` bytes of every rank, callers pass at most that
        // many, and the download below waits for the stream.
        unsafe { self.calls.all_gather(on, self.calls.stream()) }?;
        let mut all = vec![0; size * len];
        self.device.download(&staging, 0, &mut all)?;
        Ok(all)
    }

    fn lengths(&self, own: usize) -> Result<Vec<usize>> {
        let all = self.gather_equal(&(own as u64).to_le_bytes())?;
        all.as_chunks::<8>().0.iter().map(|b| usize::try_from(u64::from_le_bytes(*b)).map_err(|_| too_long())).collect()
    }
}

fn too_long() -> Error {
    Error::Runtime("a message between ranks is longer than memory".into())
}

impl<D: Device + Send> Collective for Nccl<D> {
    fn rank(&self) -> usize {
        self.calls.rank()
    }

    fn size(&self) -> usize {
        self.calls.size()
    }

    fn exchange(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let lengths = parts.iter().flat_map(|part| (part.len() as u64).to_le_bytes());
        let message: Vec<u8> = lengths.chain(parts.iter().flatten().copied()).collect();
        let cut = |message: Vec<u8>| {
            let (head, mut rest) = message.split_at_checked(8 * self.size())?;
            for (rank, len) in head.as_chunks::<8>().0.iter().enumerate() {
                let (part, after) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
                if rank == self.rank() {
                    return Some(part.to_vec());
                }
                rest = after;
            }
            None
        };
        let cut =
            |message| cut(message).ok_or_else(|| Error::Runtime("ranks exchange different numbers of parts".into()));
        self.all_gather(&message)?.into_iter().map(cut).collect()
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.lengths(bytes.len())?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut gathered: Vec<Vec<u8>> = lengths.iter().map(|&len| Vec::with_capacity(len)).collect();
        for start in (0..longest).step_by(self.piece) {
            let piece = self.piece.min(longest - start);
            let mut own = bytes[start.min(bytes.len())..(start + piece).min(bytes.len())].to_vec();
            own.resize(piece, 0);
            let all = self.gather_equal(&own)?;
            for ((into, &len), part) in gathered.iter_mut().zip(&lengths).zip(all.chunks_exact(piece)) {
                into.extend(&part[..piece.min(len.saturating_sub(start))]);
            }
        }
        Ok(gathered)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let len = self.lengths(bytes.len())?.first().copied().unwrap_or(0);
        let mut all = if self.rank() == 0 { bytes } else { vec![0; len] };
        let _waiting = super::watch::Waiting::begin();
        for piece in all.chunks_mut(self.piece) {
            let mut staging = self.staging();
            if self.rank() == 0 {
                self.device.upload(&mut staging, 0, piece)?;
            }
            let start = D::address(&staging);
            let on = Operands { from: start, to: start, len: piece.len(), number: Number::Byte };
            // SAFETY: the staging buffer has room for a piece, and the download below waits for the stream.
            unsafe { self.calls.broadcast(on, 0, self.calls.stream()) }?;
            self.device.download(&staging, 0, piece)?;
        }
        Ok(all)
    }

    fn barrier(&self) -> Result<()> {
        self.lengths(0).map(|_| ())
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::emulator;
