//! The packed batch: flat tables of indices and numbers, as the op contracts take them. No field has padding except
//! the term slots of the comparison table. [`super::pack_into`] is the only writer.

use crate::backend::contract::{GroupEnd, KINDS};
use crate::data::tree::PrefixTree;

/// Items grouped by key, as in [`crate::backend::contract::Runs`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunTable {
    /// (items) sorted by key, then by item
    pub order: Vec<i32>,
    /// (distinct + 1)
    pub offsets: Vec<i32>,
    /// (distinct) ascending
    pub keys: Vec<i32>,
}

impl RunTable {
    fn clear(&mut self) {
        self.order.clear();
        restart(&mut self.offsets);
        self.keys.clear();
    }
}

/// Segments of a batch, as in [`crate::backend::contract::Tree`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeTable {
    /// (segments + 1) first row of each segment
    pub starts: Vec<i32>,
    /// (segments + 1)
    pub ancestor_offsets: Vec<i32>,
    /// (ancestors) root first
    pub ancestors: Vec<i32>,
    /// (trees + 1) first segment of each tree
    pub trees: Vec<i32>,
}

impl TreeTable {
    fn clear(&mut self) {
        restart(&mut self.starts);
        restart(&mut self.ancestor_offsets);
        self.ancestors.clear();
        restart(&mut self.trees);
    }
}

/// Where a row of the comparison table comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparisonRef {
    /// Index of the group in the batch.
    pub group: usize,
    /// Index into [`crate::data::tokenized::TokenizedGroup::comparisons`].
    pub index: usize,
}

/// Comparisons of a batch, as in [`crate::backend::contract::Comparisons`]. `kind_scale` is not here: it depends on the
/// whole global batch, see [`ComparisonTable::counts`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ComparisonTable {
    /// (comparisons, TERMS) index of a sequence of the batch; -1 in unused slots
    pub term_sequence: Vec<i32>,
    /// (comparisons, TERMS) +1 or -1, doubled for detached terms; 0 in unused slots
    pub term_sign: Vec<i32>,
    /// (comparisons)
    pub kind: Vec<i32>,
    /// (comparisons)
    pub scale: Vec<f64>,
    /// (comparisons)
    pub margin: Vec<f64>,
    /// (comparisons)
    pub weight: Vec<f64>,
    /// (comparisons, 2) infinite where the row names no bounds
    pub detached_clip: Vec<f64>,
    /// (seqs + 1)
    pub use_offsets: Vec<i32>,
    /// (terms used, detached ones included) `comparison * TERMS + slot`, ascending for each sequence
    pub uses: Vec<i32>,
    /// (comparisons)
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
        restart(&mut self.use_offsets);
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

/// A packed batch on the host. [`super::pack_into`] fills it and keeps its memory from batch to batch; a default one holds
/// nothing and becomes a valid empty batch by [`Batch::clear`].
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Number of groups.
    pub groups: usize,
    /// (groups) where the head rows and sequences of each end
    pub group_ends: Vec<GroupEnd>,
    /// (tokens)
    pub ids: Vec<i32>,
    /// (tokens) counted along the path of the tree
    pub positions: Vec<i32>,
    /// token rows grouped by token id
    pub id_runs: RunTable,
    pub tree: TreeTable,
    /// Visible (query, key) pairs.
    pub pairs: u64,
    /// Most tokens on a path from a root to the end of a segment; every position is below it.
    pub longest_path: usize,
    /// (head rows) token row that predicts; no head rows under [`super::Scoring::Reward`]
    pub source: Vec<i32>,
    /// (head rows) token id predicted
    pub target: Vec<i32>,
    /// head rows grouped by `source`
    pub head_runs: RunTable,
    /// (seqs + 1) head rows of each sequence, in token order
    pub seq_offsets: Vec<i32>,
    /// (seqs) row of each sequence's last token, no row twice; empty under [`super::Scoring::LogProb`]
    pub last_rows: Vec<i32>,
    /// (seqs) in group order, then in the order of [`crate::data::tokenized::TokenizedGroup::sequences`]
    pub sequences: Vec<SequenceRef>,
    pub comparisons: ComparisonTable,
    /// Rows that the same sequences need without sharing; with it they take [`Batch::tokens`].
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
        self.tree.clear();
        self.pairs = 0;
        self.longest_path = 0;
        self.source.clear();
        self.target.clear();
        self.head_runs.clear();
        restart(&mut self.seq_offsets);
        self.last_rows.clear();
        self.sequences.clear();
        self.comparisons.clear();
        self.tokens_unshared = 0;
    }

    /// Token rows.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Segments.
    pub fn segments(&self) -> usize {
        self.tree.starts.len().saturating_sub(1)
    }

    /// Trees.
    pub fn trees(&self) -> usize {
        self.tree.trees.len().saturating_sub(1)
    }

    /// Rows of the vocabulary head.
    pub fn head_rows(&self) -> usize {
        self.source.len()
    }

    /// Sequences.
    pub fn seqs(&self) -> usize {
        self.sequences.len()
    }

    /// Rows of the comparison table.
    pub fn comparison_count(&self) -> usize {
        self.comparisons.kind.len()
    }
}

/// Makes an offset table that of zero items.
fn restart(offsets: &mut Vec<i32>) {
    offsets.clear();
    offsets.push(0);
}
