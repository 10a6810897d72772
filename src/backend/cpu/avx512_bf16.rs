//! GEMM of one tile of bf16 matrices with the dot products of AVX-512 BF16.
//!
//! ```text
//! left operand: in place if its rows are contiguous, else packed by pairs of columns in strips of at most 14 rows
//! for each panel of 32 columns of the right operand, packed with two consecutive k next to each other:
//!     for each strip:
//!         14 x 2 registers of sums;  for each pair of k, in order: sum = vdpbf16ps(sum, a pair, b pair)
//!             and prefetch a line of the next panel
//!         C = sum, or C = C + sum
//! ```
//!
//! The structure is that of `avx512`, with pairs of bf16 where that file has f32. `vdpbf16ps` adds the two
//! products of a pair to the sum in an order and with roundings that differ between processors.
//! [`Units::numerics`](super::units::Units) distinguishes these processors. The instruction treats subnormal
//! numbers as zero. An odd depth ends with a pair whose second product is 0.

use std::arch::x86_64::*;
use std::cell::RefCell;

use half::bf16;

use super::avx512::{Prefetch, Target as Sums, mask, store_square, transposed};
use super::avx512_math::rounded_fast;
use super::tile::apart;

/// Number of bf16 pairs, or of f32 elements, in a register.
const LANES: usize = 16;
/// Maximum number of rows of a strip.
const ROWS: usize = 14;
/// Number of columns of a panel.
const PANEL: usize = 2 * LANES;
/// Number of rows of a panel by which a strip prefetches ahead.
const NEAR: usize = 12;
/// Number of columns by which packing of the left operand prefetches ahead.
const AHEAD: usize = 8;

/// Operand of a GEMM. Element (i, j) is at `data + i * row + j * col`.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub data: *const u16,
    pub row: usize,
    pub col: usize,
}

impl Operand {
    /// Returns the operand without its first `row` rows and `col` columns.
    #[inline(always)]
    fn at(self, row: usize, col: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.row + col * self.col), ..self }
    }
}

/// Result of a GEMM.
#[derive(Clone, Copy)]
pub(super) enum Target {
    /// The sums, in f32.
    Sums(Sums),
    /// The sums rounded to bf16: row-major, with `stride` elements from one row to the next.
    Rounded { data: *mut bf16, stride: usize },
}

/// Strip of the left operand: pair p of row r is at `data + r * row + p * pair` bytes.
#[derive(Clone, Copy)]
struct Strip {
    data: *const u8,
    row: usize,
    pair: usize,
}

thread_local! {
    /// Packed left operand, and a packed panel of the right one. Both grow to the largest tile and depth of
    /// the thread.
    static PACKED: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `c (+)= a b` for (m, depth) by (depth, n).
///
/// # Safety
/// The processor has AVX-512F, BW, VL, DQ and BF16. Every element that the sizes and strides address lies
/// inside one allocation, and `c` overlaps neither operand.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
pub(super) unsafe fn gemm([m, n, depth]: [usize; 3], c: Target, a: Operand, b: Operand) {
    if m * n * depth == 0 {
        return;
    }
    let [mut left, mut right] = PACKED.take();
    // f32 sums of a strip whose results are rounded to bf16.
    let mut sums = [0.0; ROWS * PANEL];
    let pairs = depth.div_ceil(2);
    reserve(&mut right, PANEL * pairs);
    // Strips of about equal height.
    let height = m.div_ceil(m.div_ceil(ROWS));
    let direct = a.col == 1;
    // The last vector store of a strip extends past its rows.
    let strip = apart(ROWS * pairs + LANES - ROWS, LANES);
    // SAFETY: the caller guarantees the bounds of the operands; the packed ones have the lengths set here.
    unsafe {
        if !direct {
            // `pack_left` writes two strips at a time.
            reserve(&mut left, m.div_ceil(height).next_multiple_of(2) * strip + LANES);
            pack_left(left.as_mut_ptr(), a, [m, height, strip], depth);
        }
        for j in (0..n).step_by(PANEL) {
            let cols = PANEL.min(n - j);
            pack_right(right.as_mut_ptr(), b.at(0, j), depth, cols);
            for i in (0..m).step_by(height) {
                let rows = height.min(m - i);
                let to = match c {
                    Target::Sums(c) => Sums { data: c.data.wrapping_add(i * c.stride + j), ..c },
                    Target::Rounded { .. } => Sums { data: sums.as_mut_ptr(), stride: PANEL, add: false },
                };
                let prefetch = if j + PANEL >= n || i >= 2 * height {
                    Prefetch::none(to.data.cast())
                } else {
                    let (by_columns, stride) = (b.col != 1, if b.col == 1 { 2 * b.row } else { b.col });
                    let next = b.at(if b.col == 1 { i / height } else { 0 }, j + PANEL).data.cast();
                    Prefetch::of_panel(next, by_columns, stride * size_of::<u16>(), pairs, i / height)
                };
                let a = if direct {
                    Strip { data: a.at(i, 0).data.cast(), row: a.row * size_of::<u16>(), pair: size_of::<u32>() }
                } else {
                    let data = left.as_ptr().wrapping_add(i / height * strip).cast();
                    Strip { data, row: size_of::<u32>(), pair: ROWS * size_of::<u32>() }
                };
                strip_by_panel([rows, cols, depth], to, a, right.as_ptr(), prefetch);
                if let Target::Rounded { data, stride } = c {
                    round_block(data.wrapping_add(i * stride + j), stride, &sums, [rows, cols]);
                }
            }
        }
    }
    PACKED.set([left, right]);
}

/// Rounds a strip of sums, with rows of [`PANEL`] elements, to bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
unsafe fn round_block(to: *mut bf16, stride: usize, sums: &[f32; ROWS * PANEL], [rows, cols]: [usize; 2]) {
    for (r, row) in sums.chunks_exact(PANEL).enumerate().take(rows) {
        for at in (0..cols).step_by(LANES) {
            // SAFETY: the caller guarantees the contract of `gemm`; the mask keeps the store inside the
            // columns.
            unsafe {
                let sums = _mm512_loadu_ps(row.as_ptr().add(at));
                let to = to.wrapping_add(r * stride + at).cast();
                _mm256_mask_storeu_epi16(to, mask(cols - at), rounded_fast(sums));
            }
        }
    }
}

fn reserve(buffer: &mut Vec<u32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// Mask of the first `n` elements of a register of bf16.
#[inline(always)]
pub(super) fn mask32(n: usize) -> __mmask32 {
    if n >= 2 * LANES { !0 } else { (1 << n) - 1 }
}

/// Calls [`block`] for the number of rows, the number of registers per row, and the layout of the strip.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
unsafe fn strip_by_panel([rows, cols, depth]: [usize; 3], c: Sums, a: Strip, b: *const u32, next: Prefetch) {
    macro_rules! choose {
        ($vectors:literal, $direct:literal, $($rows:literal)*) => {
            match rows {
                // SAFETY: the caller guarantees the contract of `gemm`.
                $($rows => unsafe { block::<$rows, $vectors, $direct>([cols, depth], c, a, b, next) },)*
                _ => unreachable!("a strip has at most {ROWS} rows"),
            }
        };
    }
    match (cols > LANES, a.pair == size_of::<u32>()) {
        (true, true) => choose!(2, true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        (true, false) => choose!(2, false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        (false, true) => choose!(1, true, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        (false, false) => choose!(1, false, 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    }
}

/// Broadcasts the pair at `$from + $times * $stride` bytes, as in `avx512`.
macro_rules! broadcast {
    ($times:literal, $from:expr, $stride:expr) => {{
        let x: __m512i;
        std::arch::asm!(
            concat!("vpbroadcastd {x}, dword ptr [{from} + ", $times, " * {stride}]"),
            x = out(zmm_reg) x,
            from = in(reg) $from,
            stride = in(reg) $stride,
            options(pure, readonly, nostack, preserves_flags)
        );
        x
    }};
}

/// Reinterprets a register as pairs, the operand of a dot product.
#[inline(always)]
fn pairs_of(x: __m512i) -> __m512bh {
    // SAFETY: both types have 64 bytes, and all bit patterns are valid.
    unsafe { std::mem::transmute(x) }
}

/// Computes `R` rows of one panel with `V` registers per row. If `DIRECT`, the strip is in the left operand
/// itself, else it is packed.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
// The compiler may not inline an iterator over `sums`, which would keep the sums in memory.
#[allow(clippy::needless_range_loop)]
unsafe fn block<const R: usize, const V: usize, const DIRECT: bool>(
    [cols, depth]: [usize; 2],
    c: Sums,
    a: Strip,
    b: *const u32,
    next: Prefetch,
) {
    let mut masks: [__mmask16; V] = [!0; V];
    masks[V - 1] = mask(cols - (V - 1) * LANES);
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let mut line = b;
    // Bytes from one row to the next, and pointers to the rows 0, 5 and 10.
    let stride = a.row;
    let triple = 3 * stride;
    let (mut first, mut fifth, mut tenth) = (a.data, a.data.wrapping_add(5 * stride), a.data.wrapping_add(10 * stride));
    // The loop omits the last pair of an odd depth if `DIRECT`, because it would read an element after the
    // row.
    let whole = if DIRECT { depth / 2 } else { depth.div_ceil(2) };
    // SAFETY: the caller guarantees the contract of `gemm`; panels are whole, and the masks keep the stores
    // inside the columns.
    unsafe {
        for r in 0..R {
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_ET0>(c.data.wrapping_add(r * c.stride + v * LANES).cast());
            }
        }
        let (mut ahead, mut from, mut left) = (next.data, next.data, next.length);
        for _ in 0..whole {
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            ahead = ahead.wrapping_add(next.inner);
            left -= 1;
            if left == 0 {
                from = from.wrapping_add(next.outer);
                (ahead, left) = (from, next.length);
            }
            let mut right = [_mm512_setzero_si512(); V];
            for v in 0..V {
                _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(NEAR * PANEL + v * LANES).cast());
                right[v] = _mm512_loadu_si512(line.wrapping_add(v * LANES).cast());
            }
            macro_rules! rows {
                ($($row:literal)*) => {
                    $(if $row < R {
                        let near = if $row < 5 { first } else if $row < 10 { fifth } else { tenth };
                        let left = if !DIRECT {
                            _mm512_set1_epi32(*first.cast::<i32>().add($row))
                        } else {
                            match $row % 5 {
                                0 => _mm512_set1_epi32(near.cast::<i32>().read_unaligned()),
                                1 => broadcast!(1, near, stride),
                                2 => broadcast!(2, near, stride),
                                3 => broadcast!(1, near, triple),
                                _ => broadcast!(4, near, stride),
                            }
                        };
                        for v in 0..V {
                            sums[$row][v] = _mm512_dpbf16_ps(sums[$row][v], pairs_of(left), pairs_of(right[v]));
                        }
                    })*
                };
            }
            rows!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
            line = line.wrapping_add(PANEL);
            first = first.wrapping_add(a.pair);
            if DIRECT {
                fifth = fifth.wrapping_add(size_of::<u32>());
                tenth = tenth.wrapping_add(size_of::<u32>());
                // Keeps the three pointers in registers.
                std::arch::asm!(
                    "/* {0} {1} {2} */",
                    inout(reg) first,
                    inout(reg) fifth,
                    inout(reg) tenth,
                    options(pure, readonly, nostack, preserves_flags)
                );
            }
        }
        if DIRECT && depth % 2 == 1 {
            for r in 0..R {
                let last = first.wrapping_add(r * stride).cast::<u16>().read_unaligned();
                let left = pairs_of(_mm512_set1_epi32(i32::from(last)));
                for v in 0..V {
                    let right = _mm512_loadu_si512(line.wrapping_add(v * LANES).cast());
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], left, pairs_of(right));
                }
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

/// Indices of a permutation that interleaves two registers: element `start` of the first and of the second,
/// then element `start + 1` of both, and so on.
const fn interleaved(start: usize) -> [u16; 2 * LANES] {
    let mut indices = [0; 2 * LANES];
    let mut i = 0;
    while i < 2 * LANES {
        indices[i] = ((start + i / 2) % (2 * LANES) + i % 2 * 2 * LANES) as u16;
        i += 1;
    }
    indices
}

/// Packs a panel of `cols` columns of the right operand to (pairs, PANEL) consecutive pairs. Columns after
/// the last one are 0, and so is the second element of the last pair of an odd depth.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
pub(super) unsafe fn pack_right(to: *mut u32, b: Operand, depth: usize, cols: usize) {
    let pairs = depth.div_ceil(2);
    // SAFETY: the caller guarantees the contract of `gemm`, and that `to` has space for a panel; the masks
    // keep the loads inside `b`.
    unsafe {
        if b.col == 1 {
            static LOW: [u16; 2 * LANES] = interleaved(0);
            static HIGH: [u16; 2 * LANES] = interleaved(LANES);
            let (low, high) = (_mm512_loadu_si512(LOW.as_ptr().cast()), _mm512_loadu_si512(HIGH.as_ptr().cast()));
            let mask = mask32(cols);
            for p in 0..pairs {
                let second = if 2 * p + 1 < depth { mask } else { 0 };
                let row = |k: usize| b.data.wrapping_add(k * b.row).cast();
                let even = _mm512_maskz_loadu_epi16(mask, row(2 * p));
                let odd = _mm512_maskz_loadu_epi16(second, row(2 * p + 1));
                let to = to.add(p * PANEL);
                _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(even, low, odd));
                _mm512_storeu_si512(to.add(LANES).cast(), _mm512_permutex2var_epi16(even, high, odd));
            }
            return;
        }
        for j in (0..PANEL).step_by(LANES) {
            let cols = cols.saturating_sub(j).min(LANES);
            for p in (0..pairs).step_by(LANES) {
                let (from, to) = (b.at(2 * p, j), to.add(p * PANEL + j));
                if b.row == 1 && cols == LANES && depth - 2 * p >= 2 * LANES {
                    // A bf16 pair is transposed like one f32.
                    store_square(to.cast(), from.data.cast(), b.col * size_of::<u16>());
                    continue;
                }
                let mut lines = [_mm512_setzero_ps(); LANES];
                for (i, line) in lines.iter_mut().enumerate().take(cols) {
                    let from = from.at(0, i);
                    *line = _mm512_castsi512_ps(if b.row == 1 {
                        _mm512_maskz_loadu_epi16(mask32(depth - 2 * p), from.data.cast())
                    } else {
                        let mut elements = [0u16; 2 * LANES];
                        for (k, x) in elements.iter_mut().enumerate().take(depth - 2 * p) {
                            *x = *from.at(k, 0).data;
                        }
                        _mm512_loadu_si512(elements.as_ptr().cast())
                    });
                }
                let square = transposed(lines);
                for (i, line) in square.iter().enumerate().take(pairs - p) {
                    _mm512_storeu_ps(to.add(i * PANEL).cast(), *line);
                }
            }
        }
    }
}

/// Packs the `m` rows of the left operand in strips of `height` rows. Strips are `strip` pairs apart, and
/// each is (pairs, ROWS) consecutive pairs. The pairs after the rows of a strip are unspecified. `to` has
/// space for an even number of strips and one more vector.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx")]
unsafe fn pack_left(to: *mut u32, a: Operand, [m, height, strip]: [usize; 3], depth: usize) {
    // A load covers two strips, and the second starts `height` rows after the first.
    let (first, second) = (interleaved(0), interleaved(height));
    // SAFETY: the caller guarantees the contract of `gemm`; the masks keep the loads inside `a`.
    unsafe {
        let (first, second) = (_mm512_loadu_si512(first.as_ptr().cast()), _mm512_loadu_si512(second.as_ptr().cast()));
        for p in 0..depth.div_ceil(2) {
            let whole = 2 * p + 1 < depth;
            let to = to.add(p * ROWS);
            if a.row != 1 {
                for r in 0..m {
                    let odd = if whole { u32::from(*a.at(r, 2 * p + 1).data) } else { 0 };
                    *to.add(r / height * strip + r % height) = u32::from(*a.at(r, 2 * p).data) | odd << 16;
                }
                continue;
            }
            // Columns can be pages apart, so each is read to its end.
            for i in (0..m).step_by(2 * LANES) {
                _mm_prefetch::<_MM_HINT_T0>(a.at(i, 2 * p + AHEAD).data.cast());
                _mm_prefetch::<_MM_HINT_T0>(a.at(i, 2 * p + AHEAD + 1).data.cast());
            }
            for i in (0..m).step_by(2 * height) {
                let mask = mask32((2 * height).min(m - i));
                let column = |k: usize| a.at(i, k).data.cast();
                let even = _mm512_maskz_loadu_epi16(mask, column(2 * p));
                let odd = _mm512_maskz_loadu_epi16(if whole { mask } else { 0 }, column(2 * p + 1));
                let to = to.add(i / height * strip);
                // The next store overwrites the pairs after the rows.
                _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(even, first, odd));
                _mm512_storeu_si512(to.add(strip).cast(), _mm512_permutex2var_epi16(even, second, odd));
            }
        }
    }
}

/// Returns results of dot products whose bits depend on how a processor sums a pair.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn samples() -> [f32; 3 * LANES] {
    // Powers of two at the edge of a sum's precision, values that cause ties, and a subnormal number.
    const VALUES: [f32; 6] = [1.0, 1.007_812_5, 4096.0, 0.003_906_25, 5.9e-8, 1e-39];
    let lane = |i: usize| bf16::from_f32(VALUES[i % VALUES.len()]);
    let pairs = |first: usize, step: usize| -> __m512bh {
        let elements: [bf16; 2 * LANES] = std::array::from_fn(|i| lane(first + step * i));
        // SAFETY: both types have 64 bytes, and all bit patterns are valid.
        unsafe { std::mem::transmute(elements) }
    };
    let mut samples = [0.0; 3 * LANES];
    for (i, to) in samples.chunks_exact_mut(LANES).enumerate() {
        let sum = _mm512_set1_ps([16_777_216.0, 1.0, -3.000_000_5][i]);
        let sum = _mm512_dpbf16_ps(sum, pairs(i, 1), pairs(i + 1, 5));
        // SAFETY: `to` has space for a register.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_dpbf16_ps(sum, pairs(2 * i, 5), pairs(0, 1))) };
    }
    samples
}
