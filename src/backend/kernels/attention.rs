//! Attention over prefix trees.

use super::Kernels;
use super::device::{Device, Element};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn attention_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: AttentionFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB attention_fwd".into()))
}

pub(super) fn attention_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: AttentionBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB attention_bwd".into()))
}
