//! Ops fused with RoPE: the projection to queries, keys and values, and the gradient of attention.

use super::attention::Attention;
use super::linear::root;
use super::rope::RotaryEmbedding;
use super::{Call, Part};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand, Selection, spread};

/// Rows of a check.
const ROWS: usize = 24;

/// The linear layer to queries, keys and values, and their rotation.
#[derive(Clone, Debug)]
pub struct RotatedLinear {
    /// Elements of an input row.
    pub inputs: usize,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Rotation of its result.
    pub rotation: RotaryEmbedding,
}

impl RotatedLinear {
    fn dims(&self) -> LinearDims {
        let d = self.rotation.dims;
        LinearDims { tokens: d.tokens, inputs: self.inputs, outputs: d.width() }
    }
}

impl Call for RotatedLinear {
    fn op(&self) -> &'static str {
        "linear_rope_fwd"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let (d, linear) = (self.rotation.dims, self.dims());
        vec![
            ("tokens", linear.tokens),
            ("inputs", linear.inputs),
            ("outputs", linear.outputs),
            ("head_dim", d.head_dim),
            ("still", d.unrotated_heads),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims();
        let (t, i, o) = ((Axis::Token, d.tokens), (Axis::Input, d.inputs), (Axis::Output, d.outputs));
        let bias = self.bias.then(|| Operand::act("bias", o, ONE, Fill::Normal(1.0)));
        let rows =
            [Operand::act("x", t, i, Fill::Normal(1.0)), Operand::act("weight", o, i, Fill::Normal(root(d.inputs)))];
        let result = Operand::act("y", t, o, Fill::Constant(0.0)).written();
        rows.into_iter().chain(bias).chain(self.rotation.tables()).chain([result]).collect()
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let (x, weight) = (o.act()?, o.act()?);
        let bias = self.bias.then(|| o.act()).transpose()?;
        let rotation = self.rotation.rotation(&mut o)?;
        let linear = LinearFwd { dims: self.dims(), x, weight, bias, residual: None, y: o.act_out()? };
        on.linear_rope_fwd(LinearRopeFwd { linear, rotation })
    }

    /// If RoPE runs as a separate op, y is rounded before the rotation. The error is the norm of a rotated
    /// pair, here at most 7, times the roundoff, even if the rotated value is near 0.
    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        let sums = self.dims().tolerance(precision).scaled(2.0);
        Tolerance { atol: sums.atol + 7.0 * precision.act_roundoff(), ..sums }
    }

    /// Checks whole heads: the first one, the last that rotates, and the last one.
    fn parts(&self) -> Vec<Part<Self>> {
        let d = self.rotation.dims;
        let tokens = spread(d.tokens, ROWS);
        let mut heads = vec![0, d.heads - 1, d.heads + d.unrotated_heads - 1];
        heads.dedup();
        let rotated = heads.iter().filter(|&&head| head < d.heads).count();
        let columns = heads.iter().flat_map(|head| head * d.head_dim..(head + 1) * d.head_dim).collect();
        let dims = RopeDims { heads: rotated, unrotated_heads: heads.len() - rotated, ..d };
        let rotation = self.rotation.of_tokens(&tokens, dims);
        let selection = Selection::default().with(Axis::Token, tokens).with(Axis::Output, columns);
        vec![Part { call: Self { rotation, ..self.clone() }, selection, compared: &[] }]
    }
}

/// The gradient of attention with respect to queries and keys before their rotation.
#[derive(Clone, Debug)]
pub struct RotatedAttention {
    /// A backward call.
    pub attention: Attention,
    /// Rotation of the queries and keys of the attention.
    pub rotation: RotaryEmbedding,
}

impl Call for RotatedAttention {
    fn op(&self) -> &'static str {
        "attention_rope_bwd"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        self.attention.sizes()
    }

    fn operands(&self) -> Vec<Operand> {
        self.attention.operands().into_iter().chain(self.rotation.tables()).collect()
    }

    fn compute_inputs<B: Backend>(&self, on: &B, operands: Cursor<'_, B>) -> Result<()> {
        self.attention.compute_inputs(on, operands)
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let attention = self.attention.gradient(&mut o)?;
        on.attention_rope_bwd(AttentionRopeBwd { attention, rotation: self.rotation.rotation(&mut o)? })
    }

    /// An element is a sum of two gradients, each times a cosine or sine.
    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        self.attention.tolerance(precision, name).scaled(2.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let d = self.rotation.dims;
        let parts = self.attention.parts().into_iter().map(|part| {
            let (all, len) = (self.attention.tokens(), part.call.tokens());
            let dims =
                RopeDims { heads: part.call.heads + part.call.kv_heads, unrotated_heads: part.call.kv_heads, ..d };
            let rotation = self.rotation.of_tokens(&(all - len..all).collect::<Vec<_>>(), dims);
            Part { call: Self { attention: part.call, rotation }, selection: part.selection, compared: part.compared }
        });
        parts.collect()
    }
}
