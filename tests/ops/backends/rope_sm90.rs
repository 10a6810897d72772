//! RoPE in the epilogues of wgmma kernels (kernels/rope.cuh): of the QKV GEMM with every tile, and of the
//! gradients of attention, against the reference. Results are bitwise equal on the emulator in every schedule
//! and for any number of multiprocessors, and on a GPU in repeated runs. Calls without such a kernel give the
//! bits of the separate ops.

use common::runs::{RotationInputs, linear_fwd, linear_rope_fwd, rope};
use common::sm90::{Work, check_variant, run_on};
use common::trees::HostTree;
use common::{On, Outputs, compare, emulator, normal, runs};
use half::bf16;
use mapl::backend::Backend;
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::geometry::Tile;
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::reference::Reference;

const P: Precision = Precision::Bf16;
const POSITIONS: usize = 40;

/// Sizes and tables of a RoPE call; positions are unordered.
struct Tables {
    d: RopeDims,
    positions: Vec<i32>,
    cos: Vec<f64>,
    sin: Vec<f64>,
}

impl Tables {
    fn new(tokens: usize, (heads, kv_heads, head_dim): (usize, usize, usize), rotated: usize) -> Self {
        let angles = normal("angles", POSITIONS * rotated / 2, 3.0);
        let (cos, sin) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let d = RopeDims {
            tokens,
            heads: heads + kv_heads,
            unrotated_heads: kv_heads,
            head_dim,
            rotated,
            positions: POSITIONS,
        };
        Self { d, positions: (0..tokens).map(|t| (t * 7 % POSITIONS) as i32).collect(), cos, sin }
    }

    fn inputs(&self) -> RotationInputs<'_> {
        RotationInputs { d: self.d, positions: &self.positions, cos: &self.cos, sin: &self.sin }
    }
}

/// The QKV GEMM and its RoPE.
struct Projection {
    d: LinearDims,
    tables: Tables,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Option<Vec<f64>>,
}

impl Projection {
    fn new(tokens: usize, inputs: usize, heads: (usize, usize, usize), rotated: usize, bias: bool) -> Self {
        let outputs = (heads.0 + 2 * heads.1) * heads.2;
        Self {
            d: LinearDims { tokens, inputs, outputs },
            tables: Tables::new(tokens, heads, rotated),
            x: normal("x", tokens * inputs, 1.0),
            weight: normal("w", outputs * inputs, 1.0 / (inputs as f64).sqrt()),
            bias: bias.then(|| normal("b", outputs, 1.0)),
        }
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        linear_rope_fwd(on, self.d, [&self.x, &self.weight], self.bias.as_deref(), self.tables.inputs())
    }

    /// Runs the GEMM and RoPE as two ops, with y rounded in between.
    fn apart<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        let y = linear_fwd(on, self.d, &self.x, &self.weight, self.bias.as_deref());
        let tables = &self.tables;
        rope(on, tables.d, &tables.positions, (&tables.cos, &tables.sin), &y[0].1, false)
    }
}

impl Work for Projection {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.run(on)
    }
}

/// A [`Projection`] that runs as two ops.
struct Apart<'a>(&'a Projection);

impl Work for Apart<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.0.apart(on)
    }
}

/// Tiles with a kernel for heads of this size.
fn tiles(head_dim: usize) -> Vec<Tile> {
    match head_dim {
        64 => vec![Tile::N256, Tile::N192, Tile::N192PingPong, Tile::N128PingPong],
        96 => vec![Tile::N192],
        _ => vec![Tile::N256, Tile::N128, Tile::N128PingPong],
    }
}

/// Every tile ends among rotated, unrotated and absent heads. Rows end inside a tile and a cluster, and K
/// needs more stages than the ring has.
#[test]
fn projections() {
    let shapes = [(300, 72, 64), (130, 328, 64), (200, 40, 96), (140, 328, 128), (1, 8, 128), (70, 64, 64)];
    for (case, (tokens, inputs, head_dim)) in shapes.into_iter().enumerate() {
        let heads = [(3, 1, head_dim), (5, 2, head_dim)][case % 2];
        let work = Projection::new(tokens, inputs, heads, head_dim, case % 3 != 1);
        let expected = work.run(&On::new(&Reference, P));
        for tile in tiles(head_dim) {
            let label = format!("{tokens} x {inputs}, heads {heads:?}, {tile:?}");
            let tolerance = |_: &str| work.d.tolerance(P).scaled(2.0);
            check_variant(&label, Hopper::Cut(tile, 1), tile.blocks(), &expected, tolerance, &work);
        }
    }
}

/// Bits depend neither on the tile nor on the number of tokens. So a GPU may choose tiles by measured time,
/// and a token does not depend on the other tokens of a batch.
#[test]
fn every_tile_and_number_of_tokens_gives_the_same_bits() {
    for head_dim in [64, 96, 128] {
        let whole = Projection::new(200, 72, (3, 1, head_dim), head_dim, true);
        let few =
            Projection { x: whole.x[..5 * 72].to_vec(), ..Projection::new(5, 72, (3, 1, head_dim), head_dim, true) };
        let mut first: Option<Outputs> = None;
        for tile in tiles(head_dim) {
            let on = |work| Some(run_on(emulator(Schedule::Rising, 4)?, Hopper::Cut(tile, 1), work));
            let (Some(got), Some(of_few)) = (on(&whole), on(&few)) else { return };
            let known = first.get_or_insert_with(|| got.clone());
            compare::same_bits(&format!("{tile:?}"), &got, known);
            compare::bits("the first tokens alone", &of_few[0].1, &got[0].1[..of_few[0].1.len()]);
        }
        let chosen = run_on(emulator(Schedule::Rising, 4).unwrap(), Hopper::Chosen, &whole);
        compare::same_bits("chosen tile", &chosen, &first.unwrap());
    }
}

/// y is rounded once if the GEMM applies RoPE, and twice if a separate op does.
#[test]
fn calls_without_a_kernel_run_op_by_op() {
    let fused = Projection::new(40, 64, (2, 1, 64), 64, true);
    // Head sizes without a kernel, partially rotated heads, rows that TMA cannot load, and no tokens.
    let others = [
        Projection::new(40, 64, (2, 1, 80), 80, true),
        Projection::new(40, 64, (2, 1, 64), 32, true),
        Projection::new(40, 60, (2, 1, 64), 64, true),
        Projection::new(0, 64, (2, 1, 64), 64, true),
    ];
    for (work, same) in std::iter::once((&fused, false)).chain(others.iter().map(|work| (work, true))) {
        let Some(device) = emulator(Schedule::Rising, 2) else { return };
        let got = run_on(device, Hopper::Chosen, work);
        let apart = run_on(emulator(Schedule::Rising, 2).unwrap(), Hopper::Chosen, &Apart(work));
        assert_eq!(got[0].1 == apart[0].1, same, "{:?} {:?}", work.d, work.tables.d);
    }
}

/// The gradient of attention with o and lse of the reference's forward, and with queries and keys rotated
/// back.
struct Gradient<'a> {
    d: AttentionDims,
    tree: &'a HostTree,
    qkv: &'a [f64],
    dout: &'a [f64],
    saved: &'a Outputs,
    tables: &'a Tables,
}

impl Gradient<'_> {
    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        let inputs = self.tables.inputs();
        runs::attention_rope_bwd(on, self.d, self.tree, [self.qkv, self.dout], self.saved, inputs)
    }
}

impl Work for Gradient<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.run(on)
    }
}

/// Tests segments that end inside a tile, a segment of one row, and a branch.
#[test]
fn gradients_of_attention() {
    let tree = HostTree::new().tree(&[(41, None), (130, Some(0)), (9, Some(0))]).tree(&[(1, None)]);
    // The kernels rotate in all cases except the last two.
    for (heads, head_dim, rotated) in [
        ((2, 1), 64, 64),
        ((7, 1), 64, 64),
        ((2, 1), 80, 80),
        ((3, 3), 96, 96),
        ((2, 1), 128, 128),
        ((2, 1), 72, 72),
        ((2, 1), 64, 32),
    ] {
        let d = tree.dims(heads.0, heads.1, head_dim);
        let tables = Tables::new(d.tokens, (heads.0, heads.1, head_dim), rotated);
        let qkv = normal("qkv", d.tokens * d.fused_heads() * head_dim, 1.0);
        let dout = normal("do", d.tokens * d.heads * head_dim, 1.0);
        let reference = On::new(&Reference, P);
        let saved = runs::attention_fwd(&reference, d, &tree, &qkv);
        let work = Gradient { d, tree: &tree, qkv: &qkv, dout: &dout, saved: &saved, tables: &tables };
        let expected = work.run(&reference);
        let label = format!("{heads:?} x {head_dim}, {rotated} rotate");
        let tolerance = |_: &str| d.gradient_tolerance(P).scaled(2.0);
        check_variant(&label, Hopper::Chosen, 1, &expected, tolerance, &work);
    }
}

/// Checks for which head sizes the backend reports that an op includes RoPE.
#[test]
fn kernels_rotate_whole_heads_of_their_sizes() {
    let Some(device) = emulator(Schedule::Rising, 2) else { return };
    let tree = HostTree::new().tree(&[(20, None)]);
    let kernels = Kernels::<_, bf16>::new(device).with_hopper(Hopper::Chosen);
    let on = On { before: 8, ..On::new(&kernels, P) };
    for (head_dim, rotated, linear, gradient) in [
        (64, 64, true, true),
        (80, 80, false, true),
        (96, 96, true, true),
        (128, 128, true, true),
        (64, 32, false, false),
        (72, 72, false, false),
    ] {
        let tables = Tables::new(20, (2, 1, head_dim), rotated);
        let (positions, cos, sin) = (on.idx(&tables.positions), on.acc(&tables.cos), on.acc(&tables.sin));
        let rotation = || Rotation { dims: tables.d, positions: positions.view(), cos: cos.view(), sin: sin.view() };
        let dims = LinearDims { tokens: 20, inputs: 64, outputs: 4 * head_dim };
        let (x, weight, mut y) =
            (on.act(&vec![0.0; 20 * 64]), on.act(&vec![0.0; 256 * head_dim]), on.act_out(80 * head_dim));
        let (x, weight) = (x.view(), weight.view());
        let call = LinearFwd { dims, x, weight, bias: None, residual: None, y: y.view_mut() };
        let fused = kernels.fuses_linear_rope_fwd(&LinearRopeFwd { linear: call, rotation: rotation() });
        assert_eq!(fused, linear, "GEMM, {rotated} of {head_dim}");
        let d = tree.dims(2, 1, head_dim);
        let lists = [&tree.starts, &tree.ancestor_offsets, &tree.ancestors, &tree.trees].map(|list| on.idx(list));
        let [starts, ancestor_offsets, ancestors, trees] = lists.each_ref().map(|list| list.view());
        let (qkv, o, lse) = (on.act(&vec![0.0; 80 * head_dim]), on.act(&vec![0.0; 40 * head_dim]), on.acc(&[0.0; 40]));
        let attention = AttentionBwd {
            dims: d,
            do_: o.view(),
            qkv: qkv.view(),
            o: o.view(),
            lse: lse.view(),
            tree: Tree { starts, ancestor_offsets, ancestors, trees },
            dqkv: y.view_mut(),
        };
        let fused = kernels.fuses_attention_rope_bwd(&AttentionRopeBwd { attention, rotation: rotation() });
        assert_eq!(fused, gradient, "gradient of attention, {rotated} of {head_dim}");
    }
}
