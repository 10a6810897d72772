//! Linear layers: the GEMMs of the forward and of both gradients, and the bias gradient.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::matmul::{ROWS_UNIT, par_matmul, par_matmul_with};
use super::optim::squares;
use super::rows::{add_rows, sum_slices};
use super::tile::{Grid, Mat, bounds};
use crate::backend::contract::*;
use crate::backend::{ViewMut, Write};

pub(super) fn linear_fwd<A: Element>(cpu: &Cpu<A>, a: LinearFwd<'_, Cpu<A>>) {
    let d = a.dims;
    let x = Mat::new(a.x.slice(), d.tokens, d.inputs, d.inputs);
    let weight = Mat::new(a.weight.slice(), d.outputs, d.inputs, d.inputs);
    let (bias, residual) = (a.bias.map(|b| cpu.load(b.slice())), a.residual.map(|r| r.slice()));
    if bias.is_none() && residual.is_none() {
        return par_matmul(cpu, a.y.into_slice(), x, weight.t(), Write::Overwrite);
    }
    par_matmul_with(cpu, a.y.into_slice(), x, weight.t(), |tile, [row, column]| {
        if let Some(bias) = &bias {
            let bias = &bias[column..column + tile.cols()];
            (0..tile.rows()).for_each(|r| add_rows(tile.row(r), bias));
        }
        if let Some(residual) = residual {
            let cols = tile.cols();
            for r in 0..tile.rows() {
                A::add(tile.row(r), &residual[(row + r) * d.outputs + column..][..cols]);
            }
        }
    });
}

pub(super) fn linear_bwd_input<A: Element>(cpu: &Cpu<A>, a: LinearBwdInput<'_, Cpu<A>>) {
    let d = a.dims;
    let dy = Mat::new(a.dy.slice(), d.tokens, d.outputs, d.outputs);
    let weight = Mat::new(a.weight.slice(), d.outputs, d.inputs, d.inputs);
    par_matmul(cpu, a.dx.into_slice(), dy, weight, a.write);
}

/// Maximum number of elements of a weight for which the sum over tokens may be split into slices
/// (split-K) for parallelism. A larger weight has enough tiles, and adding up the slices costs more
/// than it gains.
const SMALL_WEIGHT: usize = 1 << 19;
/// Minimum number of tokens of a slice.
const SLICE_TOKENS: usize = 512;
/// Maximum number of slices.
const SLICES: usize = 8;
/// Target number of tasks for the choice of the number of slices. It must not depend on the number
/// of threads, because the slices determine the order of the sum.
const TASKS: usize = 16;
/// Bounds of the number of weight rows per task. No sum depends on this number, so it may depend on
/// the number of threads. Every task packs its slice of `x` again, so more rows are better.
const SLICE_ROWS: Range<usize> = 128..512;
/// Target number of tasks per thread.
const TASKS_PER_THREAD: usize = 4;

pub(super) fn linear_bwd_weight<A: Element>(cpu: &Cpu<A>, a: LinearBwdWeight<'_, Cpu<A>>) {
    let d = a.dims;
    let (dweight, norms) = (a.dweight.into_slice(), a.norms.map(ViewMut::into_slice));
    weight_gemm(cpu, d, a.dy.slice(), a.x.slice(), dweight, a.write);
    if let Some(norms) = norms {
        patch_norms(dweight, norms, d);
    }
}

/// Writes one norm for each row of patches, in the slot of its first patch, and 0 to the other
/// slots.
fn patch_norms(dweight: &[f32], norms: &mut [f32], d: LinearDims) {
    let across = d.inputs.div_ceil(PATCH.1);
    if norms.is_empty() {
        return;
    }
    norms.par_chunks_mut(across).zip(dweight.par_chunks(PATCH.0 * d.inputs)).for_each(|(norms, rows)| {
        norms.fill(0.0);
        norms[0] = squares(rows).sqrt() as f32;
    });
}

/// `dweight (+)= dyᵀ x`, with split-K over the tokens for a small weight.
fn weight_gemm<A: Element>(cpu: &Cpu<A>, d: LinearDims, dy: &[A], x: &[A], dweight: &mut [f32], write: Write) {
    let dy = Mat::new(dy, d.tokens, d.outputs, d.outputs);
    let x = Mat::new(x, d.tokens, d.inputs, d.inputs);
    let size = d.outputs * d.inputs;
    let target = TASKS.div_ceil(d.outputs.div_ceil(SLICE_ROWS.start).max(1)).min(SLICES);
    let slices = if size <= SMALL_WEIGHT { target.min(d.tokens / SLICE_TOKENS).max(1) } else { 1 };
    if slices == 1 {
        par_matmul(cpu, dweight, dy.t(), x, write);
        return;
    }
    if size == 0 {
        return;
    }
    let tokens = bounds(d.tokens, d.tokens.div_ceil(slices).next_multiple_of(16), 16);
    let slices = tokens.len() - 1;
    let blocks = (TASKS_PER_THREAD * rayon::current_num_threads()).div_ceil(slices);
    let block = (d.outputs / blocks).clamp(SLICE_ROWS.start, SLICE_ROWS.end).next_multiple_of(ROWS_UNIT);
    let rows = bounds(d.outputs, block, ROWS_UNIT);
    let blocks = rows.len() - 1;
    let mut partial = cpu.scratch.take(slices * size);
    let starts = (0..slices).flat_map(|slice| rows[..blocks].iter().map(move |row| slice * d.outputs + row));
    let row_bounds = starts.chain([slices * d.outputs]).collect();
    let grid = Grid::new(&mut partial, d.inputs, row_bounds, vec![0, d.inputs]);
    (0..slices * blocks).into_par_iter().with_max_len(1).for_each(|task| {
        let (slice, block) = (task / blocks, task % blocks);
        let tokens = tokens[slice]..tokens[slice + 1];
        let dy = dy.rows(tokens.clone()).cols(rows[block]..rows[block + 1]);
        cpu.product(&mut grid.claim(task, 0), dy.t(), x.rows(tokens), Write::Overwrite);
    });
    drop(grid);
    sum_slices(dweight, &partial, write);
}

/// Number of tokens of a slice of the bias gradient.
const BIAS_TOKENS: usize = 128;

pub(super) fn bias_bwd<A: Element>(cpu: &Cpu<A>, a: BiasBwd<'_, Cpu<A>>) {
    let (outputs, dy) = (a.dims.outputs, a.dy.slice());
    if outputs == 0 {
        return;
    }
    let mut partial = cpu.scratch.take(a.dims.tokens.div_ceil(BIAS_TOKENS) * outputs);
    partial.par_chunks_mut(outputs).zip(dy.par_chunks(BIAS_TOKENS * outputs)).for_each(|(partial, rows)| {
        partial.fill(0.0);
        rows.chunks_exact(outputs).for_each(|row| A::add(partial, row));
    });
    sum_slices(a.dbias.into_slice(), &partial, a.write);
}
