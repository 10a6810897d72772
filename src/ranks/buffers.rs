//! Collectives on the buffers of a backend. A device that has collectives ([`DeviceCollective`]) enqueues
//! them. Every other buffer passes through the host:
//!
//! ```text
//! reduce_scatter   read every part, send it to its rank; add in the order of the ranks, in f64; write
//! all_reduce       the same for slices of the range, then gather the slices
//! all_gather       read the own part, gather the parts of all ranks, write those of the others
//! ```
//!
//! The host's sums have the same bits for any division into parts. A device adds in a different order, which
//! depends only on the number of ranks and the lengths.
//!
//! ```text
//! let begun = reduce_scatter((ranks, backend), &mut grads, &parts, true)?;   // after the ops so far
//! ... ops that do not touch the parts ...
//! begun.settle(backend)?;                                                    // ops from here on see the sums
//! ```
//!
//! It is an error if the ranks do not have one part each, or if the parts are not contiguous.

use std::ops::Range;

use super::collective::{Collective, Wire};
use crate::backend::collective::Ticket;
use crate::backend::contract::Precision;
use crate::backend::{Backend, View, ViewMut};
use crate::{Error, Result};

/// Maximum number of elements, over all parts, that pass through the host at once.
const BUCKET: usize = 1 << 22;

/// Ranks, and the backend whose buffers they share.
pub(crate) type Shared<'a, B> = (&'a dyn Collective, &'a B);

/// A collective that has begun.
#[must_use = "only ops after `settle` see the results"]
pub(crate) struct Begun {
    /// Collective that the device runs; `None` if the results are complete.
    ticket: Option<Ticket>,
    finite: Option<bool>,
}

impl Begun {
    const DONE: Self = Self { ticket: None, finite: None };

    /// Makes later ops wait for the results, without blocking the host. Returns whether the values of this rank
    /// were finite; `None` if the host has not read them.
    pub fn settle<B: Backend>(self, backend: &B) -> Result<Option<bool>> {
        if let (Some(ticket), Some(device)) = (self.ticket, backend.device_collective()) {
            device.settle(ticket)?;
        }
        Ok(self.finite)
    }
}

impl From<Ticket> for Begun {
    fn from(ticket: Ticket) -> Self {
        Self { ticket: Some(ticket), finite: None }
    }
}

/// Element type of the values that ranks of a backend send to each other.
pub(crate) fn wire<B: Backend>() -> Wire {
    match B::PRECISION {
        Precision::F64 => Wire::F64,
        Precision::F32 | Precision::Bf16 => Wire::F32,
    }
}

fn check(ranks: &dyn Collective, parts: &[Range<usize>]) -> Result<()> {
    if parts.len() != ranks.size() || parts.windows(2).any(|pair| pair[0].end != pair[1].start) {
        return Err(Error::Runtime(format!("{} ranks cannot share the parts {parts:?}", ranks.size())));
    }
    Ok(())
}

/// Splits the parts of all ranks into pieces. Each item holds one piece of every rank's part.
fn pieces(parts: &[Range<usize>]) -> impl Iterator<Item = Vec<Range<usize>>> {
    let longest = parts.iter().map(Range::len).max().unwrap_or(0);
    let step = (BUCKET / parts.len().max(1)).max(1);
    (0..longest).step_by(step).map(move |start| {
        let piece = |part: &Range<usize>| (part.start + start).min(part.end)..(part.start + start + step).min(part.end);
        parts.iter().map(piece).collect()
    })
}

/// Replaces `parts[r]` of `buffer` on rank r by its sum over the ranks. A rank that does not contribute
/// adds zeros. Elements of other parts are left undefined.
pub(crate) fn reduce_scatter<B: Backend>(
    (ranks, backend): Shared<'_, B>,
    buffer: &mut B::Acc,
    parts: &[Range<usize>],
    contributes: bool,
) -> Result<Begun> {
    check(ranks, parts)?;
    if let Some(device) = backend.device_collective() {
        return device.reduce_scatter(buffer, parts, contributes).map(Begun::from);
    }
    let mut finite = true;
    for pieces in pieces(parts) {
        let mut sent = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let mut values = vec![0.0; piece.len()];
            if contributes {
                backend.read_acc(View::new(buffer, piece.start, piece.len()), &mut values)?;
            }
            finite &= values.iter().all(|x| x.is_finite());
            sent.push(wire::<B>().encode(&values));
        }
        let own = &pieces[ranks.rank()];
        let sum = ranks.sum_of_parts(&sent, own.len(), wire::<B>())?;
        backend.write_acc(ViewMut::new(buffer, own.start, own.len()), &sum)?;
    }
    Ok(Begun { finite: Some(finite), ..Begun::DONE })
}

/// Replaces `range` of `buffer` by its sum over the ranks. A rank that does not contribute adds zeros.
pub(crate) fn all_reduce<B: Backend>(
    (ranks, backend): Shared<'_, B>,
    buffer: &mut B::Acc,
    range: Range<usize>,
    contributes: bool,
) -> Result<Begun> {
    if let Some(device) = backend.device_collective() {
        return device.all_reduce(buffer, range, contributes).map(Begun::from);
    }
    let (mut bucket, mut finite) = (vec![0.0; BUCKET.min(range.len())], true);
    for start in range.clone().step_by(BUCKET) {
        let bucket = &mut bucket[..BUCKET.min(range.end - start)];
        match contributes {
            true => backend.read_acc(View::new(buffer, start, bucket.len()), bucket)?,
            false => bucket.fill(0.0),
        }
        finite &= bucket.iter().all(|x| x.is_finite());
        ranks.all_reduce(bucket, wire::<B>())?;
        backend.write_acc(ViewMut::new(buffer, start, bucket.len()), bucket)?;
    }
    Ok(Begun { finite: Some(finite), ..Begun::DONE })
}

/// Replaces `parts[r]` of a buffer of weights or activations by rank r's, for every r.
pub(crate) fn all_gather_act<B: Backend>(
    (ranks, backend): Shared<'_, B>,
    buffer: &mut B::Act,
    parts: &[Range<usize>],
) -> Result<Begun> {
    check(ranks, parts)?;
    if let Some(device) = backend.device_collective() {
        return device.all_gather_act(buffer, parts).map(Begun::from);
    }
    let read = |buffer: &B::Act, at: &Range<usize>, to: &mut [f64]| {
        backend.read_act(View::new(buffer, at.start, at.len()), to)
    };
    let write = |buffer: &mut B::Act, at: &Range<usize>, from: &[f64]| {
        backend.write_act(ViewMut::new(buffer, at.start, at.len()), from)
    };
    gather_through_host((ranks, wire::<B>()), buffer, parts, (read, write))
}

/// Like [`all_gather_act`], for a buffer of type `Acc`.
pub(crate) fn all_gather_acc<B: Backend>(
    (ranks, backend): Shared<'_, B>,
    buffer: &mut B::Acc,
    parts: &[Range<usize>],
) -> Result<Begun> {
    check(ranks, parts)?;
    if let Some(device) = backend.device_collective() {
        return device.all_gather_acc(buffer, parts).map(Begun::from);
    }
    let read = |buffer: &B::Acc, at: &Range<usize>, to: &mut [f64]| {
        backend.read_acc(View::new(buffer, at.start, at.len()), to)
    };
    let write = |buffer: &mut B::Acc, at: &Range<usize>, from: &[f64]| {
        backend.write_acc(ViewMut::new(buffer, at.start, at.len()), from)
    };
    gather_through_host((ranks, wire::<B>()), buffer, parts, (read, write))
}

fn gather_through_host<T>(
    (ranks, wire): (&dyn Collective, Wire),
    buffer: &mut T,
    parts: &[Range<usize>],
    (read, write): (
        impl Fn(&T, &Range<usize>, &mut [f64]) -> Result<()>,
        impl Fn(&mut T, &Range<usize>, &[f64]) -> Result<()>,
    ),
) -> Result<Begun> {
    for pieces in pieces(parts) {
        let own = ranks.rank();
        let mut values = vec![0.0; pieces[own].len()];
        read(buffer, &pieces[own], &mut values)?;
        let gathered = ranks.all_gather(&wire.encode(&values))?;
        for (rank, (piece, bytes)) in pieces.iter().zip(&gathered).enumerate() {
            if rank != own && !piece.is_empty() {
                write(buffer, piece, &wire.decode(bytes))?;
            }
        }
    }
    Ok(Begun::DONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference::Reference;
    use crate::ranks::collective::shard_of;
    use crate::ranks::rehearsal::Rehearsal;

    #[test]
    fn pieces_cover_every_element_once() {
        for (len, size) in [(0, 2), (5, 3), (3 * BUCKET + 7, 2)] {
            let parts: Vec<_> = (0..size).map(|rank| shard_of(len, rank, size)).collect();
            let mut next: Vec<usize> = parts.iter().map(|part| part.start).collect();
            for pieces in pieces(&parts) {
                assert!(pieces.iter().map(Range::len).sum::<usize>() <= BUCKET.max(size));
                for (next, piece) in next.iter_mut().zip(pieces) {
                    assert_eq!(*next, piece.start);
                    *next = piece.end;
                }
            }
            assert_eq!(next, parts.iter().map(|part| part.end).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sums_and_gathers_of_ranges_keep_what_lies_outside() {
        // Rank 1 does not contribute. The parts start at 2 and are uneven; 9 elements.
        let parts = [2..4, 4..7, 7..8];
        let results = Rehearsal::run(3, |rank| {
            let r = rank.rank();
            let own: Vec<f64> = (0..9).map(|i| (10 * r + i) as f64).collect();
            let (mut scattered, mut reduced) = (own.clone(), own.clone());
            let on = (rank as &dyn Collective, &Reference);
            let finite = reduce_scatter(on, &mut scattered, &parts, r != 1).unwrap().settle(&Reference).unwrap();
            assert_eq!(finite, Some(true));
            all_reduce(on, &mut reduced, 2..8, r != 1).unwrap().settle(&Reference).unwrap().unwrap();
            assert_eq!(scattered[parts[r].clone()], reduced[parts[r].clone()]);
            assert_eq!((reduced[1], reduced[8]), (own[1], own[8]));
            let mut gathered = scattered.clone();
            all_gather_acc(on, &mut gathered, &parts).unwrap().settle(&Reference).unwrap();
            assert_eq!(gathered[2..8], reduced[2..8]);
            assert_eq!((gathered[1], gathered[8]), (own[1], own[8]));
            all_gather_act(on, &mut scattered, &parts).unwrap().settle(&Reference).unwrap();
            assert_eq!(scattered[2..8], gathered[2..8]);
            reduced
        });
        assert_eq!(results[0][2..8], [24.0, 26.0, 28.0, 30.0, 32.0, 34.0]);
    }

    #[test]
    fn values_that_are_not_finite_are_seen_on_their_rank_only() {
        let seen = Rehearsal::run(2, |rank| {
            let mut buffer = vec![1.0, if rank.rank() == 1 { f64::NAN } else { 2.0 }];
            let begun = reduce_scatter((rank, &Reference), &mut buffer, &[0..1, 1..2], true).unwrap();
            begun.settle(&Reference).unwrap()
        });
        assert_eq!(seen, [Some(true), Some(false)]);
    }

    #[test]
    fn parts_that_do_not_belong_to_the_ranks_are_refused() {
        let refused = Rehearsal::run(2, |rank| {
            let on = (rank as &dyn Collective, &Reference);
            let mut buffer = vec![0.0; 4];
            reduce_scatter(on, &mut buffer, std::slice::from_ref(&(0..4)), true).is_err()
                && all_gather_acc(on, &mut buffer, &[0..1, 2..4]).is_err()
        });
        assert_eq!(refused, [true; 2]);
    }
}
