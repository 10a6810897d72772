//! Gradient of attention over prefix trees.

use mapl::backend::Write::Overwrite;
use mapl::backend::contract::{AttentionCachedDims, AttentionDims};

use super::difference::{ORACLE, check};
use common::paths::HostPaths;
use common::trees::HostTree;
use common::{normal, runs};

/// Small batches, one per kind of tree.
fn batches() -> Vec<(&'static str, HostTree)> {
    vec![
        ("one token", HostTree::new().tree(&[(1, None)])),
        ("a plain sequence", HostTree::new().tree(&[(5, None)])),
        ("a shared prefix", HostTree::new().tree(&[(3, None), (2, Some(0)), (2, Some(0))])),
        ("ancestors of ancestors", HostTree::new().tree(&[(2, None), (1, Some(0)), (1, Some(1)), (1, Some(1))])),
        (
            "several trees, segments of one token",
            HostTree::new().tree(&[(1, None), (1, Some(0)), (2, Some(0))]).tree(&[(2, None)]).tree(&[(1, None)]),
        ),
    ]
}

pub fn trees() {
    for (name, tree) in batches() {
        for (heads, kv_heads) in [(1, 1), (2, 2), (2, 1), (4, 2), (3, 1), (6, 2)] {
            let d = tree.dims(heads, kv_heads, 2);
            let forward = |qkv: &[f64]| runs::attention_fwd(&ORACLE, d, &tree, qkv);
            check(
                &format!("attention, {name}, {heads} heads on {kv_heads}"),
                &[normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0)],
                &[Overwrite],
                |i| forward(&i[0])[0].1.clone(),
                |i, do_, _| vec![runs::attention_bwd(&ORACLE, d, &tree, &i[0], do_, &forward(&i[0]))[0].1.clone()],
            );
        }
    }
}

/// Tests windows of one token, within and across segments, and longer than every path.
pub fn windows() {
    for (name, tree) in batches() {
        for window in [1, 2, 3, 9] {
            let d = tree.windowed((4, 2, 2), window);
            let forward = |qkv: &[f64]| runs::attention_fwd(&ORACLE, d, &tree, qkv);
            check(
                &format!("attention, {name}, window {window}"),
                &[normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0)],
                &[Overwrite],
                |i| forward(&i[0])[0].1.clone(),
                |i, do_, _| vec![runs::attention_bwd(&ORACLE, d, &tree, &i[0], do_, &forward(&i[0]))[0].1.clone()],
            );
        }
    }
}

/// Tests soft caps that change most scores, with and without a window.
pub fn softcaps() {
    for (name, tree) in batches() {
        for (softcap, window) in [(0.7, 9), (3.0, 2)] {
            let d = AttentionDims { softcap: Some(softcap), ..tree.windowed((4, 2, 2), window) };
            let forward = |qkv: &[f64]| runs::attention_fwd(&ORACLE, d, &tree, qkv);
            check(
                &format!("attention, {name}, soft cap {softcap}"),
                &[normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.5)],
                &[Overwrite],
                |i| forward(&i[0])[0].1.clone(),
                |i, do_, _| vec![runs::attention_bwd(&ORACLE, d, &tree, &i[0], do_, &forward(&i[0]))[0].1.clone()],
            );
        }
    }
}

/// Rows outside a query's path, and rows of the path before its window, get a gradient of exactly 0 from it.
pub fn hidden_rows() {
    // Rows 0-1: root; 2-3: first branch; 4-5: second branch; 6: another tree.
    let tree = HostTree::new().tree(&[(2, None), (2, Some(0)), (2, Some(0))]).tree(&[(1, None)]);
    let all = [(1, vec![0, 1]), (2, vec![0, 1, 2]), (4, vec![0, 1, 4]), (5, vec![0, 1, 4, 5]), (6, vec![6])];
    let two = [(0, vec![0]), (1, vec![0, 1]), (2, vec![1, 2]), (3, vec![2, 3]), (4, vec![1, 4]), (6, vec![6])];
    let three = [(1, vec![0, 1]), (3, vec![1, 2, 3]), (4, vec![0, 1, 4]), (5, vec![1, 4, 5])];
    rows_with_gradient(&tree, tree.dims(2, 1, 3), &all);
    rows_with_gradient(&tree, tree.windowed((2, 1, 3), 2), &two);
    rows_with_gradient(&tree, tree.windowed((2, 1, 3), 3), &three);
}

/// Checks the rows that get a gradient from each query.
fn rows_with_gradient(tree: &HostTree, d: AttentionDims, expected: &[(usize, Vec<usize>)]) {
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    let forward = runs::attention_fwd(&ORACLE, d, tree, &qkv);
    let (row_o, row_qkv) = (d.heads * d.head_dim, d.fused_heads() * d.head_dim);
    for (query, seen) in expected {
        let mut do_ = vec![0.0; d.tokens * row_o];
        do_[query * row_o..][..row_o].copy_from_slice(&normal("do", row_o, 1.0));
        let dqkv = &runs::attention_bwd(&ORACLE, d, tree, &qkv, &do_, &forward)[0].1;
        let touched: Vec<usize> =
            (0..d.tokens).filter(|row| dqkv[row * row_qkv..][..row_qkv].iter().any(|&x| x != 0.0)).collect();
        assert_eq!(&touched, seen, "rows with a gradient from query {query}, window {:?}", d.window);
    }
}

/// Tests the reference's attention over a cache. Queries of whole sequences, token by token, in pieces and
/// with a shared prompt get the output of attention over the prefix tree.
pub fn cached_equals_whole() {
    let tree = HostTree::new().tree(&[(5, None), (3, Some(0)), (4, Some(0))]);
    for (heads, kv_heads, window, softcap) in [
        (1, 1, 99, None),
        (4, 2, 99, None),
        (3, 1, 99, Some(0.8)),
        (1, 1, 1, None),
        (4, 2, 3, Some(2.0)),
        (3, 1, 5, None),
    ] {
        let d = AttentionDims { softcap, ..tree.windowed((heads, kv_heads, 4), window) };
        let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
        let expected = &runs::attention_fwd(&ORACLE, d, &tree, &qkv)[0].1;
        let (width, out) = (d.fused_heads() * d.head_dim, d.heads * d.head_dim);
        // Row t of the tree lies in row 19 - t of the cache.
        let row = |token: usize| 19 - token..20 - token;
        let path =
            |tokens: &[std::ops::Range<usize>]| -> Vec<_> { tokens.iter().cloned().flatten().map(row).collect() };
        let (first, second) = ([0..5, 5..8], [0..5, 8..12]);
        let steps = [
            (HostPaths::new(20).sequence(&path(&[0..2]), 2), vec![0..2]),
            (HostPaths::new(20).sequence(&path(&[0..5]), 3), vec![2..5]),
            (HostPaths::new(20).sequence(&path(&first), 3).sequence(&path(&[0..5, 8..9]), 1), vec![5..8, 8..9]),
            (HostPaths::new(20).sequence(&path(&second), 3), vec![9..12]),
        ];
        let mut cache = vec![f64::NAN; 20 * 2 * kv_heads * 4];
        for (paths, tokens) in steps {
            let new: Vec<f64> = tokens.iter().flat_map(|t| qkv[t.start * width..t.end * width].to_vec()).collect();
            let wanted: Vec<f64> = tokens.iter().flat_map(|t| expected[t.start * out..t.end * out].to_vec()).collect();
            let d = AttentionCachedDims { softcap, ..paths.windowed((heads, kv_heads, 4), window) };
            let got = runs::attention_cached_fwd(&ORACLE, d, &paths, &new, &cache);
            assert_eq!(got[0].1.len(), wanted.len());
            for (got, wanted) in got[0].1.iter().zip(&wanted) {
                assert!((got - wanted).abs() < 1e-14, "{heads}/{kv_heads}, {tokens:?}: {got} instead of {wanted}");
            }
            cache.clone_from(&got[1].1);
        }
    }
}
