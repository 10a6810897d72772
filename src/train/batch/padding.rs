//! Batches padded to one of a few shapes, so that a captured CUDA graph can be replayed for every
//! batch that fits its shape.
//!
//! ```text
//! shape(level) = limits, with tokens and head rows scaled by level / LEVELS, plus room for padding
//! level(batch) = lowest level with room for batch; none if its shape has more than max_rows rows
//! pad(batch)   = append inert tokens, rows, sequences and comparisons up to shape(level)
//! ```
//!
//! Padding is inert. Its tokens are separate trees, its head rows belong to a sequence without
//! comparisons, and its comparisons have weight 0. All its gradients are 0, and sums over tokens
//! end in zeros, so results have the same bits as without padding.
//!
//! A batch with more head rows than the head processes at once is cut into chunks at group ends
//! ([`crate::backend::Backend::max_head_rows`]). The enqueued ops then depend on the batch, so it is not
//! captured. No shape has more rows than the head processes at once by default, so larger batches are not
//! padded either.

use super::upload::BatchSizes;
use crate::data::pack::BatchLimits;

/// Number of shapes, from the smallest to the largest batch.
const LEVELS: usize = 16;
/// Number of segments that share the padding tokens; several segments keep attention among these tokens
/// cheap.
const PADDING_SEGMENTS: usize = 16;

/// The shapes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shapes {
    limits: BatchLimits,
    /// Upper bound on the head rows of a shape.
    max_rows: usize,
}

impl Shapes {
    /// Shapes for batches within `limits`; `max_rows` is the number of rows that the head processes at once.
    pub fn of(limits: BatchLimits, max_rows: usize) -> Self {
        Self { limits, max_rows }
    }

    /// Bounds on every shape.
    pub fn limits(&self) -> BatchLimits {
        self.shape(LEVELS)
    }

    /// Shape of a level, from 1 to [`LEVELS`]. Tokens and head rows grow with the level; sizes that
    /// cost little are at their maximum in every shape. Every shape has room for one padding token,
    /// one padding sequence and the padding trees.
    pub fn shape(&self, level: usize) -> BatchLimits {
        let l = self.limits;
        let of = |max: usize| (max * level).div_ceil(LEVELS);
        BatchLimits {
            groups: l.groups,
            tokens: of(l.tokens) + 1,
            rows: of(l.rows),
            group_rows: l.group_rows,
            seqs: l.seqs + 1,
            comparisons: l.comparisons,
            segments: l.segments + PADDING_SEGMENTS,
            ancestors: l.ancestors,
            trees: l.trees + PADDING_SEGMENTS,
            longest_path: l.longest_path,
            position_rows: if l.position_rows > 0 { of(l.tokens) + 1 } else { 0 },
        }
    }

    /// Lowest level with room for a batch. `None` for a batch outside the limits, or if that shape
    /// has more than `max_rows` head rows.
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
        (1..=LEVELS).find(room).filter(|&level| fits && self.shape(level).rows <= self.max_rows)
    }
}

/// Ends of the padding segments: `tokens` tokens after `start`, spread over `segments` segments.
pub(in crate::train) fn segment_ends(start: usize, tokens: usize, segments: usize) -> impl Iterator<Item = usize> {
    let each = tokens.div_ceil(segments.max(1));
    (1..=segments).map(move |i| start + tokens.min(i * each))
}

/// Ends of the padding trees, in segments: each tree has one segment, except that the last tree has all
/// remaining segments.
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
            position_rows: 0,
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
        // Every batch gets at least one padding token.
        assert!((1..=LEVELS).all(|level| shapes.shape(level).tokens > (100 * level) / LEVELS));
    }

    #[test]
    fn no_shape_exceeds_max_rows() {
        let level = |max_rows: usize, tokens, rows| {
            Shapes::of(limits(), max_rows).level(&BatchSizes { tokens, rows, ..BatchSizes::default() })
        };
        // Level 8 has 20 rows and 51 tokens, level 9 has 23 and 58.
        assert_eq!((level(22, 1, 20), level(22, 1, 21)), (Some(8), None));
        assert_eq!((level(22, 50, 1), level(22, 51, 1)), (Some(8), None));
        assert_eq!(level(40, 100, 40), Some(LEVELS));
        // Reward models have no head rows.
        let rewards = Shapes::of(BatchLimits { rows: 0, ..limits() }, 0);
        assert_eq!(rewards.level(&BatchSizes { tokens: 100, ..BatchSizes::default() }), Some(LEVELS));
    }

    #[test]
    fn padding_is_spread_evenly_and_covers_everything() {
        assert_eq!(segment_ends(5, 7, 3).collect::<Vec<_>>(), [8, 11, 12]);
        assert_eq!(segment_ends(5, 1, 3).collect::<Vec<_>>(), [6, 6, 6]);
        assert_eq!(tree_ends(2, 5, 3).collect::<Vec<_>>(), [3, 4, 7]);
        assert_eq!(tree_ends(2, 1, 3).collect::<Vec<_>>(), [3, 3, 3]);
    }
}
