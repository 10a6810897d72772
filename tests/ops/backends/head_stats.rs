//! Entropy, mean logit and top-1 of the head rows against the reference, on the portable and the Hopper
//! kernels. Targets are the most likely token, the first or the second of two equal tokens in one tile or in
//! two, or of nearly zero probability. Further cases: negative logits only, -inf, and a soft cap. The other
//! results have the same bits with and without these statistics.

use common::sm90::{Work, check_variant, run_on};
use common::{On, Outputs, check, compare, each_backend, emulator, indices, normal, runs};
use half::bf16;
use mapl::backend::Backend;
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::reference::Reference;

struct Case {
    label: &'static str,
    d: HeadDims,
    x: Vec<f64>,
    head: Vec<f64>,
    source: Vec<i32>,
    target: Vec<i32>,
}

impl Case {
    fn new(label: &'static str, (tokens, hidden, vocab, rows): (usize, usize, usize, usize)) -> Self {
        Self {
            label,
            d: HeadDims { tokens, hidden, vocab, rows, softcap: None },
            x: normal("hidden", tokens * hidden, 1.0),
            head: normal("head", vocab * hidden, 1.0 / (hidden as f64).sqrt()),
            source: indices("source", rows, tokens),
            target: indices("target", rows, vocab),
        }
    }

    /// Gives the tokens `words` equal weights, with a larger logit for hidden row `token` than all other
    /// tokens have.
    fn prefer(&mut self, token: usize, words: &[usize]) {
        let n = self.d.hidden;
        let weights: Vec<f64> = self.x[token * n..][..n].iter().map(|x| if *x > 0.0 { 2.0 } else { -2.0 }).collect();
        words.iter().for_each(|word| self.head[word * n..][..n].copy_from_slice(&weights));
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        runs::head_stats(on, self.d, &self.x, &self.head, &self.source, &self.target)
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let vocab = self.d.vocab as f64;
        match name {
            "logp" | "lse" => self.d.tolerance(precision),
            // The error of the mean logit grows with the size of the logits.
            "mean_logit" => self.d.stats_tolerance(precision).scaled(self.magnitude().max(1.0) / vocab.sqrt() + 1.0),
            _ => self.d.stats_tolerance(precision),
        }
    }

    /// Largest weight, which scales the logits.
    fn magnitude(&self) -> f64 {
        self.head.iter().filter(|w| w.is_finite()).fold(0.0, |a, w| a.max(w.abs()))
    }
}

/// Two pairs of equal tokens: 3 and 9 in one tile, 30 and 700 in different tiles, slices and panels.
fn ties() -> Case {
    let mut case = Case::new("ties", (6, 24, 1100, 24));
    case.prefer(0, &[3, 9]);
    case.prefer(1, &[700, 30]);
    (case.source[..6]).copy_from_slice(&[0, 0, 1, 1, 0, 1]);
    (case.target[..6]).copy_from_slice(&[3, 9, 30, 700, 4, 1099]);
    case
}

fn cases() -> Vec<Case> {
    let mut likely = Case::new("every target is the most likely token", (5, 40, 210, 140));
    for token in 0..5 {
        likely.prefer(token, &[token * 50 + 7]);
    }
    likely.target = likely.source.iter().map(|token| token * 50 + 7).collect();
    // Columns beyond the vocabulary must not win with a logit of 0.
    let mut negative = Case::new("every logit is negative", (3, 16, 70, 8));
    negative.x.iter_mut().for_each(|x| *x = x.abs());
    negative.head.iter_mut().for_each(|w| *w = -w.abs());
    negative.head[33 * 16..34 * 16].fill(-1.0 / 128.0);
    negative.target[..4].fill(33);
    vec![Case::new("one row", (1, 8, 5, 1)), ties(), likely, negative]
}

#[test]
fn every_backend_matches_the_reference() {
    let mut capped = ties();
    (capped.label, capped.d.softcap) = ("ties under a soft cap", Some(1.5));
    for case in cases().into_iter().chain([capped]) {
        check!(case.label, |on: &_| case.run(on), |p, name: &str| case.tolerance(p, name));
    }
}

#[test]
fn the_first_of_equal_tokens_is_the_most_likely() {
    fn first<B: Backend>(on: &On<'_, B>) {
        let top1 = &ties().run(on)[4].1;
        assert_eq!(top1[..6], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    }
    first(&On::new(&Reference, Precision::F64));
    each_backend!(first);
    if let Some(device) = emulator(Schedule::Rising, 2) {
        assert_eq!(run_on(device, Hopper::Chosen, &ties())[4].1[..6], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    }
}

/// Computes the log-probs without the statistics.
fn plain<B: Backend>(on: &On<'_, B>, c: &Case) -> Outputs {
    runs::head_logprob_fwd(on, c.d, &c.x, &c.head, &c.source, &c.target)
}

#[test]
fn log_probs_have_the_same_bits_with_and_without_them() {
    fn same<B: Backend>(on: &On<'_, B>) {
        for case in cases() {
            let with: Outputs = case.run(on).into_iter().take(2).collect();
            compare::same_bits(case.label, &with, &plain(on, &case));
        }
    }
    each_backend!(same);
}

impl Work for Case {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        let all = self.run(on);
        let with: Outputs = all.iter().take(2).cloned().collect();
        compare::same_bits(self.label, &with, &plain(on, self));
        all
    }
}

impl Case {
    fn check_on_hopper(&self, scale: f64) {
        let expected = self.run(&On::new(&Reference, Precision::Bf16));
        let tolerance = |name: &str| self.tolerance(Precision::Bf16, name).scaled(scale);
        check_variant(self.label, Hopper::Chosen, 1, &expected, tolerance, self);
    }
}

#[test]
fn hopper_matches_the_reference() {
    cases().iter().for_each(|case| case.check_on_hopper(1.0));
}

/// Tests rows that the kernel `head_join_sm90` recomputes, next to rows that it does not recompute.
#[test]
fn hopper_recomputes_the_statistics_of_targets_of_nearly_zero_probability() {
    let mut case = Case::new("nearly zero probability", (6, 16, 600, 6));
    case.x.iter_mut().for_each(|x| *x = x.abs());
    case.source = (0..6).collect();
    case.target = vec![5, 7, 9, 5, 11, 300];
    // Token 5 has logits near 160; other tokens have logits near 1.
    case.head[5 * 16..6 * 16].fill(12.0);
    case.check_on_hopper(160.0);
}

#[test]
fn logits_of_minus_infinity_have_no_share() {
    let mut case = Case::new("infinite", (3, 16, 600, 4));
    case.x.iter_mut().for_each(|x| *x = x.abs());
    case.head[9 * 16..10 * 16].fill(f64::NEG_INFINITY);
    case.head[588 * 16..].fill(f64::NEG_INFINITY);
    (case.source, case.target) = (vec![0, 1, 2, 2], vec![5, 3, 5, 7]);
    check!(case.label, |on: &_| case.run(on), |p, name: &str| case.tolerance(p, name));
    case.check_on_hopper(1.0);
}

/// A NaN in a hidden row makes the statistics of its head rows NaN, and their targets do not count as top-1.
#[test]
fn a_nan_logit_spoils_its_row_only() {
    fn spoiled<B: Backend>(on: &On<'_, B>) {
        let mut case = cases().swap_remove(2);
        case.x[40..80].fill(f64::NAN);
        let outputs = case.run(on);
        for (name, values) in &outputs[2..] {
            for (value, source) in values.iter().zip(&case.source) {
                let expected = *source == 1;
                assert_eq!(if *name == "is_top1" { *value == 0.0 } else { value.is_nan() }, expected, "{name}");
            }
        }
    }
    spoiled(&On::new(&Reference, Precision::F64));
    each_backend!(spoiled);
}
