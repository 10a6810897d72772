//! Attention of new tokens over a cache of keys and values.
//!
//! ```text
//! copy the new keys and values to their rows of the cache
//! for each unit of new tokens of a sequence and each key-value head, in parallel:
//!     few queries, with AVX-512 and in f32: read keys and values in place
//!     else: gather the keys (transposed) and values of the path up to the unit's last token
//!     compute the blocks of queries as in `attention`
//! ```
//!
//! The arithmetic is the same as in `attention`, so the output of a token has the same bits as in a batch of
//! whole sequences, except for the sign of a zero. The bits do not depend on the spans of the token's path, on
//! the other sequences or on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
use super::attention::{Forward, Heads, Scores, Source, Visible};
use super::element::Element;
use super::simd::LANES;
use super::tile::{Grid, Tile};
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

/// Maximum number of query rows (tokens times query heads per key-value head) that read the cache in place.
#[cfg(target_arch = "x86_64")]
const FEW_QUERIES: usize = 12;

/// Whether the queries of a unit read keys and values in place, in the cache. The choice does not change the
/// bits of the results.
fn reads_in_place(queries: usize, head_dim: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    return queries <= FEW_QUERIES
        && head_dim <= super::matmul::DEPTH
        && super::simd::level() == super::simd::Level::Avx512;
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

pub(super) fn attention_cached_fwd<A: Element>(cpu: &Cpu<A>, a: AttentionCachedFwd<'_, Cpu<A>>) {
    attention(cpu, a, reads_in_place);
}

/// Computes [`attention_cached_fwd`]. `in_place` decides, from the number of query rows of a unit and the
/// head dimension, whether the unit may read the cache in place.
fn attention<A: Element>(cpu: &Cpu<A>, a: AttentionCachedFwd<'_, Cpu<A>>, in_place: fn(usize, usize) -> bool) {
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
        let task = Task { d: &d, tables: &tables, unit: &units[unit], kv_head, cache, qkv };
        match (qkv, A::exact(cache)) {
            (Source::Wide(qkv), Some(cache)) if in_place(units[unit].rows.len() * group, d.head_dim) => {
                task.in_place(cpu, qkv, cache, &mut o.tile());
            }
            _ => task.gathered(cpu, &mut o.tile()),
        }
    });
}

/// Attention of a unit's tokens with one key-value head.
struct Task<'a, A> {
    d: &'a AttentionCachedDims,
    tables: &'a Tables<'a>,
    unit: &'a Unit,
    kv_head: usize,
    cache: &'a [A],
    qkv: Source<'a>,
}

impl<A: Element> Task<'_, A> {
    /// Position of the unit's first token. Rows of the path after the unit's last token are not visible.
    fn first(&self) -> usize {
        let path: usize = self.tables.spans(self.unit.sequence).map(|span| span.len()).sum();
        path + self.unit.rows.start - self.tables.tokens(self.unit.sequence).end
    }

    fn heads(&self) -> Heads {
        Heads::fused([self.d.heads, self.d.kv_heads, self.d.head_dim], self.kv_head)
    }

    /// Layout of a row of the cache.
    fn stored(&self) -> Heads {
        let (d, kv_head) = (self.d, self.kv_head);
        let (key, value) = (kv_head * d.head_dim, (d.kv_heads + kv_head) * d.head_dim);
        Heads { width: d.cache_width(), key, value, ..self.heads() }
    }

    /// Calls `visit` for each span, with its rows that a query of the unit may see and the position of the
    /// first of these rows.
    fn visit_spans(&self, visible: Visible, mut visit: impl FnMut(Range<usize>, usize)) {
        let first = self.first();
        let (hidden, end) = (visible.first(first), first + self.unit.rows.len());
        let mut position = 0;
        for span in self.tables.spans(self.unit.sequence) {
            let span = span.start..span.end.min(span.start + end - position);
            let skipped = hidden.saturating_sub(position).min(span.len());
            if skipped < span.len() {
                visit(span.start + skipped..span.end, position + skipped);
            }
            position += span.len();
        }
    }

    /// Copies the keys (transposed) and values of the path, then computes blocks of queries.
    fn gathered(&self, cpu: &Cpu<A>, o: &mut Tile<'_>) {
        let (d, cache, stored, rows) = (self.d, self.cache, self.stored(), &self.unit.rows);
        let (first, heads) = (self.first(), self.heads());
        let end = first + rows.len();
        let visible = Visible::of(d.window, matches!(self.qkv, Source::Narrow(_)));
        let form = Scores::of(d.scale, d.window, d.softcap);
        let mut work = Forward::new(cpu, heads, self.qkv, end.next_multiple_of(LANES), form);
        self.visit_spans(visible, |rows, position| match (cpu.dots(cache), A::exact(cache)) {
            (Some(cache), _) => work.join((Source::Narrow(cache), &stored), rows, position),
            (_, Some(cache)) => work.join((Source::Wide(cache), &stored), rows, position),
            (None, None) => {
                // Key and value of each row, in f32.
                let own = Heads { width: 2 * d.head_dim, key: 0, value: d.head_dim, ..heads };
                let mut copy = cpu.scratch.take(rows.len() * own.width);
                for (to, row) in copy.chunks_exact_mut(own.width).zip(rows.clone()) {
                    let (key, value) = to.split_at_mut(d.head_dim);
                    A::widen(key, &cache[row * stored.width + stored.key..][..d.head_dim]);
                    A::widen(value, &cache[row * stored.width + stored.value..][..d.head_dim]);
                }
                work.join((Source::Wide(&copy), &own), 0..rows.len(), position);
            }
        });
        work.pad(end);
        let mut row = rows.start;
        while row < rows.end {
            let block = row..rows.end.min(row + heads.block_tokens());
            let out = block.start - rows.start..block.end - rows.start;
            work.block(block.clone(), first + out.start, o, None, out);
            row = block.end;
        }
    }

    /// Computes a unit of at most `FEW_QUERIES` query rows, which read the cache in place.
    #[cfg(target_arch = "x86_64")]
    fn in_place(&self, cpu: &Cpu<A>, qkv: &[f32], cache: &[f32], o: &mut Tile<'_>) {
        use super::attention_softmax::{Rows, softmax_rows};
        use super::avx512_cached::{CachedHead, Layout, outputs, scores};
        use super::panels::score_stride;
        use super::rows::scale_heads;

        let (d, tokens) = (self.d, self.unit.rows.clone());
        let (position, heads, stored) = (self.first(), self.heads(), self.stored());
        let visible = Visible::of(d.window, false);
        let (first, group) = (visible.first(position), heads.group);
        let count = tokens.len() * group;
        let keys = (position + tokens.len()).next_multiple_of(LANES) - first;
        let layout = Layout { rows: count, stride: score_stride(keys) };
        let mut queries = cpu.scratch.take(count * d.head_dim);
        let mut work = cpu.scratch.take(count * layout.stride);
        let mut out = cpu.scratch.take(count * d.head_dim);
        let head = |offset: usize| CachedHead { data: &cache[offset..], width: stored.width, head_dim: d.head_dim };
        let mut spans = Vec::new();
        assert!(count <= FEW_QUERIES && super::simd::level() == super::simd::Level::Avx512);
        heads.queries(&mut queries, qkv, tokens.clone(), d.scale as f32);
        self.visit_spans(visible, |rows, at| {
            // SAFETY: the assertion above has checked that the processor has AVX-512.
            unsafe { scores(&mut work, layout, at - first, &queries, head(stored.key), rows.clone()) }
            spans.push(rows);
        });
        let mut stats = [[0.0; 2]; FEW_QUERIES];
        let (stride, softcap) = (layout.stride, d.softcap.map(|cap| cap as f32));
        let rows = Rows { count, group, position, first, keys, stride, visible, scale: None, softcap };
        softmax_rows(&mut work, None, &mut stats, rows);
        // SAFETY: the assertion above has checked that the processor has AVX-512.
        unsafe { outputs(&mut out, &work, layout, keys, head(stored.value), &spans) }
        let inverse = stats.map(|[_, sum]| 1.0 / sum);
        scale_heads(o, 0, &out, &inverse[..count], tokens.len());
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn in_place(&self, cpu: &Cpu<A>, _: &[f32], _: &[f32], o: &mut Tile<'_>) {
        self.gathered(cpu, o);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::backend::{View, ViewMut};

    fn numbers(len: usize, factor: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * factor + 17) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    /// Runs the op for sequences with these spans and numbers of new tokens. Returns the bits of the output.
    fn run(
        sequences: &[(&[Range<usize>], usize)],
        [heads, kv_heads, head_dim]: [usize; 3],
        (window, softcap): (Option<usize>, Option<f64>),
        in_place: fn(usize, usize) -> bool,
    ) -> Vec<u32> {
        const SLOTS: usize = 1700;
        let (mut starts, mut offsets, mut spans, mut slots) = (vec![0], vec![0], Vec::new(), Vec::new());
        for (path, tokens) in sequences {
            starts.push(starts[starts.len() - 1] + *tokens as i32);
            spans.extend(path.iter().flat_map(|span| [span.start as i32, span.end as i32]));
            offsets.push(spans.len() as i32 / 2);
            let rows: Vec<usize> = path.iter().cloned().flatten().collect();
            slots.extend(rows[rows.len() - tokens..].iter().map(|&row| row as i32));
        }
        let tokens = slots.len();
        let dims = AttentionCachedDims {
            tokens,
            heads,
            kv_heads,
            head_dim,
            sequences: sequences.len(),
            spans: spans.len() / 2,
            slots: SLOTS,
            pairs: 0,
            keys: 0,
            longest_path: 0,
            scale: 0.3,
            window,
            softcap,
        };
        let qkv = numbers(tokens * dims.fused_heads() * head_dim, 7919);
        // Every fifth cached value is tiny, so that some products underflow to -0.
        let mut cache = numbers(SLOTS * dims.cache_width(), 104_729);
        cache.iter_mut().step_by(5).for_each(|x| *x *= 1e-38);
        let mut o = vec![0.0f32; tokens * heads * head_dim];
        let (cpu, stored, results) = (Cpu::new(), cache.len(), o.len());
        let call = AttentionCachedFwd::<Cpu> {
            dims,
            qkv: View::first(&qkv, qkv.len()),
            paths: Paths {
                starts: View::first(&starts, starts.len()),
                span_offsets: View::first(&offsets, offsets.len()),
                spans: View::first(&spans, spans.len()),
                slots: View::first(&slots, slots.len()),
            },
            cache: ViewMut::first(&mut cache, stored),
            o: ViewMut::first(&mut o, results),
        };
        attention(&cpu, call, in_place);
        o.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn queries_that_read_the_cache_in_place_have_the_bits_of_gathered_ones() {
        if super::super::simd::level() != super::super::simd::Level::Avx512 {
            return;
        }
        let sequences: [(&[Range<usize>], usize); 9] = [
            (&[0..1, 1..1], 1),
            (&[39..39, 2..9], 0),
            (&[38..38, 11..14, 15..15], 1),
            (std::slice::from_ref(&(20..37)), 1),
            (&[40..51, 60..65], 2),
            (&[100..355, 355..356], 1),
            (&[40..51, 400..910, 911..912], 1),
            (std::slice::from_ref(&(400..912)), 1),
            (&[40..51, 400..910, 920..1630], 2),
        ];
        for heads in [[3, 1, 64], [2, 2, 16], [6, 1, 20], [12, 1, 80], [1, 1, 130], [8, 1, 8], [14, 2, 64]] {
            for form in [(None, None), (Some(1), None), (Some(30), None), (Some(700), Some(0.9))] {
                let found = run(&sequences, heads, form, reads_in_place);
                assert_eq!(found, run(&sequences, heads, form, |_, _| false), "{heads:?}, {form:?}");
                assert!(found.iter().any(|x| f32::from_bits(*x).abs() > 0.01), "{heads:?}, {form:?}");
            }
        }
    }
}
