//! GEMM in f32: a serial GEMM of one tile, and a parallel GEMM over a grid of tiles.
//!
//! ```text
//! parallel: divide C into tiles; for each tile of C, in parallel:
//!     for each block of at most DEPTH terms of K, in order:
//!         sum = 0;  for k in block, in order: sum = fma(a[k], b[k], sum)
//!         C = C + sum, or C = sum for the first block without accumulation
//! ```
//!
//! Every element is summed in this order, whatever its tile is. A row of a result therefore does
//! not depend on the other rows of the call or on the number of threads.
//!
//! With AVX-512, every tile runs in `avx512`, with AVX2 in `avx2`, on other processors in `portable`.

use std::ops::Range;

use rayon::prelude::*;

use super::Cpu;
#[cfg(target_arch = "x86_64")]
use super::avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::{self, Operand, Target};
use super::element::{Element, Room};
use super::portable;
use super::rows::rows_of_task;
#[cfg(target_arch = "x86_64")]
use super::simd::Level;
use super::tile::{Grid, Mat, Tile, apart, bounds, check_shapes};
use crate::backend::Write;

/// Maximum depth (K) of one accumulation. The gemm crate never splits a depth of 512 or less.
pub(super) const DEPTH: usize = 512;
/// Minimum depth of one accumulation, except of a GEMM that is less deep in all.
pub(super) const SHALLOW: usize = 3;

/// Length of the block of terms that starts at `from`: [`DEPTH`], or less so that no block of one
/// or two terms remains.
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

/// `c (+)= a b` on one thread.
pub(super) fn matmul(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, write: Write) {
    product(c, a, b, write, Code::best());
}

/// Code that computes the GEMM of a tile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Code {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Code {
    /// Returns the code for this processor.
    fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        match super::simd::level() {
            Level::Avx512 => return Self::Avx512,
            Level::Avx2 => return Self::Avx2,
            Level::Baseline => {}
        }
        Self::Portable
    }

    /// Whether this processor can run the code.
    fn runs(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Avx512 => super::simd::level() == Level::Avx512,
            Self::Avx2 => super::simd::level() != Level::Baseline,
            Self::Portable => true,
        };
        #[cfg(not(target_arch = "x86_64"))]
        true
    }
}

/// `c (+)= a b`. The bits do not depend on `code`.
fn product(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, write: Write, code: Code) {
    check_shapes(c, &a, &b);
    assert!(code.runs(), "the processor lacks {code:?}");
    let depth = a.cols;
    if depth == 0 && write == Write::Overwrite {
        c.fill(0.0);
    }
    #[cfg(target_arch = "x86_64")]
    if code != Code::Portable {
        return in_blocks(depth, write, |block, add| vector_gemm(c, a.cols(block.clone()), b.rows(block), add, code));
    }
    portable::gemm(c, a, b, write);
}

/// Calls `gemm` for each block of the depth (the inner dimension K). The flag is true if the block is added to
/// the result, false if it overwrites the result.
pub(super) fn in_blocks(depth: usize, write: Write, mut gemm: impl FnMut(Range<usize>, bool)) {
    let mut from = 0;
    while from < depth {
        let block = from..from + depth_block(from, depth);
        let add = write == Write::Add || from > 0;
        from = block.end;
        gemm(block, add);
    }
}

/// GEMM of one block of the inner dimension in code that is not portable. The caller has checked that the
/// processor can run it.
#[cfg(target_arch = "x86_64")]
fn vector_gemm(c: &mut Tile<'_>, a: Mat<'_>, b: Mat<'_>, add: bool, code: Code) {
    let operand = |m: Mat<'_>| Operand { data: m.data.as_ptr(), row: m.row_stride, col: m.col_stride };
    let sizes = [a.rows, b.cols, a.cols];
    let target = Target { stride: c.stride(), data: c.as_mut_ptr(), add };
    // SAFETY: the caller has detected the instructions. `Mat` and `Tile` check at construction that every
    // element addressed by their strides is inside their slice, and `product` has compared the shapes. `c` is
    // borrowed exclusively, so it cannot overlap `a` or `b`.
    unsafe {
        match code {
            Code::Avx512 => avx512::gemm(sizes, target, operand(a), operand(b)),
            _ => avx2::gemm(sizes, target, operand(a), operand(b)),
        }
    }
}

/// Maximum rows of a tile. With a depth of [`DEPTH`] they occupy half of an L2 cache of 1 MiB.
const TILE_ROWS: usize = 256;
/// Maximum columns of a tile.
const TILE_COLS: usize = 1024;
/// Minimum rows and columns of a tile for which the gemm crate is efficient.
const MIN_TILE: usize = 64;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Row bounds of tiles are multiples of this number.
pub(super) const ROWS_UNIT: usize = 32;
/// Column bounds of tiles are multiples of this number. The vector registers of the gemm crate's kernels run
/// along columns.
const COLS_UNIT: usize = 64;
/// Target number of multiplications of a tile, about 20 microseconds, so that the overhead of a task is
/// small.
const TILE_WORK: usize = 1 << 20;
/// Target number of tiles per thread for load balance, as long as a tile has more than [`TILE_WORK`]
/// multiplications.
const TILES_PER_THREAD: usize = 6;

/// Divides the result of a (rows, depth) by (depth, cols) GEMM into tiles. The sum of an element
/// does not depend on its tile, so the division may depend on the number of threads.
///
/// Tiles become smaller in columns before rows, because every tile packs the columns of its right operand
/// again. A transposed left operand is also packed, at a higher cost, so its tiles become smaller in rows
/// first.
fn grid<'a, T: Copy, C: Copy>(c: &'a mut [C], a: &Mat<'_, T>, cols: usize) -> Grid<'a, C> {
    let (rows, depth) = (a.rows, a.cols);
    let (mut tile_rows, mut tile_cols) = (TILE_ROWS, TILE_COLS);
    let transposed = a.row_stride == 1 && a.col_stride > 1;
    let target = TILES_PER_THREAD * rayon::current_num_threads();
    let tiles = |r: usize, c: usize| rows.div_ceil(r) * cols.div_ceil(c);
    while tiles(tile_rows, tile_cols) < target && tile_rows * tile_cols.min(cols) * depth > TILE_WORK {
        let (narrower, shorter) = (tile_cols > MIN_TILE, tile_rows > MIN_TILE);
        if shorter && (transposed || !narrower) {
            tile_rows /= 2;
        } else if narrower {
            tile_cols = (tile_cols.min(cols) - 1) / COLS_UNIT * COLS_UNIT;
            tile_cols = tile_cols.max(MIN_TILE);
        } else {
            break;
        }
    }
    Grid::new(c, cols, bounds(rows, tile_rows, ROWS_UNIT), bounds(cols, tile_cols, COLS_UNIT))
}

/// Whether rows that are `stride` bytes apart map to the same set of the L1 cache, where they evict each
/// other.
fn crowds(stride: usize) -> bool {
    const PAGE: usize = 4096;
    stride > 0 && stride.is_multiple_of(PAGE)
}

/// Bytes of the copy that [`par_matmul`] makes of a contiguous left operand with elements of `element` bytes;
/// 0 if no copy is needed.
pub(super) fn spread_bytes(rows: usize, cols: usize, element: usize) -> usize {
    if crowds(cols * element) { rows * apart(cols, LINE / element) * element } else { 0 }
}

/// Copy of a matrix whose rows do not map to the same cache set.
struct Spread<'a, A> {
    data: Room<'a, A>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, A: Element> Spread<'a, A> {
    fn of(cpu: &'a Cpu<A>, from: Mat<'_, A>) -> Self {
        let stride = apart(from.cols, LINE / size_of::<A>());
        let mut data = cpu.room(from.rows * stride);
        data.par_chunks_mut(stride).with_min_len(rows_of_task(stride)).enumerate().for_each(|(r, to)| {
            to[..from.cols].copy_from_slice(&from.data[r * from.row_stride..][..from.cols]);
        });
        Self { data, rows: from.rows, cols: from.cols, stride }
    }

    fn mat(&self) -> Mat<'_, A> {
        Mat::new(&self.data, self.rows, self.cols, self.stride)
    }
}

/// `c (+)= a b` on all threads, with `c` (a.rows, b.cols) contiguous.
pub(super) fn par_matmul<A: Element, C: Element>(
    cpu: &Cpu<A>,
    c: &mut [C],
    a: Mat<'_, A>,
    b: Mat<'_, A>,
    write: Write,
) {
    over_tiles(cpu, c, a, b, |mut to, a, b, _| {
        if write == Write::Add || !cpu.product_rounded(&mut to, a, b) {
            cpu.product(&mut cpu.store_tile(to, write).tile(), a, b, write);
        }
    });
}

/// `c = a b` on all threads, as [`par_matmul`]. `epilogue` is called for every finished tile of sums with its
/// first row and column.
pub(super) fn par_matmul_with<A: Element, C: Element>(
    cpu: &Cpu<A>,
    c: &mut [C],
    a: Mat<'_, A>,
    b: Mat<'_, A>,
    epilogue: impl Fn(&mut Tile<'_>, [usize; 2]) + Sync,
) {
    over_tiles(cpu, c, a, b, |to, a, b, at| {
        let mut stored = cpu.store_tile(to, Write::Overwrite);
        let mut tile = stored.tile();
        cpu.product(&mut tile, a, b, Write::Overwrite);
        epilogue(&mut tile, at);
    });
}

/// Calls `product` for every tile of `c` on all threads. Its arguments are the tile, the tile's rows of `a`
/// and columns of `b`, and the tile's first row and column.
fn over_tiles<A: Element, C: Element>(
    cpu: &Cpu<A>,
    c: &mut [C],
    a: Mat<'_, A>,
    b: Mat<'_, A>,
    product: impl Fn(Tile<'_, C>, Mat<'_, A>, Mat<'_, A>, [usize; 2]) + Sync,
) {
    let spread;
    let a = if a.rows > 1 && a.col_stride == 1 && crowds(a.row_stride * size_of::<A>()) {
        spread = Spread::of(cpu, a);
        spread.mat()
    } else {
        a
    };
    let grid = grid(c, &a, b.cols);
    let (down, across) = grid.cells();
    // Neighbouring tasks share the columns of `b`, which stay in cache.
    (0..down * across).into_par_iter().with_max_len(1).for_each(|cell| {
        let (i, j) = (cell % down, cell / down);
        let (rows, cols) = (grid.row_range(i), grid.col_range(j));
        let first = [rows.start, cols.start];
        product(grid.claim(i, j), a.rows(rows), b.cols(cols), first);
    });
}

#[cfg(test)]
mod tests {
    use super::super::simd::{fma, vectorised};
    use super::*;

    vectorised! {
        /// Computes an element, summed in the documented order.
        fn element(a: &[f32], b: &[f32], old: f32, add: bool, out: &mut f32) {
            let mut from = 0;
            *out = old;
            while from < a.len() {
                let block = from..from + depth_block(from, a.len());
                let mut sum = 0.0;
                for k in block.clone() {
                    sum = fma::<FMA>(a[k], b[k], sum);
                }
                *out = if add || from > 0 { *out + sum } else { sum };
                from = block.end;
            }
        }
    }

    /// All codes that this processor can run.
    fn codes() -> impl Iterator<Item = Code> {
        let all = [
            Code::Portable,
            #[cfg(target_arch = "x86_64")]
            Code::Avx2,
            #[cfg(target_arch = "x86_64")]
            Code::Avx512,
        ];
        all.into_iter().filter(|code| code.runs())
    }

    /// Returns a matrix with contiguous rows or contiguous columns, with gaps between them.
    fn mat(data: &[f32], rows: usize, cols: usize, by_rows: bool) -> Mat<'_> {
        if by_rows { Mat::new(data, rows, cols, cols + 3) } else { Mat::new(data, cols, rows, rows + 3).t() }
    }

    #[test]
    fn every_element_is_summed_in_order_in_any_layout() {
        let random = |len: usize, factor: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * factor + 17) % 2003) as f32 / 1000.0 - 1.0).collect()
        };
        let sizes = [(1, 1, 1), (3, 40, 5), (14, 32, 64), (15, 33, 2), (29, 16, 20), (75, 100, 513), (90, 17, 700)];
        // The left operand is packed in strips if its columns are contiguous. Some of these depths fill whole
        // cache lines of a strip, and others do not.
        let strips = (1..=40).map(|depth| (43, 100, depth));
        // Rows and columns around those of strips, registers and panels, and around the numbers from which
        // operands are packed.
        let rows = (1..=26).map(|m| (m, 20, 9));
        let cols = (1..=50).map(|n| (7, n, 11));
        // Few rows of a larger depth.
        let few = [(1, 100, 128), (5, 40, 150), (17, 7, 200), (33, 70, 600), (64, 13, 512), (65, 13, 130)];
        for (m, n, depth) in sizes.into_iter().chain(strips).chain(rows).chain(cols).chain(few) {
            let (x, y) = (random((m + 3) * (depth + 3), 7919), random((n + 3) * (depth + 3), 104_729));
            for (layout, code) in (0..8).flat_map(|layout| codes().map(move |code| (layout, code))) {
                let (a, b) = (mat(&x, m, depth, layout & 1 > 0), mat(&y, depth, n, layout & 2 > 0));
                let write = if layout & 4 > 0 { Write::Add } else { Write::Overwrite };
                let old = random(m * (n + 1), 31);
                let mut c = old.clone();
                product(&mut Tile::new(&mut c, m, n, n + 1), a, b, write, code);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let row: Vec<f32> = (0..depth).map(|k| a.data[i * a.row_stride + k * a.col_stride]).collect();
                    let col: Vec<f32> = (0..depth).map(|k| b.data[k * b.row_stride + j * b.col_stride]).collect();
                    let (at, mut expected) = (i * (n + 1) + j, 0.0);
                    element(&row, &col, old[at], write == Write::Add, &mut expected);
                    let label = format!("{m} x {n} x {depth}, layout {layout}, {code:?}, element ({i}, {j})");
                    assert_eq!(c[at].to_bits(), expected.to_bits(), "{label}");
                }
                let gaps = (0..m - 1).map(|i| i * (n + 1) + n);
                assert!(gaps.into_iter().all(|at| c[at] == old[at]), "an element after the columns changed");
            }
        }
    }

    #[test]
    fn rows_that_crowd_one_set_of_a_cache_give_the_bits_of_rows_apart() {
        let (m, n, depth) = (40, 70, 1024);
        let random = |len: usize, factor: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * factor + 17) % 2003) as f32 / 1000.0 - 1.0).collect()
        };
        let (x, y) = (random(m * depth, 7919), random(n * depth, 104_729));
        let (a, b) = (Mat::new(&x, m, depth, depth), Mat::new(&y, n, depth, depth).t());
        assert!(crowds(4 * depth) && !crowds(4 * depth - 64));
        assert_eq!(spread_bytes(m, depth, 4), m * (4 * depth + 64));
        let (mut c, mut expected) = (vec![0.0; m * n], vec![0.0; m * n]);
        par_matmul(&Cpu::new(), &mut c, a, b, Write::Overwrite);
        product(&mut Tile::new(&mut expected, m, n, n), a, b, Write::Overwrite, Code::Portable);
        assert_eq!(c, expected);
    }
}
