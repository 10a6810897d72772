//! The vocabulary head.

use super::Kernels;
use super::device::{Device, Element};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn head_logprob_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: HeadLogprobFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB head_logprob_fwd".into()))
}

pub(super) fn head_logprob_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: HeadLogprobBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB head_logprob_bwd".into()))
}
