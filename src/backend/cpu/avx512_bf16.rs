//! GEMM of one tile of bf16 matrices with the dot products of AVX-512 BF16.
//!
//! ```text
//! pack the right operand in panels of 32 columns, two consecutive k beside each other
//! for each strip of at most 14 rows, for each panel:
//!     14 x 2 registers of sums;  for each pair of k, in order: sum = vdpbf16ps(sum, a pair, b pair)
//!     C = sum, or C = C + sum
//! ```
//!
//! The shape is that of `avx512`, with pairs of bf16 where that file has f32. `vdpbf16ps` adds the two
//! products of a pair to the sum in an order and with roundings of its own, which differ between
//! processors ([`Units::numerics`](super::units::Units) tells them apart), and takes subnormal numbers
//! as zero. An odd depth ends with a pair whose second product is 0.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::avx512::{Target, mask, transposed};

/// Pairs, or f32 elements, of a register.
const LANES: usize = 16;
/// Maximum number of rows of a strip.
const ROWS: usize = 14;
/// Number of columns of a panel.
const PANEL: usize = 2 * LANES;
/// Number of rows of a panel that are read ahead.
const NEAR: usize = 12;
/// Number of rows by which a pack reads ahead.
const AHEAD: usize = 16;

/// Operand of a GEMM. Element (i, j) is at `data + i * row + j * col`.
#[derive(Clone, Copy)]
pub(super) struct Operand {
    pub data: *const u16,
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

/// Strip of the left operand: pair p of row r is at `data + r * row + p * pair` bytes.
#[derive(Clone, Copy)]
struct Strip {
    data: *const u8,
    row: usize,
    pair: usize,
}

thread_local! {
    /// Packed left and right operand. Grow to the largest tile and depth of the thread.
    static PACKED: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `c (+)= a b` for (m, depth) by (depth, n).
///
/// # Safety
/// The processor has AVX-512F, BW, VL and BF16. Every element that the sizes and strides address lies
/// inside one allocation, and `c` overlaps neither operand.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn gemm([m, n, depth]: [usize; 3], c: Target, a: Operand, b: Operand) {
    if m * n * depth == 0 {
        return;
    }
    let [mut left, mut right] = PACKED.take();
    let (across, pairs) = (n.div_ceil(PANEL), depth.div_ceil(2));
    let panel = PANEL * pairs;
    reserve(&mut right, across * panel);
    let direct = a.col == 1;
    // Two strips of the left operand, packed together.
    let packed = ROWS * pairs + LANES;
    reserve(&mut left, if direct { 0 } else { 2 * packed });
    // SAFETY: the caller guarantees the operands; the packed ones have the lengths set here.
    unsafe {
        pack_right(right.as_mut_ptr(), b, depth, n);
        // Strips of about equal height.
        let height = m.div_ceil(m.div_ceil(ROWS));
        for (at, i) in (0..m).step_by(height).enumerate() {
            let rows = height.min(m - i);
            let left = left.as_mut_ptr().wrapping_add(at % 2 * packed);
            if !direct && at % 2 == 0 {
                let second = height.min(m - i - rows);
                pack_left([left, left.wrapping_add(packed)], a.at(i, 0), [rows, second], depth);
            }
            let strip = if direct {
                Strip { data: a.at(i, 0).data.cast(), row: a.row * size_of::<u16>(), pair: size_of::<u32>() }
            } else {
                Strip { data: left.cast_const().cast(), row: size_of::<u32>(), pair: ROWS * size_of::<u32>() }
            };
            for j in 0..across {
                let c = Target { data: c.data.wrapping_add(i * c.stride + j * PANEL), ..c };
                let cols = PANEL.min(n - j * PANEL);
                strip_by_panel(rows, cols, depth, c, strip, right.as_ptr().wrapping_add(j * panel));
            }
        }
    }
    PACKED.set([left, right]);
}

fn reserve(buffer: &mut Vec<u32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// Mask of the first `n` elements of a register of bf16.
#[inline(always)]
fn mask32(n: usize) -> __mmask32 {
    if n >= 2 * LANES { !0 } else { (1 << n) - 1 }
}

/// Calls [`block`] for the numbers of rows and of registers per row, and the layout of the strip.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn strip_by_panel(rows: usize, cols: usize, depth: usize, c: Target, a: Strip, b: *const u32) {
    macro_rules! choose {
        ($vectors:literal, $direct:literal, $($rows:literal)*) => {
            match rows {
                // SAFETY: the contract is that of `gemm`.
                $($rows => unsafe { block::<$rows, $vectors, $direct>(depth, c, a, b, cols) },)*
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

/// Pairs of a register, as the operand of a dot product.
#[inline(always)]
fn pairs_of(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute(x) }
}

/// `R` rows of one panel. `DIRECT`: the strip is in the left operand itself, else it is packed.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
// An iterator over `sums` may remain a call, which would keep the sums in memory.
#[allow(clippy::needless_range_loop)]
unsafe fn block<const R: usize, const V: usize, const DIRECT: bool>(
    depth: usize,
    c: Target,
    a: Strip,
    b: *const u32,
    cols: usize,
) {
    let mut masks: [__mmask16; V] = [!0; V];
    masks[V - 1] = mask(cols - (V - 1) * LANES);
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let mut line = b;
    // Bytes from one row to the next, and pointers to the rows 0, 5 and 10.
    let stride = a.row;
    let triple = 3 * stride;
    let (mut first, mut fifth, mut tenth) = (a.data, a.data.wrapping_add(5 * stride), a.data.wrapping_add(10 * stride));
    // The last pair of an odd depth would read an element after the row.
    let whole = if DIRECT { depth / 2 } else { depth.div_ceil(2) };
    // SAFETY: the contract is that of `gemm`; panels are whole, and the masks keep the stores inside the
    // columns.
    unsafe {
        for _ in 0..whole {
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

/// Packs the right operand: panel j has (pairs, PANEL) consecutive pairs; columns after the last one
/// are 0, and so is the second element of the last pair of an odd depth.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_right(to: *mut u32, b: Operand, depth: usize, n: usize) {
    let pairs = depth.div_ceil(2);
    let panel = PANEL * pairs;
    // SAFETY: the contract is that of `gemm`; `to` has space for all panels, and the masks keep the loads
    // inside `b`.
    unsafe {
        if b.col == 1 {
            // Element i of a row, then element i of the next.
            let low: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * 2 * LANES) as u16);
            let high: [u16; 2 * LANES] = low.map(|i| i + LANES as u16);
            let (low, high) = (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast()));
            // Rows are pages apart, so each is read to its end.
            for p in 0..pairs {
                let second = 2 * p + 1 < depth;
                for j in (0..n).step_by(PANEL) {
                    let near = b.data.wrapping_add((2 * p + AHEAD) * b.row + j);
                    _mm_prefetch::<_MM_HINT_T0>(near.cast());
                    _mm_prefetch::<_MM_HINT_T0>(near.wrapping_add(b.row).cast());
                    let mask = mask32(n - j);
                    let row = |k: usize| b.data.wrapping_add(k * b.row + j).cast();
                    let even = _mm512_maskz_loadu_epi16(mask, row(2 * p));
                    let odd = _mm512_maskz_loadu_epi16(if second { mask } else { 0 }, row(2 * p + 1));
                    let to = to.add(j / PANEL * panel + p * PANEL);
                    _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(even, low, odd));
                    _mm512_storeu_si512(to.add(LANES).cast(), _mm512_permutex2var_epi16(even, high, odd));
                }
            }
            return;
        }
        for j in (0..n.next_multiple_of(PANEL)).step_by(LANES) {
            let to = to.add(j / PANEL * panel + j % PANEL);
            let cols = n.saturating_sub(j).min(LANES);
            for p in (0..pairs).step_by(LANES) {
                let mut lines = [_mm512_setzero_ps(); LANES];
                for (i, line) in lines.iter_mut().enumerate().take(cols) {
                    let from = b.at(2 * p, j + i);
                    *line = _mm512_castsi512_ps(if b.row == 1 {
                        _mm_prefetch::<_MM_HINT_T0>(from.data.wrapping_add(4 * LANES).cast());
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
                    _mm512_storeu_ps(to.add((p + i) * PANEL).cast(), *line);
                }
            }
        }
    }
}

/// Packs two consecutive strips of the left operand, the second of which may be empty: (pairs, ROWS)
/// consecutive pairs each. The pairs after the rows of a strip are unspecified; each `to` has space for
/// a vector more.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_left(to: [*mut u32; 2], a: Operand, rows: [usize; 2], depth: usize) {
    // Element i of a column, then element i of the next; the second strip starts after the first.
    let from = |start: usize| -> [u16; 2 * LANES] {
        std::array::from_fn(|i| ((start + i / 2) % (2 * LANES) + i % 2 * 2 * LANES) as u16)
    };
    let (first, second) = (from(0), from(rows[0]));
    let mask = mask32(rows[0] + rows[1]);
    // SAFETY: the contract is that of `gemm`; the masks keep the loads inside `a`.
    unsafe {
        let (first, second) = (_mm512_loadu_si512(first.as_ptr().cast()), _mm512_loadu_si512(second.as_ptr().cast()));
        for p in 0..depth.div_ceil(2) {
            let whole = 2 * p + 1 < depth;
            if a.row == 1 {
                let column = |k: usize| a.at(0, k).data.cast();
                _mm_prefetch::<_MM_HINT_T0>(a.at(0, 2 * p + AHEAD).data.cast());
                _mm_prefetch::<_MM_HINT_T0>(a.at(0, 2 * p + AHEAD + 1).data.cast());
                let even = _mm512_maskz_loadu_epi16(mask, column(2 * p));
                let odd = _mm512_maskz_loadu_epi16(if whole { mask } else { 0 }, column(2 * p + 1));
                // The pairs after the rows are replaced by the next store.
                _mm512_storeu_si512(to[0].add(p * ROWS).cast(), _mm512_permutex2var_epi16(even, first, odd));
                _mm512_storeu_si512(to[1].add(p * ROWS).cast(), _mm512_permutex2var_epi16(even, second, odd));
                continue;
            }
            for r in 0..rows[0] + rows[1] {
                let (to, at) = if r < rows[0] { (to[0], r) } else { (to[1], r - rows[0]) };
                let odd = if whole { u32::from(*a.at(r, 2 * p + 1).data) } else { 0 };
                *to.add(p * ROWS + at) = u32::from(*a.at(r, 2 * p).data) | odd << 16;
            }
        }
    }
}

/// Results of dot products whose bits depend on how a processor sums a pair.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn samples() -> [f32; 3 * LANES] {
    // Powers of two at the edge of the precision of a sum, ties, and a subnormal number.
    const VALUES: [f32; 6] = [1.0, 1.007_812_5, 4096.0, 0.003_906_25, 5.9e-8, 1e-39];
    let lane = |i: usize| half::bf16::from_f32(VALUES[i % VALUES.len()]);
    let pairs = |first: usize, step: usize| -> __m512bh {
        let elements: [half::bf16; 2 * LANES] = std::array::from_fn(|i| lane(first + step * i));
        // SAFETY: both are 64 bytes without invalid values.
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
