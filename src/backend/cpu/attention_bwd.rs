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
//! One task processes a tree and a key-value head, so every sum is computed by one task in a fixed order.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Cpu;
use super::attention::{Heads, Visible, copy_head};
use super::attention_softmax::{Outputs, Rounded, Rows, softmax_rows_bwd};
use super::element::{Element, Room};
use super::matmul::matmul;
use super::panels::{Panels, score_stride};
use super::path::{Path, Segments, Step};
use super::product16::product16;
use super::rows::{add_to_tile, copy_rows, scale_heads};
use super::scratch::Scratch;
use super::simd::LANES;
use super::tile::{Grid, Mat, Tile};
use super::units::Units;
use crate::backend::Write;
use crate::backend::contract::*;

pub(super) fn attention_bwd<A: Element>(cpu: &Cpu<A>, a: AttentionBwd<'_, Cpu<A>>) {
    let (d, segments) = (a.dims, Segments::new(&a.tree));
    if d.trees == 0 || d.heads * d.head_dim == 0 {
        a.dqkv.into_slice().fill(A::zeroed());
        return;
    }
    let (group, bounds) = (d.heads / d.kv_heads, segments.tree_bounds());
    let queries = (0..=d.kv_heads).map(|i| i * group * d.head_dim);
    let others = (1..=2 * d.kv_heads).map(|i| (d.heads + i) * d.head_dim);
    let grid = Grid::new(a.dqkv.into_slice(), d.fused_heads() * d.head_dim, bounds, queries.chain(others).collect());
    let capacity = segments.longest_path().next_multiple_of(LANES);
    let narrow = cpu.dots(a.qkv.slice()).zip(cpu.dots(a.do_.slice()));
    let qkv = if narrow.is_some() { None } else { Some(cpu.load_all(a.qkv.slice())) };
    let [o, do_] = [a.o, a.do_].map(|x| cpu.load_all(x.slice()));
    let qkv = qkv.as_deref().unwrap_or_default();
    let inputs = Inputs { dims: d, qkv, narrow, o: &o, do_: &do_, lse: a.lse.slice() };
    (0..d.trees * d.kv_heads).into_par_iter().with_max_len(1).for_each(|task| {
        let (tree, kv_head) = (task / d.kv_heads, task % d.kv_heads);
        let first = grid.row_range(tree).start;
        let heads = [kv_head, d.kv_heads + kv_head, 2 * d.kv_heads + kv_head];
        let mut gradients = heads.map(|head| cpu.store_tile(grid.claim(tree, head), Write::Overwrite));
        let [mut dq, mut dk, mut dv] = gradients.each_mut().map(|gradient| gradient.tile());
        dk.fill(0.0);
        dv.fill(0.0);
        let mut work = Backward::new(cpu, &inputs, kv_head, capacity);
        let mut path = Path::new(segments);
        // The steps that leave and join the path are collected first, because the gradients of the old steps
        // must be read before the rows of the new steps replace them.
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
    /// Empty if `narrow` is set.
    qkv: &'a [f32],
    /// qkv and do as they are stored, for bf16 dot products.
    narrow: Option<(&'a [bf16], &'a [bf16])>,
    o: &'a [f32],
    do_: &'a [f32],
    lse: &'a [f32],
}

/// Operands of bf16 dot products. Keys and values are (capacity, head_dim), queries and dout (block,
/// head_dim). Probabilities and dscores are (block, keys), with a row stride of [`score_stride`].
struct Narrow<'a> {
    qkv: &'a [bf16],
    do_: &'a [bf16],
    keys: Room<'a, bf16>,
    values: Room<'a, bf16>,
    queries: Room<'a, bf16>,
    dout: Room<'a, bf16>,
    probabilities: Room<'a, bf16>,
    dscores: Room<'a, bf16>,
}

/// Workspace of one backward task. Buffers along the path are (capacity, head_dim).
struct Backward<'a> {
    inputs: &'a Inputs<'a>,
    kv_head: usize,
    heads: Heads,
    units: Units,
    narrow: Option<Narrow<'a>>,
    keys: Scratch<'a>,
    keys_t: Panels<'a>,
    values_t: Panels<'a>,
    dkeys: Scratch<'a>,
    dvalues: Scratch<'a>,
    /// (block, head_dim)
    queries: Scratch<'a>,
    dout: Scratch<'a>,
    dqueries: Scratch<'a>,
    /// (block, keys), with a row stride of [`score_stride`]
    probabilities: Scratch<'a>,
    dscores: Scratch<'a>,
    /// (block) factor on dqueries; 1 for bf16 operands, whose dscores already include the scale
    factors: Scratch<'a>,
}

impl<'a> Backward<'a> {
    fn new<A: Element>(cpu: &'a Cpu<A>, inputs: &'a Inputs<'a>, kv_head: usize, capacity: usize) -> Self {
        let heads = Heads::new(&inputs.dims, kv_head);
        let block = heads.block_tokens() * heads.group;
        let narrow = inputs.narrow.map(|(qkv, do_)| Narrow {
            qkv,
            do_,
            keys: cpu.room(heads.head_dim * capacity),
            values: cpu.room(heads.head_dim * capacity),
            queries: cpu.room(block * heads.head_dim),
            dout: cpu.room(block * heads.head_dim),
            probabilities: cpu.room(block * score_stride(capacity)),
            dscores: cpu.room(block * score_stride(capacity)),
        });
        // With bf16 operands, the f32 operands stay empty.
        let wide = if narrow.is_some() { 0 } else { capacity };
        let path = || cpu.scratch.take(heads.head_dim * capacity);
        let rows = || cpu.scratch.take(block * heads.head_dim);
        let mut factors = cpu.scratch.take(block);
        factors.fill(if narrow.is_some() { 1.0 } else { inputs.dims.scale as f32 });
        Self {
            inputs,
            kv_head,
            heads,
            units: cpu.units,
            narrow,
            keys: cpu.scratch.take(heads.head_dim * wide),
            keys_t: Panels::new(cpu, heads.head_dim, wide),
            values_t: Panels::new(cpu, heads.head_dim, wide),
            dkeys: path(),
            dvalues: path(),
            queries: rows(),
            dout: rows(),
            dqueries: rows(),
            probabilities: cpu.scratch.take(block * score_stride(capacity)),
            dscores: cpu.scratch.take(block * score_stride(capacity)),
            factors,
        }
    }

    /// Gathers the rows of a step and zeroes their gradients.
    fn join(&mut self, step: &Step) {
        let (h, qkv, rows, at) = (&self.heads, self.inputs.qkv, step.rows.clone(), step.position);
        if let Some(narrow) = &mut self.narrow {
            copy_head(&mut narrow.keys, narrow.qkv, rows.clone(), at, h.key, h);
            copy_head(&mut narrow.values, narrow.qkv, rows.clone(), at, h.value, h);
        } else {
            copy_head(&mut self.keys, qkv, rows.clone(), at, h.key, h);
            self.keys_t.join(qkv, rows.clone(), at, h.key, h);
            self.values_t.join(qkv, rows.clone(), at, h.value, h);
        }
        let range = at * h.head_dim..(at + rows.len()) * h.head_dim;
        self.dkeys[range.clone()].fill(0.0);
        self.dvalues[range].fill(0.0);
    }

    /// Adds the gradients of a step to the output; `first` is the tree's first row.
    fn leave(&mut self, step: &Step, first: usize, dk: &mut Tile<'_>, dv: &mut Tile<'_>) {
        let head_dim = self.heads.head_dim;
        let range = step.position * head_dim..(step.position + step.rows.len()) * head_dim;
        add_to_tile(dk, step.rows.start - first, &self.dkeys[range.clone()]);
        add_to_tile(dv, step.rows.start - first, &self.dvalues[range]);
    }

    /// Zeroes the keys after the path of `len` rows, up to the next multiple of [`LANES`].
    fn pad(&mut self, len: usize) {
        let range = len * self.heads.head_dim..len.next_multiple_of(LANES) * self.heads.head_dim;
        match &mut self.narrow {
            Some(narrow) => narrow.keys[range].fill(bf16::ZERO),
            None => self.keys[range].fill(0.0),
        }
    }

    /// Processes one block of queries: the tokens `rows`, at consecutive positions starting at
    /// `position`. `first` is the tree's first row.
    fn block(&mut self, rows: Range<usize>, position: usize, first: usize, dq: &mut Tile<'_>) {
        let (d, Heads { head_dim, group, .. }) = (&self.inputs.dims, self.heads);
        let count = rows.len() * group;
        let visible = Visible::of(d.window, self.narrow.is_some());
        let hidden = visible.first(position);
        let path = hidden..(position + rows.len()).next_multiple_of(LANES);
        let keys = path.len();
        let scale = d.scale as f32;
        // Outputs of the query heads of this key-value head: offset in a token's row, number of elements, and
        // elements from one token to the next.
        let (offset, length, width) = (self.kv_head * group * head_dim, group * head_dim, d.heads * head_dim);
        let stride = score_stride(keys);
        match &mut self.narrow {
            Some(n) => {
                self.heads.queries16(&mut n.queries, n.qkv, rows.clone());
                copy_rows(&mut n.dout, n.do_, rows.clone(), (offset, length, width));
                let products =
                    [(&mut self.probabilities, &n.queries, &n.keys), (&mut self.dscores, &n.dout, &n.values)];
                for (to, left, right) in products {
                    let right = Mat::new(&right[hidden * head_dim..], keys, head_dim, head_dim);
                    let left = Mat::new(&left[..], count, head_dim, head_dim);
                    product16(self.units, &mut Tile::new(to, count, keys, stride), left, right.t(), Write::Overwrite);
                }
            }
            None => {
                self.heads.queries(&mut self.queries, self.inputs.qkv, rows.clone(), scale);
                copy_rows(&mut self.dout, self.inputs.do_, rows.clone(), (offset, length, width));
                let block = |data| Mat::new(data, count, head_dim, head_dim);
                self.keys_t.product(&mut self.probabilities, block(&self.queries), path.clone());
                self.values_t.product(&mut self.dscores, block(&self.dout), path);
            }
        }
        let rounded = self.narrow.as_mut().map(|n| Rounded {
            probabilities: &mut n.probabilities,
            dscores: &mut n.dscores,
            scale,
        });
        let form = Rows {
            count,
            group,
            position,
            first: hidden,
            keys,
            stride,
            visible,
            scale: rounded.as_ref().map(|_| scale),
            softcap: d.softcap.map(|cap| cap as f32),
        };
        let outputs = Outputs {
            head_dim,
            width,
            o: &self.inputs.o[rows.start * width + offset..],
            dout: &self.inputs.do_[rows.start * width + offset..],
            lse: &self.inputs.lse[self.kv_head * group * d.tokens + rows.start..],
            tokens: d.tokens,
        };
        softmax_rows_bwd(&mut self.probabilities, &mut self.dscores, rounded, outputs, form);
        let skipped = hidden * head_dim;
        let (dvalues, dkeys) = (&mut self.dvalues[skipped..], &mut self.dkeys[skipped..]);
        let mut dvalues = Tile::new(dvalues, keys, head_dim, head_dim);
        let mut dkeys = Tile::new(dkeys, keys, head_dim, head_dim);
        let mut dqueries = Tile::new(&mut self.dqueries, count, head_dim, head_dim);
        match &self.narrow {
            Some(n) => {
                let of = |data| Mat::new(data, count, keys, stride);
                let (p, ds) = (of(&n.probabilities[..]), of(&n.dscores[..]));
                let block = |data| Mat::new(data, count, head_dim, head_dim);
                let keys = Mat::new(&n.keys[skipped..], keys, head_dim, head_dim);
                product16(self.units, &mut dvalues, p.t(), block(&n.dout[..]), Write::Add);
                product16(self.units, &mut dkeys, ds.t(), block(&n.queries[..]), Write::Add);
                product16(self.units, &mut dqueries, ds, keys, Write::Overwrite);
            }
            None => {
                let [p, ds] = [&self.probabilities, &self.dscores].map(|data| Mat::new(data, count, keys, stride));
                let block = |data| Mat::new(data, count, head_dim, head_dim);
                let keys = Mat::new(&self.keys[skipped..], keys, head_dim, head_dim);
                matmul(&mut dvalues, p.t(), block(&self.dout), Write::Add);
                matmul(&mut dkeys, ds.t(), block(&self.queries), Write::Add);
                matmul(&mut dqueries, ds, keys, Write::Overwrite);
            }
        }
        scale_heads(dq, rows.start - first, &self.dqueries[..count * head_dim], &self.factors[..count], rows.len());
    }
}
