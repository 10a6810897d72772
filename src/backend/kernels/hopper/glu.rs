//! The products next to the gated activation (`kernels/glu_sm90.cu`).

use super::{ROWS, all_multiples, is_copied, is_here, matrix};
use crate::Result;
use crate::backend::View;
use crate::backend::contract::*;
use crate::backend::kernels::device::{Device, Element};
use crate::backend::kernels::geometry::{Sizes, Tile, blocks_of, cut};
use crate::backend::kernels::launchers as launch;
use crate::backend::kernels::{Array, Kernels, int, read, write, write_option};

/// Columns of the gate, and of the up projection, of a tile of the forward.
const WIDTH: usize = 96;

/// Pieces of a consumer of the backward: gate and up of two batches.
const BACKWARD_PIECES: usize = 4;

/// Whether these kernels do a call; rows of every operand are multiples of 16 bytes.
fn fits<D: Device, A: Element>(k: &Kernels<D, A>, d: LinearGluDims, addresses: &[u64]) -> bool {
    is_here(k)
        && d.tokens * d.hidden * d.intermediate > 0
        && all_multiples(8, &[d.hidden, d.intermediate])
        && is_copied(addresses)
}

/// Notes the tiles of either product.
fn note<D: Device, A: Element>(k: &Kernels<D, A>, op: &'static str, m: usize, n: usize, depth: usize) {
    let sizes = Sizes { m, n, k: depth, out_bytes: 2, may_split: false, a_across: false };
    k.chose(op, sizes, cut(sizes, Tile::N192PingPong, 1, k.device.properties().processors));
}

/// Enqueues the forward; false, and nothing is done, where these kernels do not do it.
pub(in super::super) fn glu_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut LinearGluFwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let (x, weight) = (read(a.x).address(), read(a.weight).address());
    let (gate_up, act) = (write_option(&mut a.gate_up).address(), write(&mut a.act).address());
    if !fits(k, d, &[x, weight, gate_up, act]) {
        return Ok(false);
    }
    note(k, "linear_glu_fwd", d.tokens, 2 * d.intermediate, d.hidden);
    let half = |address: u64| matrix(&k.device, address, (d.tokens, d.intermediate), 2 * d.intermediate, 64);
    // Without gate and up their descriptors are not used; they must name memory all the same.
    let first = if gate_up == 0 { x } else { gate_up };
    let stored = gate_up != 0;
    launch::LinearGluFwdSm90 {
        x: matrix(&k.device, x, (d.tokens, d.hidden), d.hidden, ROWS)?,
        weight: matrix(&k.device, weight, (2 * d.intermediate, d.hidden), d.hidden, WIDTH)?,
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
        blocks_of(d.tokens, d.intermediate, WIDTH, k.device.properties().processors),
        Tile::N192PingPong.shared_bytes(false, 2),
    )?;
    Ok(true)
}

/// Enqueues the backward; false, and nothing is done, where these kernels do not do it.
pub(in super::super) fn glu_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut LinearGluBwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let address = |view: View<'_, Array<D, A>>| read(view).address();
    let (dy, weight, gate_up) = (address(a.dy), address(a.weight), address(a.gate_up));
    let dgate_up = write(&mut a.dgate_up).address();
    if !fits(k, d, &[dy, weight, gate_up, dgate_up]) {
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
        blocks_of(d.tokens, d.intermediate, Tile::N192PingPong.columns(), k.device.properties().processors),
        Tile::N192PingPong.shared_bytes_with(true, BACKWARD_PIECES),
    )?;
    Ok(true)
}
