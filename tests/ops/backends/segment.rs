//! Per-sequence sums and means against the reference: empty sequences, one row, many rows, no
//! sequences.

use common::{On, check, each_backend, normal, runs, stored_as_acc};
use mapl::backend::Backend;
use mapl::backend::contract::*;

#[test]
fn sums_and_means_match_the_reference() {
    for (label, offsets) in [
        ("no sequences", vec![0]),
        ("only empty sequences", vec![0, 0, 0]),
        ("one row", vec![0, 1]),
        ("empty first, middle and last", vec![0, 0, 7, 7, 129, 1999, 1999]),
    ] {
        let rows = *offsets.last().unwrap() as usize;
        let (values, dsums) = (normal("values", rows, 3.0), normal("dsums", offsets.len() - 1, 1.0));
        for reduce in [Reduce::Sum, Reduce::Mean] {
            let tolerance =
                |p, _: &str| Tolerance::dot(stored_as_acc(p), rows.max(1)).scaled(3.0 * (rows.max(1) as f64).sqrt());
            check!(
                format!("{label}, {reduce:?}"),
                |on: &_| runs::segment_sum(on, reduce, &values, &offsets, &dsums),
                tolerance
            );
        }
    }
}

/// Tests tails that start before, in and after a sequence, with weights of 0, 0.25 and 1.
#[test]
fn tails_match_the_reference() {
    let offsets = [0, 0, 7, 7, 129, 1999];
    let (values, dsums) = (normal("values", 1999, 3.0), normal("dsums", 5, 1.0));
    for starts in [[0.0; 5], [0.0, 7.0, 0.0, 60.0, 33.0], [9.0, 9.0, 0.0, 1.0, 1870.0]] {
        for (reduce, alpha) in [(Reduce::Sum, 0.25), (Reduce::Mean, 0.0), (Reduce::Mean, 1.0)] {
            let tolerance = |p, _: &str| Tolerance::dot(stored_as_acc(p), 1999).scaled(3.0 * 45.0);
            check!(
                format!("{starts:?}, {alpha}, {reduce:?}"),
                |on: &_| runs::segment_sum_with(on, reduce, &values, &offsets, &dsums, Some((&starts, alpha))),
                tolerance
            );
        }
    }
}

fn tail_of_whole_weight<B: Backend>(on: &On<B>) {
    let (values, dsums) = (normal("values", 40, 3.0), normal("dsums", 2, 1.0));
    let run = |tail| runs::segment_sum_with(on, Reduce::Sum, &values, &[0, 31, 40], &dsums, tail);
    assert_eq!(run(Some((&[99.0, 99.0], 0.5))), run(None), "no row is in a tail");
    let outputs = run(Some((&[30.0, 0.0], 0.0)));
    assert_eq!((outputs[0].1[1], outputs[1].1[30], outputs[1].1[29]), (0.0, 0.0, run(None)[1].1[0]));
}

#[test]
fn rows_before_the_tail_keep_their_bits() {
    each_backend!(tail_of_whole_weight);
}

fn empty_sequences<B: Backend>(on: &On<B>) {
    for reduce in [Reduce::Sum, Reduce::Mean] {
        let outputs = runs::segment_sum(on, reduce, &[2.0, 4.0], &[0, 0, 2], &[1.0, 1.0]);
        assert_eq!(outputs[0].1[0], 0.0);
        assert_eq!(outputs[0].1[1], if reduce == Reduce::Sum { 6.0 } else { 3.0 });
    }
}

#[test]
fn empty_sequence_sums_to_zero() {
    each_backend!(empty_sequences);
}

/// Asserts that a non-finite value affects only its own sequence.
fn bad_rows<B: Backend>(on: &On<B>) {
    let values = [1.0, f64::INFINITY, 2.0, f64::NAN, 3.0, f64::NEG_INFINITY, f64::INFINITY];
    let sums = &runs::segment_sum(on, Reduce::Mean, &values, &[0, 1, 2, 3, 4, 5, 7], &[0.0; 6])[0].1;
    assert_eq!((sums[0], sums[1], sums[2], sums[4]), (1.0, f64::INFINITY, 2.0, 3.0));
    assert!(sums[3].is_nan() && sums[5].is_nan(), "{sums:?}");
}

#[test]
fn non_finite_rows_affect_only_their_sequence() {
    each_backend!(bad_rows);
}
