//! Contracts of attention over prefix trees: sequences with a common prefix share its tokens.
//!
//! A batch is a list of segments, which are runs of tokens without a branch. Segment s occupies the
//! rows `starts[s]..starts[s + 1]`. Its ancestors, root first, are
//! `ancestors[ancestor_offsets[s]..ancestor_offsets[s + 1]]`; they always come earlier in the
//! batch. A query attends to all tokens of its segment's ancestors and, causally, to its own
//! segment. A plain causal sequence is a segment without ancestors. The segments
//! `trees[t]..trees[t + 1]` form tree t and attend to nothing outside it.
//!
//! With a sliding window of w, a query sees the keys of its path at distances below w: itself and the
//! w - 1 positions before it. Distances are counted along the path.

use super::{Precision, Result, Tolerance, check_softcap, expect, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Sizes of [`AttentionFwd`] and [`AttentionBwd`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Number of segments in all trees.
    pub segments: usize,
    /// Total length of all ancestor lists.
    pub ancestors: usize,
    /// Number of trees.
    pub trees: usize,
    /// Number of visible (query, key) pairs, for the FLOPs.
    pub pairs: u64,
    /// Largest number of tokens on a path from a root to the end of a segment.
    pub longest_path: usize,
    /// Softmax scale, usually 1 / sqrt(head_dim).
    pub scale: f64,
    /// Sliding window: maximum number of keys that a query sees. `None` for all keys of its path.
    pub window: Option<usize>,
    /// Soft cap c: the softmax is computed over `c tanh(s / c)` for scaled scores s.
    pub softcap: Option<f64>,
}

impl AttentionDims {
    /// Heads of a fused row: queries, keys and values.
    pub fn fused_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// Bytes of the forward: q, k, v read once, o written.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        (self.tokens * self.head_dim * (2 * self.heads + 2 * self.kv_heads)) as u64 * precision.act_bytes()
    }

    /// FLOPs of the forward; the backward needs 2.5 times as many.
    pub(super) fn flops(&self) -> u64 {
        4 * self.head_dim as u64 * self.heads as u64 * self.pairs
    }

    /// Tolerance of `o` for inputs of order one. The error comes from scores of head_dim terms, a softmax
    /// over the path and a weighted mean.
    ///
    /// In bf16 the probabilities are rounded before the weighted mean, each by at most the roundoff of `Act`.
    /// They sum to 1, so a mean of values of order one is off by at most that roundoff, even if it is near 0.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        let sums = Tolerance::dot(precision, self.head_dim + self.longest_path).scaled(2.0);
        Tolerance { atol: sums.atol + Self::rounding(precision), ..sums }
    }

    /// Tolerance of `lse`, which is stored as `Acc` and does not depend on rounded probabilities.
    pub fn lse_tolerance(&self, precision: Precision) -> Tolerance {
        let precision = if precision == Precision::Bf16 { Precision::F32 } else { precision };
        self.tolerance(precision)
    }

    /// Tolerance of `dqkv` for inputs of order one. A key's gradient sums dot products of head_dim terms over
    /// all queries that see the key, in `group` query heads.
    ///
    /// In bf16 the probabilities P and the score gradients dS are rounded for these sums, and `delta = do ·
    /// o` uses a rounded `o`. The relative error of each term is at most u, the roundoff of `Act`. The terms
    /// are of order P, so the errors add up like a random walk to u sqrt(sum of P²). For a query, P sums to 1
    /// and the error is at most u. For a key, P falls like 1 / position of the query and the error is about u
    /// sqrt(group). The factor 4 covers the largest error among many elements.
    pub fn gradient_tolerance(&self, precision: Precision) -> Tolerance {
        let group = (self.heads / self.kv_heads.max(1)).max(1) as f64;
        let queries = (self.tokens as f64 * group).max(1.0);
        let sums = Tolerance::dot(precision, self.head_dim + self.longest_path).scaled(4.0 * queries.sqrt());
        Tolerance { atol: sums.atol + 4.0 * group.sqrt() * Self::rounding(precision), ..sums }
    }

    /// Relative error of a stored probability: the roundoff of `Act` in bf16, else 0.
    fn rounding(precision: Precision) -> f64 {
        if precision == Precision::Bf16 { precision.act_roundoff() } else { 0.0 }
    }

    fn check(&self, op: &'static str) -> Result<()> {
        check_window(op, self.window)?;
        check_softcap(op, self.softcap)?;
        check_heads(op, self.heads, self.kv_heads)
    }
}

fn check_window(op: &'static str, window: Option<usize>) -> Result<()> {
    expect(op, "window", window != Some(0), "at least 1", "0")
}

fn check_heads(op: &'static str, heads: usize, kv_heads: usize) -> Result<()> {
    let divides = kv_heads > 0 && heads.is_multiple_of(kv_heads);
    expect(op, "heads", divides, "a multiple of kv_heads", format!("{heads} with {kv_heads} kv_heads"))
}

/// Segments of a batch, their ancestors and their trees.
pub struct Tree<'a, I> {
    /// (segments + 1)
    pub starts: View<'a, I>,
    /// (segments + 1)
    pub ancestor_offsets: View<'a, I>,
    /// (ancestors)
    pub ancestors: View<'a, I>,
    /// (trees + 1)
    pub trees: View<'a, I>,
}

impl<I> Clone for Tree<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Tree<'_, I> {}

impl<I> Tree<'_, I> {
    fn check(&self, op: &'static str, d: &AttentionDims) -> Result<()> {
        expect_len(op, "tree.starts", self.starts.len, d.segments + 1)?;
        expect_len(op, "tree.ancestor_offsets", self.ancestor_offsets.len, d.segments + 1)?;
        expect_len(op, "tree.ancestors", self.ancestors.len, d.ancestors)?;
        expect_len(op, "tree.trees", self.trees.len, d.trees + 1)
    }
}

/// `o = softmax(scale q kᵀ) v` over the visible keys. `lse` is the logsumexp of the scaled scores of a query.
/// With a soft cap, both use the capped scores.
pub struct AttentionFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: AttentionDims,
    /// (tokens, heads + 2 kv_heads, head_dim): queries, then keys, then values
    pub qkv: View<'a, B::Act>,
    /// The prefix trees.
    pub tree: Tree<'a, B::Idx>,
    /// (tokens, heads, head_dim)
    pub o: ViewMut<'a, B::Act>,
    /// (heads, tokens)
    pub lse: ViewMut<'a, B::Acc>,
}

impl<B: Backend> AttentionFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("attention_fwd", self.dims);
        d.check(op)?;
        self.tree.check(op, &d)?;
        expect_len(op, "qkv", self.qkv.len, d.tokens * d.fused_heads() * d.head_dim)?;
        expect_len(op, "o", self.o.len, d.tokens * d.heads * d.head_dim)?;
        expect_len(op, "lse", self.lse.len, d.heads * d.tokens)
    }
}

/// Gradient of [`AttentionFwd`].
pub struct AttentionBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: AttentionDims,
    /// (tokens, heads, head_dim)
    pub do_: View<'a, B::Act>,
    /// (tokens, heads + 2 kv_heads, head_dim)
    pub qkv: View<'a, B::Act>,
    /// (tokens, heads, head_dim)
    pub o: View<'a, B::Act>,
    /// (heads, tokens)
    pub lse: View<'a, B::Acc>,
    /// The prefix trees.
    pub tree: Tree<'a, B::Idx>,
    /// (tokens, heads + 2 kv_heads, head_dim)
    pub dqkv: ViewMut<'a, B::Act>,
}

impl<B: Backend> AttentionBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        self.check_as("attention_bwd")
    }

    /// Checks the arguments. Errors name `op`, which may be a composite op with these arguments.
    pub(super) fn check_as(&self, op: &'static str) -> Result<()> {
        let d = self.dims;
        d.check(op)?;
        self.tree.check(op, &d)?;
        expect_len(op, "do", self.do_.len, d.tokens * d.heads * d.head_dim)?;
        expect_len(op, "qkv", self.qkv.len, d.tokens * d.fused_heads() * d.head_dim)?;
        expect_len(op, "o", self.o.len, d.tokens * d.heads * d.head_dim)?;
        expect_len(op, "lse", self.lse.len, d.heads * d.tokens)?;
        expect_len(op, "dqkv", self.dqkv.len, d.tokens * d.fused_heads() * d.head_dim)
    }
}

/// Sizes of [`AttentionCachedFwd`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionCachedDims {
    /// Number of new tokens in all sequences.
    pub tokens: usize,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Number of sequences.
    pub sequences: usize,
    /// Total number of spans of all paths.
    pub spans: usize,
    /// Rows of the cache.
    pub slots: usize,
    /// Number of visible (query, key) pairs, for the FLOPs.
    pub pairs: u64,
    /// Number of cache rows that at least one new token of a sequence sees, summed over the sequences, for
    /// the byte count.
    pub keys: u64,
    /// Number of rows on the longest path.
    pub longest_path: usize,
    /// Softmax scale, usually 1 / sqrt(head_dim).
    pub scale: f64,
    /// Sliding window: maximum number of keys that a query sees. `None` for all keys of its path.
    pub window: Option<usize>,
    /// Soft cap c: the softmax is computed over `c tanh(s / c)` for scaled scores s.
    pub softcap: Option<f64>,
}

impl AttentionCachedDims {
    /// Heads of a fused row: queries, keys and values.
    pub fn fused_heads(&self) -> usize {
        self.heads + 2 * self.kv_heads
    }

    /// Elements of a row of the cache.
    pub fn cache_width(&self) -> usize {
        2 * self.kv_heads * self.head_dim
    }

    /// Bytes moved. qkv is read and o written once, and new keys and values are written to the cache. The
    /// visible keys and values of every path are read once. A row shared by several sequences counts once for
    /// each.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        let rows = self.tokens * self.head_dim * (self.fused_heads() + self.heads + 2 * self.kv_heads);
        (rows as u64 + self.keys * self.cache_width() as u64) * precision.act_bytes()
    }

    pub(super) fn flops(&self) -> u64 {
        4 * self.head_dim as u64 * self.heads as u64 * self.pairs
    }

    /// Tolerance of `o` for inputs of order one, as in [`AttentionDims::tolerance`].
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        let sums = Tolerance::dot(precision, self.head_dim + self.longest_path).scaled(2.0);
        Tolerance { atol: sums.atol + AttentionDims::rounding(precision), ..sums }
    }
}

/// Cache rows of the sequences of a call. The path of sequence s is the list of spans
/// `span_offsets[s]..span_offsets[s + 1]`, in order. A span is a range of consecutive cache rows. The last
/// rows of the path belong to the sequence's new tokens, in order. A token sees its row of the path and all
/// rows before it. With a window, it sees only the last `window` of these rows.
pub struct Paths<'a, I> {
    /// (sequences + 1) first new token of each sequence
    pub starts: View<'a, I>,
    /// (sequences + 1)
    pub span_offsets: View<'a, I>,
    /// (spans, 2) first row, and the row after the last one
    pub spans: View<'a, I>,
    /// (tokens) row of the cache of each new token, all distinct
    pub slots: View<'a, I>,
}

impl<I> Clone for Paths<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Paths<'_, I> {}

/// Attention of new tokens over a KV cache. Stores the keys and values of the new tokens in `cache`. Then
/// computes `o = softmax(scale q kᵀ) v` over the rows that each token sees. Paths may share rows, but a path
/// must not contain a row that the same call stores for another sequence.
pub struct AttentionCachedFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: AttentionCachedDims,
    /// (tokens, heads + 2 kv_heads, head_dim): queries, then keys, then values
    pub qkv: View<'a, B::Act>,
    /// Paths of the new tokens.
    pub paths: Paths<'a, B::Idx>,
    /// (slots, 2 kv_heads, head_dim): keys, then values
    pub cache: ViewMut<'a, B::Act>,
    /// (tokens, heads, head_dim)
    pub o: ViewMut<'a, B::Act>,
}

impl<B: Backend> AttentionCachedFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("attention_cached_fwd", self.dims);
        check_window(op, d.window)?;
        check_softcap(op, d.softcap)?;
        check_heads(op, d.heads, d.kv_heads)?;
        expect_len(op, "paths.starts", self.paths.starts.len, d.sequences + 1)?;
        expect_len(op, "paths.span_offsets", self.paths.span_offsets.len, d.sequences + 1)?;
        expect_len(op, "paths.spans", self.paths.spans.len, 2 * d.spans)?;
        expect_len(op, "paths.slots", self.paths.slots.len, d.tokens)?;
        expect_len(op, "qkv", self.qkv.len, d.tokens * d.fused_heads() * d.head_dim)?;
        expect_len(op, "cache", self.cache.len, d.slots * d.cache_width())?;
        expect_len(op, "o", self.o.len, d.tokens * d.heads * d.head_dim)
    }
}
