//! Comparison losses and their gradient.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand};

/// Comparisons without margins and with weight 1, in the layout of [`Comparisons`].
pub(super) struct ComparisonTable {
    pub seqs: usize,
    /// (comparisons) sequence and sign of each term
    pub terms: Vec<Vec<(usize, i32)>>,
    /// (comparisons) index of the comparison kind
    pub kinds: Vec<i32>,
    /// Scale of all comparisons.
    pub scale: f64,
}

impl ComparisonTable {
    /// Operands in the order of the table's fields. Every kind has the scale `kind_scale`.
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

/// Reads the operands of [`ComparisonTable::operands`] from a cursor.
pub(super) fn table_views<'a, B: Backend>(o: &mut Cursor<'a, B>) -> Result<Comparisons<'a, B>> {
    Ok(Comparisons {
        term_sequence: o.idx()?,
        term_sign: o.idx()?,
        kind: o.idx()?,
        scale: o.acc()?,
        margin: o.acc()?,
        weight: o.acc()?,
        detached_clip: o.acc()?,
        kind_scale: o.acc()?,
        use_offsets: o.idx()?,
        uses: o.idx()?,
    })
}

/// Logistic losses of full groups: eight sequences, one base, two intra and two inter comparisons,
/// with reference scores.
#[derive(Clone, Debug)]
pub struct PreferenceLoss {
    pub groups: usize,
}

/// Number of sequences of a group, and its comparisons as (kind, terms). A term is (sequence, sign).
const SEQUENCES: usize = 8;
const COMPARISONS: [(usize, &[(usize, i32)]); 5] = [
    (0, &[(0, 1), (1, -1)]),
    (1, &[(2, 1), (4, -1)]),
    (1, &[(6, 1), (7, -1)]),
    (2, &[(2, 1), (1, 1), (3, -1), (0, -1)]),
    (2, &[(5, 1), (0, 1), (4, -1), (1, -1)]),
];

impl PreferenceLoss {
    fn seqs(&self) -> usize {
        self.groups * SEQUENCES
    }

    fn comparisons(&self) -> usize {
        self.groups * COMPARISONS.len()
    }
}

impl Call for PreferenceLoss {
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
        operands.extend(ComparisonTable { seqs, terms, kinds, scale: 0.1 }.operands(1.0 / comparisons.max(1) as f64));
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
            curves: &[Curve::Sigmoid { smoothing: 0.0 }.into()],
            link: Link::Identity,
            center: 0.0,
            score: o.acc()?,
            reference: Some(o.acc()?),
            inverse_rows: None,
            table: table_views(&mut o)?,
            pair_weights: None,
            direct: None,
            loss: o.acc_out()?,
            logit: o.acc_out()?,
            dscore: o.acc_out()?,
            sums: o.acc_out()?,
        })
    }

    /// The sums run over all comparisons.
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
