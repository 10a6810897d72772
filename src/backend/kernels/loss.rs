//! Per-sequence sums, the comparison loss and the reward head.

use super::Kernels;
use super::device::{Device, Element};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn segment_sum_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: SegmentSumFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB segment_sum_fwd".into()))
}

pub(super) fn segment_sum_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: SegmentSumBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB segment_sum_bwd".into()))
}

pub(super) fn preference_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: PreferenceFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB preference_fwd".into()))
}

pub(super) fn reward_head_fwd<D: Device, A: Element>(_: &Kernels<D, A>, _: RewardHeadFwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB reward_head_fwd".into()))
}

pub(super) fn reward_head_bwd<D: Device, A: Element>(_: &Kernels<D, A>, _: RewardHeadBwd<'_, Kernels<D, A>>) -> Result<()> {
    Err(crate::Error::Runtime("STUB reward_head_bwd".into()))
}
