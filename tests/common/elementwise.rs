//! Functions that run LayerNorm, GELU and the scale op on any backend, as in `runs.rs`.

use mapl::backend::contract::*;
use mapl::backend::{Backend, Write};

use super::{On, Outputs};

pub fn scale<B: Backend>(on: &On<B>, d: ScaleDims, x: &[f64], addend: Option<&[f64]>) -> Outputs {
    let (mut x, addend) = (on.act(x), addend.map(|a| on.act(a)));
    let addend = addend.as_ref().map(|a| a.view());
    on.backend.scale(Scale { dims: d, addend, x_in_place: x.view_mut() }).unwrap();
    vec![("x", on.read_act(&x))]
}

/// `weight` holds weight and bias.
pub fn layer_norm_fwd<B: Backend>(on: &On<B>, d: LayerNormDims, x: &[f64], weight: &[f64]) -> Outputs {
    let (x, weight) = (on.act(x), on.act(weight));
    let (mut y, mut stats) = (on.act_out(d.tokens * d.hidden), on.acc_out(2 * d.tokens));
    let (to, into) = (y.view_mut(), stats.view_mut());
    on.backend
        .layer_norm_fwd(LayerNormFwd { dims: d, x: x.view(), weight: weight.view(), y: to, stats: into })
        .unwrap();
    vec![("y", on.read_act(&y)), ("stats", on.read_acc(&stats))]
}

/// Inputs of [`layer_norm_bwd`]: dy, x, stats, weight, dx and dweight.
pub type LayerNormInputs<'a> = [&'a [f64]; 6];

pub fn layer_norm_bwd<B: Backend>(on: &On<B>, d: LayerNormDims, inputs: LayerNormInputs<'_>, write: Write) -> Outputs {
    let [dy, x, stats, weight, dx, dweight] = inputs;
    let (dy, x, stats, weight) = (on.act(dy), on.act(x), on.acc(stats), on.act(weight));
    let (mut dx, mut dweight) = (on.act(dx), on.acc(dweight));
    let args = LayerNormBwd {
        dims: d,
        dy: dy.view(),
        x: x.view(),
        stats: stats.view(),
        weight: weight.view(),
        dx: dx.view_mut(),
        dx_write: write,
        dweight: dweight.view_mut(),
        dweight_write: write,
    };
    on.backend.layer_norm_bwd(args).unwrap();
    vec![("dx", on.read_act(&dx)), ("dweight", on.read_acc(&dweight))]
}

pub fn gelu_fwd<B: Backend>(on: &On<B>, d: GeluDims, x: &[f64]) -> Outputs {
    let (x, mut act) = (on.act(x), on.act_out(d.tokens * d.intermediate));
    on.backend.gelu_fwd(GeluFwd { dims: d, x: x.view(), act: act.view_mut() }).unwrap();
    vec![("act", on.read_act(&act))]
}

pub fn gelu_bwd<B: Backend>(on: &On<B>, d: GeluDims, x: &[f64], dact: &[f64]) -> Outputs {
    let (x, mut dact) = (on.act(x), on.act(dact));
    on.backend.gelu_bwd(GeluBwd { dims: d, x: x.view(), dact_in_place: dact.view_mut() }).unwrap();
    vec![("dx", on.read_act(&dact))]
}
