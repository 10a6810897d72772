//! Embedding, normalisation, rotary positions, gated activation, and log-probs of stored logits.

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, int, read, read_option, write, write_option};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn norm_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: NormFwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    launch::NormFwd::<A> {
        x: read(a.x),
        residual: read_option(a.residual),
        weight: read(a.weight),
        sum: write_option(&mut a.sum),
        y: write(&mut a.y),
        rstd: write(&mut a.rstd),
        tokens: int(d.tokens),
        hidden: int(d.hidden),
        eps: d.eps as f32,
    }
    .launch(&k.device, k.row_blocks(d.tokens, 1), 0)
}

pub(super) fn embedding_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: EmbeddingFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB embedding_fwd".into()))
}

pub(super) fn embedding_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: EmbeddingBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB embedding_bwd".into()))
}

pub(super) fn norm_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: NormBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB norm_bwd".into()))
}

pub(super) fn glu_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: GluFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB glu_fwd".into()))
}

pub(super) fn glu_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: GluBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB glu_bwd".into()))
}

pub(super) fn logprob_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: LogprobFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB logprob_fwd".into()))
}

pub(super) fn logprob_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: LogprobBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB logprob_bwd".into()))
}

pub(super) fn rope<D: Device, A: Element>(_: &Kernels<D, A>, _: Rope<'_, Kernels<D, A>>, _direction: f32) -> Result<()> {
    Err(crate::Error::Runtime("STUB rope".into()))
}
