//! The GEMMs before and after SwiGLU on Hopper, with the activation or its gradient in their epilogue
//! (`kernels/glu_sm90.cu`).

use super::{ROWS, all_multiples, are_aligned, is_supported, matrix};
use crate::Result;
use crate::backend::View;
use crate::backend::contract::*;
use crate::backend::kernels::device::{Device, Element};
use crate::backend::kernels::geometry::{Sizes, Tile, blocks_of, cut};
use crate::backend::kernels::launchers::{self as launch, GLU_BWD_SUBTILES, GLU_FWD_COLUMNS};
use crate::backend::kernels::{Array, Kernels, int, read, write, write_option};

/// Tile of both GEMMs.
const TILE: Tile = Tile::N192PingPong;

/// Whether these kernels support a call. Rows of every operand must be a multiple of 16 bytes.
fn is_fit<D: Device, A: Element>(k: &Kernels<D, A>, d: LinearGluDims, addresses: &[u64]) -> bool {
    is_supported(k)
        && d.tokens * d.hidden * d.intermediate > 0
        && all_multiples(8, &[d.hidden, d.intermediate])
        && are_aligned(addresses)
}

/// Records the tile of a GEMM.
fn note<D: Device, A: Element>(k: &Kernels<D, A>, op: &'static str, m: usize, n: usize, depth: usize) {
    let sizes = Sizes { m, n, k: depth, out_bytes: 2, may_split: false };
    k.note_choice(op, sizes, cut(sizes, TILE, 1, k.device.properties().processors));
}

/// Enqueues the forward. Returns false and does nothing if these kernels do not support the call.
pub(in super::super) fn linear_glu_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut LinearGluFwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let (x, weight) = (read(a.x).address(), read(a.weight).address());
    let (gate_up, act) = (write_option(&mut a.gate_up).address(), write(&mut a.act).address());
    if !is_fit(k, d, &[x, weight, gate_up, act]) {
        return Ok(false);
    }
    note(k, "linear_glu_fwd", d.tokens, 2 * d.intermediate, d.hidden);
    let half = |address: u64| matrix(&k.device, address, (d.tokens, d.intermediate), 2 * d.intermediate, 64);
    // The tensor maps of an absent gate_up are not used, but must be valid.
    let first = if gate_up == 0 { x } else { gate_up };
    let stored = gate_up != 0;
    launch::LinearGluFwdSm90 {
        x: matrix(&k.device, x, (d.tokens, d.hidden), d.hidden, ROWS)?,
        weight: matrix(&k.device, weight, (2 * d.intermediate, d.hidden), d.hidden, GLU_FWD_COLUMNS)?,
        gate: half(first)?,
        up: half(if stored { first + 2 * d.intermediate as u64 } else { first })?,
        act: matrix(&k.device, act, (d.tokens, d.intermediate), d.intermediate, 64)?,
        tokens: int(d.tokens)?,
        intermediate: int(d.intermediate)?,
        hidden: int(d.hidden)?,
        stored: i32::from(stored),
    }
    .launch(
        &k.device,
        blocks_of(d.tokens, d.intermediate, GLU_FWD_COLUMNS, k.device.properties().processors),
        TILE.shared_bytes(false, 2),
    )?;
    Ok(true)
}

/// Enqueues the backward. Returns false and does nothing if these kernels do not support the call.
pub(in super::super) fn linear_glu_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut LinearGluBwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let address = |view: View<'_, Array<D, A>>| read(view).address();
    let (dy, weight, gate_up) = (address(a.dy), address(a.weight), address(a.gate_up));
    let dgate_up = write(&mut a.dgate_up).address();
    if !is_fit(k, d, &[dy, weight, gate_up, dgate_up]) {
        return Ok(false);
    }
    note(k, "linear_glu_bwd", d.tokens, d.intermediate, d.hidden);
    let half = |address: u64| matrix(&k.device, address, (d.tokens, d.intermediate), 2 * d.intermediate, 64);
    launch::LinearGluBwdSm90 {
        dy: matrix(&k.device, dy, (d.tokens, d.hidden), d.hidden, ROWS)?,
        weight: matrix(&k.device, weight, (d.hidden, d.intermediate), d.intermediate, 64)?,
        gate: half(gate_up)?,
        up: half(gate_up + 2 * d.intermediate as u64)?,
        dgate: half(dgate_up)?,
        dup: half(dgate_up + 2 * d.intermediate as u64)?,
        tokens: int(d.tokens)?,
        intermediate: int(d.intermediate)?,
        hidden: int(d.hidden)?,
    }
    .launch(
        &k.device,
        blocks_of(d.tokens, d.intermediate, TILE.columns(), k.device.properties().processors),
        TILE.shared_bytes_with(true, GLU_BWD_SUBTILES),
    )?;
    Ok(true)
}
