//! Composite ops as sequences of other ops. A backend runs the sequence unless it has a fused implementation,
//! which must then agree with the sequence. Each op of the sequence is checked and timed as a separate call.

use super::Backend;
use super::contract::*;
use crate::Result;

/// [`Backend::head_preference`] as five ops, or four if the gradient of the scores is given.
/// Computes the head's logits twice.
pub(super) fn head_preference<B: Backend>(on: &B, mut a: HeadPreference<'_, B>) -> Result<()> {
    let (dims, rows, seqs, reduce) = (a.dims, a.dims.rows, a.seqs, a.reduce);
    on.head_logprob_fwd(HeadLogprobFwd {
        dims,
        hidden: a.hidden,
        head: a.head,
        source: a.source,
        target: a.target,
        logp: a.logp.reborrow(),
        lse: a.lse.reborrow(),
        stats: a.stats,
    })?;
    on.segment_sum_fwd(SegmentSumFwd {
        rows,
        seqs,
        reduce,
        values: a.logp.as_view(),
        offsets: a.seq_offsets,
        tail: a.tail,
        sums: a.score.reborrow(),
    })?;
    let given_dscore = match a.comparison {
        Some(comparison) => {
            on.preference_fwd(comparison.into_preference_fwd(a.score.as_view(), a.direct, a.dscore.reborrow()))?;
            None
        }
        None => a.direct,
    };
    on.segment_sum_bwd(SegmentSumBwd {
        rows,
        seqs,
        reduce,
        dsums: given_dscore.unwrap_or(a.dscore.as_view()),
        offsets: a.seq_offsets,
        tail: a.tail,
        dvalues: a.dlogp.reborrow(),
    })?;
    on.head_logprob_bwd(HeadLogprobBwd {
        dims,
        hidden: a.hidden,
        head: a.head,
        source: a.source,
        target: a.target,
        runs: a.runs,
        lse: a.lse.as_view(),
        dlogp: a.dlogp.as_view(),
        dhidden: a.dhidden,
        dhead: a.dhead,
        dhead_write: a.dhead_write,
    })
}

/// [`Backend::linear_rope_fwd`] as two ops.
pub(super) fn linear_rope_fwd<B: Backend>(on: &B, a: LinearRopeFwd<'_, B>) -> Result<()> {
    let LinearRopeFwd { linear: LinearFwd { dims, x, weight, bias, residual, mut y }, rotation } = a;
    on.linear_fwd(LinearFwd { dims, x, weight, bias, residual, y: y.reborrow() })?;
    on.rope_fwd(rotation.of(y))
}

/// [`Backend::attention_rope_bwd`] as two ops.
pub(super) fn attention_rope_bwd<B: Backend>(on: &B, a: AttentionRopeBwd<'_, B>) -> Result<()> {
    let AttentionRopeBwd { attention: AttentionBwd { dims, do_, qkv, o, lse, tree, mut dqkv }, rotation } = a;
    on.attention_bwd(AttentionBwd { dims, do_, qkv, o, lse, tree, dqkv: dqkv.reborrow() })?;
    on.rope_bwd(rotation.of(dqkv))
}
