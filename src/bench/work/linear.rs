//! GEMMs of linear layers, and the gradient of their bias.

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Write};
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand, Selection, spread};

/// GEMM of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Forward with an added residual, as in the projections back to the residual stream.
    Residual,
    /// Forward with a bias, as in the query, key and value projection.
    Bias,
    /// Forward without residual and bias.
    Forward,
    /// Gradient of the input.
    Input,
    /// Gradient of the weight.
    Weight,
    /// Weight gradient with the norms of its patches, as in the last micro-batch of a step. The norms are not
    /// verified here, because a part of the gradient has different norms.
    Norms,
}

/// A GEMM of a linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Forward pass, or one of the gradients.
    pub pass: Pass,
    /// Sizes of the call.
    pub dims: LinearDims,
}

/// Number of rows, and of columns, that a check selects on long axes.
const ROWS: usize = 24;
const COLUMNS: usize = 40;

pub(super) fn root(n: usize) -> f64 {
    1.0 / (n.max(1) as f64).sqrt()
}

impl Call for Linear {
    fn op(&self) -> &'static str {
        match self.pass {
            Pass::Residual | Pass::Bias | Pass::Forward => "linear_fwd",
            Pass::Input => "linear_bwd_input",
            Pass::Weight | Pass::Norms => "linear_bwd_weight",
        }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        let mut sizes = vec![("tokens", d.tokens), ("inputs", d.inputs), ("outputs", d.outputs)];
        if self.pass == Pass::Norms {
            sizes.push(("norms", d.patches()));
        }
        sizes
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let (t, i, o) = ((Axis::Token, d.tokens), (Axis::Input, d.inputs), (Axis::Output, d.outputs));
        let x = Operand::act("x", t, i, Fill::Normal(1.0));
        let weight = |terms: usize| Operand::act("weight", o, i, Fill::Normal(root(terms)));
        let y = |name, fill| Operand::act(name, t, o, fill);
        let result = y("y", Fill::Constant(0.0)).written();
        match self.pass {
            Pass::Forward => vec![x, weight(d.inputs), result],
            Pass::Bias => {
                vec![x, weight(d.inputs), Operand::act("bias", o, ONE, Fill::Normal(1.0)), result]
            }
            Pass::Residual => vec![x, weight(d.inputs), y("residual", Fill::Normal(1.0)), result],
            Pass::Input => {
                let dx = Operand::act("dx", t, i, Fill::Constant(0.0)).written();
                vec![y("dy", Fill::Normal(1.0)), weight(d.outputs), dx]
            }
            Pass::Weight | Pass::Norms => {
                let dweight = Operand::acc("dweight", o, i, Fill::Constant(0.0)).written();
                let norms = Operand::acc("norms", (Axis::Whole, d.patches()), ONE, Fill::Constant(0.0)).written();
                let norms = Some(norms).filter(|_| self.pass == Pass::Norms);
                [y("dy", Fill::Normal(1.0)), x, dweight].into_iter().chain(norms).collect()
            }
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (dims, write) = (self.dims, Write::Overwrite);
        match self.pass {
            Pass::Input => {
                on.linear_bwd_input(LinearBwdInput { dims, dy: o.act()?, weight: o.act()?, dx: o.act_out()?, write })
            }
            Pass::Weight | Pass::Norms => {
                let (dy, x, dweight) = (o.act()?, o.act()?, o.acc_out()?);
                let norms = (self.pass == Pass::Norms).then(|| o.acc_out()).transpose()?;
                on.linear_bwd_weight(LinearBwdWeight { dims, dy, x, dweight, write, norms })
            }
            _ => {
                let (x, weight) = (o.act()?, o.act()?);
                let bias = (self.pass == Pass::Bias).then(|| o.act()).transpose()?;
                let residual = (self.pass == Pass::Residual).then(|| o.act()).transpose()?;
                on.linear_fwd(LinearFwd { dims, x, weight, bias, residual, y: o.act_out()? })
            }
        }
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        let d = self.dims;
        match self.pass {
            Pass::Input => Tolerance::dot(precision, d.outputs),
            // Sums of products of order one grow with the square root of their length.
            Pass::Weight | Pass::Norms => {
                Tolerance::dot(stored_as_acc(precision), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0))
            }
            _ => d.tolerance(precision),
        }
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let d = self.dims;
        let (tokens, inputs, outputs) = (spread(d.tokens, ROWS), spread(d.inputs, COLUMNS), spread(d.outputs, COLUMNS));
        let (selection, dims) = match self.pass {
            Pass::Input => {
                let dims = LinearDims { tokens: tokens.len(), inputs: inputs.len(), ..d };
                (Selection::default().with(Axis::Token, tokens).with(Axis::Input, inputs), dims)
            }
            Pass::Weight | Pass::Norms => {
                let dims = LinearDims { inputs: inputs.len(), outputs: outputs.len(), ..d };
                (Selection::default().with(Axis::Input, inputs).with(Axis::Output, outputs), dims)
            }
            _ => {
                let dims = LinearDims { tokens: tokens.len(), outputs: outputs.len(), ..d };
                (Selection::default().with(Axis::Token, tokens).with(Axis::Output, outputs), dims)
            }
        };
        let compared: &[&str] = if self.pass == Pass::Norms { &["dweight"] } else { &[] };
        vec![Part { call: Self { dims, ..*self }, selection, compared }]
    }
}

/// Bias gradient: column sums of the output's gradient.
#[derive(Clone, Debug)]
pub struct BiasGrad {
    /// Sizes of the call.
    pub dims: LinearDims,
}

impl Call for BiasGrad {
    fn op(&self) -> &'static str {
        "bias_bwd"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.dims.tokens), ("outputs", self.dims.outputs)]
    }

    fn operands(&self) -> Vec<Operand> {
        let (t, o) = ((Axis::Token, self.dims.tokens), (Axis::Output, self.dims.outputs));
        vec![Operand::act("dy", t, o, Fill::Normal(1.0)), Operand::acc("dbias", o, ONE, Fill::Constant(0.0)).written()]
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        on.bias_bwd(BiasBwd { dims: self.dims, dy: o.act()?, dbias: o.acc_out()?, write: Write::Overwrite })
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        let tokens = self.dims.tokens;
        Tolerance::dot(stored_as_acc(precision), tokens).scaled((tokens as f64).sqrt().max(1.0))
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let outputs = spread(self.dims.outputs, 64);
        let dims = LinearDims { outputs: outputs.len(), ..self.dims };
        vec![Part { call: Self { dims }, selection: Selection::default().with(Axis::Output, outputs), compared: &[] }]
    }
}
