//! Embedding lookup and its gradient.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Write};
use crate::bench::operand::{Axis, Cursor, Fill, HostRuns, Operand, Selection, spread};
use crate::rng::Rng;

/// Token ids from squared uniform numbers, so that low ids are frequent and some repeat.
fn token_ids(tokens: usize, vocab: usize) -> Arc<Vec<i32>> {
    let mut rng = Rng::keyed(2, &["bench", "ids"]);
    let id = |unit: f64| ((unit * unit * vocab as f64) as usize).min(vocab - 1) as i32;
    Arc::new((0..tokens).map(|_| id(rng.unit())).collect())
}

/// Embedding lookup, or its gradient.
#[derive(Clone, Debug)]
pub struct Embedding {
    pub backward: bool,
    pub dims: EmbeddingDims,
    ids: Arc<Vec<i32>>,
}

impl Embedding {
    pub fn new(backward: bool, dims: EmbeddingDims) -> Self {
        Self { backward, dims, ids: token_ids(dims.tokens, dims.vocab) }
    }
}

impl Call for Embedding {
    fn op(&self) -> &'static str {
        if self.backward { "embedding_bwd" } else { "embedding_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let d = self.dims;
        vec![("tokens", d.tokens), ("hidden", d.hidden), ("vocab", d.vocab)]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims;
        let (t, h, v) = ((Axis::Whole, d.tokens), (Axis::Output, d.hidden), (Axis::Vocab, d.vocab));
        match self.backward {
            false => vec![
                Operand::idx("ids", &self.ids),
                Operand::act("table", v, h, Fill::Normal(1.0)),
                Operand::act("x", t, h, Fill::Constant(0.0)).written(),
            ],
            true => {
                let dx = Operand::act("dx", t, h, Fill::Normal(1.0));
                let dtable = Operand::acc("dtable", v, h, Fill::Constant(0.0)).written();
                [dx].into_iter().chain(HostRuns::from_keys(&self.ids).operands()).chain([dtable]).collect()
            }
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        match self.backward {
            false => on.embedding_fwd(EmbeddingFwd { dims, ids: o.idx()?, table: o.act()?, x: o.act_out()? }),
            // The gradient is added to that of the head, as in a model with tied embeddings.
            true => on.embedding_bwd(EmbeddingBwd {
                dims,
                dx: o.act()?,
                runs: HostRuns::take(&mut o)?,
                dtable: o.acc_out()?,
                write: Write::Add,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        let longest =
            HostRuns::from_keys(&self.ids).offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(1) as usize;
        match self.backward {
            false => Tolerance::dot(precision, 1),
            true => Tolerance::dot(stored_as_acc(precision), longest).scaled((longest as f64).sqrt()),
        }
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let columns = spread(self.dims.hidden, 48);
        let dims = EmbeddingDims { hidden: columns.len(), ..self.dims };
        let selection = Selection::default().with(Axis::Output, columns);
        vec![Part { call: Self { dims, ..self.clone() }, selection, compared: &[] }]
    }
}
