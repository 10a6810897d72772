//! SwiGLU and GeGLU against the reference.

use common::{check, normal, runs};
use mapl::backend::contract::*;

#[test]
fn forward_and_backward() {
    let (erf, tanh) = (Some(Gelu::Erf), Some(Gelu::Tanh));
    for (tokens, intermediate, gelu) in [
        (0, 8, None),
        (1, 1, None),
        (7, 33, None),
        (129, 172, None),
        (3, 20_000, None),
        (1, 1, tanh),
        (7, 33, erf),
        (7, 33, tanh),
        (40, 172, tanh),
    ] {
        let d = GluDims { tokens, intermediate, gelu };
        let (gate_up, dact) = (normal("gu", tokens * 2 * intermediate, 2.0), normal("d", tokens * intermediate, 1.0));
        let label = format!("{tokens} x {intermediate}, {gelu:?}");
        // gate * up reaches about 50 here: rtol covers it, and atol covers terms of about 4.
        let tolerance = |p, _: &str| d.tolerance(p).scaled(4.0);
        check!(label, |on: &_| runs::glu_fwd(on, d, &gate_up), tolerance);
        check!(label, |on: &_| runs::glu_bwd(on, d, &dact, &gate_up), tolerance);
    }
}

#[test]
fn saturated_gates() {
    saturated(None);
    saturated(Some(Gelu::Tanh));
}

fn saturated(gelu: Option<Gelu>) {
    let d = GluDims { tokens: 1, intermediate: 6, gelu };
    // The slope of GELU contains the square of the gate.
    let largest = if gelu.is_some() { 1e6 } else { 1e30 };
    let gate_up = [-200.0, -90.0, 0.0, 90.0, 200.0, largest, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let tolerance = |p, _: &str| d.tolerance(p);
    check!("saturated", |on: &_| runs::glu_fwd(on, d, &gate_up), tolerance);
    check!("saturated", |on: &_| runs::glu_bwd(on, d, &[1.0; 6], &gate_up), |p, _: &str| d.tolerance(p).scaled(6.0));
}
