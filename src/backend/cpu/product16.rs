//! GEMM of one tile of bf16 matrices, summed in f32.
//!
//! ```text
//! with AMX, or its model:  `amx`
//! with AVX-512 BF16:       for each block of at most DEPTH terms of K, in order: `avx512_bf16`
//! else:                    convert both operands to f32, then `matmul`
//! ```
//!
//! On each path an element is summed in an order that depends only on the depth. So a row of a result depends
//! neither on the other rows nor on the number of threads. The paths give different bits.

use std::cell::RefCell;

use half::bf16;

use super::amx;
#[cfg(target_arch = "x86_64")]
use super::avx512::Target as Sums;
#[cfg(target_arch = "x86_64")]
use super::avx512_bf16::{Operand, Target, gemm};
use super::element::Element;
use super::matmul::matmul;
use super::tile::{Mat, Tile, check_shapes};
use super::units::Units;
use crate::backend::Write;

/// Maximum depth of one accumulation of dot products, a multiple of the maximum depth of AMX.
pub(super) const DEPTH: usize = 1024;
const _: () = assert!(DEPTH.is_multiple_of(amx::DEPTH));

/// `c (+)= a b` on one thread.
pub(super) fn product16(units: Units, c: &mut Tile<'_>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, write: Write) {
    check_shapes(c, &a, &b);
    match units {
        #[cfg(target_arch = "x86_64")]
        Units::Dot16 => dots(c, a, b, write),
        Units::Amx => amx::on_tiles(c, a, b, write),
        Units::AmxModel => amx::on_model(c, a, b, write),
        _ => converted(c, a, b, write),
    }
}

/// `c = a b` on one thread, with the sums of [`product16`] rounded to bf16. Returns false and
/// leaves `c` unchanged if these units or this depth need a tile of f32 sums.
pub(super) fn product16_rounded(units: Units, c: &mut Tile<'_, bf16>, a: Mat<'_, bf16>, b: Mat<'_, bf16>) -> bool {
    check_shapes(c, &a, &b);
    match units {
        #[cfg(target_arch = "x86_64")]
        Units::Dot16 if (1..=DEPTH).contains(&a.cols) => {
            dots_rounded(c, a, b);
            true
        }
        _ => false,
    }
}

#[cfg(target_arch = "x86_64")]
fn operand(m: Mat<'_, bf16>) -> Operand {
    assert!(Units::Dot16.is_usable(), "the processor lacks AVX-512 BF16");
    Operand { data: m.data.as_ptr().cast(), row: m.row_stride, col: m.col_stride }
}

#[cfg(target_arch = "x86_64")]
fn dots_rounded(c: &mut Tile<'_, bf16>, a: Mat<'_, bf16>, b: Mat<'_, bf16>) {
    let sizes = [a.rows, b.cols, a.cols];
    let target = Target::Rounded { stride: c.stride(), data: c.as_mut_ptr() };
    // SAFETY: as in `dots`.
    unsafe { gemm(sizes, target, operand(a), operand(b)) }
}

#[cfg(target_arch = "x86_64")]
fn dots(c: &mut Tile<'_>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, write: Write) {
    if a.cols == 0 && write == Write::Overwrite {
        c.fill(0.0);
    }
    for from in (0..a.cols).step_by(DEPTH) {
        let block = from..a.cols.min(from + DEPTH);
        let (a, b) = (a.cols(block.clone()), b.rows(block));
        let sizes = [a.rows, b.cols, a.cols];
        let sums = Sums { stride: c.stride(), data: c.as_mut_ptr(), add: write == Write::Add || from > 0 };
        // SAFETY: `operand` asserts that the processor has AVX-512 BF16. `Mat` and `Tile` check at
        // construction that every element addressed by their strides is inside their slice, and `product16`
        // has compared the shapes. `c` is borrowed exclusively, so it cannot overlap `a` or `b`.
        unsafe { gemm(sizes, Target::Sums(sums), operand(a), operand(b)) }
    }
}

thread_local! {
    /// Operands converted to f32. They grow to the largest tile of the thread.
    static CONVERTED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

fn converted(c: &mut Tile<'_>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, write: Write) {
    let [mut left, mut right] = CONVERTED.take();
    matmul(c, convert(&mut left, a), convert(&mut right, b), write);
    CONVERTED.set([left, right]);
}

/// Converts a matrix to f32, with contiguous columns if the original has them, else with contiguous rows.
fn convert<'a>(to: &'a mut Vec<f32>, from: Mat<'_, bf16>) -> Mat<'a> {
    if from.row_stride == 1 && from.col_stride != 1 {
        return convert(to, from.t()).t();
    }
    let (rows, cols) = (from.rows, from.cols);
    if to.len() < rows * cols {
        to.resize(rows * cols, 0.0);
    }
    for (r, to) in to.chunks_exact_mut(cols.max(1)).take(rows).enumerate() {
        if from.col_stride == 1 {
            bf16::widen(to, &from.data[r * from.row_stride..][..cols]);
        } else {
            to.iter_mut()
                .enumerate()
                .for_each(|(j, x)| *x = from.data[r * from.row_stride + j * from.col_stride].to_f32());
        }
    }
    Mat::new(to, rows, cols, cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a matrix with contiguous rows or contiguous columns, with gaps between them.
    fn mat(data: &[bf16], rows: usize, cols: usize, by_rows: bool) -> Mat<'_, bf16> {
        if by_rows { Mat::new(data, rows, cols, cols + 3) } else { Mat::new(data, cols, rows, rows + 3).t() }
    }

    /// Returns the units that this machine supports.
    fn units() -> Vec<Units> {
        let all = [Units::F32, Units::Dot16, Units::Amx, Units::AmxModel];
        all.into_iter().filter(|units| units.is_usable()).collect()
    }

    fn random(len: usize, factor: usize) -> Vec<bf16> {
        (0..len).map(|i| bf16::from_f32(((i * factor + 17) % 2003) as f32 / 1000.0 - 1.0)).collect()
    }

    #[test]
    fn products_are_near_those_in_f64_in_any_layout() {
        let sizes = [(1, 1, 1), (3, 40, 5), (14, 32, 64), (15, 33, 2), (29, 16, 21), (75, 100, 1025), (90, 17, 33)];
        // The left operand is packed in strips if its columns are contiguous. Some of these depths fill whole
        // cache lines of a strip, and others do not.
        let strips = (1..=50).map(|depth| (43, 40, depth));
        for (m, n, depth) in sizes.into_iter().chain(strips) {
            let (x, y) = (random((m + 3) * (depth + 3), 7919), random((n + 3) * (depth + 3), 104_729));
            for (layout, units) in (0..8).flat_map(|layout| units().into_iter().map(move |units| (layout, units))) {
                let (a, b) = (mat(&x, m, depth, layout & 1 > 0), mat(&y, depth, n, layout & 2 > 0));
                let write = if layout & 4 > 0 { Write::Add } else { Write::Overwrite };
                let old: Vec<f32> = (0..m * (n + 1)).map(|i| (i % 5) as f32).collect();
                let mut c = old.clone();
                product16(units, &mut Tile::new(&mut c, m, n, n + 1), a, b, write);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let term = |k: usize| {
                        let x = a.data[i * a.row_stride + k * a.col_stride].to_f64();
                        x * b.data[k * b.row_stride + j * b.col_stride].to_f64()
                    };
                    let at = i * (n + 1) + j;
                    let before = if write == Write::Add { f64::from(old[at]) } else { 0.0 };
                    let expected = before + (0..depth).map(term).sum::<f64>();
                    let error = (f64::from(c[at]) - expected).abs();
                    let label = format!("{m} x {n} x {depth}, layout {layout}, {units:?}, element ({i}, {j})");
                    assert!(error <= 1e-6 * (depth as f64).sqrt() * (1.0 + expected.abs()), "{label}: {error}");
                }
                let gaps = (0..m - 1).map(|i| i * (n + 1) + n);
                assert!(gaps.into_iter().all(|at| c[at] == old[at]), "an element after the columns changed");
            }
        }
    }

    #[test]
    fn results_in_bf16_are_the_rounded_sums() {
        for (m, n, depth) in [(1, 1, 1), (14, 32, 64), (29, 17, 21), (75, 100, 1024)] {
            let (x, y) = (random((m + 3) * (depth + 3), 7919), random((n + 3) * (depth + 3), 104_729));
            for (layout, units) in (0..4).flat_map(|layout| units().into_iter().map(move |units| (layout, units))) {
                let (a, b) = (mat(&x, m, depth, layout & 1 > 0), mat(&y, depth, n, layout & 2 > 0));
                let (mut sums, mut c) = (vec![0.0f32; m * n], vec![bf16::ONE; m * (n + 1)]);
                product16(units, &mut Tile::new(&mut sums, m, n, n), a, b, Write::Overwrite);
                let rounded = product16_rounded(units, &mut Tile::new(&mut c, m, n, n + 1), a, b);
                assert_eq!(rounded, units == Units::Dot16);
                for (i, x) in c.iter().enumerate() {
                    let (row, col) = (i / (n + 1), i % (n + 1));
                    let is_sum = rounded && col < n;
                    let expected = if is_sum { bf16::from_f32(sums[row * n + col]) } else { bf16::ONE };
                    assert_eq!(x.to_bits(), expected.to_bits(), "{m} x {n} x {depth}, layout {layout}, {units:?}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_any_tile() {
        let (m, n, depth) = (75, 100, 1300);
        let (x, y) = (random((m + 3) * (depth + 3), 7919), random((n + 3) * (depth + 3), 104_729));
        for (layout, units) in (0..4).flat_map(|layout| units().into_iter().map(move |units| (layout, units))) {
            let (a, b) = (mat(&x, m, depth, layout & 1 > 0), mat(&y, depth, n, layout & 2 > 0));
            let product = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
                let (m, n) = (rows.len(), cols.len());
                let mut c = vec![0.0f32; m * n];
                product16(units, &mut Tile::new(&mut c, m, n, n), a.rows(rows), b.cols(cols), Write::Overwrite);
                c
            };
            let whole = product(0..m, 0..n);
            for (rows, cols) in [(7..8, 0..n), (3..40, 5..37), (74..75, 99..100)] {
                let part = product(rows.clone(), cols.clone());
                for (i, row) in rows.enumerate() {
                    let expected = &whole[row * n..][cols.clone()];
                    assert_eq!(&part[i * cols.len()..][..cols.len()], expected, "row {row}, {units:?}");
                }
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_stay_in_their_row() {
        let depth = 31;
        for units in units() {
            for bad in [f32::NAN, f32::INFINITY] {
                let (mut x, y) = (random(5 * depth, 7919), random(40 * depth, 31));
                x[2 * depth + 30] = bf16::from_f32(bad);
                let mut c = vec![0.0f32; 5 * 40];
                let (a, b) = (Mat::new(&x, 5, depth, depth), Mat::new(&y, 40, depth, depth).t());
                product16(units, &mut Tile::new(&mut c, 5, 40, 40), a, b, Write::Overwrite);
                for (i, value) in c.iter().enumerate() {
                    assert_eq!(value.is_finite(), i / 40 != 2, "element {i}, {units:?}, {bad}");
                }
            }
        }
    }
}
