//! Gradient norm and AdamW against the reference; a non-finite gradient leaves parameters and
//! moments unchanged.

use common::runs::{Adam, adamw, grad_norm, grad_norm_known};
use common::{On, check, each_backend, normal, stored_as_acc};
use mapl::backend::Backend;
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::reference::Reference;

const ADAM: Adam = Adam { decayed: 0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

#[test]
fn norm_and_clip_factor() {
    // Lengths: one slice, its boundary, and more than the maximum number of slices of minimum size.
    for len in [0, 1, 129, 16_384, 16_385, 300_000] {
        let grads = normal("grads", len, 0.01);
        for max_norm in [1e-3, 1.0, f64::INFINITY] {
            let control = [1e-3, 4.0, 9.0, 9.0, 0.0, 2.0];
            let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), 4);
            check!(format!("{len}, {max_norm}"), |on: &_| grad_norm(on, max_norm, &grads, &control), tolerance);
        }
    }
    each_backend!(exact_norm);
}

/// Known norms replace elements at the start, in the middle, at the end, all elements or none. The
/// op does not read the replaced elements.
#[test]
fn known_norms_replace_elements() {
    for (len, range, count) in
        [(1000, 0..64, 3), (100_000, 4..60_000, 5000), (40_003, 1001..40_003, 70), (640, 0..640, 2), (333, 40..40, 0)]
    {
        let mut grads = normal("grads", len, 0.01);
        grads[range.clone()].fill(f64::NAN);
        let norms: Vec<f64> = normal("norms", count, 0.3).iter().map(|x| x.abs()).collect();
        let control = [1e-3, 4.0, 9.0, 9.0, 0.0, 2.0];
        let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), 4);
        let known = || (range.clone(), &norms[..]);
        check!(format!("{len}, {range:?}"), |on: &_| grad_norm_known(on, 0.5, &grads, known(), &control), tolerance);
    }
    each_backend!(exact_known_norm);
}

fn exact_known_norm<B: Backend>(on: &On<B>) {
    let control = &grad_norm_known(on, 1.0, &[2.0, 9.0, 9.0, 4.0], (1..3, &[4.0, 0.0, 8.0]), &[0.0; CONTROL])[0].1;
    assert_eq!((control[CONTROL_NORM], control[CONTROL_APPLY]), (10.0, 1.0));
    for bad in [f64::INFINITY, f64::NAN] {
        let control = &grad_norm_known(on, 1.0, &[2.0, 9.0, 9.0, 4.0], (1..3, &[0.0, bad]), &[0.0; CONTROL])[0].1;
        assert_eq!((control[CONTROL_APPLY], control[CONTROL_SKIPPED]), (0.0, 1.0));
    }
}

fn exact_norm<B: Backend>(on: &On<B>) {
    let control = &grad_norm(on, f64::INFINITY, &[3.0, 4.0], &[0.0; CONTROL])[0].1;
    assert_eq!(control[..], [0.0, 1.0, 5.0, 1.0, 1.0, 0.0]);
}

#[test]
fn norm_does_not_overflow_when_squares_exceed_f32() {
    each_backend!(huge_gradients);
}

fn huge_gradients<B: Backend>(on: &On<B>) {
    let control = &grad_norm(on, 1.0, &[3e25, 4e25], &[0.0; CONTROL])[0].1;
    assert!((control[CONTROL_NORM] / 5e25 - 1.0).abs() < 1e-6 && control[CONTROL_APPLY] == 1.0, "{control:?}");
}

#[test]
fn non_finite_gradients_skip_the_update() {
    each_backend!(skipped_step);
}

fn skipped_step<B: Backend>(on: &On<B>) {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut grads = normal("grads", 20_000, 1.0);
        grads[19_999] = bad;
        let control = grad_norm(on, 1.0, &grads, &[1e-3, 4.0, 0.0, 0.0, 1.0, 2.0])[0].1.clone();
        assert_eq!((control[CONTROL_STEP], control[CONTROL_APPLY], control[CONTROL_SKIPPED]), (4.0, 0.0, 3.0));
        let state = [&normal("p", 20_000, 1.0)[..], &normal("m", 20_000, 1.0), &vec![0.5; 20_000]];
        let expected = [on.read_act(&on.act(state[0])), on.read_acc(&on.acc(state[1])), on.read_acc(&on.acc(state[2]))];
        let after = adamw(on, ADAM, &control, &grads, state);
        for ((name, got), expected) in after.iter().zip(&expected) {
            common::compare::bits(name, got, expected);
        }
    }
}

#[test]
fn adamw_updates_at_first_and_later_steps() {
    for (len, decayed) in [(0, 0), (1, 0), (7, 7), (40_000, 20_003), (16_384, 16_384), (129, 5)] {
        let grads = normal("grads", len, 0.1);
        let params = normal("params", len, 1.0);
        let (m, v): (Vec<f64>, Vec<f64>) =
            (normal("m", len, 0.1), normal("v", len, 0.1).iter().map(|x| x * x).collect());
        // At the last step the bias correction of the second moment is 1 - 0.999^2003 = 0.87. For
        // the first moment it rounds to 1 in f32.
        for (step, clip) in [(1.0, 1.0), (17.0, 0.25), (2003.0, 1.0)] {
            let control = [1e-2, step, 1.0, clip, 1.0, 0.0];
            let zeros = vec![0.0; len];
            let state = if step == 1.0 { [&params[..], &zeros, &zeros] } else { [&params[..], &m, &v] };
            // m / sqrt(v) reaches 100 if v is small; the learning rate scales the update down to
            // about 1.
            let tolerance = |p, name: &str| Tolerance::dot(if name == "params" { p } else { stored_as_acc(p) }, 4);
            let adam = Adam { decayed, ..ADAM };
            check!(format!("{len}, step {step}"), |on: &_| adamw(on, adam, &control, &grads, state), tolerance);
        }
    }
}

/// Runs an update with full-precision master weights. Returns params, m, v and the master weights.
fn with_master<B: Backend>(
    on: &On<B>,
    control: &[f64],
    grads: &[f64],
    state: [&[f64]; 3],
) -> mapl::Result<Vec<Vec<f64>>> {
    let (control, grads) = (on.acc(control), on.acc(grads));
    let (mut params, mut master) = (on.act(state[0]), on.acc(state[0]));
    let (mut m, mut v) = (on.acc(state[1]), on.acc(state[2]));
    on.backend.adamw(AdamW {
        len: grads.len,
        decayed: grads.len / 2,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        control: control.view(),
        grads: grads.view(),
        m: m.view_mut(),
        v: v.view_mut(),
        master: Some(master.view_mut()),
        params: params.view_mut(),
    })?;
    Ok(vec![on.read_act(&params), on.read_acc(&m), on.read_acc(&v), on.read_acc(&master)])
}

#[test]
fn master_weights_are_updated_and_rounded_to_bf16_parameters() {
    let len = 5003;
    let (grads, params, m) = (normal("grads", len, 0.1), normal("params", len, 1.0), normal("m", len, 0.1));
    let v: Vec<f64> = normal("v", len, 0.1).iter().map(|x| x * x).collect();
    // The update is far below the spacing of bf16: only the master weights can hold it.
    let control = [1e-5, 17.0, 1.0, 0.5, 1.0, 0.0];
    let expected = with_master(&On::new(&Reference, Precision::F32), &control, &grads, [&params, &m, &v]).unwrap();
    let check = |got: &[Vec<f64>]| {
        for (name, k) in [("m", 1), ("v", 2), ("master", 3)] {
            common::compare::values(name, &got[k], &expected[k], Tolerance::dot(Precision::F32, 4));
        }
        let rounded: Vec<f64> = got[3].iter().map(|&x| half::bf16::from_f64(x).to_f64()).collect();
        common::compare::bits("params", &got[0], &rounded);
        assert!(
            got[3].iter().zip(&params).any(|(new, old)| *new != f64::from(*old as f32)),
            "the master weights did not change"
        );
    };
    let cpu = Cpu::<half::bf16>::default();
    check(&with_master(&On::new(&cpu, Precision::Bf16), &control, &grads, [&params, &m, &v]).unwrap());
    let mut first: Option<Vec<Vec<f64>>> = None;
    for (schedule, processors, before) in common::emulated() {
        let Some(device) = common::emulator(schedule, processors) else { return };
        let backend = Kernels::<_, half::bf16>::new(device);
        let on = On { before, ..On::new(&backend, Precision::Bf16) };
        let got = with_master(&on, &control, &grads, [&params, &m, &v]).unwrap();
        check(&got);
        match &first {
            None => first = Some(got),
            Some(first) => assert_eq!(&got, first),
        }
    }
}

fn refuses<B: Backend>(on: &On<B>) {
    let result = with_master(on, &[0.0; CONTROL], &[0.0; 2], [&[0.0; 2]; 3]);
    assert!(matches!(result, Err(mapl::Error::Contract { op: "adamw", what: "master", .. })), "{result:?}");
}

#[test]
fn master_weights_for_f32_parameters_are_rejected() {
    refuses(&On::new(&Cpu::new(), Precision::F32));
    if let Some(device) = common::emulator(common::EMULATED[0].0, 1) {
        refuses(&On::new(&Kernels::<_, f32>::new(device), Precision::F32));
    }
}
