//! Contracts of the per-sequence sums.

use std::collections::BTreeSet;

use mapl::backend::contract::*;
use mapl::backend::{Backend, View, ViewMut};

use super::{LEN, acc, probe};

/// Probes every argument of `segment_sum`.
pub fn every_argument<B: Backend>(b: &B, c: &mut BTreeSet<&'static str>) {
    let (s, i) = (&acc(b), &b.zeros_idx(LEN).unwrap());
    probe("segment_sum_fwd", c, |l| {
        let mut sums = acc(b);
        b.segment_sum_fwd(SegmentSumFwd {
            rows: 5,
            seqs: 2,
            reduce: Reduce::Mean,
            values: View::first(s, l.of("values", 5)),
            offsets: View::first(i, l.of("offsets", 3)),
            tail: Some(Tail { starts: View::first(s, l.of("tail_starts", 2)), alpha: 0.5 }),
            sums: ViewMut::first(&mut sums, l.of("sums", 2)),
        })
    });
    probe("segment_sum_bwd", c, |l| {
        let mut dvalues = acc(b);
        b.segment_sum_bwd(SegmentSumBwd {
            rows: 5,
            seqs: 2,
            reduce: Reduce::Mean,
            dsums: View::first(s, l.of("dsums", 2)),
            offsets: View::first(i, l.of("offsets", 3)),
            tail: Some(Tail { starts: View::first(s, l.of("tail_starts", 2)), alpha: 0.5 }),
            dvalues: ViewMut::first(&mut dvalues, l.of("dvalues", 5)),
        })
    });
}
