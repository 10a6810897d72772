//! Forward of attention over prefix trees.
//!
//! ```text
//! for each unit of consecutive rows and each key-value head, in parallel:
//!     for each segment of the unit:
//!         gather the keys (transposed) and values of the segment's path,
//!             reusing the ancestors shared with the previous segment
//!         for each block of queries:
//!             S = scale Q Kᵀ, soft-capped          // all keys up to the last query's position
//!             P = exp(S - rowmax(S)), 0 for later keys
//!             lse = logsumexp(S);  O = (P V) / rowsum(P)
//! ```
//!
//! With a sliding window, keys before the window also have probability zero. The GEMMs sum each block of
//! [`DEPTH`] keys (`product16::DEPTH` with bf16 dot products) separately and add the block sums one by one.
//! Blocks of keys that no query of a block of queries sees are skipped, which therefore changes no bit. If the
//! processor has bf16 dot products, the GEMMs of a bf16 backend read queries, keys and values as they are
//! stored. Scores are then scaled after the GEMM, and P is rounded to bf16. Otherwise a bf16 backend computes
//! in f32.
//!
//! Unlike FlashAttention, a block computes its softmax over the whole path at once, without
//! rescaling.
//!
//! The result of a query depends only on its path, not on the division of the path into segments
//! and not on other queries. Sums run in the order of positions on the path, and invisible keys
//! have probability zero. This holds for finite values only: zero times an infinite value of a
//! later token of the path is NaN.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Cpu;
use super::attention_softmax::{Rows, softmax_rows};
use super::element::{Element, Room};
use super::head::logsumexp;
use super::matmul::{DEPTH, matmul};
use super::panels::{Panels, score_stride};
use super::path::{Path, Segments};
use super::product16::{self, product16};
use super::rows::{copy_rows, scale_heads};
use super::scratch::Scratch;
use super::simd::{LANES, vectorised};
use super::tile::{Grid, Mat, Tile};
use super::units::Units;
use crate::backend::Write;
use crate::backend::contract::*;

/// Bounds of the number of rows of a forward task. Every task gathers its keys again, so more rows
/// are better. No result depends on this number.
const UNIT: Range<usize> = 64..512;
/// Target number of forward tasks per thread.
const TASKS_PER_THREAD: usize = 6;
/// Query rows (tokens times query heads per key-value head) of a block.
const BLOCK: usize = 64;

/// Layout of a fused row for one key-value head and its query heads.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub head_dim: usize,
    /// Number of query heads of the key-value head.
    pub group: usize,
    /// Number of elements of a fused row.
    pub width: usize,
    /// Offset of the first query of the head in a fused row.
    pub query: usize,
    /// Offset of the key in a fused row.
    pub key: usize,
    /// Offset of the value in a fused row.
    pub value: usize,
}

impl Heads {
    pub fn new(d: &AttentionDims, kv_head: usize) -> Self {
        Self::fused([d.heads, d.kv_heads, d.head_dim], kv_head)
    }

    /// Layout of a row of queries, keys and values.
    pub fn fused([heads, kv_heads, head_dim]: [usize; 3], kv_head: usize) -> Self {
        let group = heads / kv_heads;
        Self {
            head_dim,
            group,
            width: (heads + 2 * kv_heads) * head_dim,
            query: kv_head * group * head_dim,
            key: (heads + kv_head) * head_dim,
            value: (heads + kv_heads + kv_head) * head_dim,
        }
    }

    /// Number of tokens of a query block.
    pub fn block_tokens(&self) -> usize {
        (BLOCK / self.group).max(1)
    }

    /// Copies the queries of the tokens `rows` to `to`, (tokens * group, head_dim).
    pub fn queries16(&self, to: &mut [bf16], qkv: &[bf16], rows: Range<usize>) {
        copy_rows(to, qkv, rows, (self.query, self.group * self.head_dim, self.width));
    }

    /// Copies the queries of the tokens `rows`, times `scale`, to `to`, (tokens * group, head_dim).
    pub fn queries(&self, to: &mut [f32], qkv: &[f32], rows: Range<usize>, scale: f32) {
        let length = self.group * self.head_dim;
        let from = &qkv[rows.start * self.width + self.query..];
        scale_queries(&mut to[..rows.len() * length], from, length, self.width, scale);
    }
}

vectorised! {
    /// Copies the first `length` elements of each row of `width` elements, times `scale`.
    fn scale_queries(to: &mut [f32], from: &[f32], length: usize, width: usize, scale: f32) {
        for row in 0..to.len() / length {
            let (to, from) = (&mut to[row * length..][..length], &from[row * width..][..length]);
            for i in 0..length {
                to[i] = scale * from[i];
            }
        }
    }
}

/// Copies the head at offset `first` of the fused rows to consecutive rows of `to`, starting at
/// `position`.
pub(super) fn copy_head<T: Copy>(
    to: &mut [T],
    qkv: &[T],
    rows: Range<usize>,
    position: usize,
    first: usize,
    h: &Heads,
) {
    copy_rows(&mut to[position * h.head_dim..], qkv, rows, (first, h.head_dim, h.width));
}

/// Part of the batch for one task: the rows `rows`, starting in segment `segment`.
struct Unit {
    segment: usize,
    rows: Range<usize>,
}

/// Splits the rows of the batch into units of `len` rows. A unit holds several short segments or
/// part of a long one.
fn units(segments: &Segments<'_>, len: usize) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut open: Option<Unit> = None;
    for segment in 0..segments.len() {
        let mut rows = segments.rows(segment);
        while !rows.is_empty() {
            let unit = open.get_or_insert(Unit { segment, rows: rows.start..rows.start });
            let taken = (len - unit.rows.len()).min(rows.len());
            rows.start += taken;
            unit.rows.end = rows.start;
            if unit.rows.len() == len {
                units.extend(open.take());
            }
        }
    }
    units.extend(open);
    units
}

pub(super) fn attention_fwd<A: Element>(cpu: &Cpu<A>, a: AttentionFwd<'_, Cpu<A>>) {
    let (d, segments) = (a.dims, Segments::new(&a.tree));
    let wide;
    let qkv = match cpu.dots(a.qkv.slice()) {
        Some(qkv) => Source::Narrow(qkv),
        None => {
            wide = cpu.load_all(a.qkv.slice());
            Source::Wide(&wide)
        }
    };
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let unit = (d.tokens * d.kv_heads / tasks).clamp(UNIT.start, UNIT.end).next_multiple_of(UNIT.start);
    let units = units(&segments, unit);
    if units.is_empty() || d.heads * d.head_dim == 0 {
        return;
    }
    let bounds: Vec<usize> = [units[0].rows.start].into_iter().chain(units.iter().map(|u| u.rows.end)).collect();
    let group = d.heads / d.kv_heads;
    let by_head = |length: usize| (0..=d.kv_heads).map(|i| i * length).collect::<Vec<_>>();
    let o = Grid::new(a.o.into_slice(), d.heads * d.head_dim, bounds.clone(), by_head(group * d.head_dim));
    let lse = Grid::new(a.lse.into_slice(), d.tokens, by_head(group), bounds);
    let capacity = segments.longest_path().next_multiple_of(LANES);
    (0..units.len() * d.kv_heads).into_par_iter().with_max_len(1).for_each(|task| {
        let (unit, kv_head) = (task / d.kv_heads, task % d.kv_heads);
        let (mut o, mut lse) = (cpu.store_tile(o.claim(unit, kv_head), Write::Overwrite), lse.claim(kv_head, unit));
        let mut o = o.tile();
        let unit = &units[unit];
        let heads = Heads::new(&d, kv_head);
        let mut work = Forward::new(cpu, heads, qkv, capacity, Scores::of(d.scale, d.window, d.softcap));
        let mut path = Path::new(segments);
        let mut segment = unit.segment;
        let mut row = unit.rows.start;
        while row < unit.rows.end {
            let own = segments.rows(segment);
            let end = own.end.min(unit.rows.end);
            if row < end {
                let position = path.enter(
                    segment,
                    end,
                    |_| (),
                    |step| {
                        work.join((qkv, &heads), step.rows.clone(), step.position);
                    },
                );
                work.pad(path.len());
                while row < end {
                    let rows = row..end.min(row + work.heads.block_tokens());
                    let out = rows.start - unit.rows.start..rows.end - unit.rows.start;
                    work.block(rows.clone(), position + (rows.start - own.start), &mut o, Some(&mut lse), out);
                    row = rows.end;
                }
            }
            segment += 1;
        }
    });
}

/// Visibility of keys: those of the sliding window, or all keys up to the query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visible {
    window: usize,
    /// Number of keys that a GEMM sums before it adds to the result.
    block: usize,
}

impl Visible {
    pub fn of(window: Option<usize>, narrow: bool) -> Self {
        Self { window: window.unwrap_or(usize::MAX), block: if narrow { product16::DEPTH } else { DEPTH } }
    }

    /// Positions of the keys that a query sees.
    pub fn keys(self, position: usize) -> Range<usize> {
        (position + 1).saturating_sub(self.window)..position + 1
    }

    /// First key position that the GEMMs must cover for a block of queries that starts at `position`.
    pub fn first(self, position: usize) -> usize {
        self.keys(position).start / self.block * self.block
    }
}

/// Scale, window and soft cap of the attention scores.
#[derive(Clone, Copy)]
pub(super) struct Scores {
    scale: f32,
    window: Option<usize>,
    softcap: Option<f32>,
}

impl Scores {
    pub fn of(scale: f64, window: Option<usize>, softcap: Option<f64>) -> Self {
        Self { scale: scale as f32, window, softcap: softcap.map(|cap| cap as f32) }
    }
}

/// Fused rows, or cached keys and values, in the element type that the GEMMs read.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Wide(&'a [f32]),
    Narrow(&'a [bf16]),
}

/// Operands of the GEMMs. Keys and values are (capacity, head_dim), queries (block, head_dim).
enum Operands<'a> {
    Wide {
        qkv: &'a [f32],
        keys_t: Panels<'a>,
        values: Scratch<'a>,
        queries: Scratch<'a>,
    },
    Narrow {
        qkv: &'a [bf16],
        keys: Room<'a, bf16>,
        values: Room<'a, bf16>,
        queries: Room<'a, bf16>,
        /// (block, keys), with a row stride of [`score_stride`]
        probabilities: Room<'a, bf16>,
    },
}

/// Workspace of one forward task.
pub(super) struct Forward<'a> {
    pub heads: Heads,
    units: Units,
    form: Scores,
    visible: Visible,
    operands: Operands<'a>,
    /// (block, keys), with a row stride of [`score_stride`]
    scores: Scratch<'a>,
    /// (block, head_dim)
    out: Scratch<'a>,
    /// (block, 2) largest score and sum of exponentials of each row
    stats: Scratch<'a>,
    /// (block) reciprocal of the sum of exponentials
    inverse: Scratch<'a>,
}

impl<'a> Forward<'a> {
    /// Workspace for paths of up to `capacity` rows, a multiple of [`LANES`].
    pub fn new<A: Element>(cpu: &'a Cpu<A>, heads: Heads, qkv: Source<'a>, capacity: usize, form: Scores) -> Self {
        let block = heads.block_tokens() * heads.group;
        let take = |len| cpu.scratch.take(len);
        let operands = match qkv {
            Source::Wide(qkv) => Operands::Wide {
                qkv,
                keys_t: Panels::new(cpu, heads.head_dim, capacity),
                values: take(heads.head_dim * capacity),
                queries: take(block * heads.head_dim),
            },
            Source::Narrow(qkv) => Operands::Narrow {
                qkv,
                keys: cpu.room(heads.head_dim * capacity),
                values: cpu.room(heads.head_dim * capacity),
                queries: cpu.room(block * heads.head_dim),
                probabilities: cpu.room(block * score_stride(capacity)),
            },
        };
        Self {
            heads,
            units: cpu.units,
            form,
            visible: Visible::of(form.window, matches!(qkv, Source::Narrow(_))),
            operands,
            scores: take(block * score_stride(capacity)),
            out: take(block * heads.head_dim),
            stats: take(2 * block),
            inverse: take(block),
        }
    }

    /// Copies the keys and values of `rows` of a buffer with the layout `h` to the path, from `position` on.
    pub fn join(&mut self, (from, h): (Source<'_>, &Heads), rows: Range<usize>, position: usize) {
        match (&mut self.operands, from) {
            (Operands::Wide { keys_t, values, .. }, Source::Wide(from)) => {
                keys_t.join(from, rows.clone(), position, h.key, h);
                copy_head(values, from, rows, position, h.value, h);
            }
            (Operands::Narrow { keys, values, .. }, Source::Narrow(from)) => {
                copy_head(keys, from, rows.clone(), position, h.key, h);
                copy_head(values, from, rows, position, h.value, h);
            }
            // Keys and queries belong to one backend, whose element type determines the variant.
            _ => unreachable!("keys and queries have one form"),
        }
    }

    /// Zeroes the values after the path of `len` rows, up to the next multiple of [`LANES`].
    pub fn pad(&mut self, len: usize) {
        let rows = len * self.heads.head_dim..len.next_multiple_of(LANES) * self.heads.head_dim;
        match &mut self.operands {
            Operands::Wide { values, .. } => values[rows].fill(0.0),
            Operands::Narrow { values, .. } => values[rows].fill(bf16::ZERO),
        }
    }

    /// Computes one block of queries: the tokens `rows`, at consecutive positions starting at
    /// `position`. Writes to the rows `out` of the tiles.
    pub fn block(
        &mut self,
        rows: Range<usize>,
        position: usize,
        o: &mut Tile<'_>,
        mut lse: Option<&mut Tile<'_>>,
        out: Range<usize>,
    ) {
        let Heads { head_dim, group, .. } = self.heads;
        let count = rows.len() * group;
        let first = self.visible.first(position);
        let path = first..(position + rows.len()).next_multiple_of(LANES);
        let keys = path.len();
        let stride = score_stride(keys);
        match &mut self.operands {
            Operands::Wide { qkv, keys_t, queries, .. } => {
                self.heads.queries(queries, qkv, rows, self.form.scale);
                keys_t.product(&mut self.scores, Mat::new(queries, count, head_dim, head_dim), path);
            }
            Operands::Narrow { qkv, keys: rows_of_keys, queries, .. } => {
                self.heads.queries16(queries, qkv, rows);
                let keys = Mat::new(&rows_of_keys[first * head_dim..], keys, head_dim, head_dim);
                let queries = Mat::new(&queries[..], count, head_dim, head_dim);
                let mut scores = Tile::new(&mut self.scores, count, keys.rows, stride);
                product16(self.units, &mut scores, queries, keys.t(), Write::Overwrite);
            }
        }
        let (scale, rounded) = match &mut self.operands {
            Operands::Wide { .. } => (None, None),
            Operands::Narrow { probabilities, .. } => (Some(self.form.scale), Some(&mut probabilities[..])),
        };
        let (visible, softcap) = (self.visible, self.form.softcap);
        let form = Rows { count, group, position, first, keys, stride, visible, scale, softcap };
        let (stats, _) = self.stats.as_chunks_mut();
        softmax_rows(&mut self.scores, rounded, stats, form);
        for (r, ([largest, sum], inverse)) in stats.iter().zip(&mut self.inverse[..]).enumerate().take(count) {
            *inverse = 1.0 / sum;
            if let Some(lse) = &mut lse {
                lse.row(r % group)[out.start + r / group] = logsumexp(*largest, *sum);
            }
        }
        let mut sums = Tile::new(&mut self.out, count, head_dim, head_dim);
        match &self.operands {
            Operands::Wide { values, .. } => {
                let values = Mat::new(&values[first * head_dim..], keys, head_dim, head_dim);
                matmul(&mut sums, Mat::new(&self.scores, count, keys, stride), values, Write::Overwrite);
            }
            Operands::Narrow { values, probabilities, .. } => {
                let values = Mat::new(&values[first * head_dim..], keys, head_dim, head_dim);
                let probabilities = Mat::new(&probabilities[..], count, keys, stride);
                product16(self.units, &mut sums, probabilities, values, Write::Overwrite);
            }
        }
        scale_heads(o, out.start, &self.out[..count * head_dim], &self.inverse[..count], out.len());
    }
}
