//! GEMM of one tile on processors without AVX2.
//!
//! The gemm crate computes most tiles. It has special cases with a different order of summation: results with
//! one row, one column or at most 256 elements, and depths below 3. Such shapes never reach the crate. They run
//! in loops of this file, which give the same bits as the documented order of `matmul`.

use std::cell::RefCell;

use super::matmul::{DEPTH, SHALLOW, in_blocks};
use super::simd::{LANES, SQUARE, fma, transpose, vectorised};
use super::tile::{Mat, Tile};
use crate::backend::Write;

/// Minimum number of rows of a GEMM that the gemm crate runs.
const FEW_ROWS: usize = 32;
/// Minimum number of columns of a GEMM that the gemm crate runs. With [`FEW_ROWS`], results have more than
/// 256 elements.
const FEW_COLS: usize = 9;
/// Maximum number of multiplications of a GEMM that runs faster in the loops of this file.
const SMALL: usize = 32 * 32 * 16;

/// `c (+)= a b` for operands whose shapes match.
pub(super) fn gemm(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    let (m, n, depth) = (a.rows, b.cols, a.cols);
    let tiny = n < FEW_COLS || depth < SHALLOW;
    let loops = tiny || (b.col_stride == 1 && (m < FEW_ROWS || m * n * depth <= SMALL));
    if !loops && m < FEW_ROWS {
        return pad_rows(c, a, b, write);
    }
    in_blocks(depth, write, |block, add| {
        let (a, b) = (a.cols(block.clone()), b.rows(block));
        if loops {
            loop_gemm(c, a, b, add);
        } else if a.row_stride == 1 && a.col_stride > 1 {
            pack_transposed(c, a, b, add);
        } else {
            gemm_crate(c, a, b, add);
        }
    });
}

thread_local! {
    /// Packed rows of a transposed left operand. Grows to the largest tile and depth block of the
    /// thread.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// GEMM with a left operand that is stored transposed. The gemm crate broadcasts elements of the left operand
/// in the order of k. In a transposed operand each would be in a different cache line, so the block is
/// transposed first.
fn pack_transposed(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, add: bool) {
    // An odd number of cache lines, so that neighbouring rows do not map to the same cache set.
    let stride = (a.cols.div_ceil(LANES) | 1) * LANES;
    PACKED.with_borrow_mut(|packed| {
        let len = a.rows.next_multiple_of(SQUARE) * stride;
        if packed.len() < len {
            packed.resize(len, 0.0);
        }
        transpose_into(packed, stride, a.data, a.col_stride, a.cols, a.rows);
        gemm_crate(c, Mat::new(packed, a.rows, a.cols, stride), b, add);
    });
}

/// Transposes `rows` by `cols` elements: `to[j * to_stride + i] = from[i * from_stride + j]`. `to`
/// has space for whole squares; the elements outside the matrix become 0.
fn transpose_into(to: &mut [f32], to_stride: usize, from: &[f32], from_stride: usize, rows: usize, cols: usize) {
    // Iterates along the rows of `from`, which are pages apart. The current lines of `to` stay in
    // the L1 cache.
    for i in (0..rows).step_by(SQUARE) {
        for j in (0..cols).step_by(SQUARE) {
            let (height, width) = (SQUARE.min(rows - i), SQUARE.min(cols - j));
            let (to, from) = (&mut to[j * to_stride + i..], &from[i * from_stride + j..]);
            if (height, width) == (SQUARE, SQUARE) {
                transpose(to, to_stride, from, from_stride);
                continue;
            }
            let mut square = [0.0f32; SQUARE * SQUARE];
            for (k, row) in square.chunks_exact_mut(SQUARE).enumerate().take(height) {
                row[..width].copy_from_slice(&from[k * from_stride..][..width]);
            }
            transpose(to, to_stride, &square, SQUARE);
        }
    }
}

/// GEMM of few rows, which are padded to [`FEW_ROWS`]. It serves operands for which the loops of this file
/// would read each element from a different cache line.
fn pad_rows(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    let (m, n, depth) = (a.rows, b.cols, a.cols);
    let mut rows = vec![0.0; FEW_ROWS * depth];
    for (r, row) in rows.chunks_exact_mut(depth).take(m).enumerate() {
        for (k, x) in row.iter_mut().enumerate() {
            *x = a.data[r * a.row_stride + k * a.col_stride];
        }
    }
    let mut result = vec![0.0; FEW_ROWS * n];
    let mut tile = Tile::new(&mut result, FEW_ROWS, n, n);
    if write == Write::Add {
        (0..m).for_each(|r| tile.row(r).copy_from_slice(c.row(r)));
    }
    gemm(&mut tile, Mat::new(&rows, FEW_ROWS, depth, depth), b, write);
    (0..m).for_each(|r| c.row(r).copy_from_slice(tile.row(r)));
}

/// Calls the gemm crate. The shape must not be one of its special cases.
fn gemm_crate(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, add: bool) {
    let (m, n, depth) = (a.rows, b.cols, a.cols);
    debug_assert!(m >= FEW_ROWS && n >= FEW_COLS && (SHALLOW..=DEPTH).contains(&depth));
    let stride = c.stride() as isize;
    // SAFETY: `Mat` and `Tile` check at construction that every element addressed by their strides is inside
    // their slice. `product` has compared the shapes. `c` is borrowed exclusively, so it cannot overlap `a`
    // or `b`.
    unsafe {
        gemm::gemm(
            m,
            n,
            depth,
            c.as_mut_ptr(),
            1,
            stride,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

vectorised! {
    /// GEMM by loops over blocks of a few rows and sixteen columns, with the same bits as [`gemm_crate`].
    fn loop_gemm(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, add: bool) {
        const ROWS: usize = 4;
        const COLS: usize = 16;
        let (m, n) = (a.rows, b.cols);
        let whole = if b.col_stride == 1 { n / COLS * COLS } else { 0 };
        for j in (0..whole).step_by(COLS) {
            let b = b.cols(j..j + COLS);
            let mut i = 0;
            while i + ROWS <= m {
                block::<FMA, ROWS, COLS>(c, i, j, a, b, add);
                i += ROWS;
            }
            match m - i {
                1 => block::<FMA, 1, COLS>(c, i, j, a, b, add),
                2 => block::<FMA, 2, COLS>(c, i, j, a, b, add),
                3 => block::<FMA, 3, COLS>(c, i, j, a, b, add),
                _ => {}
            }
        }
        for i in 0..m {
            for j in whole..n {
                let mut sum = 0.0;
                for k in 0..a.cols {
                    let x = a.data[i * a.row_stride + k * a.col_stride];
                    sum = fma::<FMA>(x, b.data[k * b.row_stride + j * b.col_stride], sum);
                }
                let out = &mut c.row(i)[j];
                *out = if add { *out + sum } else { sum };
            }
        }
    }
}

/// Computes the rows `i..i + R` and columns `j..j + W` of a GEMM. `b` has only these columns.
#[inline(always)]
fn block<const FMA: bool, const R: usize, const W: usize>(
    c: &mut Tile<'_>,
    i: usize,
    j: usize,
    a: Mat<'_>,
    b: Mat<'_>,
    add: bool,
) {
    let mut sums = [[0.0f32; W]; R];
    for k in 0..a.cols {
        let row = &b.data[k * b.row_stride..][..W];
        for (r, sums) in sums.iter_mut().enumerate() {
            let x = a.data[(i + r) * a.row_stride + k * a.col_stride];
            for l in 0..W {
                sums[l] = fma::<FMA>(x, row[l], sums[l]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let out = &mut c.row(i + r)[j..j + W];
        for l in 0..W {
            out[l] = if add { out[l] + sums[l] } else { sums[l] };
        }
    }
}
