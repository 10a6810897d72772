//! Head, loss and gradients as one fused op, compared with the reference and with the separate ops
//! on the same backend. Cases: groups of many shapes, empty groups, groups larger than a chunk,
//! one-token responses, padding; weight 0, saturated losses, every curve; likelihood; a frozen
//! head. Sequential chunks of whole groups give the same result as the whole batch.

use common::head_preference::{Case, output};
use common::sm90::{Work, check_variant, run_on};
use common::{On, Outputs, check, compare, each_backend, emulator, normal};
use half::bf16;
use mapl::backend::contract::*;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Device;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::kernels::hopper::Hopper;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, Write};

/// Chunk sizes in rows: chunks of one group, chunks of several groups, groups larger than a chunk.
const CHUNKS: [usize; 4] = [1, 9, 16, 40];

/// Hidden size and vocabulary: not multiples of 16, nor of the tile width.
const SMALL: (usize, usize) = (24, 131);

fn mixed() -> Case {
    Case::new("groups of several shapes", &[&[5, 4], &[3, 7, 2, 6], &[1, 8, 3]], SMALL)
}

/// Batches with different groups.
fn shapes() -> Vec<Case> {
    vec![
        mixed(),
        Case::new("one group", &[&[6, 3]], SMALL),
        Case::new("one-token responses", &[&[1, 1], &[1, 1, 1, 1], &[1, 1]], SMALL),
        Case::new("groups without rows", &[&[0, 0], &[4, 3], &[0], &[], &[0, 0, 2], &[0, 0]], SMALL),
        Case::new("no rows", &[&[0, 0], &[0]], SMALL),
        Case::new("no group", &[], SMALL),
        Case::new("groups larger than a chunk", &[&[3, 2], &[30, 25], &[1, 1], &[21, 22], &[2, 2]], SMALL),
        // Two blocks of rows, two slices of the vocabulary, K not a multiple of 16.
        Case::new("blocks of rows", &[&[40, 35], &[50, 20]], (40, 1301)),
        mixed().padded(7),
        mixed().with("a soft cap", |case| case.dims.softcap = Some(1.5)),
        Case::new("only padding", &[], SMALL).padded(5),
    ]
}

/// Batches with different losses.
fn losses() -> Vec<Case> {
    let mut cases = Vec::new();
    let curves = [
        Curve::Sigmoid { smoothing: 0.0 },
        Curve::Sigmoid { smoothing: 0.2 },
        Curve::Robust { smoothing: 0.3 },
        Curve::Hinge,
        Curve::Ipo,
        Curve::Exo { smoothing: 0.01 },
        Curve::DiscoPop { temperature: 0.6 },
        Curve::NcaPair,
    ];
    for curve in curves {
        let case = mixed().with_loss(&format!("{curve:?}"), |p| {
            p.curves = vec![curve.into()];
            // Moves the arguments of the hinge away from its kink.
            p.margin.iter_mut().for_each(|margin| *margin += 0.0625);
        });
        cases.push(case.with("means", |case| case.reduce = Reduce::Mean));
        cases.push(case.with_loss("no reference", |p| p.reference = None));
        let saturated = |s: usize| if s.is_multiple_of(3) { 1e4 } else { -1e4 };
        cases.push(case.with_loss("saturated", |p| {
            let seqs = p.reference.as_ref().map_or(0, Vec::len);
            p.reference = Some((0..seqs).map(saturated).collect());
        }));
        cases.push(case);
    }
    cases.push(mixed().with_loss("two curves, one per token", |p| {
        let seqs = p.reference.as_ref().map_or(0, Vec::len);
        p.curves = vec![
            WeightedCurve { weight: 0.5, ..Curve::BcoPair.into() },
            WeightedCurve { weight: 2.0, per_token: true, ..Curve::Sigmoid { smoothing: 0.0 }.into() },
        ];
        p.link = Link::JensenShannon;
        p.rows = Some((0..seqs).map(|s| (s % 7 + 1) as f64).collect());
    }));
    cases.push(mixed().with_loss("centred", |p| p.center = 0.01));
    cases.push(mixed().with("with direct gradients", |case| case.direct = Some(normal("direct", 9, 0.5))));
    // Rows of the second group have gradient 0, whatever the scores.
    cases.push(mixed().with_loss("weight 0", |p| {
        let of_second = p.terms.iter().map(|terms| (2..6).contains(&terms[0].0));
        p.weight.iter_mut().zip(of_second).filter(|(_, second)| *second).for_each(|(weight, _)| *weight = 0.0);
    }));
    cases
}

/// Batches with given score gradients, a head gradient that is added, or a frozen head.
fn gradients() -> Vec<Case> {
    let given = |case: Case| {
        case.with("likelihood", |case| {
            case.loss = None;
            case.direct = Some(normal("direct", case.groups.iter().map(Vec::len).sum(), 0.5));
        })
    };
    let likelihood = given(mixed());
    vec![
        mixed().with("added", |case| case.write = Write::Add),
        mixed().with("frozen", |case| case.frozen = true),
        likelihood.with("means, added", |case| (case.reduce, case.write) = (Reduce::Mean, Write::Add)),
        likelihood.with("frozen", |case| case.frozen = true),
        likelihood.padded(3),
        given(Case::new("groups without rows", &[&[0], &[5], &[], &[0]], SMALL)),
        given(Case::new("no group", &[], SMALL)).with("added", |case| case.write = Write::Add),
        Case::new("no rows", &[&[0, 0]], SMALL).with("frozen", |case| case.frozen = true),
        likelihood,
    ]
}

/// Batches with a curve that sorts all pairs, so a fused op cannot process them in chunks.
fn sorted() -> Vec<Case> {
    let of = |curve: Curve| {
        mixed().with_loss(&format!("{curve:?}"), |p| {
            p.curves = vec![curve.into()];
            p.retain(|p, c| p.terms[c].len() == 2);
            p.margin.fill(0.0);
            p.weight.fill(1.0);
        })
    };
    vec![of(Curve::Aot { smoothing: 0.0 }), of(Curve::AotUnpaired { smoothing: 0.1 })]
}

fn against_the_reference(cases: &[Case]) {
    for case in cases {
        let errors = case.errors();
        let tolerance = |precision, name: &str| errors.tolerance(precision, name);
        check!(case.label, |on: &_| case.run(on).0, tolerance);
    }
}

#[test]
fn batches_of_every_shape_match_the_reference() {
    against_the_reference(&shapes());
}

#[test]
fn every_loss_matches_the_reference() {
    against_the_reference(&losses());
    against_the_reference(&sorted());
}

#[test]
fn given_gradients_and_frozen_heads_match_the_reference() {
    against_the_reference(&gradients());
}

fn all() -> Vec<Case> {
    [shapes(), losses(), gradients()].concat()
}

/// Compares the op with the separate ops. If the backend runs the separate ops, results are bitwise
/// equal. If it runs a fused op, both are within tolerance of the reference, so they differ by at
/// most twice the tolerance.
fn fused_and_separate_ops<B: Backend>(on: &On<B>) {
    for case in all() {
        let (got, fused) = case.run(on);
        let expected = case.run_separate_ops(on);
        let label = format!("{} on {}", case.label, B::NAME);
        if !fused {
            compare::same_bits(&label, &got, &expected);
            continue;
        }
        let errors = case.errors();
        compare::outputs(&label, &got, &expected, |name| {
            let Tolerance { atol, rtol } = errors.tolerance(B::PRECISION, name);
            Tolerance { atol: 2.0 * atol, rtol: 2.0 * rtol }
        });
    }
}

#[test]
fn fused_op_equals_the_separate_ops() {
    fused_and_separate_ops(&On::new(&Reference, Precision::F64));
    each_backend!(fused_and_separate_ops);
}

/// Runs a case chunk by chunk. Outputs per row, sequence and comparison are concatenated; other
/// outputs are added up.
fn in_chunks(case: &Case, most_rows: usize) -> Vec<(&'static str, Vec<f64>)> {
    let on = On::new(&Reference, Precision::F64);
    let chunks = chunks_of(&case.ends(), most_rows);
    let whole = case.run(&on).0;
    let mut joined: Vec<(&'static str, Vec<f64>)> = whole.iter().map(|(name, _)| (*name, Vec::new())).collect();
    let mut dhead = case.dhead.clone();
    for (i, chunk) in chunks.iter().enumerate() {
        let mut part = case.part(chunk);
        part.dhead = dhead;
        part.write = if i == 0 { case.write } else { Write::Add };
        let outputs = part.run(&on).0;
        for ((name, joined), (_, values)) in joined.iter_mut().zip(&outputs) {
            match *name {
                "sums" | "dhidden" if i > 0 => joined.iter_mut().zip(values).for_each(|(sum, x)| *sum += x),
                "dhead" | "frozen dhead" => *joined = values.clone(),
                _ => joined.extend(values),
            }
        }
        dhead = output(&outputs, if case.frozen { "frozen dhead" } else { "dhead" }).to_vec();
    }
    joined
}

/// The gradient of a group's rows depends only on the group's scores, so a batch may be split
/// between groups.
#[test]
fn sequential_chunks_equal_the_whole_batch() {
    let on = On::new(&Reference, Precision::F64);
    let mut cut = 0;
    for case in all().iter().filter(|case| !case.ends().is_empty()) {
        let whole = case.run(&on).0;
        let errors = case.errors();
        for most_rows in CHUNKS {
            cut += usize::from(chunks_of(&case.ends(), most_rows).len() > 1);
            let label = format!("{}, chunks of {most_rows}", case.label);
            let got = in_chunks(case, most_rows);
            for ((name, got), (_, expected)) in got.iter().zip(&whole) {
                // Without comparisons these outputs are not written.
                if case.loss.is_none() && ["sums", "dscore", "loss", "logit"].contains(name) {
                    continue;
                }
                compare::values(&format!("{label}: {name}"), got, expected, errors.tolerance(Precision::F64, name));
            }
        }
    }
    assert!(cut > 60, "only {cut} cases have more than one chunk");
}

/// Asserts gradient 0 for rows of weight 0, and for hidden rows that are not the source of any row.
fn masked_rows<B: Backend>(on: &On<B>) {
    let case = losses().into_iter().find(|case| case.label.ends_with("weight 0")).unwrap();
    let outputs = case.run(on).0;
    // Rows 9..27 and tokens 9..25 belong to the second group.
    assert_eq!(output(&outputs, "dlogp")[9..27], [0.0; 18]);
    assert!(output(&outputs, "dlogp")[..9].iter().all(|&slope| slope != 0.0));
    let dhidden = output(&outputs, "dhidden");
    let hidden = case.dims.hidden;
    let used = |token: usize| case.source.contains(&(token as i32));
    for (token, row) in dhidden.chunks(hidden).enumerate() {
        let second = case.source[9..27].contains(&(token as i32));
        assert_eq!(row.iter().any(|&x| x != 0.0), used(token) && !second, "token {token}");
    }
}

#[test]
fn rows_of_weight_zero_have_gradient_zero() {
    masked_rows(&On::new(&Reference, Precision::F64));
    each_backend!(masked_rows);
}

/// Case on the Hopper kernels, which process the head in chunks of the given number of rows
/// (`None`: the default size).
struct OnHopper<'a>(&'a Case, Option<usize>);

impl Work for OnHopper<'_> {
    fn on<D: Device>(&self, on: &On<'_, Kernels<D, bf16>>) -> Outputs {
        let (outputs, fused) = self.0.run(on);
        let sorts = self.0.loss.iter().flat_map(|p| &p.curves).any(|part| part.curve.is_of_batch());
        let capped = self.0.dims.softcap.is_some();
        assert_eq!(fused, self.0.dims.rows > 0 && !sorts && !capped, "{}", self.0.label);
        outputs
    }

    fn prepare<D: Device>(&self, kernels: Kernels<D, bf16>) -> Kernels<D, bf16> {
        match self.1 {
            Some(rows) => kernels.with_head_rows(rows),
            None => kernels,
        }
    }
}

/// The number of rows per chunk changes no bit of losses or gradients, whether the gradient of the head is
/// overwritten or added to. Chunks may end anywhere within the 16 rows that a tensor core sums at a time.
#[test]
fn every_number_of_rows_at_once_gives_the_same_bits() {
    let many = Case::new("many rows", &[&[37, 41], &[5, 3], &[60, 11], &[1, 2], &[70, 80], &[16, 16]], (40, 203));
    let added = |case: &mut Case| case.write = Write::Add;
    let frozen = |case: &mut Case| case.frozen = true;
    let cases = [many.clone(), many.with("added", added), many.padded(29), many.with("frozen", frozen)];
    for case in cases.into_iter().chain(shapes()) {
        let on =
            |rows| emulator(Schedule::Rising, 2).map(|device| run_on(device, Hopper::Chosen, &OnHopper(&case, rows)));
        let Some(whole) = on(None) else { return };
        for rows in [1, 20, 100] {
            let label = format!("{}, {rows} rows at once", case.label);
            compare::same_bits(&label, &on(Some(rows)).expect("an emulator"), &whole);
        }
    }
}

#[test]
fn hopper_chunks_match_the_reference() {
    for case in all().into_iter().chain(sorted()) {
        let expected = case.run(&On::new(&Reference, Precision::Bf16)).0;
        let errors = case.errors();
        for rows in [None, Some(9)] {
            let label = format!("{}, chunks of {rows:?}", case.label);
            let tolerance = |name: &str| errors.tolerance(Precision::Bf16, name);
            check_variant(&label, Hopper::Chosen, 1, &expected, tolerance, &OnHopper(&case, rows));
        }
    }
}

fn measured(case: &Case) -> Case {
    case.with("with statistics", |case| case.with_stats = true)
}

/// Asserts that all results except the statistics have the same bits with and without statistics.
fn same_without_statistics(with: &Outputs, plain: &Outputs, label: &str) {
    let but_stats = |all: &Outputs| -> Outputs { all.iter().filter(|(name, _)| *name != "stats").cloned().collect() };
    compare::same_bits(label, &but_stats(with), &but_stats(plain));
}

#[test]
fn statistics_of_rows_match_the_reference_and_change_no_other_bit() {
    fn check_all<B: Backend>(on: &On<B>) {
        for case in [mixed(), gradients()[2].clone()] {
            same_without_statistics(&measured(&case).run(on).0, &case.run(on).0, case.label.as_str());
        }
    }
    each_backend!(check_all);
    let case = measured(&mixed());
    let errors = case.errors();
    check!(case.label, |on: &_| case.run(on).0, |precision, name: &str| errors.tolerance(precision, name));
}

#[test]
fn hopper_statistics_of_rows_have_the_same_bits_at_every_number_of_rows_at_once() {
    let many = Case::new("many rows", &[&[37, 41], &[5, 3], &[60, 11], &[1, 2]], (40, 203));
    let case = measured(&many);
    let (expected, errors) = (case.run(&On::new(&Reference, Precision::Bf16)).0, case.errors());
    let on = |case: &Case, rows| {
        emulator(Schedule::Rising, 2).map(|device| run_on(device, Hopper::Chosen, &OnHopper(case, rows)))
    };
    let (Some(whole), Some(plain)) = (on(&case, None), on(&many, None)) else { return };
    compare::outputs(&case.label, &whole, &expected, |name| errors.tolerance(Precision::Bf16, name));
    same_without_statistics(&whole, &plain, &case.label);
    compare::same_bits("20 rows at once", &on(&case, Some(20)).expect("an emulator"), &whole);
}
