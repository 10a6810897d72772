//! Gradient of attention over prefix trees.

use mapl::backend::Write::Overwrite;

use super::difference::{ORACLE, check};
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

/// Rows outside a query's path get a gradient of exactly 0 from it.
pub fn hidden_rows() {
    // Rows 0-1: root; 2-3: first branch; 4-5: second branch; 6: another tree.
    let tree = HostTree::new().tree(&[(2, None), (2, Some(0)), (2, Some(0))]).tree(&[(1, None)]);
    let d = tree.dims(2, 1, 3);
    let qkv = normal("qkv", d.tokens * d.fused_heads() * d.head_dim, 1.0);
    let forward = runs::attention_fwd(&ORACLE, d, &tree, &qkv);
    let (row_o, row_qkv) = (d.heads * d.head_dim, d.fused_heads() * d.head_dim);
    for (query, seen) in [(1, vec![0, 1]), (2, vec![0, 1, 2]), (4, vec![0, 1, 4]), (5, vec![0, 1, 4, 5]), (6, vec![6])]
    {
        let mut do_ = vec![0.0; d.tokens * row_o];
        do_[query * row_o..][..row_o].copy_from_slice(&normal("do", row_o, 1.0));
        let dqkv = &runs::attention_bwd(&ORACLE, d, &tree, &qkv, &do_, &forward)[0].1;
        let touched: Vec<usize> =
            (0..d.tokens).filter(|row| dqkv[row * row_qkv..][..row_qkv].iter().any(|&x| x != 0.0)).collect();
        assert_eq!(touched, seen, "rows with a gradient from query {query}");
    }
}
