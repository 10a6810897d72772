//! Sums over sequences and their gradient.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand};

/// Sums of rows over each sequence, or their gradient.
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
                values: o.acc()?,
                offsets: o.idx()?,
                tail: None,
                sums: o.acc_out()?,
            }),
            true => on.segment_sum_bwd(SegmentSumBwd {
                rows,
                seqs,
                reduce,
                dsums: o.acc()?,
                offsets: o.idx()?,
                tail: None,
                dvalues: o.acc_out()?,
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
