//! Collectives of a device as NCCL calls, in place on its arrays. The trait [`Calls`] has two
//! implementations: NCCL on a GPU (`driver/nccl.rs`), and a test double that records the calls and computes
//! their results.
//!
//! ```text
//! fork     the stream of the ranks waits for the ops so far
//! sum      parts of one length L:  group { ReduceScatter of L each; Reduce of the rest to the last rank }
//!          other parts:            group { Reduce of every part to its rank }
//! gather   parts of one length L:  group { AllGather of L each; Broadcast of the rest by the last rank }
//!          other parts:            group { Broadcast of every part by its rank }
//! ticket   an event after the calls; `settle` makes the stream of the ops wait for it
//! ```
//!
//! Parameter shards have the same length, except the last, which also has a short rest
//! ([`shard_of`](crate::ranks::collective::shard_of)). `sum` and `gather` therefore use their first form,
//! which moves about as many bytes as one ring. All calls are enqueued on one stream, in one order on every
//! rank, and nothing waits on the host. Sums are f32.
//!
//! A part outside of the buffer is an error, and so is a collective while ops are recorded. A step's recorded
//! micro-batches therefore end before its collectives.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use half::bf16;

use super::device::{Device, Element};
use super::{Array, Kernels};
use crate::backend::collective::{DeviceCollective, Ticket};
use crate::backend::contract::Precision;
use crate::backend::{Buffer as _, ViewMut};
use crate::{Error, Result};

/// Element types, with their values in NCCL's enum (`ncclDataType_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    Byte = 1,
    F32 = 7,
    Bf16 = 9,
}

impl Number {
    /// Size in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }
}

/// Operands of a call: device addresses, and the number of elements of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operands {
    pub from: u64,
    pub to: u64,
    pub len: usize,
    pub number: Number,
}

/// NCCL calls of one communicator, and the synchronisation of its stream with other streams. All reductions
/// are sums.
pub(crate) trait Calls: Send + Sync {
    /// Index of this rank.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn size(&self) -> usize;
    /// Handle of the stream on which the collectives run, here called the stream of the ranks.
    fn stream(&self) -> u64;

    /// Makes the stream of the ranks wait for the work that is enqueued on the stream `ops`.
    fn fork(&self, ops: u64) -> Result<()>;
    /// Records an event after the calls so far, and returns its ticket.
    fn mark(&self) -> Result<Ticket>;
    /// Makes the stream `ops` wait for the event of a ticket.
    fn settle(&self, ticket: Ticket, ops: u64) -> Result<()>;

    /// `ncclGroupStart`.
    fn group_start(&self) -> Result<()>;
    /// `ncclGroupEnd`.
    fn group_end(&self) -> Result<()>;

    /// `ncclReduceScatter`: `from` has `len` elements for each rank, `to` has `len`.
    ///
    /// # Safety
    /// The caller guarantees that the addresses are on this device and have room for the elements until the
    /// stream has completed the call.
    unsafe fn reduce_scatter(&self, on: Operands, stream: u64) -> Result<()>;
    /// `ncclReduce` to one rank.
    ///
    /// # Safety
    /// As for [`Calls::reduce_scatter`].
    unsafe fn reduce(&self, on: Operands, root: usize, stream: u64) -> Result<()>;
    /// `ncclAllReduce`.
    ///
    /// # Safety
    /// As for [`Calls::reduce_scatter`].
    unsafe fn all_reduce(&self, on: Operands, stream: u64) -> Result<()>;
    /// `ncclAllGather`: `to` has `len` elements for each rank, `from` has `len`.
    ///
    /// # Safety
    /// As for [`Calls::reduce_scatter`].
    unsafe fn all_gather(&self, on: Operands, stream: u64) -> Result<()>;
    /// `ncclBroadcast` by one rank.
    ///
    /// # Safety
    /// As for [`Calls::reduce_scatter`].
    unsafe fn broadcast(&self, on: Operands, root: usize, stream: u64) -> Result<()>;

    /// Error that an enqueued call has met after it returned to the host, if any.
    fn failure(&self) -> Option<String>;
    /// Ends calls in progress. No other call may follow.
    fn abort(&self);
}

/// Runs `work` between the start and the end of a group. The group is ended even if `work` fails.
fn grouped(calls: &dyn Calls, work: impl FnOnce() -> Result<()>) -> Result<()> {
    calls.group_start()?;
    let done = work();
    calls.group_end().and(done)
}

/// Division of a buffer into parts. It decides which NCCL calls are used.
#[derive(Debug, PartialEq, Eq)]
enum Division {
    /// All parts have length `len`; the last rank also has `rest`.
    Equal {
        len: usize,
        rest: Range<usize>,
    },
    Any,
}

impl Division {
    fn of(parts: &[Range<usize>]) -> Self {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Self::Any };
        let (len, all_but_last) = (first.len(), &parts[..parts.len() - 1]);
        match all_but_last.iter().all(|part| part.len() == len) && last.len() >= len {
            true => Self::Equal { len, rest: last.start + len..last.end },
            false => Self::Any,
        }
    }
}

/// Device address and element type of a buffer.
#[derive(Clone, Copy)]
struct Place {
    address: u64,
    number: Number,
}

impl Place {
    fn of<D: Device, T>(array: &Array<D, T>, number: Number, parts: &[Range<usize>]) -> Result<Self> {
        match parts.iter().find(|part| part.start > part.end || part.end > array.len()) {
            Some(part) => Err(Error::Runtime(format!(
                "a collective over elements {}..{} does not fit a buffer of {} elements",
                part.start,
                part.end,
                array.len()
            ))),
            None => Ok(Self { address: D::address(&array.memory), number }),
        }
    }

    fn at(self, element: usize) -> u64 {
        self.address + (element * self.number.bytes()) as u64
    }

    /// Operands with `part` as input and output.
    fn in_place(self, part: &Range<usize>) -> Operands {
        Operands { from: self.at(part.start), to: self.at(part.start), len: part.len(), number: self.number }
    }

    fn reduce_scatter(self, calls: &dyn Calls, parts: &[Range<usize>]) -> Result<()> {
        let stream = calls.stream();
        grouped(calls, || {
            // SAFETY: `Place::of` has checked that the parts are inside the array. The array outlives the
            // call, because freeing device memory waits for the device.
            unsafe {
                match Division::of(parts) {
                    Division::Equal { len, rest } => {
                        if len > 0 {
                            let from = self.at(parts[0].start);
                            let to = self.at(parts[calls.rank()].start);
                            calls.reduce_scatter(Operands { from, to, len, number: self.number }, stream)?;
                        }
                        if !rest.is_empty() {
                            calls.reduce(self.in_place(&rest), calls.size() - 1, stream)?;
                        }
                    }
                    Division::Any => {
                        for (rank, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
                            calls.reduce(self.in_place(part), rank, stream)?;
                        }
                    }
                }
            }
            Ok(())
        })
    }

    fn all_gather(self, calls: &dyn Calls, parts: &[Range<usize>]) -> Result<()> {
        let stream = calls.stream();
        grouped(calls, || {
            // SAFETY: as in `reduce_scatter`.
            unsafe {
                match Division::of(parts) {
                    Division::Equal { len, rest } => {
                        if len > 0 {
                            let from = self.at(parts[calls.rank()].start);
                            let to = self.at(parts[0].start);
                            calls.all_gather(Operands { from, to, len, number: self.number }, stream)?;
                        }
                        if !rest.is_empty() {
                            calls.broadcast(self.in_place(&rest), calls.size() - 1, stream)?;
                        }
                    }
                    Division::Any => {
                        for (rank, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
                            calls.broadcast(self.in_place(part), rank, stream)?;
                        }
                    }
                }
            }
            Ok(())
        })
    }
}

impl<D: Device, A: Element> Kernels<D, A> {
    /// Sets the NCCL calls for sums and gathers over ranks. With `None`, the data goes through the host.
    pub(crate) fn with_ranks(self, calls: Option<Arc<dyn Calls>>) -> Self {
        Self { ranks: calls, ..self }
    }

    /// Runs `work` on the stream of the ranks, after the ops enqueued so far.
    fn behind_ops(&self, work: impl FnOnce(&dyn Calls) -> Result<()>) -> Result<Ticket> {
        let Some(calls) = &self.ranks else {
            return Err(Error::Runtime("a device collective needs NCCL, which is not set up on this device".into()));
        };
        if self.recording.load(Ordering::Relaxed) {
            return Err(Error::Runtime("a collective cannot be recorded with the ops of a step".into()));
        }
        calls.fork(self.device.stream())?;
        work(calls.as_ref())?;
        calls.mark()
    }

    /// Zeroes `range` of a gradient on a rank that does not contribute to the sum.
    fn withdraw(&self, buffer: &mut Array<D, f32>, range: Range<usize>) -> Result<()> {
        self.clear(ViewMut::new(buffer, range.start, range.len()))
    }
}

impl<D: Device, A: Element> DeviceCollective<Self> for Kernels<D, A> {
    fn reduce_scatter(&self, buffer: &mut Array<D, f32>, parts: &[Range<usize>], contributes: bool) -> Result<Ticket> {
        let place = Place::of(buffer, Number::F32, parts)?;
        if let ([first, ..], [.., last], false) = (parts, parts, contributes) {
            self.withdraw(buffer, first.start..last.end)?;
        }
        self.behind_ops(|calls| place.reduce_scatter(calls, parts))
    }

    fn all_reduce(&self, buffer: &mut Array<D, f32>, range: Range<usize>, contributes: bool) -> Result<Ticket> {
        let place = Place::of(buffer, Number::F32, std::slice::from_ref(&range))?;
        if !contributes {
            self.withdraw(buffer, range.clone())?;
        }
        self.behind_ops(|calls| match range.is_empty() {
            true => Ok(()),
            // SAFETY: `Place::of` has checked that the range is inside the array, which outlives the call.
            false => unsafe { calls.all_reduce(place.in_place(&range), calls.stream()) },
        })
    }

    fn all_gather_act(&self, buffer: &mut Array<D, A>, parts: &[Range<usize>]) -> Result<Ticket> {
        let number = if A::PRECISION == Precision::Bf16 { Number::Bf16 } else { Number::F32 };
        let place = Place::of(buffer, number, parts)?;
        self.behind_ops(|calls| place.all_gather(calls, parts))
    }

    fn all_gather_acc(&self, buffer: &mut Array<D, f32>, parts: &[Range<usize>]) -> Result<Ticket> {
        let place = Place::of(buffer, Number::F32, parts)?;
        self.behind_ops(|calls| place.all_gather(calls, parts))
    }

    fn settle(&self, ticket: Ticket) -> Result<()> {
        match &self.ranks {
            Some(calls) => calls.settle(ticket, self.device.stream()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_one_length_may_have_a_rest_at_the_end() {
        let equal = |len, rest| Division::Equal { len, rest };
        assert_eq!(Division::of(&[0..4, 4..8]), equal(4, 8..8));
        assert_eq!(Division::of(&[2..6, 6..10, 10..17]), equal(4, 14..17));
        assert_eq!(Division::of(&[0..0, 0..0, 0..2]), equal(0, 0..2));
        assert_eq!(Division::of(&[0..4, 4..7]), Division::Any);
        assert_eq!(Division::of(&[0..4, 4..9, 9..13]), Division::Any);
        assert_eq!(Division::of(&[]), Division::Any);
    }
}
