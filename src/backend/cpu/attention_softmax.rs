//! Softmax of the scores of a block of queries, and its gradient. All rows of a block are processed in one
//! call, because a row of a short sequence costs less than a call.

use std::ops::Range;

use half::bf16;

use super::attention::Visible;
use super::element::upper;
use super::math::{cap, cap_slope, exp};
use super::simd::{LANES, dot, largest_lane, sum_lanes, vectorised};
use super::{matmul, product16};

// The columns of a block start at a multiple of one of these depths, so also at a multiple of `LANES`.
const _: () = assert!(matmul::DEPTH.is_multiple_of(LANES) && product16::DEPTH.is_multiple_of(LANES));

/// Scores of a block of queries, (count, keys). Row r belongs to the query at position
/// `position + r / group`, column c to the key at position `first + c`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub count: usize,
    pub group: usize,
    pub position: usize,
    pub first: usize,
    /// Number of keys, a multiple of [`LANES`].
    pub keys: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    pub visible: Visible,
    /// Factor on the scores, applied before the soft cap.
    pub scale: Option<f32>,
    pub softcap: Option<f32>,
}

impl Rows {
    /// Columns that a row sees.
    #[inline(always)]
    pub fn seen(&self, row: usize) -> Range<usize> {
        let keys = self.visible.keys(self.position + row / self.group);
        keys.start - self.first..keys.end - self.first
    }
}

/// Bounds of `seen` relative to vector `index` of a row. The compiler tests lanes against them with vector
/// comparisons. An array of booleans would cause one branch per lane.
#[inline(always)]
fn bounds_in(seen: &Range<usize>, index: usize) -> [i32; 2] {
    let at = (index * LANES) as i32;
    [seen.start as i32 - at, seen.end as i32 - at]
}

/// `value` if the lane is within the bounds, else `other`.
#[inline(always)]
fn within(lane: usize, [start, end]: [i32; 2], value: f32, other: f32) -> f32 {
    if (lane as i32 >= start) & ((lane as i32) < end) { value } else { other }
}

/// Returns the scores of a vector, scaled and capped, with `-inf` where the key is not seen.
#[inline(always)]
fn masked<const FMA: bool>(values: &[f32; LANES], seen: [i32; 2], rows: &Rows) -> [f32; LANES] {
    let mut values = *values;
    if let Some(scale) = rows.scale {
        for value in &mut values {
            *value *= scale;
        }
    }
    if let Some(limit) = rows.softcap {
        for value in &mut values {
            *value = cap::<FMA>(*value, limit);
        }
    }
    for (l, value) in values.iter_mut().enumerate() {
        *value = within(l, seen, *value, f32::NEG_INFINITY);
    }
    values
}

#[inline(always)]
fn rounded_vector(from: &[f32; LANES]) -> [bf16; LANES] {
    let mut to = [bf16::ZERO; LANES];
    for (to, x) in to.iter_mut().zip(from) {
        *to = bf16::from_bits(upper(*x) as u16);
    }
    to
}

/// Replaces every score s of a row by `e^(s - largest)`, and by 0 where the key is not seen. Writes the
/// largest score and the sum of the exponentials of each row to `stats`, as
/// [`softmax_row`](super::math::softmax_row) returns them. Also writes the exponentials in bf16 to `rounded`,
/// which has the layout of `scores`.
pub(super) fn softmax_rows(scores: &mut [f32], rounded: Option<&mut [bf16]>, stats: &mut [[f32; 2]], rows: Rows) {
    #[cfg(target_arch = "x86_64")]
    if rows.softcap.is_none() && super::simd::level() == super::simd::Level::Avx512 {
        // SAFETY: `level` has detected the instructions.
        return unsafe { super::avx512_softmax::softmax_rows(scores, rounded, stats, rows) };
    }
    softmax_loop(scores, rounded, stats, rows);
}

vectorised! {
    /// [`softmax_rows`] on any processor.
    fn softmax_loop(
        scores: &mut [f32],
        rounded: Option<&mut [bf16]>,
        stats: &mut [[f32; 2]],
        rows: Rows,
    ) {
        let mut rounded = rounded;
        for (r, stats) in stats.iter_mut().enumerate().take(rows.count) {
            let seen = rows.seen(r);
            let row = &mut scores[r * rows.stride..][..rows.keys];
            let (whole, hidden) = row.split_at_mut(seen.end.next_multiple_of(LANES));
            let (vectors, _) = whole.as_chunks_mut::<LANES>();
            let mut lanes = [f32::NEG_INFINITY; LANES];
            for (i, values) in vectors.iter_mut().enumerate() {
                *values = masked::<FMA>(values, bounds_in(&seen, i), &rows);
                for l in 0..LANES {
                    lanes[l] = if values[l] > lanes[l] { values[l] } else { lanes[l] };
                }
            }
            let largest = largest_lane(lanes);
            if largest == f32::NEG_INFINITY {
                let nan = whole.iter().any(|x| x.is_nan());
                whole.fill(0.0);
                *stats = [largest, if nan { f32::NAN } else { 0.0 }];
            } else {
                let mut sums = [0.0; LANES];
                for values in vectors {
                    for l in 0..LANES {
                        values[l] = exp::<FMA>(values[l] - largest);
                        sums[l] += values[l];
                    }
                }
                *stats = [largest, sum_lanes(sums)];
            }
            hidden.fill(0.0);
            if let Some(rounded) = &mut rounded {
                let (to, _) = rounded[r * rows.stride..][..rows.keys].as_chunks_mut::<LANES>();
                for (to, values) in to.iter_mut().zip(row.as_chunks::<LANES>().0) {
                    *to = rounded_vector(values);
                }
            }
        }
    }
}

/// Inputs of [`softmax_rows_bwd`] other than the scores.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub head_dim: usize,
    /// Elements from one token to the next in `o` and `dout`.
    pub width: usize,
    /// Attention output and its gradient, both from the first head of the block's first token on.
    pub o: &'a [f32],
    pub dout: &'a [f32],
    /// Log-sum-exp of the scores, from the first head and the block's first token on.
    pub lse: &'a [f32],
    /// Elements of `lse` from one head to the next.
    pub tokens: usize,
}

impl Outputs<'_> {
    /// Output, its gradient and the log-sum-exp of a row of scores.
    #[inline(always)]
    pub fn row(&self, row: usize, group: usize) -> (&[f32], &[f32], f32) {
        let (token, head) = (row / group, row % group);
        let at = token * self.width + head * self.head_dim;
        let lse = self.lse[head * self.tokens + token];
        (&self.o[at..][..self.head_dim], &self.dout[at..][..self.head_dim], lse)
    }
}

/// Probabilities and score gradients in bf16, with the layout of the scores.
pub(super) struct Rounded<'a> {
    pub probabilities: &'a mut [bf16],
    pub dscores: &'a mut [bf16],
    /// Factor on the score gradients, applied before rounding.
    pub scale: f32,
}

/// Computes the probabilities p from the scores, and the gradients of the scores after `rows.scale`. On
/// entry, `dscores` holds `do · v`. The gradients are `p (do · v - do · o)`, times the slope of the soft cap.
/// Keys that are not seen get 0. The results replace the inputs. If `rounded` is given, it receives the
/// results instead, and the inputs are then unspecified.
pub(super) fn softmax_rows_bwd(
    scores: &mut [f32],
    dscores: &mut [f32],
    rounded: Option<Rounded<'_>>,
    outputs: Outputs<'_>,
    rows: Rows,
) {
    #[cfg(target_arch = "x86_64")]
    if rows.softcap.is_none() && super::simd::level() == super::simd::Level::Avx512 {
        // SAFETY: `level` has detected the instructions.
        return unsafe { super::avx512_softmax::softmax_rows_bwd(scores, dscores, rounded, outputs, rows) };
    }
    softmax_loop_bwd(scores, dscores, rounded, outputs, rows);
}

vectorised! {
    /// [`softmax_rows_bwd`] on any processor.
    fn softmax_loop_bwd(
        scores: &mut [f32],
        dscores: &mut [f32],
        rounded: Option<Rounded<'_>>,
        outputs: Outputs<'_>,
        rows: Rows,
    ) {
        let mut rounded = rounded;
        for r in 0..rows.count {
            let (o, dout, lse) = outputs.row(r, rows.group);
            let delta = dot::<FMA>(o, dout);
            let seen = rows.seen(r);
            let range = r * rows.stride..r * rows.stride + rows.keys;
            let (p, _) = scores[range.clone()].as_chunks_mut::<LANES>();
            let (ds, _) = dscores[range.clone()].as_chunks_mut::<LANES>();
            let whole = seen.end.div_ceil(LANES);
            for (i, (p, ds)) in p.iter_mut().zip(ds.iter_mut()).enumerate().take(whole) {
                let seen = bounds_in(&seen, i);
                let scores = masked::<FMA>(p, seen, &rows);
                let (mut probabilities, mut gradients) = ([0.0; LANES], [0.0; LANES]);
                for l in 0..LANES {
                    probabilities[l] = exp::<FMA>(scores[l] - lse);
                    gradients[l] = probabilities[l] * (within(l, seen, ds[l], 0.0) - delta);
                }
                if let Some(limit) = rows.softcap {
                    for l in 0..LANES {
                        gradients[l] *= within(l, seen, cap_slope(scores[l], limit), 1.0);
                    }
                }
                (*p, *ds) = (probabilities, gradients);
            }
            p[whole..].as_flattened_mut().fill(0.0);
            ds[whole..].as_flattened_mut().fill(0.0);
            if let Some(rounded) = &mut rounded {
                let (to, _) = rounded.probabilities[range.clone()].as_chunks_mut::<LANES>();
                for (to, p) in to.iter_mut().zip(p) {
                    *to = rounded_vector(p);
                }
                let (to, _) = rounded.dscores[range].as_chunks_mut::<LANES>();
                for (to, ds) in to.iter_mut().zip(ds) {
                    for ds in ds.iter_mut() {
                        *ds *= rounded.scale;
                    }
                    *to = rounded_vector(ds);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -4 and 4; consecutive ones differ.
    fn numbers(len: usize, factor: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * factor + 17) % 2003) as f32 / 250.0 - 4.0).collect()
    }

    /// Returns the bits of the values, with one bit pattern for all NaNs. The sign of a NaN depends on the
    /// order of an instruction's operands.
    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
    }

    /// Returns blocks of queries that begin at the start of a path or in its middle, with and without a
    /// window.
    fn blocks() -> impl Iterator<Item = Rows> {
        let shapes = [(1usize, 1usize, 0), (5, 1, 0), (6, 2, 14), (36, 2, 20), (21, 3, 61), (64, 8, 500)];
        let forms = [(None, None), (Some(0.2), None), (None, Some(3)), (Some(0.3), Some(40))];
        shapes.into_iter().flat_map(move |(count, group, position)| {
            forms.into_iter().map(move |(scale, window)| {
                let visible = Visible::of(window, scale.is_some());
                let first = visible.first(position);
                let keys = (position + count.div_ceil(group)).next_multiple_of(LANES) - first;
                let stride = keys + LANES;
                Rows { count, group, position, first, keys, stride, visible, scale, softcap: None }
            })
        })
    }

    #[test]
    fn exponentials_have_the_bits_of_rows_alone() {
        for (rows, fault) in
            blocks().flat_map(|rows| [None, Some(f32::NAN), Some(f32::NEG_INFINITY)].map(|x| (rows, x)))
        {
            let mut scores = numbers(rows.count * rows.stride, 7919);
            if let Some(fault) = fault {
                // Puts the fault at the first key that row 0 sees, at all keys of row 1, and at a key that
                // row 0 does not see.
                scores[rows.seen(0).start] = fault;
                scores[rows.stride % (rows.count * rows.stride)..][..rows.keys].fill(fault);
                scores[rows.keys - 1] = fault;
            }
            let mut looped = scores.clone();
            let (mut stats, mut loop_stats) = (vec![[0.0; 2]; rows.count], vec![[0.0; 2]; rows.count]);
            let mut narrow = [vec![bf16::ONE; scores.len()], vec![bf16::ONE; scores.len()]];
            let [rounded, loop_rounded] = &mut narrow;
            let mut expected = Vec::new();
            for (r, row) in scores.chunks_exact(rows.stride).enumerate() {
                let mut row = row[..rows.keys].to_vec();
                let seen = rows.seen(r);
                row.iter_mut().enumerate().for_each(|(c, x)| match (seen.contains(&c), rows.scale) {
                    (true, scale) => *x *= scale.unwrap_or(1.0),
                    (false, _) => *x = f32::NEG_INFINITY,
                });
                let (largest, sum) =
                    crate::backend::cpu::math::softmax_row(&mut row[..seen.end.next_multiple_of(LANES)]);
                row[seen.end.next_multiple_of(LANES)..].fill(0.0);
                expected.push(([largest, sum], row));
            }
            softmax_rows(&mut scores, rows.scale.map(|_| &mut rounded[..]), &mut stats, rows);
            softmax_loop(&mut looped, rows.scale.map(|_| &mut loop_rounded[..]), &mut loop_stats, rows);
            for (r, (expected_stats, row)) in expected.iter().enumerate() {
                let range = r * rows.stride..r * rows.stride + rows.keys;
                assert_eq!(bits(&stats[r]), bits(expected_stats), "{rows:?}, row {r}, {fault:?}");
                assert_eq!(bits(&scores[range.clone()]), bits(row), "{rows:?}, row {r}, {fault:?}");
                assert!(!row[rows.seen(r).end..].iter().any(|x| *x != 0.0));
                if rows.scale.is_some() {
                    let near: Vec<f32> = row.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
                    let found: Vec<f32> = rounded[range].iter().map(|x| x.to_f32()).collect();
                    assert_eq!(bits(&found), bits(&near), "{rows:?}, row {r}, {fault:?}");
                }
            }
            let wide = |rounded: &[bf16]| rounded.iter().map(|x| x.to_f32()).collect::<Vec<_>>();
            assert_eq!(bits(&looped), bits(&scores), "{rows:?}, {fault:?}");
            assert_eq!(bits(&wide(rounded)), bits(&wide(loop_rounded)), "{rows:?}, {fault:?}");
            assert_eq!(
                stats.iter().map(|x| bits(x)).collect::<Vec<_>>(),
                loop_stats.iter().map(|x| bits(x)).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn gradients_have_the_bits_of_the_loop_and_are_near_those_in_f64() {
        for (rows, head_dim) in blocks().flat_map(|rows| [7, 24, 64].map(|head_dim| (rows, head_dim))) {
            let tokens = rows.count.div_ceil(rows.group);
            let width = rows.group * head_dim + 5;
            let (o, dout) = (numbers(tokens * width, 31), numbers(tokens * width, 104_729));
            let lse: Vec<f32> = numbers(tokens * rows.group, 37).iter().map(|x| x + 9.0).collect();
            let outputs = Outputs { head_dim, width, o: &o, dout: &dout, lse: &lse, tokens };
            let (scores, dscores) = (numbers(rows.count * rows.stride, 7919), numbers(rows.count * rows.stride, 613));
            let run = |looped: bool| {
                let (mut p, mut ds) = (scores.clone(), dscores.clone());
                let mut narrow = [vec![bf16::ONE; p.len()], vec![bf16::ONE; p.len()]];
                let [probabilities, gradients] = &mut narrow;
                let rounded = rows.scale.map(|scale| Rounded { probabilities, dscores: gradients, scale });
                match looped {
                    true => softmax_loop_bwd(&mut p, &mut ds, rounded, outputs, rows),
                    false => softmax_rows_bwd(&mut p, &mut ds, rounded, outputs, rows),
                }
                if rows.scale.is_some() {
                    // The f32 results are unspecified if the rounded ones are stored.
                    (p, ds) = (Vec::new(), Vec::new());
                }
                (p, ds, narrow)
            };
            let (p, ds, narrow) = run(false);
            let (loop_p, loop_ds, loop_narrow) = run(true);
            assert_eq!((bits(&p), bits(&ds), &narrow), (bits(&loop_p), bits(&loop_ds), &loop_narrow), "{rows:?}");
            for (r, c) in (0..rows.count).flat_map(|r| (0..rows.keys).map(move |c| (r, c))) {
                let at = r * rows.stride + c;
                let (o, dout, lse) = outputs.row(r, rows.group);
                let delta: f64 = o.iter().zip(dout).map(|(o, d)| f64::from(*o) * f64::from(*d)).sum();
                let scale = f64::from(rows.scale.unwrap_or(1.0));
                let mut expected = [0.0; 2];
                if rows.seen(r).contains(&c) {
                    let p = (scale * f64::from(scores[at]) - f64::from(lse)).exp();
                    expected = [p, p * (f64::from(dscores[at]) - delta)];
                }
                let (found, tolerance) = match rows.scale {
                    // bf16 has 8 significant bits.
                    Some(_) => ([narrow[0][at].to_f64(), narrow[1][at].to_f64() / scale], 0.005),
                    None => ([f64::from(p[at]), f64::from(ds[at])], 1e-5),
                };
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() <= tolerance * expected.abs() + 1e-6, "{rows:?} ({r}, {c})");
                    assert!(expected != 0.0 || *found == 0.0, "{rows:?} ({r}, {c}): a hidden key counts");
                }
            }
        }
    }
}
