//! Contract of the comparison losses.

use super::{Link, Precision, Result, Tolerance, WeightedCurve, curve, expect_len};
use crate::backend::{Backend, View, ViewMut};

/// Number of fields in a row of [`PreferenceFwd::sums`].
pub const SUM_FIELDS: usize = 5;
/// Field: sum of the losses, weights included.
pub const SUM_LOSS: usize = 0;
/// Field: number of comparisons.
pub const SUM_COUNT: usize = 1;
/// Field: number of comparisons with a positive logit.
pub const SUM_CORRECT: usize = 2;
/// Field: number of comparisons with a logit of exactly 0.
pub const SUM_TIES: usize = 3;
/// Field: sum of the logits.
pub const SUM_LOGIT: usize = 4;
/// Number of comparison kinds: base, intra and inter.
pub const KINDS: usize = 3;
/// Number of term slots of a comparison.
pub const TERMS: usize = 4;

/// Comparisons of a batch, as a structure of arrays.
pub struct Comparisons<'a, B: Backend> {
    /// (comparisons, TERMS) sequence of each term; -1 for an unused slot
    pub term_sequence: View<'a, B::Idx>,
    /// (comparisons, TERMS) +1 or -1; +2 or -2 for a detached term, which gets no gradient
    pub term_sign: View<'a, B::Idx>,
    /// (comparisons) kind, less than `KINDS`
    pub kind: View<'a, B::Idx>,
    /// (comparisons) factor on `score - reference`: beta for DPO, 1 for rewards
    pub scale: View<'a, B::Acc>,
    /// (comparisons) subtracted from the logit
    pub margin: View<'a, B::Acc>,
    /// (comparisons) factor on the loss
    pub weight: View<'a, B::Acc>,
    /// (comparisons, 2) lower and upper bound of the signed, scaled sum of the detached terms
    pub detached_clip: View<'a, B::Acc>,
    /// (KINDS) weight of the kind, divided by its number of comparisons in the global batch
    pub kind_scale: View<'a, B::Acc>,
    /// (seqs + 1) CSR offsets into `uses`
    pub use_offsets: View<'a, B::Idx>,
    /// (used slots) `comparison * TERMS + slot` of each use, grouped by sequence, then in comparison order
    pub uses: View<'a, B::Idx>,
}

impl<B: Backend> Clone for Comparisons<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Comparisons<'_, B> {}

impl<B: Backend> Comparisons<'_, B> {
    /// Checks the lengths of the arrays for `comparisons` comparisons over `seqs` sequences.
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

/// Per-sequence log-probs from which the weights of the comparisons are computed (WPO, arXiv 2406.11827). Let
/// `p` be a token's log-prob, and `q` its log-prob under doubled logits. Then `q - p` is the log of the
/// token's probability divided by the sum of the squared probabilities of all tokens.
pub struct PairWeights<'a, B: Backend> {
    /// (seqs) mean log-prob under doubled logits
    pub doubled: View<'a, B::Acc>,
    /// (seqs) mean log-prob
    pub plain: View<'a, B::Acc>,
}

impl<B: Backend> Clone for PairWeights<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for PairWeights<'_, B> {}

impl<B: Backend> PairWeights<'_, B> {
    /// Checks the lengths for `seqs` sequences.
    pub(super) fn check(&self, op: &'static str, seqs: usize) -> Result<()> {
        expect_len(op, "doubled", self.doubled.len, seqs)?;
        expect_len(op, "plain", self.plain.len, seqs)
    }
}

/// Comparison losses. For each curve and each term k, `rho_k = scale * link(score_k - reference_k)` where the
/// scores are those of the term's sequence. If the curve is per token, rho_k is divided by the number of head
/// rows of that sequence:
///
/// - `logit = sum over trained terms of sign_k rho_k`
///   `+ clip(sum over detached terms of sign_k rho_k)`
/// - `z = logit - margin`
/// - `a` and `b`: sums of rho over the trained terms of positive and of negative sign
/// - for a curve that sorts (AOT), z is `x - y`, where x and y have the same rank; the comparisons of one
///   kind that it sorts must have the same weight
/// - [`Curve::Kto`](super::Curve::Kto) has `z = logit - margin - sign scale KL`
/// - with [`PairWeights`], `weight` is multiplied by `exp(sum over terms of (doubled_k - plain_k))`, which
///   gets no gradient
/// - `loss = weight * sum over curves of curve weight * (f(z, a, b) + center * (sum of both scores)²)`,
///   with `center` for base pairs and the first curve only
/// - `dscore_k = direct_k + sum over the uses of sequence k of kind_scale * d loss / d score_k`
///
/// The returned `logit` is that of the first curve.
///
/// A comparison with weight 0 adds exactly 0 to loss and gradient, whatever its scores are. If the
/// weight is not 0 and the logit or loss is not finite, the gradient of the comparison's trained
/// terms is NaN, even if the slope of the curve is finite. The gradient norm is then NaN, and the
/// device skips the update.
pub struct PreferenceFwd<'a, B: Backend> {
    /// Number of sequences.
    pub seqs: usize,
    /// Number of comparisons.
    pub comparisons: usize,
    /// Curves of the loss, at least one.
    pub curves: &'a [WeightedCurve],
    /// Function from log-ratios to the arguments of the curves.
    pub link: Link,
    /// Coefficient of the squared sum of the two scores of a base pair (arXiv 2312.09244); 0 to
    /// disable.
    pub center: f64,
    /// (seqs)
    pub score: View<'a, B::Acc>,
    /// (seqs) scores of the frozen reference model; absent for rewards and reference-free training
    pub reference: Option<View<'a, B::Acc>>,
    /// (seqs) 1 / number of head rows of each sequence; needed if a curve is per token
    pub inverse_rows: Option<View<'a, B::Acc>>,
    /// The comparisons.
    pub table: Comparisons<'a, B>,
    /// Factors on the weights of the comparisons.
    pub pair_weights: Option<PairWeights<'a, B>>,
    /// (seqs) gradient of each score from other losses, such as the likelihood term
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
        expect_len(op, "inverse_rows", self.inverse_rows.map_or(s, |r| r.len), s)?;
        self.table.check(op, s, c)?;
        self.pair_weights.map_or(Ok(()), |weights| weights.check(op, s))?;
        expect_len(op, "direct", self.direct.map_or(s, |r| r.len), s)?;
        expect_len(op, "loss", self.loss.len, c)?;
        expect_len(op, "logit", self.logit.len, c)?;
        expect_len(op, "dscore", self.dscore.len, s)?;
        expect_len(op, "sums", self.sums.len, KINDS * SUM_FIELDS)?;
        curve::check(op, self.curves, self.link, self.inverse_rows.is_some())
    }

    /// Tolerance of loss and gradient for scores of magnitude `scores`.
    pub fn tolerance(precision: Precision, scores: f64) -> Tolerance {
        Tolerance::dot(precision, TERMS).scaled(scores.max(1.0))
    }
}
