//! RoPE and SwiGLU against the reference, and the rotation against its inverse.

mod common;

use common::{check, indices, normal, runs};
use mapl::backend::contract::*;

#[test]
fn rotation_forward_and_backward() {
    for (tokens, heads, still, head_dim) in
        [(0, 2, 1, 16), (1, 1, 0, 2), (7, 5, 2, 64), (129, 3, 1, 80), (40, 4, 4, 10)]
    {
        let d = RopeDims { tokens, heads, still, head_dim, positions: 50 };
        let angles = normal("angles", 50 * head_dim / 2, 3.0);
        let (cos, sin): (Vec<f64>, Vec<f64>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let positions = indices("positions", tokens, 50);
        let qkv = normal("qkv", tokens * (heads + still) * head_dim, 1.0);
        for back in [false, true] {
            let run = |on: &_| runs::rope(on, d, &positions, (&cos, &sin), &qkv, back);
            let tolerance = |p, _: &str| Tolerance::dot(p, 2);
            check!(
                format!("{tokens} tokens, {heads} heads x {head_dim}, back {back}"),
                |on: &_| runs::rope(on, d, &positions, (&cos, &sin), &qkv, back),
                tolerance
            );
            let backend = mapl::backend::cpu::Cpu::new();
            let on = common::On::new(&backend, Precision::F32);
            let rotated = run(&on)[0].1.clone();
            let again = runs::rope(&on, d, &positions, (&cos, &sin), &rotated, !back)[0].1.clone();
            common::compare::values("there and back", &again, &qkv, Tolerance::dot(Precision::F32, 8));
        }
    }
}

#[test]
fn gated_activation() {
    for (tokens, intermediate) in [(0, 8), (1, 1), (7, 33), (129, 172), (3, 20_000)] {
        let d = GluDims { tokens, intermediate };
        let (gate_up, dact) = (normal("gu", tokens * 2 * intermediate, 2.0), normal("d", tokens * intermediate, 1.0));
        let label = format!("{tokens} x {intermediate}");
        // gate * up reaches about 50 here; rtol covers it, atol is for terms of order four.
        let tolerance = |p, _: &str| d.tolerance(p).scaled(4.0);
        check!(label, |on: &_| runs::glu_fwd(on, d, &gate_up), tolerance);
        check!(label, |on: &_| runs::glu_bwd(on, d, &dact, &gate_up), tolerance);
    }
}

#[test]
fn saturated_gates() {
    let d = GluDims { tokens: 1, intermediate: 6 };
    let gate_up = [-200.0, -90.0, 0.0, 90.0, 200.0, 1e30, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let tolerance = |p, _: &str| d.tolerance(p);
    check!("saturated", |on: &_| runs::glu_fwd(on, d, &gate_up), tolerance);
    check!("saturated", |on: &_| runs::glu_bwd(on, d, &[1.0; 6], &gate_up), |p, _: &str| d.tolerance(p).scaled(6.0));
}
