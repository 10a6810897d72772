//! Contracts of per-sequence sums and of the comparison loss.

use super::{Precision, Result, Tolerance, expect, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// What a sequence's score is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    Sum,
    Mean,
}

/// Per-sequence sum or mean of row values; a sequence without rows gives 0. `offsets` are CSR: the rows of sequence s
/// are `offsets[s]..offsets[s + 1]`.
pub struct SegmentSumFwd<'a, B: Backend> {
    pub rows: usize,
    pub seqs: usize,
    pub reduce: Reduce,
    /// (rows)
    pub values: View<'a, B::Acc>,
    /// (seqs + 1)
    pub offsets: View<'a, B::Idx>,
    /// (seqs)
    pub sums: ViewMut<'a, B::Acc>,
}

impl<B: Backend> SegmentSumFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "segment_sum_fwd";
        expect_len(op, "values", self.values.len, self.rows)?;
        expect_len(op, "offsets", self.offsets.len, self.seqs + 1)?;
        expect_len(op, "sums", self.sums.len, self.seqs)
    }
}

/// Gradient of [`SegmentSumFwd`].
pub struct SegmentSumBwd<'a, B: Backend> {
    pub rows: usize,
    pub seqs: usize,
    pub reduce: Reduce,
    /// (seqs)
    pub dsums: View<'a, B::Acc>,
    /// (seqs + 1)
    pub offsets: View<'a, B::Idx>,
    /// (rows)
    pub dvalues: ViewMut<'a, B::Acc>,
}

impl<B: Backend> SegmentSumBwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let op = "segment_sum_bwd";
        expect_len(op, "dsums", self.dsums.len, self.seqs)?;
        expect_len(op, "offsets", self.offsets.len, self.seqs + 1)?;
        expect_len(op, "dvalues", self.dvalues.len, self.rows)
    }
}

/// Loss as a function of the argument z of a comparison. Formulas and derivatives in `loss`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// `(1-e) softplus(-z) + e softplus(z)`; e = 0 is the logistic loss, e > 0 cDPO.
    Sigmoid { smoothing: f64 },
    /// `((1-e) softplus(-z) - e softplus(z)) / (1-2e)`, robust DPO (arXiv 2403.00409); e < 1/2.
    Robust { smoothing: f64 },
    /// `max(0, 1 - z)`.
    Hinge,
    /// `((z - 1/2) / beta)²`, IPO (arXiv 2310.12036), with z = beta * D and the comparison's scale as beta.
    Ipo,
}

impl Curve {
    /// Checks the range of its parameter.
    pub(super) fn check(self, op: &'static str) -> Result<()> {
        match self {
            Curve::Sigmoid { smoothing } => {
                expect(op, "smoothing", (0.0..=0.5).contains(&smoothing), "0 to 0.5", smoothing)
            }
            Curve::Robust { smoothing } => {
                expect(op, "smoothing", (0.0..0.5).contains(&smoothing), "at least 0, below 0.5", smoothing)
            }
            Curve::Hinge | Curve::Ipo => Ok(()),
        }
    }
}

/// Fields of one row of [`PreferenceFwd::sums`].
pub const SUM_FIELDS: usize = 5;
/// Sum of weight * f.
pub const SUM_LOSS: usize = 0;
/// Number of comparisons.
pub const SUM_COUNT: usize = 1;
/// Comparisons with a positive logit.
pub const SUM_CORRECT: usize = 2;
/// Comparisons with a logit of exactly 0.
pub const SUM_TIES: usize = 3;
/// Sum of logits.
pub const SUM_LOGIT: usize = 4;
/// Number of comparison kinds: base, intra, inter.
pub const KINDS: usize = 3;
/// Term slots of a comparison.
pub const TERMS: usize = 4;

/// Comparisons of a batch as tables.
pub struct Comparisons<'a, B: Backend> {
    /// (comparisons, TERMS) sequence of each term; -1 in unused slots
    pub term_sequence: View<'a, B::Idx>,
    /// (comparisons, TERMS) +1 or -1; +2 or -2 marks a detached term, which is a constant to the gradient
    pub term_sign: View<'a, B::Idx>,
    /// (comparisons) index of the kind
    pub kind: View<'a, B::Idx>,
    /// (comparisons) factor on `score - reference`: beta for DPO, 1 for rewards
    pub scale: View<'a, B::Acc>,
    /// (comparisons)
    pub margin: View<'a, B::Acc>,
    /// (comparisons)
    pub weight: View<'a, B::Acc>,
    /// (comparisons, 2) bounds of the signed, scaled sum of the detached terms
    pub detached_clip: View<'a, B::Acc>,
    /// (KINDS) weight of the kind divided by its number of comparisons in the global batch
    pub kind_scale: View<'a, B::Acc>,
    /// (seqs + 1) CSR over `uses`
    pub use_offsets: View<'a, B::Idx>,
    /// (terms used) `comparison * TERMS + slot` of each use of a sequence, in comparison order
    pub uses: View<'a, B::Idx>,
}

impl<B: Backend> Clone for Comparisons<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Comparisons<'_, B> {}

impl<B: Backend> Comparisons<'_, B> {
    /// Checks the lengths of the tables of `comparisons` comparisons over `seqs` sequences.
    pub(super) fn check(&self, op: &'static str, seqs: usize, comparisons: usize) -> Result<()> {
        expect_len(op, "term_sequence", self.term_sequence.len, comparisons * TERMS)?;
        expect_len(op, "term_sign", self.term_sign.len, comparisons * TERMS)?;
        expect_len(op, "kind", self.kind.len, comparisons)?;
        expect_len(op, "scale", self.scale.len, comparisons)?;
        expect_len(op, "margin", self.margin.len, comparisons)?;
        expect_len(op, "weight", self.weight.len, comparisons)?;
        expect_len(op, "detached_clip", self.detached_clip.len, 2 * comparisons)?;
        expect_len(op, "kind_scale", self.kind_scale.len, KINDS)?;
        expect_len(op, "use_offsets", self.use_offsets.len, seqs + 1)
    }
}

/// Comparison losses. With `rho_k = scale * (score_k - reference_k)`:
///
/// - `logit = sum over trained terms of sign_k rho_k + clip(sum over detached terms of sign_k rho_k)`
/// - `z = logit - margin`, `loss = weight * (f(z) + center * (sum of both scores)²)`; `center` on base pairs only
/// - `dscore_k = direct_k + sum over uses of kind_scale * d loss / d score_k`
///
/// A comparison of weight 0 contributes exactly 0 to loss and gradient whatever its scores are. A comparison of nonzero
/// weight whose logit or loss is not finite puts NaN into the gradient of its trained terms, even where the curve's slope would
/// be finite, so that the norm sees it and the update is skipped on the device.
pub struct PreferenceFwd<'a, B: Backend> {
    pub seqs: usize,
    pub comparisons: usize,
    pub curve: Curve,
    /// Coefficient of the squared sum of a base pair's two scores (arXiv 2312.09244); 0 for none.
    pub center: f64,
    /// (seqs)
    pub score: View<'a, B::Acc>,
    /// (seqs); absent for rewards and reference-free training
    pub reference: Option<View<'a, B::Acc>>,
    pub table: Comparisons<'a, B>,
    /// (seqs) gradient that other losses (likelihood term) put on each score
    pub direct: Option<View<'a, B::Acc>>,
    /// (comparisons)
    pub loss: ViewMut<'a, B::Acc>,
    /// (comparisons)
    pub logit: ViewMut<'a, B::Acc>,
    /// (seqs)
    pub dscore: ViewMut<'a, B::Acc>,
    /// (KINDS, SUM_FIELDS)
    pub sums: ViewMut<'a, B::Acc>,
}

impl<B: Backend> PreferenceFwd<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (op, s, c) = ("preference_fwd", self.seqs, self.comparisons);
        expect_len(op, "score", self.score.len, s)?;
        expect_len(op, "reference", self.reference.map_or(s, |r| r.len), s)?;
        self.table.check(op, s, c)?;
        expect_len(op, "direct", self.direct.map_or(s, |r| r.len), s)?;
        expect_len(op, "loss", self.loss.len, c)?;
        expect_len(op, "logit", self.logit.len, c)?;
        expect_len(op, "dscore", self.dscore.len, s)?;
        expect_len(op, "sums", self.sums.len, KINDS * SUM_FIELDS)?;
        self.curve.check(op)
    }

    /// Error allowed in loss and gradient for scores of magnitude `scores`.
    pub fn tolerance(precision: Precision, scores: f64) -> Tolerance {
        Tolerance::dot(precision, TERMS).scaled(scores.max(1.0))
    }
}
