//! Gradient norm and AdamW against their formulas, implemented here without the backend.

use mapl::backend::contract::*;
use mapl::backend::{Backend, Write};

use super::difference::{ORACLE, agree, differences};
use common::normal;
use common::runs::{Adam, adamw, grad_norm, grad_norm_known};

const ADAM: Adam = Adam { decayed: 3, beta1: 0.9, beta2: 0.99, eps: 1e-3, weight_decay: 0.1 };
const RATE: f64 = 0.05;

/// Control vector before an update: learning rate, `step` updates done, `skipped` updates skipped,
/// stale values elsewhere.
fn control(step: f64, skipped: f64) -> Vec<f64> {
    let mut control = vec![-9.0; CONTROL];
    (control[CONTROL_LEARNING_RATE], control[CONTROL_STEP], control[CONTROL_SKIPPED]) = (RATE, step, skipped);
    control
}

fn after_norm(max_norm: f64, grads: &[f64], control: &[f64]) -> Vec<f64> {
    grad_norm(&ORACLE, max_norm, grads, control)[0].1.clone()
}

pub fn norm_and_clip() {
    let grads = normal("grads", 7, 1.0);
    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
    // The gradient of a norm is the unit vector.
    let slope =
        differences(std::slice::from_ref(&grads), 0, |i| after_norm(1.0, &i[0], &control(0.0, 0.0))[CONTROL_NORM]);
    agree("grad_norm", &grads.iter().map(|g| g / norm).collect::<Vec<f64>>(), &slope);
    for (max_norm, clip) in [(0.5, 0.5 / (norm + 1e-6)), (2.0 * norm, 1.0), (f64::INFINITY, 1.0)] {
        let control = after_norm(max_norm, &grads, &control(4.0, 2.0));
        assert!((control[CONTROL_NORM] - norm).abs() < 1e-14 && (control[CONTROL_CLIP] - clip).abs() < 1e-15);
        assert_eq!((control[CONTROL_STEP], control[CONTROL_APPLY], control[CONTROL_SKIPPED]), (5.0, 1.0, 2.0));
        assert_eq!(control[CONTROL_LEARNING_RATE], RATE);
    }
}

/// Checks the patch norms of a weight gradient, and the gradient norm computed from them.
pub fn norms_of_patches() {
    // Two patches down and two across; the last of each is partial.
    let d = LinearDims { tokens: 3, inputs: 37, outputs: 18 };
    let (x, dy, start) = (normal("x", 3 * 37, 1.0), normal("dy", 3 * 18, 1.0), normal("start", 18 * 37, 1.0));
    let (x, dy, mut dweight) = (ORACLE.act(&x), ORACLE.act(&dy), ORACLE.acc(&start));
    let mut norms = ORACLE.acc_out(d.patches());
    let (view, out) = (dweight.view_mut(), Some(norms.view_mut()));
    let args = LinearBwdWeight { dims: d, dy: dy.view(), x: x.view(), dweight: view, write: Write::Add, norms: out };
    ORACLE.backend.linear_bwd_weight(args).unwrap();
    let (dweight, norms) = (ORACLE.read_acc(&dweight), ORACLE.read_acc(&norms));
    assert_eq!(norms.len(), 4);
    for (patch, norm) in norms.iter().enumerate() {
        let (rows, columns) = ([0..16, 16..18][patch / 2].clone(), [0..32, 32..37][patch % 2].clone());
        let squares = rows.flat_map(|r| columns.clone().map(move |c| (r, c))).map(|(r, c)| dweight[r * 37 + c].powi(2));
        assert!((squares.sum::<f64>().sqrt() - norm).abs() < 1e-13, "patch {patch}: {norm}");
    }
    let whole: Vec<f64> = [2.0, 3.0].into_iter().chain(dweight.iter().copied()).chain([4.0]).collect();
    let read = grad_norm(&ORACLE, 1.0, &whole, &control(4.0, 2.0));
    let known = grad_norm_known(&ORACLE, 1.0, &whole, (2..2 + 18 * 37, &norms), &control(4.0, 2.0));
    for (read, known) in read[0].1.iter().zip(&known[0].1) {
        assert!((read - known).abs() < 1e-13, "{read} {known}");
    }
}

/// Checks one update from nonzero moments at the sixth step, with and without clipping.
pub fn textbook_step() {
    let (grads, params) = (normal("grads", 5, 1.0), normal("params", 5, 1.0));
    let (m, v): (_, Vec<f64>) = (normal("m", 5, 1.0), normal("v", 5, 1.0).iter().map(|x| x * x).collect());
    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
    for (max_norm, clip) in [(f64::INFINITY, 1.0), (0.5, 0.5 / (norm + 1e-6))] {
        let control = after_norm(max_norm, &grads, &control(5.0, 0.0));
        let outputs = adamw(&ORACLE, ADAM, &control, &grads, [&params, &m, &v]);
        for i in 0..5 {
            let g = clip * grads[i];
            let (m, v) = (0.9 * m[i] + 0.1 * g, 0.99 * v[i] + 0.01 * g * g);
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(6)), v / (1.0 - 0.99f64.powi(6)));
            // Weight decay applies to elements 0, 1 and 2, not to 3 and 4.
            let decay = if i < 3 { 0.1 * params[i] } else { 0.0 };
            let param = params[i] - RATE * (decay + m_hat / (v_hat.sqrt() + 1e-3));
            for (output, expected) in outputs.iter().zip([param, m, v]) {
                let got = output.1[i];
                assert!((got - expected).abs() < 1e-14 * (1.0 + expected.abs()), "{}[{i}]: {got}", output.0);
            }
        }
    }
}

/// With a constant gradient g the corrected moments are g and g² at every step, so every update is
/// lr g / (|g| + eps).
pub fn bias_correction() {
    let grads = [0.3, -1.7, 4.0];
    let adam = Adam { decayed: 0, ..ADAM };
    let start = [1.0, 2.0, -3.0];
    let (mut params, mut m, mut v) = (start.to_vec(), vec![0.0; 3], vec![0.0; 3]);
    let mut control = control(0.0, 0.0);
    for step in 1..=20 {
        control = after_norm(f64::INFINITY, &grads, &control);
        assert_eq!(control[CONTROL_STEP], f64::from(step));
        let outputs = adamw(&ORACLE, adam, &control, &grads, [&params, &m, &v]);
        [params, m, v] = [0, 1, 2].map(|k: usize| outputs[k].1.clone());
        for i in 0..3 {
            let expected = start[i] - f64::from(step) * RATE * grads[i] / (grads[i].abs() + 1e-3);
            assert!((params[i] - expected).abs() < 1e-12, "step {step}, element {i}: {} {expected}", params[i]);
        }
    }
}

/// A non-finite gradient only increments the count of skipped updates. The next update is the same
/// as without it.
pub fn skipped_step() {
    let (grads, params) = (normal("grads", 5, 1.0), normal("params", 5, 1.0));
    let (m, v) = (normal("m", 5, 1.0), vec![0.5; 5]);
    let state: [&[f64]; 3] = [&params, &m, &v];
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut broken = grads.clone();
        broken[2] = bad;
        let control_after = after_norm(1.0, &broken, &control(5.0, 1.0));
        assert_eq!(control_after[CONTROL_APPLY], 0.0);
        assert_eq!((control_after[CONTROL_STEP], control_after[CONTROL_SKIPPED]), (5.0, 2.0), "{bad}");
        for (output, before) in adamw(&ORACLE, ADAM, &control_after, &broken, state).iter().zip(state) {
            assert_eq!(output.1, before, "{} after a gradient of {bad}", output.0);
        }
        let (late, direct) = (after_norm(1.0, &grads, &control_after), after_norm(1.0, &grads, &control(5.0, 1.0)));
        assert_eq!((late[CONTROL_STEP], late[CONTROL_SKIPPED]), (6.0, 2.0));
        assert_eq!(adamw(&ORACLE, ADAM, &late, &grads, state), adamw(&ORACLE, ADAM, &direct, &grads, state));
        assert_ne!(adamw(&ORACLE, ADAM, &late, &grads, state)[0].1, params);
    }
}
