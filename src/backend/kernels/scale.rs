//! Scaling of rows by a factor, with an optional addend (`kernels/scale.cu`).

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, int, read_option, warp_vectors, write};
use crate::Result;
use crate::backend::contract::*;

pub(super) fn scale<D: Device, A: Element>(k: &Kernels<D, A>, mut a: Scale<'_, Kernels<D, A>>) -> Result<()> {
    let (tokens, hidden) = (a.dims.tokens, a.dims.hidden);
    launch::Scale::<A> {
        addend: read_option(a.addend),
        x: write(&mut a.x_in_place),
        tokens: int(tokens)?,
        hidden: int(hidden)?,
        factor: a.dims.factor as f32,
    }
    .launch(&k.device, k.row_blocks(tokens * warp_vectors::<A>(hidden), launch::Scale::<A>::WARPS), 0)
}
