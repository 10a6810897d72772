//! The layout of a batch: one row per table with its name, its length within limits, its source in
//! a packed batch, and its padding. Transfer, padding and the memory plan all read these rows.
//!
//! All index tables are one i32 array and all number tables one array, in the order of the rows.

use super::padding::{segment_ends, tree_ends};
use crate::backend::contract::{KINDS, TERMS};
use crate::data::pack::{Batch, BatchLimits};

/// Source of the tables: a packed batch and the numbers that depend on the global batch.
#[derive(Clone, Copy)]
pub(in crate::train) struct Source<'a> {
    pub batch: &'a Batch,
    /// Weight of each comparison kind divided by its count in the global batch.
    pub kind_scale: &'a [f64; KINDS],
    pub of_seqs: SequenceNumbers<'a>,
}

/// Per-sequence numbers of a batch; each is empty or (seqs).
#[derive(Clone, Copy, Default)]
pub struct SequenceNumbers<'a> {
    /// Gradient of each score that does not come from comparisons.
    pub direct: &'a [f64],
    /// Cached scores of the frozen reference.
    pub frozen: &'a [f64],
    /// 1 / number of head rows of the sequence, if a loss curve is per token.
    pub inverse_rows: &'a [f64],
    /// Head rows before the tail, if the loss weights tails.
    pub tail_starts: &'a [f64],
    /// Weight of the tails (response tokens beyond the shared length), if the loss has one.
    pub tail_alpha: Option<f64>,
}

/// Values that pad an index table to its length in a shape.
#[derive(Clone, Copy)]
pub(in crate::train) enum IndexPadding {
    Value(usize),
    /// -1, which means no token id, hidden row or sequence.
    None,
    /// The table's last value, so that lists of padding items are empty.
    Last,
    /// Each entry's index in the table, so that padding items keep their order.
    Position,
    SegmentEnds,
    TreeEnds,
}

/// Values that pad a number table to its length in a shape.
#[derive(Clone, Copy)]
pub(in crate::train) enum NumberPadding {
    Value(f64),
    /// Zeros if the batch has the table; an absent table stays empty.
    ZerosIfPresent,
}

/// Declares the tables of one array: `Name[length] = source, padding;`.
macro_rules! tables {
    (
        $(#[$doc:meta])* $enum:ident of $value:ty, padding $padding:ident;
        $limits:ident, $source:ident;
        $( $(#[$row:meta])* $name:ident[$length:expr] = $from:expr, $pad:expr; )*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(in crate::train) enum $enum { $( $(#[$row])* $name, )* }

        impl $enum {
            /// Number of tables.
            pub const COUNT: usize = [$( stringify!($name) ),*].len();

            /// Length of each table in a batch that reaches the limits.
            pub fn lengths($limits: &BatchLimits) -> [usize; Self::COUNT] {
                [$( $length ),*]
            }

            /// Contents of each table.
            pub fn sources<'a>($source: &Source<'a>) -> [&'a [$value]; Self::COUNT] {
                [$( $from ),*]
            }

            /// Padding of each table for a shape.
            pub fn paddings($limits: &BatchLimits) -> [$padding; Self::COUNT] {
                let _ = $limits;
                [$( $pad ),*]
            }
        }
    };
}

tables! {
    /// Index tables, in buffer order.
    Index of i32, padding IndexPadding;
    l, s;
    Ids[l.tokens] = &s.batch.ids, IndexPadding::Value(0);
    Positions[l.tokens] = &s.batch.positions, IndexPadding::Value(0);
    IdOrder[l.tokens] = &s.batch.id_runs.order, IndexPadding::Position;
    IdOffsets[l.tokens + 1] = &s.batch.id_runs.offsets, IndexPadding::Value(l.tokens);
    IdKeys[l.tokens] = &s.batch.id_runs.keys, IndexPadding::None;
    PositionOrder[l.position_rows] = &s.batch.position_runs.order, IndexPadding::Position;
    PositionOffsets[l.position_rows + 1] =
        &s.batch.position_runs.offsets, IndexPadding::Value(l.position_rows);
    PositionKeys[l.position_rows] = &s.batch.position_runs.keys, IndexPadding::None;
    Starts[l.segments + 1] = &s.batch.tree.starts, IndexPadding::SegmentEnds;
    AncestorOffsets[l.segments + 1] = &s.batch.tree.ancestor_offsets, IndexPadding::Last;
    Ancestors[l.ancestors] = &s.batch.tree.ancestors, IndexPadding::Value(0);
    Trees[l.trees + 1] = &s.batch.tree.trees, IndexPadding::TreeEnds;
    Source[l.rows] = &s.batch.source, IndexPadding::Value(l.tokens.saturating_sub(1));
    Target[l.rows] = &s.batch.target, IndexPadding::Value(0);
    HeadOrder[l.rows] = &s.batch.head_runs.order, IndexPadding::Position;
    HeadOffsets[l.rows + 1] = &s.batch.head_runs.offsets, IndexPadding::Value(l.rows);
    HeadKeys[l.rows] = &s.batch.head_runs.keys, IndexPadding::None;
    SeqOffsets[l.seqs + 1] = &s.batch.seq_offsets, IndexPadding::Value(l.rows);
    /// Row of each sequence's last token, for reward models; empty for a batch with head rows.
    LastRows[if l.rows == 0 { l.seqs } else { 0 }] =
        &s.batch.last_rows, IndexPadding::Value(l.tokens.saturating_sub(1));
    TermSequence[TERMS * l.comparisons] = &s.batch.comparisons.term_sequence, IndexPadding::None;
    TermSign[TERMS * l.comparisons] = &s.batch.comparisons.term_sign, IndexPadding::Value(0);
    Kind[l.comparisons] = &s.batch.comparisons.kind, IndexPadding::Value(0);
    UseOffsets[l.seqs + 1] = &s.batch.comparisons.use_offsets, IndexPadding::Last;
    Uses[TERMS * l.comparisons] = &s.batch.comparisons.uses, IndexPadding::Value(0);
}

tables! {
    /// Number tables, in buffer order.
    Number of f64, padding NumberPadding;
    l, s;
    Scale[l.comparisons] = &s.batch.comparisons.scale, NumberPadding::Value(1.0);
    Margin[l.comparisons] = &s.batch.comparisons.margin, NumberPadding::Value(0.0);
    Weight[l.comparisons] = &s.batch.comparisons.weight, NumberPadding::Value(0.0);
    DetachedClip[2 * l.comparisons] = &s.batch.comparisons.detached_clip, NumberPadding::Value(0.0);
    KindScale[KINDS] = s.kind_scale, NumberPadding::Value(0.0);
    /// (seqs) gradient of each score that does not come from comparisons; empty if the loss has none.
    Direct[l.seqs] = s.of_seqs.direct, NumberPadding::ZerosIfPresent;
    /// (seqs) cached scores of the frozen reference; empty without a cache.
    Frozen[l.seqs] = s.of_seqs.frozen, NumberPadding::ZerosIfPresent;
    /// (seqs) 1 / head rows of each sequence; empty unless a loss curve is per token.
    InverseRows[l.seqs] = s.of_seqs.inverse_rows, NumberPadding::ZerosIfPresent;
    /// (seqs) head rows of each sequence before its tail; empty unless the loss weights tails.
    TailStarts[l.seqs] = s.of_seqs.tail_starts, NumberPadding::ZerosIfPresent;
}

impl IndexPadding {
    /// Returns the values that extend `table` to `length` entries. The batch has `tokens` tokens and
    /// `segments` segments; `shape` has the padded sizes.
    pub fn values(
        self,
        table: &[i32],
        length: usize,
        (tokens, segments): (usize, usize),
        shape: &BatchLimits,
    ) -> Vec<i32> {
        let count = length - table.len();
        let ends = |ends: &mut dyn Iterator<Item = usize>| ends.map(|end| end as i32).collect();
        match self {
            Self::Value(value) => vec![value as i32; count],
            Self::None => vec![-1; count],
            Self::Last => vec![table.last().copied().unwrap_or(0); count],
            Self::Position => (table.len() as i32..length as i32).collect(),
            Self::SegmentEnds => ends(&mut segment_ends(tokens, shape.tokens - tokens, count)),
            Self::TreeEnds => ends(&mut tree_ends(segments, shape.segments - segments, count)),
        }
    }
}

impl NumberPadding {
    /// Returns the values that extend a table of `present` entries to `length`.
    pub fn values(self, present: usize, length: usize) -> Vec<f64> {
        match self {
            Self::ZerosIfPresent if present == 0 => Vec::new(),
            Self::ZerosIfPresent => vec![0.0; length - present],
            Self::Value(value) => vec![value; length - present],
        }
    }
}

impl BatchLimits {
    /// Total length of the index tables, for a batch in which every token id and hidden row is distinct.
    pub fn indices(&self) -> usize {
        Index::lengths(self).iter().sum()
    }

    /// Total length of the number tables.
    pub fn numbers(&self) -> usize {
        Number::lengths(self).iter().sum()
    }
}
