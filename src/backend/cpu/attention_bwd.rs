//! Backward of attention over prefix trees.
//!
//! ```text
//! for each tree and each key-value head, in parallel:
//!     for each segment of the tree, in order:
//!         add dK, dV of the segments that leave the path to the output
//!         gather K, Kᵀ, Vᵀ of the segments that join the path, and zero their dK, dV
//!         for each block of queries:
//!             P  = exp(S - lse) with S = scale Q Kᵀ, soft-capped
//!             dS = P (dO Vᵀ - rowsum(dO O)), times the slope of the soft cap
//!             dV += Pᵀ dO;  dK += dSᵀ (scale Q);  dQ = scale dS K
//!     add dK, dV of the remaining path to the output
//! ```
//!
//! One task owns a tree and a key-value head, so every sum has one owner and a fixed order.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::attention::{Heads, Visible, copy_head};
use super::math::{cap_row, cap_row_bwd, exp};
use super::matmul::matmul;
use super::panels::{Panels, score_stride};
use super::path::{Path, Segments, Step};
use super::rows::{add_rows, scale_into};
use super::scratch::Scratch;
use super::simd::{LANES, dot, vectorised};
use super::tile::{Grid, Mat, Tile};
use crate::backend::Write;
use crate::backend::contract::*;

pub(super) fn attention_bwd(cpu: &Cpu, a: AttentionBwd<'_, Cpu>) {
    let (d, segments) = (a.dims, Segments::new(&a.tree));
    if d.trees == 0 || d.heads * d.head_dim == 0 {
        a.dqkv.into_slice().fill(0.0);
        return;
    }
    let (group, bounds) = (d.heads / d.kv_heads, segments.tree_bounds());
    let queries = (0..=d.kv_heads).map(|i| i * group * d.head_dim);
    let others = (1..=2 * d.kv_heads).map(|i| (d.heads + i) * d.head_dim);
    let grid = Grid::new(a.dqkv.into_slice(), d.fused_heads() * d.head_dim, bounds, queries.chain(others).collect());
    let capacity = segments.longest_path().next_multiple_of(LANES);
    let inputs = Inputs { dims: d, qkv: a.qkv.slice(), o: a.o.slice(), do_: a.do_.slice(), lse: a.lse.slice() };
    (0..d.trees * d.kv_heads).into_par_iter().with_max_len(1).for_each(|task| {
        let (tree, kv_head) = (task / d.kv_heads, task % d.kv_heads);
        let first = grid.row_range(tree).start;
        let mut dq = grid.claim(tree, kv_head);
        let (mut dk, mut dv) = (grid.claim(tree, d.kv_heads + kv_head), grid.claim(tree, 2 * d.kv_heads + kv_head));
        dk.fill(0.0);
        dv.fill(0.0);
        let mut work = Backward::new(cpu, &inputs, kv_head, capacity);
        let mut path = Path::new(segments);
        // Steps are collected first: the gradients of the old steps must be read before the rows of
        // the new steps replace them.
        for segment in segments.tree(tree) {
            let own = segments.rows(segment);
            let (mut left, mut joined) = (Vec::new(), Vec::new());
            let position = path.enter(segment, own.end, |s| left.push(s.clone()), |s| joined.push(s.clone()));
            left.iter().for_each(|step| work.leave(step, first, &mut dk, &mut dv));
            joined.iter().for_each(|step| work.join(step));
            work.pad(path.len());
            let mut row = own.start;
            while row < own.end {
                let rows = row..own.end.min(row + work.heads.block_tokens());
                work.block(rows.clone(), position + (row - own.start), first, &mut dq);
                row = rows.end;
            }
        }
        path.finish(|step| work.leave(step, first, &mut dk, &mut dv));
    });
}

/// Inputs of the op, shared by all tasks.
struct Inputs<'a> {
    dims: AttentionDims,
    qkv: &'a [f32],
    o: &'a [f32],
    do_: &'a [f32],
    lse: &'a [f32],
}

/// Workspace of one backward task. Buffers along the path are (capacity, head_dim).
struct Backward<'a> {
    inputs: &'a Inputs<'a>,
    kv_head: usize,
    heads: Heads,
    keys: Scratch<'a>,
    keys_t: Panels<'a>,
    values_t: Panels<'a>,
    dkeys: Scratch<'a>,
    dvalues: Scratch<'a>,
    /// (block, head_dim)
    queries: Scratch<'a>,
    dout: Scratch<'a>,
    dqueries: Scratch<'a>,
    /// (block, keys), with rows of [`score_stride`]
    probabilities: Scratch<'a>,
    dscores: Scratch<'a>,
    /// (keys) capped scores of a row; empty without a soft cap
    capped: Scratch<'a>,
}

impl<'a> Backward<'a> {
    fn new(cpu: &'a Cpu, inputs: &'a Inputs<'a>, kv_head: usize, capacity: usize) -> Self {
        let heads = Heads::new(&inputs.dims, kv_head);
        let block = heads.block_tokens() * heads.group;
        let path = || cpu.scratch.take(heads.head_dim * capacity);
        let rows = || cpu.scratch.take(block * heads.head_dim);
        Self {
            inputs,
            kv_head,
            heads,
            keys: path(),
            keys_t: Panels::new(cpu, heads.head_dim, capacity),
            values_t: Panels::new(cpu, heads.head_dim, capacity),
            dkeys: path(),
            dvalues: path(),
            queries: rows(),
            dout: rows(),
            dqueries: rows(),
            probabilities: cpu.scratch.take(block * score_stride(capacity)),
            dscores: cpu.scratch.take(block * score_stride(capacity)),
            capped: cpu.scratch.take(inputs.dims.softcap.map_or(0, |_| capacity)),
        }
    }

    /// Gathers the rows of a step and zeroes their gradients.
    fn join(&mut self, step: &Step) {
        let (h, qkv, rows, at) = (&self.heads, self.inputs.qkv, step.rows.clone(), step.position);
        copy_head(&mut self.keys, qkv, rows.clone(), at, h.key, h);
        self.keys_t.join(qkv, rows.clone(), at, h.key, h);
        self.values_t.join(qkv, rows.clone(), at, h.value, h);
        let range = at * h.head_dim..(at + rows.len()) * h.head_dim;
        self.dkeys[range.clone()].fill(0.0);
        self.dvalues[range].fill(0.0);
    }

    /// Adds the gradients of a step to the output; `first` is the tree's first row.
    fn leave(&mut self, step: &Step, first: usize, dk: &mut Tile<'_>, dv: &mut Tile<'_>) {
        let head_dim = self.heads.head_dim;
        for (i, row) in step.rows.clone().enumerate() {
            let range = (step.position + i) * head_dim..(step.position + i + 1) * head_dim;
            add_rows(dk.row(row - first), &self.dkeys[range.clone()]);
            add_rows(dv.row(row - first), &self.dvalues[range]);
        }
    }

    /// Zeroes the keys after the path of `len` rows, up to the next multiple of [`LANES`].
    fn pad(&mut self, len: usize) {
        let range = len * self.heads.head_dim..len.next_multiple_of(LANES) * self.heads.head_dim;
        self.keys[range].fill(0.0);
    }

    /// Processes one block of queries: the tokens `rows`, at consecutive positions starting at
    /// `position`. `first` is the tree's first row.
    fn block(&mut self, rows: Range<usize>, position: usize, first: usize, dq: &mut Tile<'_>) {
        let (d, Heads { head_dim, group, .. }) = (&self.inputs.dims, self.heads);
        let count = rows.len() * group;
        let visible = Visible::of(d.window);
        let hidden = visible.first(position);
        let path = hidden..(position + rows.len()).next_multiple_of(LANES);
        let keys = path.len();
        let scale = d.scale as f32;
        self.heads.queries(&mut self.queries, self.inputs.qkv, rows.clone(), scale);
        // Offset of the outputs of a token for the query heads of this key-value head.
        let outputs = |row: usize| (row * d.heads + self.kv_head * group) * head_dim;
        for (to, row) in self.dout.chunks_exact_mut(group * head_dim).zip(rows.clone()) {
            to.copy_from_slice(&self.inputs.do_[outputs(row)..][..group * head_dim]);
        }
        let block = |data| Mat::new(data, count, head_dim, head_dim);
        let (queries, dout) = (block(&self.queries), block(&self.dout));
        self.keys_t.product(&mut self.probabilities, queries, path.clone());
        self.values_t.product(&mut self.dscores, dout, path);
        let stride = score_stride(keys);
        let mut p = Tile::new(&mut self.probabilities, count, keys, stride);
        let mut ds = Tile::new(&mut self.dscores, count, keys, stride);
        for r in 0..count {
            let (token, head) = (rows.start + r / group, r % group);
            let o = &self.inputs.o[outputs(token) + head * head_dim..][..head_dim];
            let lse = self.inputs.lse[(self.kv_head * group + head) * d.tokens + token];
            let visible = visible.keys(position + r / group);
            let visible = visible.start - hidden..visible.end - hidden;
            let dout = &self.dout[r * head_dim..(r + 1) * head_dim];
            let Some(cap) = d.softcap.map(|cap| cap as f32) else {
                softmax_row_bwd(p.row(r), ds.row(r), visible, lse, o, dout);
                continue;
            };
            let capped = &mut self.capped[..visible.len()];
            cap_row(&mut p.row(r)[visible.clone()], cap);
            capped.copy_from_slice(&p.row(r)[visible.clone()]);
            softmax_row_bwd(p.row(r), ds.row(r), visible.clone(), lse, o, dout);
            cap_row_bwd(&mut ds.row(r)[visible], capped, cap);
        }
        let [p, ds] = [&self.probabilities, &self.dscores].map(|data| Mat::new(data, count, keys, stride));
        let skipped = hidden * head_dim;
        let (dvalues, dkeys) = (&mut self.dvalues[skipped..], &mut self.dkeys[skipped..]);
        matmul(&mut Tile::new(dvalues, keys, head_dim, head_dim), p.t(), dout, Write::Add);
        matmul(&mut Tile::new(dkeys, keys, head_dim, head_dim), ds.t(), queries, Write::Add);
        let mut dqueries = Tile::new(&mut self.dqueries, count, head_dim, head_dim);
        matmul(&mut dqueries, ds, Mat::new(&self.keys[skipped..], keys, head_dim, head_dim), Write::Overwrite);
        for (i, row) in rows.enumerate() {
            let from = &self.dqueries[i * group * head_dim..(i + 1) * group * head_dim];
            scale_into(dq.row(row - first), from, scale);
        }
    }
}

vectorised! {
    /// Replaces the scaled scores by probabilities p and `dscores`, which holds `do · v`, by the
    /// gradients of the scaled scores, `p (do · v - do · o)`. Keys that are not `visible` get 0.
    fn softmax_row_bwd(
        scores: &mut [f32],
        dscores: &mut [f32],
        visible: Range<usize>,
        lse: f32,
        o: &[f32],
        dout: &[f32]
    ) {
        let delta = dot::<FMA>(o, dout);
        // -inf up to a multiple of LANES, so that p is 0 for invisible keys.
        let whole = visible.end.next_multiple_of(LANES);
        scores[..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..whole].fill(f32::NEG_INFINITY);
        scores[whole..].fill(0.0);
        dscores[..visible.start].fill(0.0);
        dscores[visible.end..].fill(0.0);
        let (scores, dscores) = (&mut scores[..whole], &mut dscores[..whole]);
        for (s, ds) in scores.iter_mut().zip(dscores) {
            let p = exp::<FMA>(*s - lse);
            *s = p;
            *ds = p * (*ds - delta);
        }
    }
}
