//! Collectives that a device runs on its own buffers, without the host.
//!
//! All ranks call the same collectives in the same order. A collective runs after the ops that were enqueued
//! before it. Ops that are enqueued later may run concurrently with it. Such ops may use its results or
//! overwrite its inputs only after [`DeviceCollective::settle`]. Collectives cannot be recorded
//! ([`Backend::record`]).

use std::ops::Range;

use super::Backend;
use crate::Result;

/// Sequence number of an enqueued collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub(crate) u64);

/// Sums and gathers over the ranks, on the buffers of a backend. `parts` holds one range per rank. The ranges
/// are contiguous.
pub trait DeviceCollective<B: Backend> {
    /// On each rank r, replaces `parts[r]` by its sum over the ranks; the contents of the other ranges are
    /// then undefined. A rank with `contributes` false adds zeros.
    fn reduce_scatter(&self, buffer: &mut B::Acc, parts: &[Range<usize>], contributes: bool) -> Result<Ticket>;

    /// Replaces `range` by its sum over the ranks. A rank with `contributes` false adds zeros.
    fn all_reduce(&self, buffer: &mut B::Acc, range: Range<usize>, contributes: bool) -> Result<Ticket>;

    /// Copies `parts[r]` of rank r to all ranks, for every r.
    fn all_gather_act(&self, buffer: &mut B::Act, parts: &[Range<usize>]) -> Result<Ticket>;

    /// Copies `parts[r]` of rank r to all ranks, for every r.
    fn all_gather_acc(&self, buffer: &mut B::Acc, parts: &[Range<usize>]) -> Result<Ticket>;

    /// Makes ops that are enqueued later wait, on the device, until the collective of `ticket` has finished.
    /// Does not block the host.
    fn settle(&self, ticket: Ticket) -> Result<()>;
}
