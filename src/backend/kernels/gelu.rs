//! GELU (`kernels/gelu.cu`).

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, int, read, warp_vectors, write};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn gelu_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GeluFwd<'_, Kernels<D, A>>) -> Result<()> {
    let (tokens, intermediate) = (a.dims.tokens, a.dims.intermediate);
    launch::GeluFwd::<A> {
        x: read(a.x),
        act: write(&mut a.act),
        tokens: int(tokens)?,
        intermediate: int(intermediate)?,
        tanh_form: i32::from(a.dims.form == Gelu::Tanh),
    }
    .launch(&k.device, k.row_blocks(tokens * warp_vectors::<A>(intermediate), launch::GeluFwd::<A>::WARPS), 0)
}

pub(super) fn gelu_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GeluBwd<'_, Kernels<D, A>>) -> Result<()> {
    let (tokens, intermediate) = (a.dims.tokens, a.dims.intermediate);
    launch::GeluBwd::<A> {
        x: read(a.x),
        dact: write(&mut a.dact_in_place),
        tokens: int(tokens)?,
        intermediate: int(intermediate)?,
        tanh_form: i32::from(a.dims.form == Gelu::Tanh),
    }
    .launch(&k.device, k.row_blocks(tokens * warp_vectors::<A>(intermediate), launch::GeluBwd::<A>::WARPS), 0)
}
