//! The vocabulary head with stored exponentials of logits (kernels/head_sm90.cu):
//! vocabularies that are not a multiple of the tile, rows that share a hidden row, several clusters
//! of rows, targets of very low probability, a large vocabulary in one block of rows.

use common::sm90::{Work, check_variant, run_on};
use common::{On, Outputs, compare, emulator, gpu, indices, normal, runs};
use half::bf16;
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, Write};
use runs::HeadBwdInputs;

/// Forward, or backward into a gradient buffer with given initial content.
struct Head {
    d: HeadDims,
    x: Vec<f64>,
    head: Vec<f64>,
    source: Vec<i32>,
    target: Vec<i32>,
    dlogp: Vec<f64>,
    backward: Option<Write>,
}

impl Head {
    fn new((tokens, hidden, vocab, rows): (usize, usize, usize, usize)) -> Self {
        Self {
            d: HeadDims { tokens, hidden, vocab, rows, softcap: None },
            x: normal("hidden", tokens * hidden, 1.0),
            head: normal("head", vocab * hidden, 1.0 / (hidden as f64).sqrt()),
            source: indices("source", rows, (tokens * 3 / 4).max(1)),
            target: indices("target", rows, vocab),
            dlogp: normal("dlogp", rows, 1.0),
            backward: None,
        }
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> Outputs {
        let d = self.d;
        let Some(write) = self.backward else {
            return runs::head_logprob_fwd(on, d, &self.x, &self.head, &self.source, &self.target);
        };
        let oracle = On::new(&Reference, on.inputs);
        let lse = runs::head_logprob_fwd(&oracle, d, &self.x, &self.head, &self.source, &self.target)[1].1.clone();
        let inputs = HeadBwdInputs {
            hidden: &self.x,
            head: &self.head,
            source: &self.source,
            target: &self.target,
            lse: &lse,
            dlogp: &self.dlogp,
            dhead: &normal("dhead", d.vocab * d.hidden, 1.0),
            write,
        };
        runs::head_logprob_bwd(on, d, &inputs)
    }

    fn tolerance(&self, name: &str, scale: f64) -> Tolerance {
        let d = self.d;
        match self.backward {
            None => d.tolerance(Precision::Bf16).scaled(scale),
            Some(_) => d.gradient_tolerance(Precision::Bf16, if name == "dhead" { d.rows } else { 16 }).scaled(scale),
        }
    }

    fn label(&self, label: &str) -> String {
        format!("{label}, {:?}, {:?}", self.d, self.backward)
    }

    /// Compares with the reference in every schedule.
    fn check(&self, label: &str, scale: f64) {
        let expected = self.run(&On::new(&Reference, Precision::Bf16));
        check_variant(&self.label(label), Hopper::Chosen, 1, &expected, |name| self.tolerance(name, scale), self);
    }

    /// Compares with the reference in one schedule.
    fn check_once(&self, label: &str) {
        let expected = self.run(&On::new(&Reference, Precision::Bf16));
        let same =
            |got: Outputs| compare::outputs(&self.label(label), &got, &expected, |name| self.tolerance(name, 1.0));
        if let Some(device) = emulator(Schedule::Rising, 2) {
            same(run_on(device, Hopper::Chosen, self));
        }
        if let Some(device) = gpu() {
            same(run_on(device, Hopper::Chosen, self));
        }
    }
}

impl Work for Head {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        self.run(on)
    }
}

/// (tokens, hidden, vocab, rows): one row with one partial tile; a vocabulary that is not a
/// multiple of 8 or 192, with two clusters of rows; a hidden size that is not a multiple of the 64
/// values of a stage; a hidden size larger than the ring of stages.
const CASES: [(usize, usize, usize, usize); 4] =
    [(1, 8, 5, 1), (40, 24, 1999, 300), (7, 136, 384, 30), (9, 456, 200, 12)];

#[test]
fn forward_and_backward() {
    for sizes in CASES {
        for backward in [None, Some(Write::Overwrite), Some(Write::Add)] {
            Head { backward, ..Head::new(sizes) }.check("head", 1.0);
        }
    }
}

/// Chunks of rows end anywhere; rows with the same source may be in different chunks.
#[test]
fn gradients_have_the_same_bits_at_every_number_of_rows_at_once() {
    struct Chunks<'a>(&'a Head, usize);
    impl Work for Chunks<'_> {
        fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
            self.0.run(on)
        }
        fn prepare<D: Device>(&self, kernels: Kernels<D, bf16>) -> Kernels<D, bf16> {
            kernels.with_head_rows(self.1)
        }
    }
    for write in [Write::Overwrite, Write::Add] {
        let case = Head { backward: Some(write), ..Head::new((40, 24, 399, 150)) };
        let on = |rows| emulator(Schedule::Rising, 2).map(|d| run_on(d, Hopper::Chosen, &Chunks(&case, rows)));
        let Some(whole) = on(150) else { return };
        for rows in [7, 100] {
            let label = case.label(&format!("{rows} rows at once"));
            compare::same_bits(&label, &on(rows).expect("an emulator"), &whole);
        }
    }
}

#[test]
fn large_vocabulary_in_one_block_of_rows() {
    let sizes = (4, 16, 151_936, 5);
    Head::new(sizes).check("large", 1.0);
    // The gradient of the whole vocabulary needs half a minute on the emulator. So it runs in one schedule,
    // and without `MAPL_TEST_FULL=1` on a quarter of the vocabulary, which is still many tiles per block.
    let sizes = if common::full() { sizes } else { (4, 16, 151_936 / 4, 5) };
    Head { backward: Some(Write::Overwrite), ..Head::new(sizes) }.check_once("large");
}

/// Rows with a target probability far below e^-80 need a pass that finds the largest logit first.
/// Other rows of the batch do not.
#[test]
fn targets_of_nearly_zero_probability() {
    let mut case = Head::new((6, 16, 600, 6));
    case.x.iter_mut().for_each(|x| *x = x.abs());
    case.source = (0..6).collect();
    case.target = vec![5, 7, 9, 5, 11, 300];
    // Token 5 has logits near 160; other tokens have logits near 1.
    case.head[5 * 16..6 * 16].fill(12.0);
    for backward in [None, Some(Write::Overwrite)] {
        case.backward = backward;
        case.check("nearly zero probability", 160.0);
    }
}

/// Blocks of the kernel `head_join_sm90` process two rounds of rows. The rows that it recomputes are in
/// several warps, and in different warps in the second round from the first.
#[test]
fn recomputed_rows_of_any_warp_and_round() {
    let mut case = Head::new((1, 16, 40, 290));
    case.x.iter_mut().for_each(|x| *x = x.abs());
    case.head[5 * 16..6 * 16].fill(12.0);
    case.source.fill(0);
    case.target.fill(5);
    [9, 20, 129, 256 + 30].into_iter().for_each(|row| case.target[row] = 7);
    let expected = case.run(&On::new(&Reference, Precision::Bf16));
    for schedule in [Schedule::Rising, Schedule::Falling, Schedule::Random(1), Schedule::Late] {
        let Some(device) = emulator(schedule, 1) else { return };
        let got = run_on(device, Hopper::Chosen, &case);
        let label = format!("{}, {schedule:?}", case.label("recomputed rows"));
        compare::outputs(&label, &got, &expected, |name| case.tolerance(name, 160.0));
    }
}

#[test]
fn huge_and_infinite_logits_match_the_reference() {
    let mut case = Head::new((3, 16, 600, 4));
    case.x.iter_mut().for_each(|x| *x = x.abs());
    case.head[5 * 16..6 * 16].fill(1e3);
    case.head[9 * 16..10 * 16].fill(f64::NEG_INFINITY);
    case.head[588 * 16..].fill(f64::NEG_INFINITY);
    (case.source, case.target) = (vec![0, 1, 2, 2], vec![5, 9, 5, 7]);
    case.check("infinite", 1e4);
}

/// A NaN in a hidden row makes only the log-probs of its head rows NaN.
#[test]
fn a_nan_logit_makes_its_row_nan() {
    let mut case = Head::new((3, 16, 600, 40));
    case.x[16..32].fill(f64::NAN);
    let check = |outputs: Outputs| {
        for (name, values) in &outputs {
            for (value, source) in values.iter().zip(&case.source) {
                assert_eq!(value.is_nan(), *source == 1, "{name} of a row from {source}");
            }
        }
    };
    if let Some(device) = emulator(Schedule::Rising, 2) {
        check(run_on(device, Hopper::Chosen, &case));
    }
    if let Some(device) = gpu() {
        check(run_on(device, Hopper::Chosen, &case));
    }
}

/// A row's log-prob does not depend on the other rows of the batch.
#[test]
fn row_does_not_depend_on_its_batch() {
    struct Alone(Head, usize);
    impl Work for Alone {
        fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
            let (c, r) = (&self.0, self.1);
            let d = HeadDims { rows: 1, ..c.d };
            runs::head_logprob_fwd(on, d, &c.x, &c.head, &c.source[r..=r], &c.target[r..=r])
        }
    }
    let sizes = (20, 40, 500, 290);
    let row = 270;
    let compare = |together: Outputs, alone: Outputs| {
        for ((name, all), (_, one)) in together.iter().zip(&alone) {
            assert_eq!(one[0], all[row], "{name}");
        }
    };
    if let (Some(one), Some(two)) = (emulator(Schedule::Rising, 2), emulator(Schedule::Rising, 3)) {
        compare(
            run_on(one, Hopper::Chosen, &Head::new(sizes)),
            run_on(two, Hopper::Chosen, &Alone(Head::new(sizes), row)),
        );
    }
    if let (Some(one), Some(two)) = (gpu(), gpu()) {
        compare(
            run_on(one, Hopper::Chosen, &Head::new(sizes)),
            run_on(two, Hopper::Chosen, &Alone(Head::new(sizes), row)),
        );
    }
}

/// Heads with a soft cap of the logits use the portable kernels, both as separate ops and fused with the
/// loss.
#[test]
fn soft_caps_use_the_portable_kernels() {
    let plain = Head::new((20, 40, 500, 70));
    let capped = Head { d: HeadDims { softcap: Some(1.5), ..plain.d }, ..Head::new((20, 40, 500, 70)) };
    let on = |how, case: &Head| Some(run_on(emulator(Schedule::Rising, 2)?, how, case));
    for backward in [None, Some(Write::Overwrite)] {
        let case = Head { backward, d: capped.d, ..Head::new((20, 40, 500, 70)) };
        let (Some(portable), Some(got)) = (on(Hopper::Off, &case), on(Hopper::Chosen, &case)) else { return };
        compare::same_bits("soft cap", &got, &portable);
    }
    let Some(device) = emulator(Schedule::Rising, 2) else { return };
    let backend = Kernels::<_, bf16>::new(device).with_hopper(Hopper::Chosen);
    assert!(backend.max_head_rows(plain.d) < usize::MAX);
    assert_eq!(backend.max_head_rows(capped.d), usize::MAX);
}
