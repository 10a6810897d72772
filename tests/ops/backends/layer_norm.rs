//! LayerNorm against the reference: one token, rows that are not a multiple of the vector width, more
//! tokens than a slice of the weight gradient, rows far from zero, all-equal rows.

use common::{check, normal, runs, stored_as_acc};
use mapl::backend::Write;
use mapl::backend::contract::*;

fn forward_and_backward(label: &str, d: LayerNormDims, x: &[f64], largest: f64) {
    let (size, weight) = (d.tokens * d.hidden, normal("weight", 2 * d.hidden, 1.0));
    check!(label, |on: &_| runs::layer_norm_fwd(on, d, x, &weight), |p, name: &str| {
        let p = if name == "stats" { stored_as_acc(p) } else { p };
        d.tolerance(p).scaled(largest)
    });
    let oracle = common::On::new(&mapl::backend::reference::Reference, Precision::F32);
    let stats = runs::layer_norm_fwd(&oracle, d, x, &weight)[1].1.clone();
    let (dy, start, dweight) = (normal("dy", size, 1.0), normal("start", size, 1.0), normal("dw", 2 * d.hidden, 1.0));
    for write in [Write::Overwrite, Write::Add] {
        // dx is proportional to rstd; dweight sums over tokens.
        let tolerance = |p, name: &str| match name {
            "dx" => d.tolerance(p).scaled(2.0 * largest),
            _ => Tolerance::dot(stored_as_acc(p), d.tokens).scaled(largest * (d.tokens as f64).sqrt().max(1.0)),
        };
        let inputs = [&dy[..], x, &stats, &weight, &start, &dweight];
        check!(format!("{label}, {write:?}"), |on: &_| runs::layer_norm_bwd(on, d, inputs, write), tolerance);
    }
}

#[test]
fn sizes_with_and_without_full_vectors() {
    // Rows of 1032 exceed the registers of a warp, rows of 4104 those of a block.
    for (tokens, hidden) in [(0, 16), (1, 2), (1, 64), (7, 33), (129, 80), (40, 257), (3, 1032), (3, 4104)] {
        let d = LayerNormDims { tokens, hidden, eps: 1e-3 };
        forward_and_backward(&format!("{tokens} x {hidden}"), d, &normal("x", tokens * hidden, 1.0), 2.0);
    }
}

/// The mean is subtracted before the squares are summed, so a large mean adds only its own rounding error.
#[test]
fn rows_far_from_zero_and_equal_rows() {
    let d = LayerNormDims { tokens: 3, hidden: 48, eps: 1e-3 };
    // Multiples of 1/8 are exact in bf16 up to 32.
    let x: Vec<f64> = normal("x", 144, 1.0).iter().map(|x| 16.0 + (8.0 * x).round() / 8.0).collect();
    forward_and_backward("far from zero", d, &x, 32.0);
    forward_and_backward("equal", d, &[0.25; 144], 64.0);
}
