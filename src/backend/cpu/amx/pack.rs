//! Packs the operands of a GEMM in the order in which tiles load them.
//!
//! ```text
//! right: (pairs of k, 32 columns), each element a pair of two consecutive k: the panel of `avx512_bf16`,
//!        with pairs of 0 up to a multiple of 16. Every 16 rows of pairs hold two tiles side by side
//! left:  for each 16 rows, for each 32 k: a tile of (16 rows, 32 k), with zeros after the last row and k
//! ```
//!
//! With AVX-512 BF16, vector instructions do the packing. The packed bits are the same.

use half::bf16;

use super::super::tile::Mat;
use super::super::units::Units;
use super::unit::{LANES, ROWS};
use super::{PANEL, STEP};

/// Words of a packed tile of the left operand.
pub(super) const TILE_WORDS: usize = ROWS * LANES;
/// Words of a panel for one step of the depth.
pub(super) const STEP_WORDS: usize = STEP / 2 * PANEL;

/// Whether the processor supports packing with vector instructions.
pub(super) fn has_vectors() -> bool {
    cfg!(target_arch = "x86_64") && Units::Dot16.is_usable()
}

/// A pair with the first element in the lower half.
fn pair(first: bf16, second: bf16) -> u32 {
    u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16
}

/// Returns element (i, j), or 0 after the last row or column.
fn element(m: &Mat<'_, bf16>, i: usize, j: usize) -> bf16 {
    if i < m.rows && j < m.cols { m.data[i * m.row_stride + j * m.col_stride] } else { bf16::ZERO }
}

/// Packs at most [`PANEL`] columns. `to` has [`STEP_WORDS`] words for each step of the depth.
pub(super) fn pack_right(to: &mut [u32], b: Mat<'_, bf16>, vectors: bool) {
    debug_assert!(b.cols <= PANEL && to.len() == b.rows.div_ceil(STEP) * STEP_WORDS);
    #[cfg(target_arch = "x86_64")]
    if vectors {
        use super::super::avx512_bf16::{Operand, pack_right};
        let operand = Operand { data: b.data.as_ptr().cast(), row: b.row_stride, col: b.col_stride };
        // SAFETY: `vectors` is true only if `has_vectors` detected the CPU features. `Mat` checks at
        // construction that its elements are inside its slice. `to` has space for one pair per two rows in
        // every column of the panel.
        unsafe { pack_right(to.as_mut_ptr(), operand, b.rows, b.cols) };
        to[b.rows.div_ceil(2) * PANEL..].fill(0);
        return;
    }
    let _ = vectors;
    for (p, line) in to.chunks_exact_mut(PANEL).enumerate() {
        for (j, to) in line.iter_mut().enumerate() {
            *to = pair(element(&b, 2 * p, j), element(&b, 2 * p + 1, j));
        }
    }
}

/// Packs a left operand. `to` has [`TILE_WORDS`] words for each 16 rows and each step of the depth.
pub(super) fn pack_left(to: &mut [u32], a: Mat<'_, bf16>, vectors: bool) {
    let steps = a.cols.div_ceil(STEP);
    debug_assert!(to.len() == a.rows.div_ceil(ROWS) * steps * TILE_WORDS);
    #[cfg(target_arch = "x86_64")]
    if vectors && a.row_stride == 1 && a.col_stride != 1 {
        // SAFETY: `vectors` is true only if `has_vectors` detected the CPU features. `Mat` checks at
        // construction that its elements are inside its slice, and `to` has space for all tiles of its rows.
        return unsafe { vector::pack_left(to, a) };
    }
    let _ = vectors;
    for (tile, to) in to.chunks_exact_mut(TILE_WORDS).enumerate() {
        let (row, k) = (tile / steps * ROWS, tile % steps * STEP);
        for (r, line) in to.chunks_exact_mut(LANES).enumerate() {
            for (p, to) in line.iter_mut().enumerate() {
                *to = pair(element(&a, row + r, k + 2 * p), element(&a, row + r, k + 2 * p + 1));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::*;

    use half::bf16;

    use super::super::super::avx512::transposed;
    use super::super::super::avx512_bf16::mask32;
    use super::super::super::tile::Mat;
    use super::{LANES, ROWS, STEP, TILE_WORDS};

    /// Packs a left operand with contiguous columns. Each iteration loads 16 pairs of k for 32 rows and
    /// transposes them to two tiles.
    ///
    /// # Safety
    /// The processor must have AVX-512 F, BW, VL and BF16. `to` must have space for the tiles of the rows and
    /// the depth of `a`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn pack_left(to: &mut [u32], a: Mat<'_, bf16>) {
        let (m, depth, steps) = (a.rows, a.cols, a.cols.div_ceil(STEP));
        let from =
            |start: u16| -> [u16; 2 * LANES] { std::array::from_fn(|i| start + (i / 2 + i % 2 * 2 * LANES) as u16) };
        let (low, high) = (from(0), from(LANES as u16));
        let column = |i: usize, k: usize| a.data.as_ptr().wrapping_add(i + k * a.col_stride).cast();
        // SAFETY: the masks keep the loads inside `a`, and a tile is stored only if it has rows of `a`.
        unsafe {
            let (low, high) = (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast()));
            // Columns can be pages apart, so the 32 columns of a step are read to their ends before the next
            // step.
            for step in 0..steps {
                for i in (0..m).step_by(2 * ROWS) {
                    let rows = mask32(m - i);
                    let mut halves = [[_mm512_setzero_ps(); LANES]; 2];
                    let [top, bottom] = &mut halves;
                    for (p, (top, bottom)) in top.iter_mut().zip(bottom).enumerate() {
                        let k = step * STEP + 2 * p;
                        let mask = |k: usize| if k < depth { rows } else { 0 };
                        let even = _mm512_maskz_loadu_epi16(mask(k), column(i, k));
                        let odd = _mm512_maskz_loadu_epi16(mask(k + 1), column(i, k + 1));
                        *top = _mm512_castsi512_ps(_mm512_permutex2var_epi16(even, low, odd));
                        *bottom = _mm512_castsi512_ps(_mm512_permutex2var_epi16(even, high, odd));
                    }
                    for (half, pairs) in halves.into_iter().enumerate().take((m - i).div_ceil(ROWS)) {
                        let tile = ((i / ROWS + half) * steps + step) * TILE_WORDS;
                        for (to, row) in to[tile..tile + TILE_WORDS].chunks_exact_mut(LANES).zip(transposed(pairs)) {
                            _mm512_storeu_ps(to.as_mut_ptr().cast(), row);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(len: usize) -> Vec<bf16> {
        (0..len).map(|i| bf16::from_bits(i as u16 + 1)).collect()
    }

    /// Returns a matrix with contiguous rows, contiguous columns, or neither.
    fn mat(data: &[bf16], [rows, cols]: [usize; 2], layout: usize) -> Mat<'_, bf16> {
        match layout {
            0 => Mat::new(data, rows, cols, cols + 3),
            1 => Mat::new(data, cols, rows, rows + 5).t(),
            _ => Mat { data, rows, cols, row_stride: 2 * cols + 1, col_stride: 2 },
        }
    }

    #[test]
    fn both_operands_have_each_element_once_and_zeros_elsewhere() {
        let data = numbered(40_000);
        let vectors = [false, true].into_iter().filter(|vectors| !vectors || has_vectors());
        let sizes = [[1, 1], [16, 32], [17, 33], [31, 2], [33, 64], [75, 95], [160, 31]];
        for ((size, layout), vectors) in vectors.flat_map(|v| (0..3).flat_map(move |l| sizes.map(|s| ((s, l), v)))) {
            let label = format!("{size:?}, layout {layout}, vectors {vectors}");
            let a = mat(&data, size, layout);
            let steps = a.cols.div_ceil(STEP);
            let mut left = vec![!0u32; a.rows.div_ceil(ROWS) * steps * TILE_WORDS];
            pack_left(&mut left, a, vectors);
            for (at, word) in left.iter().enumerate() {
                let (tile, in_tile) = (at / TILE_WORDS, at % TILE_WORDS);
                let (row, k) = (tile / steps * 16 + in_tile / 16, tile % steps * 32 + in_tile % 16 * 2);
                let expected = pair(element(&a, row, k), element(&a, row, k + 1));
                assert_eq!(*word, expected, "{label}: left, row {row}, k {k}");
            }
            let b = a.t();
            let b = b.cols(0..b.cols.min(PANEL));
            let mut right = vec![!0u32; b.rows.div_ceil(STEP) * STEP_WORDS];
            pack_right(&mut right, b, vectors);
            for (at, word) in right.iter().enumerate() {
                let (k, col) = (at / 32 * 2, at % 32);
                let expected = pair(element(&b, k, col), element(&b, k + 1, col));
                assert_eq!(*word, expected, "{label}: right, k {k}, column {col}");
            }
        }
    }
}
