//! Constants of the tile choice, fitted to the GPU at hand (benches/README.md, "Choosing tiles").
//!
//! ```text
//! for each GEMM, tile and number of splits: verify it, then take its median time
//! the prediction is a sum of constants times counts, so the constants are a least squares fit:
//!   minimise sum of ((predicted - measured) / measured)², constants at least 0
//! constants that no time depends on keep their built-in values
//! ```

use std::time::Duration;

use half::bf16;

use super::measure::{Effort, Timing, interleaved};
use super::operand::{Operand, OperandSet};
use super::rates::BenchBackend;
use super::verify::Oracle;
use super::work::linear::{Linear, Pass};
use super::work::{Call as _, Work};
use crate::backend::contract::LinearDims;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::Device;
use crate::backend::kernels::geometry::{H200_TIMES, Sizes, Tile, TileTimes, cut_by};
use crate::backend::kernels::hopper::Hopper;
use crate::{Error, Result};

/// Number of constants.
const CONSTANTS: usize = 13;

/// A measured time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimedTile {
    pub sizes: Sizes,
    pub tile: Tile,
    pub splits: usize,
    pub seconds: f64,
}

/// Constants in the order of the fit.
fn constants(of: &TileTimes) -> [f64; CONSTANTS] {
    let s = of.stage;
    [
        of.launch,
        of.cluster,
        of.cooperative,
        of.ping_pong,
        of.last_ping_pong,
        of.split,
        of.split_column,
        s[0],
        s[1],
        s[2],
        s[3],
        s[4],
        s[5],
    ]
}

fn named(x: [f64; CONSTANTS]) -> TileTimes {
    let [launch, cluster, cooperative, ping_pong, last_ping_pong, split, split_column, stage @ ..] = x;
    TileTimes { launch, cluster, cooperative, ping_pong, last_ping_pong, split, split_column, stage }
}

/// Factor of each constant in the predicted time in nanoseconds.
fn factors(of: &TimedTile, processors: usize) -> [f64; CONSTANTS] {
    // The prediction is linear, so each factor is the prediction with one constant of 1.
    std::array::from_fn(|at| {
        let mut unit = [0.0; CONSTANTS];
        unit[at] = 1.0;
        cut_by(&named(unit), of.sizes, of.tile, of.splits, processors).seconds * 1e9
    })
}

/// Result of a fit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fit {
    pub times: TileTimes,
    /// Root mean square of the relative differences of predicted and measured times.
    pub error: f64,
}

/// Fits the constants to measured times. [`Error::Runtime`] for fewer times than constants.
pub(crate) fn fit(timed: &[TimedTile], processors: usize) -> Result<Fit> {
    if timed.len() < CONSTANTS {
        return Err(Error::Runtime(format!("{} times are too few to fit {CONSTANTS} constants", timed.len())));
    }
    let rows: Vec<[f64; CONSTANTS]> =
        timed.iter().map(|time| factors(time, processors).map(|factor| factor / (1e9 * time.seconds))).collect();
    let start = constants(&H200_TIMES);
    // The unknowns are in units of the built-in values, so that all are of order one.
    let column = |at: usize| rows.iter().map(|row| (row[at] * start[at]).powi(2)).sum::<f64>();
    let mut free: Vec<usize> = (0..CONSTANTS).filter(|&at| column(at) > 0.0).collect();
    let mut x = [1.0; CONSTANTS];
    loop {
        let solution = solve(&rows, &start, &x, &free)?;
        free.iter().zip(&solution).for_each(|(&at, &value)| x[at] = value);
        // A negative constant is set to 0, and the others are fitted again.
        let Some(least) = free.iter().copied().filter(|&at| x[at] < 0.0).min_by(|&a, &b| x[a].total_cmp(&x[b])) else {
            break;
        };
        x[least] = 0.0;
        free.retain(|&at| at != least);
    }
    let mut fitted: [f64; CONSTANTS] = std::array::from_fn(|at| x[at] * start[at]);
    // The time of a main loop stays positive, even if the measurements are noisy.
    fitted[7..].iter_mut().for_each(|stage| *stage = stage.max(1e-3));
    let times = named(fitted);
    let relative =
        |time: &TimedTile| cut_by(&times, time.sizes, time.tile, time.splits, processors).seconds / time.seconds - 1.0;
    let error = (timed.iter().map(|time| relative(time).powi(2)).sum::<f64>() / timed.len() as f64).sqrt();
    Ok(Fit { times, error })
}

/// Least squares over the free unknowns, with the others fixed: normal equations by elimination with pivots.
/// A slight regularisation towards 1 determines unknowns that the times leave open.
fn solve(
    rows: &[[f64; CONSTANTS]],
    start: &[f64; CONSTANTS],
    x: &[f64; CONSTANTS],
    free: &[usize],
) -> Result<Vec<f64>> {
    const PULL: f64 = 1e-9;
    let n = free.len();
    let mut a = vec![vec![0.0; n + 1]; n];
    for row in rows {
        let fixed: f64 = (0..CONSTANTS).filter(|at| !free.contains(at)).map(|at| row[at] * start[at] * x[at]).sum();
        for (i, &p) in free.iter().enumerate() {
            for (j, &q) in free.iter().enumerate() {
                a[i][j] += row[p] * start[p] * row[q] * start[q];
            }
            a[i][n] += row[p] * start[p] * (1.0 - fixed);
        }
    }
    let scale = (0..n).map(|i| a[i][i]).fold(0.0, f64::max);
    for (i, row) in a.iter_mut().enumerate() {
        row[i] += PULL * scale;
        row[n] += PULL * scale;
    }
    for at in 0..n {
        let pivot = (at..n).max_by(|&i, &j| a[i][at].abs().total_cmp(&a[j][at].abs())).unwrap_or(at);
        a.swap(at, pivot);
        if a[at][at].abs() <= f64::MIN_POSITIVE {
            return Err(Error::Runtime("the times do not determine the constants; measure more GEMMs".into()));
        }
        for i in 0..n {
            if i != at {
                let factor = a[i][at] / a[at][at];
                let of_pivot = a[at].clone();
                a[i].iter_mut().zip(&of_pivot).skip(at).for_each(|(value, pivot)| *value -= factor * pivot);
            }
        }
    }
    Ok((0..n).map(|i| a[i][n] / a[i][i]).collect())
}

/// GEMMs that are timed: pass, tokens, inputs, outputs.
type Gemms = &'static [(Pass, usize, usize, usize)];

/// Sizes from one wave of tiles to many, with short and with long sums over k.
const ON_GPU: Gemms = &[
    (Pass::Forward, 2048, 896, 896),
    (Pass::Forward, 2048, 4864, 896),
    (Pass::Forward, 8192, 896, 1152),
    (Pass::Forward, 8192, 896, 9728),
    (Pass::Forward, 8192, 4864, 896),
    (Pass::Forward, 4096, 4096, 4096),
    (Pass::Forward, 16_384, 2048, 2048),
    (Pass::Input, 8192, 896, 4864),
    (Pass::Input, 4096, 4096, 4096),
    (Pass::Weight, 8192, 896, 896),
    (Pass::Weight, 16_384, 896, 1152),
    (Pass::Weight, 8192, 896, 4864),
];
/// Bytes of operand sets that calls rotate over, and the maximum number of sets.
const ROTATED_BYTES: usize = 256 << 20;
const MAX_SETS: usize = 8;
/// Small GEMMs, for a rehearsal on the emulator.
const REHEARSED: Gemms = &[(Pass::Forward, 128, 64, 256), (Pass::Weight, 128, 128, 128)];

fn sizes_of(pass: Pass, d: LinearDims) -> Sizes {
    let (m, n, k) = match pass {
        Pass::Weight => (d.outputs, d.inputs, d.tokens),
        Pass::Input => (d.tokens, d.inputs, d.outputs),
        _ => (d.tokens, d.outputs, d.inputs),
    };
    Sizes { m, n, k, out_bytes: if pass == Pass::Weight { 4 } else { 2 }, may_split: pass == Pass::Weight }
}

/// Verifies and times every GEMM with every tile; `tell` receives each time. [`Error::Runtime`] for a wrong
/// result.
pub(crate) fn measure<D: Device>(
    device: D,
    rehearsal: bool,
    mut tell: impl FnMut(&TimedTile) -> Result<()>,
) -> Result<Vec<TimedTile>>
where
    Kernels<D, bf16>: BenchBackend,
{
    let effort = Effort {
        repeats: if rehearsal { 1 } else { 10 },
        warm_up: if rehearsal { 0 } else { 2 },
        sample: if rehearsal { Duration::ZERO } else { Duration::from_millis(2) },
        min_samples: 1,
        budget: Duration::from_secs(1),
    };
    let mut on = Kernels::<_, bf16>::new(device);
    let mut timed = Vec::new();
    for &(pass, tokens, inputs, outputs) in if rehearsal { REHEARSED } else { ON_GPU } {
        let dims = LinearDims { tokens, inputs, outputs };
        let (work, sizes): (Work, Sizes) = (Linear { pass, dims }.into(), sizes_of(pass, dims));
        // Calls rotate over sets, so that large operands are read from memory.
        let operands = work.operands();
        let bytes = 2 * operands.iter().map(Operand::len).sum::<usize>().max(1);
        let count = if rehearsal { 1 } else { ROTATED_BYTES.div_ceil(bytes).clamp(1, MAX_SETS) };
        let mut sets = (0..count).map(|_| OperandSet::new(&on, &operands)).collect::<Result<Vec<_>>>()?;
        sets.iter_mut().try_for_each(|set| set.initialise(&on, &work, &operands))?;
        let oracle = Oracle::new(&on, &work, &sets[0])?;
        for tile in Tile::ALL {
            for splits in if sizes.may_split { &[1, 2, 4][..] } else { &[1] } {
                let taken = cut_by(&H200_TIMES, sizes, tile, *splits, 132).splits;
                if taken != *splits {
                    continue;
                }
                on = on.with_hopper(Hopper::Cut(tile, *splits));
                oracle.reset(&on, &work, &mut sets[0])?;
                work.call(&on, sets[0].cursor())?;
                oracle.check(&on, &work, &sets[0])?;
                let call = |on: &Kernels<D, bf16>, set: &mut OperandSet<_>| work.call(on, set.cursor());
                let samples = interleaved(&on, &[&call], &mut sets, &effort)?;
                let seconds = samples.first().map_or(0.0, |samples| Timing::of(samples).median).max(1e-9);
                let one = TimedTile { sizes, tile, splits: *splits, seconds };
                tell(&one)?;
                timed.push(one);
            }
        }
    }
    Ok(timed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Predicts the times of all GEMMs and tiles from known constants.
    fn synthetic(times: &TileTimes, processors: usize) -> Vec<TimedTile> {
        let mut timed = Vec::new();
        for &(pass, tokens, inputs, outputs) in ON_GPU {
            let sizes = sizes_of(pass, LinearDims { tokens, inputs, outputs });
            for tile in Tile::ALL {
                for splits in if sizes.may_split { &[1, 2, 4][..] } else { &[1] } {
                    let seconds = cut_by(times, sizes, tile, *splits, processors).seconds;
                    timed.push(TimedTile { sizes, tile, splits: *splits, seconds });
                }
            }
        }
        timed
    }

    #[test]
    fn the_fit_finds_the_constants_that_made_the_times() {
        let made = TileTimes {
            launch: 2500.0,
            cluster: 900.0,
            cooperative: 6.0,
            ping_pong: 3.5,
            last_ping_pong: 14.0,
            split: 600.0,
            split_column: 6.0,
            stage: [3.1, 3.0, 3.3, 2.9, 3.6, 3.2],
        };
        let found = fit(&synthetic(&made, 114), 114).unwrap();
        for (found, made) in constants(&found.times).into_iter().zip(constants(&made)) {
            assert!((found / made - 1.0).abs() < 1e-3, "{found} {made}");
        }
        assert!(found.error < 1e-5, "{}", found.error);
        // Times without splits leave the constants of splits as they are.
        let unsplit: Vec<TimedTile> = synthetic(&made, 114).into_iter().filter(|time| time.splits == 1).collect();
        let found = fit(&unsplit, 114).unwrap().times;
        assert_eq!((found.split, found.split_column), (H200_TIMES.split, H200_TIMES.split_column));
        assert!((found.launch / made.launch - 1.0).abs() < 1e-3, "{found:?}");
        assert!(fit(&unsplit[..5], 114).is_err());
    }

    #[test]
    fn times_that_no_constants_explain_give_none_below_zero() {
        // The times have launch constants of 0 and an error of up to 30 %.
        let mut timed = synthetic(&TileTimes { launch: 0.0, cluster: 0.0, ..H200_TIMES }, 132);
        timed.iter_mut().enumerate().for_each(|(at, time)| time.seconds *= 0.7 + 0.1 * (at % 7) as f64);
        let found = fit(&timed, 132).unwrap();
        assert!(constants(&found.times).iter().all(|&x| x >= 0.0), "{found:?}");
        assert!(found.error > 0.01);
    }
}
