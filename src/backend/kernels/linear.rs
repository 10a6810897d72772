//! Linear layers: the three products and the bias gradient.

use super::Kernels;
use super::device::{Device, Element};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn linear_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: LinearFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB linear_fwd".into()))
}

pub(super) fn linear_bwd_input<D: Device, A: Element>(_: &Kernels<D, A>, _: LinearBwdInput<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB linear_bwd_input".into()))
}

pub(super) fn linear_bwd_weight<D: Device, A: Element>(_: &Kernels<D, A>, _: LinearBwdWeight<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB linear_bwd_weight".into()))
}

pub(super) fn bias_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: BiasBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB bias_bwd".into()))
}
