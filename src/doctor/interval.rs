//! Shares and means with 95 % intervals, and the sign test. Pairs that share a prompt are one cluster: their outcomes
//! go together, so the intervals are made from the sums over clusters and not from single pairs. All is in closed
//! form; nothing is drawn.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959_964;

/// Fewest clusters for which a rate can give rise to a finding: below, intervals from sums over clusters are unsound.
pub const MIN_CLUSTERS: usize = 20;

/// A share with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    pub share: f64,
    /// Ends of the 95 % interval.
    pub low: f64,
    pub high: f64,
    /// Outcomes, and the clusters they belong to.
    pub of: usize,
    pub prompts: usize,
}

impl Share {
    /// True when there are clusters enough and the whole interval is above `limit`.
    pub fn above(&self, limit: f64) -> bool {
        self.prompts >= MIN_CLUSTERS && self.low > limit
    }

    /// As [`Share::above`], for the other end.
    pub fn below(&self, limit: f64) -> bool {
        self.prompts >= MIN_CLUSTERS && self.high < limit
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} % ({:.1} to {:.1})", 100.0 * self.share, 100.0 * self.low, 100.0 * self.high)
    }
}

/// A mean with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

impl fmt::Display for Mean {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.1} ({:+.1} to {:+.1})", self.mean, self.low, self.high)
    }
}

/// Sums over one cluster.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    count: f64,
}

/// Mean, its variance by the sums over clusters, outcomes and clusters. `None` without outcomes.
fn clustered(outcomes: impl IntoIterator<Item = (u32, f64)>) -> Option<(f64, f64, usize, usize)> {
    let mut sums: BTreeMap<u32, Sum> = BTreeMap::new();
    for (cluster, value) in outcomes {
        let sum = sums.entry(cluster).or_default();
        sum.value += value;
        sum.count += 1.0;
    }
    let (n, clusters) = (sums.values().map(|s| s.count).sum::<f64>(), sums.len());
    if clusters == 0 {
        return None;
    }
    let mean = sums.values().map(|s| s.value).sum::<f64>() / n;
    let squares: f64 = sums.values().map(|s| (s.value - mean * s.count).powi(2)).sum();
    let correction = if clusters > 1 { clusters as f64 / (clusters as f64 - 1.0) } else { 1.0 };
    Some((mean, correction * squares / (n * n), n as usize, clusters))
}

/// Share of right outcomes: 1 for right, 0 for wrong, one half for a coin toss. The interval is Wilson's (1927) for as
/// many independent outcomes as have the variance observed, at most as many as there are; for as many as there are
/// clusters where all clusters agree.
pub fn share(outcomes: impl IntoIterator<Item = (u32, f64)>) -> Option<Share> {
    let (p, variance, of, clusters) = clustered(outcomes)?;
    let effective = if variance > 1e-15 { (p * (1.0 - p) / variance).min(of as f64) } else { clusters as f64 };
    let z2 = Z * Z / effective;
    let middle = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z / (1.0 + z2) * (p * (1.0 - p) / effective + z2 / (4.0 * effective)).sqrt();
    Some(Share { share: p, low: (middle - half).max(0.0), high: (middle + half).min(1.0), of, prompts: clusters })
}

/// Mean of values with a normal interval.
pub fn mean(values: impl IntoIterator<Item = (u32, f64)>) -> Option<Mean> {
    let (mean, variance, ..) = clustered(values)?;
    let half = Z * variance.sqrt();
    Some(Mean { mean, low: mean - half, high: mean + half })
}

/// Exact two-sided sign test: the probability that a fair coin falls as unevenly as `plus` to `minus` or more so.
pub struct SignTest {
    /// Logarithms of the factorials.
    log_factorial: Vec<f64>,
}

impl SignTest {
    /// For sums of `plus` and `minus` up to `most`.
    pub fn new(most: usize) -> Self {
        let mut log_factorial = vec![0.0; most + 1];
        for i in 1..=most {
            log_factorial[i] = log_factorial[i - 1] + (i as f64).ln();
        }
        Self { log_factorial }
    }

    pub fn p_value(&self, plus: usize, minus: usize) -> f64 {
        let (n, k) = (plus + minus, plus.max(minus));
        let log = |i: usize| self.log_factorial[n] - self.log_factorial[i] - self.log_factorial[n - i];
        let tail: f64 = (k..=n).map(|i| (log(i) - n as f64 * std::f64::consts::LN_2).exp()).sum();
        (2.0 * tail).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn independent_outcomes_give_wilsons_interval() {
        let outcomes = (0..100).map(|i| (i, f64::from(u8::from(i < 70))));
        let share = share(outcomes).unwrap();
        // Published example values of Wilson's interval for 70 of 100; the cluster correction of 100/99 makes the
        // effective number 99.
        assert!((share.low - 0.604).abs() < 2e-3 && (share.high - 0.781).abs() < 2e-3, "{share:?}");
        assert_eq!((share.share, share.of, share.prompts), (0.7, 100, 100));
    }

    #[test]
    fn outcomes_that_repeat_within_a_cluster_do_not_narrow_the_interval() {
        let single = share((0..50).map(|i| (i, f64::from(i % 2)))).unwrap();
        let tenfold = share((0..500).map(|i| (i / 10, f64::from(i / 10 % 2)))).unwrap();
        assert!((single.low - tenfold.low).abs() < 1e-12 && (single.high - tenfold.high).abs() < 1e-12);
        // Mirrored clusters have no spread between them, and still no certainty beyond their number.
        let mirrored = share((0..100).map(|i| (i / 2, f64::from(i % 2)))).unwrap();
        assert!(mirrored.low < 0.37 && mirrored.high > 0.63, "{mirrored:?}");
        assert!(share([]).is_none());
    }

    #[test]
    fn the_sign_test_is_the_binomial_tail() {
        let test = SignTest::new(2000);
        assert!((test.p_value(9, 1) - 22.0 / 1024.0).abs() < 1e-12);
        assert!((test.p_value(1, 9) - 22.0 / 1024.0).abs() < 1e-12);
        assert_eq!(test.p_value(5, 5), 1.0);
        assert!(test.p_value(2000, 0) < 1e-300);
    }
}
