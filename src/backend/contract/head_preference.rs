//! Contract of the vocabulary head with the loss over its log-probs as one op, and the cut of a batch into chunks of whole
//! preference groups.

use std::ops::Range;

use super::{
    Comparisons, Curve, HeadDims, KINDS, Precision, PreferenceFwd, Reduce, Result, Runs, SUM_FIELDS, TERMS, Tolerance,
    expect, expect_len,
};
use crate::backend::{Backend, View, ViewMut, Write};

const OP: &str = "head_preference";

/// Where a preference group ends in a batch; it begins where the group before it ends, the first at 0. The host knows the
/// ends, so that it can cut a batch without asking the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupEnd {
    /// Head row behind the group's last.
    pub row: usize,
    /// Sequence behind the group's last.
    pub seq: usize,
}

/// Neighbouring groups that are worked on at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Head rows.
    pub rows: Range<usize>,
    pub seqs: Range<usize>,
}

/// Cuts a batch between groups: each chunk takes as many whole groups as have at most `most_rows` head rows together, and a
/// group with more is a chunk of its own. A group without rows joins the chunk before it, or the first chunk, so no chunk is
/// without rows unless the batch is. No groups, no chunks.
pub fn chunks_of(groups: &[GroupEnd], most_rows: usize) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut start = GroupEnd::default();
    for &end in groups {
        match chunks.last_mut() {
            Some(last) if end.row == start.row || last.rows.is_empty() || end.row - last.rows.start <= most_rows => {
                (last.rows.end, last.seqs.end) = (end.row, end.seq);
            }
            _ => chunks.push(Chunk { rows: start.row..end.row, seqs: start.seq..end.seq }),
        }
        start = end;
    }
    chunks
}

/// The comparisons of a [`HeadPreference`]: what [`PreferenceFwd`] takes beside the scores.
pub struct ComparisonLoss<'a, B: Backend> {
    pub comparisons: usize,
    pub curve: Curve,
    /// As [`PreferenceFwd::center`].
    pub center: f64,
    /// (seqs); absent for reference-free training
    pub reference: Option<View<'a, B::Acc>>,
    /// The terms of a comparison are sequences of one group.
    pub table: Comparisons<'a, B>,
    /// (comparisons), overwritten
    pub loss: ViewMut<'a, B::Acc>,
    /// (comparisons), overwritten
    pub logit: ViewMut<'a, B::Acc>,
    /// (KINDS, SUM_FIELDS), overwritten
    pub sums: ViewMut<'a, B::Acc>,
}

impl<'a, B: Backend> ComparisonLoss<'a, B> {
    /// The same comparisons as an op of their own, over scores that are there: `score`, `direct` and `dscore` are (seqs).
    pub fn over(
        self,
        score: View<'a, B::Acc>,
        direct: Option<View<'a, B::Acc>>,
        dscore: ViewMut<'a, B::Acc>,
    ) -> PreferenceFwd<'a, B> {
        PreferenceFwd {
            seqs: score.len,
            comparisons: self.comparisons,
            curve: self.curve,
            center: self.center,
            score,
            reference: self.reference,
            table: self.table,
            direct,
            loss: self.loss,
            logit: self.logit,
            dscore,
            sums: self.sums,
        }
    }
}

/// Vocabulary head, loss and the head's gradient in one. The results are those of
///
/// 1. [`HeadLogprobFwd`](super::HeadLogprobFwd): hidden rows -> `logp`, `lse`
/// 2. [`SegmentSumFwd`](super::SegmentSumFwd): `logp` -> `score`
/// 3. [`PreferenceFwd`]: `score` -> `loss`, `logit`, `sums`, `dscore`; without comparisons `direct` stands for `dscore`
/// 4. [`SegmentSumBwd`](super::SegmentSumBwd): `dscore` -> `dlogp`
/// 5. [`HeadLogprobBwd`](super::HeadLogprobBwd): `dlogp` -> `dhidden`, `dhead`
///
/// within [`HeadPreferenceErrors`]. The gradient of a row is one number of its sequence, and that number depends on the
/// scores of the sequence's group alone. So a backend may take one [`Chunk`] of whole groups after the other: the logits of a
/// chunk are computed once, kept until the chunk's losses are known, and turned into its gradients, three products in place
/// of the four that 1 and 5 need (the logits of the whole batch would not fit, those of a chunk do). Rows of a source that is
/// shared lie in one group, so `dhidden` of a token is complete within a chunk; `dhead` is added up chunk by chunk in order.
///
/// The scores of a frozen reference come from call 1 alone. Where `logp` of this op is not the same bits, DPO's first loss is
/// ln 2 up to rounding instead of exactly.
pub struct HeadPreference<'a, B: Backend> {
    pub dims: HeadDims,
    pub seqs: usize,
    /// What a score is made of.
    pub reduce: Reduce,
    /// Ends of the preference groups in order. Rows and sequences of a group lie together; those behind the last real
    /// group, padding, are a group too. They decide where a batch may be cut and nothing else.
    pub groups: &'a [GroupEnd],
    /// (tokens, hidden)
    pub hidden: View<'a, B::Act>,
    /// (vocab, hidden)
    pub head: View<'a, B::Act>,
    /// (rows) a row of `hidden`
    pub source: View<'a, B::Idx>,
    /// (rows) a token id
    pub target: View<'a, B::Idx>,
    /// head rows grouped by their hidden row
    pub runs: Runs<'a, B::Idx>,
    /// (seqs + 1) CSR: the head rows of each sequence
    pub seq_offsets: View<'a, B::Idx>,
    /// `None` where the gradient of the scores is given, as that of next-token likelihood is.
    pub comparison: Option<ComparisonLoss<'a, B>>,
    /// (seqs) gradient that other losses put on each score; the whole gradient, and not to be left out, without comparisons
    pub direct: Option<View<'a, B::Acc>>,
    /// (rows), overwritten
    pub logp: ViewMut<'a, B::Acc>,
    /// (rows), overwritten
    pub lse: ViewMut<'a, B::Acc>,
    /// (rows) gradient of `logp`, overwritten for rows of a sequence
    pub dlogp: ViewMut<'a, B::Acc>,
    /// (seqs), overwritten
    pub score: ViewMut<'a, B::Acc>,
    /// (seqs) gradient of `score`, overwritten; left alone without comparisons
    pub dscore: ViewMut<'a, B::Acc>,
    /// (tokens, hidden), overwritten; zero where no head row points
    pub dhidden: ViewMut<'a, B::Act>,
    /// (vocab, hidden); `None` for a frozen head, whose gradient is not computed
    pub dhead: Option<ViewMut<'a, B::Acc>>,
    pub dhead_write: Write,
}

impl<B: Backend> HeadPreference<'_, B> {
    pub(crate) fn check(&self) -> Result<()> {
        let (d, s) = (self.dims, self.seqs);
        expect_len(OP, "hidden", self.hidden.len, d.tokens * d.hidden)?;
        expect_len(OP, "head", self.head.len, d.vocab * d.hidden)?;
        expect_len(OP, "source", self.source.len, d.rows)?;
        expect_len(OP, "target", self.target.len, d.rows)?;
        self.runs.check(OP, d.rows)?;
        expect_len(OP, "seq_offsets", self.seq_offsets.len, s + 1)?;
        if let Some(c) = &self.comparison {
            expect_len(OP, "reference", c.reference.map_or(s, |r| r.len), s)?;
            c.table.check(OP, s, c.comparisons)?;
            expect_len(OP, "loss", c.loss.len, c.comparisons)?;
            expect_len(OP, "logit", c.logit.len, c.comparisons)?;
            expect_len(OP, "sums", c.sums.len, KINDS * SUM_FIELDS)?;
            c.curve.check(OP)?;
        }
        let given = self.comparison.is_some() || self.direct.is_some();
        expect(OP, "direct", given, "a gradient of the scores, as there are no comparisons", "none")?;
        expect_len(OP, "direct", self.direct.map_or(s, |r| r.len), s)?;
        expect_len(OP, "logp", self.logp.len, d.rows)?;
        expect_len(OP, "lse", self.lse.len, d.rows)?;
        expect_len(OP, "dlogp", self.dlogp.len, d.rows)?;
        expect_len(OP, "score", self.score.len, s)?;
        expect_len(OP, "dscore", self.dscore.len, s)?;
        expect_len(OP, "dhidden", self.dhidden.len, d.tokens * d.hidden)?;
        expect_len(OP, "dhead", self.dhead.as_ref().map_or(d.vocab * d.hidden, |g| g.len), d.vocab * d.hidden)?;
        self.check_groups()
    }

    /// Groups follow one another and end with the batch.
    fn check_groups(&self) -> Result<()> {
        let mut last = GroupEnd::default();
        for (i, &end) in self.groups.iter().enumerate() {
            let rising = end.row >= last.row && end.seq >= last.seq;
            let from = format!("group {i} to end at row {} and sequence {} or later", last.row, last.seq);
            expect(OP, "groups", rising, from, format!("{}, {}", end.row, end.seq))?;
            last = end;
        }
        let whole = (last.row, last.seq) == (self.dims.rows, self.seqs);
        let ends = format!("groups up to row {} and sequence {}", self.dims.rows, self.seqs);
        expect(OP, "groups", whole, ends, format!("{}, {}", last.row, last.seq))
    }
}

/// What bounds the errors of a [`HeadPreference`] whose hidden rows and logits of words are of order one.
#[derive(Clone, Copy, Debug)]
pub struct HeadPreferenceErrors {
    pub dims: HeadDims,
    /// Rows of the longest sequence.
    pub longest: usize,
    pub comparisons: usize,
    /// Largest factor on a score in a comparison.
    pub scale: f64,
    /// Largest magnitude of a term `scale * (score - reference)` and of a sum of them.
    pub logits: f64,
    /// Most that a loss changes with its logit.
    pub loss_slope: f64,
    /// Largest magnitude of `dscore`, or of `direct` where it stands for it.
    pub slope: f64,
    /// Most that an element of `dscore` changes with a logit.
    pub curvature: f64,
}

impl HeadPreferenceErrors {
    /// Error allowed in an output, which is named as the field is. Log-probs are sums in the precision of `Acc` whatever the
    /// storage of activations is, so what follows from them (`score` to `dlogp`) has errors of `Acc`; the gradients, which a
    /// backend may make from terms stored as `Act`, have those of [`HeadDims::gradient_tolerance`].
    pub fn tolerance(&self, precision: Precision, output: &str) -> Tolerance {
        let of_acc = if precision == Precision::Bf16 { Precision::F32 } else { precision };
        let rows = self.longest.max(1);
        // A log-prob of so many words is about so large.
        let logp = (self.dims.vocab.max(2) as f64).ln() + 4.0;
        // Errors of a sequence's rows are independent; those of adding them up grow with the sum.
        let of_rows = (rows as f64).sqrt() * self.dims.tolerance(of_acc).allowed(logp);
        let of_score = of_rows + Tolerance::dot(of_acc, rows).atol * rows as f64 * logp;
        let terms = Tolerance::dot(of_acc, TERMS);
        let of_logit = TERMS as f64 * self.scale * of_score + terms.atol * self.logits;
        let of_loss = self.loss_slope * of_logit;
        let of_slope = self.curvature * of_logit;
        let acc = |atol| Tolerance { atol: atol + terms.atol, rtol: terms.rtol };
        match output {
            "logp" | "lse" => self.dims.tolerance(precision),
            "score" => acc(of_score),
            "logit" => acc(of_logit),
            "loss" => acc(of_loss),
            "sums" => acc(self.comparisons.max(1) as f64 * of_loss.max(of_logit)),
            "dscore" | "dlogp" => acc(of_slope),
            _ => {
                let terms = if output == "dhead" { self.dims.rows } else { 16 };
                let product = self.dims.gradient_tolerance(precision, terms);
                let of_slopes = 8.0 * (terms as f64).sqrt() * of_slope;
                Tolerance { atol: self.slope * product.atol + of_slopes, ..product }
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

    fn cut(sizes: &[(usize, usize)], most_rows: usize) -> Vec<(Range<usize>, Range<usize>)> {
        chunks_of(&groups(sizes), most_rows).into_iter().map(|chunk| (chunk.rows, chunk.seqs)).collect()
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
    fn a_group_larger_than_a_chunk_is_one_alone() {
        assert_eq!(cut(&[(1, 1), (9, 2), (1, 1), (2, 1)], 4), [(0..1, 0..1), (1..10, 1..3), (10..13, 3..5)]);
        assert_eq!(cut(&[(9, 2)], 4), [(0..9, 0..2)]);
        assert_eq!(cut(&[(2, 1), (1, 1)], 0), [(0..2, 0..1), (2..3, 1..2)]);
    }

    #[test]
    fn groups_without_rows_take_no_chunk() {
        assert_eq!(cut(&[], 4), []);
        assert_eq!(cut(&[(0, 2), (0, 0), (0, 1)], 4), [(0..0, 0..3)]);
        assert_eq!(cut(&[(0, 2), (9, 1), (0, 3), (4, 1), (0, 1)], 4), [(0..9, 0..6), (9..13, 6..8)]);
        assert_eq!(cut(&[(4, 1), (0, 1)], 4), [(0..4, 0..2)]);
    }
}
