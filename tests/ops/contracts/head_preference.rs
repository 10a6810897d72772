//! Contract of the vocabulary head fused with the preference losses.

use std::cell::Cell;
use std::collections::BTreeSet;

use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;
use mapl::backend::{Backend, View, ViewMut, Write};
use mapl::{Error, Result};

use super::preference::table;
use super::{LEN, Lengths, acc, act, probe};

/// Probes every length, and the constraints on groups and on the score gradient.
pub fn every_argument<B: Backend>(b: &B, c: &mut BTreeSet<&'static str>) {
    let op = "head_preference";
    let groups = [GroupEnd { row: 2, seq: 1 }, GroupEnd { row: 2, seq: 3 }];
    probe(op, c, |l| with(b, l, Curve::Hinge, &groups, |_| ()));
    with(b, &Lengths::exact(), Curve::Hinge, &groups, |a| a.dhead = None).unwrap();
    let refused = |what: &str, result: Result<()>| match result {
        Err(Error::Contract { op: named, what: argument, .. }) => assert_eq!((named, argument), (op, what)),
        other => panic!("{op} with wrong {what}: {other:?}"),
    };
    refused("smoothing", with(b, &Lengths::exact(), Curve::Robust { smoothing: 0.5 }, &groups, |_| ()));
    // Without comparisons the caller must give the score gradient.
    with(b, &Lengths::exact(), Curve::Hinge, &groups, |a| a.comparison = None).unwrap();
    let neither = |a: &mut HeadPreference<'_, B>| (a.comparison, a.direct) = (None, None);
    refused("direct", with(b, &Lengths::exact(), Curve::Hinge, &groups, neither));
    // These groups are errors: decreasing ends, ends that are too early or too late, and no groups.
    let end = |row, seq| GroupEnd { row, seq };
    for bad in [
        vec![],
        vec![end(2, 2)],
        vec![end(1, 3)],
        vec![end(3, 3)],
        vec![end(2, 1), end(1, 3)],
        vec![end(2, 3), end(2, 2)],
    ] {
        refused("groups", with(b, &Lengths::exact(), Curve::Hinge, &bad, |_| ()));
    }
}

/// Call with two rows and three sequences. Two of the sequences have no rows.
fn with<B: Backend>(
    b: &B,
    l: &Lengths,
    curve: Curve,
    groups: &[GroupEnd],
    change: impl FnOnce(&mut HeadPreference<'_, B>),
) -> Result<()> {
    let (a, s, i) = (&act(b), &acc(b), &b.zeros_idx(LEN)?);
    let [mut loss, mut logit, mut sums, mut logp, mut lse, mut stats, mut dlogp, mut score, mut dscore, mut dhead] =
        std::array::from_fn(|_| acc(b));
    let mut dhidden = act(b);
    let mut args = HeadPreference {
        dims: HeadDims { tokens: 3, hidden: 4, vocab: 6, rows: 2, softcap: None },
        seqs: 3,
        reduce: Reduce::Mean,
        groups,
        hidden: View::first(a, l.of("hidden", 12)),
        head: View::first(a, l.of("head", 24)),
        source: View::first(i, l.of("source", 2)),
        target: View::first(i, l.of("target", 2)),
        runs: Runs {
            order: View::first(i, l.of("runs.order", 2)),
            offsets: View::first(i, l.of("runs.offsets", 2)),
            keys: View::first(i, 1),
        },
        seq_offsets: View::first(i, l.of("seq_offsets", 4)),
        tail: None,
        comparison: Some(ComparisonLoss {
            comparisons: 2,
            curves: &[curve.into()],
            link: Link::Identity,
            center: 0.0,
            reference: Some(View::first(s, l.of("reference", 3))),
            inverse_rows: Some(View::first(s, l.of("inverse_rows", 3))),
            table: table(l, (s, i)),
            pair_weights: None,
            loss: ViewMut::first(&mut loss, l.of("loss", 2)),
            logit: ViewMut::first(&mut logit, l.of("logit", 2)),
            sums: ViewMut::first(&mut sums, l.of("sums", KINDS * SUM_FIELDS)),
        }),
        direct: Some(View::first(s, l.of("direct", 3))),
        logp: ViewMut::first(&mut logp, l.of("logp", 2)),
        lse: ViewMut::first(&mut lse, l.of("lse", 2)),
        stats: Some(ViewMut::first(&mut stats, l.of("stats", 2 * ROW_STATS))),
        dlogp: ViewMut::first(&mut dlogp, l.of("dlogp", 2)),
        score: ViewMut::first(&mut score, l.of("score", 3)),
        dscore: ViewMut::first(&mut dscore, l.of("dscore", 3)),
        dhidden: ViewMut::first(&mut dhidden, l.of("dhidden", 12)),
        dhead: Some(ViewMut::first(&mut dhead, l.of("dhead", 24))),
        dhead_write: Write::Overwrite,
    };
    change(&mut args);
    b.head_preference(args)
}

#[test]
fn cost_is_three_gemms_and_each_operand_once() {
    let cost = |change: fn(&mut HeadPreference<'_, Cpu>)| {
        let (found, exact) = (Cell::new(Cost::default()), Lengths::exact());
        let groups = [GroupEnd { row: 2, seq: 3 }];
        let observe = |a: &mut HeadPreference<'_, Cpu>| {
            change(a);
            found.set(a.cost());
        };
        with(&Cpu::new(), &exact, Curve::Hinge, &groups, observe).unwrap();
        found.get()
    };
    // A GEMM is 2 * 2 rows * 4 * 6 = 96 FLOPs; two comparisons are 40. Bytes in f32: hidden rows
    // and head 4 * (8 + 24), indices and results per row 16 * 2, dhidden 4 * 12, dhead 4 * 24,
    // dlogp and sequence offsets 4 * (2 + 4), statistics 4 * 6, five numbers for each of three sequences and seven
    // for each of two comparisons 4 * 29, comparison tables 4 * (18 + 4).
    assert_eq!(cost(|_| ()), Cost { bytes: 556, flops: 3 * 96 + 40 });
    assert_eq!(cost(|a| a.dhead = None), Cost { bytes: 556 - 96, flops: 2 * 96 + 40 });
    assert_eq!(cost(|a| a.dhead_write = Write::Add), Cost { bytes: 556 + 96, flops: 3 * 96 + 40 });
    assert_eq!(cost(|a| a.stats = None), Cost { bytes: 556 - 24, flops: 3 * 96 + 40 });
    // Without comparisons, the op computes only scores and reads a given score gradient.
    assert_eq!(cost(|a| a.comparison = None), Cost { bytes: 556 - 116 - 88 + 24, flops: 3 * 96 });
}
