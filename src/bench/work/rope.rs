//! Rotary position embedding, forward and backward.

use std::sync::Arc;

use super::{Call, Part};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, Operand, Selection, spread};

/// Rotation of queries and keys, or its inverse.
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    pub backward: bool,
    pub dims: RopeDims,
    /// Position of every token of the complete call.
    positions: Arc<Vec<i32>>,
}

impl RotaryEmbedding {
    pub fn new(backward: bool, dims: RopeDims) -> Self {
        let positions = (0..dims.tokens).map(|token| (token % dims.positions) as i32).collect();
        Self { backward, dims, positions: Arc::new(positions) }
    }

    /// The rotation of some tokens of this call, with the heads of `dims`.
    pub(super) fn of_tokens(&self, tokens: &[usize], dims: RopeDims) -> Self {
        let positions = tokens.iter().map(|&token| self.positions[token]).collect();
        Self { dims: RopeDims { tokens: tokens.len(), ..dims }, positions: Arc::new(positions), ..*self }
    }

    /// Positions, cosines and sines.
    pub(super) fn tables(&self) -> [Operand; 3] {
        let (rows, half) = ((Axis::Whole, self.dims.positions), (Axis::Whole, self.dims.head_dim / 2));
        [
            Operand::idx("positions", &self.positions),
            Operand::acc("cos", rows, half, self.table(f64::cos)),
            Operand::acc("sin", rows, half, self.table(f64::sin)),
        ]
    }

    /// The operands of [`RotaryEmbedding::tables`] as arguments.
    pub(super) fn rotation<'a, B: Backend>(&self, o: &mut Cursor<'a, B>) -> Result<Rotation<'a, B>> {
        Ok(Rotation { dims: self.dims, positions: o.idx()?, cos: o.acc()?, sin: o.acc()? })
    }

    /// Cosines or sines of the angles with base 10,000.
    fn table(&self, of: impl Fn(f64) -> f64) -> Fill {
        let half = self.dims.head_dim / 2;
        let angle = |i: usize| (i / half) as f64 * 1e4f64.powf(-((i % half) as f64) / half as f64);
        Fill::Values(Arc::new((0..self.dims.positions * half).map(|i| of(angle(i))).collect()))
    }
}

impl Call for RotaryEmbedding {
    fn op(&self) -> &'static str {
        if self.backward { "rope_bwd" } else { "rope_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        vec![("tokens", d.tokens), ("heads", d.heads), ("still", d.unrotated_heads), ("head_dim", d.head_dim)]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let qkv = Operand::act("qkv", (Axis::Token, d.tokens), (Axis::Whole, d.width()), Fill::Normal(1.0));
        self.tables().into_iter().chain([qkv.written()]).collect()
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let args = self.rotation(&mut o)?.of(o.act_out()?);
        if self.backward { on.rope_bwd(args) } else { on.rope_fwd(args) }
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        Tolerance::dot(precision, 2).scaled(5.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 64);
        let call = self.of_tokens(&tokens, self.dims);
        vec![Part { call, selection: Selection::default().with(Axis::Token, tokens), compared: &[] }]
    }
}
