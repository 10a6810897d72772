//! RMSNorm against the reference: one token, rows that are not a multiple of the vector width, more
//! tokens than a slice of the weight gradient, all-equal rows, rows of zeros, tiny rows dominated
//! by eps.

use common::{check, normal, runs, stored_as_acc};
use mapl::backend::Write;
use mapl::backend::contract::*;

fn forward_and_backward(label: &str, d: NormDims, x: &[f64]) {
    let size = d.tokens * d.hidden;
    let (residual, weight) = (normal("residual", size, 1.0), normal("weight", d.hidden, 1.0));
    let tolerance = |p, _: &str| d.tolerance(p);
    check!(label, |on: &_| runs::norm_fwd(on, d, x, None, &weight), |p, name: &str| {
        // rstd of a tiny row is large; its relative error comes from one chain of roundings.
        if name == "rstd" { Tolerance { atol: 0.0, rtol: d.tolerance(stored_as_acc(p)).rtol } } else { d.tolerance(p) }
    });
    check!(label, |on: &_| runs::norm_fwd(on, d, x, Some(&residual), &weight), tolerance);
    let oracle = common::On::new(&mapl::backend::reference::Reference, Precision::F32);
    let rstd = runs::norm_fwd(&oracle, d, x, None, &weight)[1].1.clone();
    let largest = rstd.iter().copied().fold(1.0, f64::max);
    let (dy, start) = (normal("dy", size, 1.0), normal("start", size, 1.0));
    for write in [Write::Overwrite, Write::Add] {
        let inputs = runs::NormBwdInputs {
            dy: &dy,
            sum: x,
            rstd: &rstd,
            weight: &weight,
            dsum: &start,
            dweight: &weight,
            write,
        };
        // dsum is proportional to rstd; dweight sums over tokens.
        let tolerance = |p, name: &str| match name {
            "dsum" => d.tolerance(p).scaled(largest),
            _ => Tolerance::dot(stored_as_acc(p), d.tokens).scaled((d.tokens as f64).sqrt().max(1.0)),
        };
        check!(format!("{label}, {write:?}"), |on: &_| runs::norm_bwd(on, d, &inputs), tolerance);
    }
}

#[test]
fn sizes_with_and_without_full_vectors() {
    // Rows of 8200 exceed the shared memory that kernels use to sum the weight gradient.
    for (tokens, hidden) in [(0, 16), (1, 1), (1, 64), (7, 33), (129, 80), (300, 257), (3, 8200)] {
        let d = NormDims { tokens, hidden, eps: 1e-6 };
        forward_and_backward(&format!("{tokens} x {hidden}"), d, &normal("x", tokens * hidden, 1.0));
    }
}

#[test]
fn equal_zero_and_tiny_rows() {
    let d = NormDims { tokens: 3, hidden: 48, eps: 1e-5 };
    let mut x = vec![0.25; 144];
    x[48..96].fill(0.0);
    x[96..].copy_from_slice(&normal("tiny", 48, 1e-4));
    forward_and_backward("equal, zero and tiny rows", d, &x);
}
