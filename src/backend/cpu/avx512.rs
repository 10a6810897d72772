//! GEMM of one tile with AVX-512.
//!
//! ```text
//! pack the right operand in panels of 32 columns, unless few rows use it
//! for each strip of at most 14 rows, for each panel:
//!     14 x 2 registers of sums;  for k, in order: sum = fma(a[k], b[k], sum)
//!     C = sum, or C = C + sum
//! ```
//!
//! Each of the 28 registers of sums is an element of C per lane, so every element is summed in the
//! order of k, as everywhere in `matmul`. 28 sums, 2 vectors of the right operand and one broadcast
//! element fill the register file.
//!
//! A panel is packed for the second cache: (PANEL, depth) elements, read once for each strip.

use std::arch::x86_64::*;
use std::cell::RefCell;

/// Elements of a register.
const LANES: usize = 16;
/// Maximum number of rows of a strip.
const ROWS: usize = 14;
/// Number of columns of a panel.
const PANEL: usize = 2 * LANES;
/// Minimum number of rows for which the right operand is packed, if its rows are contiguous.
const PACK_ROWS: usize = 5 * ROWS;
/// Minimum number of columns for which the left operand is packed, if its columns are contiguous.
const PACK_COLS: usize = 3 * PANEL;

/// Operand of a GEMM. Element (i, j) is at `data + i * row + j * col`.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub data: *const f32,
    pub row: usize,
    pub col: usize,
}

impl Operand {
    /// The operand without its first rows and columns.
    #[inline(always)]
    fn at(self, row: usize, col: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.row + col * self.col), ..self }
    }
}

/// Result of a GEMM: row-major, with `stride` elements from one row to the next.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub data: *mut f32,
    pub stride: usize,
    /// Adds to the elements of the result instead of replacing them.
    pub add: bool,
}

/// Number of rows by which a pack reads ahead; they are pages apart.
const AHEAD: usize = 16;
/// Number of rows of a panel that are read ahead.
const NEAR: usize = 12;

thread_local! {
    /// Packed left and right operand. Grow to the largest tile and depth of the thread.
    static PACKED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
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
    // A closure would not have the vector instructions of this function.
    let [mut left, mut right] = PACKED.take();
    let across = n.div_ceil(PANEL);
    // SAFETY: the caller guarantees the operands; the packed ones have the lengths set here.
    unsafe {
        let direct = b.col == 1 && (m < PACK_ROWS || (b.row == n && n <= PANEL));
        let (b, panel) = if direct {
            (b, PANEL)
        } else {
            reserve(&mut right, across * PANEL * depth);
            pack_right(right.as_mut_ptr(), b, depth, n);
            (Operand { data: right.as_ptr(), row: PANEL, col: 1 }, PANEL * depth)
        };
        // Strips of about equal height.
        let height = m.div_ceil(m.div_ceil(ROWS));
        let pack = a.col != 1 && (a.row != 1 || n >= PACK_COLS);
        reserve(&mut left, if pack { ROWS * depth + LANES } else { 0 });
        for i in (0..m).step_by(height) {
            let rows = height.min(m - i);
            let mut a = a.at(i, 0);
            if pack {
                pack_left(left.as_mut_ptr(), a, rows, depth);
                a = Operand { data: left.as_ptr(), row: 1, col: ROWS };
            }
            for j in 0..across {
                let b = Operand { data: b.data.wrapping_add(j * panel), ..b };
                let c = Target { data: c.data.wrapping_add(i * c.stride + j * PANEL), ..c };
                strip_by_panel(rows, PANEL.min(n - j * PANEL), depth, c, a, b);
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

/// Mask of the first `n` lanes.
#[inline(always)]
pub(super) fn mask(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1 << n) - 1 }
}

/// Calls [`block`] for the numbers of rows, of registers per row, and the direction of `a`.
#[target_feature(enable = "avx512f")]
unsafe fn strip_by_panel(rows: usize, cols: usize, depth: usize, c: Target, a: Operand, b: Operand) {
    macro_rules! choose {
        ($vectors:literal, $by_rows:literal, $($rows:literal)*) => {
            match rows {
                // SAFETY: the contract is that of `gemm`.
                $($rows => unsafe { block::<$rows, $vectors, $by_rows>(depth, c, a, b, cols) },)*
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

/// Broadcasts the element at `$from + $times * $stride` bytes. Written in assembly, because the
/// compiler computes an address for each row of a strip, which exceeds the registers.
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

/// `R` rows of one panel. `BY_ROWS`: the rows of `a` are contiguous, else its columns are.
#[target_feature(enable = "avx512f")]
// An iterator over `sums` may remain a call, which would keep the sums in memory.
#[allow(clippy::needless_range_loop)]
unsafe fn block<const R: usize, const V: usize, const BY_ROWS: bool>(
    depth: usize,
    c: Target,
    a: Operand,
    b: Operand,
    cols: usize,
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
    // SAFETY: the contract is that of `gemm`; the masks keep loads and stores inside the columns.
    unsafe {
        for _ in 0..depth {
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

/// Packs the right operand: panel j has (depth, PANEL) consecutive elements; columns after the last
/// one are 0.
#[target_feature(enable = "avx512f")]
unsafe fn pack_right(to: *mut f32, b: Operand, depth: usize, n: usize) {
    let panel = PANEL * depth;
    // SAFETY: the contract is that of `gemm`; `to` has space for all panels.
    unsafe {
        if b.col == 1 {
            // Rows are pages apart, so each is read to its end.
            for k in 0..depth {
                let mut j = 0;
                while j < n {
                    _mm_prefetch::<_MM_HINT_T0>(b.data.wrapping_add((k + AHEAD) * b.row + j).cast());
                    let line = _mm512_maskz_loadu_ps(mask(n - j), b.data.wrapping_add(k * b.row + j));
                    _mm512_storeu_ps(to.add(j / PANEL * panel + k * PANEL + j % PANEL), line);
                    j += LANES;
                }
                if (1..=LANES).contains(&(n % PANEL)) {
                    _mm512_storeu_ps(to.add(n / PANEL * panel + k * PANEL + LANES), _mm512_setzero_ps());
                }
            }
            return;
        }
        for j in (0..n.next_multiple_of(PANEL)).step_by(LANES) {
            let to = to.add(j / PANEL * panel + j % PANEL);
            for k in (0..depth).step_by(LANES) {
                let count = LANES.min(depth - k);
                for i in 0..LANES {
                    _mm_prefetch::<_MM_HINT_T0>(b.at(k + 2 * LANES, j + i).data.cast());
                }
                let square = load_square(b.at(k, j), n.saturating_sub(j).min(LANES), count);
                for (i, line) in square.iter().enumerate().take(count) {
                    _mm512_storeu_ps(to.add((k + i) * PANEL), *line);
                }
            }
        }
    }
}

/// Packs a strip of the left operand: (depth, ROWS) consecutive elements. The elements after `rows`
/// are unspecified; `to` has space for a vector more.
#[target_feature(enable = "avx512f")]
unsafe fn pack_left(to: *mut f32, a: Operand, rows: usize, depth: usize) {
    // SAFETY: the contract is that of `gemm`.
    unsafe {
        if a.row == 1 {
            let mask = mask(rows);
            for k in 0..depth {
                _mm_prefetch::<_MM_HINT_T0>(a.at(0, k + AHEAD).data.cast());
                // The lanes after `rows` are replaced by the next store.
                _mm512_storeu_ps(to.add(k * ROWS), _mm512_maskz_loadu_ps(mask, a.at(0, k).data));
            }
            return;
        }
        for k in 0..depth {
            for r in 0..rows {
                *to.add(k * ROWS + r) = *a.at(r, k).data;
            }
        }
    }
}

/// Lane j of line i is element (i, j) of `b`, for `count` rows and `cols` columns.
#[target_feature(enable = "avx512f")]
unsafe fn load_square(b: Operand, cols: usize, count: usize) -> [__m512; LANES] {
    let mut lines = [_mm512_setzero_ps(); LANES];
    // SAFETY: the contract is that of `gemm`; masks and counts keep the loads inside `b`.
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
