//! Gradient of RoPE, as a separate op and as a part of other ops.

use mapl::backend::Write::Overwrite;
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
use common::runs::RotationInputs;
use common::trees::HostTree;
use common::{normal, runs};

/// Two rotated heads and an unrotated one; positions are out of order and repeated.
const ROPE: RopeDims = RopeDims { tokens: 4, heads: 2, unrotated_heads: 1, head_dim: 6, rotated: 6, positions: 9 };
const POSITIONS: [i32; 4] = [0, 8, 3, 3];

fn rotate(qkv: &[f64], back: bool) -> Vec<f64> {
    let angle = |i: usize| (i / 3) as f64 * 100f64.powf(-((i % 3) as f64) / 3.0);
    let cos: Vec<f64> = (0..27).map(|i| angle(i).cos()).collect();
    let sin: Vec<f64> = (0..27).map(|i| angle(i).sin()).collect();
    runs::rope(&ORACLE, ROPE, &POSITIONS, (&cos, &sin), qkv, back)[0].1.clone()
}

pub fn rope() {
    check("rope", &[normal("qkv", 72, 1.0)], &[Overwrite], |i| rotate(&i[0], false), |_, dy, _| vec![rotate(dy, true)]);
}

/// Rotates only the first four of six elements of a head.
pub fn partial() {
    let d = RopeDims { rotated: 4, ..ROPE };
    let angle = |i: usize| (i / 2) as f64 * 100f64.powf(-((i % 2) as f64) / 2.0);
    let (cos, sin): (Vec<f64>, Vec<f64>) = (0..18).map(|i| (angle(i).cos(), angle(i).sin())).unzip();
    let rotate = |x: &[f64], back| runs::rope(&ORACLE, d, &POSITIONS, (&cos, &sin), x, back)[0].1.clone();
    let qkv = normal("qkv", 72, 1.0);
    for (before, after) in qkv.chunks(6).zip(rotate(&qkv, false).chunks(6)) {
        assert_eq!(before[4..], after[4..]);
    }
    check("rope of a part", &[qkv], &[Overwrite], |i| rotate(&i[0], false), |_, dy, _| vec![rotate(dy, true)]);
}

pub fn rope_transpose() {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let (x, y) = (normal("rope x", 72, 1.0), normal("rope y", 72, 1.0));
    let (forward, back) = (dot(&rotate(&x, false), &y), dot(&x, &rotate(&y, true)));
    // Each dot product sums 72 products of magnitude one, and each product is rounded a few times.
    assert!((forward - back).abs() < 1e-13 * 72.0, "forward {forward}, transpose {back}");
    assert!((forward - dot(&x, &y)).abs() > 0.1, "the rotation changes nothing");
}

/// Cosines and sines of positions up to 8 for heads of `head_dim` elements.
fn tables(head_dim: usize) -> (Vec<f64>, Vec<f64>) {
    let half = head_dim / 2;
    let angle = |i: usize| (i / half) as f64 * 100f64.powf(-((i % half) as f64) / half as f64);
    (0..9 * half).map(|i| (angle(i).cos(), angle(i).sin())).unzip()
}

pub fn linear() {
    let (cos, sin) = tables(6);
    let d = LinearDims { tokens: 4, inputs: 5, outputs: 18 };
    let (x, weight, bias) = (normal("x", 20, 1.0), normal("w", 90, 1.0), normal("b", 18, 1.0));
    let rotation = RotationInputs { d: ROPE, positions: &POSITIONS, cos: &cos, sin: &sin };
    for bias in [None, Some(&bias[..])] {
        let both = runs::linear_rope_fwd(&ORACLE, d, [&x, &weight], bias, rotation);
        let y = runs::linear_fwd(&ORACLE, d, &x, &weight, bias)[0].1.clone();
        let expected = runs::rope(&ORACLE, ROPE, &POSITIONS, (&cos, &sin), &y, false)[0].1.clone();
        assert_eq!(both[0].1, expected);
        assert_ne!(y, expected);
    }
}

/// Checks the gradient of attention with respect to the QKV rows before their rotation.
pub fn attention() {
    let tree = HostTree::new().tree(&[(3, None), (2, Some(0)), (2, Some(0))]).tree(&[(2, None)]);
    let positions = [0, 1, 2, 3, 4, 3, 4, 7, 8];
    for (heads, kv_heads, head_dim) in [(1, 1, 2), (4, 2, 4)] {
        let (d, (cos, sin)) = (tree.dims(heads, kv_heads, head_dim), tables(head_dim));
        let rope = RopeDims {
            tokens: d.tokens,
            heads: heads + kv_heads,
            unrotated_heads: kv_heads,
            head_dim,
            rotated: head_dim,
            positions: 9,
        };
        let rotate = |rows: &[f64]| runs::rope(&ORACLE, rope, &positions, (&cos, &sin), rows, false)[0].1.clone();
        let forward = |rows: &[f64]| runs::attention_fwd(&ORACLE, d, &tree, &rotate(rows));
        let rotation = RotationInputs { d: rope, positions: &positions, cos: &cos, sin: &sin };
        check(
            &format!("attention of rotated heads, {heads} on {kv_heads} x {head_dim}"),
            &[normal("qkv", d.tokens * d.fused_heads() * head_dim, 1.0)],
            &[Overwrite],
            |i| forward(&i[0])[0].1.clone(),
            |i, do_, _| {
                let (qkv, saved) = (rotate(&i[0]), forward(&i[0]));
                vec![runs::attention_rope_bwd(&ORACLE, d, &tree, [&qkv, do_], &saved, rotation)[0].1.clone()]
            },
        );
    }
}
