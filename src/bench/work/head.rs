//! Log-probs of the vocabulary head, fused and from stored logits.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Write};
use crate::bench::operand::{Axis, Cursor, Fill, HostRuns, ONE, Operand, Selection, spread};

/// Number of distinct target tokens. They are few, so that a check can cover all their rows of the
/// gradient.
const TARGETS: usize = 8;
/// One in this many head rows shares the hidden row of its predecessor, as the two successors of a
/// prompt's last token do.
const SHARED: usize = 64;

/// Target tokens of head rows.
pub(super) fn targets(rows: usize, vocab: usize) -> Vec<i32> {
    let ids = spread(vocab, TARGETS);
    (0..rows).map(|r| ids[(r * 5 + r / 7) % ids.len()] as i32).collect()
}

/// Selects the targets and a few other tokens of the vocabulary. Returns their ids in ascending
/// order, and the position among them of each row's target.
pub(super) fn sample_vocabulary(vocab: usize, target: &[i32]) -> (Vec<usize>, Vec<i32>) {
    let more = spread(vocab, 3 * TARGETS).into_iter().skip(1).step_by(7);
    let mut ids: Vec<usize> = spread(vocab, TARGETS).into_iter().chain(more).collect();
    ids.sort_unstable();
    ids.dedup();
    let place = |id: &i32| ids.iter().position(|&v| v == *id as usize).unwrap_or(0) as i32;
    let target = target.iter().map(place).collect();
    (ids, target)
}

/// The fused head, or its gradient.
#[derive(Clone, Debug)]
pub struct Head {
    pub backward: bool,
    pub dims: HeadDims,
    source: Arc<Vec<i32>>,
    target: Arc<Vec<i32>>,
}

impl Head {
    /// A head with `rows` head rows.
    pub fn new(backward: bool, rows: usize, hidden: usize, vocab: usize) -> Self {
        let source: Vec<i32> = (0..rows).map(|r| (r - r / SHARED) as i32).collect();
        let tokens = source.iter().max().map_or(0, |&last| last as usize + 1);
        let dims = HeadDims { tokens, hidden, vocab, rows, softcap: None };
        Self { backward, dims, source: Arc::new(source), target: Arc::new(targets(rows, vocab)) }
    }

    /// Part with the head rows of the last tokens and the complete vocabulary.
    fn rows_part(&self) -> Part<Self> {
        let d = self.dims;
        // The last row, and a row that shares its hidden row with another.
        let mut tokens = vec![d.tokens - 1];
        if let Some(shared) = (1..d.rows).rev().find(|&r| self.source[r] == self.source[r - 1]) {
            tokens.insert(0, self.source[shared] as usize);
            tokens.dedup();
        }
        let rows: Vec<usize> = (0..d.rows).filter(|&r| tokens.contains(&(self.source[r] as usize))).collect();
        let place = |token: i32| tokens.iter().position(|&t| t == token as usize).unwrap_or(0) as i32;
        let source = rows.iter().map(|&r| place(self.source[r])).collect();
        let target = rows.iter().map(|&r| self.target[r]).collect();
        let dims = HeadDims { tokens: tokens.len(), rows: rows.len(), ..d };
        let call = Self { dims, source: Arc::new(source), target: Arc::new(target), ..*self };
        let selection = Selection::default().with(Axis::Token, tokens).with(Axis::Row, rows);
        Part { call, selection, compared: if self.backward { &["dhidden"] } else { &[] } }
    }

    /// Part with all head rows. Its vocabulary has the targets and a few other tokens.
    fn vocab_part(&self) -> Part<Self> {
        let d = self.dims;
        let (ids, target) = sample_vocabulary(d.vocab, &self.target);
        let call = Self { dims: HeadDims { vocab: ids.len(), ..d }, target: Arc::new(target), ..self.clone() };
        Part { call, selection: Selection::default().with(Axis::Vocab, ids), compared: &["dhead"] }
    }
}

impl Call for Head {
    fn op(&self) -> &'static str {
        if self.backward { "head_logprob_bwd" } else { "head_logprob_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        vec![("rows", d.rows), ("hidden", d.hidden), ("vocab", d.vocab)]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let (t, h, v, r) =
            ((Axis::Token, d.tokens), (Axis::Whole, d.hidden), (Axis::Vocab, d.vocab), (Axis::Row, d.rows));
        let root = 1.0 / (d.hidden as f64).sqrt();
        let per_row = |name, fill| Operand::acc(name, r, ONE, fill);
        let mut operands = vec![
            Operand::act("hidden", t, h, Fill::Normal(1.0)),
            Operand::act("head", v, h, Fill::Normal(root)),
            Operand::idx("source", &self.source),
            Operand::idx("target", &self.target),
        ];
        match self.backward {
            false => operands.extend(["logp", "lse"].map(|name| per_row(name, Fill::Constant(0.0)).written())),
            true => {
                operands.extend(HostRuns::from_keys(&self.source).operands());
                operands.extend([
                    // Logsumexp of normal logits. It is an input, so that a part with fewer tokens
                    // uses the same value.
                    per_row("lse", Fill::Constant((d.vocab as f64).ln() + 0.5)),
                    per_row("dlogp", Fill::Normal(1.0)),
                    Operand::act("dhidden", t, h, Fill::Constant(0.0)).written(),
                    Operand::acc("dhead", v, h, Fill::Constant(0.0)).written(),
                ]);
            }
        }
        operands
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        let (hidden, head, source, target) = (o.act()?, o.act()?, o.idx()?, o.idx()?);
        match self.backward {
            false => on.head_logprob_fwd(HeadLogprobFwd {
                dims,
                hidden,
                head,
                source,
                target,
                logp: o.acc_out()?,
                lse: o.acc_out()?,
                stats: None,
            }),
            true => on.head_logprob_bwd(HeadLogprobBwd {
                dims,
                hidden,
                head,
                source,
                target,
                runs: HostRuns::take(&mut o)?,
                lse: o.acc()?,
                dlogp: o.acc()?,
                dhidden: o.act_out()?,
                dhead: Some(o.acc_out()?),
                dhead_write: Write::Overwrite,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let d = self.dims;
        match name {
            "dhead" => {
                // Every row with this target token adds a logit gradient rounded as activations
                // are. The benchmark has few distinct targets, so these roundings dominate the
                // error.
                let hits = d.rows.div_ceil(TARGETS) as f64;
                let gemm = d.gradient_tolerance(precision, d.rows);
                Tolerance { atol: gemm.atol + 2.0 * precision.act_roundoff() * hits.sqrt(), ..gemm }
            }
            "dhidden" => d.gradient_tolerance(precision, 16),
            _ => d.tolerance(precision),
        }
    }

    fn parts(&self) -> Vec<Part<Self>> {
        match self.backward {
            false => vec![self.rows_part()],
            true => vec![self.rows_part(), self.vocab_part()],
        }
    }
}

/// Log-softmax and gather over stored logits, or its gradient.
#[derive(Clone, Debug)]
pub struct StoredLogits {
    pub backward: bool,
    pub rows: usize,
    pub vocab: usize,
    target: Arc<Vec<i32>>,
}

impl StoredLogits {
    pub fn new(backward: bool, rows: usize, vocab: usize) -> Self {
        let ids = spread(vocab, TARGETS);
        Self { backward, rows, vocab, target: Arc::new((0..rows).map(|r| ids[r % ids.len()] as i32).collect()) }
    }
}

impl Call for StoredLogits {
    fn op(&self) -> &'static str {
        if self.backward { "logprob_bwd" } else { "logprob_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.rows), ("vocab", self.vocab)]
    }

    fn operands(&self) -> Vec<Operand> {
        let r = (Axis::Row, self.rows);
        let logits = Operand::act("logits", r, (Axis::Whole, self.vocab), Fill::Normal(1.0));
        let target = Operand::idx("target", &self.target);
        let per_row = |name, fill| Operand::acc(name, r, ONE, fill);
        match self.backward {
            false => {
                let out = ["logp", "lse"].map(|name| per_row(name, Fill::Constant(0.0)).written());
                [logits, target].into_iter().chain(out).collect()
            }
            true => vec![
                target,
                per_row("lse", Fill::Constant((self.vocab as f64).ln() + 0.5)),
                per_row("dlogp", Fill::Normal(1.0)),
                logits.written(),
            ],
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (rows, vocab) = (self.rows, self.vocab);
        match self.backward {
            false => on.logprob_fwd(LogprobFwd {
                rows,
                vocab,
                logits: o.act()?,
                target: o.idx()?,
                logp: o.acc_out()?,
                lse: o.acc_out()?,
            }),
            true => on.logprob_bwd(LogprobBwd {
                rows,
                vocab,
                target: o.idx()?,
                lse: o.acc()?,
                dlogp: o.acc()?,
                logits_to_dlogits: o.act_out()?,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        Tolerance::dot(if name == "logits" { precision } else { stored_as_acc(precision) }, 16)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let rows = spread(self.rows, 16);
        let target = Arc::new(rows.iter().map(|&r| self.target[r]).collect());
        let call = Self { rows: rows.len(), target, ..*self };
        vec![Part { call, selection: Selection::default().with(Axis::Row, rows), compared: &[] }]
    }
}
