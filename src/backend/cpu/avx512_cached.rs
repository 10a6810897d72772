//! Products of few queries with the keys and values of a cache, with AVX-512. Keys and values are read
//! where the cache has them, because a copy would cost more than the products.
//!
//! ```text
//! scores:  for each 16 keys: transpose 16 x 16 elements in registers, one lane per key
//!              for each element, in order: sum = fma(query, key, sum)
//! output:  for each key, in order: sum = fma(probability, value, sum), one lane per element
//! ```
//!
//! Every sum has the order of `matmul`, so the results have the bits of products of gathered keys and values.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{mask, transposed};
use super::matmul::DEPTH;
use super::simd::LANES;

/// Maximum number of rows of queries that share a pass over the cache.
const ROWS: usize = 6;
/// Vectors of a value that a pass over the cache reads. With [`ROWS`], the sums occupy 24 registers.
const VECTORS: usize = 4;
/// Rows of the cache by which sums of values prefetch ahead.
const AHEAD: usize = 8;

/// Keys or values of one head in a cache.
#[derive(Clone, Copy)]
pub(super) struct CachedHead<'a> {
    /// The cache, from the head's first element on.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub width: usize,
    pub head_dim: usize,
}

impl CachedHead<'_> {
    /// Panics if the rows before `end` are not inside the cache.
    fn check(&self, end: usize) {
        assert!(self.head_dim <= self.width, "head of {} elements", self.head_dim);
        let used = end.saturating_sub(1).checked_mul(self.width).and_then(|start| start.checked_add(self.head_dim));
        assert!(end == 0 || used.is_some_and(|used| used <= self.data.len()), "row outside the cache");
    }
}

/// Rows of scores or probabilities: row r starts at `data[r * stride]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub rows: usize,
    pub stride: usize,
}

impl Layout {
    /// Panics if the first `columns` columns of all rows are not inside a matrix of `len` elements.
    fn check(self, columns: usize, len: usize) {
        let last = self.rows.saturating_sub(1).checked_mul(self.stride).and_then(|start| start.checked_add(columns));
        assert!(columns <= self.stride && last.is_some_and(|end| end <= len), "{self:?}: {columns} columns, {len}");
    }
}

/// Writes the scores of the keys `rows` to the columns from `column` on. `queries` is (layout.rows, head_dim).
/// A head has at most [`DEPTH`] elements, because longer sums have several blocks.
#[target_feature(enable = "avx512f")]
pub(super) fn scores(
    scores: &mut [f32],
    layout: Layout,
    column: usize,
    queries: &[f32],
    keys: CachedHead<'_>,
    rows: Range<usize>,
) {
    keys.check(rows.end);
    if rows.is_empty() || layout.rows == 0 {
        return;
    }
    assert!(queries.len() >= layout.rows * keys.head_dim, "queries of {} elements", queries.len());
    assert!(keys.head_dim <= DEPTH, "head of {} elements", keys.head_dim);
    layout.check(column + rows.len(), scores.len());
    for at in (0..rows.len()).step_by(LANES) {
        let lanes = LANES.min(rows.len() - at);
        let key = keys.data.as_ptr().wrapping_add((rows.start + at) * keys.width);
        for first in (0..layout.rows).step_by(ROWS) {
            let to = scores.as_mut_ptr().wrapping_add(first * layout.stride + column + at);
            let query = queries.as_ptr().wrapping_add(first * keys.head_dim);
            macro_rules! choose {
                ($($count:literal)*) => {
                    match ROWS.min(layout.rows - first) {
                        // SAFETY: the assertions above hold for every row and lane of the block.
                        $($count => unsafe {
                            score_block::<$count>(to, layout.stride, query, (key, keys.width), [keys.head_dim, lanes])
                        },)*
                        _ => unreachable!("a pass has at most {ROWS} rows"),
                    }
                };
            }
            choose!(1 2 3 4 5 6);
        }
    }
}

/// Scores of `R` queries and of `lanes` keys, which start at `key` and are `width` elements apart.
///
/// # Safety
/// Queries, keys and scores are inside their allocations.
#[target_feature(enable = "avx512f")]
// The compiler may not inline an iterator over `sums`, which would keep the sums in memory.
#[allow(clippy::needless_range_loop)]
unsafe fn score_block<const R: usize>(
    to: *mut f32,
    stride: usize,
    query: *const f32,
    (key, width): (*const f32, usize),
    [head_dim, lanes]: [usize; 2],
) {
    let mut sums = [_mm512_setzero_ps(); R];
    // SAFETY: the caller guarantees the bounds; masks and counts keep loads and stores inside them.
    unsafe {
        for d in (0..head_dim).step_by(LANES) {
            let count = LANES.min(head_dim - d);
            let (key, query) = (key.add(d), query.add(d));
            if lanes == LANES && count == LANES {
                macro_rules! lines {
                    ($($lane:literal)*) => {
                        [$({
                            let line = key.add($lane * width);
                            _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(LANES * width).cast());
                            _mm512_loadu_ps(line)
                        }),*]
                    };
                }
                let square = transposed(lines!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15));
                for i in 0..LANES {
                    for r in 0..R {
                        sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(*query.add(r * head_dim + i)), square[i], sums[r]);
                    }
                }
                continue;
            }
            let mut lines = [_mm512_setzero_ps(); LANES];
            for (lane, line) in lines.iter_mut().enumerate().take(lanes) {
                *line = _mm512_maskz_loadu_ps(mask(count), key.add(lane * width));
            }
            let square = transposed(lines);
            for (i, line) in square.iter().enumerate().take(count) {
                for r in 0..R {
                    sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(*query.add(r * head_dim + i)), *line, sums[r]);
                }
            }
        }
        for r in 0..R {
            _mm512_mask_storeu_ps(to.add(r * stride), mask(lanes), sums[r]);
        }
    }
}

/// Writes the sums of the values of the rows `spans`, times the probabilities, to `out`, (rows, head_dim).
/// Column c of the probabilities belongs to row c of the spans. The sums have the bits of a product with
/// `padded` columns, of which those after the spans are 0.
#[target_feature(enable = "avx512f")]
pub(super) fn outputs(
    out: &mut [f32],
    probabilities: &[f32],
    layout: Layout,
    padded: usize,
    values: CachedHead<'_>,
    spans: &[Range<usize>],
) {
    let rows: usize = spans.iter().map(Range::len).sum();
    values.check(spans.iter().map(|span| span.end).max().unwrap_or(0));
    if rows == 0 || layout.rows == 0 {
        out[..layout.rows * values.head_dim].fill(0.0);
        return;
    }
    assert!(rows <= padded, "{rows} rows in {padded} columns");
    layout.check(padded, probabilities.len());
    assert!(out.len() >= layout.rows * values.head_dim, "outputs of {} elements", out.len());
    let columns = Columns { spans, padding: padded > rows };
    for (first, d) in
        (0..layout.rows).step_by(ROWS).flat_map(|r| (0..values.head_dim).step_by(VECTORS * LANES).map(move |d| (r, d)))
    {
        let to = out.as_mut_ptr().wrapping_add(first * values.head_dim + d);
        let probability = probabilities.as_ptr().wrapping_add(first * layout.stride);
        let value = CachedHead { data: &values.data[d..], ..values };
        macro_rules! choose {
            ($($count:literal)*) => {
                match ROWS.min(layout.rows - first) {
                    // SAFETY: the assertions above hold for every row and element of the block.
                    $($count => unsafe {
                        output_block::<$count>(to, (probability, layout.stride), value, values.head_dim - d, columns)
                    },)*
                    _ => unreachable!("a pass has at most {ROWS} rows"),
                }
            };
        }
        choose!(1 2 3 4 5 6);
    }
}

/// Columns of the probabilities: the rows of a cache to which they belong, and whether columns of zeros follow.
#[derive(Clone, Copy)]
struct Columns<'a> {
    spans: &'a [Range<usize>],
    padding: bool,
}

/// Sums of `R` rows and of up to `VECTORS` vectors; `left` elements of the head remain.
///
/// # Safety
/// Outputs, probabilities and the rows of the spans are inside their allocations.
#[target_feature(enable = "avx512f")]
// The compiler may not inline an iterator over `sums`, which would keep the sums in memory.
#[allow(clippy::needless_range_loop)]
unsafe fn output_block<const R: usize>(
    to: *mut f32,
    (probability, stride): (*const f32, usize),
    values: CachedHead<'_>,
    left: usize,
    columns: Columns<'_>,
) {
    let mut masks: [__mmask16; VECTORS] = [0; VECTORS];
    for v in 0..VECTORS {
        masks[v] = mask(left.saturating_sub(v * LANES));
    }
    let mut sums = [[_mm512_setzero_ps(); VECTORS]; R];
    let mut column = 0;
    // SAFETY: the caller guarantees the bounds; the masks keep loads and stores inside the head.
    unsafe {
        for span in columns.spans {
            for row in span.start..span.end {
                if column > 0 && column % DEPTH == 0 {
                    flush(to, &mut sums, masks, values.head_dim, column > DEPTH);
                }
                let line = values.data.as_ptr().wrapping_add(row * values.width);
                let mut value = [_mm512_setzero_ps(); VECTORS];
                for v in 0..VECTORS {
                    let line = line.wrapping_add(v * LANES);
                    _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(AHEAD * values.width).cast());
                    value[v] = _mm512_maskz_loadu_ps(masks[v], line);
                }
                for r in 0..R {
                    let factor = _mm512_set1_ps(*probability.add(r * stride + column));
                    for v in 0..VECTORS {
                        sums[r][v] = _mm512_fmadd_ps(factor, value[v], sums[r][v]);
                    }
                }
                column += 1;
            }
        }
        if columns.padding {
            // What the columns of zeros add: -0 becomes 0.
            for r in 0..R {
                for v in 0..VECTORS {
                    sums[r][v] = _mm512_add_ps(sums[r][v], _mm512_setzero_ps());
                }
            }
        }
        flush(to, &mut sums, masks, values.head_dim, column > DEPTH);
    }
}

/// Stores the sums of a block of columns to `to`, or adds them to what `to` holds, and resets the sums to 0.
///
/// # Safety
/// The rows of `to` are inside their allocation where the masks allow stores.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(clippy::needless_range_loop)]
unsafe fn flush<const R: usize>(
    to: *mut f32,
    sums: &mut [[__m512; VECTORS]; R],
    masks: [__mmask16; VECTORS],
    stride: usize,
    add: bool,
) {
    for r in 0..R {
        for v in 0..VECTORS {
            let to = to.wrapping_add(r * stride + v * LANES);
            // SAFETY: the caller guarantees the bounds of the lanes that the masks select.
            unsafe {
                let mut sum = sums[r][v];
                if add {
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[v], to), sum);
                }
                _mm512_mask_storeu_ps(to, masks[v], sum);
            }
            sums[r][v] = _mm512_setzero_ps();
        }
    }
}
