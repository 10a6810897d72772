//! Collectives that a device runs on its own buffers, without the host.
//!
//! Every rank calls the same ones in the same order. A call is enqueued behind the ops before it. Ops
//! after it may run while it does, so they may use its results, and write to what it reads, only
//! behind [`DeviceCollective::settle`]. None of them may be recorded ([`Backend::record`]).

use std::ops::Range;

use super::Backend;
use crate::Result;

/// Number of an enqueued collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub(crate) u64);

/// Sums and gathers over the ranks, on the buffers of a backend. `parts` holds one range a rank; they
/// follow each other.
pub trait DeviceCollective<B: Backend> {
    /// Replaces `parts[r]` on rank r by its sum over the ranks; other elements of `parts` keep their values or
    /// are left undefined. A rank that does not contribute adds zeros.
    fn reduce_scatter(&self, buffer: &mut B::Acc, parts: &[Range<usize>], contributes: bool) -> Result<Ticket>;

    /// Replaces `range` by its sum over the ranks. A rank that does not contribute adds zeros.
    fn all_reduce(&self, buffer: &mut B::Acc, range: Range<usize>, contributes: bool) -> Result<Ticket>;

    /// Replaces `parts[r]` by rank r's, for every r.
    fn all_gather_act(&self, buffer: &mut B::Act, parts: &[Range<usize>]) -> Result<Ticket>;

    /// Replaces `parts[r]` by rank r's, for every r.
    fn all_gather_acc(&self, buffer: &mut B::Acc, parts: &[Range<usize>]) -> Result<Ticket>;

    /// Makes ops that are enqueued from now on run behind a collective. Does not wait.
    fn settle(&self, ticket: Ticket) -> Result<()>;
}
