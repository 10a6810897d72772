//! Batches filled up to one of a few shapes, so that a step recorded for a shape can be replayed for every batch that fits
//! it. Padding is inert: its tokens are trees of their own, its head rows belong to a sequence that no comparison uses, and
//! its comparisons have weight 0. Every gradient of it is 0, and sums over tokens end in zeros, so results are the same bits
//! as without it.
//!
//! What the vocabulary head enqueues for more rows than it works on at once depends on where a batch's groups end
//! ([`crate::backend::Backend::head_rows_at_once`]), so such shapes are not made: their batches are neither filled up nor
//! recorded.

use super::upload::BatchSizes;
use crate::data::pack::BatchLimits;

/// Steps from no tokens to the largest batch.
pub const LEVELS: usize = 16;
/// Segments that padding tokens are spread over, so that attention among them costs little.
const SEGMENTS: usize = 16;

/// The shapes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    limits: BatchLimits,
    /// Head rows of a shape at most.
    most_rows: usize,
}

impl Shapes {
    /// Shapes for batches within `limits`, on a backend whose head works on `most_rows` at once.
    pub fn of(limits: BatchLimits, most_rows: usize) -> Self {
        Self { limits, most_rows }
    }

    /// Bounds on every shape.
    pub fn limits(&self) -> BatchLimits {
        self.shape(LEVELS)
    }

    /// Tokens and head rows grow with the level; what costs next to nothing is always as large as it can be. Every shape has
    /// room for a token, a sequence and the trees of padding.
    pub fn shape(&self, level: usize) -> BatchLimits {
        let l = self.limits;
        let of = |most: usize| (most * level).div_ceil(LEVELS);
        BatchLimits {
            groups: l.groups,
            tokens: of(l.tokens) + 1,
            rows: of(l.rows),
            group_rows: l.group_rows,
            seqs: l.seqs + 1,
            comparisons: l.comparisons,
            segments: l.segments + SEGMENTS,
            ancestors: l.ancestors,
            trees: l.trees + SEGMENTS,
            longest_path: l.longest_path,
        }
    }

    /// The lowest level with room for a batch; `None` for a batch outside the limits, and where that shape has more head rows
    /// than may be.
    pub fn level(&self, batch: &BatchSizes) -> Option<usize> {
        let l = self.limits;
        let fits = batch.seqs <= l.seqs
            && batch.comparisons <= l.comparisons
            && batch.segments <= l.segments
            && batch.ancestors <= l.ancestors
            && batch.trees <= l.trees
            && batch.longest_path <= l.longest_path;
        let room = |level: &usize| {
            let shape = self.shape(*level);
            batch.tokens < shape.tokens && batch.rows <= shape.rows
        };
        (1..=LEVELS).find(room).filter(|&level| fits && self.shape(level).rows <= self.most_rows)
    }
}

/// Ends of the padding's segments: `tokens` tokens after `start` spread over `segments`.
pub(in crate::train) fn segment_ends(start: usize, tokens: usize, segments: usize) -> impl Iterator<Item = usize> {
    let each = tokens.div_ceil(segments.max(1));
    (1..=segments).map(move |i| start + tokens.min(i * each))
}

/// Ends of the padding's trees in segments: one each, the last takes what is left.
pub(in crate::train) fn tree_ends(start: usize, segments: usize, trees: usize) -> impl Iterator<Item = usize> {
    (1..=trees).map(move |i| if i == trees { start + segments } else { start + segments.min(i) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> BatchLimits {
        BatchLimits {
            groups: 2,
            tokens: 100,
            rows: 40,
            group_rows: 25,
            seqs: 8,
            comparisons: 6,
            segments: 12,
            ancestors: 9,
            trees: 2,
            longest_path: 30,
        }
    }

    #[test]
    fn the_lowest_level_with_room_is_taken() {
        let shapes = Shapes::of(limits(), usize::MAX);
        let level = |tokens, rows| shapes.level(&BatchSizes { tokens, rows, ..BatchSizes::default() });
        assert_eq!(level(0, 0), Some(1));
        assert_eq!((level(6, 0), level(7, 0), level(8, 0)), (Some(1), Some(1), Some(2)));
        assert_eq!((level(1, 40), level(100, 1)), (Some(LEVELS), Some(LEVELS)));
        assert_eq!((level(101, 1), level(1, 41)), (None, None));
        assert_eq!(shapes.level(&BatchSizes { seqs: 9, ..BatchSizes::default() }), None);
        // One token is always padding.
        assert!((1..=LEVELS).all(|level| shapes.shape(level).tokens > (100 * level) / LEVELS));
    }

    #[test]
    fn no_shape_has_more_head_rows_than_are_worked_on_at_once() {
        let level = |most_rows: usize, tokens, rows| {
            Shapes::of(limits(), most_rows).level(&BatchSizes { tokens, rows, ..BatchSizes::default() })
        };
        // Level 8 has 20 rows and 51 tokens, level 9 has 23 and 58.
        assert_eq!((level(22, 1, 20), level(22, 1, 21)), (Some(8), None));
        assert_eq!((level(22, 50, 1), level(22, 51, 1)), (Some(8), None));
        assert_eq!(level(40, 100, 40), Some(LEVELS));
        // Rewards have no head rows.
        let rewards = Shapes::of(BatchLimits { rows: 0, ..limits() }, 0);
        assert_eq!(rewards.level(&BatchSizes { tokens: 100, ..BatchSizes::default() }), Some(LEVELS));
    }

    #[test]
    fn padding_is_spread_and_nothing_is_left_over() {
        assert_eq!(segment_ends(5, 7, 3).collect::<Vec<_>>(), [8, 11, 12]);
        assert_eq!(segment_ends(5, 1, 3).collect::<Vec<_>>(), [6, 6, 6]);
        assert_eq!(tree_ends(2, 5, 3).collect::<Vec<_>>(), [3, 4, 7]);
        assert_eq!(tree_ends(2, 1, 3).collect::<Vec<_>>(), [3, 3, 3]);
    }
}
