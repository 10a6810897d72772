//! Strided read-only matrices, writable tiles, and grids that divide a matrix into tiles for
//! parallel writes. The `unsafe` code for parallel writes is only in this file. It is sound because
//! a [`Grid`] borrows its matrix exclusively, its cells are disjoint because their bounds ascend,
//! and a cell can be claimed only once.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Read-only matrix with arbitrary strides.
#[derive(Clone, Copy)]
pub struct Mat<'a, T = f32> {
    pub data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a, T: Copy> Mat<'a, T> {
    /// Row-major matrix with `stride` elements from one row to the next.
    pub fn new(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }.checked()
    }

    /// Transposed view, without a copy.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// Matrix of the same shape and strides over different elements.
    pub fn with<U>(self, data: &'a [U]) -> Mat<'a, U> {
        assert_eq!(data.len(), self.data.len(), "a matrix has as many elements as before");
        Mat { data, rows: self.rows, cols: self.cols, row_stride: self.row_stride, col_stride: self.col_stride }
    }

    /// View of a range of rows.
    pub fn rows(self, range: Range<usize>) -> Self {
        let rows = range.len();
        let start = if rows * self.cols == 0 { 0 } else { range.start * self.row_stride };
        Self { data: &self.data[start..], rows, ..self }.checked()
    }

    /// View of a range of columns.
    pub fn cols(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    fn checked(self) -> Self {
        if self.rows * self.cols > 0 {
            let last = (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride;
            assert!(
                last < self.data.len(),
                "{} x {} matrix exceeds {} elements",
                self.rows,
                self.cols,
                self.data.len()
            );
        }
        self
    }
}

/// Exclusive borrow of a rectangle of a row-major matrix.
pub struct Tile<'a, T = f32> {
    start: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a tile is an exclusive borrow of its elements, which are plain numbers; see
// `Grid::claim`.
unsafe impl<T: Send> Send for Tile<'_, T> {}

impl<'a, T: Copy> Tile<'a, T> {
    /// Tile of a whole row-major matrix with `stride` elements from one row to the next.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(cols <= stride || rows <= 1, "rows of {cols} overlap at stride {stride}");
        assert!(rows * cols == 0 || (rows - 1) * stride + cols <= data.len(), "tile exceeds its matrix");
        Self { start: data.as_mut_ptr(), rows, cols, stride, borrow: PhantomData }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Borrows the same rectangle for a shorter lifetime.
    pub fn reborrow(&mut self) -> Tile<'_, T> {
        Tile { borrow: PhantomData, ..*self }
    }

    /// Pointer to the first element, for GEMM code outside this file.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }

    /// Mutable slice of one row.
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row is inside the rectangle checked at construction, and `self` is borrowed
        // exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(row * self.stride), self.cols) }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: T) {
        for row in 0..self.rows {
            self.row(row).fill(value);
        }
    }
}

/// Row-major matrix, divided by row and column bounds into cells that different tasks write.
pub(super) struct Grid<'a, T = f32> {
    start: *mut T,
    stride: usize,
    row_bounds: Vec<usize>,
    col_bounds: Vec<usize>,
    claimed: Vec<AtomicBool>,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: shared access reaches the elements only through `claim`, which hands out each disjoint
// cell once.
unsafe impl<T: Send> Sync for Grid<'_, T> {}
// SAFETY: the grid is an exclusive borrow of plain numbers.
unsafe impl<T: Send> Send for Grid<'_, T> {}

impl<'a, T: Copy> Grid<'a, T> {
    /// Divides `data`, in rows of `stride` elements, at ascending bounds. Cell (i, j) has the rows
    /// `row_bounds[i]..row_bounds[i + 1]` and the columns `col_bounds[j]..col_bounds[j + 1]`.
    pub fn new(data: &'a mut [T], stride: usize, row_bounds: Vec<usize>, col_bounds: Vec<usize>) -> Self {
        let ascending = |bounds: &[usize]| !bounds.is_empty() && bounds.windows(2).all(|w| w[0] <= w[1]);
        assert!(ascending(&row_bounds) && ascending(&col_bounds), "bounds must ascend");
        let (rows, cols) = (row_bounds[row_bounds.len() - 1], col_bounds[col_bounds.len() - 1]);
        assert!(cols <= stride && rows * stride <= data.len(), "grid exceeds its matrix");
        let cells = (row_bounds.len() - 1) * (col_bounds.len() - 1);
        Self {
            start: data.as_mut_ptr(),
            stride,
            row_bounds,
            col_bounds,
            claimed: (0..cells).map(|_| AtomicBool::new(false)).collect(),
            borrow: PhantomData,
        }
    }

    /// Number of cells along rows and along columns.
    pub fn cells(&self) -> (usize, usize) {
        (self.row_bounds.len() - 1, self.col_bounds.len() - 1)
    }

    /// Rows of the cells (i, _).
    pub fn row_range(&self, i: usize) -> Range<usize> {
        self.row_bounds[i]..self.row_bounds[i + 1]
    }

    /// Columns of the cells (_, j).
    pub fn col_range(&self, j: usize) -> Range<usize> {
        self.col_bounds[j]..self.col_bounds[j + 1]
    }

    /// Borrows cell (i, j). Panics if the cell was claimed before.
    pub fn claim(&self, i: usize, j: usize) -> Tile<'a, T> {
        let (rows, cols) = (self.row_range(i), self.col_range(j));
        let first = self.claimed[i * self.cells().1 + j].swap(true, Ordering::Relaxed);
        assert!(!first, "cell ({i}, {j}) is claimed twice");
        // The bounds ascend inside `data`, so cells are disjoint parts of an exclusive borrow. The
        // flag allows one claim of each cell. Therefore no two tiles share an element.
        Tile {
            start: self.start.wrapping_add(rows.start * self.stride + cols.start),
            rows: rows.len(),
            cols: cols.len(),
            stride: self.stride,
            borrow: PhantomData,
        }
    }
}

/// Panics unless `c = a b` has matching shapes.
pub(super) fn check_shapes<C: Copy, T>(c: &Tile<'_, C>, a: &Mat<'_, T>, b: &Mat<'_, T>) {
    assert!(
        a.rows == c.rows() && b.cols == c.cols() && a.cols == b.rows,
        "GEMM of {} x {} and {} x {} into {} x {}",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows(),
        c.cols()
    );
}

/// Rounds `len` up to an odd number of cache lines of `lanes` elements. Neighbouring rows with this stride do
/// not map to the same cache sets.
pub(super) fn apart(len: usize, lanes: usize) -> usize {
    (len.div_ceil(lanes) | 1) * lanes
}

/// Bounds that divide `total` elements into about equal blocks of at most `block` elements. All
/// bounds except the last are multiples of `unit`.
pub(super) fn bounds(total: usize, block: usize, unit: usize) -> Vec<usize> {
    let units = total.div_ceil(unit);
    let blocks = units.div_ceil((block / unit).max(1)).max(1);
    (0..=blocks).map(|i| (i * units / blocks * unit).min(total)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_cover_everything_in_even_blocks() {
        assert_eq!(bounds(688, 192, 64), [0, 128, 320, 512, 688]);
        assert_eq!(bounds(10, 192, 64), [0, 10]);
        assert_eq!(bounds(0, 192, 64), [0, 0]);
        for total in 0..500 {
            let b = bounds(total, 96, 32);
            assert!(b[0] == 0 && *b.last().unwrap() == total && b.windows(2).all(|w| w[1] - w[0] <= 96));
        }
    }

    #[test]
    fn cells_are_disjoint_and_claimed_once() {
        let mut data = vec![0.0; 6 * 8];
        let grid = Grid::new(&mut data, 8, vec![0, 2, 6], vec![0, 3, 3, 8]);
        for i in 0..2 {
            for j in 0..3 {
                let mut tile = grid.claim(i, j);
                for r in 0..tile.rows() {
                    tile.row(r).iter_mut().for_each(|x| *x += (1 + i * 3 + j) as f32);
                }
            }
        }
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| grid.claim(1, 2).rows())).is_err());
        drop(grid);
        assert_eq!(data[..8], [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0]);
        assert_eq!(data[5 * 8..], [4.0, 4.0, 4.0, 6.0, 6.0, 6.0, 6.0, 6.0]);
    }
}
