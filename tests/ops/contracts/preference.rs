//! Contracts of the comparison losses.

use std::collections::BTreeSet;

use mapl::backend::contract::*;
use mapl::backend::{Backend, View, ViewMut};
use mapl::{Error, Result};

use super::{LEN, Lengths, acc, probe};

/// Probes every argument of the comparison losses.
pub fn every_argument<B: Backend>(b: &B, c: &mut BTreeSet<&'static str>) {
    let (s, i) = (&acc(b), &b.zeros_idx(LEN).unwrap());
    probe("preference_fwd", c, |l| preference(b, l, &[Curve::Hinge.into()], Link::Identity, (s, i)));
    let exact = &Lengths::exact();
    let curves = [
        (Curve::Sigmoid { smoothing: -0.1 }, "smoothing"),
        (Curve::Sigmoid { smoothing: 0.6 }, "smoothing"),
        (Curve::Robust { smoothing: 0.5 }, "smoothing"),
        (Curve::Robust { smoothing: f64::NAN }, "smoothing"),
        (Curve::Exo { smoothing: 0.0 }, "smoothing"),
        (Curve::DiscoPop { temperature: 0.0 }, "temperature"),
        (Curve::DiscoPop { temperature: f64::INFINITY }, "temperature"),
    ];
    let refused = |named: &str, what: &str, result: Result<()>| match result {
        Err(Error::Contract { what: argument, .. }) => assert_eq!(argument, what, "{named}"),
        other => panic!("{named}: {other:?}"),
    };
    for (curve, what) in curves {
        // The second of two curves is checked too.
        let both = [Curve::Hinge.into(), curve.into()];
        refused(&format!("{curve:?}"), what, preference(b, exact, &both, Link::Identity, (s, i)));
    }
    refused("no curve", "curves", preference(b, exact, &[], Link::Identity, (s, i)));
    for weight in [-1.0, f64::NAN] {
        let curve = WeightedCurve { weight, ..Curve::Hinge.into() };
        refused("weight", "weight of a curve", preference(b, exact, &[curve], Link::Identity, (s, i)));
    }
    for alpha in [1.0, f64::NAN] {
        let link = Link::Alpha { alpha };
        refused("link", "alpha", preference(b, exact, &[Curve::Hinge.into()], link, (s, i)));
    }
    let sorts = Curve::Aot { smoothing: 0.0 };
    refused("sorted", "link", preference(b, exact, &[sorts.into()], Link::ForwardKl, (s, i)));
    let per_token = WeightedCurve { per_token: true, ..sorts.into() };
    refused("sorted", "link", preference(b, exact, &[per_token], Link::Identity, (s, i)));
    let per_token = WeightedCurve { per_token: true, ..Curve::Hinge.into() };
    refused("rows", "inverse_rows", preference_with(b, exact, (&[per_token], Link::Identity, false), (s, i)));
}

fn preference<B: Backend>(
    b: &B,
    l: &Lengths,
    curves: &[WeightedCurve],
    link: Link,
    tables: (&B::Acc, &B::Idx),
) -> Result<()> {
    preference_with(b, l, (curves, link, true), tables)
}

fn preference_with<B: Backend>(
    b: &B,
    l: &Lengths,
    (curves, link, with_rows): (&[WeightedCurve], Link, bool),
    (s, i): (&B::Acc, &B::Idx),
) -> Result<()> {
    let (mut loss, mut logit, mut dscore, mut sums) = (acc(b), acc(b), acc(b), acc(b));
    b.preference_fwd(PreferenceFwd {
        seqs: 3,
        comparisons: 2,
        curves,
        link,
        center: 0.0,
        score: View::first(s, l.of("score", 3)),
        reference: Some(View::first(s, l.of("reference", 3))),
        inverse_rows: with_rows.then(|| View::first(s, l.of("inverse_rows", 3))),
        table: table(l, (s, i)),
        pair_weights: Some(PairWeights {
            doubled: View::first(s, l.of("doubled", 3)),
            plain: View::first(s, l.of("plain", 3)),
        }),
        direct: Some(View::first(s, l.of("direct", 3))),
        loss: ViewMut::first(&mut loss, l.of("loss", 2)),
        logit: ViewMut::first(&mut logit, l.of("logit", 2)),
        dscore: ViewMut::first(&mut dscore, l.of("dscore", 3)),
        sums: ViewMut::first(&mut sums, l.of("sums", KINDS * SUM_FIELDS)),
    })
}

/// Tables of two comparisons over three sequences. Every term refers to sequence 0.
pub fn table<'a, B: Backend>(l: &Lengths, (s, i): (&'a B::Acc, &'a B::Idx)) -> Comparisons<'a, B> {
    Comparisons {
        term_sequence: View::first(i, l.of("term_sequence", 2 * TERMS)),
        term_sign: View::first(i, l.of("term_sign", 2 * TERMS)),
        kind: View::first(i, l.of("kind", 2)),
        scale: View::first(s, l.of("scale", 2)),
        margin: View::first(s, l.of("margin", 2)),
        weight: View::first(s, l.of("weight", 2)),
        detached_clip: View::first(s, l.of("detached_clip", 4)),
        kind_scale: View::first(s, l.of("kind_scale", KINDS)),
        use_offsets: View::first(i, l.of("use_offsets", 4)),
        uses: View::first(i, 0),
    }
}
