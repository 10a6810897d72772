//! The vocabulary head fused with the loss over pairs.

use std::sync::Arc;

use super::head::{sample_vocabulary, targets};
use super::preference::{ComparisonTable, table_views};
use super::{Call, Part};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::bench::operand::{Axis, Cursor, Fill, HostRuns, ONE, Operand, Selection};

/// Maximum number of head rows of a response.
const RESPONSE: usize = 256;
/// Scale of scores in comparisons.
const SCALE: f64 = 0.1;

/// Head, logistic losses of pairs, and the head's gradient. The first rows of a pair's two
/// responses share the hidden row of the prompt's last token. The last pair has responses of one
/// token, so that the reference can check it.
#[derive(Clone, Debug)]
pub struct PreferenceHead {
    pub dims: HeadDims,
    /// (groups) number of head rows of each of the two responses
    pairs: Arc<Vec<[usize; 2]>>,
    ends: Arc<Vec<GroupEnd>>,
    source: Arc<Vec<i32>>,
    target: Arc<Vec<i32>>,
    /// Number of comparisons that the loss is averaged over.
    comparisons: usize,
    /// Whether only the head's gradient is computed, from given logsumexps and log-prob gradients.
    given: bool,
}

impl PreferenceHead {
    /// A head with `rows` head rows.
    pub fn new(rows: usize, hidden: usize, vocab: usize) -> Self {
        let last = rows.min(2);
        let response = (rows / 8).clamp(1, RESPONSE);
        let mut pairs = Vec::new();
        let mut left = rows - last;
        while left > 0 {
            let both = left.min(2 * response);
            pairs.push([both - both / 2, both / 2]);
            left -= both;
        }
        pairs.push([last - last / 2, last / 2]);
        let comparisons = pairs.len();
        Self::of_pairs(pairs, (hidden, vocab), targets(rows, vocab), comparisons)
    }

    fn of_pairs(pairs: Vec<[usize; 2]>, (hidden, vocab): (usize, usize), target: Vec<i32>, comparisons: usize) -> Self {
        let (mut source, mut ends, mut tokens) = (Vec::new(), Vec::new(), 0);
        for (group, &[chosen, rejected]) in pairs.iter().enumerate() {
            let prompt = tokens as i32;
            source.extend((0..chosen).map(|i| prompt + i as i32));
            tokens += chosen;
            let shared = usize::from(chosen > 0).min(rejected);
            source.extend((0..shared).map(|_| prompt));
            source.extend((0..rejected - shared).map(|i| (tokens + i) as i32));
            tokens += rejected - shared;
            ends.push(GroupEnd { row: source.len(), seq: 2 * (group + 1) });
        }
        Self {
            dims: HeadDims { tokens, hidden, vocab, rows: source.len(), softcap: None },
            pairs: pairs.into(),
            ends: ends.into(),
            source: source.into(),
            target: target.into(),
            comparisons,
            given: false,
        }
    }

    fn seqs(&self) -> usize {
        2 * self.pairs.len()
    }

    fn longest(&self) -> usize {
        self.pairs.iter().flatten().copied().max().unwrap_or(0)
    }

    /// Part with the last pair and the complete vocabulary.
    fn group_part(&self) -> Part<Self> {
        let (d, groups) = (self.dims, self.pairs.len());
        let pair = self.pairs[groups - 1];
        let rows = d.rows - pair[0] - pair[1]..d.rows;
        let target = self.target[rows.clone()].to_vec();
        let call = Self::of_pairs(vec![pair], (d.hidden, d.vocab), target, self.comparisons);
        let selection = Selection::default()
            .with(Axis::Token, (d.tokens - call.dims.tokens..d.tokens).collect())
            .with(Axis::Row, rows.collect())
            .with(Axis::Sequence, (self.seqs() - 2..self.seqs()).collect())
            .with(Axis::Comparison, vec![groups - 1]);
        let compared = &["loss", "logit", "logp", "lse", "dlogp", "score", "dscore", "dhidden"];
        Part { call, selection, compared }
    }

    /// Part with all head rows. Its vocabulary has the targets and a few other tokens. Logsumexps and
    /// log-prob gradients are given, because a smaller vocabulary has different logsumexps.
    fn vocab_part(&self) -> Part<Self> {
        let d = self.dims;
        let (ids, target) = sample_vocabulary(d.vocab, &self.target);
        let dims = HeadDims { vocab: ids.len(), ..d };
        let call = Self { dims, target: target.into(), given: true, ..self.clone() };
        Part { call, selection: Selection::default().with(Axis::Vocab, ids), compared: &["dhead"] }
    }
}

impl Call for PreferenceHead {
    fn op(&self) -> &'static str {
        "head_preference"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        vec![("rows", d.rows), ("hidden", d.hidden), ("vocab", d.vocab), ("seqs", self.seqs())]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let (t, h, v, r) =
            ((Axis::Token, d.tokens), (Axis::Whole, d.hidden), (Axis::Vocab, d.vocab), (Axis::Row, d.rows));
        let (s, c) = ((Axis::Sequence, self.seqs()), (Axis::Comparison, self.pairs.len()));
        let root = 1.0 / (d.hidden as f64).sqrt();
        let seq_ends = self.pairs.iter().flatten().scan(0, |end, &rows| {
            *end += rows as i32;
            Some(*end)
        });
        let offsets = std::iter::once(0).chain(seq_ends).collect();
        // The reference log-probs are close to the scores, so that no loss is saturated.
        let logp = -(d.vocab as f64).ln() - 0.5;
        let reference = self.pairs.iter().flatten().map(|&rows| rows as f64 * logp).collect();
        let terms: Vec<Vec<(usize, i32)>> = (0..self.pairs.len()).map(|g| vec![(2 * g, 1), (2 * g + 1, -1)]).collect();
        let table = ComparisonTable { seqs: self.seqs(), terms, kinds: vec![0; self.pairs.len()], scale: SCALE };
        let out = |name, rows| Operand::acc(name, rows, ONE, Fill::Constant(0.0)).written();
        let mut operands = vec![
            Operand::act("hidden", t, h, Fill::Normal(1.0)),
            Operand::act("head", v, h, Fill::Normal(root)),
            Operand::idx("source", &self.source),
            Operand::idx("target", &self.target),
        ];
        operands.extend(HostRuns::from_keys(&self.source).operands());
        operands.extend([
            Operand::idx("seq_offsets", &Arc::new(offsets)),
            Operand::acc("reference", s, ONE, Fill::Values(Arc::new(reference))),
            Operand::acc("given lse", r, ONE, Fill::Computed),
            Operand::acc("given dlogp", r, ONE, Fill::Computed),
        ]);
        operands.extend(table.operands(1.0 / self.comparisons as f64));
        operands.extend([out("loss", c), out("logit", c)]);
        operands
            .push(Operand::acc("sums", (Axis::Whole, KINDS), (Axis::Whole, SUM_FIELDS), Fill::Constant(0.0)).written());
        operands.extend([out("logp", r), out("lse", r), out("dlogp", r), out("score", s), out("dscore", s)]);
        operands.extend([
            Operand::act("dhidden", t, h, Fill::Constant(0.0)).written(),
            Operand::acc("dhead", v, h, Fill::Constant(0.0)).written(),
        ]);
        operands
    }

    /// Runs the head's forward pass and the losses, for the part with a smaller vocabulary.
    fn compute_inputs<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (dims, rows, seqs, reduce) = (self.dims, self.dims.rows, self.seqs(), Reduce::Sum);
        let (hidden, head, source, target) = (o.act()?, o.act()?, o.idx()?, o.idx()?);
        HostRuns::take(&mut o)?;
        let (offsets, reference, lse, dvalues) = (o.idx()?, o.acc()?, o.acc_out()?, o.acc_out()?);
        let (mut logp, mut score, mut dscore) = (on.zeros_acc(rows)?, on.zeros_acc(seqs)?, on.zeros_acc(seqs)?);
        let logp_out = ViewMut::first(&mut logp, rows);
        on.head_logprob_fwd(HeadLogprobFwd { dims, hidden, head, source, target, logp: logp_out, lse, stats: None })?;
        let (values, sums) = (View::first(&logp, rows), ViewMut::first(&mut score, seqs));
        on.segment_sum_fwd(SegmentSumFwd { rows, seqs, reduce, values, offsets, tail: None, sums })?;
        let table = table_views(&mut o)?;
        let [mut loss, mut logit] = [on.zeros_acc(self.pairs.len())?, on.zeros_acc(self.pairs.len())?];
        let mut sums = on.zeros_acc(KINDS * SUM_FIELDS)?;
        let comparison = ComparisonLoss {
            comparisons: self.pairs.len(),
            curves: &[Curve::Sigmoid { smoothing: 0.0 }.into()],
            link: Link::Identity,
            center: 0.0,
            reference: Some(reference),
            inverse_rows: None,
            pair_weights: None,
            table,
            loss: ViewMut::first(&mut loss, self.pairs.len()),
            logit: ViewMut::first(&mut logit, self.pairs.len()),
            sums: ViewMut::first(&mut sums, KINDS * SUM_FIELDS),
        };
        on.preference_fwd(comparison.into_preference_fwd(
            View::first(&score, seqs),
            None,
            ViewMut::first(&mut dscore, seqs),
        ))?;
        let dsums = View::first(&dscore, seqs);
        on.segment_sum_bwd(SegmentSumBwd { rows, seqs, reduce, dsums, offsets, tail: None, dvalues })
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        let (hidden, head, source, target) = (o.act()?, o.act()?, o.idx()?, o.idx()?);
        let (runs, seq_offsets, reference) = (HostRuns::take(&mut o)?, o.idx()?, o.acc()?);
        let (given_lse, given_dlogp) = (o.acc()?, o.acc()?);
        let comparison = ComparisonLoss {
            comparisons: self.pairs.len(),
            curves: &[Curve::Sigmoid { smoothing: 0.0 }.into()],
            link: Link::Identity,
            center: 0.0,
            reference: Some(reference),
            inverse_rows: None,
            pair_weights: None,
            table: table_views(&mut o)?,
            loss: o.acc_out()?,
            logit: o.acc_out()?,
            sums: o.acc_out()?,
        };
        let (logp, lse, dlogp) = (o.acc_out()?, o.acc_out()?, o.acc_out()?);
        let (score, dscore) = (o.acc_out()?, o.acc_out()?);
        let (dhidden, dhead, dhead_write) = (o.act_out()?, Some(o.acc_out()?), Write::Overwrite);
        if self.given {
            let (lse, dlogp) = (given_lse, given_dlogp);
            return on.head_logprob_bwd(HeadLogprobBwd {
                dims,
                hidden,
                head,
                source,
                target,
                runs,
                lse,
                dlogp,
                dhidden,
                dhead,
                dhead_write,
            });
        }
        on.head_preference(HeadPreference {
            dims,
            seqs: self.seqs(),
            reduce: Reduce::Sum,
            groups: &self.ends,
            hidden,
            head,
            source,
            target,
            runs,
            seq_offsets,
            tail: None,
            comparison: Some(comparison),
            direct: None,
            logp,
            lse,
            stats: None,
            dlogp,
            score,
            dscore,
            dhidden,
            dhead,
            dhead_write,
        })
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let slope = SCALE / self.comparisons as f64;
        let errors = HeadPreferenceErrors {
            dims: self.dims,
            longest: self.longest(),
            comparisons: self.pairs.len(),
            scale: SCALE,
            // A score differs from its reference by a sum of `longest` normal numbers.
            logits: 8.0 * SCALE * (self.longest() as f64).sqrt(),
            loss_slope: 1.0,
            slope,
            curvature: slope / 4.0,
        };
        errors.tolerance(precision, name)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        vec![self.group_part(), self.vocab_part()]
    }
}
