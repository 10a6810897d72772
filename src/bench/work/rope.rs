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
        let table = ((Axis::Whole, d.positions), (Axis::Whole, d.head_dim / 2));
        let columns = (Axis::Whole, (d.heads + d.unrotated_heads) * d.head_dim);
        vec![
            Operand::idx("positions", &self.positions),
            Operand::acc("cos", table.0, table.1, self.table(f64::cos)),
            Operand::acc("sin", table.0, table.1, self.table(f64::sin)),
            Operand::act("qkv", (Axis::Token, d.tokens), columns, Fill::Normal(1.0)).written(),
        ]
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let args =
            Rope { dims: self.dims, positions: o.idx()?, cos: o.acc()?, sin: o.acc()?, qkv_in_place: o.act_out()? };
        if self.backward { on.rope_bwd(args) } else { on.rope_fwd(args) }
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        Tolerance::dot(precision, 2).scaled(5.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 64);
        let positions = Arc::new(tokens.iter().map(|&token| self.positions[token]).collect());
        let dims = RopeDims { tokens: tokens.len(), ..self.dims };
        let call = Self { dims, positions, ..*self };
        vec![Part { call, selection: Selection::default().with(Axis::Token, tokens), compared: &[] }]
    }
}
