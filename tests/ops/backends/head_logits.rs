//! Log-prob of stored logits against the reference; the vocabulary head against log-prob of stored
//! logits.

use common::{On, check, each_backend, indices, normal, runs, stored_as_acc};
use mapl::backend::Backend;
use mapl::backend::contract::*;

fn stored(precision: Precision, output: &str) -> Tolerance {
    Tolerance::dot(if output == "dlogits" { precision } else { stored_as_acc(precision) }, 16)
}

#[test]
fn stored_logits_match_the_reference() {
    for (rows, vocab) in [(0, 257), (1, 1), (7, 257), (33, 1999), (1, 151_936)] {
        let (logits, target) = (normal("logits", rows * vocab, 2.0), indices("target", rows, vocab));
        let dlogp = normal("dlogp", rows, 1.0);
        let tolerance = |p, name: &str| stored(p, name).scaled(2.0);
        check!(format!("{rows} x {vocab}"), |on: &_| runs::logprob(on, vocab, &logits, &target, &dlogp), tolerance);
    }
}

#[test]
fn equal_huge_and_infinite_logits_match_the_reference() {
    let vocab = 100;
    let mut logits = normal("logits", 6 * vocab, 1.0);
    logits[..vocab].fill(3.0);
    logits[vocab + 17] = 1e6;
    logits[2 * vocab..3 * vocab].iter_mut().step_by(2).for_each(|x| *x = f64::NEG_INFINITY);
    logits[3 * vocab + 1] = f64::INFINITY;
    logits[4 * vocab + 1] = f64::NAN;
    logits[5 * vocab..].fill(f64::NEG_INFINITY);
    let target = [0, 3, 4, 5, 6, 7];
    // Differences from a logit of 1e6 carry the rounding error of that logit.
    let tolerance = |p, name: &str| stored(p, name).scaled(2.0);
    check!("extreme", |on: &_| runs::logprob(on, vocab, &logits, &target, &[1.0; 6]), tolerance);
}

/// Asserts that rows not used by a loss may contain any value, NaN included.
fn unused_rows<B: Backend>(on: &On<B>) {
    let mut logits = normal("logits", 3 * 40, 1.0);
    logits[7] = f64::NAN;
    logits[40 + 7] = f64::INFINITY;
    let dlogits = &runs::logprob(on, 40, &logits, &[1, 2, 3], &[0.0, 0.0, 1.0])[2].1;
    assert!(dlogits[..80].iter().all(|&x| x == 0.0), "{dlogits:?}");
    assert!(dlogits[80..].iter().all(|&x| x.is_finite() && x != 0.0), "{dlogits:?}");
}

#[test]
fn unused_rows_with_nan_have_gradient_zero() {
    each_backend!(unused_rows);
}

#[test]
fn vocabulary_head_equals_stored_logits_logprob() {
    use mapl::backend::cpu::Cpu;
    let (tokens, hidden, vocab, rows) = (20, 48, 700, 60);
    let (x, head) = (normal("x", tokens * hidden, 1.0), normal("head", vocab * hidden, 0.2));
    let (source, target) = (indices("s", rows, tokens), indices("t", rows, vocab));
    let cpu = Cpu::new();
    let on = common::On::new(&cpu, Precision::F32);
    let d = HeadDims { tokens, hidden, vocab, rows, softcap: None };
    let got = runs::head_logprob_fwd(&on, d, &x, &head, &source, &target);
    let gathered: Vec<f64> =
        source.iter().flat_map(|&s| x[s as usize * hidden..(s as usize + 1) * hidden].to_vec()).collect();
    let d = LinearDims { tokens: rows, inputs: hidden, outputs: vocab };
    let logits = runs::linear_fwd(&on, d, &gathered, &head, None)[0].1.clone();
    let stored = runs::logprob(&on, vocab, &logits, &target, &vec![1.0; rows]);
    for k in 0..2 {
        common::compare::values(got[k].0, &got[k].1, &stored[k].1, Tolerance::dot(Precision::F32, 16));
    }
}
