//! One generic function per op: it uploads inputs, runs the op and downloads the outputs.

use std::ops::Range;

use mapl::backend::contract::*;
use mapl::backend::{Backend, Write};

pub use super::attention::{
    RotationInputs, attention_bwd, attention_cached_fwd, attention_fwd, attention_rope_bwd, linear_rope_fwd, rope,
};
pub use super::comparisons::{CURVES, LINKS, Preference, preference};
pub use super::elementwise::{gelu_bwd, gelu_fwd, layer_norm_bwd, layer_norm_fwd, scale};
pub use super::norms::{NormBwdInputs, norm_bwd, norm_fwd, norm_on_base, qk_norm_bwd, qk_norm_fwd};
use super::{On, Outputs, runs_of};

pub fn embedding_fwd<B: Backend>(on: &On<B>, d: EmbeddingDims, ids: &[i32], table: &[f64]) -> Outputs {
    let (ids, table, mut x) = (on.idx(ids), on.act(table), on.act_out(d.tokens * d.hidden));
    let args = EmbeddingFwd { dims: d, ids: ids.view(), table: table.view(), x: x.view_mut() };
    on.backend.embedding_fwd(args).unwrap();
    vec![("x", on.read_act(&x))]
}

pub fn embedding_bwd<B: Backend>(
    on: &On<B>,
    d: EmbeddingDims,
    ids: &[i32],
    dx: &[f64],
    dtable: &[f64],
    write: Write,
) -> Outputs {
    let runs = runs_of(ids);
    let (order, offsets, keys) = (on.idx(&runs.order), on.idx(&runs.offsets), on.idx(&runs.keys));
    let runs = Runs { order: order.view(), offsets: offsets.view(), keys: keys.view() };
    let (dx, mut dtable) = (on.act(dx), on.acc(dtable));
    let args = EmbeddingBwd { dims: d, dx: dx.view(), runs, dtable: dtable.view_mut(), write };
    on.backend.embedding_bwd(args).unwrap();
    vec![("dtable", on.read_acc(&dtable))]
}

pub fn linear_fwd<B: Backend>(on: &On<B>, d: LinearDims, x: &[f64], weight: &[f64], bias: Option<&[f64]>) -> Outputs {
    let (x, weight, bias) = (on.act(x), on.act(weight), bias.map(|b| on.act(b)));
    let mut y = on.act_out(d.tokens * d.outputs);
    let bias = bias.as_ref().map(|b| b.view());
    let args = LinearFwd { dims: d, x: x.view(), weight: weight.view(), bias, residual: None, y: y.view_mut() };
    on.backend.linear_fwd(args).unwrap();
    vec![("y", on.read_act(&y))]
}

/// Runs a linear layer with bias and residual; `inputs` are x, weight, bias, residual.
pub fn linear_fwd_residual<B: Backend>(on: &On<B>, d: LinearDims, inputs: [&[f64]; 4]) -> Outputs {
    let [x, weight, bias, residual] = inputs.map(|values| on.act(values));
    let mut y = on.act_out(d.tokens * d.outputs);
    let (bias, residual) = (Some(bias.view()), Some(residual.view()));
    let args = LinearFwd { dims: d, x: x.view(), weight: weight.view(), bias, residual, y: y.view_mut() };
    on.backend.linear_fwd(args).unwrap();
    vec![("y", on.read_act(&y))]
}

/// Runs the GEMM of a gated layer. Returns the activation, preceded by gate and up if `stored`.
pub fn linear_glu_fwd<B: Backend>(on: &On<B>, d: LinearGluDims, x: &[f64], weight: &[f64], stored: bool) -> Outputs {
    let (x, weight) = (on.act(x), on.act(weight));
    let mut act = on.act_out(d.tokens * d.intermediate);
    let mut gate_up = stored.then(|| on.act_out(d.tokens * 2 * d.intermediate));
    let args = LinearGluFwd {
        dims: d,
        x: x.view(),
        weight: weight.view(),
        gate_up: gate_up.as_mut().map(|g| g.view_mut()),
        act: act.view_mut(),
    };
    on.backend.linear_glu_fwd(args).unwrap();
    let gate_up = gate_up.iter().map(|g| ("gate_up", on.read_act(g)));
    gate_up.chain([("act", on.read_act(&act))]).collect()
}

pub fn linear_glu_bwd<B: Backend>(
    on: &On<B>,
    d: LinearGluDims,
    dy: &[f64],
    weight: &[f64],
    gate_up: &[f64],
) -> Outputs {
    let (dy, weight, gate_up) = (on.act(dy), on.act(weight), on.act(gate_up));
    let mut dgate_up = on.act_out(d.tokens * 2 * d.intermediate);
    let args = LinearGluBwd {
        dims: d,
        dy: dy.view(),
        weight: weight.view(),
        gate_up: gate_up.view(),
        dgate_up: dgate_up.view_mut(),
    };
    on.backend.linear_glu_bwd(args).unwrap();
    vec![("dgate_up", on.read_act(&dgate_up))]
}

pub fn linear_bwd_input<B: Backend>(
    on: &On<B>,
    d: LinearDims,
    dy: &[f64],
    weight: &[f64],
    dx: &[f64],
    write: Write,
) -> Outputs {
    let (dy, weight, mut dx) = (on.act(dy), on.act(weight), on.act(dx));
    let args = LinearBwdInput { dims: d, dy: dy.view(), weight: weight.view(), dx: dx.view_mut(), write };
    on.backend.linear_bwd_input(args).unwrap();
    vec![("dx", on.read_act(&dx))]
}

pub fn linear_bwd_weight<B: Backend>(
    on: &On<B>,
    d: LinearDims,
    dy: &[f64],
    x: &[f64],
    dweight: &[f64],
    write: Write,
) -> Outputs {
    let (dy, x, mut dweight) = (on.act(dy), on.act(x), on.acc(dweight));
    let args = LinearBwdWeight { dims: d, dy: dy.view(), x: x.view(), dweight: dweight.view_mut(), write, norms: None };
    on.backend.linear_bwd_weight(args).unwrap();
    vec![("dweight", on.read_acc(&dweight))]
}

/// Like [`linear_bwd_weight`], with patch norms. Returns the root mean square of the gradient
/// computed from the norms, and asserts that it equals the root mean square of the stored gradient.
pub fn linear_bwd_weight_norms<B: Backend>(
    on: &On<B>,
    d: LinearDims,
    dy: &[f64],
    x: &[f64],
    dweight: &[f64],
    write: Write,
) -> Outputs {
    let (dy, x, mut dweight, mut norms) = (on.act(dy), on.act(x), on.acc(dweight), on.acc_out(d.patches()));
    let (view, out) = (dweight.view_mut(), Some(norms.view_mut()));
    let args = LinearBwdWeight { dims: d, dy: dy.view(), x: x.view(), dweight: view, write, norms: out };
    on.backend.linear_bwd_weight(args).unwrap();
    let (dweight, norms) = (on.read_acc(&dweight), on.read_acc(&norms));
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (computed, stored) = (norm(&norms), norm(&dweight));
    assert!(
        computed == stored || (computed / stored - 1.0).abs() < 2f64.powi(-23),
        "norm {computed:e} from patch norms, {stored:e} from the stored gradient"
    );
    let elements = dweight.len();
    let rms = if elements == 0 { vec![] } else { vec![computed / (elements as f64).sqrt()] };
    vec![("dweight", dweight), ("rms", rms)]
}

pub fn bias_bwd<B: Backend>(on: &On<B>, d: LinearDims, dy: &[f64], dbias: &[f64], write: Write) -> Outputs {
    let (dy, mut dbias) = (on.act(dy), on.acc(dbias));
    on.backend.bias_bwd(BiasBwd { dims: d, dy: dy.view(), dbias: dbias.view_mut(), write }).unwrap();
    vec![("dbias", on.read_acc(&dbias))]
}

pub fn glu_fwd<B: Backend>(on: &On<B>, d: GluDims, gate_up: &[f64]) -> Outputs {
    let (gate_up, mut act) = (on.act(gate_up), on.act_out(d.tokens * d.intermediate));
    on.backend.glu_fwd(GluFwd { dims: d, gate_up: gate_up.view(), act: act.view_mut() }).unwrap();
    vec![("act", on.read_act(&act))]
}

pub fn glu_bwd<B: Backend>(on: &On<B>, d: GluDims, dact: &[f64], gate_up: &[f64]) -> Outputs {
    let (dact, gate_up) = (on.act(dact), on.act(gate_up));
    let mut dgate_up = on.act_out(gate_up.len);
    let args = GluBwd { dims: d, dact: dact.view(), gate_up: gate_up.view(), dgate_up: dgate_up.view_mut() };
    on.backend.glu_bwd(args).unwrap();
    vec![("dgate_up", on.read_act(&dgate_up))]
}

pub fn head_logprob_fwd<B: Backend>(
    on: &On<B>,
    d: HeadDims,
    hidden: &[f64],
    head: &[f64],
    source: &[i32],
    target: &[i32],
) -> Outputs {
    head_forward(on, d, [hidden, head], [source, target], false)
}

/// Runs [`head_logprob_fwd`] with the statistics of the rows.
pub fn head_stats<B: Backend>(
    on: &On<B>,
    d: HeadDims,
    hidden: &[f64],
    head: &[f64],
    source: &[i32],
    target: &[i32],
) -> Outputs {
    head_forward(on, d, [hidden, head], [source, target], true)
}

fn head_forward<B: Backend>(
    on: &On<B>,
    d: HeadDims,
    [hidden, head]: [&[f64]; 2],
    [source, target]: [&[i32]; 2],
    with_stats: bool,
) -> Outputs {
    let (hidden, head, source, target) = (on.act(hidden), on.act(head), on.idx(source), on.idx(target));
    let (mut logp, mut lse) = (on.acc_out(d.rows), on.acc_out(d.rows));
    let mut stats = on.acc_out(ROW_STATS * d.rows);
    let args = HeadLogprobFwd {
        dims: d,
        hidden: hidden.view(),
        head: head.view(),
        source: source.view(),
        target: target.view(),
        logp: logp.view_mut(),
        lse: lse.view_mut(),
        stats: with_stats.then(|| stats.view_mut()),
    };
    on.backend.head_logprob_fwd(args).unwrap();
    let mut outputs = vec![("logp", on.read_acc(&logp)), ("lse", on.read_acc(&lse))];
    if with_stats {
        let stats = on.read_acc(&stats);
        let names = ["entropy", "mean_logit", "is_top1"];
        outputs.extend(names.into_iter().enumerate().map(|(i, name)| (name, stats[i * d.rows..][..d.rows].to_vec())));
    }
    outputs
}

/// Inputs of [`head_logprob_bwd`].
pub struct HeadBwdInputs<'a> {
    pub hidden: &'a [f64],
    pub head: &'a [f64],
    pub source: &'a [i32],
    pub target: &'a [i32],
    pub lse: &'a [f64],
    pub dlogp: &'a [f64],
    /// Initial content of the head's gradient.
    pub dhead: &'a [f64],
    pub write: Write,
}

/// Computes the gradient of the hidden rows with a frozen head.
pub fn frozen_head_logprob_bwd<B: Backend>(on: &On<B>, d: HeadDims, i: &HeadBwdInputs<'_>) -> Outputs {
    head_gradients(on, d, i, false)
}

pub fn head_logprob_bwd<B: Backend>(on: &On<B>, d: HeadDims, i: &HeadBwdInputs<'_>) -> Outputs {
    head_gradients(on, d, i, true)
}

fn head_gradients<B: Backend>(on: &On<B>, d: HeadDims, i: &HeadBwdInputs<'_>, with_dhead: bool) -> Outputs {
    let runs = runs_of(i.source);
    let (order, offsets, keys) = (on.idx(&runs.order), on.idx(&runs.offsets), on.idx(&runs.keys));
    let (hidden, head, source, target) = (on.act(i.hidden), on.act(i.head), on.idx(i.source), on.idx(i.target));
    let (lse, dlogp, mut dhead) = (on.acc(i.lse), on.acc(i.dlogp), on.acc(i.dhead));
    let mut dhidden = on.act_out(d.tokens * d.hidden);
    let args = HeadLogprobBwd {
        dims: d,
        hidden: hidden.view(),
        head: head.view(),
        source: source.view(),
        target: target.view(),
        runs: Runs { order: order.view(), offsets: offsets.view(), keys: keys.view() },
        lse: lse.view(),
        dlogp: dlogp.view(),
        dhidden: dhidden.view_mut(),
        dhead: with_dhead.then(|| dhead.view_mut()),
        dhead_write: i.write,
    };
    on.backend.head_logprob_bwd(args).unwrap();
    vec![("dhidden", on.read_act(&dhidden)), ("dhead", on.read_acc(&dhead))]
}

/// Runs the log-prob of stored logits and its backward.
pub fn logprob<B: Backend>(on: &On<B>, vocab: usize, logits: &[f64], target: &[i32], dlogp: &[f64]) -> Outputs {
    let rows = target.len();
    let (mut logits, target, dlogp) = (on.act(logits), on.idx(target), on.acc(dlogp));
    let (mut logp, mut lse) = (on.acc_out(rows), on.acc_out(rows));
    let args = LogprobFwd {
        rows,
        vocab,
        logits: logits.view(),
        target: target.view(),
        logp: logp.view_mut(),
        lse: lse.view_mut(),
    };
    on.backend.logprob_fwd(args).unwrap();
    let args = LogprobBwd {
        rows,
        vocab,
        target: target.view(),
        lse: lse.view(),
        dlogp: dlogp.view(),
        logits_to_dlogits: logits.view_mut(),
    };
    on.backend.logprob_bwd(args).unwrap();
    vec![("logp", on.read_acc(&logp)), ("lse", on.read_acc(&lse)), ("dlogits", on.read_act(&logits))]
}

/// Runs the reward head and its backward.
pub fn reward_head<B: Backend>(on: &On<B>, d: RewardDims, inputs: [&[f64]; 4], rows: &[i32], write: Write) -> Outputs {
    let [hidden, weight, dscore, dweight] = inputs;
    let (hidden, weight, rows) = (on.act(hidden), on.act(weight), on.idx(rows));
    let (dscore, mut dweight, mut score) = (on.acc(dscore), on.acc(dweight), on.acc_out(d.seqs));
    let mut dhidden = on.act_out(d.tokens * d.hidden);
    let args = RewardHeadFwd {
        dims: d,
        hidden: hidden.view(),
        weight: weight.view(),
        rows: rows.view(),
        score: score.view_mut(),
    };
    on.backend.reward_head_fwd(args).unwrap();
    let args = RewardHeadBwd {
        dims: d,
        hidden: hidden.view(),
        weight: weight.view(),
        rows: rows.view(),
        dscore: dscore.view(),
        dhidden: dhidden.view_mut(),
        dweight: dweight.view_mut(),
        dweight_write: write,
    };
    on.backend.reward_head_bwd(args).unwrap();
    vec![("score", on.read_acc(&score)), ("dhidden", on.read_act(&dhidden)), ("dweight", on.read_acc(&dweight))]
}

/// Runs the per-sequence sums and their backward.
pub fn segment_sum<B: Backend>(on: &On<B>, reduce: Reduce, values: &[f64], offsets: &[i32], dsums: &[f64]) -> Outputs {
    segment_sum_with(on, reduce, values, offsets, dsums, None)
}

/// Like [`segment_sum`], with `tail`: the start of every sequence's tail, and the weight of the rows in a
/// tail.
pub fn segment_sum_with<B: Backend>(
    on: &On<B>,
    reduce: Reduce,
    values: &[f64],
    offsets: &[i32],
    dsums: &[f64],
    tail: Option<(&[f64], f64)>,
) -> Outputs {
    let (rows, seqs) = (values.len(), offsets.len() - 1);
    let (values, offsets, dsums) = (on.acc(values), on.idx(offsets), on.acc(dsums));
    let (mut sums, mut dvalues) = (on.acc_out(seqs), on.acc_out(rows));
    let (v, o) = (values.view(), offsets.view());
    let starts = tail.map(|(starts, alpha)| (on.acc(starts), alpha));
    let tail = starts.as_ref().map(|(starts, alpha)| Tail { starts: starts.view(), alpha: *alpha });
    let args = SegmentSumFwd { rows, seqs, reduce, values: v, offsets: o, tail, sums: sums.view_mut() };
    on.backend.segment_sum_fwd(args).unwrap();
    let args = SegmentSumBwd { rows, seqs, reduce, dsums: dsums.view(), offsets: o, tail, dvalues: dvalues.view_mut() };
    on.backend.segment_sum_bwd(args).unwrap();
    vec![("sums", on.read_acc(&sums)), ("dvalues", on.read_acc(&dvalues))]
}

pub fn grad_norm<B: Backend>(on: &On<B>, max_norm: f64, grads: &[f64], control: &[f64]) -> Outputs {
    norm_of(on, max_norm, grads, None, control)
}

/// Runs the gradient norm with precomputed norms that replace the elements of a range.
pub fn grad_norm_known<B: Backend>(
    on: &On<B>,
    max_norm: f64,
    grads: &[f64],
    known: (Range<usize>, &[f64]),
    control: &[f64],
) -> Outputs {
    norm_of(on, max_norm, grads, Some(known), control)
}

fn norm_of<B: Backend>(
    on: &On<B>,
    max_norm: f64,
    grads: &[f64],
    known: Option<(Range<usize>, &[f64])>,
    control: &[f64],
) -> Outputs {
    let (grads, mut control) = (on.acc(grads), on.acc(control));
    let known = known.map(|(range, norms)| (range, on.acc(norms)));
    let args = GradNorm {
        len: grads.len,
        max_norm,
        grads: grads.view(),
        known: known.as_ref().map(|(range, norms)| KnownNorms { range: range.clone(), norms: norms.view() }),
        control: control.view_mut(),
    };
    on.backend.grad_norm(args).unwrap();
    vec![("control", on.read_acc(&control))]
}

/// Constants of an AdamW update.
#[derive(Clone, Copy)]
pub struct Adam {
    pub decayed: usize,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// Runs one AdamW update; `state` is params, m, v.
pub fn adamw<B: Backend>(on: &On<B>, adam: Adam, control: &[f64], grads: &[f64], state: [&[f64]; 3]) -> Outputs {
    let (control, grads) = (on.acc(control), on.acc(grads));
    let (mut params, mut m, mut v) = (on.act(state[0]), on.acc(state[1]), on.acc(state[2]));
    let args = AdamW {
        len: grads.len,
        decayed: adam.decayed,
        beta1: adam.beta1,
        beta2: adam.beta2,
        eps: adam.eps,
        weight_decay: adam.weight_decay,
        control: control.view(),
        grads: grads.view(),
        m: m.view_mut(),
        v: v.view_mut(),
        master: None,
        params: params.view_mut(),
    };
    on.backend.adamw(args).unwrap();
    vec![("params", on.read_act(&params)), ("m", on.read_acc(&m)), ("v", on.read_acc(&v))]
}
