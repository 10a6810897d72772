//! Per-sequence sums and means against the reference: empty sequences, one row, many rows, no sequence at all.

mod common;

use common::{check, normal, runs};
use mapl::backend::contract::*;

#[test]
fn sums_and_means() {
    for (label, offsets) in [
        ("no sequence", vec![0]),
        ("empty sequences alone", vec![0, 0, 0]),
        ("one row", vec![0, 1]),
        ("empty first, middle and last", vec![0, 0, 7, 7, 129, 1999, 1999]),
    ] {
        let rows = *offsets.last().unwrap() as usize;
        let (values, dsums) = (normal("values", rows, 3.0), normal("dsums", offsets.len() - 1, 1.0));
        for reduce in [Reduce::Sum, Reduce::Mean] {
            let tolerance = |p, _: &str| Tolerance::dot(p, rows.max(1)).scaled(3.0 * (rows.max(1) as f64).sqrt());
            check!(
                format!("{label}, {reduce:?}"),
                |on: &_| runs::segment_sum(on, reduce, &values, &offsets, &dsums),
                tolerance
            );
        }
    }
}

#[test]
fn a_sequence_without_rows_sums_to_zero() {
    let backend = mapl::backend::cpu::Cpu::new();
    let on = common::On::new(&backend, Precision::F32);
    for reduce in [Reduce::Sum, Reduce::Mean] {
        let outputs = runs::segment_sum(&on, reduce, &[2.0, 4.0], &[0, 0, 2], &[1.0, 1.0]);
        assert_eq!(outputs[0].1[0], 0.0);
        assert_eq!(outputs[0].1[1], if reduce == Reduce::Sum { 6.0 } else { 3.0 });
    }
}
