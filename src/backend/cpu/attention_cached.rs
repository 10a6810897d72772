//! Attention of new tokens over a cache of keys and values.
//!
//! ```text
//! copy the new keys and values to their rows of the cache
//! for each unit of new tokens of a sequence and each key-value head, in parallel:
//!     gather the keys (transposed) and values of the path up to the unit's last token
//!     the blocks of queries as in `attention`
//! ```
//!
//! The arithmetic is the same as in `attention`, so the output of a token has the same bits as in a batch of
//! whole sequences. The bits do not depend on the spans of the token's path, on the other sequences or on the
//! number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::attention::{Forward, Heads, Scores, Source, Visible};
use super::element::Element;
use super::simd::LANES;
use super::tile::Grid;
use crate::backend::Write;
use crate::backend::contract::*;

/// Maximum number of new tokens of a task. Every task gathers its keys again. No result depends on this
/// number.
const UNIT: usize = 256;

/// New tokens of a sequence, for one task.
struct Unit {
    sequence: usize,
    rows: Range<usize>,
}

/// The tables of [`Paths`] on the host.
struct Tables<'a> {
    starts: &'a [i32],
    offsets: &'a [i32],
    spans: &'a [i32],
}

impl Tables<'_> {
    fn tokens(&self, sequence: usize) -> Range<usize> {
        self.starts[sequence] as usize..self.starts[sequence + 1] as usize
    }

    /// Cache rows of each span of a sequence's path.
    fn spans(&self, sequence: usize) -> impl Iterator<Item = Range<usize>> {
        let spans = self.offsets[sequence] as usize..self.offsets[sequence + 1] as usize;
        let spans = self.spans[2 * spans.start..2 * spans.end].chunks_exact(2);
        spans.map(|span| span[0] as usize..span[1] as usize)
    }

    fn units(&self) -> Vec<Unit> {
        let of_sequence = |sequence: usize| {
            let tokens = self.tokens(sequence);
            let end = tokens.end;
            tokens.step_by(UNIT).map(move |row| Unit { sequence, rows: row..end.min(row + UNIT) })
        };
        (0..self.starts.len() - 1).flat_map(of_sequence).collect()
    }
}

pub(super) fn attention_cached_fwd<A: Element>(cpu: &Cpu<A>, a: AttentionCachedFwd<'_, Cpu<A>>) {
    let (d, qkv, cache) = (a.dims, a.qkv.slice(), a.cache.into_slice());
    if d.tokens == 0 || d.heads * d.head_dim == 0 {
        return;
    }
    let tables =
        Tables { starts: a.paths.starts.slice(), offsets: a.paths.span_offsets.slice(), spans: a.paths.spans.slice() };
    let (width, fused) = (d.cache_width(), d.fused_heads() * d.head_dim);
    for (row, &slot) in qkv.chunks_exact(fused).zip(a.paths.slots.slice()) {
        cache[slot as usize * width..][..width].copy_from_slice(&row[fused - width..]);
    }
    let wide;
    let (cache, qkv) = match cpu.dots(qkv) {
        Some(qkv) => (&*cache, Source::Narrow(qkv)),
        None => {
            wide = cpu.load_all(qkv);
            (&*cache, Source::Wide(&wide))
        }
    };
    let units = tables.units();
    let bounds = [0].into_iter().chain(units.iter().map(|unit| unit.rows.end)).collect();
    let group = d.heads / d.kv_heads;
    let by_head = (0..=d.kv_heads).map(|i| i * group * d.head_dim).collect();
    let o = Grid::new(a.o.into_slice(), d.heads * d.head_dim, bounds, by_head);
    (0..units.len() * d.kv_heads).into_par_iter().with_max_len(1).for_each(|task| {
        let (unit, kv_head) = (task / d.kv_heads, task % d.kv_heads);
        let mut o = cpu.store_tile(o.claim(unit, kv_head), Write::Overwrite);
        let mut o = o.tile();
        let Unit { sequence, rows } = &units[unit];
        let path: usize = tables.spans(*sequence).map(|span| span.len()).sum();
        // Positions of the unit's tokens; later rows of the path are not visible.
        let first = path + rows.start - tables.tokens(*sequence).end;
        let end = first + rows.len();
        let heads = Heads::fused([d.heads, d.kv_heads, d.head_dim], kv_head);
        let stored = Heads { width, key: kv_head * d.head_dim, value: (d.kv_heads + kv_head) * d.head_dim, ..heads };
        let visible = Visible::of(d.window, matches!(qkv, Source::Narrow(_)));
        let mut work =
            Forward::new(cpu, heads, qkv, end.next_multiple_of(LANES), Scores::of(d.scale, d.window, d.softcap));
        let mut position = 0;
        for span in tables.spans(*sequence) {
            let span = span.start..span.end.min(span.start + end - position);
            // No query of the unit sees the first `hidden` rows of the span.
            let hidden = visible.first(first).saturating_sub(position).min(span.len());
            let len = span.len();
            let rows = span.start + hidden..span.end;
            match (cpu.dots(cache), A::exact(cache)) {
                (Some(cache), _) => work.join((Source::Narrow(cache), &stored), rows, position + hidden),
                (_, Some(cache)) => work.join((Source::Wide(cache), &stored), rows, position + hidden),
                (None, None) => {
                    // Key and value of each row, in f32.
                    let own = Heads { width: 2 * d.head_dim, key: 0, value: d.head_dim, ..heads };
                    let mut copy = cpu.scratch.take(rows.len() * own.width);
                    for (to, row) in copy.chunks_exact_mut(own.width).zip(rows.clone()) {
                        let (key, value) = to.split_at_mut(d.head_dim);
                        A::widen(key, &cache[row * width + stored.key..][..d.head_dim]);
                        A::widen(value, &cache[row * width + stored.value..][..d.head_dim]);
                    }
                    work.join((Source::Wide(&copy), &own), 0..rows.len(), position + hidden);
                }
            }
            position += len;
        }
        work.pad(end);
        let mut row = rows.start;
        while row < rows.end {
            let block = row..rows.end.min(row + heads.block_tokens());
            let out = block.start - rows.start..block.end - rows.start;
            work.block(block.clone(), first + out.start, &mut o, None, out);
            row = block.end;
        }
    });
}
