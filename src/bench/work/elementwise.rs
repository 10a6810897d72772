//! LayerNorm, GELU, and the scaling of rows.

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Write};
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand, Selection, spread};

/// LayerNorm, or its gradient.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub backward: bool,
    pub dims: LayerNormDims,
}

impl Call for LayerNorm {
    fn op(&self) -> &'static str {
        if self.backward { "layer_norm_bwd" } else { "layer_norm_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.dims.tokens), ("hidden", self.dims.hidden)]
    }

    fn operands(&self) -> Vec<Operand> {
        let (t, h) = ((Axis::Token, self.dims.tokens), (Axis::Whole, self.dims.hidden));
        let weights = (Axis::Whole, 2 * self.dims.hidden);
        let stream = |name, fill| Operand::act(name, t, h, fill);
        let weight = Operand::act("weight", weights, ONE, Fill::AboutOne(0.1));
        let stats = |fill| Operand::acc("stats", t, (Axis::Whole, 2), fill);
        match self.backward {
            false => vec![
                stream("x", Fill::Normal(1.0)),
                weight,
                stream("y", Fill::Constant(0.0)).written(),
                stats(Fill::Constant(0.0)).written(),
            ],
            true => vec![
                stream("dy", Fill::Normal(1.0)),
                stream("x", Fill::Normal(1.0)),
                stats(Fill::AboutOne(0.05)),
                weight,
                stream("dx", Fill::Normal(1.0)).written(),
                Operand::acc("dweight", weights, ONE, Fill::Constant(0.0)).written(),
            ],
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        match self.backward {
            false => {
                let (x, weight) = (o.act()?, o.act()?);
                on.layer_norm_fwd(LayerNormFwd { dims, x, weight, y: o.act_out()?, stats: o.acc_out()? })
            }
            true => on.layer_norm_bwd(LayerNormBwd {
                dims,
                dy: o.act()?,
                x: o.act()?,
                stats: o.acc()?,
                weight: o.act()?,
                dx: o.act_out()?,
                dx_write: Write::Add,
                dweight: o.acc_out()?,
                dweight_write: Write::Overwrite,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let d = self.dims;
        match name {
            "stats" => d.tolerance(stored_as_acc(precision)),
            "dweight" => {
                Tolerance::dot(stored_as_acc(precision), d.tokens).scaled(2.0 * (d.tokens as f64).sqrt().max(1.0))
            }
            // Rows and gradients are of order one, and the largest of many are about 5.
            _ => d.tolerance(precision).scaled(5.0),
        }
    }

    /// Checks per-row results on some rows, and the weight gradient on all rows.
    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 64);
        let call = Self { dims: LayerNormDims { tokens: tokens.len(), ..self.dims }, ..*self };
        let selection = Selection::default().with(Axis::Token, tokens);
        match self.backward {
            false => vec![Part { call, selection, compared: &[] }],
            true => {
                let whole = Part { call: self.clone(), selection: Selection::default(), compared: &["dweight"] };
                vec![Part { call, selection, compared: &["dx"] }, whole]
            }
        }
    }
}

/// GELU, or its gradient.
#[derive(Clone, Debug)]
pub struct PlainActivation {
    pub backward: bool,
    pub dims: GeluDims,
}

impl Call for PlainActivation {
    fn op(&self) -> &'static str {
        if self.backward { "gelu_bwd" } else { "gelu_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.dims.tokens), ("intermediate", self.dims.intermediate)]
    }

    fn operands(&self) -> Vec<Operand> {
        let (t, i) = ((Axis::Token, self.dims.tokens), (Axis::Whole, self.dims.intermediate));
        let (name, fill) = if self.backward { ("dact", Fill::Normal(1.0)) } else { ("act", Fill::Constant(0.0)) };
        vec![Operand::act("x", t, i, Fill::Normal(1.0)), Operand::act(name, t, i, fill).written()]
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (dims, x) = (self.dims, o.act()?);
        match self.backward {
            false => on.gelu_fwd(GeluFwd { dims, x, act: o.act_out()? }),
            true => on.gelu_bwd(GeluBwd { dims, x, dact_in_place: o.act_out()? }),
        }
    }

    /// Inputs are of order one, and the largest of many are about 5.
    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        self.dims.tolerance(precision).scaled(5.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 32);
        let call = Self { dims: GeluDims { tokens: tokens.len(), ..self.dims }, ..*self };
        vec![Part { call, selection: Selection::default().with(Axis::Token, tokens), compared: &[] }]
    }
}

/// Scaling of rows by a factor, with an addend.
#[derive(Clone, Debug)]
pub struct ScaleAdd {
    pub dims: ScaleDims,
}

impl Call for ScaleAdd {
    fn op(&self) -> &'static str {
        "scale"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.dims.tokens), ("hidden", self.dims.hidden)]
    }

    fn operands(&self) -> Vec<Operand> {
        let (t, h) = ((Axis::Token, self.dims.tokens), (Axis::Whole, self.dims.hidden));
        let one = |name| Operand::act(name, t, h, Fill::Normal(1.0));
        vec![one("addend"), one("x").written()]
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let addend = Some(o.act()?);
        on.scale(Scale { dims: self.dims, addend, x_in_place: o.act_out()? })
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        self.dims.tolerance(precision).scaled(5.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 64);
        let call = Self { dims: ScaleDims { tokens: tokens.len(), ..self.dims } };
        vec![Part { call, selection: Selection::default().with(Axis::Token, tokens), compared: &[] }]
    }
}
