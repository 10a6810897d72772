//! Token embedding: a gather of rows. Its gradient is a sum over tokens grouped by id, so that one task
//! writes each row of the table.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::rows::rows_of_task;
use crate::backend::Write;
use crate::backend::contract::*;

pub(super) fn embedding_fwd<A: Element>(a: EmbeddingFwd<'_, Cpu<A>>) {
    let (hidden, table) = (a.dims.hidden, a.table.slice());
    gather(a.x.into_slice(), table, a.ids.slice(), hidden);
}

/// Copies the rows `index` of `from`, of `width` elements each, to `to`.
pub(super) fn gather<T: Copy + Send + Sync>(to: &mut [T], from: &[T], index: &[i32], width: usize) {
    if width == 0 {
        return;
    }
    let rows = rows_of_task(width);
    to.par_chunks_mut(rows * width).zip(index.par_chunks(rows)).for_each(|(to, index)| {
        for (to, &i) in to.chunks_exact_mut(width).zip(index) {
            to.copy_from_slice(&from[i as usize * width..][..width]);
        }
    });
}

/// `to[key] (+)= sum of from[item]` over the items of every key, in ascending order.
/// `Write::Overwrite` zeroes the other rows.
pub(super) fn add_runs<A: Element, T: Element, F: Element>(
    cpu: &Cpu<A>,
    to: &mut [T],
    from: &[F],
    runs: Runs<'_, Vec<i32>>,
    width: usize,
    write: Write,
) {
    if width == 0 {
        return;
    }
    let (order, offsets, keys) = (runs.order.slice(), runs.offsets.slice(), runs.keys.slice());
    let rows = rows_of_task(width);
    to.par_chunks_mut(rows * width).enumerate().for_each(|(task, to)| {
        let mut to = if write == Write::Add { cpu.update(to) } else { cpu.store(to) };
        if write == Write::Overwrite {
            to.fill(0.0);
        }
        let first = task * rows;
        // Padding comes last. Its key is negative, so as `usize` the key is larger than every row.
        let start = keys.partition_point(|&key| (key as usize) < first);
        for run in start..keys.len() {
            let row = keys[run] as usize - first;
            if row >= to.len() / width {
                break;
            }
            let to = &mut to[row * width..(row + 1) * width];
            for &item in &order[offsets[run] as usize..offsets[run + 1] as usize] {
                F::add(to, &from[item as usize * width..][..width]);
            }
        }
    });
}

pub(super) fn embedding_bwd<A: Element>(cpu: &Cpu<A>, a: EmbeddingBwd<'_, Cpu<A>>) {
    add_runs(cpu, a.dtable.into_slice(), a.dx.slice(), a.runs, a.dims.hidden, a.write);
}
