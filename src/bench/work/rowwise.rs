//! Embedding, normalisation, rotation, activation and bias: ops whose bytes decide their time.

use std::sync::Arc;

use super::{Call, Part, stored_as_acc};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Write};
use crate::bench::operand::{Axis, Cursor, Fill, ONE, Operand, Picks, spread};
use crate::rng::Rng;

/// Items grouped by key, as [`Runs`] has them.
#[derive(Clone, Debug)]
pub struct HostRuns {
    pub order: Arc<Vec<i32>>,
    pub offsets: Arc<Vec<i32>>,
    pub keys: Arc<Vec<i32>>,
}

impl HostRuns {
    /// Of the key of every item.
    pub fn of(keys_of_items: &[i32]) -> Self {
        let mut order: Vec<i32> = (0..keys_of_items.len() as i32).collect();
        order.sort_by_key(|&item| (keys_of_items[item as usize], item));
        let (mut offsets, mut keys) = (Vec::new(), Vec::new());
        for (at, &item) in order.iter().enumerate() {
            let key = keys_of_items[item as usize];
            if keys.last() != Some(&key) {
                offsets.push(at as i32);
                keys.push(key);
            }
        }
        offsets.push(order.len() as i32);
        Self { order: order.into(), offsets: offsets.into(), keys: keys.into() }
    }

    /// The three operands.
    pub fn operands(&self) -> [Operand; 3] {
        [
            Operand::idx("runs.order", &self.order),
            Operand::idx("runs.offsets", &self.offsets),
            Operand::idx("runs.keys", &self.keys),
        ]
    }

    /// The three operands, taken.
    pub fn take<'a, B: Backend>(o: &mut Cursor<'a, B>) -> Runs<'a, B::Idx> {
        Runs { order: o.idx(), offsets: o.idx(), keys: o.idx() }
    }
}

/// Ids of tokens: squares of uniform numbers, so that low ids are frequent and some repeat.
pub fn token_ids(tokens: usize, vocab: usize) -> Arc<Vec<i32>> {
    let mut rng = Rng::keyed(2, &["bench", "ids"]);
    let id = |unit: f64| ((unit * unit * vocab as f64) as usize).min(vocab - 1) as i32;
    Arc::new((0..tokens).map(|_| id(rng.unit())).collect())
}

/// Rows of the embedding, or their gradient.
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
                [dx].into_iter().chain(HostRuns::of(&self.ids).operands()).chain([dtable]).collect()
            }
        }
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims;
        match self.backward {
            false => on.embedding_fwd(EmbeddingFwd { dims, ids: o.idx(), table: o.act(), x: o.act_out() }),
            // Added to the head's gradient, as in a tied model.
            true => on.embedding_bwd(EmbeddingBwd {
                dims,
                dx: o.act(),
                runs: HostRuns::take(&mut o),
                dtable: o.acc_out(),
                write: Write::Add,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        let longest = HostRuns::of(&self.ids).offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(1) as usize;
        match self.backward {
            false => Tolerance::dot(precision, 1),
            true => Tolerance::dot(stored_as_acc(precision), longest).scaled((longest as f64).sqrt()),
        }
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let columns = spread(self.dims.hidden, 48);
        let dims = EmbeddingDims { hidden: columns.len(), ..self.dims };
        let picks = Picks::default().of(Axis::Output, columns);
        vec![Part { call: Self { dims, ..self.clone() }, picks, compared: &[] }]
    }
}

/// RMSNorm of a sum, or its gradient.
#[derive(Clone, Debug)]
pub struct Norm {
    pub backward: bool,
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
                let (x, residual, weight, sum) = (o.act(), Some(o.act()), o.act(), Some(o.act_out()));
                on.norm_fwd(NormFwd { dims, x, residual, weight, sum, y: o.act_out(), rstd: o.acc_out() })
            }
            true => on.norm_bwd(NormBwd {
                dims,
                dy: o.act(),
                sum: o.act(),
                rstd: o.acc(),
                weight: o.act(),
                dsum: o.act_out(),
                dsum_write: Write::Add,
                dweight: o.acc_out(),
                dweight_write: Write::Overwrite,
            }),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let d = self.dims;
        match name {
            // The sum is normalised as it is stored: the roundings of its squares average out over the row.
            "rstd" => {
                let rounded = 6.0 * precision.act_roundoff() / (d.hidden as f64).sqrt();
                let sums = d.tolerance(stored_as_acc(precision));
                Tolerance { rtol: sums.rtol + rounded, ..sums }
            }
            "dweight" => Tolerance::dot(stored_as_acc(precision), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0)),
            // Sum and gradients of order one, the largest of many about 5.
            "dsum" => d.tolerance(precision).scaled(5.0),
            _ => d.tolerance(precision),
        }
    }

    /// Some rows for what belongs to rows; all of them for the gradient of the weight.
    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 64);
        let dims = NormDims { tokens: tokens.len(), ..self.dims };
        let picks = Picks::default().of(Axis::Token, tokens);
        let call = Self { dims, ..*self };
        match self.backward {
            false => vec![Part { call, picks, compared: &[] }],
            true => {
                let whole = Part { call: self.clone(), picks: Picks::default(), compared: &["dweight"] };
                vec![Part { call, picks, compared: &["dsum"] }, whole]
            }
        }
    }
}

/// Column sums of a gradient.
#[derive(Clone, Debug)]
pub struct Bias {
    pub dims: LinearDims,
}

impl Call for Bias {
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
        on.bias_bwd(BiasBwd { dims: self.dims, dy: o.act(), dbias: o.acc_out(), write: Write::Overwrite })
    }

    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        let tokens = self.dims.tokens;
        Tolerance::dot(stored_as_acc(precision), tokens).scaled((tokens as f64).sqrt().max(1.0))
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let outputs = spread(self.dims.outputs, 64);
        let dims = LinearDims { outputs: outputs.len(), ..self.dims };
        vec![Part { call: Self { dims }, picks: Picks::default().of(Axis::Output, outputs), compared: &[] }]
    }
}

/// Rotation of queries and keys, forward or back.
#[derive(Clone, Debug)]
pub struct Rotation {
    pub backward: bool,
    pub dims: RopeDims,
    /// Of every token; those of the whole call.
    positions: Arc<Vec<i32>>,
}

impl Rotation {
    pub fn new(backward: bool, dims: RopeDims) -> Self {
        let positions = (0..dims.tokens).map(|token| (token % dims.positions) as i32).collect();
        Self { backward, dims, positions: Arc::new(positions) }
    }

    /// Cosines or sines of the angles of base 10,000.
    fn table(&self, of: impl Fn(f64) -> f64) -> Fill {
        let half = self.dims.head_dim / 2;
        let angle = |i: usize| (i / half) as f64 * 1e4f64.powf(-((i % half) as f64) / half as f64);
        Fill::Values(Arc::new((0..self.dims.positions * half).map(|i| of(angle(i))).collect()))
    }
}

impl Call for Rotation {
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
        let args = Rope { dims: self.dims, positions: o.idx(), cos: o.acc(), sin: o.acc(), qkv_in_place: o.act_out() };
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
        vec![Part { call, picks: Picks::default().of(Axis::Token, tokens), compared: &[] }]
    }
}

/// The gated activation alone, or its gradient.
#[derive(Clone, Debug)]
pub struct Activation {
    pub backward: bool,
    pub dims: GluDims,
}

impl Call for Activation {
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
            false => on.glu_fwd(GluFwd { dims, gate_up: o.act(), act: o.act_out() }),
            true => on.glu_bwd(GluBwd { dims, dact: o.act(), gate_up: o.act(), dgate_up: o.act_out() }),
        }
    }

    /// Numbers of order one, the largest of many about 5.
    fn tolerance(&self, precision: Precision, _: &str) -> Tolerance {
        self.dims.tolerance(precision).scaled(5.0)
    }

    fn parts(&self) -> Vec<Part<Self>> {
        let tokens = spread(self.dims.tokens, 32);
        let dims = GluDims { tokens: tokens.len(), ..self.dims };
        vec![Part { call: Self { dims, ..*self }, picks: Picks::default().of(Axis::Token, tokens), compared: &[] }]
    }
}
