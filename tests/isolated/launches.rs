//! Launches of the row, loss and optimiser kernels: results are bitwise equal for any number of
//! blocks, and a kernel that writes outside its memory is reported.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{On, Outputs, indices, normal, runs};
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::{Device, Element, Grid, Kernel, Properties, TensorMap, TensorMapSpec};
use mapl::backend::kernels::emulator::{Emulator, Memory, Schedule};
use mapl::backend::{Backend, View, ViewMut, Write};
use mapl::{Error, Result};

use crate::alone;

/// Memory with an address that is reported `shift` bytes too low.
struct Shifted {
    memory: Memory,
    shift: usize,
}

/// An emulator with altered launches and allocations. Every launch has `blocks` blocks (0: the
/// requested number). New allocations are `cut` bytes too short and report an address `shift` bytes
/// too low.
struct Altered {
    emulator: Emulator,
    blocks: u32,
    cut: AtomicUsize,
    shift: AtomicUsize,
    launched: Mutex<BTreeSet<&'static str>>,
}

impl Altered {
    fn new(blocks: u32, schedule: Schedule) -> Option<Self> {
        let (cut, shift) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let emulator = common::emulator(schedule, 4)?;
        Some(Self { emulator, blocks, cut, shift, launched: Mutex::default() })
    }
}

impl Device for Altered {
    type Memory = Shifted;
    type UploadBuffer = Vec<u8>;
    type ReadbackBuffer = Vec<u8>;
    type Graph = <Emulator as Device>::Graph;
    type Stamp = <Emulator as Device>::Stamp;

    const NAME: &'static str = "altered emulator";
    const ASYNCHRONOUS: bool = false;

    fn properties(&self) -> &Properties {
        self.emulator.properties()
    }

    fn allocate(&self, bytes: usize) -> Result<Shifted> {
        let memory = self.emulator.allocate(bytes - self.cut.load(Ordering::Relaxed))?;
        Ok(Shifted { memory, shift: self.shift.load(Ordering::Relaxed) })
    }

    fn address(memory: &Shifted) -> u64 {
        Emulator::address(&memory.memory) - memory.shift as u64
    }

    fn upload(&self, memory: &mut Shifted, start: usize, source: &[u8]) -> Result<()> {
        self.emulator.upload(&mut memory.memory, start, source)
    }

    fn download(&self, memory: &Shifted, start: usize, to: &mut [u8]) -> Result<()> {
        self.emulator.download(&memory.memory, start, to)
    }

    fn clear(&self, memory: &mut Shifted, start: usize, bytes: usize) -> Result<()> {
        self.emulator.clear(&mut memory.memory, start, bytes)
    }

    fn copy(&self, from: &Shifted, start: usize, to: &mut Shifted, at: usize, bytes: usize) -> Result<()> {
        self.emulator.copy(&from.memory, start, &mut to.memory, at, bytes)
    }

    fn synchronize(&self) -> Result<()> {
        self.emulator.synchronize()
    }

    fn put(&self, memory: &mut Shifted, start: usize, word: u32) -> Result<()> {
        self.emulator.put(&mut memory.memory, start, word)
    }

    fn upload_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        self.emulator.upload_buffer(bytes)
    }

    fn fill<'i>(&self, upload_buffer: &'i mut Vec<u8>) -> Result<&'i mut [u8]> {
        self.emulator.fill(upload_buffer)
    }

    fn send(&self, upload_buffer: &mut Vec<u8>, bytes: usize) -> Result<()> {
        self.emulator.send(upload_buffer, bytes)
    }

    fn receive(&self, upload_buffer: &mut Vec<u8>, start: usize, bytes: usize, to: &mut Shifted) -> Result<()> {
        self.emulator.receive(upload_buffer, start, bytes, &mut to.memory)
    }

    fn readback_buffer(&self, bytes: usize) -> Result<Vec<u8>> {
        self.emulator.readback_buffer(bytes)
    }

    fn fetch(
        &self,
        from: &Shifted,
        start: usize,
        bytes: usize,
        readback_buffer: &mut Vec<u8>,
        at: usize,
    ) -> Result<()> {
        self.emulator.fetch(&from.memory, start, bytes, readback_buffer, at)
    }

    fn open<'o>(&self, readback_buffer: &'o mut Vec<u8>) -> Result<&'o [u8]> {
        self.emulator.open(readback_buffer)
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Graph>> {
        self.emulator.record(work)
    }

    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()> {
        // SAFETY: the caller of `replay` guarantees that all memory that the graph accesses is still
        // allocated.
        unsafe { self.emulator.replay(graph) }
    }

    fn stamp(&self) -> Result<Self::Stamp> {
        self.emulator.stamp()
    }

    fn seconds_between(&self, from: &Self::Stamp, to: &Self::Stamp) -> Result<f64> {
        self.emulator.seconds_between(from, to)
    }

    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<TensorMap> {
        self.emulator.tensor_map(spec)
    }

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        grid: Grid,
        shared_bytes: usize,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        self.launched.lock().unwrap().insert(kernel.name);
        let empty = grid.0.contains(&0);
        let grid = if self.blocks == 0 || empty { grid } else { Grid([self.blocks, 1, 1]) };
        // SAFETY: the caller of `launch` guarantees that the parameters match the kernel and that their
        // pointers are valid. The kernels of these tests work with any grid.
        unsafe { self.emulator.launch(kernel, grid, shared_bytes, parameters) }
    }
}

/// Runs every op of the row, loss and optimiser kernels with more units of work than blocks.
fn all_ops<B: Backend>(on: &On<B>) -> Vec<(&'static str, Outputs)> {
    let (tokens, hidden, vocab) = (70, 88, 37);
    let size = tokens * hidden;
    let (x, dy, weight) = (normal("x", size, 1.0), normal("dy", size, 1.0), normal("weight", hidden, 1.0));
    let ids = indices("ids", tokens, vocab);
    let d = EmbeddingDims { tokens, vocab, hidden };
    let mut all = vec![
        ("embedding_fwd", runs::embedding_fwd(on, d, &ids, &normal("table", vocab * hidden, 1.0))),
        ("embedding_bwd", runs::embedding_bwd(on, d, &ids, &dy, &vec![0.0; vocab * hidden], Write::Overwrite)),
    ];
    let write = Write::Add;
    // A short row is processed by a warp, a long row by a block.
    let long = (22, 1100);
    for (labels, (tokens, hidden)) in
        [(["norm_fwd", "norm_bwd"], (tokens, hidden)), (["norm_fwd of long rows", "norm_bwd of long rows"], long)]
    {
        let d = NormDims { tokens, hidden, eps: 1e-6, offset: 0.0 };
        let [x, dy] = ["x", "dy"].map(|name| normal(name, tokens * hidden, 1.0));
        let weight = normal("weight", hidden, 1.0);
        let forward = runs::norm_fwd(on, d, &x, Some(&dy), &weight);
        let rstd = forward[1].1.clone();
        let inputs =
            runs::NormBwdInputs { dy: &dy, sum: &x, rstd: &rstd, weight: &weight, dsum: &x, dweight: &weight, write };
        all.push((labels[0], forward));
        all.push((labels[1], runs::norm_bwd(on, d, &inputs)));
    }
    let d = QkNormDims { tokens: 37, heads: 2, kv_heads: 1, head_dim: 16, whole: false, eps: 1e-6, offset: 0.0 };
    let (qkv, w) = (normal("heads", 37 * d.width(), 1.0), normal("head weights", 32, 1.0));
    let normalised = runs::qk_norm_fwd(on, d, &qkv, &w, true);
    let copy = normalised[1].1.clone();
    all.push(("qk_norm_fwd", normalised));
    all.push(("qk_norm_bwd", runs::qk_norm_bwd(on, d, [&copy, &w, &qkv, &w], write)));
    let d = QkNormDims { whole: true, ..d };
    let w = normal("weights of all heads", d.weights(), 1.0);
    all.push(("qk_norm_fwd of all heads", runs::qk_norm_fwd(on, d, &qkv, &w, true)));
    all.push(("qk_norm_bwd of all heads", runs::qk_norm_bwd(on, d, [&copy, &w, &qkv, &w], write)));
    for (labels, (tokens, hidden)) in [
        (["layer_norm_fwd", "layer_norm_bwd"], (tokens, hidden)),
        (["layer_norm_fwd of long rows", "layer_norm_bwd of long rows"], long),
    ] {
        let d = LayerNormDims { tokens, hidden, eps: 1e-6 };
        let [x, dy] = ["x", "dy"].map(|name| normal(name, tokens * hidden, 1.0));
        let two = normal("weight and bias", 2 * hidden, 1.0);
        let forward = runs::layer_norm_fwd(on, d, &x, &two);
        let stats = forward[1].1.clone();
        all.push((labels[0], forward));
        all.push((labels[1], runs::layer_norm_bwd(on, d, [&dy, &x, &stats, &two, &x, &two], write)));
    }
    all.push(("scale", runs::scale(on, ScaleDims { tokens, hidden, factor: 1.5 }, &x, Some(&dy))));
    let d = GeluDims { tokens, intermediate: hidden, form: Gelu::Erf };
    all.push(("gelu_fwd", runs::gelu_fwd(on, d, &x)));
    all.push(("gelu_bwd", runs::gelu_bwd(on, d, &x, &dy)));
    let d = LinearDims { tokens: 300, inputs: 1, outputs: 72 };
    all.push(("bias_bwd", runs::bias_bwd(on, d, &normal("db", 300 * 72, 1.0), &normal("b", 72, 1.0), write)));
    let angles = normal("angles", 50 * 8, 3.0);
    let (cos, sin): (Vec<f64>, Vec<f64>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let (d, positions) = (
        RopeDims { tokens: 25, heads: 3, unrotated_heads: 1, head_dim: 16, rotated: 16, positions: 50 },
        indices("p", 25, 50),
    );
    all.push(("rope", runs::rope(on, d, &positions, (&cos, &sin), &normal("qkv", 25 * 64, 1.0), false)));
    let d = GluDims { tokens: 9, intermediate: 40, gelu: None };
    let (gate_up, dact) = (normal("gu", 720, 2.0), normal("dact", 360, 1.0));
    all.push(("glu_fwd", runs::glu_fwd(on, d, &gate_up)));
    all.push(("glu_bwd", runs::glu_bwd(on, d, &dact, &gate_up)));
    let logits = normal("logits", 9 * 200, 2.0);
    all.push(("logprob", runs::logprob(on, 200, &logits, &indices("target", 9, 200), &normal("dlogp", 9, 1.0))));
    let (rows, offsets): (Vec<i32>, Vec<i32>) =
        ((0..17).map(|s| 4 * s + 1).collect(), (0..18).map(|s| 3 * s * s).collect());
    let d = RewardDims { tokens, hidden, seqs: 17 };
    let (dscore, long) = (normal("dscore", 17, 1.0), normal("values", 3 * 17 * 17, 1.0));
    all.push(("reward_head", runs::reward_head(on, d, [&x, &weight, &dscore, &weight], &rows, write)));
    all.push(("segment_sum", runs::segment_sum(on, Reduce::Mean, &long, &offsets, &dscore)));
    let pair = |c: i32| vec![(c % 17, 1), ((c + 5) % 17, -1)];
    let comparisons = runs::Preference {
        curves: vec![Curve::Sigmoid { smoothing: 0.1 }.into()],
        link: Link::Identity,
        center: 0.1,
        score: normal("score", 17, 1.0),
        reference: None,
        rows: None,
        pair_weights: None,
        direct: Some(dscore),
        terms: (0..300).map(pair).collect(),
        kind: (0..300).map(|c| c % 3).collect(),
        scale: vec![0.5; 300],
        margin: vec![0.1; 300],
        weight: vec![1.0; 300],
        clip: vec![0.0; 600],
        kind_scale: vec![1.0, 0.5, 0.25],
    };
    all.push(("preference", runs::preference(on, &comparisons)));
    let grads = normal("grads", 50_001, 0.1);
    let control = runs::grad_norm(on, 1.0, &grads, &[1e-3, 4.0, 0.0, 0.0, 0.0, 0.0]);
    let adam = runs::Adam { decayed: 20_003, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    let state = [&normal("params", 50_001, 1.0)[..], &normal("m", 50_001, 0.1), &vec![0.01; 50_001]];
    all.push(("adamw", runs::adamw(on, adam, &control[0].1, &grads, state)));
    all.push(("grad_norm", control));
    all
}

/// Kernels that [`all_ops`] launches: first those with an f32 and a bf16 variant, then kernels with
/// a single variant.
const PAIRS: [&str; 27] = [
    "adamw",
    "bias_bwd",
    "embedding_bwd",
    "embedding_fwd",
    "gelu_bwd",
    "gelu_fwd",
    "glu_bwd",
    "glu_fwd",
    "layer_norm_bwd_128",
    "layer_norm_bwd_32",
    "layer_norm_fwd_128",
    "layer_norm_fwd_32",
    "logprob_bwd",
    "logprob_fwd",
    "norm_bwd_128",
    "norm_bwd_32",
    "norm_fwd_128",
    "norm_fwd_32",
    "qk_norm_bwd",
    "qk_norm_fwd",
    "qk_norm_whole_bwd",
    "qk_norm_whole_fwd",
    "reward_head_bwd",
    "reward_head_fwd",
    "reward_head_weight",
    "rope",
    "scale",
];
const SINGLE: [&str; 6] =
    ["grad_norm", "grad_squares", "preference_fwd", "segment_sum_bwd", "segment_sum_fwd", "sum_slices"];

fn any_grid<A: Element>(inputs: Precision, ending: &str) {
    let expected_names: BTreeSet<String> =
        PAIRS.iter().map(|name| format!("{name}_{ending}")).chain(SINGLE.map(str::to_owned)).collect();
    // An offset of 8 elements allows 16-byte accesses, an offset of 5 does not.
    for before in [8, 5] {
        let mut first: Option<Vec<(&str, Outputs)>> = None;
        for (blocks, schedule) in [
            (0, Schedule::Rising),
            (1, Schedule::Falling),
            (1, Schedule::Random(1)),
            (2, Schedule::Random(2)),
            (7, Schedule::Random(3)),
        ] {
            let Some(device) = Altered::new(blocks, schedule) else { return };
            let backend = Kernels::<_, A>::new(device);
            let got = all_ops(&On { before, ..On::new(&backend, inputs) });
            let launched = backend.device().launched.lock().unwrap().iter().map(|name| name.to_string()).collect();
            assert_eq!(expected_names, launched, "kernels under test");
            let Some(first) = &first else {
                first = Some(got);
                continue;
            };
            for ((op, got), (_, expected)) in got.iter().zip(first) {
                common::compare::same_bits(&format!("{op} with {blocks} blocks"), got, expected);
            }
        }
    }
}

#[test]
fn bitwise_equal_for_any_number_of_blocks_in_f32() {
    let _alone = alone();
    any_grid::<f32>(Precision::F32, "f32");
}

#[test]
fn bitwise_equal_for_any_number_of_blocks_in_bf16() {
    let _alone = alone();
    any_grid::<half::bf16>(Precision::Bf16, "bf16");
}

/// Runs a gated activation of 4 x 10. Its output is `cut` bytes too short, or starts `shift` bytes
/// early.
fn activation(cut: usize, shift: usize) -> Option<Result<()>> {
    let backend = Kernels::<_, f32>::new(Altered::new(0, Schedule::Rising)?);
    let gate_up = backend.zeros_act(80).unwrap();
    backend.device().cut.store(cut, Ordering::Relaxed);
    backend.device().shift.store(shift, Ordering::Relaxed);
    let mut act = backend.zeros_act(40).unwrap();
    let dims = GluDims { tokens: 4, intermediate: 10, gelu: None };
    Some(backend.glu_fwd(GluFwd { dims, gate_up: View::first(&gate_up, 80), act: ViewMut::first(&mut act, 40) }))
}

/// Runs an update of 100 parameters with a first moment that is `cut` bytes too short.
fn update(cut: usize) -> Option<Result<()>> {
    let backend = Kernels::<_, half::bf16>::new(Altered::new(0, Schedule::Rising)?);
    let on = On::new(&backend, Precision::Bf16);
    let control = on.acc(&[1e-3, 1.0, 1.0, 1.0, 1.0, 0.0]);
    let (grads, mut v, mut params) = (on.acc(&[0.5; 100]), on.acc(&[0.5; 100]), on.act(&[0.5; 100]));
    backend.device().cut.store(cut, Ordering::Relaxed);
    let mut m = backend.zeros_acc(100).unwrap();
    Some(backend.adamw(AdamW {
        len: 100,
        decayed: 0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        control: control.view(),
        grads: grads.view(),
        m: ViewMut::first(&mut m, 100),
        v: v.view_mut(),
        master: None,
        params: params.view_mut(),
    }))
}

#[test]
fn out_of_bounds_write_of_a_kernel_is_reported() {
    let _alone = alone();
    // With the sanitiser the process would end at the write.
    if std::env::var_os("MAPL_EMULATOR_SANITIZE").is_some() {
        println!("SKIPPED: the sanitizer reports such writes in its own way");
        return;
    }
    let Some(sound) = activation(0, 0) else { return };
    sound.unwrap();
    let cases = [
        (activation(4, 0), "kernel glu_fwd_f32", "wrote past an allocation of 156 bytes"),
        (activation(0, 4), "kernel glu_fwd_f32", "wrote before an allocation of 160 bytes"),
        (update(4), "kernel adamw_bf16", "wrote past an allocation of 396 bytes"),
    ];
    for (result, kernel, what) in cases {
        match result {
            Some(Err(Error::Runtime(why))) => assert!(why.contains(kernel) && why.contains(what), "{why}"),
            other => panic!("{kernel}, {what}: {other:?}"),
        }
    }
    update(0).unwrap().unwrap();
}
