//! Gradient of RoPE.

use mapl::backend::Write::Overwrite;
use mapl::backend::contract::*;

use super::difference::{ORACLE, check};
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

/// The first four of six elements rotate.
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
    // 72 products of magnitude one, each rounded a few times.
    assert!((forward - back).abs() < 1e-13 * 72.0, "forward {forward}, transpose {back}");
    assert!((forward - dot(&x, &y)).abs() > 0.1, "the rotation changes nothing");
}
