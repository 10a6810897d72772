//! Contracts of the vocabulary head, and of log-probs from stored logits, with which tests and benchmarks
//! compare the head.

use super::{Precision, Result, Runs, Tolerance, check_softcap, expect_len};
use crate::backend::{Backend, View, ViewMut, Write};

/// Sizes of the vocabulary head. A head row is a (hidden row, target token) pair. Several head rows
/// may share a hidden row: with prefix sharing, the last token of a prompt predicts the first token
/// of every response to it.
#[derive(Clone, Copy, Debug)]
pub struct HeadDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// Number of head rows.
    pub rows: usize,
    /// Soft cap c: the softmax is computed over `c tanh(z / c)` for logits z.
    pub softcap: Option<f64>,
}

impl HeadDims {
    /// Bytes of the forward: hidden rows, head and indices read once, results written.
    pub(super) fn bytes(&self, precision: Precision) -> u64 {
        let (r, h, v) = (self.rows as u64, self.hidden as u64, self.vocab as u64);
        (r * h + v * h) * precision.act_bytes() + r * (8 + 2 * precision.acc_bytes())
    }

    /// FLOPs of the forward. The two GEMMs of the backward cost twice as many, plus those of the recomputed
    /// logits.
    pub(super) fn flops(&self) -> u64 {
        2 * self.rows as u64 * self.hidden as u64 * self.vocab as u64
    }

    /// Tolerance of `logp` and `lse` for logits of order one.
    pub fn tolerance(&self, precision: Precision) -> Tolerance {
        Tolerance::dot(precision, self.hidden).scaled(4.0)
    }

    /// Tolerance of the statistics of a row. The derivative of the entropy with respect to a logit is a few
    /// times that of a log-prob.
    pub fn stats_tolerance(&self, precision: Precision) -> Tolerance {
        self.tolerance(precision).scaled(4.0)
    }

    /// Tolerance of gradients whose elements are sums of `terms` products, for inputs of order one. A backend
    /// may store dlogits as `Act` between two GEMMs. The rounding error of a target's dlogit then stays in
    /// the sum, however small the sum is. The largest of many products of two standard normal values is about
    /// 8, which bf16 rounds by up to 4 / 256.
    pub fn gradient_tolerance(&self, precision: Precision, terms: usize) -> Tolerance {
        let dot = Tolerance::dot(precision, self.hidden + terms).scaled(2.0);
        Tolerance { atol: dot.atol + 4.0 * precision.act_roundoff(), ..dot }
    }
}

/// Number of statistics of a head row.
pub const ROW_STATS: usize = 3;

/// Log-probabilities of target tokens without storing logits.
///
/// The statistics of a row are for logs only and have no gradient. They use the logits z after the soft cap:
///
/// - `entropy`: entropy of the softmax, in nats. A logit of -inf adds 0.
/// - `mean_logit`: mean of z over the vocabulary.
/// - `is_top1`: 1 if the target has the largest logit (the first one if several are equal), else 0.
///
/// The other results have the same bits with and without the statistics.
pub struct HeadLogprobFwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: HeadDims,
    /// (tokens, hidden)
    pub hidden: View<'a, B::Act>,
    /// (vocab, hidden)
    pub head: View<'a, B::Act>,
    /// (rows) row of `hidden`
    pub source: View<'a, B::Idx>,
    /// (rows) token id
    pub target: View<'a, B::Idx>,
    /// (rows)
    pub logp: ViewMut<'a, B::Acc>,
    /// (rows)
    pub lse: ViewMut<'a, B::Acc>,
    /// (ROW_STATS, rows) `entropy`, `mean_logit`, `is_top1`; `None` if they are not wanted
    pub stats: Option<ViewMut<'a, B::Acc>>,
}

impl<B: Backend> HeadLogprobFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("head_logprob_fwd", self.dims);
        check_softcap(op, d.softcap)?;
        expect_len(op, "hidden", self.hidden.len, d.tokens * d.hidden)?;
        expect_len(op, "head", self.head.len, d.vocab * d.hidden)?;
        expect_len(op, "source", self.source.len, d.rows)?;
        expect_len(op, "target", self.target.len, d.rows)?;
        expect_len(op, "logp", self.logp.len, d.rows)?;
        expect_len(op, "lse", self.lse.len, d.rows)?;
        expect_len(op, "stats", self.stats.as_ref().map_or(ROW_STATS * d.rows, |s| s.len), ROW_STATS * d.rows)
    }
}

/// Gradient of [`HeadLogprobFwd`]. With `dlogits = dlogp (onehot(target) - softmax)`, times the slope of the
/// soft cap if there is one:
///
/// - `dhidden = dlogits head`, summed over the head rows of a hidden row in ascending order
/// - `dhead (+)= dlogitsᵀ hidden`
///
/// Without `dhead` the head is frozen: the op skips the head's gradient, and `dhidden` has the same bits as
/// with it.
pub struct HeadLogprobBwd<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: HeadDims,
    /// (tokens, hidden)
    pub hidden: View<'a, B::Act>,
    /// (vocab, hidden)
    pub head: View<'a, B::Act>,
    /// (rows)
    pub source: View<'a, B::Idx>,
    /// (rows)
    pub target: View<'a, B::Idx>,
    /// head rows, grouped by hidden row
    pub runs: Runs<'a, B::Idx>,
    /// (rows)
    pub lse: View<'a, B::Acc>,
    /// (rows)
    pub dlogp: View<'a, B::Acc>,
    /// (tokens, hidden), overwritten; zero for hidden rows without a head row
    pub dhidden: ViewMut<'a, B::Act>,
    /// (vocab, hidden); `None` for a frozen head
    pub dhead: Option<ViewMut<'a, B::Acc>>,
    /// Whether `dhead` is replaced or added to.
    pub dhead_write: Write,
}

impl<B: Backend> HeadLogprobBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, d) = ("head_logprob_bwd", self.dims);
        check_softcap(op, d.softcap)?;
        expect_len(op, "hidden", self.hidden.len, d.tokens * d.hidden)?;
        expect_len(op, "head", self.head.len, d.vocab * d.hidden)?;
        expect_len(op, "source", self.source.len, d.rows)?;
        expect_len(op, "target", self.target.len, d.rows)?;
        self.runs.check(op, d.rows)?;
        expect_len(op, "lse", self.lse.len, d.rows)?;
        expect_len(op, "dlogp", self.dlogp.len, d.rows)?;
        expect_len(op, "dhidden", self.dhidden.len, d.tokens * d.hidden)?;
        expect_len(op, "dhead", self.dhead.as_ref().map_or(d.vocab * d.hidden, |g| g.len), d.vocab * d.hidden)
    }
}

/// `lse[r] = logsumexp(logits[r])`, `logp[r] = logits[r][target[r]] - lse[r]`.
pub struct LogprobFwd<'a, B: Backend> {
    /// Number of rows.
    pub rows: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// (rows, vocab)
    pub logits: View<'a, B::Act>,
    /// (rows)
    pub target: View<'a, B::Idx>,
    /// (rows)
    pub logp: ViewMut<'a, B::Acc>,
    /// (rows)
    pub lse: ViewMut<'a, B::Acc>,
}

impl<B: Backend> LogprobFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "logprob_fwd";
        expect_len(op, "logits", self.logits.len, self.rows * self.vocab)?;
        expect_len(op, "target", self.target.len, self.rows)?;
        expect_len(op, "logp", self.logp.len, self.rows)?;
        expect_len(op, "lse", self.lse.len, self.rows)
    }
}

/// Gradient of [`LogprobFwd`], in place:
/// `logits[r] <- dlogp[r] (onehot(target[r]) - softmax(logits[r]))`.
pub struct LogprobBwd<'a, B: Backend> {
    /// Number of rows.
    pub rows: usize,
    /// Vocabulary size.
    pub vocab: usize,
    /// (rows)
    pub target: View<'a, B::Idx>,
    /// (rows)
    pub lse: View<'a, B::Acc>,
    /// (rows)
    pub dlogp: View<'a, B::Acc>,
    /// (rows, vocab)
    pub logits_to_dlogits: ViewMut<'a, B::Act>,
}

impl<B: Backend> LogprobBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "logprob_bwd";
        expect_len(op, "target", self.target.len, self.rows)?;
        expect_len(op, "lse", self.lse.len, self.rows)?;
        expect_len(op, "dlogp", self.dlogp.len, self.rows)?;
        expect_len(op, "logits", self.logits_to_dlogits.len, self.rows * self.vocab)
    }
}
