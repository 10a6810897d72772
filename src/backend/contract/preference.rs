//! Contract of the comparison losses.

use super::{Curve, Precision, Result, Tolerance, expect_len};
use crate::backend::{Backend, View, ViewMut};

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
