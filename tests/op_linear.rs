//! Linear layers against the reference: few rows (no gemm), rows off every tile width, several depth blocks, slices
//! over tokens; outputs of 1 to 7 columns never reach the gemm crate.

mod common;

use common::{check, normal, runs, stored_as_acc};
use mapl::backend::Write;
use mapl::backend::contract::*;

/// (tokens, inputs, outputs)
const SHAPES: &[(usize, usize, usize)] = &[
    (0, 8, 8),
    (1, 1, 1),
    (1, 64, 96),
    (7, 2, 33),
    (7, 257, 7),
    (32, 48, 80),
    (33, 64, 9),
    (129, 513, 200),
    (129, 514, 65),
    (300, 1040, 130),
    (1100, 24, 40),
];

fn shapes() -> impl Iterator<Item = (LinearDims, String)> {
    SHAPES.iter().map(|&(tokens, inputs, outputs)| {
        (LinearDims { tokens, inputs, outputs }, format!("{tokens} x {inputs} x {outputs}"))
    })
}

#[test]
fn forward_with_and_without_bias() {
    for (d, label) in shapes() {
        let x = normal("x", d.tokens * d.inputs, 1.0);
        let weight = normal("w", d.outputs * d.inputs, 1.0 / (d.inputs as f64).sqrt());
        let bias = normal("b", d.outputs, 1.0);
        for bias in [None, Some(&bias[..])] {
            let tolerance = |p, _: &str| d.tolerance(p);
            check!(label, |on: &_| runs::linear_fwd(on, d, &x, &weight, bias), tolerance);
        }
    }
}

#[test]
fn gradients_overwrite_and_add() {
    for (d, label) in shapes() {
        let x = normal("x", d.tokens * d.inputs, 1.0);
        let weight = normal("w", d.outputs * d.inputs, 1.0 / (d.outputs as f64).sqrt());
        let dy = normal("dy", d.tokens * d.outputs, 1.0);
        let start = normal("start", x.len().max(weight.len()), 1.0);
        for write in [Write::Overwrite, Write::Add] {
            let label = format!("{label}, {write:?}");
            let tolerance = |p, _: &str| Tolerance::dot(p, d.outputs);
            check!(label, |on: &_| runs::linear_bwd_input(on, d, &dy, &weight, &start[..x.len()], write), tolerance);
            let tolerance = |p, _: &str| Tolerance::dot(p, d.tokens).scaled((d.tokens as f64).sqrt().max(1.0));
            check!(label, |on: &_| runs::linear_bwd_weight(on, d, &dy, &x, &start[..weight.len()], write), tolerance);
        }
    }
}

#[test]
fn bias_gradient() {
    for (d, label) in shapes() {
        let (dy, start) = (normal("dy", d.tokens * d.outputs, 1.0), normal("start", d.outputs, 1.0));
        for write in [Write::Overwrite, Write::Add] {
            let tolerance =
                |p, _: &str| Tolerance::dot(stored_as_acc(p), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0));
            check!(format!("{label}, {write:?}"), |on: &_| runs::bias_bwd(on, d, &dy, &start, write), tolerance);
        }
    }
}
