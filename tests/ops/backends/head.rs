//! Vocabulary head against the reference: vocabularies smaller and larger than a panel and not a
//! multiple of its width, rows that share a hidden row, partial strips, several blocks; huge and
//! infinite logits; no rows; a frozen head.

use common::{
    On as Runner, check, check_backend, check_bf16_cpu, check_kernels, compare, each_backend, indices, normal, runs,
};
use mapl::backend::Backend;
use mapl::backend::Write;
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;
use runs::HeadBwdInputs;

/// Backends of a case.
#[derive(Clone, Copy, PartialEq)]
enum On {
    All,
    /// For sizes that are slow on the emulator and cover no kernel edge case beyond the smaller
    /// sizes.
    CpuAlone,
}

/// Inputs of a case.
struct Case {
    d: HeadDims,
    label: String,
    x: Vec<f64>,
    head: Vec<f64>,
    source: Vec<i32>,
    target: Vec<i32>,
    on: On,
}

impl Case {
    fn new((tokens, hidden, vocab, rows): (usize, usize, usize, usize), on: On) -> Self {
        Self {
            d: HeadDims { tokens, hidden, vocab, rows, softcap: None },
            label: format!("{tokens} x {hidden} x {vocab}, {rows} rows"),
            x: normal("hidden", tokens * hidden, 1.0),
            head: normal("head", vocab * hidden, 1.0 / (hidden as f64).sqrt()),
            // A quarter of the tokens is never a source; other tokens may be a source several
            // times.
            source: indices("source", rows, (tokens * 3 / 4).max(1)),
            target: indices("target", rows, vocab),
            on,
        }
    }
}

impl Case {
    /// A case with a soft cap, which changes most logits or few.
    fn capped(sizes: (usize, usize, usize, usize), softcap: f64) -> Self {
        let case = Self::new(sizes, On::All);
        let label = format!("{}, soft cap {softcap}", case.label);
        Self { d: HeadDims { softcap: Some(softcap), ..case.d }, label, ..case }
    }
}

/// Compares an op with the reference on the backends of a case.
macro_rules! compare {
    ($case:expr, $label:expr, $run:expr, $tolerance:expr) => {
        if $case.on == On::All {
            check!($label, $run, $tolerance);
        } else {
            check_backend!(Cpu, $label, $run, $tolerance);
            check_bf16_cpu!($label, $run, $tolerance);
        }
    };
}

/// (tokens, hidden, vocab, rows)
fn cases() -> Vec<Case> {
    [
        ((7, 16, 257, 1), On::All),
        ((7, 64, 257, 30), On::All),
        ((129, 80, 1999, 200), On::CpuAlone),
        ((40, 24, 1999, 1300), On::CpuAlone),
        ((40, 40, 2600, 300), On::CpuAlone),
        // Two blocks of rows, four slices of the vocabulary, K not a multiple of 16.
        ((40, 24, 1999, 140), On::All),
        // The vocabulary exceeds a chunk of 8,192 columns, so the backward needs a second one.
        ((5, 16, 8195, 3), On::All),
        // No rows.
        ((7, 16, 257, 0), On::All),
        ((0, 16, 257, 0), On::All),
    ]
    .map(|(sizes, on)| Case::new(sizes, on))
    .into_iter()
    .chain([(0.7, (7, 64, 257, 30)), (30.0, (9, 24, 600, 140))].map(|(cap, sizes)| Case::capped(sizes, cap)))
    .collect()
}

#[test]
fn forward_of_every_vocabulary_and_row_count() {
    for c in &cases() {
        let tolerance = |p, _: &str| c.d.tolerance(p);
        compare!(c, c.label, |on: &_| runs::head_logprob_fwd(on, c.d, &c.x, &c.head, &c.source, &c.target), tolerance);
    }
}

#[test]
fn backward_of_every_vocabulary_and_row_count() {
    for c in &cases() {
        let d = c.d;
        let oracle = common::On::new(&mapl::backend::reference::Reference, Precision::F32);
        let lse = runs::head_logprob_fwd(&oracle, d, &c.x, &c.head, &c.source, &c.target)[1].1.clone();
        let dlogp = normal("dlogp", d.rows, 1.0);
        let dhead = normal("dhead", d.vocab * d.hidden, 1.0);
        for write in [Write::Overwrite, Write::Add] {
            let inputs = HeadBwdInputs {
                hidden: &c.x,
                head: &c.head,
                source: &c.source,
                target: &c.target,
                lse: &lse,
                dlogp: &dlogp,
                dhead: &dhead,
                write,
            };
            // dhidden sums terms weighted by probabilities over the vocabulary; dhead sums over
            // rows. Tensor cores truncate a sum after every step instead of rounding it. So the
            // error of dhidden grows with the vocabulary: 8.6e-6 for 8195 tokens on an H200.
            let words = 16.max(d.vocab / 128);
            let tolerance = |p, name: &str| d.gradient_tolerance(p, if name == "dhead" { d.rows } else { words });
            compare!(c, format!("{}, {write:?}", c.label), |on: &_| runs::head_logprob_bwd(on, d, &inputs), tolerance);
        }
    }
}

/// Vocabulary of Qwen's size with one block of rows. Only in bf16: f32 takes five times as long on
/// the emulator and differs only in the width of its slices.
#[test]
fn forward_of_a_large_vocabulary() {
    let c = Case::new((4, 16, 151_936, 5), On::All);
    let tolerance = |p, _: &str| c.d.tolerance(p);
    check_kernels!(
        half::bf16,
        c.label,
        |on: &_| runs::head_logprob_fwd(on, c.d, &c.x, &c.head, &c.source, &c.target),
        tolerance
    );
}

#[test]
fn huge_and_infinite_logits_match_the_reference() {
    let d = HeadDims { tokens: 3, hidden: 16, vocab: 600, rows: 4, softcap: None };
    let mut x = normal("hidden", 48, 1.0);
    x.iter_mut().for_each(|x| *x = x.abs());
    let mut head = normal("head", 600 * 16, 0.25);
    // Token 5 has logits near 1e4, and token 9 has -inf in every row. The last panel contains only -inf.
    head[5 * 16..6 * 16].fill(1e3);
    head[9 * 16..10 * 16].fill(f64::NEG_INFINITY);
    head[588 * 16..].fill(f64::NEG_INFINITY);
    let (source, target) = ([0, 1, 2, 2], [5, 9, 5, 7]);
    let tolerance = |p, _: &str| d.tolerance(p).scaled(1e4);
    check!("infinite", |on: &_| runs::head_logprob_fwd(on, d, &x, &head, &source, &target), tolerance);
    let backend = mapl::backend::cpu::Cpu::new();
    let on = common::On::new(&backend, Precision::F32);
    let logp = &runs::head_logprob_fwd(&on, d, &x, &head, &source, &target)[0].1;
    assert_eq!(logp[1], f64::NEG_INFINITY);
    assert_eq!(logp[0], 0.0);
    // +inf and NaN propagate.
    head[5 * 16..6 * 16].fill(f64::INFINITY);
    let outputs = runs::head_logprob_fwd(&on, d, &x, &head, &source, &target);
    assert!(outputs.iter().all(|(_, values)| values.iter().all(|x| x.is_nan())), "{outputs:?}");
}

#[test]
fn nan_row_of_weight_zero_has_gradient_zero() {
    nan_row(None);
    nan_row(Some(2.0));
}

fn nan_row(softcap: Option<f64>) {
    let d = HeadDims { tokens: 2, hidden: 8, vocab: 20, rows: 2, softcap };
    let (mut x, head) = (normal("hidden", 16, 1.0), normal("head", 160, 1.0));
    x[8] = f64::NAN;
    let inputs = HeadBwdInputs {
        hidden: &x[..],
        head: &head,
        source: &[0, 1],
        target: &[3, 4],
        lse: &[3.0, f64::NAN],
        dlogp: &[1.0, 0.0],
        dhead: &vec![0.0; 160],
        write: Write::Overwrite,
    };
    let backend = mapl::backend::cpu::Cpu::new();
    let on = common::On::new(&backend, Precision::F32);
    let outputs = runs::head_logprob_bwd(&on, d, &inputs);
    assert!(outputs[0].1[8..].iter().all(|&g| g == 0.0), "{outputs:?}");
}

/// Runs the cases for all backends with and without the gradient of the head.
fn frozen<B: Backend>(on: &Runner<B>) {
    for c in cases().iter().filter(|c| c.on == On::All) {
        let (lse, dlogp) = (vec![6.0; c.d.rows], normal("dlogp", c.d.rows, 1.0));
        let before = normal("dhead", c.d.vocab * c.d.hidden, 1.0);
        for write in [Write::Overwrite, Write::Add] {
            let inputs = HeadBwdInputs {
                hidden: &c.x,
                head: &c.head,
                source: &c.source,
                target: &c.target,
                lse: &lse,
                dlogp: &dlogp,
                dhead: &before,
                write,
            };
            let trained = runs::head_logprob_bwd(on, c.d, &inputs);
            let frozen = runs::frozen_head_logprob_bwd(on, c.d, &inputs);
            compare::bits(&format!("{}, dhidden", c.label), &frozen[0].1, &trained[0].1);
            let untouched = on.read_acc(&on.acc(&before));
            compare::bits(&format!("{}, dhead", c.label), &frozen[1].1, &untouched);
        }
    }
}

#[test]
fn frozen_head_leaves_dhidden_bitwise_equal() {
    frozen(&Runner::new(&mapl::backend::reference::Reference, Precision::F64));
    each_backend!(frozen);
}
