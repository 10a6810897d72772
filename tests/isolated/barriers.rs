//! Every block barrier of the kernels is necessary: without the barrier at any one source line, some
//! schedule gives different bits or an error. One multiprocessor and small grids give each block
//! several tiles, so the barriers between tiles are tested too.

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::runs::{self, HeadBwdInputs, NormBwdInputs};
use common::trees::HostTree;
use common::{On, Outputs, emulator, indices, normal};
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Element;
use mapl::backend::kernels::emulator::{Emulator, Schedule, Site};
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::{Backend as _, Write};

use crate::{alone, fences};

/// Schedules, tried in order until one detects the missing barrier.
const ORDERS: [Schedule; 7] = [
    Schedule::Falling,
    Schedule::Rising,
    Schedule::Late,
    Schedule::Random(1),
    Schedule::Random(2),
    Schedule::Random(3),
    Schedule::Random(4),
];

/// Without a barrier, the kernel of this file writes its list to arbitrary addresses, which can end the
/// process. A fault of `mutations/` removes the barrier in a separate process.
const WRITES_ANYWHERE: &str = "attention_plan_sm90.cu";

type Run<A> = fn(&On<'_, Kernels<Emulator, A>>) -> Outputs;

fn run<A: Element>(run: Run<A>, hopper: Hopper, device: Emulator) -> Outputs {
    let backend = Kernels::<_, A>::new(device).with_hopper(hopper);
    let on = On { before: 8, ..On::new(&backend, <Kernels<Emulator, A>>::PRECISION) };
    run(&on)
}

fn same(a: &Outputs, b: &Outputs) -> bool {
    a.iter().zip(b).all(|(a, b)| a.1.iter().zip(&b.1).all(|(x, y)| x.to_bits() == y.to_bits()))
}

/// Removes the barriers of one source line at a time, and asserts that some schedule detects it. Returns the
/// number of such lines.
fn check_every_barrier<A: Element>(name: &str, op: Run<A>) -> usize {
    check_with(name, Hopper::Off, op)
}

fn check_with<A: Element>(name: &str, hopper: Hopper, op: Run<A>) -> usize {
    let Some(device) = emulator(Schedule::Rising, 1) else { return usize::MAX };
    // A kernel without a barrier may read a wrong index and write anywhere.
    let _alone = alone();
    let _ = Emulator::barriers();
    let expected = run(op, hopper, device);
    let mut barriers = Emulator::barriers();
    barriers.retain(|barrier| !barrier.file.to_string_lossy().ends_with(WRITES_ANYWHERE));
    for barrier in &barriers {
        let missed = |schedule: Schedule, barrier: Site| {
            let device = Emulator::with(schedule, 1).unwrap().without(barrier);
            // A missing barrier may also cause an error; `runs` turns it into a panic.
            catch_unwind(AssertUnwindSafe(|| run(op, hopper, device))).map_or(true, |got| !same(&got, &expected))
        };
        let caught = ORDERS.iter().position(|&schedule| missed(schedule, barrier.clone()));
        println!("{name}: {}:{} {caught:?}", barrier.file.to_string_lossy(), barrier.line);
        assert!(
            caught.is_some(),
            "{name}: no schedule detects the missing barrier at {:?}:{}",
            barrier.file,
            barrier.line
        );
    }
    let _ = Emulator::barriers();
    barriers.len()
}

fn norm_fwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = NormDims { tokens: 40, hidden: 1100, eps: 1e-6, offset: 0.0 };
    runs::norm_fwd(on, d, &normal("x", 44_000, 1.0), Some(&normal("r", 44_000, 1.0)), &normal("w", 1100, 1.0))
}

fn norm_bwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = NormDims { tokens: 40, hidden: 1100, eps: 1e-6, offset: 0.0 };
    let (rows, row) = (normal("rows", 44_000, 1.0), normal("row", 1100, 1.0));
    let rstd = normal("rstd", 40, 1.0);
    let i = NormBwdInputs {
        dy: &rows,
        sum: &rows,
        rstd: &rstd,
        weight: &row,
        dsum: &rows,
        dweight: &row,
        write: Write::Add,
    };
    runs::norm_bwd(on, d, &i)
}

fn qk_norm_bwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = QkNormDims { tokens: 40, heads: 3, kv_heads: 2, head_dim: 550, whole: false, eps: 1e-6, offset: 0.0 };
    let (x, dqkv) = (normal("x", 40 * 5 * 550, 1.0), normal("dqkv", 40 * d.width(), 1.0));
    let weight = normal("w", 1100, 1.0);
    runs::qk_norm_bwd(on, d, [&x, &weight, &dqkv, &weight], Write::Add)
}

fn layer_norm_fwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LayerNormDims { tokens: 40, hidden: 1100, eps: 1e-6 };
    runs::layer_norm_fwd(on, d, &normal("x", 44_000, 1.0), &normal("w", 2200, 1.0))
}

fn layer_norm_bwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LayerNormDims { tokens: 40, hidden: 1100, eps: 1e-6 };
    let (rows, weight, stats) = (normal("rows", 44_000, 1.0), normal("w", 2200, 1.0), normal("stats", 80, 1.0));
    runs::layer_norm_bwd(on, d, [&rows, &rows, &stats, &weight, &rows, &weight], Write::Add)
}

/// The registers of a warp hold a whole row, so a block has several teams, which add their sums through
/// shared memory. The last slice of tokens is the second one that its block processes, and three teams have
/// no token in it.
fn layer_norm_bwd_of_warps<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LayerNormDims { tokens: 289, hidden: 152, eps: 1e-6 };
    let (rows, weight, stats) = (normal("rows", 43_928, 1.0), normal("w", 304, 1.0), normal("stats", 578, 1.0));
    runs::layer_norm_bwd(on, d, [&rows, &rows, &stats, &weight, &rows, &weight], Write::Add)
}

/// One norm over all query heads and one over all key heads.
fn all_heads() -> QkNormDims {
    QkNormDims { tokens: 40, heads: 2, kv_heads: 1, head_dim: 550, whole: true, eps: 1e-6, offset: 0.0 }
}

fn qk_norm_whole_fwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = all_heads();
    runs::qk_norm_fwd(on, d, &normal("qkv", 40 * d.width(), 1.0), &normal("w", d.weights(), 1.0), true)
}

fn qk_norm_whole_bwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = all_heads();
    let (x, dqkv) = (normal("x", 40 * 3 * 550, 1.0), normal("dqkv", 40 * d.width(), 1.0));
    let weight = normal("w", d.weights(), 1.0);
    runs::qk_norm_bwd(on, d, [&x, &weight, &dqkv, &weight], Write::Add)
}

fn linear_fwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LinearDims { tokens: 260, inputs: 136, outputs: 260 };
    runs::linear_fwd(on, d, &normal("x", 260 * 136, 1.0), &normal("w", 260 * 136, 0.1), None)
}

fn linear_glu_fwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LinearGluDims { tokens: 260, hidden: 136, intermediate: 130 };
    runs::linear_glu_fwd(on, d, &normal("x", 260 * 136, 1.0), &normal("w", 260 * 136, 0.1), true)
}

fn linear_glu_bwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LinearGluDims { tokens: 260, hidden: 136, intermediate: 260 };
    let (dy, weight) = (normal("dy", 260 * 136, 1.0), normal("w", 260 * 136, 0.1));
    runs::linear_glu_bwd(on, d, &dy, &weight, &normal("gate_up", 260 * 520, 1.0))
}

fn linear_bwd_input<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LinearDims { tokens: 260, inputs: 260, outputs: 136 };
    let (dy, weight) = (normal("dy", 260 * 136, 1.0), normal("w", 260 * 136, 0.1));
    runs::linear_bwd_input(on, d, &dy, &weight, &normal("start", 260 * 260, 1.0), Write::Add)
}

fn linear_bwd_weight<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let d = LinearDims { tokens: 136, inputs: 260, outputs: 260 };
    let (dy, x) = (normal("dy", 260 * 136, 1.0), normal("x", 260 * 136, 0.1));
    runs::linear_bwd_weight(on, d, &dy, &x, &normal("start", 260 * 260, 1.0), Write::Add)
}

/// K has four steps of 32, so the last step uses the first stage, through which warps also exchange partial
/// results.
const HEAD: HeadDims = HeadDims { tokens: 30, hidden: 104, vocab: 1500, rows: 140, softcap: None };

fn head_fwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let (x, head) = (normal("x", 30 * 104, 1.0), normal("head", 1500 * 104, 0.1));
    // The barriers are on the same source lines with and without statistics.
    runs::head_stats(on, HEAD, &x, &head, &indices("source", 140, 30), &indices("target", 140, 1500))
}

fn head_bwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let (x, head) = (normal("x", 30 * 104, 1.0), normal("head", 1500 * 104, 0.1));
    let (source, target) = (indices("source", 140, 30), indices("target", 140, 1500));
    let (lse, dlogp) = (normal("lse", 140, 1.0), normal("dlogp", 140, 1.0));
    let dhead = normal("dhead", 1500 * 104, 1.0);
    let i = HeadBwdInputs {
        hidden: &x,
        head: &head,
        source: &source,
        target: &target,
        lse: &lse,
        dlogp: &dlogp,
        dhead: &dhead,
        write: Write::Add,
    };
    runs::head_logprob_bwd(on, HEAD, &i)
}

/// Batch with paths of several tiles (a prompt of 150 tokens, two extensions of it, responses to
/// those) and with more segments than threads in the block that builds the work list.
fn tree() -> HostTree {
    let nodes = [(150, None), (70, Some(0)), (33, Some(0)), (90, Some(1)), (20, Some(1)), (65, Some(2)), (1, Some(2))];
    (0..260).fold(HostTree::new().tree(&nodes), |tree, _| tree.tree(&[(1, None)]))
}

fn attention_fwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let tree = tree();
    let d = tree.dims(2, 1, 32);
    runs::attention_fwd(on, d, &tree, &normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0))
}

fn attention_bwd<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    let tree = tree();
    let d = tree.dims(2, 1, 32);
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    let forward: Outputs =
        vec![("o", normal("o", d.tokens * d.heads * d.head_dim, 1.0)), ("lse", vec![5.0; d.heads * d.tokens])];
    runs::attention_bwd(on, d, &tree, &qkv, &normal("do", d.tokens * d.heads * d.head_dim, 1.0), &forward)
}

fn grad_norm<A: Element>(on: &On<'_, Kernels<Emulator, A>>) -> Outputs {
    runs::grad_norm(on, 1.0, &normal("grads", 300_000, 1.0), &[1e-3, 3.0, 0.0, 0.0, 0.0, 0.0])
}

/// A block of the kernel `head_stats_join_sm90` processes two rounds of rows. The rows that it recomputes are
/// in several warps, and in different warps in the second round from the first.
fn hopper_head(on: &On<'_, Kernels<Emulator, half::bf16>>) -> Outputs {
    let d = HeadDims { tokens: 1, hidden: 16, vocab: 40, rows: 290, softcap: None };
    let x: Vec<f64> = normal("x", d.hidden, 1.0).iter().map(|x| x.abs()).collect();
    let mut head = normal("head", d.vocab * d.hidden, 0.1);
    head[5 * d.hidden..6 * d.hidden].fill(12.0);
    let mut target = vec![5; d.rows];
    [9, 20, 129, 256 + 30].into_iter().for_each(|row| target[row] = 7);
    runs::head_stats(on, d, &x, &head, &vec![0; d.rows], &target)
}

/// The first barrier of these kernels stands between the initialisation of mbarriers and their use.
#[test]
fn hopper_kernels_need_every_barrier() {
    // The GEMM loop has one barrier, the join kernel two, and the reduction of the join kernel two.
    assert!(check_with("head_logprob_fwd on Hopper", Hopper::Chosen, hopper_head) >= 5);
    // The forward, the gradient of queries, and the gradient of keys and values have one barrier each.
    assert!(check_with("attention on Hopper", Hopper::Chosen, fences::attention) >= 3);
}

#[test]
fn norm_kernels_need_every_barrier() {
    assert!(check_every_barrier::<half::bf16>("norm_fwd", norm_fwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("norm_bwd", norm_bwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("qk_norm_bwd", qk_norm_bwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("layer_norm_fwd", layer_norm_fwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("layer_norm_bwd", layer_norm_bwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("layer_norm_bwd of warps", layer_norm_bwd_of_warps) >= 2);
    assert!(check_every_barrier::<half::bf16>("qk_norm_whole_fwd", qk_norm_whole_fwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("qk_norm_whole_bwd", qk_norm_whole_bwd) >= 2);
    assert!(check_every_barrier::<f32>("grad_norm", grad_norm) >= 1);
}

#[test]
fn linear_kernels_need_every_barrier() {
    assert!(check_every_barrier::<half::bf16>("linear_fwd", linear_fwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("linear_bwd_input", linear_bwd_input) >= 2);
    assert!(check_every_barrier::<half::bf16>("linear_bwd_weight", linear_bwd_weight) >= 2);
    assert!(check_every_barrier::<f32>("linear_fwd", linear_fwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("linear_glu_fwd", linear_glu_fwd) >= 2);
    assert!(check_every_barrier::<half::bf16>("linear_glu_bwd", linear_glu_bwd) >= 2);
}

#[test]
fn head_kernels_need_every_barrier() {
    assert!(check_every_barrier::<half::bf16>("head_logprob_fwd", head_fwd) >= 4);
    assert!(check_every_barrier::<half::bf16>("head_logprob_bwd", head_bwd) >= 2);
}

#[test]
fn attention_kernels_need_every_barrier() {
    assert!(check_every_barrier::<half::bf16>("attention_fwd", attention_fwd) >= 3);
    assert!(check_every_barrier::<half::bf16>("attention_bwd", attention_bwd) >= 3);
    assert!(check_every_barrier::<f32>("attention_fwd", attention_fwd) >= 3);
}
