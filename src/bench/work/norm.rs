//! RMSNorm of a residual sum, and of query and key heads, and the gradients.

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Write};
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand, Selection, spread};

/// RMSNorm of a residual sum, or its gradient.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Whether the call is the gradient.
    pub backward: bool,
    /// Sizes of the call.
    pub dims: NormDims,
}

impl Call for Norm {
    fn op(&self) -> &'static str {
        if self.backward { "norm_bwd" } else { "norm_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![("tokens", self.dims.tokens), ("hidden", self.dims.hidden)]
    }

    fn operands(&self) -> Vec<Operand> {
        let (t, h) = ((Axis::Token, self.dims.tokens), (Axis::Whole, self.dims.hidden));
        let stream = |name, fill| Operand::act(name, t, h, fill);
        let weight = Operand::act("weight", h, ONE, Fill::AboutOne(0.1));
        match self.backward {
            false => vec![
                stream("x", Fill::Normal(0.7)),
                stream("residual", Fill::Normal(0.7)),
                weight,
                stream("sum", Fill::Constant(0.0)).written(),
                stream("y", Fill::Constant(0.0)).written(),
                Operand::acc("rstd", t, ONE, Fill::Constant(0.0)).written(),
            ],
            true => vec![
                stream("dy", Fill::Normal(1.0)),
                stream("sum", Fill::Normal(1.0)),
                Operand::acc("rstd", t, ONE, Fill::AboutOne(0.05)),
                weight,
                stream("dsum", Fill::Normal(1.0)).written(),
                Operand::acc("dweight", h, ONE, Fill::Constant(0.0)).written(),
            ],
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        match self.backward {
            false => {
                let (x, residual, weight, sum) = (o.act()?, Some(o.act()?), o.act()?, Some(o.act_out()?));
                on.norm_fwd(NormFwd { dims, x, residual, weight, base: None, sum, y: o.act_out()?, rstd: o.acc_out()? })
            }
            true => on.norm_bwd(NormBwd {
                dims,
                dy: o.act()?,
                sum: o.act()?,
                rstd: o.acc()?,
                weight: o.act()?,
                dsum: o.act_out()?,
                dsum_write: Write::Add,
                dweight: o.acc_out()?,
                dweight_write: Write::Overwrite,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let d = self.dims;
        match name {
            // The norm is computed from the rounded sum. The rounding errors of its squares average out over
            // the row.
            "rstd" => {
                let rounded = 6.0 * precision.act_roundoff() / (d.hidden as f64).sqrt();
                let sums = d.tolerance(stored_as_acc(precision));
                Tolerance { rtol: sums.rtol + rounded, ..sums }
            }
            "dweight" => Tolerance::dot(stored_as_acc(precision), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0)),
            // Sum and gradients are of order one, and the largest of many are about 5.
            "dsum" => d.tolerance(precision).scaled(5.0),
            _ => d.tolerance(precision),
        }
    }

    /// Checks per-row results on some rows, and the weight gradient on all rows.
    fn parts(&self) -> Vec<Part<Self>> {
        let call = |tokens| Self { dims: NormDims { tokens, ..self.dims }, ..*self };
        some_rows(self, self.dims.tokens, self.backward.then_some(&["dsum"]), call)
    }
}

/// Parts of a norm's verification. Results with a value for each row are compared on some rows. For this,
/// `call` returns the call with fewer tokens. The weight gradient is compared on all rows. `by_row` names the
/// results of a gradient that have a value for each row.
fn some_rows<C: Clone>(
    whole: &C,
    tokens: usize,
    by_row: Option<&'static [&'static str; 1]>,
    call: impl Fn(usize) -> C,
) -> Vec<Part<C>> {
    let tokens = spread(tokens, 64);
    let (call, selection) = (call(tokens.len()), Selection::default().with(Axis::Token, tokens));
    match by_row {
        None => vec![Part { call, selection, compared: &[] }],
        Some(compared) => {
            let whole = Part { call: whole.clone(), selection: Selection::default(), compared: &["dweight"] };
            vec![Part { call, selection, compared }, whole]
        }
    }
}

/// RMSNorm of query and key heads, or its gradient.
#[derive(Clone, Debug)]
pub struct QkNorm {
    /// Whether the call is the gradient.
    pub backward: bool,
    /// Sizes of the call.
    pub dims: QkNormDims,
}

impl Call for QkNorm {
    fn op(&self) -> &'static str {
        if self.backward { "qk_norm_bwd" } else { "qk_norm_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        vec![("tokens", d.tokens), ("heads", d.heads), ("kv_heads", d.kv_heads), ("head_dim", d.head_dim)]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let token = (Axis::Token, d.tokens);
        let (copied, fused) = ((Axis::Whole, d.normalised() * d.head_dim), (Axis::Whole, d.width()));
        let weights = (Axis::Whole, d.weights());
        let weight = Operand::act("weight", weights, ONE, Fill::AboutOne(0.1));
        let qkv = |name| Operand::act(name, token, fused, Fill::Normal(1.0)).written();
        match self.backward {
            false => vec![weight, Operand::act("x", token, copied, Fill::Constant(0.0)).written(), qkv("qkv")],
            true => vec![
                Operand::act("x", token, copied, Fill::Normal(1.0)),
                weight,
                qkv("dqkv"),
                Operand::acc("dweight", weights, ONE, Fill::Constant(0.0)).written(),
            ],
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        match self.backward {
            false => {
                let (weight, x) = (o.act()?, Some(o.act_out()?));
                on.qk_norm_fwd(QkNormFwd { dims, weight, x, qkv_in_place: o.act_out()? })
            }
            true => on.qk_norm_bwd(QkNormBwd {
                dims,
                x: o.act()?,
                weight: o.act()?,
                dqkv_in_place: o.act_out()?,
                dweight: o.acc_out()?,
                write: Write::Overwrite,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let d = self.dims;
        match name {
            "dweight" => {
                let terms = d.tokens * d.heads.max(d.kv_heads);
                Tolerance::dot(stored_as_acc(precision), terms).scaled((terms as f64).sqrt().max(1.0))
            }
            // Heads and gradients are of order one, and the largest of many are about 5.
            _ => d.tolerance(precision).scaled(5.0),
        }
    }

    /// Checks per-row results on some rows, and the weight gradient on all rows.
    fn parts(&self) -> Vec<Part<Self>> {
        let call = |tokens| Self { dims: QkNormDims { tokens, ..self.dims }, ..*self };
        some_rows(self, self.dims.tokens, self.backward.then_some(&["dqkv"]), call)
    }
}
