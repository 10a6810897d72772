//! SwiGLU, fused with its GEMM and as a separate op.

use super::linear::root;
use super::{Call, Part};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, Operand, Selection, spread};

/// Number of rows, and of columns, that a check selects on long axes.
const ROWS: usize = 24;
const COLUMNS: usize = 40;

/// Gate and up projection fused with SwiGLU, or the gradient of both.
#[derive(Clone, Debug)]
pub struct LinearGlu {
    pub backward: bool,
    pub dims: LinearGluDims,
}

impl LinearGlu {
    /// Columns of gate, then of up, for the given columns of the activation.
    fn both(&self, picked: &[usize]) -> Vec<usize> {
        picked.iter().copied().chain(picked.iter().map(|i| i + self.dims.intermediate)).collect()
    }
}

impl Call for LinearGlu {
    fn op(&self) -> &'static str {
        if self.backward { "linear_glu_bwd" } else { "linear_glu_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        vec![("tokens", d.tokens), ("hidden", d.hidden), ("intermediate", d.intermediate)]
    }

    /// Columns of gate and up are on `Axis::Output`, columns of the activation on `Axis::Input`.
    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let (t, h, i) = ((Axis::Token, d.tokens), (Axis::Whole, d.hidden), (Axis::Input, d.intermediate));
        let both = (Axis::Output, 2 * d.intermediate);
        match self.backward {
            false => vec![
                Operand::act("x", t, h, Fill::Normal(1.0)),
                Operand::act("weight", both, h, Fill::Normal(root(d.hidden))),
                Operand::act("gate_up", t, both, Fill::Constant(0.0)).written(),
                Operand::act("act", t, i, Fill::Constant(0.0)).written(),
            ],
            true => vec![
                Operand::act("dy", t, h, Fill::Normal(1.0)),
                Operand::act("weight", h, i, Fill::Normal(root(d.hidden))),
                Operand::act("gate_up", t, both, Fill::Normal(1.0)),
                Operand::act("dgate_up", t, both, Fill::Constant(0.0)).written(),
            ],
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        match self.backward {
            false => {
                let (x, weight, gate_up, act) = (o.act()?, o.act()?, Some(o.act_out()?), o.act_out()?);
                on.linear_glu_fwd(LinearGluFwd { dims, x, weight, gate_up, act })
            }
            true => on.linear_glu_bwd(LinearGluBwd {
                dims,
                dy: o.act()?,
                weight: o.act()?,
                gate_up: o.act()?,
                dgate_up: o.act_out()?,
            }),
        }
    }

    /// Gate and up are of order one, and the largest of many are about 5. The error of their
    /// products grows by that factor.
    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        self.dims.tolerance(precision).scaled(4.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let d = self.dims;
        let (tokens, columns) = (spread(d.tokens, ROWS), spread(d.intermediate, COLUMNS));
        let dims = LinearGluDims { tokens: tokens.len(), intermediate: columns.len(), ..d };
        let selection = Selection::default()
            .with(Axis::Token, tokens)
            .with(Axis::Output, self.both(&columns))
            .with(Axis::Input, columns);
        vec![Part { call: Self { dims, ..*self }, selection, compared: &[] }]
    }
}

/// SwiGLU as a separate op, or its gradient.
#[derive(Clone, Debug)]
pub struct Glu {
    pub backward: bool,
    pub dims: GluDims,
}

impl Call for Glu {
    fn op(&self) -> &'static str {
        if self.backward { "glu_bwd" } else { "glu_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.dims.tokens), ("intermediate", self.dims.intermediate)]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let t = (Axis::Token, d.tokens);
        let one = |name, fill| Operand::act(name, t, (Axis::Whole, d.intermediate), fill);
        let both = |name, fill| Operand::act(name, t, (Axis::Whole, 2 * d.intermediate), fill);
        match self.backward {
            false => vec![both("gate_up", Fill::Normal(1.0)), one("act", Fill::Constant(0.0)).written()],
            true => vec![
                one("dact", Fill::Normal(1.0)),
                both("gate_up", Fill::Normal(1.0)),
                both("dgate_up", Fill::Constant(0.0)).written(),
            ],
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        match self.backward {
            false => on.glu_fwd(GluFwd { dims, gate_up: o.act()?, act: o.act_out()? }),
            true => on.glu_bwd(GluBwd { dims, dact: o.act()?, gate_up: o.act()?, dgate_up: o.act_out()? }),
        }
    }

    /// Inputs are of order one, and the largest of many are about 5.
    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        self.dims.tolerance(precision).scaled(5.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 32);
        let dims = GluDims { tokens: tokens.len(), ..self.dims };
        vec![Part {
            call: Self { dims, ..*self },
            selection: Selection::default().with(Axis::Token, tokens),
            compared: &[],
        }]
    }
}
