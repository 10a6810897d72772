//! Proxy fences of the Hopper kernels: the emulator's check of proxy fences does not change results. Without
//! the fences at any one source line, the check reports an error.

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::runs::HeadBwdInputs;
use common::trees::HostTree;
use common::{On, Outputs, compare, emulator, full, indices, normal, runs};
use half::bf16;
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::{Emulator, Schedule};
use mapl::backend::kernels::geometry::Tile;
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::{Backend as _, Write};

use crate::alone;

/// Number of multiprocessors. It suffices for two clusters, so that different blocks compute the splits of a
/// tile.
const PROCESSORS: usize = 4;

type Run = fn(&On<'_, Kernels<Emulator, bf16>>) -> Outputs;

fn run(run: Run, hopper: Hopper, device: Emulator) -> Outputs {
    let backend = Kernels::<_, bf16>::new(device).with_hopper(hopper);
    let on = On { before: 8, ..On::new(&backend, <Kernels<Emulator, bf16>>::PRECISION) };
    run(&on)
}

/// Runs an op with the check of proxy fences, then without the fences of one source line at a time. Returns
/// the number of such lines.
fn check_every_fence(name: &str, hopper: Hopper, op: Run) -> usize {
    let Some(plain) = emulator(Schedule::Rising, PROCESSORS) else { return usize::MAX };
    let _alone = alone();
    let _ = Emulator::fences();
    let checked = |schedule| Emulator::with(schedule, PROCESSORS).unwrap().with_proxies();
    let expected = run(op, hopper, plain);
    for schedule in [Schedule::Rising, Schedule::Falling] {
        compare::same_bits(name, &run(op, hopper, checked(schedule)), &expected);
    }
    let fences = Emulator::fences();
    for fence in &fences {
        let why = [Schedule::Rising, Schedule::Falling].map(|schedule| {
            let device = checked(schedule).without(fence.clone());
            let caught = catch_unwind(AssertUnwindSafe(|| run(op, hopper, device)));
            caught.err().and_then(|why| why.downcast_ref::<String>().cloned()).unwrap_or_default()
        });
        println!("{name}: {}:{} {}", fence.file.to_string_lossy(), fence.line, why[0]);
        let reported = |why: &String| why.contains("without a fence_async_proxy");
        assert!(why.iter().all(reported), "{name}: a missing fence at {:?}:{}: {why:?}", fence.file, fence.line);
    }
    let _ = Emulator::fences();
    fences.len()
}

const LINEAR: LinearDims = LinearDims { tokens: 130, inputs: 72, outputs: 136 };

fn linear_fwd(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let d = LINEAR;
    let (x, weight) = (normal("x", d.tokens * d.inputs, 1.0), normal("w", d.outputs * d.inputs, 0.1));
    runs::linear_fwd(on, d, &x, &weight, None)
}

fn linear_bwd_input(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let d = LINEAR;
    let (dy, weight) = (normal("dy", d.tokens * d.outputs, 1.0), normal("w", d.outputs * d.inputs, 0.1));
    runs::linear_bwd_input(on, d, &dy, &weight, &normal("start", d.tokens * d.inputs, 1.0), Write::Add)
}

/// Uses split-K, where the splits of a tile add to the same rows of global memory one after another.
fn linear_bwd_weight(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let d = LinearDims { tokens: 200, inputs: 72, outputs: 136 };
    let (dy, x) = (normal("dy", d.tokens * d.outputs, 1.0), normal("x", d.tokens * d.inputs, 0.1));
    runs::linear_bwd_weight(on, d, &dy, &x, &normal("start", d.outputs * d.inputs, 1.0), Write::Add)
}

fn linear_glu_fwd(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let d = LinearGluDims { tokens: 130, hidden: 72, intermediate: 72 };
    runs::linear_glu_fwd(on, d, &normal("x", 130 * 72, 1.0), &normal("w", 144 * 72, 0.1), true)
}

fn linear_glu_bwd(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let d = LinearGluDims { tokens: 130, hidden: 72, intermediate: 72 };
    let (dy, weight) = (normal("dy", 130 * 72, 1.0), normal("w", 72 * 72, 0.1));
    runs::linear_glu_bwd(on, d, &dy, &weight, &normal("gate_up", 130 * 144, 1.0))
}

const HEAD: HeadDims = HeadDims { tokens: 30, hidden: 72, vocab: 300, rows: 40, softcap: None };

fn head_fwd(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let (x, head) = (normal("x", 30 * 72, 1.0), normal("head", 300 * 72, 0.1));
    runs::head_logprob_fwd(on, HEAD, &x, &head, &indices("source", 40, 30), &indices("target", 40, 300))
}

fn head_bwd(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let inputs = HeadBwdInputs {
        hidden: &normal("x", 30 * 72, 1.0),
        head: &normal("head", 300 * 72, 0.1),
        source: &indices("source", 40, 30),
        target: &indices("target", 40, 300),
        lse: &normal("lse", 40, 1.0),
        dlogp: &normal("dlogp", 40, 1.0),
        dhead: &normal("dhead", 300 * 72, 1.0),
        write: Write::Add,
    };
    runs::head_logprob_bwd(on, HEAD, &inputs)
}

/// The tree has a second response. The key tile across its branch and its last key tile are copied row by
/// row. The tree also has steps with fewer tokens than their boxes, and rows of a step that no box writes.
pub(crate) fn attention(on: &On<'_, Kernels<Emulator, bf16>>) -> Outputs {
    let tree = HostTree::new().tree(&[(20, None), (9, Some(0)), (12, Some(0))]);
    let d = tree.dims(7, 1, 40);
    let out = d.tokens * d.heads * d.head_dim;
    let (qkv, dout) = (normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0), normal("do", out, 1.0));
    let mut outputs = runs::attention_fwd(on, d, &tree, &qkv);
    outputs.extend(runs::attention_bwd(on, d, &tree, &qkv, &dout, &outputs));
    outputs
}

#[test]
fn hopper_attention_kernels_need_every_proxy_fence() {
    assert!(check_every_fence("attention", Hopper::Chosen, attention) >= 3);
}

/// Tests the widest tile and a ping-pong tile, or all tiles with `MAPL_TEST_FULL=1`.
#[test]
fn hopper_linear_kernels_need_every_proxy_fence() {
    let tiles = if full() { &Tile::ALL[..] } else { &[Tile::N256, Tile::N128PingPong] };
    for &tile in tiles {
        for (name, op) in [("linear_fwd", linear_fwd as Run), ("linear_bwd_input", linear_bwd_input)] {
            let name = format!("{name}, {tile:?}");
            assert!(check_every_fence(&name, Hopper::Cut(tile, 1), op) >= 1, "{name}");
        }
        let name = format!("linear_bwd_weight, {tile:?}");
        assert!(check_every_fence(&name, Hopper::Cut(tile, 2), linear_bwd_weight) >= 3, "{name}");
    }
}

#[test]
fn hopper_glu_and_head_kernels_need_every_proxy_fence() {
    // The forward of the head stores nothing by TMA, so it may have no fence.
    check_every_fence("head_logprob_fwd", Hopper::Chosen, head_fwd);
    let ops: [(&str, Run); 3] =
        [("linear_glu_fwd", linear_glu_fwd), ("linear_glu_bwd", linear_glu_bwd), ("head_logprob_bwd", head_bwd)];
    for (name, op) in ops {
        assert!(check_every_fence(name, Hopper::Chosen, op) >= 1, "{name}");
    }
}
