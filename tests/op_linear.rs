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
    (129, 513, 140),
    (129, 514, 65),
    (130, 1040, 130),
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
fn input_gradient_overwrites_and_adds() {
    for (d, label) in shapes() {
        let weight = normal("w", d.outputs * d.inputs, 1.0 / (d.outputs as f64).sqrt());
        let dy = normal("dy", d.tokens * d.outputs, 1.0);
        let start = normal("start", d.tokens * d.inputs, 1.0);
        for write in [Write::Overwrite, Write::Add] {
            let tolerance = |p, _: &str| Tolerance::dot(p, d.outputs);
            let label = format!("{label}, {write:?}");
            check!(label, |on: &_| runs::linear_bwd_input(on, d, &dy, &weight, &start, write), tolerance);
        }
    }
}

#[test]
fn weight_gradient_overwrites_and_adds() {
    for (d, label) in shapes() {
        let x = normal("x", d.tokens * d.inputs, 1.0);
        let dy = normal("dy", d.tokens * d.outputs, 1.0);
        let start = normal("start", d.outputs * d.inputs, 1.0);
        for write in [Write::Overwrite, Write::Add] {
            let label = format!("{label}, {write:?}");
            let tolerance =
                |p, _: &str| Tolerance::dot(stored_as_acc(p), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0));
            check!(label, |on: &_| runs::linear_bwd_weight(on, d, &dy, &x, &start, write), tolerance);
        }
    }
}

#[test]
fn bias_gradient_overwrites_and_adds() {
    for (d, label) in shapes() {
        let dy = normal("dy", d.tokens * d.outputs, 1.0);
        let start = normal("start", d.outputs, 1.0);
        for write in [Write::Overwrite, Write::Add] {
            let label = format!("{label}, {write:?}");
            let tolerance =
                |p, _: &str| Tolerance::dot(stored_as_acc(p), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0));
            check!(label, |on: &_| runs::bias_bwd(on, d, &dy, &start, write), tolerance);
        }
    }
}

/// All three products on one tile and one step, for runs under a sanitiser.
#[test]
fn products_on_the_least_sizes() {
    let d = LinearDims { tokens: 3, inputs: 9, outputs: 5 };
    let (x, dy) = (normal("x", 27, 1.0), normal("dy", 15, 1.0));
    let weight = normal("w", 45, 1.0 / 3.0);
    check!("least", |on: &_| runs::linear_fwd(on, d, &x, &weight, Some(&dy[..5])), |p, _: &str| d.tolerance(p));
    let tolerance = |p, _: &str| Tolerance::dot(p, 5);
    check!("least", |on: &_| runs::linear_bwd_input(on, d, &dy, &weight, &x, Write::Add), tolerance);
    let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), 3).scaled(2.0);
    check!("least", |on: &_| runs::linear_bwd_weight(on, d, &dy, &x, &weight, Write::Add), tolerance);
}
