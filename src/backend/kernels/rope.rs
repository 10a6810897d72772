//! Rotary position embedding, RoPE (`kernels/rope.cu`).

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, int, read, write};
use crate::Result;
use crate::backend::contract::*;

/// `direction` is 1 for the forward rotation, -1 for the backward.
pub(super) fn rope<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: Rope<'_, Kernels<D, A>>,
    direction: f32,
) -> Result<()> {
    let d = a.dims;
    launch::Rope::<A> {
        positions: read(a.positions),
        cos: read(a.cos),
        sin: read(a.sin),
        qkv: write(&mut a.qkv_in_place),
        tokens: int(d.tokens)?,
        heads: int(d.heads)?,
        head_dim: int(d.head_dim)?,
        rotated: int(d.rotated)?,
        width: int((d.heads + d.unrotated_heads) * d.head_dim)?,
        direction,
    }
    .launch(&k.device, k.row_blocks(d.tokens, launch::Rope::<A>::WARPS), 0)
}
