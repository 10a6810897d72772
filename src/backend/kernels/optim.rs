//! Gradient norm and AdamW.

use super::Kernels;
use super::device::{Device, Element};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn grad_norm<D: Device, A: Element>(_: &Kernels<D, A>, _: GradNorm<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB grad_norm".into()))
}

pub(super) fn adamw<D: Device, A: Element>(_: &Kernels<D, A>, _: AdamW<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB adamw".into()))
}
