//! RoPE against the reference and against its inverse.

use common::{On, check, each_backend, indices, normal, runs};
use mapl::backend::Backend;
use mapl::backend::contract::*;

#[test]
fn forward_and_backward() {
    for (tokens, heads, unrotated_heads, head_dim, rotated) in [
        (0, 2, 1, 16, 16),
        (1, 1, 0, 2, 2),
        (7, 5, 2, 64, 64),
        (129, 3, 1, 80, 80),
        (40, 4, 4, 10, 10),
        (7, 2, 1, 64, 16),
        (9, 2, 2, 20, 16),
        (5, 1, 1, 24, 6),
    ] {
        let d = RopeDims { tokens, heads, unrotated_heads, head_dim, rotated, positions: 50 };
        let angles = normal("angles", 50 * rotated / 2, 3.0);
        let (cos, sin): (Vec<f64>, Vec<f64>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let positions = indices("positions", tokens, 50);
        let qkv = normal("qkv", tokens * (heads + unrotated_heads) * head_dim, 1.0);
        for back in [false, true] {
            let tolerance = |p, _: &str| Tolerance::dot(p, 2);
            check!(
                format!("{tokens} tokens, {heads} heads x {rotated} of {head_dim}, back {back}"),
                |on: &_| runs::rope(on, d, &positions, (&cos, &sin), &qkv, back),
                tolerance
            );
        }
    }
}

/// Asserts that a rotation followed by its inverse is the identity, in both orders.
fn round_trip<B: Backend>(on: &On<B>) {
    let d = RopeDims { tokens: 7, heads: 5, unrotated_heads: 2, head_dim: 64, rotated: 64, positions: 50 };
    let angles = normal("angles", 50 * 32, 3.0);
    let (cos, sin): (Vec<f64>, Vec<f64>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let positions = indices("positions", d.tokens, 50);
    let qkv = on.read_act(&on.act(&normal("qkv", d.tokens * 7 * 64, 1.0)));
    let tolerance = match B::PRECISION {
        // A rotation keeps the Euclidean norm of each pair, here at most 5. Each of the two roundings to bf16 is
        // therefore off by at most 5 roundoffs.
        Precision::Bf16 => Tolerance { atol: 2.0 * 5.0 * Precision::Bf16.act_roundoff(), rtol: 0.0 },
        p => Tolerance::dot(p, 8),
    };
    for back in [false, true] {
        let rotated = runs::rope(on, d, &positions, (&cos, &sin), &qkv, back)[0].1.clone();
        assert_ne!(rotated, qkv);
        let again = runs::rope(on, d, &positions, (&cos, &sin), &rotated, !back)[0].1.clone();
        common::compare::values("round trip", &again, &qkv, tolerance);
    }
}

#[test]
fn backward_inverts_forward() {
    each_backend!(round_trip);
}
