//! Contracts of LayerNorm, GELU and the scale op.

use std::collections::BTreeSet;

use mapl::backend::contract::*;
use mapl::backend::{Backend, View, ViewMut, Write};

use super::{acc, act, probe};

/// Probes every argument of these ops.
pub fn every_argument<B: Backend>(b: &B, c: &mut BTreeSet<&'static str>) {
    let (a, s, w) = (&act(b), &acc(b), Write::Overwrite);
    let d = LayerNormDims { tokens: 3, hidden: 4, eps: 1e-6 };
    probe("layer_norm_fwd", c, |l| {
        let (mut y, mut stats) = (act(b), acc(b));
        b.layer_norm_fwd(LayerNormFwd {
            dims: d,
            x: View::first(a, l.of("x", 12)),
            weight: View::first(a, l.of("weight", 8)),
            y: ViewMut::first(&mut y, l.of("y", 12)),
            stats: ViewMut::first(&mut stats, l.of("stats", 6)),
        })
    });
    probe("layer_norm_bwd", c, |l| {
        let (mut dx, mut dweight) = (act(b), acc(b));
        b.layer_norm_bwd(LayerNormBwd {
            dims: d,
            dy: View::first(a, l.of("dy", 12)),
            x: View::first(a, l.of("x", 12)),
            stats: View::first(s, l.of("stats", 6)),
            weight: View::first(a, l.of("weight", 8)),
            dx: ViewMut::first(&mut dx, l.of("dx", 12)),
            dx_write: w,
            dweight: ViewMut::first(&mut dweight, l.of("dweight", 8)),
            dweight_write: w,
        })
    });
    probe("scale", c, |l| {
        let mut x = act(b);
        let addend = Some(View::first(a, l.of("addend", 12)));
        let dims = ScaleDims { tokens: 3, hidden: 4, factor: 2.0 };
        b.scale(Scale { dims, addend, x_in_place: ViewMut::first(&mut x, l.of("x", 12)) })
    });
    let dims = GeluDims { tokens: 3, intermediate: 4, form: Gelu::Tanh };
    probe("gelu_fwd", c, |l| {
        let (mut out, x) = (act(b), View::first(a, l.of("x", 12)));
        b.gelu_fwd(GeluFwd { dims, x, act: ViewMut::first(&mut out, l.of("act", 12)) })
    });
    probe("gelu_bwd", c, |l| {
        let (mut out, x) = (act(b), View::first(a, l.of("x", 12)));
        b.gelu_bwd(GeluBwd { dims, x, dact_in_place: ViewMut::first(&mut out, l.of("dact", 12)) })
    });
}
