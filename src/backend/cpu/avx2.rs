//! GEMM of one tile with AVX2 and FMA, for processors without AVX-512.
//!
//! ```text
//! left operand: in place, or packed by columns in strips of at most 6 rows
//! for each panel of 16 columns of the right operand, packed unless few rows use it:
//!     for each strip:
//!         6 x 2 registers of sums;  for k, in order: sum = fma(a[k], b[k], sum)
//!         C = sum, or C = C + sum
//! ```
//!
//! Each lane of the 12 registers of sums is one element of C. So every element is summed in the order of k,
//! as everywhere in `matmul`. The 12 sums, 2 vectors of the right operand and one broadcast element use 15 of
//! the 16 registers.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::avx512::{Operand, Target};
use super::simd::{SQUARE, transpose_avx2};
use super::tile::apart;

/// Elements of a register.
const LANES: usize = 8;
/// Maximum number of rows of a strip.
const ROWS: usize = 6;
/// Number of columns of a panel.
const PANEL: usize = 2 * LANES;
/// Elements of a cache line.
const LINE: usize = 16;
/// Minimum number of strips for which a right operand with contiguous rows is packed.
const PACK_STRIPS: usize = 4;
/// Minimum number of panels for which a left operand with contiguous columns is packed.
const PACK_PANELS: usize = 3;

thread_local! {
    /// Packed left operand, and a packed panel of the right one. Both grow to the largest tile and depth of
    /// the thread.
    static PACKED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `c (+)= a b` for (m, depth) by (depth, n).
///
/// # Safety
/// The processor has AVX2 and FMA. Every element that the sizes and strides address lies inside one
/// allocation, and `c` overlaps neither operand.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn gemm([m, n, depth]: [usize; 3], c: Target, a: Operand, b: Operand) {
    if m * n * depth == 0 {
        return;
    }
    // `take` avoids a closure, which would be compiled without the vector instructions of this function.
    let [mut left, mut right] = PACKED.take();
    let strips = m.div_ceil(ROWS);
    // Strips of about equal height.
    let height = m.div_ceil(strips);
    reserve(&mut right, PANEL * depth.next_multiple_of(SQUARE));
    // SAFETY: the caller guarantees the bounds of the operands; the packed ones have the lengths set here.
    unsafe {
        let (a, strip) = place_left(&mut left, a, [m, n, depth], height);
        for j in (0..n).step_by(PANEL) {
            let cols = PANEL.min(n - j);
            let panel = if b.col == 1 && cols == PANEL && strips < PACK_STRIPS {
                b.at(0, j)
            } else {
                pack_right(right.as_mut_ptr(), b.at(0, j), depth, cols);
                Operand { data: right.as_ptr(), row: PANEL, col: 1 }
            };
            for i in (0..m).step_by(height) {
                let c = Target { data: c.data.wrapping_add(i * c.stride + j), ..c };
                let a = Operand { data: a.data.wrapping_add(i / height * strip), ..a };
                strip_by_panel([height.min(m - i), cols, depth], c, a, panel);
            }
        }
    }
    PACKED.set([left, right]);
}

fn reserve(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// Returns the left operand in the layout that [`block`] reads, and the number of elements from one strip to
/// the next.
#[target_feature(enable = "avx2,fma")]
unsafe fn place_left(left: &mut Vec<f32>, a: Operand, [m, n, depth]: [usize; 3], height: usize) -> (Operand, usize) {
    if a.col == 1 || n < PACK_PANELS * PANEL {
        return (a, height * a.row);
    }
    // The last vector store of a strip extends past its rows.
    let strip = apart(ROWS * depth + LANES - ROWS, 2 * LANES);
    reserve(left, m.div_ceil(height) * strip + LANES);
    // SAFETY: the caller guarantees the contract of `gemm`.
    unsafe { pack_left(left.as_mut_ptr(), a, [m, height, strip], depth) };
    (Operand { data: left.as_ptr(), row: 1, col: ROWS }, strip)
}

/// Packs the `m` rows of the left operand in strips of `height` rows. Strips are `strip` elements apart, and
/// each is (depth, ROWS) consecutive elements. The elements after the rows of a strip are unspecified. `to`
/// has space for one more vector.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_left(to: *mut f32, a: Operand, [m, height, strip]: [usize; 3], depth: usize) {
    // SAFETY: the caller guarantees the contract of `gemm`. A vector is loaded only if its elements are in the
    // same column.
    unsafe {
        for k in 0..depth {
            for (s, i) in (0..m).step_by(height).enumerate() {
                let (rows, to) = (height.min(m - i), to.add(s * strip + k * ROWS));
                if a.row == 1 && i + LANES <= m {
                    // The next store overwrites the lanes after the rows.
                    _mm256_storeu_ps(to, _mm256_loadu_ps(a.at(i, k).data));
                } else {
                    for r in 0..rows {
                        *to.add(r) = *a.at(i + r, k).data;
                    }
                }
            }
        }
    }
}

/// Packs a panel of `cols` columns of the right operand to (depth, PANEL) consecutive elements. Columns after
/// the last one are 0.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_right(to: *mut f32, b: Operand, depth: usize, cols: usize) {
    // SAFETY: the caller guarantees the contract of `gemm`, and that `to` has space for a panel of whole squares.
    unsafe {
        if b.col == 1 && cols == PANEL {
            for k in 0..depth {
                let from = b.at(k, 0).data;
                let line = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(LANES))];
                _mm256_storeu_ps(to.add(k * PANEL), line[0]);
                _mm256_storeu_ps(to.add(k * PANEL + LANES), line[1]);
            }
            return;
        }
        for j in (0..PANEL).step_by(LANES) {
            let cols = cols.saturating_sub(j).min(LANES);
            for k in (0..depth).step_by(LANES) {
                let (count, to, from) = (LANES.min(depth - k), to.add(k * PANEL + j), b.at(k, j));
                if b.row == 1 && cols == LANES && count == LANES {
                    if k % LINE == 0 {
                        // The same lines of the next panel.
                        for i in 0..LANES {
                            _mm_prefetch::<_MM_HINT_T1>(from.at(0, PANEL + i).data.cast());
                        }
                    }
                    transpose_avx2(to, PANEL, from.data, b.col);
                    continue;
                }
                for i in 0..count {
                    for l in 0..LANES {
                        *to.add(i * PANEL + l) = if l < cols { *from.at(i, l).data } else { 0.0 };
                    }
                }
            }
        }
    }
}

/// Calls [`block`] for the number of rows and the number of registers per row.
#[target_feature(enable = "avx2,fma")]
unsafe fn strip_by_panel([rows, cols, depth]: [usize; 3], c: Target, a: Operand, b: Operand) {
    macro_rules! choose {
        ($vectors:literal, $($rows:literal)*) => {
            match rows {
                // SAFETY: the caller guarantees the contract of `gemm`.
                $($rows => unsafe { block::<$rows, $vectors>([cols, depth], c, a, b) },)*
                _ => unreachable!("a strip has at most {ROWS} rows"),
            }
        };
    }
    if cols > LANES { choose!(2, 1 2 3 4 5 6) } else { choose!(1, 1 2 3 4 5 6) }
}

/// Computes `R` rows of one panel with `V` registers per row. The panel has `V` whole registers per row, also
/// if the result has fewer columns.
#[target_feature(enable = "avx2,fma")]
// The compiler may not inline an iterator over `sums`, which would keep the sums in memory.
#[allow(clippy::needless_range_loop)]
unsafe fn block<const R: usize, const V: usize>([cols, depth]: [usize; 2], c: Target, a: Operand, b: Operand) {
    let mut sums = [[_mm256_setzero_ps(); V]; R];
    let (mut left, mut line) = (a.data, b.data);
    // SAFETY: the caller guarantees the contract of `gemm`; only the first `cols` columns are stored.
    unsafe {
        for _ in 0..depth {
            let mut right = [_mm256_setzero_ps(); V];
            for v in 0..V {
                right[v] = _mm256_loadu_ps(line.wrapping_add(v * LANES));
            }
            for r in 0..R {
                let x = _mm256_set1_ps(*left.wrapping_add(r * a.row));
                for v in 0..V {
                    sums[r][v] = _mm256_fmadd_ps(x, right[v], sums[r][v]);
                }
            }
            left = left.wrapping_add(a.col);
            line = line.wrapping_add(b.row);
        }
        let whole = cols == V * LANES;
        for r in 0..R {
            for v in 0..V {
                let (to, sum) = (c.data.wrapping_add(r * c.stride + v * LANES), sums[r][v]);
                if whole || v + 1 < V {
                    let sum = if c.add { _mm256_add_ps(_mm256_loadu_ps(to), sum) } else { sum };
                    _mm256_storeu_ps(to, sum);
                    continue;
                }
                let mut lanes = [0.0; LANES];
                _mm256_storeu_ps(lanes.as_mut_ptr(), sum);
                for l in 0..cols - v * LANES {
                    *to.add(l) = if c.add { *to.add(l) + lanes[l] } else { lanes[l] };
                }
            }
        }
    }
}
