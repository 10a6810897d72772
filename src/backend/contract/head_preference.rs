//! Contract of the composite op that computes the vocabulary head and the loss over its log-probs. Also
//! splits a batch into chunks of whole preference groups.

use std::ops::Range;

use super::{
    Comparisons, HeadDims, KINDS, Link, PairWeights, Precision, PreferenceFwd, ROW_STATS, Reduce, Result, Runs,
    SUM_FIELDS, TERMS, Tail, Tolerance, WeightedCurve, check_softcap, curve, expect, expect_len,
};
use crate::backend::{Backend, View, ViewMut, Write};

const OP: &str = "head_preference";

/// End of a preference group in a batch. A group starts at the end of the previous group, and the first one
/// at 0. The ends are stored on the host, so that the host can split a batch without reading from the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupEnd {
    /// One past the last head row of the group.
    pub row: usize,
    /// One past the last sequence of the group.
    pub seq: usize,
}

/// Consecutive groups that are processed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Head rows of the chunk.
    pub rows: Range<usize>,
    /// Sequences of the chunk.
    pub seqs: Range<usize>,
}

/// Splits a batch into chunks of whole groups. A chunk receives groups as long as it has at most `max_rows`
/// head rows; a group with more rows is a separate chunk. A group without rows joins the previous chunk, or
/// the next one if it is at the start of the batch. A chunk therefore has no rows only if the batch has none.
/// A batch without groups has no chunks.
pub fn chunks_of(groups: &[GroupEnd], max_rows: usize) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut start = GroupEnd::default();
    for &end in groups {
        match chunks.last_mut() {
            Some(last) if end.row == start.row || last.rows.is_empty() || end.row - last.rows.start <= max_rows => {
                (last.rows.end, last.seqs.end) = (end.row, end.seq);
            }
            _ => chunks.push(Chunk { rows: start.row..end.row, seqs: start.seq..end.seq }),
        }
        start = end;
    }
    chunks
}

/// Comparisons of a [`HeadPreference`]: the arguments of [`PreferenceFwd`] other than the scores
/// and their gradients.
pub struct ComparisonLoss<'a, B: Backend> {
    /// Number of comparisons.
    pub comparisons: usize,
    /// Curves of the loss, at least one.
    pub curves: &'a [WeightedCurve],
    /// Function from log-ratios to the arguments of the curves.
    pub link: Link,
    /// Like [`PreferenceFwd::center`].
    pub center: f64,
    /// (seqs) scores of the frozen reference model; absent for reference-free training
    pub reference: Option<View<'a, B::Acc>>,
    /// (seqs) as [`PreferenceFwd::inverse_rows`]
    pub inverse_rows: Option<View<'a, B::Acc>>,
    /// Like [`PreferenceFwd::pair_weights`].
    pub pair_weights: Option<PairWeights<'a, B>>,
    /// Terms of the comparisons. All terms of a comparison are sequences of one group.
    pub table: Comparisons<'a, B>,
    /// (comparisons), overwritten
    pub loss: ViewMut<'a, B::Acc>,
    /// (comparisons), overwritten
    pub logit: ViewMut<'a, B::Acc>,
    /// (KINDS, SUM_FIELDS), overwritten
    pub sums: ViewMut<'a, B::Acc>,
}

impl<'a, B: Backend> ComparisonLoss<'a, B> {
    /// Arguments of [`PreferenceFwd`] for these comparisons; `score`, `direct` and `dscore` are
    /// (seqs).
    pub fn into_preference_fwd(
        self,
        score: View<'a, B::Acc>,
        direct: Option<View<'a, B::Acc>>,
        dscore: ViewMut<'a, B::Acc>,
    ) -> PreferenceFwd<'a, B> {
        PreferenceFwd {
            seqs: score.len,
            comparisons: self.comparisons,
            curves: self.curves,
            link: self.link,
            center: self.center,
            score,
            reference: self.reference,
            inverse_rows: self.inverse_rows,
            table: self.table,
            pair_weights: self.pair_weights,
            direct,
            loss: self.loss,
            logit: self.logit,
            dscore,
            sums: self.sums,
        }
    }
}

/// Vocabulary head, loss and the head's gradient in one op. The results equal, within
/// [`HeadPreferenceErrors`], the results of this sequence:
///
/// 1. [`HeadLogprobFwd`](super::HeadLogprobFwd): hidden rows -> `logp`, `lse`
/// 2. [`SegmentSumFwd`](super::SegmentSumFwd): `logp` -> `score`
/// 3. [`PreferenceFwd`]: `score` -> `loss`, `logit`, `sums`, `dscore`; without comparisons,
///    `direct` is used instead of `dscore`
/// 4. [`SegmentSumBwd`](super::SegmentSumBwd): `dscore` -> `dlogp`
/// 5. [`HeadLogprobBwd`](super::HeadLogprobBwd): `dlogp` -> `dhidden`, `dhead`
///
/// A fused backend can save one of the four GEMMs of steps 1 and 5. The gradient of a row is one
/// number per sequence, which depends only on the scores of the sequence's group:
///
/// ```text
/// for each Chunk of whole groups, in order:
///     compute the chunk's logits and keep them    // the whole batch's logits would not fit
///     logp -> score -> loss, dscore -> dlogp
///     turn the logits into dlogits
///     dhidden = dlogits head;  dhead += dlogitsᵀ hidden
/// ```
///
/// Head rows with the same source are in one group, so a chunk computes `dhidden` of its tokens
/// completely. `dhead` is accumulated over the chunks in order.
///
/// The scores of a frozen reference model are always computed by step 1. If the `logp` of a fused op has
/// different bits, the first loss of DPO is ln 2 only up to rounding.
pub struct HeadPreference<'a, B: Backend> {
    /// Sizes of the call.
    pub dims: HeadDims,
    /// Number of sequences.
    pub seqs: usize,
    /// Reduction from log-probs to scores.
    pub reduce: Reduce,
    /// Ends of the preference groups, in order. The rows and sequences of a group are contiguous.
    /// Padding after the last real group is also a group. The ends only decide where a batch may be
    /// split.
    pub groups: &'a [GroupEnd],
    /// (tokens, hidden)
    pub hidden: View<'a, B::Act>,
    /// (vocab, hidden)
    pub head: View<'a, B::Act>,
    /// (rows) row of `hidden`
    pub source: View<'a, B::Idx>,
    /// (rows) token id
    pub target: View<'a, B::Idx>,
    /// head rows, grouped by hidden row
    pub runs: Runs<'a, B::Idx>,
    /// (seqs + 1) CSR offsets of the head rows of each sequence
    pub seq_offsets: View<'a, B::Idx>,
    /// Like [`SegmentSumFwd::tail`](super::SegmentSumFwd::tail).
    pub tail: Option<Tail<'a, B>>,
    /// `None` if `direct` gives the gradient of the scores, as for next-token likelihood.
    pub comparison: Option<ComparisonLoss<'a, B>>,
    /// (seqs) gradient of each score from other losses; required without comparisons, because it is
    /// then the whole gradient
    pub direct: Option<View<'a, B::Acc>>,
    /// (rows), overwritten
    pub logp: ViewMut<'a, B::Acc>,
    /// (rows), overwritten
    pub lse: ViewMut<'a, B::Acc>,
    /// (ROW_STATS, rows) as [`HeadLogprobFwd::stats`](super::HeadLogprobFwd::stats)
    pub stats: Option<ViewMut<'a, B::Acc>>,
    /// (rows) gradient of `logp`, overwritten for rows that belong to a sequence
    pub dlogp: ViewMut<'a, B::Acc>,
    /// (seqs), overwritten
    pub score: ViewMut<'a, B::Acc>,
    /// (seqs) gradient of `score`, overwritten; unchanged without comparisons
    pub dscore: ViewMut<'a, B::Acc>,
    /// (tokens, hidden), overwritten; zero for hidden rows without a head row
    pub dhidden: ViewMut<'a, B::Act>,
    /// (vocab, hidden); `None` for a frozen head, which gets no gradient
    pub dhead: Option<ViewMut<'a, B::Acc>>,
    /// Whether `dhead` is replaced or added to.
    pub dhead_write: Write,
}

impl<B: Backend> HeadPreference<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (d, s) = (self.dims, self.seqs);
        check_softcap(OP, d.softcap)?;
        expect_len(OP, "hidden", self.hidden.len, d.tokens * d.hidden)?;
        expect_len(OP, "head", self.head.len, d.vocab * d.hidden)?;
        expect_len(OP, "source", self.source.len, d.rows)?;
        expect_len(OP, "target", self.target.len, d.rows)?;
        self.runs.check(OP, d.rows)?;
        expect_len(OP, "seq_offsets", self.seq_offsets.len, s + 1)?;
        if let Some(c) = &self.comparison {
            expect_len(OP, "reference", c.reference.map_or(s, |r| r.len), s)?;
            expect_len(OP, "inverse_rows", c.inverse_rows.map_or(s, |r| r.len), s)?;
            c.pair_weights.map_or(Ok(()), |weights| weights.check(OP, s))?;
            c.table.check(OP, s, c.comparisons)?;
            expect_len(OP, "loss", c.loss.len, c.comparisons)?;
            expect_len(OP, "logit", c.logit.len, c.comparisons)?;
            expect_len(OP, "sums", c.sums.len, KINDS * SUM_FIELDS)?;
            curve::check(OP, c.curves, c.link, c.inverse_rows.is_some())?;
        }
        self.tail.map_or(Ok(()), |tail| tail.check(OP, s))?;
        let given = self.comparison.is_some() || self.direct.is_some();
        expect(OP, "direct", given, "a gradient of the scores, because the batch has no comparisons", "none")?;
        expect_len(OP, "direct", self.direct.map_or(s, |r| r.len), s)?;
        expect_len(OP, "logp", self.logp.len, d.rows)?;
        expect_len(OP, "lse", self.lse.len, d.rows)?;
        expect_len(OP, "stats", self.stats.as_ref().map_or(ROW_STATS * d.rows, |s| s.len), ROW_STATS * d.rows)?;
        expect_len(OP, "dlogp", self.dlogp.len, d.rows)?;
        expect_len(OP, "score", self.score.len, s)?;
        expect_len(OP, "dscore", self.dscore.len, s)?;
        expect_len(OP, "dhidden", self.dhidden.len, d.tokens * d.hidden)?;
        expect_len(OP, "dhead", self.dhead.as_ref().map_or(d.vocab * d.hidden, |g| g.len), d.vocab * d.hidden)?;
        self.check_groups()
    }

    /// Checks that the ends of the groups ascend and that the last group ends with the batch.
    fn check_groups(&self) -> Result<()> {
        let mut last = GroupEnd::default();
        for (i, &end) in self.groups.iter().enumerate() {
            let ascending = end.row >= last.row && end.seq >= last.seq;
            let expected = format!("the end of group {i} at row {} and sequence {} or later", last.row, last.seq);
            expect(OP, "groups", ascending, expected, format!("row {} and sequence {}", end.row, end.seq))?;
            last = end;
        }
        let complete = (last.row, last.seq) == (self.dims.rows, self.seqs);
        let expected = format!("the last end at row {} and sequence {}", self.dims.rows, self.seqs);
        expect(OP, "groups", complete, expected, format!("row {} and sequence {}", last.row, last.seq))
    }
}

/// Quantities that bound the errors of a [`HeadPreference`], for hidden rows and vocabulary logits
/// of order one.
#[derive(Clone, Copy, Debug)]
pub struct HeadPreferenceErrors {
    /// Sizes of the call.
    pub dims: HeadDims,
    /// Number of head rows of the longest sequence.
    pub longest: usize,
    /// Number of comparisons.
    pub comparisons: usize,
    /// Largest `scale` of a comparison.
    pub scale: f64,
    /// Largest magnitude of a term `scale * (score - reference)` and of a comparison's sum of
    /// terms.
    pub logits: f64,
    /// Largest derivative of a loss with respect to its logit.
    pub loss_slope: f64,
    /// Largest magnitude of `dscore`, or of `direct` if it is used instead.
    pub slope: f64,
    /// Largest derivative of an element of `dscore` with respect to a logit.
    pub curvature: f64,
}

impl HeadPreferenceErrors {
    /// Tolerance of an output, given by the name of its field. Log-probs are sums in `Acc`, whatever the type
    /// of activations, so the outputs derived from them (`score` to `dlogp`) have the rounding errors of
    /// `Acc`. A backend may compute the gradients from terms stored as `Act`; their errors follow
    /// [`HeadDims::gradient_tolerance`].
    pub fn tolerance(&self, precision: Precision, output: &str) -> Tolerance {
        let acc_precision = if precision == Precision::Bf16 { Precision::F32 } else { precision };
        let rows = self.longest.max(1);
        // Typical magnitude of a log-prob over the vocabulary.
        let logp = (self.dims.vocab.max(2) as f64).ln() + 4.0;
        // The errors of the rows are independent. The error of the summation grows with the sum.
        let rows_error = (rows as f64).sqrt() * self.dims.tolerance(acc_precision).allowed(logp);
        let score_error = rows_error + Tolerance::dot(acc_precision, rows).atol * rows as f64 * logp;
        let terms = Tolerance::dot(acc_precision, TERMS);
        let logit_error = TERMS as f64 * self.scale * score_error + terms.atol * self.logits;
        let loss_error = self.loss_slope * logit_error;
        let slope_error = self.curvature * logit_error;
        let acc = |atol| Tolerance { atol: atol + terms.atol, rtol: terms.rtol };
        match output {
            "logp" | "lse" => self.dims.tolerance(precision),
            "stats" => self.dims.stats_tolerance(precision),
            "score" => acc(score_error),
            "logit" => acc(logit_error),
            "loss" => acc(loss_error),
            "sums" => acc(self.comparisons.max(1) as f64 * loss_error.max(logit_error)),
            "dscore" | "dlogp" => acc(slope_error),
            _ => {
                let terms = if output == "dhead" { self.dims.rows } else { 16 };
                let gradient = self.dims.gradient_tolerance(precision, terms);
                let slopes_error = 8.0 * (terms as f64).sqrt() * slope_error;
                Tolerance { atol: self.slope * gradient.atol + slopes_error, ..gradient }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups from pairs of (rows, sequences).
    fn groups(sizes: &[(usize, usize)]) -> Vec<GroupEnd> {
        let sum = |end: &mut GroupEnd, &(rows, seqs): &(usize, usize)| {
            *end = GroupEnd { row: end.row + rows, seq: end.seq + seqs };
            Some(*end)
        };
        sizes.iter().scan(GroupEnd::default(), sum).collect()
    }

    fn cut(sizes: &[(usize, usize)], max_rows: usize) -> Vec<(Range<usize>, Range<usize>)> {
        chunks_of(&groups(sizes), max_rows).into_iter().map(|chunk| (chunk.rows, chunk.seqs)).collect()
    }

    #[test]
    fn chunks_hold_as_many_whole_groups_as_fit() {
        let sizes = [(3, 2), (4, 1), (2, 2), (5, 3)];
        assert_eq!(cut(&sizes, 7), [(0..7, 0..3), (7..14, 3..8)]);
        assert_eq!(cut(&sizes, 9), [(0..9, 0..5), (9..14, 5..8)]);
        assert_eq!(cut(&sizes, 6), [(0..3, 0..2), (3..9, 2..5), (9..14, 5..8)]);
        assert_eq!(cut(&sizes, 14), [(0..14, 0..8)]);
        assert_eq!(cut(&sizes, usize::MAX), [(0..14, 0..8)]);
    }

    #[test]
    fn a_group_larger_than_a_chunk_has_its_own_chunk() {
        assert_eq!(cut(&[(1, 1), (9, 2), (1, 1), (2, 1)], 4), [(0..1, 0..1), (1..10, 1..3), (10..13, 3..5)]);
        assert_eq!(cut(&[(9, 2)], 4), [(0..9, 0..2)]);
        assert_eq!(cut(&[(2, 1), (1, 1)], 0), [(0..2, 0..1), (2..3, 1..2)]);
    }

    #[test]
    fn groups_without_rows_join_another_chunk() {
        assert_eq!(cut(&[], 4), []);
        assert_eq!(cut(&[(0, 2), (0, 0), (0, 1)], 4), [(0..0, 0..3)]);
        assert_eq!(cut(&[(0, 2), (9, 1), (0, 3), (4, 1), (0, 1)], 4), [(0..9, 0..6), (9..13, 6..8)]);
        assert_eq!(cut(&[(4, 1), (0, 1)], 4), [(0..4, 0..2)]);
    }
}
