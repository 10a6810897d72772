//! Rotary position embeddings and their gradient.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::rows::rows_of_task;
use super::simd::vectorised;
use crate::backend::contract::*;

/// Rotates forwards for a `direction` of 1, backwards for -1.
pub(super) fn rope<A: Element>(cpu: &Cpu<A>, a: Rope<'_, Cpu<A>>, direction: f32) {
    let d = a.dims;
    let (width, half) = ((d.heads + d.unrotated_heads) * d.head_dim, d.rotated / 2);
    if width == 0 || half == 0 {
        return;
    }
    let (cos, sin) = (a.cos.slice(), a.sin.slice());
    let rows = rows_of_task(width);
    a.qkv_in_place.into_slice().par_chunks_mut(rows * width).zip(a.positions.slice().par_chunks(rows)).for_each(
        |(qkv, positions)| {
            let mut qkv = cpu.update(qkv);
            for (row, position) in qkv.chunks_exact_mut(width).zip(positions) {
                let table = *position as usize * half..(*position as usize + 1) * half;
                rotate(&mut row[..d.heads * d.head_dim], d.head_dim, &cos[table.clone()], &sin[table], direction);
            }
        },
    );
}

vectorised! {
    /// Rotates the first `2 * cos.len()` elements of each head of one token.
    fn rotate(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], direction: f32) {
        for head in heads.chunks_exact_mut(head_dim) {
            let (a, b) = head[..2 * cos.len()].split_at_mut(cos.len());
            // Heads are short, so setting up a loop over zipped slices would cost more than the loop itself.
            let (b, sin) = (&mut b[..cos.len()], &sin[..cos.len()]);
            for i in 0..cos.len() {
                let (x, y, sin) = (a[i], b[i], direction * sin[i]);
                a[i] = x * cos[i] - y * sin;
                b[i] = y * cos[i] + x * sin;
            }
        }
    }
}
