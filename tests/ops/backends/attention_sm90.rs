//! Attention on wgmma kernels (kernels/attention_sm90.cu) against the reference: head sizes, ratios of
//! heads, branches around the end of a key tile, short ancestors, segments of one row. Results are
//! bitwise equal on the emulator in every schedule and for any number of multiprocessors, and on a
//! GPU in repeated runs. A sequence gets the same bits with and without a shared prefix, and whatever
//! the other sequences of the batch hold.

use std::ops::Range;

use common::sm90::{Work, check_variant, run_on};
use common::trees::HostTree;
use common::{On, Outputs, compare, emulator, full, normal, runs};
use half::bf16;
use mapl::backend::Backend;
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::reference::Reference;

/// (heads, kv_heads, head_dim)
type Heads = (usize, usize, usize);

const P: Precision = Precision::Bf16;

/// Forward, or backward with o and lse of the reference's forward, so that all runs have the same inputs.
struct Case<'a> {
    d: AttentionDims,
    tree: &'a HostTree,
    qkv: &'a [f64],
    /// Gradient of the output and saved results, for the backward.
    saved: Option<(&'a [f64], &'a Outputs)>,
}

impl Case<'_> {
    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        match self.saved {
            None => runs::attention_fwd(on, self.d, self.tree, self.qkv),
            Some((dout, saved)) => runs::attention_bwd(on, self.d, self.tree, self.qkv, dout, saved),
        }
    }

    fn tolerance(&self, name: &str) -> Tolerance {
        match name {
            "lse" => self.d.lse_tolerance(P),
            "dqkv" => self.d.gradient_tolerance(P),
            _ => self.d.tolerance(P),
        }
    }
}

impl Work for Case<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.run(on)
    }
}

/// Values of order one: the fused rows of a batch, and the gradient of its output.
fn inputs(d: &AttentionDims) -> (Vec<f64>, Vec<f64>) {
    let out = d.tokens * d.heads * d.head_dim;
    (normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0), normal("do", out, 1.0))
}

/// Compares forward and backward of a batch with the reference, and the schedules with one another bitwise.
fn check(name: &str, tree: &HostTree, (heads, kv_heads, head_dim): Heads) {
    let d = tree.dims(heads, kv_heads, head_dim);
    let (qkv, dout) = inputs(&d);
    let reference = On::new(&Reference, P);
    let forward = Case { d, tree, qkv: &qkv, saved: None };
    let saved = forward.run(&reference);
    let backward = Case { saved: Some((&dout, &saved)), ..forward };
    let gradients = backward.run(&reference);
    for (pass, work, expected) in [("forward", &forward, &saved), ("backward", &backward, &gradients)] {
        let label = format!("{name}, {heads}/{kv_heads} x {head_dim}, {pass}");
        check_variant(&label, Hopper::Chosen, 1, expected, |name| work.tolerance(name), work);
    }
}

/// o, lse and dqkv of a batch on one emulated device.
fn on_emulator(tree: &HostTree, heads: Heads, qkv: &[f64], dout: &[f64]) -> Option<Outputs> {
    let d = tree.dims(heads.0, heads.1, heads.2);
    let forward = Case { d, tree, qkv, saved: None };
    let mut outputs = run_on(emulator(Schedule::Rising, 3)?, Hopper::Chosen, &forward);
    let backward = Case { saved: Some((dout, &outputs)), ..forward };
    let gradients = run_on(emulator(Schedule::Rising, 3)?, Hopper::Chosen, &backward);
    outputs.extend(gradients);
    Some(outputs)
}

/// Selects the outputs of [`on_emulator`] for some tokens: o, lse by head, and the first `gradients` columns
/// of the fused gradients.
fn of_tokens(outputs: &Outputs, heads: usize, tokens: &[Range<usize>], gradients: usize) -> Outputs {
    let (o, lse, dqkv) = (&outputs[0].1, &outputs[1].1, &outputs[2].1);
    let all = lse.len() / heads;
    let rows = |from: &[f64], taken: usize| -> Vec<f64> {
        let width = from.len() / all;
        tokens.iter().cloned().flatten().flat_map(|token| from[token * width..][..taken].to_vec()).collect()
    };
    vec![
        ("o", rows(o, o.len() / all)),
        ("lse", lse.chunks_exact(all).flat_map(|lse| rows(lse, 1)).collect()),
        ("dqkv", rows(dqkv, gradients)),
    ]
}

#[test]
fn every_head_size() {
    let tree = HostTree::new().tree(&[(41, None), (30, Some(0)), (9, Some(0))]).tree(&[(1, None)]);
    for head_dim in [64, 80, 96, 128, 40, 104] {
        check("two trees", &tree, (2, 1, head_dim));
    }
}

/// Branches at the last key of a tile, before and after it and inside a tile, ancestors that are shorter
/// than a tile, segments of one row.
fn branches() -> Vec<(&'static str, HostTree)> {
    let root = None;
    let at = |prompt| HostTree::new().tree(&[(prompt, root), (20, Some(0)), (1, Some(0)), (10, Some(0))]);
    vec![
        ("branch at 126", at(126)),
        ("branch at 127", at(127)),
        ("branch at 128", at(128)),
        ("branch at 129", at(129)),
        (
            "short ancestors",
            HostTree::new()
                .tree(&[(3, root), (1, Some(0)), (40, Some(0)), (7, Some(1)), (90, Some(3)), (2, Some(3))])
                .tree(&[(1, root)])
                .tree(&[(30, root), (70, Some(0)), (60, Some(0))]),
        ),
    ]
}

/// Tests every ratio with some tree and head size, and every tree with some ratio; with `MAPL_TEST_FULL=1`,
/// all combinations.
#[test]
fn every_branch_and_ratio() {
    let ratios = [(1, 1), (3, 1), (4, 1), (5, 1), (7, 1), (8, 1), (6, 3)];
    let sampled = [(0, 64), (3, 128), (4, 64), (2, 80), (1, 64), (3, 64), (4, 96)];
    for (tree, (name, host)) in branches().iter().enumerate() {
        for (&(heads, kv_heads), &sample) in ratios.iter().zip(&sampled) {
            for head_dim in [64, 80, 96, 128] {
                if full() || (tree, head_dim) == sample {
                    check(name, host, (heads, kv_heads, head_dim));
                }
            }
        }
    }
}

/// Paths have more key tiles than a block has stages and buffers, and few multiprocessors process all work
/// items.
#[test]
fn long_paths() {
    let tree = HostTree::new().tree(&[(500, None), (150, Some(0)), (61, Some(0))]);
    check("long paths", &tree, (1, 1, 64));
    // With two stages instead of four, a missing or an extra mbarrier arrival soon adds up to a whole stage.
    let tree = HostTree::new().tree(&[(400, None), (130, Some(0)), (61, Some(0))]);
    check("long paths, 2 stages", &tree, (1, 1, 96));
    if full() {
        check("long paths", &tree, (2, 1, 128));
        check("long paths", &tree, (14, 2, 64));
    }
}

/// `Schedule::Late` runs the first warp last, although it initialises the mbarriers and starts the copies.
/// The first of two key tiles comes by TMA; a single key tile is copied row by row, or in part.
#[test]
fn the_first_warp_and_its_copies_may_come_last() {
    for prompt in [41, 131] {
        let tree = HostTree::new().tree(&[(prompt, None), (30, Some(0)), (9, Some(0))]);
        let d = tree.dims(2, 1, 64);
        let (qkv, dout) = inputs(&d);
        let forward = Case { d, tree: &tree, qkv: &qkv, saved: None };
        let saved = forward.run(&On::new(&Reference, P));
        let backward = Case { saved: Some((&dout, &saved)), ..forward };
        for work in [&forward, &backward] {
            let on = |schedule| Some(run_on(emulator(schedule, 2)?, Hopper::Chosen, work));
            let (Some(first), Some(late)) = (on(Schedule::Rising), on(Schedule::Late)) else { return };
            compare::same_bits("first warp last", &late, &first);
        }
    }
}

/// Compares only the results of queries, because key gradients of a prefix are sums over its sequences.
#[test]
fn a_shared_prefix_changes_no_bit() {
    for (prompt, heads) in [(129, (7, 1, 64)), (200, (2, 1, 128))] {
        let (first, second) = (70, 90);
        let shared = HostTree::new().tree(&[(prompt, None), (first, Some(0)), (second, Some(0))]);
        let whole = HostTree::new().tree(&[(prompt + first, None)]).tree(&[(prompt + second, None)]);
        let (width, out) = ((heads.0 + 2 * heads.1) * heads.2, heads.0 * heads.2);
        let (qkv, dout) = inputs(&shared.dims(heads.0, heads.1, heads.2));
        let (end, last) = (prompt + first, prompt + first + second);
        let apart = |of: &[f64], width: usize| {
            [&of[..end * width], &of[..prompt * width], &of[end * width..last * width]].concat()
        };
        let Some(got) = on_emulator(&shared, heads, &qkv, &dout) else { return };
        let expected = on_emulator(&whole, heads, &apart(&qkv, width), &apart(&dout, out)).unwrap();
        let expected = of_tokens(&expected, heads.0, &[0..end, end + prompt..end + prompt + second], out);
        compare::same_bits(&format!("prefix of {prompt}"), &of_tokens(&got, heads.0, &[0..last], out), &expected);
        // Cuts the same path into different segments.
        let cut = HostTree::new().tree(&[(17, None), (100, Some(0)), (end - 117, Some(1))]);
        let cut = on_emulator(&cut, heads, &qkv[..end * width], &dout[..end * out]).unwrap();
        let (cut, got) = (of_tokens(&cut, heads.0, &[0..end], out), of_tokens(&got, heads.0, &[0..end], out));
        compare::same_bits("a path that is cut elsewhere", &cut, &got);
    }
}

/// Other sequences of the batch hold values that are not finite. They are before and after the rows of
/// the sequence, where boxes and tiles reach beyond its segments.
#[test]
fn other_sequences_change_no_bit() {
    let own: &[(usize, Option<usize>)] = &[(131, None), (50, Some(0)), (30, Some(0)), (1, Some(1))];
    let tokens: usize = own.iter().map(|segment| segment.0).sum();
    for heads in [(7, 1, 64), (3, 1, 80), (1, 1, 128)] {
        let (width, out) = ((heads.0 + 2 * heads.1) * heads.2, heads.0 * heads.2);
        let tree = HostTree::new().tree(own);
        let (qkv, dout) = inputs(&tree.dims(heads.0, heads.1, heads.2));
        let Some(alone) = on_emulator(&tree, heads, &qkv, &dout) else { return };
        let batch = HostTree::new().tree(&[(67, None), (3, Some(0))]).tree(own).tree(&[(40, None), (200, Some(0))]);
        let values: &[f64] = if full() || heads.0 == 7 { &[f64::NAN, f64::INFINITY, -1.0] } else { &[f64::NAN] };
        for &bad in values {
            let around =
                |own: &[f64], width: usize| [vec![bad; 70 * width], own.to_vec(), vec![bad; 240 * width]].concat();
            let got = on_emulator(&batch, heads, &around(&qkv, width), &around(&dout, out)).unwrap();
            let got = of_tokens(&got, heads.0, &[70..70 + tokens], width);
            compare::same_bits(&format!("{heads:?} among values of {bad}"), &got, &alone);
        }
    }
}

#[test]
fn large_scores_and_non_finite_queries() {
    let tree = HostTree::new().tree(&[(140, None), (14, Some(0)), (3, Some(0))]);
    let d = tree.dims(2, 1, 64);
    let width = d.fused_heads() * d.head_dim;
    let (mut qkv, _) = inputs(&d);
    for row in qkv.chunks_exact_mut(width) {
        row[..d.heads * d.head_dim].iter_mut().for_each(|q| *q *= 50.0);
    }
    qkv[7 * width + 3] = f64::NAN;
    qkv[150 * width + 100] = f64::INFINITY;
    let work = Case { d, tree: &tree, qkv: &qkv, saved: None };
    let expected = work.run(&On::new(&Reference, P));
    assert_eq!(expected[1].1.iter().filter(|lse| lse.is_nan()).count(), 2, "one NaN row per query");
    check_variant("large scores", Hopper::Chosen, 1, &expected, |name| work.tolerance(name).scaled(200.0), &work);
}

/// Calls that the wgmma kernels do not support run on the portable kernels, so they have the same bits.
#[test]
fn other_calls_use_the_portable_kernels() {
    let tree = HostTree::new().tree(&[(40, None), (3, Some(0))]);
    let mut cases: Vec<AttentionDims> =
        [(2, 1, 16), (2, 1, 36), (1, 1, 136), (129, 1, 40)].map(|(h, kv, width)| tree.dims(h, kv, width)).to_vec();
    cases.extend([0.0, -0.5].map(|scale| AttentionDims { scale, ..tree.dims(2, 1, 64) }));
    cases.push(tree.windowed((2, 1, 64), 20));
    cases.push(AttentionDims { softcap: Some(2.0), ..tree.dims(2, 1, 64) });
    for d in cases {
        let (qkv, dout) = inputs(&d);
        let forward = Case { d, tree: &tree, qkv: &qkv, saved: None };
        let saved = forward.run(&On::new(&Reference, P));
        let backward = Case { saved: Some((&dout, &saved)), ..forward };
        for work in [&forward, &backward] {
            let on = |how| Some(run_on(emulator(Schedule::Rising, 2)?, how, work));
            let (Some(portable), Some(got)) = (on(Hopper::Off), on(Hopper::Chosen)) else { return };
            compare::same_bits(&format!("{d:?}"), &got, &portable);
        }
    }
}
