//! Intervals and exact tests for shares and means over groups.
//!
//! Comparisons of one group share prompts and responses and are not independent. The unit of
//! resampling is therefore the group, with all its comparisons. The interval is the percentile
//! bootstrap: it stays within the range of the measure. BCa's acceleration would need a constant
//! estimated from the same few groups. The interval is approximate: below about thirty groups its
//! coverage is a few per cent too low.
//!
//! No input is an error. Fewer than two groups, zero resamples, and resamples without variation give no
//! interval.

use crate::rng::Rng;

/// Nominal coverage probability of an interval.
pub(super) const LEVEL: f64 = 0.95;

/// Settings of the bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resampling {
    /// Number of bootstrap resamples; 0 for no intervals.
    pub resamples: usize,
    /// Seed.
    pub seed: u64,
}

/// Contribution of one group to ratios with a common denominator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster<const N: usize> {
    /// Number of observations, which is the common denominator.
    pub weight: f64,
    /// Numerators of the ratios.
    pub sums: [f64; N],
}

impl<const N: usize> Default for Cluster<N> {
    fn default() -> Self {
        Self { weight: 0.0, sums: [0.0; N] }
    }
}

/// A value with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Lower and upper end of the 95 % interval.
    pub interval: Option<[f64; 2]>,
}

/// Returns `sum of numerators / sum of weights` for each numerator, with intervals. The random
/// numbers depend only on seed and labels.
pub fn estimates<const N: usize>(clusters: &[Cluster<N>], resampling: Resampling, labels: &[&str]) -> [Estimate; N] {
    let mut total = Cluster::<N>::default();
    clusters.iter().for_each(|cluster| total.add(cluster));
    let values = total.ratios();
    let intervals = intervals(clusters, resampling, labels);
    std::array::from_fn(|n| Estimate { value: values[n], interval: intervals[n] })
}

impl<const N: usize> Cluster<N> {
    fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        for (mine, theirs) in self.sums.iter_mut().zip(&other.sums) {
            *mine += theirs;
        }
    }

    fn ratios(&self) -> [f64; N] {
        self.sums.map(|sum| if self.weight == 0.0 { 0.0 } else { sum / self.weight })
    }
}

fn intervals<const N: usize>(
    clusters: &[Cluster<N>],
    resampling: Resampling,
    labels: &[&str],
) -> [Option<[f64; 2]>; N] {
    if clusters.len() < 2 {
        return [None; N];
    }
    let path: Vec<&str> = std::iter::once("bootstrap").chain(labels.iter().copied()).collect();
    let mut rng = Rng::keyed(resampling.seed, &path);
    let mut drawn: [Vec<f64>; N] = std::array::from_fn(|_| Vec::with_capacity(resampling.resamples));
    for _ in 0..resampling.resamples {
        let mut total = Cluster::<N>::default();
        for _ in 0..clusters.len() {
            total.add(&clusters[rng.below(clusters.len())]);
        }
        for (values, value) in drawn.iter_mut().zip(total.ratios()) {
            values.push(value);
        }
    }
    drawn.map(percentile_interval)
}

/// The 95 % percentile interval of resampled values; `None` without variation, which means that all
/// groups are alike, and not that the value is known exactly.
pub(super) fn percentile_interval(mut values: Vec<f64>) -> Option<[f64; 2]> {
    let tail = (1.0 - LEVEL) / 2.0;
    values.sort_by(f64::total_cmp);
    let spread = values.first() != values.last();
    spread.then(|| [quantile(&values, tail), quantile(&values, 1.0 - tail)])
}

/// Quantile of ascending values by linear interpolation between order statistics (type 7 of Hyndman
/// and Fan 1996).
fn quantile(ascending: &[f64], q: f64) -> f64 {
    let place = (ascending.len() - 1) as f64 * q;
    let (low, high) = (ascending[place.floor() as usize], ascending[place.ceil() as usize]);
    // Equal values are returned directly, because the difference of two infinities is NaN.
    if low == high { low } else { low + (high - low) * place.fract() }
}

/// Interval of a share if every observation of `groups` groups is 1 (`all`) or 0. Resampling shows
/// no variation in this case, so the interval is the exact bound for `groups` independent trials
/// (Clopper and Pearson 1934).
pub fn unanimous_interval(groups: usize, all: bool) -> [f64; 2] {
    let bound = ((1.0 - LEVEL) / 2.0).powf(1.0 / groups as f64);
    if all { [bound, 1.0] } else { [0.0, 1.0 - bound] }
}

/// Two-sided exact p-value for `a` and `b` as the two counts of a fair coin. With the numbers of
/// discordant pairs, this is the exact form of McNemar's test (1947). Returns 1 for equal counts.
pub fn exact_test(a: usize, b: usize) -> f64 {
    let (n, least) = (a + b, a.min(b));
    if 2 * least == n {
        return 1.0;
    }
    // P(X = least) by logarithms; the rest of the tail by ratios of neighbouring binomial
    // coefficients.
    let coefficient: f64 = (1..=least).map(|i| ((n - least + i) as f64 / i as f64).ln()).sum();
    let (mut term, mut tail) = (1.0, 1.0);
    for j in (1..=least).rev() {
        term *= j as f64 / (n - j + 1) as f64;
        if tail + term == tail {
            break;
        }
        tail += term;
    }
    (2.0 * tail * (coefficient - n as f64 * std::f64::consts::LN_2).exp()).min(1.0)
}

/// Moments of a set of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// Number of values.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Population standard deviation: square root of the mean squared distance from the mean.
    pub std: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Moments {
    /// Returns the moments of `values`; `None` for an empty list.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        // The variance needs a second pass, because the difference of two large sums would lose significant
        // digits.
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
        let min = values.iter().copied().fold(f64::INFINITY, f64::min);
        let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some(Self { count: values.len(), mean, std: variance.sqrt(), min, max })
    }
}
