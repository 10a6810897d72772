//! Gradient norm and AdamW against the reference; what a gradient that is not finite leaves untouched.

mod common;

use common::runs::{Adam, adamw, grad_norm};
use common::{On, check, normal};
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;

const ADAM: Adam = Adam { decayed: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

#[test]
fn norm_and_clip_factor() {
    // One slice, its boundary, more than all slices of the least size.
    for len in [0, 1, 129, 16_384, 16_385, 300_000] {
        let grads = normal("grads", len, 0.01);
        for max_norm in [1e-3, 1.0, f64::INFINITY] {
            let control = [1e-3, 4.0, 9.0, 9.0, 0.0, 2.0];
            let tolerance = |p, _: &str| Tolerance::dot(p, 4);
            check!(format!("{len}, {max_norm}"), |on: &_| grad_norm(on, max_norm, &grads, &control), tolerance);
        }
    }
    let backend = Cpu::new();
    let on = On::new(&backend, Precision::F32);
    let control = &grad_norm(&on, f64::INFINITY, &[3.0, 4.0], &[0.0; CONTROL])[0].1;
    assert_eq!(control[..], [0.0, 1.0, 5.0, 1.0, 1.0, 0.0]);
}

#[test]
fn squares_beyond_f32_do_not_overflow() {
    let backend = Cpu::new();
    let on = On::new(&backend, Precision::F32);
    let control = &grad_norm(&on, 1.0, &[3e25, 4e25], &[0.0; CONTROL])[0].1;
    assert!((control[CONTROL_NORM] / 5e25 - 1.0).abs() < 1e-6 && control[CONTROL_APPLY] == 1.0, "{control:?}");
}

#[test]
fn gradients_that_are_not_finite_skip_the_step() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut grads = normal("grads", 20_000, 1.0);
        grads[19_999] = bad;
        let backend = Cpu::new();
        let on = On::new(&backend, Precision::F32);
        let control = grad_norm(&on, 1.0, &grads, &[1e-3, 4.0, 0.0, 0.0, 1.0, 2.0])[0].1.clone();
        assert_eq!((control[CONTROL_STEP], control[CONTROL_APPLY], control[CONTROL_SKIPPED]), (4.0, 0.0, 3.0));
        let state = [&normal("p", 20_000, 1.0)[..], &normal("m", 20_000, 1.0), &vec![0.5; 20_000]];
        let before = adamw(&On::new(&Cpu::new(), Precision::F32), ADAM, &control, &grads, state);
        for ((name, got), expected) in before.iter().zip(state) {
            let rounded: Vec<f64> = expected.iter().map(|&x| f64::from(x as f32)).collect();
            common::compare::bits(name, got, &rounded);
        }
    }
}

#[test]
fn update_at_the_first_and_later_steps() {
    for (len, decayed) in [(0, 0), (1, 0), (7, 7), (40_000, 20_003), (16_384, 16_384), (129, 5)] {
        let grads = normal("grads", len, 0.1);
        let params = normal("params", len, 1.0);
        let (m, v): (Vec<f64>, Vec<f64>) =
            (normal("m", len, 0.1), normal("v", len, 0.1).iter().map(|x| x * x).collect());
        for (step, clip) in [(1.0, 1.0), (17.0, 0.25)] {
            let control = [1e-2, step, 1.0, clip, 1.0, 0.0];
            let zeros = vec![0.0; len];
            let state = if step == 1.0 { [&params[..], &zeros, &zeros] } else { [&params[..], &m, &v] };
            // m over sqrt(v) reaches 100 where v is small; lr brings the update back to order one.
            let tolerance = |p, _: &str| Tolerance::dot(p, 4);
            let adam = Adam { decayed, ..ADAM };
            check!(format!("{len}, step {step}"), |on: &_| adamw(on, adam, &control, &grads, state), tolerance);
        }
    }
}

#[test]
fn a_master_copy_is_refused() {
    use mapl::Error;
    use mapl::backend::{Backend, View, ViewMut};
    let cpu = Cpu::new();
    let (control, grads) = (vec![0.0f32; CONTROL], vec![0.0f32; 2]);
    let (mut m, mut v, mut master, mut params) = (grads.clone(), grads.clone(), grads.clone(), grads.clone());
    let result = cpu.adamw(AdamW {
        len: 2,
        decayed: 0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        control: View::first(&control, CONTROL),
        grads: View::first(&grads, 2),
        m: ViewMut::first(&mut m, 2),
        v: ViewMut::first(&mut v, 2),
        master: Some(ViewMut::first(&mut master, 2)),
        params: ViewMut::first(&mut params, 2),
    });
    assert!(matches!(result, Err(Error::Contract { op: "adamw", what: "master", .. })), "{result:?}");
}
