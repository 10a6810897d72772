//! RoPE as a part of other ops on Hopper: in the epilogue of the QKV GEMM (`kernels/linear_rope_sm90.cu`) and
//! of attention's gradient. The kernels rotate whole heads of certain sizes; other calls run op by op.

use super::linear::{best_among, supports};
use super::{Gemm, Hopper, Op, ROWS, are_aligned, attention, matrix, operand};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::kernels::device::{ConstPtr, Device, Element};
use crate::backend::kernels::geometry::{Choice, Tile, cut};
use crate::backend::kernels::launchers as launch;
use crate::backend::kernels::{Kernels, address, int, read, read_option};
use crate::backend::{Write as Mode, composite};

/// Tiles of the kernels for heads of this size; empty if no kernel supports the size.
fn tiles(head_dim: usize) -> &'static [Tile] {
    match head_dim {
        64 => &launch::LinearRope64Sm90::TILE,
        96 => &launch::LinearRope96Sm90::TILE,
        128 => &launch::LinearRope128Sm90::TILE,
        _ => &[],
    }
}

/// Whether the rotation may be fused, covers whole heads, and has aligned tables.
fn rotates_whole<D: Device, A: Element>(k: &Kernels<D, A>, rotation: &Rotation<'_, Kernels<D, A>>) -> bool {
    let d = rotation.dims;
    !k.apart_rotations
        && d.rotated == d.head_dim
        && are_aligned(&[read(rotation.cos).address(), read(rotation.sin).address()])
}

fn gemm<D: Device, A: Element>(a: &LinearRopeFwd<'_, Kernels<D, A>>) -> Gemm<A> {
    let (linear, d) = (&a.linear, a.linear.dims);
    Gemm {
        name: "linear_rope_fwd",
        op: Op::Forward,
        a: read(linear.x),
        a_stride: d.inputs,
        b: read(linear.weight),
        c: address(linear.y.as_view()),
        bias: read_option(linear.bias),
        residual: ConstPtr::NONE,
        norms: 0,
        m: d.tokens,
        n: d.outputs,
        k: d.inputs,
        mode: Mode::Overwrite,
    }
}

/// Tile of the fused GEMM; `None` if no kernel supports the call. Apart from calls without tokens, support
/// depends on the model and not on the number of tokens, so that a token has the same bits in every batch.
pub(in super::super) fn tile<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &LinearRopeFwd<'_, Kernels<D, A>>,
) -> Option<Choice> {
    let (gemm, tiles) = (gemm(a), tiles(a.rotation.dims.head_dim));
    // A LoRA adapter adds its low-rank product as a residual, which the fused kernels do not support.
    let fits = a.linear.residual.is_none() && rotates_whole(k, &a.rotation);
    if !fits || !supports(k, &gemm) {
        return None;
    }
    let processors = k.device.properties().processors;
    match k.hopper {
        Hopper::Off => None,
        Hopper::Chosen => best_among(k, &gemm, tiles),
        Hopper::Cut(tile, _) => {
            (tiles.contains(&tile) && tile.blocks() <= processors).then(|| cut(gemm.sizes(), tile, 1, processors))
        }
    }
}

pub(in super::super) fn linear_rope_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: LinearRopeFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let Some(choice) = tile(k, &a) else { return composite::linear_rope_fwd(k, a) };
    let (gemm, d, tile, device) = (gemm(&a), a.rotation.dims, choice.tile, &k.device);
    k.note_choice(gemm.name, gemm.sizes(), choice);
    let x = operand(device, gemm.a.address(), false, (gemm.m, gemm.k), gemm.a_stride, ROWS)?;
    let weight = operand(device, gemm.b.address(), false, (gemm.n, gemm.k), gemm.k, tile.columns() / tile.blocks())?;
    let y = matrix(device, gemm.c, (gemm.m, gemm.n), gemm.n, 64)?;
    let (m, n, depth, rotated) = (int(gemm.m)?, int(gemm.n)?, int(gemm.k)?, int(d.heads * d.head_dim)?);
    let shared = tile.shared_bytes(false, 2);
    macro_rules! launch_heads {
        ($kernels:ident) => {
            launch::$kernels {
                a: x,
                b: weight,
                c: y,
                positions: read(a.rotation.positions),
                cos: read(a.rotation.cos),
                sin: read(a.rotation.sin),
                bias: ConstPtr::new(gemm.bias.address(), 0),
                m,
                n,
                k: depth,
                rotated,
            }
            .launch(device, tile, choice.grid, shared)
        };
    }
    match d.head_dim {
        64 => launch_heads!(LinearRope64Sm90),
        96 => launch_heads!(LinearRope96Sm90),
        _ => launch_heads!(LinearRope128Sm90),
    }
}

/// Whether the attention backward kernels also compute the gradient of the rotation.
pub(in super::super) fn fuses_attention<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &AttentionRopeBwd<'_, Kernels<D, A>>,
) -> bool {
    a.attention.dims.tokens > 0
        && rotates_whole(k, &a.rotation)
        && attention::backward_head(k, &a.attention) == Some(a.rotation.dims.head_dim)
}

pub(in super::super) fn attention_rope_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: AttentionRopeBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    match fuses_attention(k, &a) {
        true => attention::attention_bwd(k, &mut a.attention, Some(&a.rotation)).map(|_| ()),
        false => composite::attention_rope_bwd(k, a),
    }
}
