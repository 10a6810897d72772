//! Launchers of the gated activations, and of the two GEMMs with SwiGLU in their epilogue: the gate-up
//! forward and the input gradient of the down projection (`kernels/glu.cu`).

use super::device::{Device, Element};
use super::launchers as launch;
use super::linear::{blocks, shared_bytes};
use super::{Kernels, hopper, int, read, write, write_option};
use crate::Result;
use crate::backend::contract::*;

/// The forward interleaves the gate and up weights (`GateUpView`): this many rows of the gate, then this many
/// rows of the up projection.
const INTERLEAVED_ROWS: usize = 8;

/// Converts the activation of the gate to the kernels' enum.
fn gate(dims: GluDims) -> launch::Gate {
    match dims.gelu {
        None => launch::Gate::Silu,
        Some(Gelu::Erf) => launch::Gate::GeluErf,
        Some(Gelu::Tanh) => launch::Gate::GeluTanh,
    }
}

pub(super) fn glu_fwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GluFwd<'_, Kernels<D, A>>) -> Result<()> {
    launch::GluFwd::<A> {
        gate_up: read(a.gate_up),
        act: write(&mut a.act),
        tokens: int(a.dims.tokens)?,
        intermediate: int(a.dims.intermediate)?,
        gate: gate(a.dims),
    }
    .launch(&k.device, k.row_blocks(a.dims.tokens, 1), 0)
}

pub(super) fn glu_bwd<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GluBwd<'_, Kernels<D, A>>) -> Result<()> {
    launch::GluBwd::<A> {
        dact: read(a.dact),
        gate_up: read(a.gate_up),
        dgate_up: write(&mut a.dgate_up),
        tokens: int(a.dims.tokens)?,
        intermediate: int(a.dims.intermediate)?,
        gate: gate(a.dims),
    }
    .launch(&k.device, k.row_blocks(a.dims.tokens, 1), 0)
}

pub(super) fn linear_glu_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LinearGluFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    if hopper::linear_glu_fwd(k, &mut a)? {
        return Ok(());
    }
    let columns = 2 * d.intermediate.next_multiple_of(INTERLEAVED_ROWS);
    launch::LinearGluFwd::<A> {
        x: read(a.x),
        weight: read(a.weight),
        gate_up: write_option(&mut a.gate_up),
        act: write(&mut a.act),
        tokens: int(d.tokens)?,
        inputs: int(d.hidden)?,
        intermediate: int(d.intermediate)?,
    }
    .launch(&k.device, blocks(k, d.tokens, columns), shared_bytes::<A>())
}

pub(super) fn linear_glu_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: LinearGluBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    if hopper::linear_glu_bwd(k, &mut a)? {
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
