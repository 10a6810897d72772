//! Attention over prefix trees against the reference: every tree shape of `common::trees`, head sizes on and off the
//! vector width, 1, 3 and 7 query heads per key-value head.

mod common;

use common::trees::{HostTree, batches};
use common::{check, normal, runs};
use mapl::backend::contract::*;

/// (heads, kv_heads, head_dim)
const HEADS: &[(usize, usize, usize)] = &[(2, 2, 16), (3, 1, 64), (14, 2, 16), (2, 1, 80), (1, 1, 128), (80, 1, 4)];

fn forward_and_backward(label: &str, d: AttentionDims, tree: &HostTree, qkv: &[f64]) {
    let do_ = normal("do", d.tokens * d.heads * d.head_dim, 1.0);
    check!(format!("{label} forward"), |on: &_| runs::attention_fwd(on, d, tree, qkv), |p, _: &str| d.tolerance(p));
    // o and lse reach the backward rounded alike for all backends.
    let oracle = common::On::new(&mapl::backend::reference::Reference, Precision::F32);
    let forward = runs::attention_fwd(&oracle, d, tree, qkv);
    // A key's gradient sums over all queries below it, group heads each, of products of head_dim terms.
    let queries = (d.tokens * d.heads / d.kv_heads).max(1);
    let tolerance = |p, _: &str| Tolerance::dot(p, d.head_dim + d.longest_path).scaled(4.0 * (queries as f64).sqrt());
    check!(format!("{label} backward"), |on: &_| runs::attention_bwd(on, d, tree, qkv, &do_, &forward), tolerance);
}

#[test]
fn trees_of_every_shape() {
    for (name, tree) in batches() {
        for &(heads, kv_heads, head_dim) in HEADS {
            let d = tree.dims(heads, kv_heads, head_dim);
            let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
            forward_and_backward(&format!("{name}, {heads}/{kv_heads} x {head_dim}"), d, &tree, &qkv);
        }
    }
}

#[test]
fn equal_rows_and_large_scores() {
    let tree = HostTree::new().tree(&[(20, None), (14, Some(0)), (3, Some(0))]);
    let d = tree.dims(4, 2, 16);
    let width = d.fused_heads() * d.head_dim;
    let row = normal("row", width, 1.0);
    forward_and_backward("equal rows", d, &tree, &row.repeat(d.tokens));
    // Scores of up to a few hundred: the softmax is nearly one-hot and must not overflow.
    let mut large = normal("large", d.tokens * width, 1.0);
    for row in large.chunks_exact_mut(width) {
        row[..d.heads * d.head_dim].iter_mut().for_each(|q| *q *= 50.0);
    }
    let tolerance = |p, _: &str| d.tolerance(p).scaled(200.0);
    check!("large scores", |on: &_| runs::attention_fwd(on, d, &tree, &large), tolerance);
}
