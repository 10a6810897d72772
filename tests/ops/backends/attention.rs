//! Attention over prefix trees against the reference: every tree shape of `common::trees`, head
//! dimensions that are and are not multiples of a tile, several ratios of query heads to key-value
//! heads, segments of about a tile's length. A query's result is bitwise equal whatever else is in
//! the batch.

use std::ops::Range;

use common::trees::{HostTree, batches};
use common::{On, Outputs, check, check_backend, check_bf16_cpu, check_kernels, normal, runs};
use half::bf16;
use mapl::Error;
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Element;
use mapl::backend::kernels::emulator::{Emulator, Schedule};
use mapl::backend::reference::Reference;

/// (heads, kv_heads, head_dim)
type Heads = (usize, usize, usize);

const HEADS: &[Heads] = &[(2, 2, 16), (3, 1, 64), (14, 2, 16), (2, 1, 80), (1, 1, 128), (80, 1, 4)];

/// Backends of a case. Some cases skip the emulator, since it is slow.
#[derive(Clone, Copy, PartialEq)]
enum Where {
    Cpu,
    Kernels,
    All,
}

fn forward_and_backward(on: Where, label: &str, d: AttentionDims, tree: &HostTree, qkv: &[f64]) {
    let do_ = normal("do", d.tokens * d.heads * d.head_dim, 1.0);
    let tolerance = |p, name: &str| if name == "lse" { d.lse_tolerance(p) } else { d.tolerance(p) };
    // The backward receives o and lse from the reference, so all backends of a precision get the same inputs.
    let forward = |p| runs::attention_fwd(&On::new(&Reference, p), d, tree, qkv);
    let saved = [Precision::F32, Precision::Bf16].map(forward);
    let saved = |p: Precision| &saved[usize::from(p == Precision::Bf16)];
    macro_rules! gradients {
        ($on:expr, $precision:expr) => {
            runs::attention_bwd($on, d, tree, qkv, &do_, saved($precision))
        };
    }
    let (forward, backward) = (format!("{label} forward"), format!("{label} backward"));
    if on != Where::Kernels {
        check_backend!(Cpu, forward, |on: &_| runs::attention_fwd(on, d, tree, qkv), tolerance);
        check_backend!(Cpu, backward, |on: &_| gradients!(on, Precision::F32), |p, _: &str| d.gradient_tolerance(p));
        check_bf16_cpu!(forward, |on: &_| runs::attention_fwd(on, d, tree, qkv), tolerance);
        check_bf16_cpu!(backward, |on: &_| gradients!(on, Precision::Bf16), |p, _: &str| d.gradient_tolerance(p));
    }
    if on != Where::Cpu {
        check_kernels!(f32, forward, |on: &_| runs::attention_fwd(on, d, tree, qkv), tolerance);
        check_kernels!(bf16, forward, |on: &_| runs::attention_fwd(on, d, tree, qkv), tolerance);
        check_kernels!(f32, backward, |on: &_| gradients!(on, Precision::F32), |p, _: &str| d.gradient_tolerance(p));
        check_kernels!(bf16, backward, |on: &_| gradients!(on, Precision::Bf16), |p, _: &str| d.gradient_tolerance(p));
    }
}

fn case(on: Where, name: &str, tree: &HostTree, (heads, kv_heads, head_dim): Heads) {
    let d = tree.dims(heads, kv_heads, head_dim);
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    forward_and_backward(on, &format!("{name}, {heads}/{kv_heads} x {head_dim}"), d, tree, &qkv);
}

#[test]
fn forward_and_backward_of_every_tree_shape() {
    for (name, tree) in batches() {
        for &heads in HEADS {
            case(Where::Cpu, name, &tree, heads);
        }
        case(Where::Kernels, name, &tree, (if tree.tokens() > 200 { 1 } else { 2 }, 1, 16));
    }
}

fn windowed(on: Where, name: &str, tree: &HostTree, heads: Heads, window: usize) {
    let d = tree.windowed(heads, window);
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    forward_and_backward(on, &format!("{name}, {heads:?}, window {window}"), d, tree, &qkv);
}

#[test]
fn windows_of_every_tree_shape() {
    for (name, tree) in batches() {
        for window in [1, 2, 13, 20, 64] {
            windowed(Where::Cpu, name, &tree, (4, 2, 16), window);
        }
        windowed(Where::Kernels, name, &tree, (2, 1, 16), if tree.tokens() > 200 { 40 } else { 7 });
    }
}

fn capped(on: Where, name: &str, tree: &HostTree, (heads, window): (Heads, usize), softcap: f64) {
    let d = AttentionDims { softcap: Some(softcap), ..tree.windowed(heads, window) };
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.5);
    forward_and_backward(on, &format!("{name}, {heads:?}, window {window}, soft cap {softcap}"), d, tree, &qkv);
}

/// Tests soft caps that change most scores and soft caps far above the scores, over several tiles of keys.
#[test]
fn soft_caps() {
    for (name, tree) in batches() {
        for softcap in [0.8, 50.0] {
            capped(Where::Cpu, name, &tree, ((4, 2, 16), 1000), softcap);
        }
        capped(Where::Cpu, name, &tree, ((3, 1, 24), 9), 1.5);
    }
    let tree = HostTree::new().tree(&[(70, None), (100, Some(0)), (1, Some(0)), (9, Some(1))]);
    capped(Where::Kernels, "tiles", &tree, ((2, 1, 8), 1000), 0.8);
    for heads in [(2, 1, 20), (1, 1, 64), (1, 1, 96), (1, 1, 128), (2, 1, 256)] {
        let tree = HostTree::new().tree(&[(41, None), (30, Some(0)), (9, Some(0))]);
        capped(Where::Kernels, "head sizes", &tree, (heads, 35), 1.5);
    }
}

/// Tests windows with lengths near the rows of a warp and near the tiles of keys and queries, over several
/// tiles of a segment and of its descendants.
#[test]
fn kernels_support_windows_around_the_tile_length() {
    let tree = HostTree::new().tree(&[(70, None), (100, Some(0)), (1, Some(0)), (40, Some(2)), (9, Some(1))]);
    for window in [1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 178] {
        windowed(Where::Kernels, "tiles", &tree, (2, 1, 8), window);
    }
    for heads in [(1, 1, 64), (1, 1, 96), (1, 1, 128), (1, 1, 256)] {
        windowed(Where::Kernels, "head sizes", &tree, heads, 50);
    }
}

#[test]
fn kernels_support_every_head_size_and_ratio() {
    let tree = HostTree::new().tree(&[(41, None), (30, Some(0)), (9, Some(0))]).tree(&[(1, None)]);
    for heads in [(1, 1, 64), (3, 1, 80), (7, 1, 32), (6, 2, 96), (2, 1, 128), (1, 1, 256), (14, 2, 4), (2, 1, 20)] {
        case(Where::Kernels, "two trees", &tree, heads);
    }
}

#[test]
fn kernels_support_segments_around_the_tile_length() {
    let tree = HostTree::new()
        .tree(&[(63, None), (1, Some(0)), (64, Some(0)), (1, Some(1))])
        .tree(&[(65, None), (129, Some(0))])
        .tree(&[(1, None), (64, Some(0)), (63, Some(1)), (2, Some(2))])
        .tree(&[(129, None)]);
    case(Where::Kernels, "segments of 1, 63, 64, 65 and 129", &tree, (2, 1, 8));
    let responses = |n| (0..n).map(|i| (3 + i, Some(0)));
    for n in [2, 8] {
        let segments: Vec<_> = std::iter::once((37, None)).chain(responses(n)).collect();
        case(Where::Kernels, &format!("a prompt and {n} responses"), &HostTree::new().tree(&segments), (1, 1, 24));
    }
}

/// Runs the backward without a forward on the same backend: o and lse come from the reference.
#[test]
fn kernel_backward_from_reference_forward() {
    let tree = HostTree::new().tree(&[(70, None), (40, Some(0)), (70, Some(0))]);
    let d = tree.dims(2, 1, 32);
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    let do_ = normal("do", d.tokens * d.heads * d.head_dim, 1.0);
    let saved = runs::attention_fwd(&On::new(&Reference, Precision::Bf16), d, &tree, &qkv);
    check_kernels!(
        bf16,
        "backward only",
        |on: &_| runs::attention_bwd(on, d, &tree, &qkv, &do_, &saved),
        |p, _: &str| d.gradient_tolerance(p)
    );
}

#[test]
fn equal_rows_and_large_scores_match_the_reference() {
    let tree = HostTree::new().tree(&[(20, None), (14, Some(0)), (3, Some(0))]);
    let d = tree.dims(4, 2, 16);
    let width = d.fused_heads() * d.head_dim;
    let row = normal("row", width, 1.0);
    forward_and_backward(Where::All, "equal rows", d, &tree, &row.repeat(d.tokens));
    // Scores reach a few hundred: the softmax is nearly one-hot and must not overflow.
    let mut large = normal("large", d.tokens * width, 1.0);
    for row in large.chunks_exact_mut(width) {
        row[..d.heads * d.head_dim].iter_mut().for_each(|q| *q *= 50.0);
    }
    let tolerance = |p, name: &str| if name == "lse" { d.lse_tolerance(p) } else { d.tolerance(p) }.scaled(200.0);
    check!("large scores", |on: &_| runs::attention_fwd(on, d, &tree, &large), tolerance);
}

#[test]
fn non_finite_queries_give_nan_only_in_their_rows() {
    let tree = HostTree::new().tree(&[(20, None), (14, Some(0)), (3, Some(0))]);
    let d = tree.dims(2, 1, 16);
    let width = d.fused_heads() * d.head_dim;
    let mut qkv = normal("qkv", d.tokens * width, 1.0);
    qkv[7 * width + 3] = f64::NAN;
    qkv[25 * width + 18] = f64::INFINITY;
    let oracle = runs::attention_fwd(&On::new(&Reference, Precision::F32), d, &tree, &qkv);
    assert_eq!(oracle[1].1.iter().filter(|lse| lse.is_nan()).count(), 2, "one NaN row per head");
    let tolerance = |p, name: &str| if name == "lse" { d.lse_tolerance(p) } else { d.tolerance(p) };
    check!("non-finite queries", |on: &_| runs::attention_fwd(on, d, &tree, &qkv), tolerance);
}

/// Returns the outputs of tokens `rows`: o, lse by head, dqkv.
fn rows_of(d: &AttentionDims, outputs: &Outputs, rows: Range<usize>) -> Vec<Vec<f64>> {
    let (o, lse, dqkv) = (&outputs[0].1, &outputs[1].1, &outputs[2].1);
    let take = |from: &[f64], width: usize| from[rows.start * width..rows.end * width].to_vec();
    let lse = lse.chunks_exact(d.tokens).flat_map(|row| row[rows.clone()].to_vec()).collect();
    vec![take(o, d.heads * d.head_dim), lse, take(dqkv, d.fused_heads() * d.head_dim)]
}

/// Runs forward and backward of a batch on the emulator.
fn both<A: Element>(
    tree: &HostTree,
    (heads, window): (Heads, usize),
    qkv: &[f64],
    do_: &[f64],
) -> Option<(AttentionDims, Outputs)> {
    let d = tree.windowed(heads, window);
    let backend = Kernels::<Emulator, A>::new(common::emulator(Schedule::Rising, 3)?);
    let on = On { before: 8, ..On::new(&backend, A::PRECISION) };
    let mut outputs = runs::attention_fwd(&on, d, tree, qkv);
    let backward = runs::attention_bwd(&on, d, tree, qkv, do_, &outputs);
    outputs.extend(backward);
    Some((d, outputs))
}

fn results_depend_only_on_the_path<A: Element>(window: usize) {
    let heads: (Heads, usize) = ((3, 1, 16), window);
    let (width, out) = (5 * 16, 3 * 16);
    let shape: &[(usize, Option<usize>)] = &[(50, None), (31, Some(0)), (70, Some(0)), (2, Some(1))];
    let tokens: usize = shape.iter().map(|s| s.0).sum();
    let (qkv, do_) = (normal("qkv", tokens * width, 1.0), normal("do", tokens * out, 1.0));
    let Some((d, alone)) = both::<A>(&HostTree::new().tree(shape), heads, &qkv, &do_) else { return };
    let alone = rows_of(&d, &alone, 0..tokens);

    // Puts the same tree between two other trees of a batch.
    let (before, after) = (HostTree::new().tree(&[(67, None), (3, Some(0))]), [(5, None), (9, Some(0))]);
    let around = |label: &str, own: &[f64], width: usize| {
        [normal(&format!("{label} before"), 70 * width, 1.0), own.to_vec(), normal(label, 14 * width, 1.0)].concat()
    };
    let batch = before.tree(shape).tree(&after);
    let (d, in_batch) = both::<A>(&batch, heads, &around("qkv", &qkv, width), &around("do", &do_, out)).unwrap();
    let in_batch = rows_of(&d, &in_batch, 70..70 + tokens);
    for (name, (alone, in_batch)) in ["o", "lse", "dqkv"].iter().zip(alone.iter().zip(&in_batch)) {
        common::compare::bits(&format!("{name} with other trees in the batch, {:?}", A::PRECISION), in_batch, alone);
    }

    // Splits the path of the second segment at different places, which must not change the results of its
    // queries.
    let cut = HostTree::new().tree(&[(17, None), (60, Some(0)), (4, Some(1))]);
    let (d, cut) = both::<A>(&cut, heads, &qkv[..81 * width], &do_[..81 * out]).unwrap();
    let cut = rows_of(&d, &cut, 0..81);
    common::compare::bits("o of a path split elsewhere", &cut[0], &alone[0][..81 * out]);
    let lse: Vec<f64> = alone[1].chunks_exact(tokens).flat_map(|row| row[..81].to_vec()).collect();
    common::compare::bits("lse of a path split elsewhere", &cut[1], &lse);

    // Runs the same path as a sequence that shares no prefix.
    let (d, apart) =
        both::<A>(&HostTree::new().tree(&[(81, None)]), heads, &qkv[..81 * width], &do_[..81 * out]).unwrap();
    let apart = rows_of(&d, &apart, 0..81);
    common::compare::bits("o of an unshared path", &apart[0], &alone[0][..81 * out]);
    common::compare::bits("lse of an unshared path", &apart[1], &lse);
}

#[test]
fn kernel_results_depend_only_on_the_path() {
    for window in [1000, 24] {
        results_depend_only_on_the_path::<f32>(window);
        results_depend_only_on_the_path::<bf16>(window);
    }
}

/// A window at least as long as the longest path gives the same bits as no window.
#[test]
fn a_window_of_the_longest_path_is_none() {
    let tree = HostTree::new().tree(&[(50, None), (31, Some(0)), (70, Some(0)), (2, Some(1))]);
    let d = tree.dims(3, 1, 16);
    assert_eq!(tree.windowed((3, 1, 16), d.longest_path).pairs, d.pairs);
    let (qkv, do_) = (normal("qkv", d.tokens * 5 * 16, 1.0), normal("do", d.tokens * 3 * 16, 1.0));
    let windows = [None, Some(d.longest_path), Some(i32::MAX as usize)];
    fn all<B: mapl::backend::Backend>(backend: &B, windows: [AttentionDims; 3], tree: &HostTree, of: [&[f64]; 2]) {
        let results = windows.map(|d| {
            let on = On::new(backend, B::PRECISION);
            let mut outputs = runs::attention_fwd(&on, d, tree, of[0]);
            outputs.extend(runs::attention_bwd(&on, d, tree, of[0], of[1], &outputs));
            outputs
        });
        for ((name, values), (_, expected)) in results[1..].iter().flat_map(|other| other.iter().zip(&results[0])) {
            common::compare::bits(name, values, expected);
        }
    }
    let dims = windows.map(|window| AttentionDims { window, ..d });
    all(&Cpu::new(), dims, &tree, [&qkv, &do_]);
    if let Some(device) = common::emulator(Schedule::Rising, 3) {
        all(&Kernels::<Emulator, f32>::new(device), dims, &tree, [&qkv, &do_]);
    }
}

#[test]
fn kernels_reject_heads_that_exceed_their_registers() {
    let tree = HostTree::new().tree(&[(1, None)]);
    let d = tree.dims(1, 1, 257);
    let Some(device) = common::emulator(Schedule::Rising, 1) else { return };
    let backend = Kernels::<Emulator, f32>::new(device);
    let on = On::new(&backend, Precision::F32);
    let tables = [&tree.starts, &tree.ancestor_offsets, &tree.ancestors, &tree.trees].map(|t| on.idx(t));
    let [starts, ancestor_offsets, ancestors, trees] = tables.each_ref().map(|t| t.view());
    let (qkv, mut o, mut lse) = (on.act(&[0.0; 3 * 257]), on.act_out(257), on.acc_out(1));
    let tree = Tree { starts, ancestor_offsets, ancestors, trees };
    let args = AttentionFwd { dims: d, qkv: qkv.view(), tree, o: o.view_mut(), lse: lse.view_mut() };
    use mapl::backend::Backend as _;
    match backend.attention_fwd(args) {
        Err(Error::Usage(why)) => assert!(why.contains("head_dim 257") && why.contains("256"), "{why}"),
        other => panic!("{other:?}"),
    }
}
