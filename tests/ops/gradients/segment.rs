//! Gradient of per-sequence sums and means.

use mapl::backend::Write::Overwrite;
use mapl::backend::contract::Reduce;

use super::difference::{ORACLE, check};
use common::{normal, runs};

pub fn tails() {
    let offsets = [0, 4, 5, 9];
    for reduce in [Reduce::Sum, Reduce::Mean] {
        let run = |values: &[f64], dsums: &[f64]| {
            runs::segment_sum_with(&ORACLE, reduce, values, &offsets, dsums, Some((&[1.0, 1.0, 3.0], 0.3)))
        };
        let values = normal("values", 9, 1.0);
        check(
            &format!("segment_sum {reduce:?} with tails"),
            std::slice::from_ref(&values),
            &[Overwrite],
            |i| run(&i[0], &[0.0; 3])[0].1.clone(),
            |i, dsums, _| vec![run(&i[0], dsums)[1].1.clone()],
        );
        let by_hand =
            (values[5] + values[6] + values[7] + 0.3 * values[8]) / if reduce == Reduce::Mean { 4.0 } else { 1.0 };
        assert!((run(&values, &[0.0; 3])[0].1[2] - by_hand).abs() < 1e-15);
    }
}

pub fn sum_and_mean() {
    // Empty sequences at the start, in the middle and at the end; sequences of one row and of four.
    let offsets = [0, 0, 4, 5, 5, 7, 7];
    for reduce in [Reduce::Sum, Reduce::Mean] {
        let run = |values: &[f64], dsums: &[f64]| runs::segment_sum(&ORACLE, reduce, values, &offsets, dsums);
        let values = normal("values", 7, 1.0);
        check(
            &format!("segment_sum {reduce:?}"),
            std::slice::from_ref(&values),
            &[Overwrite],
            |i| run(&i[0], &[0.0; 6])[0].1.clone(),
            |i, dsums, _| vec![run(&i[0], dsums)[1].1.clone()],
        );
        let sums = run(&values, &[0.0; 6])[0].1.clone();
        assert_eq!([sums[0], sums[3], sums[5]], [0.0; 3], "{reduce:?} of an empty sequence");
        assert!([sums[1], sums[2], sums[4]].iter().all(|&s| s != 0.0), "{reduce:?}: {sums:?}");
    }
}
