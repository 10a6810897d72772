//! Functions that run the norms on any backend, as in `runs.rs`.

use mapl::backend::contract::*;
use mapl::backend::{Backend, Write};

use super::{On, Outputs};

pub fn norm_fwd<B: Backend>(on: &On<B>, d: NormDims, x: &[f64], residual: Option<&[f64]>, weight: &[f64]) -> Outputs {
    norm_on_base(on, d, [x, weight], residual, None)
}

/// Runs RMSNorm and adds its result to `base`, as after a block with post-norm. The array holds x and the
/// weight.
pub fn norm_on_base<B: Backend>(
    on: &On<B>,
    d: NormDims,
    [x, weight]: [&[f64]; 2],
    residual: Option<&[f64]>,
    base: Option<&[f64]>,
) -> Outputs {
    let base = base.map(|base| on.act(base));
    let (x, weight, residual) = (on.act(x), on.act(weight), residual.map(|r| on.act(r)));
    let mut sum = residual.as_ref().map(|r| on.act_out(r.len));
    let (mut y, mut rstd) = (on.act_out(d.tokens * d.hidden), on.acc_out(d.tokens));
    let args = NormFwd {
        dims: d,
        x: x.view(),
        residual: residual.as_ref().map(|r| r.view()),
        weight: weight.view(),
        base: base.as_ref().map(|base| base.view()),
        sum: sum.as_mut().map(|s| s.view_mut()),
        y: y.view_mut(),
        rstd: rstd.view_mut(),
    };
    on.backend.norm_fwd(args).unwrap();
    let mut outputs = vec![("y", on.read_act(&y)), ("rstd", on.read_acc(&rstd))];
    outputs.extend(sum.map(|s| ("sum", on.read_act(&s))));
    outputs
}

/// Inputs of [`norm_bwd`].
pub struct NormBwdInputs<'a> {
    pub dy: &'a [f64],
    pub sum: &'a [f64],
    pub rstd: &'a [f64],
    pub weight: &'a [f64],
    pub dsum: &'a [f64],
    pub dweight: &'a [f64],
    pub write: Write,
}

pub fn norm_bwd<B: Backend>(on: &On<B>, d: NormDims, i: &NormBwdInputs<'_>) -> Outputs {
    let (dy, sum, rstd, weight) = (on.act(i.dy), on.act(i.sum), on.acc(i.rstd), on.act(i.weight));
    let (mut dsum, mut dweight) = (on.act(i.dsum), on.acc(i.dweight));
    let args = NormBwd {
        dims: d,
        dy: dy.view(),
        sum: sum.view(),
        rstd: rstd.view(),
        weight: weight.view(),
        dsum: dsum.view_mut(),
        dsum_write: i.write,
        dweight: dweight.view_mut(),
        dweight_write: i.write,
    };
    on.backend.norm_bwd(args).unwrap();
    vec![("dsum", on.read_act(&dsum)), ("dweight", on.read_acc(&dweight))]
}

/// Normalises queries and keys. The output `x` is a copy of the input, if `copies` is set.
pub fn qk_norm_fwd<B: Backend>(on: &On<B>, d: QkNormDims, qkv: &[f64], weight: &[f64], copies: bool) -> Outputs {
    let (weight, mut qkv) = (on.act(weight), on.act(qkv));
    let mut x = copies.then(|| on.act_out(d.tokens * d.normalised() * d.head_dim));
    let copy = x.as_mut().map(|x| x.view_mut());
    on.backend
        .qk_norm_fwd(QkNormFwd { dims: d, weight: weight.view(), x: copy, qkv_in_place: qkv.view_mut() })
        .unwrap();
    let mut outputs = vec![("qkv", on.read_act(&qkv))];
    outputs.extend(x.map(|x| ("x", on.read_act(&x))));
    outputs
}

/// `inputs` are x, weight, the gradient of the result, and the initial content of the weight gradient.
pub fn qk_norm_bwd<B: Backend>(on: &On<B>, d: QkNormDims, inputs: [&[f64]; 4], write: Write) -> Outputs {
    let (x, weight, mut dqkv, mut dweight) =
        (on.act(inputs[0]), on.act(inputs[1]), on.act(inputs[2]), on.acc(inputs[3]));
    let args = QkNormBwd {
        dims: d,
        x: x.view(),
        weight: weight.view(),
        dqkv_in_place: dqkv.view_mut(),
        dweight: dweight.view_mut(),
        write,
    };
    on.backend.qk_norm_bwd(args).unwrap();
    vec![("dqkv", on.read_act(&dqkv)), ("dweight", on.read_acc(&dweight))]
}
