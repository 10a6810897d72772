//! The packed batch: flat tables of indices and numbers, in the layout of the op contracts. Only
//! the term slots of the comparison table have padding. [`super::pack_into`] is the only writer. A head row is a
//! (token row, target token) pair whose log-prob the vocabulary head computes.

use crate::backend::contract::{GroupEnd, KINDS};
use crate::data::tree::PrefixTree;

/// Items grouped by key, as in [`crate::backend::contract::Runs`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunTable {
    /// (items) item indices sorted by key, then by item
    pub order: Vec<i32>,
    /// (distinct + 1) end of each key's items in `order`, after a leading 0
    pub offsets: Vec<i32>,
    /// (distinct) keys, ascending
    pub keys: Vec<i32>,
}

impl RunTable {
    fn clear(&mut self) {
        self.order.clear();
        reset_offsets(&mut self.offsets);
        self.keys.clear();
    }
}

/// Segments of a batch, as in [`crate::backend::contract::Tree`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeTable {
    /// (segments + 1) first row of each segment
    pub starts: Vec<i32>,
    /// (segments + 1) CSR offsets into `ancestors`
    pub ancestor_offsets: Vec<i32>,
    /// (ancestors) indices of the ancestors of each segment, root first
    pub ancestors: Vec<i32>,
    /// (trees + 1) first segment of each tree
    pub trees: Vec<i32>,
}

impl TreeTable {
    fn clear(&mut self) {
        reset_offsets(&mut self.starts);
        reset_offsets(&mut self.ancestor_offsets);
        self.ancestors.clear();
        reset_offsets(&mut self.trees);
    }
}

/// Source of a row of the comparison table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparisonRef {
    /// Index of the group in the batch.
    pub group: usize,
    /// Index into [`crate::data::tokenized::TokenizedGroup::comparisons`].
    pub index: usize,
}

/// Comparisons of a batch, as in [`crate::backend::contract::Comparisons`]. `kind_scale` is not
/// included, because it depends on the whole global batch; see [`ComparisonTable::counts`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ComparisonTable {
    /// (comparisons, TERMS) index of a sequence of the batch; -1 in unused slots
    pub term_sequence: Vec<i32>,
    /// (comparisons, TERMS) +1 or -1, doubled for detached terms; 0 in unused slots
    pub term_sign: Vec<i32>,
    /// (comparisons) index of the kind
    pub kind: Vec<i32>,
    /// (comparisons) factor on the score difference
    pub scale: Vec<f64>,
    /// (comparisons) margin, `margin_add` included
    pub margin: Vec<f64>,
    /// (comparisons) loss weight
    pub weight: Vec<f64>,
    /// (comparisons, 2) low and high clip bounds of the detached terms, infinite if the comparison has none
    pub detached_clip: Vec<f64>,
    /// (seqs + 1) CSR offsets into `uses`
    pub use_offsets: Vec<i32>,
    /// (terms used, detached ones included) `comparison * TERMS + slot`, ascending for each
    /// sequence
    pub uses: Vec<i32>,
    /// (comparisons) source of each row
    pub refs: Vec<ComparisonRef>,
    /// Comparisons of each kind.
    pub counts: [usize; KINDS],
}

impl ComparisonTable {
    fn clear(&mut self) {
        self.term_sequence.clear();
        self.term_sign.clear();
        self.kind.clear();
        self.scale.clear();
        self.margin.clear();
        self.weight.clear();
        self.detached_clip.clear();
        reset_offsets(&mut self.use_offsets);
        self.uses.clear();
        self.refs.clear();
        self.counts = [0; KINDS];
    }
}

/// One scored (prompt, response) pair of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRef {
    /// Index of the group in the batch.
    pub group: usize,
    /// Index into the group's prompts.
    pub prompt: usize,
    /// Index into the group's responses.
    pub response: usize,
    /// Tokens of the response, end-of-turn included.
    pub response_tokens: usize,
}

/// A packed batch on the host. [`super::pack_into`] fills it and keeps its memory from batch to
/// batch. The default value has no tables yet; [`Batch::clear`] turns it into a valid empty batch.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Number of groups.
    pub groups: usize,
    /// (groups) end of each group's head rows and sequences
    pub group_ends: Vec<GroupEnd>,
    /// (tokens) token ids
    pub ids: Vec<i32>,
    /// (tokens) positions, counted along the path of the tree
    pub positions: Vec<i32>,
    /// Token rows grouped by token id.
    pub id_runs: RunTable,
    /// Token rows grouped by position; empty unless [`super::PackOptions::position_runs`].
    pub position_runs: RunTable,
    /// The prefix trees.
    pub tree: TreeTable,
    /// Number of (query, key) pairs in which the query attends to the key.
    pub pairs: u64,
    /// Length in tokens of the longest path from a root to the end of a segment; every position is
    /// smaller.
    pub longest_path: usize,
    /// (head rows) token row that predicts the target; empty under [`super::Scoring::Reward`]
    pub source: Vec<i32>,
    /// (head rows) predicted token id
    pub target: Vec<i32>,
    /// Head rows grouped by `source`.
    pub head_runs: RunTable,
    /// (seqs + 1) CSR offsets of the head rows of each sequence, which are in token order
    pub seq_offsets: Vec<i32>,
    /// (seqs) row at which the reward of each sequence is read, all distinct; empty under [`super::Scoring::LogProb`]
    pub last_rows: Vec<i32>,
    /// (seqs) the sequences, by group, then in the order of
    /// [`crate::data::tokenized::TokenizedGroup::sequences`]
    pub sequences: Vec<SequenceRef>,
    /// The comparisons.
    pub comparisons: ComparisonTable,
    /// Token rows that the same sequences would need without sharing; with sharing they need
    /// [`Batch::tokens`].
    pub tokens_unshared: usize,
    pub(super) prefix_tree: PrefixTree,
    pub(super) counters: Vec<i32>,
}

impl Batch {
    /// Empties all tables and keeps their memory.
    pub fn clear(&mut self) {
        self.groups = 0;
        self.group_ends.clear();
        self.ids.clear();
        self.positions.clear();
        self.id_runs.clear();
        self.position_runs.clear();
        self.tree.clear();
        self.pairs = 0;
        self.longest_path = 0;
        self.source.clear();
        self.target.clear();
        self.head_runs.clear();
        reset_offsets(&mut self.seq_offsets);
        self.last_rows.clear();
        self.sequences.clear();
        self.comparisons.clear();
        self.tokens_unshared = 0;
    }

    /// Number of token rows.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.tree.starts.len().saturating_sub(1)
    }

    /// Number of trees.
    pub fn trees(&self) -> usize {
        self.tree.trees.len().saturating_sub(1)
    }

    /// Number of head rows.
    pub fn head_rows(&self) -> usize {
        self.source.len()
    }

    /// Number of sequences.
    pub fn seqs(&self) -> usize {
        self.sequences.len()
    }

    /// Number of rows of the comparison table.
    pub fn comparison_count(&self) -> usize {
        self.comparisons.kind.len()
    }
}

/// Resets an offset table to zero items.
fn reset_offsets(offsets: &mut Vec<i32>) {
    offsets.clear();
    offsets.push(0);
}
