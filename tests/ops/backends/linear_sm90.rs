//! Linear layers on wgmma kernels (kernels/linear_sm90.cu): every tile and split-K count against
//! the reference, with partial tiles in every dimension. Results are bitwise equal on the emulator
//! in every schedule and for any number of multiprocessors, and on a GPU in repeated runs.

use common::sm90::{Work, check_variant, run_on};
use common::{On, Outputs, compare, emulator, gpu, normal, runs, stored_as_acc};
use half::bf16;
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::geometry::Tile;
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, Write};

/// Every shape has a partial last column tile for some tile size. Further cases: K that is and is
/// not a multiple of the 64 values of a stage, one row, more rows than a cluster's, more stages
/// than the ring has.
const SHAPES: [(usize, usize, usize); 5] = [(1, 8, 8), (72, 456, 136), (300, 232, 64), (130, 904, 24), (40, 200, 456)];

/// Compares the results of every tile and split count with the reference, and bitwise between schedules.
fn everywhere(label: &str, expected: &Outputs, tolerance: Tolerance, splits: &[usize], work: &impl Work) {
    for tile in Tile::ALL {
        for &splits in splits {
            let label = format!("{label}, {tile:?}, {splits} splits");
            check_variant(&label, Hopper::Cut(tile, splits), tile.blocks(), expected, |_| tolerance, work);
        }
    }
}

struct Forward<'a> {
    d: LinearDims,
    x: &'a [f64],
    weight: &'a [f64],
    bias: Option<&'a [f64]>,
    residual: Option<&'a [f64]>,
}

impl Forward<'_> {
    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        match (self.residual, self.bias) {
            (Some(residual), Some(bias)) => {
                runs::linear_fwd_residual(on, self.d, [self.x, self.weight, bias, residual])
            }
            _ => runs::linear_fwd(on, self.d, self.x, self.weight, self.bias),
        }
    }
}

impl Work for Forward<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.run(on)
    }
}

/// Operands of the dx or dweight GEMM and the initial content of the output.
struct Backward<'a> {
    d: LinearDims,
    dy: &'a [f64],
    other: &'a [f64],
    start: &'a [f64],
    write: Write,
    weight: bool,
}

impl Backward<'_> {
    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        if !self.weight {
            return runs::linear_bwd_input(on, self.d, self.dy, self.other, self.start, self.write);
        }
        // The last split follows a different code path if norms are requested; results must be bitwise equal.
        let outputs = runs::linear_bwd_weight_norms(on, self.d, self.dy, self.other, self.start, self.write);
        let alone = runs::linear_bwd_weight(on, self.d, self.dy, self.other, self.start, self.write);
        compare::bits("without norms", &alone[0].1, &outputs[0].1);
        outputs
    }
}

impl Work for Backward<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.run(on)
    }
}

/// All tiles give the same bits, so a GPU may choose tiles by measured time without changing a result.
#[test]
fn every_tile_gives_the_same_bits() {
    let (tokens, outputs, inputs) = (200, 72, 136);
    let d = LinearDims { tokens, inputs, outputs };
    let (x, dy) = (normal("x", tokens * inputs, 1.0), normal("dy", tokens * outputs, 1.0));
    let (weight, start) = (normal("w", outputs * inputs, 0.1), normal("start", inputs.max(outputs) * tokens, 1.0));
    let forward = Forward { d, x: &x, weight: &weight, bias: None, residual: None };
    let gradient = |other, start, weight| Backward { d, dy: &dy, other, start, write: Write::Overwrite, weight };
    let (input, of_weight) =
        (gradient(&weight, &start[..tokens * inputs], false), gradient(&x, &start[..outputs * inputs], true));
    let mut first: [Option<Outputs>; 4] = Default::default();
    for tile in Tile::ALL {
        let Some(device) = emulator(Schedule::Rising, 4) else { return };
        let kernels = Kernels::<_, bf16>::new(device).with_hopper(Hopper::Cut(tile, 1));
        let split = |splits, kernels: Kernels<_, bf16>| kernels.with_hopper(Hopper::Cut(tile, splits));
        // The Hopper kernels run only on operands that are aligned to 16 bytes.
        let one = On { before: 8, ..On::new(&kernels, Precision::Bf16) };
        let mut all = vec![forward.run(&one), input.run(&one), of_weight.run(&one)];
        let kernels = split(3, kernels);
        all.push(of_weight.run(&On { before: 8, ..On::new(&kernels, Precision::Bf16) }));
        // Patch norms hold one f32 per tile, so their rounding differs between tiles.
        all.iter_mut().for_each(|outputs| outputs.retain(|(name, _)| *name != "rms"));
        for (known, got) in first.iter_mut().zip(all) {
            match known {
                Some(known) => compare::same_bits(&format!("{tile:?}"), &got, known),
                None => *known = Some(got),
            }
        }
    }
}

#[test]
fn forward_with_bias_and_residual() {
    for (tokens, outputs, inputs) in SHAPES {
        let d = LinearDims { tokens, inputs, outputs };
        let (x, bias) = (normal("x", tokens * inputs, 1.0), normal("b", outputs, 1.0));
        let weight = normal("w", outputs * inputs, 1.0 / (inputs as f64).sqrt());
        let residual = normal("r", tokens * outputs, 1.0);
        let reference = On::new(&Reference, Precision::Bf16);
        for (bias, residual) in [(None, None), (Some(&bias[..]), None), (Some(&bias[..]), Some(&residual[..]))] {
            let work = Forward { d, x: &x, weight: &weight, bias, residual };
            let label = format!("forward {d:?}, bias {}, residual {}", bias.is_some(), residual.is_some());
            everywhere(&label, &work.run(&reference), d.tolerance(Precision::Bf16), &[1], &work);
        }
    }
}

/// The first warp initialises the mbarriers that the others, and the other block of a cluster, wait on.
#[test]
fn the_first_warp_may_come_last() {
    let d = LinearDims { tokens: 300, inputs: 136, outputs: 264 };
    let (x, weight) = (normal("x", d.tokens * d.inputs, 1.0), normal("w", d.outputs * d.inputs, 0.1));
    let work = Forward { d, x: &x, weight: &weight, bias: None, residual: None };
    for tile in [Tile::N256, Tile::N128, Tile::N192PingPong] {
        let on = |schedule| Some(run_on(emulator(schedule, 2)?, Hopper::Cut(tile, 1), &work));
        let (Some(first), Some(late)) = (on(Schedule::Rising), on(Schedule::Late)) else { return };
        compare::same_bits(&format!("{tile:?}, first warp last"), &late, &first);
    }
}

#[test]
fn input_gradient_overwrites_and_adds() {
    for (tokens, inputs, outputs) in SHAPES {
        let d = LinearDims { tokens, inputs, outputs };
        let weight = normal("w", outputs * inputs, 1.0 / (outputs as f64).sqrt());
        let (dy, start) = (normal("dy", tokens * outputs, 1.0), normal("start", tokens * inputs, 1.0));
        for write in [Write::Overwrite, Write::Add] {
            let work = Backward { d, dy: &dy, other: &weight, start: &start, write, weight: false };
            let expected = work.run(&On::new(&Reference, Precision::Bf16));
            let tolerance = Tolerance::dot(Precision::Bf16, outputs);
            everywhere(&format!("input {d:?}, {write:?}"), &expected, tolerance, &[1], &work);
        }
    }
}

#[test]
fn weight_gradient_overwrites_adds_and_is_split() {
    for (outputs, inputs, tokens) in SHAPES {
        let d = LinearDims { tokens, inputs, outputs };
        let (x, dy) = (normal("x", tokens * inputs, 1.0), normal("dy", tokens * outputs, 1.0));
        let start = normal("start", outputs * inputs, 1.0);
        for write in [Write::Overwrite, Write::Add] {
            let work = Backward { d, dy: &dy, other: &x, start: &start, write, weight: true };
            let expected = work.run(&On::new(&Reference, Precision::Bf16));
            let p = stored_as_acc(Precision::Bf16);
            let tolerance = Tolerance::dot(p, tokens).scaled((tokens as f64).sqrt().max(1.0));
            everywhere(&format!("weight {d:?}, {write:?}"), &expected, tolerance, &[1, 2, 5], &work);
        }
    }
}

/// (tokens, hidden, intermediate): partial and exact tiles of 96 columns, and a tile with its
/// second box outside the tensor; more rows than a cluster's; K shorter than a stage and longer
/// than the ring.
const GATED: [(usize, usize, usize); 4] = [(1, 8, 8), (300, 136, 40), (300, 72, 192), (40, 456, 232)];

/// Forward or backward gated GEMM.
struct Gated<'a> {
    d: LinearGluDims,
    /// x for the forward, dy for the backward.
    input: &'a [f64],
    weight: &'a [f64],
    /// Set for the backward.
    gate_up: Option<&'a [f64]>,
    stored: bool,
}

impl Gated<'_> {
    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        match self.gate_up {
            None => runs::linear_glu_fwd(on, self.d, self.input, self.weight, self.stored),
            Some(gate_up) => runs::linear_glu_bwd(on, self.d, self.input, self.weight, gate_up),
        }
    }
}

impl Work for Gated<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.run(on)
    }
}

/// GEMM and activation as separate ops.
struct Separate<'a>(Gated<'a>);

impl Work for Separate<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        let Gated { d, input, weight, gate_up, .. } = self.0;
        match gate_up {
            None => {
                let mut both = runs::linear_fwd(on, d.gate_up(), input, weight, None);
                let act = runs::glu_fwd(on, d.glu(), &both[0].1);
                both[0].0 = "gate_up";
                both.extend(act);
                both
            }
            Some(gate_up) => {
                let zeros = vec![0.0; d.tokens * d.intermediate];
                let dact = runs::linear_bwd_input(on, d.down(), input, weight, &zeros, Write::Overwrite);
                runs::glu_bwd(on, d.glu(), &dact[0].1, gate_up)
            }
        }
    }
}

#[test]
fn gated_gemm_matches_the_reference_and_separate_ops_bitwise() {
    for (tokens, hidden, intermediate) in GATED {
        let d = LinearGluDims { tokens, hidden, intermediate };
        let input = normal("x", tokens * hidden, 1.0);
        let weight = normal("w", 2 * intermediate * hidden, 1.0 / (hidden as f64).sqrt());
        let gate_up = normal("gate_up", tokens * 2 * intermediate, 1.0);
        let down = &weight[..hidden * intermediate];
        for (weight, gate_up, stored) in
            [(&weight[..], None, true), (&weight, None, false), (down, Some(&gate_up[..]), true)]
        {
            let work = Gated { d, input: &input, weight, gate_up, stored };
            let label = format!("gated {d:?}, backward {}, stored {stored}", gate_up.is_some());
            let expected = work.run(&On::new(&Reference, Precision::Bf16));
            check_variant(&label, Hopper::Chosen, 1, &expected, |_| d.tolerance(Precision::Bf16), &work);
            if stored {
                let separate = Separate(work);
                if let Some(device) = emulator(Schedule::Rising, 4) {
                    // One multiprocessor, so that a consumer has several tiles.
                    let fused = run_on(emulator(Schedule::Falling, 1).unwrap(), Hopper::Chosen, &separate.0);
                    let parts = run_on(device, Hopper::Chosen, &separate);
                    compare::same_bits(&label, &fused, &parts);
                }
                if let Some(device) = gpu() {
                    let fused = run_on(gpu().unwrap(), Hopper::Chosen, &separate.0);
                    let parts = run_on(device, Hopper::Chosen, &separate);
                    compare::same_bits(&label, &fused, &parts);
                }
            }
        }
    }
}

/// Repeats a GEMM on one backend: a semaphore that is not reset would block or reorder the next
/// GEMM.
fn repeated_split_k<D: Device>(device: D) {
    let kernels = Kernels::<_, bf16>::new(device).with_hopper(Hopper::Cut(Tile::N192, 4));
    let mut on = On::new(&kernels, Precision::Bf16);
    on.before = 8;
    let d = LinearDims { tokens: 520, inputs: 208, outputs: 272 };
    let (x, dy) = (normal("x", d.tokens * d.inputs, 1.0), normal("dy", d.tokens * d.outputs, 1.0));
    let start = normal("start", d.outputs * d.inputs, 1.0);
    let first = runs::linear_bwd_weight(&on, d, &dy, &x, &start, Write::Add);
    for _ in 0..3 {
        compare::same_bits("again", &runs::linear_bwd_weight(&on, d, &dy, &x, &start, Write::Add), &first);
    }
}

#[test]
fn split_k_semaphores_are_reset() {
    if let Some(device) = emulator(Schedule::Random(3), 6) {
        repeated_split_k(device);
    }
    if let Some(device) = gpu() {
        repeated_split_k(device);
    }
}

#[test]
fn operands_unsuitable_for_tma_use_portable_kernels() {
    // Rows of 7 elements, and operands that are not 16-byte aligned: results must still be correct.
    for (before, inputs) in [(8, 7), (5, 64)] {
        let Some(device) = emulator(Schedule::Rising, 4) else { return };
        let kernels = Kernels::<_, bf16>::new(device).with_hopper(Hopper::Chosen);
        assert_eq!(kernels.device().properties().compute_capability, (9, 0));
        let mut on = On::new(&kernels, Precision::Bf16);
        on.before = before;
        let d = LinearDims { tokens: 33, inputs, outputs: 40 };
        let (x, weight) = (normal("x", 33 * inputs, 1.0), normal("w", 40 * inputs, 0.3));
        let expected = runs::linear_fwd(&On::new(&Reference, Precision::Bf16), d, &x, &weight, None);
        let got = runs::linear_fwd(&on, d, &x, &weight, None);
        compare::outputs("portable kernels", &got, &expected, |_| d.tolerance(Precision::Bf16));
    }
}
