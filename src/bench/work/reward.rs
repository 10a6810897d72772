//! Reward head: one scalar per sequence.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Write};
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand};

/// The reward head, or its gradient.
#[derive(Clone, Debug)]
pub struct RewardHead {
    pub backward: bool,
    pub dims: RewardDims,
}

impl RewardHead {
    fn rows(&self) -> Arc<Vec<i32>> {
        let (tokens, seqs) = (self.dims.tokens, self.dims.seqs.max(1));
        Arc::new((0..self.dims.seqs).map(|s| ((s + 1) * tokens / seqs - 1) as i32).collect())
    }
}

impl Call for RewardHead {
    fn op(&self) -> &'static str {
        if self.backward { "reward_head_bwd" } else { "reward_head_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        vec![("tokens", d.tokens), ("hidden", d.hidden), ("seqs", d.seqs)]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let (t, h, s) = ((Axis::Token, d.tokens), (Axis::Whole, d.hidden), (Axis::Whole, d.seqs));
        let mut operands = vec![
            Operand::act("hidden", t, h, Fill::Normal(1.0)),
            Operand::act("weight", h, ONE, Fill::Normal(1.0)),
            Operand::idx("rows", &self.rows()),
        ];
        match self.backward {
            false => operands.push(Operand::acc("score", s, ONE, Fill::Constant(0.0)).written()),
            true => operands.extend([
                Operand::acc("dscore", s, ONE, Fill::Normal(1.0)),
                Operand::act("dhidden", t, h, Fill::Constant(0.0)).written(),
                Operand::acc("dweight", h, ONE, Fill::Constant(0.0)).written(),
            ]),
        }
        operands
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        let (hidden, weight, rows) = (o.act()?, o.act()?, o.idx()?);
        match self.backward {
            false => on.reward_head_fwd(RewardHeadFwd { dims, hidden, weight, rows, score: o.acc_out()? }),
            true => on.reward_head_bwd(RewardHeadBwd {
                dims,
                hidden,
                weight,
                rows,
                dscore: o.acc()?,
                dhidden: o.act_out()?,
                dweight: o.acc_out()?,
                dweight_write: Write::Overwrite,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        self.dims.tolerance(if name == "dhidden" { precision } else { stored_as_acc(precision) })
    }

    fn parts(&self) -> Vec<Part<Self>> {
        Part::whole(self)
    }
}
