//! Shares and means with 95 % intervals, and the sign test. Pairs that share a prompt form one
//! cluster with correlated outcomes, so intervals are computed from sums over clusters instead of
//! single pairs. Everything is in closed form, without resampling.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::statistics::{Z95, wilson_interval};

/// Minimum number of clusters for a rate to cause a finding. Intervals from sums over fewer
/// clusters are unreliable.
pub(super) const MIN_CLUSTERS: usize = 20;

/// A share with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    pub share: f64,
    /// Ends of the 95 % interval.
    pub low: f64,
    pub high: f64,
    /// Number of outcomes, and number of clusters.
    pub of: usize,
    pub prompts: usize,
}

impl Share {
    /// True if there are at least [`MIN_CLUSTERS`] clusters and the whole interval is above
    /// `limit`.
    pub(super) fn above(&self, limit: f64) -> bool {
        self.prompts >= MIN_CLUSTERS && self.low > limit
    }

    /// True if there are at least [`MIN_CLUSTERS`] clusters and the whole interval is below
    /// `limit`.
    pub(super) fn below(&self, limit: f64) -> bool {
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

/// Returns the mean, its variance from the sums over clusters, the number of outcomes, and the
/// number of clusters. `None` without outcomes.
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

/// Share of right outcomes: 1 for right, 0 for wrong, one half for undecided. The interval is the Wilson
/// interval of an effective number of independent outcomes, which is the number that would give the observed
/// variance. It is at most the number of outcomes. If all clusters agree, the effective number is the number of
/// clusters.
pub(crate) fn share(outcomes: impl IntoIterator<Item = (u32, f64)>) -> Option<Share> {
    let (p, variance, of, clusters) = clustered(outcomes)?;
    let effective = if variance > 1e-15 { (p * (1.0 - p) / variance).min(of as f64) } else { clusters as f64 };
    let [low, high] = wilson_interval(p, effective);
    Some(Share { share: p, low, high, of, prompts: clusters })
}

/// Mean of values with an interval from the normal approximation.
pub(super) fn mean(values: impl IntoIterator<Item = (u32, f64)>) -> Option<Mean> {
    let (mean, variance, ..) = clustered(values)?;
    let half = Z95 * variance.sqrt();
    Some(Mean { mean, low: mean - half, high: mean + half })
}

/// Exact two-sided sign test: the probability that a fair coin gives a split at least as uneven as
/// `plus` to `minus`.
pub(super) struct SignTest {
    /// Logarithms of the factorials.
    log_factorial: Vec<f64>,
}

impl SignTest {
    /// Prepares tests with `plus + minus` up to `most`.
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
        // Published example values of Wilson's interval for 70 of 100; the cluster correction of
        // 100/99 makes the effective number 99.
        assert!((share.low - 0.604).abs() < 2e-3 && (share.high - 0.781).abs() < 2e-3, "{share:?}");
        assert_eq!((share.share, share.of, share.prompts), (0.7, 100, 100));
    }

    #[test]
    fn outcomes_that_repeat_within_a_cluster_do_not_narrow_the_interval() {
        let single = share((0..50).map(|i| (i, f64::from(i % 2)))).unwrap();
        let tenfold = share((0..500).map(|i| (i / 10, f64::from(i / 10 % 2)))).unwrap();
        assert!((single.low - tenfold.low).abs() < 1e-12 && (single.high - tenfold.high).abs() < 1e-12);
        // Every cluster has one right and one wrong outcome, so the variance between clusters is 0. The
        // interval must still reflect the number of clusters.
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
