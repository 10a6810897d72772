//! Linear layers against the reference: few rows (without the gemm crate), row counts that are not
//! a multiple of any tile, several blocks of K, slices over tokens. Outputs of 1 to 7 columns never
//! use the gemm crate.

use common::{On, check, compare, each_backend, normal, runs, stored_as_acc};
use mapl::backend::contract::*;
use mapl::backend::{Backend, Write};

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
            let label = format!("{label}, norms");
            check!(label, |on: &_| runs::linear_bwd_weight_norms(on, d, &dy, &x, &start, write), tolerance);
        }
    }
}

/// Asserts that computing norms leaves the gradient bitwise equal, that norms do not overflow when
/// f32 squares would, and that the norm of a non-finite patch is not finite.
fn patch_norms<B: Backend>(on: &On<'_, B>) {
    let d = LinearDims { tokens: 70, inputs: 136, outputs: 152 };
    let (x, dy) = (normal("x", 70 * 136, 1.0), normal("dy", 70 * 152, 1.0));
    let start = normal("start", 152 * 136, 1.0);
    for write in [Write::Overwrite, Write::Add] {
        let alone = runs::linear_bwd_weight(on, d, &dy, &x, &start, write);
        let with_norms = runs::linear_bwd_weight_norms(on, d, &dy, &x, &start, write);
        compare::bits(B::NAME, &with_norms[0].1, &alone[0].1);
    }
    let huge: Vec<f64> = dy.iter().map(|x| x * 1e25).collect();
    let rms = runs::linear_bwd_weight_norms(on, d, &huge, &x, &start, Write::Overwrite)[1].1[0];
    assert!((1e25..1e27).contains(&rms), "{rms:e}");
    let mut infinite = dy.clone();
    infinite[3 * 152 + 151] = f64::INFINITY;
    let mut norms = on.acc_out(d.patches());
    let (dy, x, mut dweight) = (on.act(&infinite), on.act(&x), on.acc(&start));
    let (view, out) = (dweight.view_mut(), Some(norms.view_mut()));
    let args =
        LinearBwdWeight { dims: d, dy: dy.view(), x: x.view(), dweight: view, write: Write::Overwrite, norms: out };
    on.backend.linear_bwd_weight(args).unwrap();
    let norms = on.read_acc(&norms);
    // The last row of the gradient is not finite, so the norms of some of the last patches are not.
    // The first norm is finite.
    assert!(norms[0].is_finite() && norms.iter().any(|x| !x.is_finite()), "{norms:?}");
}

#[test]
fn weight_gradient_norms_are_robust_and_do_not_change_the_gradient() {
    each_backend!(patch_norms);
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

#[test]
fn residual_is_added_after_the_bias() {
    for (d, label) in shapes() {
        let x = normal("x", d.tokens * d.inputs, 1.0);
        let weight = normal("w", d.outputs * d.inputs, 1.0 / (d.inputs as f64).sqrt());
        let (bias, residual) = (normal("b", d.outputs, 1.0), normal("r", d.tokens * d.outputs, 1.0));
        let inputs = [&x[..], &weight, &bias, &residual];
        check!(label, |on: &_| runs::linear_fwd_residual(on, d, inputs), |p, _: &str| d.tolerance(p));
    }
}

/// (tokens, hidden, intermediate): partial groups of eight columns, partial tiles of gate and up,
/// several tiles in each dimension.
const GATED: &[(usize, usize, usize)] = &[
    (0, 8, 8),
    (3, 8, 0),
    (1, 1, 1),
    (1, 64, 7),
    (7, 33, 33),
    (33, 40, 64),
    (129, 48, 129),
    (130, 72, 136),
    (65, 130, 40),
];

fn gated() -> impl Iterator<Item = (LinearGluDims, String)> {
    GATED.iter().map(|&(tokens, hidden, intermediate)| {
        (LinearGluDims { tokens, hidden, intermediate }, format!("{tokens} x {hidden} x {intermediate}"))
    })
}

#[test]
fn gated_forward_is_gemm_then_activation() {
    for (d, label) in gated() {
        let x = normal("x", d.tokens * d.hidden, 1.0);
        let weight = normal("w", 2 * d.intermediate * d.hidden, 1.0 / (d.hidden as f64).sqrt());
        for stored in [false, true] {
            let label = format!("{label}, stored {stored}");
            let tolerance = |p, _: &str| d.tolerance(p);
            check!(label, |on: &_| runs::linear_glu_fwd(on, d, &x, &weight, stored), tolerance);
        }
    }
}

#[test]
fn gated_backward_is_gemm_then_activation_gradient() {
    for (d, label) in gated() {
        let dy = normal("dy", d.tokens * d.hidden, 1.0);
        let weight = normal("w", d.hidden * d.intermediate, 1.0 / (d.hidden as f64).sqrt());
        let gate_up = normal("gate_up", d.tokens * 2 * d.intermediate, 1.0);
        check!(label, |on: &_| runs::linear_glu_bwd(on, d, &dy, &weight, &gate_up), |p, _: &str| d.tolerance(p));
    }
}

/// Asserts that a gated GEMM is bitwise equal to a GEMM followed by the activation op.
fn fused_equals_separate<B: Backend>(on: &On<'_, B>) {
    for (d, label) in gated() {
        let label = format!("{} {label}", B::NAME);
        let x = normal("x", d.tokens * d.hidden, 1.0);
        let weight = normal("w", 2 * d.intermediate * d.hidden, 1.0 / (d.hidden as f64).sqrt());
        let product = runs::linear_fwd(on, d.gate_up(), &x, &weight, None);
        let act = runs::glu_fwd(on, d.glu(), &product[0].1);
        let fused = runs::linear_glu_fwd(on, d, &x, &weight, true);
        assert_eq!(fused[0].1, product[0].1, "{label}: gate and up");
        assert_eq!(fused[1].1, act[0].1, "{label}: activation");
        assert_eq!(
            runs::linear_glu_fwd(on, d, &x, &weight, false)[0].1,
            act[0].1,
            "{label}: activation without stored gate and up"
        );

        let weight = &weight[..d.hidden * d.intermediate];
        let zeros = vec![0.0; d.tokens * d.intermediate];
        let dact = runs::linear_bwd_input(on, d.down(), &x, weight, &zeros, Write::Overwrite);
        let separate = runs::glu_bwd(on, d.glu(), &dact[0].1, &product[0].1);
        let fused = runs::linear_glu_bwd(on, d, &x, weight, &product[0].1);
        assert_eq!(fused[0].1, separate[0].1, "{label}: gradient");
    }
}

#[test]
fn gated_gemm_is_bitwise_equal_to_separate_ops() {
    each_backend!(fused_equals_separate);
}

/// All three GEMMs with one tile and one step of K, for runs under a sanitiser.
#[test]
fn gemms_of_minimum_size() {
    let d = LinearDims { tokens: 3, inputs: 9, outputs: 5 };
    let (x, dy) = (normal("x", 27, 1.0), normal("dy", 15, 1.0));
    let weight = normal("w", 45, 1.0 / 3.0);
    check!("least", |on: &_| runs::linear_fwd(on, d, &x, &weight, Some(&dy[..5])), |p, _: &str| d.tolerance(p));
    let tolerance = |p, _: &str| Tolerance::dot(p, 5);
    check!("least", |on: &_| runs::linear_bwd_input(on, d, &dy, &weight, &x, Write::Add), tolerance);
    let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), 3).scaled(2.0);
    check!("least", |on: &_| runs::linear_bwd_weight_norms(on, d, &dy, &x, &weight, Write::Add), tolerance);
}
