//! Linear layers: the three GEMMs (`kernels/linear.cu`) and the gradient of the bias
//! (`kernels/linear_bias.cu`).

use super::device::{ConstPtr, Device, Element};
use super::hopper::{self, Gemm, Op};
use super::launchers::{self as launch, BIAS_SLICE, PATCH_COLUMNS, PATCH_ROWS};
use super::launchers::{TILE_BF16, TILE_DEPTH, TILE_F32, TILE_STAGES};
use super::{Array, Kernels, Piece, Scratch, WARP, adds, int, read, read_option, warp_vectors, write, write_option};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{ViewMut, Write as Mode};

const _: () = assert!(
    PATCH.0 == PATCH_ROWS && PATCH.1 == PATCH_COLUMNS,
    "the contract and the kernels have different patch sizes"
);

/// Number of rows, and of columns, of a block's tile.
pub(super) const fn tile<A: Element>() -> usize {
    if size_of::<A>() == 2 { TILE_BF16 } else { TILE_F32 }
}

/// Shared memory of a block in bytes, equal to `BlockGemm::SHARED_BYTES` of the kernels.
pub(super) const fn shared_bytes<A: Element>() -> usize {
    TILE_STAGES * 2 * tile::<A>() * TILE_DEPTH * size_of::<A>()
}

/// Number of blocks for a result of (rows, columns): one per tile, and at most two per multiprocessor, which
/// is the occupancy that registers and shared memory allow.
pub(super) fn blocks<D: Device, A: Element>(k: &Kernels<D, A>, rows: usize, columns: usize) -> usize {
    let tiles = rows.div_ceil(tile::<A>()) * columns.div_ceil(tile::<A>());
    tiles.min(2 * k.device.properties().processors)
}

pub(super) fn linear_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: LinearFwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    let gemm = Gemm {
        name: "linear_fwd",
        op: Op::Forward,
        a: read(a.x),
        a_stride: d.inputs,
        b: read(a.weight),
        c: write(&mut a.y).address(),
        bias: read_option(a.bias),
        residual: read_option(a.residual),
        norms: 0,
        m: d.tokens,
        n: d.outputs,
        k: d.inputs,
        mode: Mode::Overwrite,
    };
    if let Some(choice) = hopper::choice(k, &gemm) {
        return hopper::enqueue(k, &gemm, choice);
    }
    launch::LinearFwd::<A> {
        x: read(a.x),
        weight: read(a.weight),
        bias: read_option(a.bias),
        residual: read_option(a.residual),
        y: write(&mut a.y),
        tokens: int(d.tokens)?,
        inputs: int(d.inputs)?,
        outputs: int(d.outputs)?,
    }
    .launch(&k.device, blocks(k, d.tokens, d.outputs), shared_bytes::<A>())
}

pub(super) fn linear_bwd_input<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LinearBwdInput<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    let gemm = Gemm {
        name: "linear_bwd_input",
        op: Op::Input,
        a: read(a.dy),
        a_stride: d.outputs,
        b: read(a.weight),
        c: write(&mut a.dx).address(),
        bias: ConstPtr::NONE,
        residual: ConstPtr::NONE,
        norms: 0,
        m: d.tokens,
        n: d.inputs,
        k: d.outputs,
        mode: a.write,
    };
    if let Some(choice) = hopper::choice(k, &gemm) {
        return hopper::enqueue(k, &gemm, choice);
    }
    launch::LinearBwdInput::<A> {
        dy: read(a.dy),
        weight: read(a.weight),
        dx: write(&mut a.dx),
        tokens: int(d.tokens)?,
        inputs: int(d.inputs)?,
        outputs: int(d.outputs)?,
        add: adds(a.write),
    }
    .launch(&k.device, blocks(k, d.tokens, d.inputs), shared_bytes::<A>())
}

pub(super) fn linear_bwd_weight<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LinearBwdWeight<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    let gemm = Gemm {
        name: "linear_bwd_weight",
        op: Op::Weight,
        a: read(a.dy),
        a_stride: d.outputs,
        b: read(a.x),
        c: write(&mut a.dweight).address(),
        bias: ConstPtr::NONE,
        residual: ConstPtr::NONE,
        norms: write_option(&mut a.norms).address(),
        m: d.outputs,
        n: d.inputs,
        k: d.tokens,
        mode: a.write,
    };
    if let Some(choice) = hopper::choice(k, &gemm) {
        return hopper::enqueue(k, &gemm, choice);
    }
    launch::LinearBwdWeight::<A> {
        dy: read(a.dy),
        x: read(a.x),
        dweight: write(&mut a.dweight),
        norms: write_option(&mut a.norms),
        tokens: int(d.tokens)?,
        inputs: int(d.inputs)?,
        outputs: int(d.outputs)?,
        add: adds(a.write),
    }
    .launch(&k.device, blocks(k, d.outputs, d.inputs), shared_bytes::<A>())
}

pub(super) fn bias_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: BiasBwd<'_, Kernels<D, A>>) -> Result<()> {
    let (tokens, outputs) = (a.dims.tokens, a.dims.outputs);
    let count = tokens.div_ceil(BIAS_SLICE);
    let mut scratch = k.scratch()?;
    let slices = scratch.request::<f32>(count * outputs);
    scratch.take()?;
    launch::BiasBwd::<A> {
        dy: read(a.dy),
        slices: scratch.write(slices),
        tokens: int(tokens)?,
        outputs: int(outputs)?,
    }
    .launch(&k.device, k.row_blocks(count * warp_vectors::<A>(outputs), launch::BiasBwd::<A>::WARPS), 0)?;
    sum_slices(k, &scratch, slices, count, &mut a.dbias, a.write)
}

/// `out (+)= sum of count slices`, each as long as `out`. The slices are partial sums over tokens.
pub(super) fn sum_slices<D: Device, A: Element>(
    k: &Kernels<D, A>,
    scratch: &Scratch<'_, D>,
    slices: Piece,
    count: usize,
    out: &mut ViewMut<'_, Array<D, f32>>,
    mode: Mode,
) -> Result<()> {
    let width = out.len;
    launch::SumSlices {
        slices: scratch.read(slices),
        out: write(out),
        count: int(count)?,
        width: int(width)?,
        add: adds(mode),
    }
    // Each block sums `WARP` columns, one per lane.
    .launch(&k.device, k.row_blocks(width, WARP), 0)
}
