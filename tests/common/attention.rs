//! Functions that run attention and RoPE ops on any backend: upload, op, download.

use mapl::backend::Backend;
use mapl::backend::contract::*;

use super::paths::HostPaths;
use super::trees::HostTree;
use super::{On, Outputs};

/// Runs RoPE, or its backward (the inverse rotation) if `back` is set.
pub fn rope<B: Backend>(
    on: &On<B>,
    d: RopeDims,
    positions: &[i32],
    tables: (&[f64], &[f64]),
    qkv: &[f64],
    back: bool,
) -> Outputs {
    let (positions, cos, sin) = (on.idx(positions), on.acc(tables.0), on.acc(tables.1));
    let mut qkv = on.act(qkv);
    let args =
        Rope { dims: d, positions: positions.view(), cos: cos.view(), sin: sin.view(), qkv_in_place: qkv.view_mut() };
    if back {
        on.backend.rope_bwd(args).unwrap()
    } else {
        on.backend.rope_fwd(args).unwrap()
    }
    vec![("qkv", on.read_act(&qkv))]
}

/// RoPE operands of an op that includes RoPE: sizes, positions, cosines and sines.
#[derive(Clone, Copy)]
pub struct RotationInputs<'a> {
    pub d: RopeDims,
    pub positions: &'a [i32],
    pub cos: &'a [f64],
    pub sin: &'a [f64],
}

/// Runs a linear layer with RoPE on its output; `bias` may be absent.
pub fn linear_rope_fwd<B: Backend>(
    on: &On<B>,
    d: LinearDims,
    [x, weight]: [&[f64]; 2],
    bias: Option<&[f64]>,
    r: RotationInputs<'_>,
) -> Outputs {
    let (x, weight, bias) = (on.act(x), on.act(weight), bias.map(|bias| on.act(bias)));
    let (positions, cos, sin) = (on.idx(r.positions), on.acc(r.cos), on.acc(r.sin));
    let mut y = on.act_out(d.tokens * d.outputs);
    let linear = LinearFwd {
        dims: d,
        x: x.view(),
        weight: weight.view(),
        bias: bias.as_ref().map(|bias| bias.view()),
        residual: None,
        y: y.view_mut(),
    };
    let rotation = Rotation { dims: r.d, positions: positions.view(), cos: cos.view(), sin: sin.view() };
    on.backend.linear_rope_fwd(LinearRopeFwd { linear, rotation }).unwrap();
    vec![("y", on.read_act(&y))]
}

pub fn attention_fwd<B: Backend>(on: &On<B>, d: AttentionDims, tree: &HostTree, qkv: &[f64]) -> Outputs {
    let tables = [&tree.starts, &tree.ancestor_offsets, &tree.ancestors, &tree.trees].map(|t| on.idx(t));
    let [starts, ancestor_offsets, ancestors, trees] = tables.each_ref().map(|t| t.view());
    let qkv = on.act(qkv);
    let (mut o, mut lse) = (on.act_out(d.tokens * d.heads * d.head_dim), on.acc_out(d.heads * d.tokens));
    let args = AttentionFwd {
        dims: d,
        qkv: qkv.view(),
        tree: Tree { starts, ancestor_offsets, ancestors, trees },
        o: o.view_mut(),
        lse: lse.view_mut(),
    };
    on.backend.attention_fwd(args).unwrap();
    vec![("o", on.read_act(&o)), ("lse", on.read_acc(&lse))]
}

/// `forward` is the output of [`attention_fwd`].
pub fn attention_bwd<B: Backend>(
    on: &On<B>,
    d: AttentionDims,
    tree: &HostTree,
    qkv: &[f64],
    do_: &[f64],
    forward: &Outputs,
) -> Outputs {
    attention_gradient(on, d, tree, [qkv, do_], forward, None)
}

/// Like [`attention_bwd`], but rotates the gradients of queries and keys back, as the backward of RoPE does.
pub fn attention_rope_bwd<B: Backend>(
    on: &On<B>,
    d: AttentionDims,
    tree: &HostTree,
    inputs: [&[f64]; 2],
    forward: &Outputs,
    r: RotationInputs<'_>,
) -> Outputs {
    attention_gradient(on, d, tree, inputs, forward, Some(r))
}

fn attention_gradient<B: Backend>(
    on: &On<B>,
    d: AttentionDims,
    tree: &HostTree,
    [qkv, do_]: [&[f64]; 2],
    forward: &Outputs,
    rotation: Option<RotationInputs<'_>>,
) -> Outputs {
    let tables = [&tree.starts, &tree.ancestor_offsets, &tree.ancestors, &tree.trees].map(|t| on.idx(t));
    let [starts, ancestor_offsets, ancestors, trees] = tables.each_ref().map(|t| t.view());
    let (qkv, do_, o, lse) = (on.act(qkv), on.act(do_), on.act(&forward[0].1), on.acc(&forward[1].1));
    let mut dqkv = on.act_out(qkv.len);
    let args = AttentionBwd {
        dims: d,
        do_: do_.view(),
        qkv: qkv.view(),
        o: o.view(),
        lse: lse.view(),
        tree: Tree { starts, ancestor_offsets, ancestors, trees },
        dqkv: dqkv.view_mut(),
    };
    match rotation {
        None => on.backend.attention_bwd(args).unwrap(),
        Some(r) => {
            let (positions, cos, sin) = (on.idx(r.positions), on.acc(r.cos), on.acc(r.sin));
            let rotation = Rotation { dims: r.d, positions: positions.view(), cos: cos.view(), sin: sin.view() };
            on.backend.attention_rope_bwd(AttentionRopeBwd { attention: args, rotation }).unwrap();
        }
    }
    vec![("dqkv", on.read_act(&dqkv))]
}

/// Runs cached attention. Returns o, and the cache after the call.
pub fn attention_cached_fwd<B: Backend>(
    on: &On<B>,
    d: AttentionCachedDims,
    paths: &HostPaths,
    qkv: &[f64],
    cache: &[f64],
) -> Outputs {
    let tables = [&paths.starts, &paths.span_offsets, &paths.spans, &paths.slots].map(|t| on.idx(t));
    let [starts, span_offsets, spans, slots] = tables.each_ref().map(|t| t.view());
    let (qkv, mut cache, mut o) = (on.act(qkv), on.act(cache), on.act_out(d.tokens * d.heads * d.head_dim));
    let args = AttentionCachedFwd {
        dims: d,
        qkv: qkv.view(),
        paths: Paths { starts, span_offsets, spans, slots },
        cache: cache.view_mut(),
        o: o.view_mut(),
    };
    on.backend.attention_cached_fwd(args).unwrap();
    vec![("o", on.read_act(&o)), ("cache", on.read_act(&cache))]
}
