//! Matrix products in f32: serial products of tiles through the gemm crate, and the parallel forms of a linear layer.
//!
//! Every element is a sum over k in ascending order with one accumulator per block of at most [`DEPTH`] terms, blocks
//! added in order, whatever tile the element falls in. The gemm crate sums its special cases (matrices with a side of
//! 1, a depth below 3, at most 256 elements) in other orders, so those shapes never reach it: small products run in
//! loops of this file that give the same bits. A row of a result therefore does not depend on the other rows of the
//! call, nor on the thread count.

use std::cell::RefCell;

use rayon::prelude::*;

use super::simd::{LANES, SQUARE, fma, transpose, vectorised};
use super::tile::{Grid, Mat, Tile, bounds};
use crate::backend::Write;

/// Terms of one accumulation. The gemm crate never cuts a depth of 512 or less.
const DEPTH: usize = 512;
/// Rows below which a product does not go to the gemm crate.
const FEW_ROWS: usize = 32;
/// Columns below which a product does not go to the gemm crate; with [`FEW_ROWS`] this keeps tiles above 256 elements.
const FEW_COLS: usize = 9;
/// Depth below which a product does not go to the gemm crate.
const SHALLOW: usize = 3;
/// Products of at most this many multiplications run faster in the loops here.
const SMALL: usize = 32 * 32 * 16;

/// Length of the block of terms that starts at `from`: [`DEPTH`], but never so that one or two terms are left over.
fn depth_block(from: usize, depth: usize) -> usize {
    let left = depth - from;
    if left <= DEPTH {
        left
    } else if left < DEPTH + SHALLOW {
        left / 2
    } else {
        DEPTH
    }
}

/// `c (+)= a b`, serial.
pub(super) fn matmul(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    assert!(a.rows == c.rows() && b.cols == c.cols() && a.cols == b.rows, "shapes of a product");
    let (m, n, depth) = (a.rows, b.cols, a.cols);
    if depth == 0 && write == Write::Overwrite {
        c.fill(0.0);
    }
    let tiny = n < FEW_COLS || depth < SHALLOW;
    let loops = tiny || (b.col_stride == 1 && (m < FEW_ROWS || m * n * depth <= SMALL));
    if !loops && m < FEW_ROWS {
        return pad_rows(c, a, b, write);
    }
    let mut from = 0;
    while from < depth {
        let block = from..from + depth_block(from, depth);
        let add = write == Write::Add || from > 0;
        from = block.end;
        let (a, b) = (a.cols(block.clone()), b.rows(block));
        if loops {
            small(c, a, b, add);
        } else if a.row_stride == 1 && a.col_stride > 1 {
            pack_transposed(c, a, b, add);
        } else {
            general(c, a, b, add);
        }
    }
}

thread_local! {
    /// Rows of a transposed left factor; grows to the largest tile and depth block of the thread.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A product whose left factor lies transposed. The gemm crate broadcasts elements of the left factor in the order of
/// k, which here would touch a cache line each, so the block is turned first.
fn pack_transposed(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, add: bool) {
    // An odd number of cache lines, so that neighbouring rows do not compete for one set of the cache.
    let stride = (a.cols.div_ceil(LANES) | 1) * LANES;
    PACKED.with_borrow_mut(|packed| {
        let len = a.rows.next_multiple_of(SQUARE) * stride;
        if packed.len() < len {
            packed.resize(len, 0.0);
        }
        turn(packed, stride, a.data, a.col_stride, a.cols, a.rows);
        general(c, Mat::new(packed, a.rows, a.cols, stride), b, add);
    });
}

/// `to[j * to_stride + i] = from[i * from_stride + j]` for `rows` by `cols` elements of `from`; `to` has room for whole
/// squares, whose rest is filled with zeros.
fn turn(to: &mut [f32], to_stride: usize, from: &[f32], from_stride: usize, rows: usize, cols: usize) {
    // Along the rows of `from`, which lie pages apart; the lines of `to` under way stay in the first cache.
    for i in (0..rows).step_by(SQUARE) {
        for j in (0..cols).step_by(SQUARE) {
            let width = SQUARE.min(cols - j);
            let mut square = [[0.0f32; SQUARE]; SQUARE];
            for (k, line) in square.iter_mut().enumerate().take(rows - i) {
                let row = &from[(i + k) * from_stride + j..];
                match row.first_chunk() {
                    Some(whole) if width == SQUARE => *line = *whole,
                    _ => line[..width].copy_from_slice(&row[..width]),
                }
            }
            for (l, line) in transpose(square).iter().enumerate() {
                to[(j + l) * to_stride + i..][..SQUARE].copy_from_slice(line);
            }
        }
    }
}

/// A product of few rows as one of [`FEW_ROWS`], for operands that the loops here would read across cache lines.
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
    matmul(&mut tile, Mat::new(&rows, FEW_ROWS, depth, depth), b, write);
    (0..m).for_each(|r| c.row(r).copy_from_slice(tile.row(r)));
}

/// One call of the gemm crate, never one of its special cases.
fn general(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, add: bool) {
    let (m, n, depth) = (a.rows, b.cols, a.cols);
    debug_assert!(m >= FEW_ROWS && n >= FEW_COLS && (SHALLOW..=DEPTH).contains(&depth));
    let stride = c.stride() as isize;
    // SAFETY: `Mat` and `Tile` check at construction that every element addressed through their strides lies inside
    // their slice; `matmul` has compared the shapes; `c` is borrowed exclusively and so cannot overlap `a` or `b`.
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
    /// Same bits as [`general`] from loops over a few rows and sixteen columns.
    fn small(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, add: bool) {
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

/// Rows `i..i + R` and columns `j..j + W` of a product; `b` holds these columns alone.
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

/// Largest tile, and the least one that the gemm crate runs well.
const TILE_ROWS: usize = 256;
const TILE_COLS: usize = 256;
const LEAST: usize = 64;
/// Units of a cut: columns are the direction of the kernels' vector registers.
pub(super) const ROWS_UNIT: usize = 32;
const COLS_UNIT: usize = 64;
/// Multiplications that a tile should have so that starting a task costs little: about 20 microseconds.
const TILE_WORK: usize = 1 << 20;
/// Tiles wanted for each thread, where tiles of [`TILE_WORK`] allow it: enough that none waits long for the others.
const TILES_PER_THREAD: usize = 6;

/// Cuts a product of (rows, depth) by (depth, cols) into tiles. An element's sum does not depend on the tile it falls
/// in, so the cut may follow the number of threads. A tile packs the columns of its right factor anew, so tiles become
/// narrow before they become short; a transposed left factor is packed too, at a higher cost, so there they become short
/// first.
fn grid<'a>(c: &'a mut [f32], a: &Mat<'_>, cols: usize) -> Grid<'a> {
    let (rows, depth) = (a.rows, a.cols);
    let (mut tile_rows, mut tile_cols) = (TILE_ROWS, TILE_COLS);
    let transposed = a.row_stride == 1 && a.col_stride > 1;
    let wanted = TILES_PER_THREAD * rayon::current_num_threads();
    let tiles = |r: usize, c: usize| rows.div_ceil(r) * cols.div_ceil(c);
    while tiles(tile_rows, tile_cols) < wanted && tile_rows * tile_cols.min(cols) * depth > TILE_WORK {
        let (narrower, shorter) = (tile_cols > LEAST, tile_rows > LEAST);
        if shorter && (transposed || !narrower) {
            tile_rows /= 2;
        } else if narrower {
            tile_cols -= COLS_UNIT;
        } else {
            break;
        }
    }
    Grid::new(c, cols, bounds(rows, tile_rows, ROWS_UNIT), bounds(cols, tile_cols, COLS_UNIT))
}

/// `c (+)= a b` on all threads; `c` is (a.rows, b.cols) without gaps. `finish` is called on every finished tile with
/// its first row and column.
pub(super) fn par_matmul(
    c: &mut [f32],
    a: Mat<'_>,
    b: Mat<'_>,
    write: Write,
    finish: impl Fn(&mut Tile<'_>, [usize; 2]) + Sync,
) {
    let grid = grid(c, &a, b.cols);
    let (down, across) = grid.cells();
    // Neighbouring tasks share the columns of `b`, which stay in cache.
    (0..down * across).into_par_iter().with_max_len(1).for_each(|cell| {
        let (i, j) = (cell % down, cell / down);
        let mut tile = grid.claim(i, j);
        matmul(&mut tile, a.rows(grid.row_range(i)), b.cols(grid.col_range(j)), write);
        finish(&mut tile, [grid.row_range(i).start, grid.col_range(j).start]);
    });
}
