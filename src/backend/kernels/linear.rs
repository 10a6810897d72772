//! Linear layers: the three products.

use super::device::{Device, Element, Read};
use super::hopper::{self, Op, Product};
use super::launchers as launch;
use super::{Kernels, adds, int, read, read_option, write, write_option};
use crate::Result;
use crate::backend::Write as Mode;
use crate::backend::contract::*;

/// Rows and columns of a block's tile, as `Shape` of `kernels/tile.cuh` has them.
pub(super) const fn tile<A: Element>() -> usize {
    if size_of::<A>() == 2 { 128 } else { 64 }
}

/// Stages of the pipeline of operands, their depth, and bytes of shared memory they take: `Product::SHARED_BYTES`.
const STAGES: usize = 3;
const DEPTH: usize = 32;

/// Shared memory of a product.
pub(super) const fn shared_bytes<A: Element>() -> usize {
    STAGES * 2 * tile::<A>() * DEPTH * size_of::<A>()
}

/// Blocks for a result of (rows, columns): two on each multiprocessor, as registers and shared memory allow.
pub(super) fn blocks<D: Device, A: Element>(k: &Kernels<D, A>, rows: usize, columns: usize) -> usize {
    let tiles = rows.div_ceil(tile::<A>()) * columns.div_ceil(tile::<A>());
    tiles.min(2 * k.device.properties().processors)
}

pub(super) fn linear_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: LinearFwd<'_, Kernels<D, A>>) -> Result<()> {
    let d = a.dims;
    let product = Product {
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
    if let Some(choice) = hopper::choice(k, &product) {
        return hopper::enqueue(k, &product, choice);
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
    let product = Product {
        name: "linear_bwd_input",
        op: Op::Input,
        a: read(a.dy),
        a_stride: d.outputs,
        b: read(a.weight),
        c: write(&mut a.dx).address(),
        bias: Read::NONE,
        residual: Read::NONE,
        norms: 0,
        m: d.tokens,
        n: d.inputs,
        k: d.outputs,
        mode: a.write,
    };
    if let Some(choice) = hopper::choice(k, &product) {
        return hopper::enqueue(k, &product, choice);
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
    let product = Product {
        name: "linear_bwd_weight",
        op: Op::Weight,
        a: read(a.dy),
        a_stride: d.outputs,
        b: read(a.x),
        c: write(&mut a.dweight).address(),
        bias: Read::NONE,
        residual: Read::NONE,
        norms: write_option(&mut a.norms).address(),
        m: d.outputs,
        n: d.inputs,
        k: d.tokens,
        mode: a.write,
    };
    if let Some(choice) = hopper::choice(k, &product) {
        return hopper::enqueue(k, &product, choice);
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

/// Rows of the weight of a gated layer as tiles take them: by eights of the gate and of the up projection in turn.
const EIGHT: usize = 8;

pub(super) fn linear_glu_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LinearGluFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    if hopper::glu_fwd(k, &mut a)? {
        return Ok(());
    }
    launch::LinearGluFwd::<A> {
        x: read(a.x),
        weight: read(a.weight),
        gate_up: write_option(&mut a.gate_up),
        act: write(&mut a.act),
        tokens: int(d.tokens)?,
        inputs: int(d.hidden)?,
        intermediate: int(d.intermediate)?,
    }
    .launch(&k.device, blocks(k, d.tokens, 2 * d.intermediate.next_multiple_of(EIGHT)), shared_bytes::<A>())
}

pub(super) fn linear_glu_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LinearGluBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    if hopper::glu_bwd(k, &mut a)? {
        return Ok(());
    }
    launch::LinearGluBwd::<A> {
        dy: read(a.dy),
        weight: read(a.weight),
        gate_up: read(a.gate_up),
        dgate_up: write(&mut a.dgate_up),
        tokens: int(d.tokens)?,
        intermediate: int(d.intermediate)?,
        outputs: int(d.hidden)?,
    }
    .launch(&k.device, blocks(k, d.tokens, d.intermediate), shared_bytes::<A>())
}
