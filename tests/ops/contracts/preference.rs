//! Contracts of the comparison losses.

use std::collections::BTreeSet;

use mapl::backend::contract::*;
use mapl::backend::{Backend, View, ViewMut};
use mapl::{Error, Result};

use super::{LEN, Lengths, acc, probe};

/// Probes every argument of the comparison losses.
pub fn every_argument<B: Backend>(b: &B, c: &mut BTreeSet<&'static str>) {
    let (s, i) = (&acc(b), &b.zeros_idx(LEN).unwrap());
    probe("preference_fwd", c, |l| preference(b, l, Curve::Hinge, (s, i)));
    let curves = [
        Curve::Sigmoid { smoothing: -0.1 },
        Curve::Sigmoid { smoothing: 0.6 },
        Curve::Robust { smoothing: 0.5 },
        Curve::Robust { smoothing: f64::NAN },
    ];
    for curve in curves {
        let result = preference(b, &Lengths::exact(), curve, (s, i));
        assert!(matches!(result, Err(Error::Contract { what: "smoothing", .. })), "{curve:?}: {result:?}");
    }
}

fn preference<B: Backend>(b: &B, l: &Lengths, curve: Curve, (s, i): (&B::Acc, &B::Idx)) -> Result<()> {
    let (mut loss, mut logit, mut dscore, mut sums) = (acc(b), acc(b), acc(b), acc(b));
    b.preference_fwd(PreferenceFwd {
        seqs: 3,
        comparisons: 2,
        curve,
        center: 0.0,
        score: View::first(s, l.of("score", 3)),
        reference: Some(View::first(s, l.of("reference", 3))),
        table: table(l, (s, i)),
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
