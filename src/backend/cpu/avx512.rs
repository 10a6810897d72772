//! GEMM of one tile with AVX-512.
//!
//! ```text
//! left operand: in place, or packed by columns in strips of at most 14 rows
//! for each panel of 32 columns of the right operand, packed unless few rows use it:
//!     for each strip:
//!         14 x 2 registers of sums;  for k, in order: sum = fma(a[k], b[k], sum)
//!             and prefetch a line of the next panel
//!         C = sum, or C = C + sum
//! ```
//!
//! Each lane of the 28 registers of sums is one element of C. So every element is summed in the order of k,
//! as everywhere in `matmul`. The 28 sums, 2 vectors of the right operand and one broadcast element use 31 of
//! the 32 registers.
//!
//! The left operand and a panel, (PANEL, depth) elements, stay in the L2 cache. The next panel is prefetched
//! into L2 while the strips run, so packing does not wait for memory.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::tile::apart;

/// Elements of a register.
const LANES: usize = 16;
/// Maximum number of rows of a strip.
const ROWS: usize = 14;
/// Number of columns of a panel.
const PANEL: usize = 2 * LANES;
/// Minimum number of result rows for which the right operand is packed, if its rows are contiguous.
const PACK_ROWS: usize = 5 * ROWS;
/// Minimum number of result columns for which the left operand is packed, if its columns are contiguous.
const PACK_COLS: usize = 3 * PANEL;

/// Operand of a GEMM. Element (i, j) is at `data + i * row + j * col`.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub data: *const f32,
    pub row: usize,
    pub col: usize,
}

impl Operand {
    /// Returns the operand without its first `row` rows and `col` columns.
    #[inline(always)]
    pub fn at(self, row: usize, col: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.row + col * self.col), ..self }
    }
}

/// Result of a GEMM: row-major, with `stride` elements from one row to the next.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub data: *mut f32,
    pub stride: usize,
    /// Whether the GEMM adds to the elements of the result instead of replacing them.
    pub add: bool,
}

/// Number of columns by which packing of the left operand prefetches ahead; columns can be pages apart.
const AHEAD: usize = 4;
/// Number of rows of a panel by which a strip prefetches ahead.
const NEAR: usize = 12;
/// Bytes of a cache line.
const LINE: usize = 64;

thread_local! {
    /// Packed left operand, and a packed panel of the right one. Both grow to the largest tile and depth of
    /// the thread.
    static PACKED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Cache lines that a strip prefetches, one for each k. The first `length` lines are `inner` bytes apart,
/// from `data` on. The next `length` lines start `outer` bytes after the first ones.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    pub data: *const u8,
    pub inner: usize,
    pub outer: usize,
    pub length: usize,
}

impl Prefetch {
    /// Returns the lines that strip `strip` of a panel prefetches. Together the strips prefetch the next
    /// panel, (depth, columns), which starts at `data`. Its elements are consecutive along k if `by_columns`.
    /// `stride` is the number of bytes between columns if `by_columns`, else between rows. The loop of a
    /// strip has `steps` iterations.
    #[inline(always)]
    pub fn of_panel(data: *const u8, by_columns: bool, stride: usize, steps: usize, strip: usize) -> Self {
        if by_columns {
            // A strip prefetches a line per step, and a column has a line per 16 steps, so a strip covers 16 columns.
            let length = steps.div_ceil(LANES);
            Self { data: data.wrapping_add(strip * LANES * stride), inner: LINE, outer: stride, length }
        } else {
            // A row spans two cache lines, or three if it is not aligned.
            let line = (strip * LINE).min(2 * LINE - 1);
            Self { data: data.wrapping_add(line), inner: stride, outer: steps * stride, length: steps }
        }
    }

    /// Returns a prefetch that repeats one line in every iteration, so it loads no further lines.
    #[inline(always)]
    pub fn none(data: *const u8) -> Self {
        Self { data, inner: 0, outer: 0, length: usize::MAX }
    }
}

/// `c (+)= a b` for (m, depth) by (depth, n).
///
/// # Safety
/// The processor has AVX-512F. Every element that the sizes and strides address lies inside one
/// allocation, and `c` overlaps neither operand.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn gemm([m, n, depth]: [usize; 3], c: Target, a: Operand, b: Operand) {
    if m * n * depth == 0 {
        return;
    }
    // `take` avoids a closure, which would be compiled without the vector instructions of this function.
    let [mut left, mut right] = PACKED.take();
    // SAFETY: the caller guarantees the bounds of the operands; the packed ones have the lengths set here.
    unsafe {
        let direct = b.col == 1 && (m < PACK_ROWS || (b.row == n && n <= PANEL));
        reserve(&mut right, if direct { 0 } else { PANEL * depth });
        // Strips of about equal height.
        let height = m.div_ceil(m.div_ceil(ROWS));
        let (a, strip) = place_left(&mut left, a, [m, n, depth], height);
        for j in (0..n).step_by(PANEL) {
            let cols = PANEL.min(n - j);
            let panel = if direct {
                b.at(0, j)
            } else {
                pack_right(right.as_mut_ptr(), b.at(0, j), depth, cols);
                Operand { data: right.as_ptr(), row: PANEL, col: 1 }
            };
            for i in (0..m).step_by(height) {
                let c = Target { data: c.data.wrapping_add(i * c.stride + j), ..c };
                let prefetch = if direct || j + PANEL >= n || i >= if b.col == 1 { 3 } else { 2 } * height {
                    Prefetch::none(c.data.cast())
                } else {
                    let (by_columns, stride) = (b.col != 1, if b.col == 1 { b.row } else { b.col });
                    let next = b.at(0, j + PANEL).data.cast();
                    Prefetch::of_panel(next, by_columns, stride * size_of::<f32>(), depth, i / height)
                };
                let a = Operand { data: a.data.wrapping_add(i / height * strip), ..a };
                strip_by_panel([height.min(m - i), cols, depth], c, a, panel, prefetch);
            }
        }
    }
    PACKED.set([left, right]);
}

/// Returns the left operand in the layout that [`block`] reads, and the number of elements from one strip to
/// the next.
#[target_feature(enable = "avx512f")]
unsafe fn place_left(left: &mut Vec<f32>, a: Operand, [m, n, depth]: [usize; 3], height: usize) -> (Operand, usize) {
    // SAFETY: the caller guarantees the contract of `gemm`.
    unsafe {
        if a.col == 1 {
            return (a, height * a.row);
        }
        if a.row == 1 && n < PACK_COLS {
            return (a, height);
        }
        // The last vector store of a strip extends past its rows.
        let strip = apart(ROWS * depth + LANES - ROWS, LANES);
        reserve(left, m.div_ceil(height) * strip + LANES);
        pack_left(left.as_mut_ptr(), a, [m, height, strip], depth);
        (Operand { data: left.as_ptr(), row: 1, col: ROWS }, strip)
    }
}

fn reserve(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// Mask of the first `n` lanes.
#[inline(always)]
pub(super) fn mask(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1 << n) - 1 }
}

/// Calls [`block`] for the number of rows, the number of registers per row, and the layout of `a`.
#[target_feature(enable = "avx512f")]
unsafe fn strip_by_panel([rows, cols, depth]: [usize; 3], c: Target, a: Operand, b: Operand, next: Prefetch) {
    macro_rules! choose {
        ($vectors:literal, $by_rows:literal, $($rows:literal)*) => {
            match rows {
                // SAFETY: the caller guarantees the contract of `gemm`.
                $($rows => unsafe { block::<$rows, $vectors, $by_rows>([cols, depth], c, a, b, next) },)*
                _ => unreachable!("a strip has at most {ROWS} rows"),
            }
        };
    }
    match (cols > LANES, a.col == 1) {
        (true, true) => choose!(2, true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        (true, false) => choose!(2, false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        (false, true) => choose!(1, true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        (false, false) => choose!(1, false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    }
}

/// Broadcasts the element at `$from + $times * $stride` bytes. Written in assembly, because the compiler
/// would compute an address for each row of a strip, which needs too many registers.
macro_rules! broadcast {
    ($times:literal, $from:expr, $stride:expr) => {{
        let x: __m512;
        std::arch::asm!(
            concat!("vbroadcastss {x}, dword ptr [{from} + ", $times, " * {stride}]"),
            x = out(zmm_reg) x,
            from = in(reg) $from,
            stride = in(reg) $stride,
            options(pure, readonly, nostack, preserves_flags)
        );
        x
    }};
}

/// Computes `R` rows of one panel with `V` registers per row. If `BY_ROWS`, the rows of `a` are contiguous,
/// else its columns.
#[target_feature(enable = "avx512f")]
// The compiler may not inline an iterator over `sums`, which would keep the sums in memory.
#[allow(clippy::needless_range_loop)]
unsafe fn block<const R: usize, const V: usize, const BY_ROWS: bool>(
    [cols, depth]: [usize; 2],
    c: Target,
    a: Operand,
    b: Operand,
    next: Prefetch,
) {
    let last = mask(cols - (V - 1) * LANES);
    let mut masks: [__mmask16; V] = [!0; V];
    masks[V - 1] = last;
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let mut line = b.data;
    // Bytes from one row to the next, and pointers to the rows 0, 5 and 10.
    let stride = a.row * size_of::<f32>();
    let triple = 3 * stride;
    let (mut first, mut fifth, mut tenth) =
        (a.data, a.data.wrapping_byte_add(5 * stride), a.data.wrapping_byte_add(10 * stride));
    // SAFETY: the caller guarantees the contract of `gemm`; the masks keep loads and stores inside the
    // columns.
    unsafe {
        for r in 0..R {
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(c.data.wrapping_add(r * c.stride + v * LANES).cast());
            }
        }
        let (mut ahead, mut from, mut left) = (next.data, next.data, next.length);
        for _ in 0..depth {
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            ahead = ahead.wrapping_add(next.inner);
            left -= 1;
            if left == 0 {
                from = from.wrapping_add(next.outer);
                (ahead, left) = (from, next.length);
            }
            let mut right = [_mm512_setzero_ps(); V];
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(NEAR * b.row + v * LANES).cast());
                right[v] = _mm512_maskz_loadu_ps(masks[v], line.wrapping_add(v * LANES));
            }
            macro_rules! rows {
                ($($row:literal)*) => {
                    $(if $row < R {
                        let near = if $row < 5 { first } else if $row < 10 { fifth } else { tenth };
                        let left = if !BY_ROWS {
                            _mm512_set1_ps(*first.add($row))
                        } else {
                            match $row % 5 {
                                0 => _mm512_set1_ps(*near),
                                1 => broadcast!(1, near, stride),
                                2 => broadcast!(2, near, stride),
                                3 => broadcast!(1, near, triple),
                                _ => broadcast!(4, near, stride),
                            }
                        };
                        for v in 0..V {
                            sums[$row][v] = _mm512_fmadd_ps(left, right[v], sums[$row][v]);
                        }
                    })*
                };
            }
            rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
            line = line.wrapping_add(b.row);
            if BY_ROWS {
                first = first.wrapping_add(1);
                fifth = fifth.wrapping_add(1);
                tenth = tenth.wrapping_add(1);
                // Keeps the three pointers in registers.
                std::arch::asm!(
                    "/* {0} {1} {2} */",
                    inout(reg) first,
                    inout(reg) fifth,
                    inout(reg) tenth,
                    options(pure, readonly, nostack, preserves_flags)
                );
            } else {
                first = first.wrapping_add(a.col);
            }
        }
        for r in 0..R {
            for v in 0..V {
                let to = c.data.wrapping_add(r * c.stride + v * LANES);
                let mut sum = sums[r][v];
                if c.add {
                    sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[v], to), sum);
                }
                _mm512_mask_storeu_ps(to, masks[v], sum);
            }
        }
    }
}

/// Packs a panel of `cols` columns of the right operand to (depth, PANEL) consecutive elements. Columns after
/// the last one are 0.
#[target_feature(enable = "avx512f")]
unsafe fn pack_right(to: *mut f32, b: Operand, depth: usize, cols: usize) {
    // SAFETY: the caller guarantees the contract of `gemm`, and that `to` has space for a panel.
    unsafe {
        if b.col == 1 {
            let masks = [mask(cols), mask(cols.saturating_sub(LANES))];
            for k in 0..depth {
                for (v, mask) in masks.into_iter().enumerate() {
                    let line = _mm512_maskz_loadu_ps(mask, b.data.wrapping_add(k * b.row + v * LANES));
                    _mm512_storeu_ps(to.add(k * PANEL + v * LANES), line);
                }
            }
            return;
        }
        for j in (0..PANEL).step_by(LANES) {
            let cols = cols.saturating_sub(j).min(LANES);
            for k in (0..depth).step_by(LANES) {
                let (count, to) = (LANES.min(depth - k), to.add(k * PANEL + j));
                if b.row == 1 && cols == LANES && count == LANES {
                    store_square(to, b.at(k, j).data.cast(), b.col * size_of::<f32>());
                    continue;
                }
                let square = load_square(b.at(k, j), cols, count);
                for (i, line) in square.iter().enumerate().take(count) {
                    _mm512_storeu_ps(to.add(i * PANEL), *line);
                }
            }
        }
    }
}

/// Packs the `m` rows of the left operand in strips of `height` rows. Strips are `strip` elements apart, and
/// each is (depth, ROWS) consecutive elements. The elements after the rows of a strip are unspecified. `to`
/// has space for one more vector.
#[target_feature(enable = "avx512f")]
unsafe fn pack_left(to: *mut f32, a: Operand, [m, height, strip]: [usize; 3], depth: usize) {
    // SAFETY: the caller guarantees the contract of `gemm`.
    unsafe {
        for k in 0..depth {
            if a.row == 1 {
                // Columns can be pages apart, so each is read to its end.
                for i in (0..m).step_by(LANES) {
                    _mm_prefetch::<_MM_HINT_T0>(a.at(i, k + AHEAD).data.cast());
                }
            }
            for (s, i) in (0..m).step_by(height).enumerate() {
                let (rows, to) = (height.min(m - i), to.add(s * strip + k * ROWS));
                if a.row == 1 {
                    // The next store overwrites the lanes after the rows.
                    _mm512_storeu_ps(to, _mm512_maskz_loadu_ps(mask(rows), a.at(i, k).data));
                } else {
                    for r in 0..rows {
                        *to.add(r) = *a.at(i + r, k).data;
                    }
                }
            }
        }
    }
}

/// Packs 16 x 16 elements of 4 bytes of an operand with contiguous columns, which are `stride` bytes apart.
/// Line i of the panel receives element i of each column.
///
/// # Safety
/// The processor has AVX-512F; the columns are inside an allocation, and `to` has space for the lines of a
/// panel.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn store_square(to: *mut f32, from: *const u8, stride: usize) {
    macro_rules! lines {
        ($($column:literal)*) => {
            [$({
                let from = from.wrapping_add($column * stride);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(2 * LINE).cast());
                _mm512_loadu_ps(from.cast())
            }),*]
        };
    }
    macro_rules! store {
        ($square:ident, $($row:literal)*) => {
            $(_mm512_storeu_ps(to.add($row * PANEL), $square[$row]);)*
        };
    }
    // SAFETY: the caller guarantees that columns and lines are in bounds. Macros unroll the lines, because an
    // array that is filled in a loop would be stored to memory.
    unsafe {
        let square = transposed(lines!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15));
        store!(square, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}

/// Loads `count` rows and `cols` columns of `b`. Lane j of line i is element (i, j).
#[target_feature(enable = "avx512f")]
unsafe fn load_square(b: Operand, cols: usize, count: usize) -> [__m512; LANES] {
    let mut lines = [_mm512_setzero_ps(); LANES];
    // SAFETY: the caller guarantees the contract of `gemm`; masks and counts keep the loads inside `b`.
    unsafe {
        if b.row == 1 {
            let mask = mask(count);
            for (j, line) in lines.iter_mut().enumerate().take(cols) {
                *line = _mm512_maskz_loadu_ps(mask, b.data.wrapping_add(j * b.col));
            }
            return transposed(lines);
        }
        if b.col == 1 {
            let mask = mask(cols);
            for (i, line) in lines.iter_mut().enumerate().take(count) {
                *line = _mm512_maskz_loadu_ps(mask, b.data.wrapping_add(i * b.row));
            }
            return lines;
        }
        for (i, line) in lines.iter_mut().enumerate().take(count) {
            let mut row = [0.0f32; LANES];
            for (j, x) in row.iter_mut().enumerate().take(cols) {
                *x = *b.at(i, j).data;
            }
            *line = _mm512_loadu_ps(row.as_ptr());
        }
        lines
    }
}

/// Transposes a square: exchanges elements, pairs, then quarters of registers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(rows: [__m512; LANES]) -> [__m512; LANES] {
    let mut pairs = rows;
    for i in 0..LANES / 2 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    // fours[4 q + j]: columns j, j + 4, j + 8 and j + 12 of the rows 4 q to 4 q + 3.
    let mut fours = pairs;
    for q in [0, 4, 8, 12] {
        let (a, b) = (_mm512_castps_pd(pairs[q]), _mm512_castps_pd(pairs[q + 1]));
        let (c, d) = (_mm512_castps_pd(pairs[q + 2]), _mm512_castps_pd(pairs[q + 3]));
        fours[q] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        fours[q + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        fours[q + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        fours[q + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    let mut columns = fours;
    for j in 0..4 {
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        // Quarters 0 and 2, then 1 and 3, of two registers.
        let [even_ab, even_cd] = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
        let [odd_ab, odd_cd] = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
        columns[j] = _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd);
        columns[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd);
        columns[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even_ab, even_cd);
        columns[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd_ab, odd_cd);
    }
    columns
}
