//! The elements of a layout that a buffer of one rank holds. A buffer holds all of them, a slice, or a
//! slice of each unit (`units`).
//!
//! ```text
//! layout   [ embedding | layer 0 | layer 1 | ... ]
//! buffer   [ slice of each, in the order of the layout ]
//! ```
//!
//! [`assemble`] gives each rank a whole range of a layout whose parts are on several ranks.

use std::ops::Range;

use crate::ranks::collective::{Collective, Wire};
use crate::{Error, Result};

/// Elements `range` of the layout, stored in the buffer from index `at`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub range: Range<usize>,
    pub at: usize,
}

/// Elements of a layout that a buffer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// In the order of the layout, and of the buffer.
    pieces: Vec<Piece>,
    /// Number of elements of the buffer, including gaps between the pieces.
    len: usize,
}

/// Elements of a layout range that a buffer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlap {
    /// Index of the first element in the buffer.
    pub at: usize,
    /// Offsets of the same elements from the start of the range.
    pub offsets: Range<usize>,
}

impl Part {
    /// A buffer of the elements `range`.
    pub fn slice(range: Range<usize>) -> Self {
        let len = range.len();
        Self { pieces: vec![Piece { range, at: 0 }], len }
    }

    /// A buffer of `len` elements with these pieces, which have the same order in the layout and in the buffer.
    pub fn of_pieces(pieces: Vec<Piece>, len: usize) -> Self {
        Self { pieces, len }
    }

    /// Number of elements of the buffer.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pieces.
    #[cfg(test)]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether the buffer is a whole layout of `len` elements.
    pub fn is_whole(&self, len: usize) -> bool {
        self.pieces == [Piece { range: 0..len, at: 0 }]
    }

    /// Number of elements of the buffer before the first one at or after `end` in the layout.
    pub fn before(&self, end: usize) -> usize {
        let started = self.pieces.partition_point(|piece| piece.range.start < end);
        self.pieces[..started].last().map_or(0, |piece| piece.at + piece.range.end.min(end) - piece.range.start)
    }

    /// Returns the elements of `range` that the buffer holds, in order.
    pub fn within<'a>(&'a self, range: &Range<usize>) -> impl Iterator<Item = Overlap> + use<'a> {
        let (start, end) = (range.start, range.end);
        let first = self.pieces.partition_point(|piece| piece.range.end <= start);
        let touching = self.pieces[first..].iter().take_while(move |piece| piece.range.start < end);
        touching.filter_map(move |piece| {
            let both = piece.range.start.max(start)..piece.range.end.min(end);
            let at = piece.at + both.start - piece.range.start;
            (!both.is_empty()).then(|| Overlap { at, offsets: both.start - start..both.end - start })
        })
    }
}

/// Gives each rank r the elements `wanted[r]` of a layout. `parts[r]` is the part that rank r holds; all parts
/// together cover the layout. `read` copies from the buffer of this rank. Every rank must call this function.
pub(crate) fn assemble(
    ranks: &dyn Collective,
    (parts, wire): (&[Part], Wire),
    wanted: &[Range<usize>],
    mut read: impl FnMut(usize, &mut [f64]) -> Result<()>,
) -> Result<Vec<f64>> {
    let own = ranks.rank();
    let mut sent = Vec::with_capacity(wanted.len());
    for range in wanted {
        let mut values = Vec::new();
        for Overlap { at, offsets } in parts[own].within(range) {
            let known = values.len();
            values.resize(known + offsets.len(), 0.0);
            read(at, &mut values[known..])?;
        }
        sent.push(wire.encode(&values));
    }
    let mut whole = vec![0.0; wanted[own].len()];
    for (rank, bytes) in ranks.exchange(&sent)?.iter().enumerate() {
        let values = wire.decode(bytes);
        let mut rest = values.as_slice();
        for Overlap { offsets, .. } in parts[rank].within(&wanted[own]) {
            let Some((now, after)) = rest.split_at_checked(offsets.len()) else {
                return Err(Error::Runtime(format!("rank {rank} sent {} weights too few", offsets.len() - rest.len())));
            };
            whole[offsets].copy_from_slice(now);
            rest = after;
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::rehearsal::Rehearsal;

    #[test]
    fn overlaps_and_counts_follow_the_pieces() {
        let part = Part::of_pieces(vec![Piece { range: 4..8, at: 0 }, Piece { range: 20..23, at: 6 }], 9);
        let within = |range: Range<usize>| part.within(&range).map(|o| (o.at, o.offsets)).collect::<Vec<_>>();
        assert_eq!(within(0..30), [(0, 4..8), (6, 20..23)]);
        assert_eq!(within(6..21), [(2, 0..2), (6, 14..15)]);
        assert!(within(8..20).is_empty() && within(23..90).is_empty() && within(5..5).is_empty());
        let before = [0, 4, 5, 8, 20, 21, 23, 40].map(|end| part.before(end));
        assert_eq!(before, [0, 0, 1, 4, 4, 7, 9, 9]);
        assert!(!part.is_whole(9) && Part::slice(0..9).is_whole(9) && !Part::slice(0..8).is_whole(9));
    }

    #[test]
    fn every_rank_gets_the_ranges_that_it_wants() {
        // Rank 0 holds 0..3 and 7..10, rank 1 holds 3..7.
        let pieces = vec![Piece { range: 0..3, at: 0 }, Piece { range: 7..10, at: 3 }];
        let parts = [Part::of_pieces(pieces, 6), Part::slice(3..7)];
        let got = Rehearsal::run(2, |ranks| {
            let own = [vec![0.0, 1.0, 2.0, 7.0, 8.0, 9.0], vec![3.0, 4.0, 5.0, 6.0]][ranks.rank()].clone();
            let read = |at: usize, to: &mut [f64]| {
                to.copy_from_slice(&own[at..at + to.len()]);
                Ok(())
            };
            assemble(ranks, (&parts, Wire::F32), &[0..10, 2..8], read).unwrap()
        });
        assert_eq!(got[0], (0..10).map(f64::from).collect::<Vec<_>>());
        assert_eq!(got[1], (2..8).map(f64::from).collect::<Vec<_>>());
    }
}
