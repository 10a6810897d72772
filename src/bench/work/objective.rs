//! Sums by sequence, comparison losses, gradient norm and AdamW.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand, Picks, spread};

/// Sums of rows by sequence, or their gradient.
#[derive(Clone, Debug)]
pub struct SegmentSum {
    pub backward: bool,
    pub rows: usize,
    pub seqs: usize,
}

impl Call for SegmentSum {
    fn op(&self) -> &'static str {
        if self.backward { "segment_sum_bwd" } else { "segment_sum_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("rows", self.rows), ("seqs", self.seqs)]
    }

    fn operands(&self) -> Vec<Operand> {
        let (r, s) = ((Axis::Whole, self.rows), (Axis::Whole, self.seqs));
        let offsets = (0..=self.seqs).map(|seq| (seq * self.rows / self.seqs.max(1)) as i32).collect();
        let offsets = Operand::idx("offsets", &Arc::new(offsets));
        let (from, to, names) = if self.backward { (s, r, ["dsums", "dvalues"]) } else { (r, s, ["values", "sums"]) };
        vec![
            Operand::acc(names[0], from, ONE, Fill::Normal(1.0)),
            offsets,
            Operand::acc(names[1], to, ONE, Fill::Constant(0.0)).written(),
        ]
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (rows, seqs, reduce) = (self.rows, self.seqs, Reduce::Sum);
        match self.backward {
            false => on.segment_sum_fwd(SegmentSumFwd {
                rows,
                seqs,
                reduce,
                values: o.acc(),
                offsets: o.idx(),
                sums: o.acc_out(),
            }),
            true => on.segment_sum_bwd(SegmentSumBwd {
                rows,
                seqs,
                reduce,
                dsums: o.acc(),
                offsets: o.idx(),
                dvalues: o.acc_out(),
            }),
        }
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        let longest = self.rows.div_ceil(self.seqs.max(1));
        Tolerance::dot(stored_as_acc(precision), longest).scaled((longest as f64).sqrt())
    }

    fn parts(&self) -> Vec<Part<Self>> {
        Part::whole(self)
    }
}

/// Comparisons without margins, all of weight 1, as [`Comparisons`] has them.
pub(super) struct Table {
    pub seqs: usize,
    /// (comparisons) sequence and sign of each term
    pub terms: Vec<Vec<(usize, i32)>>,
    /// (comparisons)
    pub kinds: Vec<i32>,
    /// Of all comparisons.
    pub scale: f64,
}

impl Table {
    /// The operands in the order of the table's fields; `kind_scale` is that of every kind.
    pub fn operands(self, kind_scale: f64) -> [Operand; 10] {
        let comparisons = self.terms.len();
        let (mut sequence, mut sign) = (vec![-1i32; comparisons * TERMS], vec![0i32; comparisons * TERMS]);
        let mut used = vec![Vec::new(); self.seqs];
        for (c, terms) in self.terms.iter().enumerate() {
            for (k, &(s, of_term)) in terms.iter().enumerate() {
                let slot = c * TERMS + k;
                (sequence[slot], sign[slot]) = (s as i32, of_term);
                used[s].push(slot as i32);
            }
        }
        let mut offsets = vec![0i32];
        for uses in &used {
            offsets.push(offsets[offsets.len() - 1] + uses.len() as i32);
        }
        let c = (Axis::Comparison, comparisons);
        let number = |name, rows, value| Operand::acc(name, rows, ONE, Fill::Constant(value));
        let clip = (0..2 * comparisons).map(|i| if i % 2 == 0 { -1e30 } else { 1e30 }).collect();
        [
            Operand::idx("term_sequence", &Arc::new(sequence)),
            Operand::idx("term_sign", &Arc::new(sign)),
            Operand::idx("kind", &Arc::new(self.kinds)),
            number("scale", c, self.scale),
            number("margin", c, 0.0),
            number("weight", c, 1.0),
            Operand::acc("detached_clip", c, (Axis::Whole, 2), Fill::Values(Arc::new(clip))),
            number("kind_scale", (Axis::Whole, KINDS), kind_scale),
            Operand::idx("use_offsets", &Arc::new(offsets)),
            Operand::idx("uses", &Arc::new(used.concat())),
        ]
    }
}

/// The operands of [`Table::operands`], taken.
pub(super) fn take_table<'a, B: Backend>(o: &mut Cursor<'a, B>) -> Comparisons<'a, B> {
    Comparisons {
        term_sequence: o.idx(),
        term_sign: o.idx(),
        kind: o.idx(),
        scale: o.acc(),
        margin: o.acc(),
        weight: o.acc(),
        detached_clip: o.acc(),
        kind_scale: o.acc(),
        use_offsets: o.idx(),
        uses: o.idx(),
    }
}

/// Logistic losses of full groups: eight sequences, one base, two intra and two inter comparisons, with a reference.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub groups: usize,
}

/// Sequences and comparisons of a group.
const SEQUENCES: usize = 8;
const COMPARISONS: [(usize, &[(usize, i32)]); 5] = [
    (0, &[(0, 1), (1, -1)]),
    (1, &[(2, 1), (4, -1)]),
    (1, &[(6, 1), (7, -1)]),
    (2, &[(2, 1), (1, 1), (3, -1), (0, -1)]),
    (2, &[(5, 1), (0, 1), (4, -1), (1, -1)]),
];

impl Comparison {
    fn seqs(&self) -> usize {
        self.groups * SEQUENCES
    }

    fn comparisons(&self) -> usize {
        self.groups * COMPARISONS.len()
    }
}

impl Call for Comparison {
    fn op(&self) -> &'static str {
        "preference_fwd"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("comparisons", self.comparisons()), ("seqs", self.seqs())]
    }

    fn operands(&self) -> Vec<Operand> {
        let (seqs, comparisons) = (self.seqs(), self.comparisons());
        let (mut terms, mut kinds) = (Vec::with_capacity(comparisons), Vec::with_capacity(comparisons));
        for group in 0..self.groups {
            for (kind, of_group) in COMPARISONS {
                kinds.push(kind as i32);
                terms.push(of_group.iter().map(|&(s, sign)| (group * SEQUENCES + s, sign)).collect());
            }
        }
        let (s, c) = ((Axis::Sequence, seqs), (Axis::Comparison, comparisons));
        let number = |name, rows, value| Operand::acc(name, rows, ONE, Fill::Constant(value));
        let mut operands = vec![
            Operand::acc("score", s, ONE, Fill::Normal(1.0)),
            Operand::acc("reference", s, ONE, Fill::Normal(1.0)),
        ];
        operands.extend(Table { seqs, terms, kinds, scale: 0.1 }.operands(1.0 / comparisons.max(1) as f64));
        operands.extend([
            number("loss", c, 0.0).written(),
            number("logit", c, 0.0).written(),
            number("dscore", s, 0.0).written(),
            Operand::acc("sums", (Axis::Whole, KINDS), (Axis::Whole, SUM_FIELDS), Fill::Constant(0.0)).written(),
        ]);
        operands
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        on.preference_fwd(PreferenceFwd {
            seqs: self.seqs(),
            comparisons: self.comparisons(),
            curve: Curve::Sigmoid { smoothing: 0.0 },
            center: 0.0,
            score: o.acc(),
            reference: Some(o.acc()),
            table: take_table(&mut o),
            direct: None,
            loss: o.acc_out(),
            logit: o.acc_out(),
            dscore: o.acc_out(),
            sums: o.acc_out(),
        })
    }

    /// Sums are of as many losses as there are comparisons.
    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let precision = stored_as_acc(precision);
        match name {
            "sums" => Tolerance::dot(precision, self.comparisons()).scaled((self.comparisons() as f64).sqrt()),
            _ => Tolerance::dot(precision, TERMS),
        }
    }

    fn parts(&self) -> Vec<Part<Self>> {
        Part::whole(self)
    }
}

/// The norm of a gradient.
#[derive(Clone, Debug)]
pub struct Norms {
    pub len: usize,
}

/// What the control vector holds before an update: learning rate, updates, norm, clip factor, apply, skipped.
const CONTROLS: [f64; CONTROL] = [1e-6, 10.0, 1.0, 0.5, 1.0, 0.0];

fn control() -> Operand {
    Operand::acc("control", (Axis::Whole, CONTROL), ONE, Fill::Values(Arc::new(CONTROLS.to_vec())))
}

impl Call for Norms {
    fn op(&self) -> &'static str {
        "grad_norm"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("len", self.len)]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::acc("grads", (Axis::Whole, self.len), ONE, Fill::Normal(0.01)), control().written()]
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        on.grad_norm(GradNorm { len: self.len, max_norm: 1.0, grads: o.acc(), known: None, control: o.acc_out() })
    }

    /// Sums of squares, which are of one sign, in slices and then of slices.
    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        Tolerance::dot(stored_as_acc(precision), 1024)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        Part::whole(self)
    }
}

/// An update by AdamW.
#[derive(Clone, Debug)]
pub struct Update {
    pub len: usize,
    pub decayed: usize,
    /// With a copy of the weights in the precision of sums.
    pub master: bool,
}

impl Call for Update {
    fn op(&self) -> &'static str {
        "adamw"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("len", self.len)]
    }

    fn operands(&self) -> Vec<Operand> {
        let l = (Axis::Output, self.len);
        let state = |name, fill| Operand::acc(name, l, ONE, fill).written();
        let mut operands = vec![
            control(),
            Operand::acc("grads", l, ONE, Fill::Normal(0.01)),
            state("m", Fill::Normal(1e-3)),
            state("v", Fill::Square(1e-2)),
        ];
        if self.master {
            operands.push(state("master", Fill::CopyOf("params", 0.02)));
        }
        operands.push(Operand::act("params", l, ONE, Fill::Normal(0.02)).written());
        operands
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (control, grads, m, v) = (o.acc(), o.acc(), o.acc_out(), o.acc_out());
        on.adamw(AdamW {
            len: self.len,
            decayed: self.decayed,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            control,
            grads,
            m,
            v,
            master: self.master.then(|| o.acc_out()),
            params: o.act_out(),
        })
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        Tolerance::dot(if name == "params" { precision } else { stored_as_acc(precision) }, 4)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let places = spread(self.len, 4096);
        let decayed = places.iter().filter(|&&place| place < self.decayed).count();
        let call = Self { len: places.len(), decayed, ..*self };
        vec![Part { call, picks: Picks::default().of(Axis::Output, places), compared: &[] }]
    }
}
