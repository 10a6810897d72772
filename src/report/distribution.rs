//! Statistics of values: histogram bins, correlation of pairs, means and running means.

/// Histogram counts of several sets of values in common bins of equal width.
#[derive(Clone, Debug, PartialEq)]
pub struct Bins {
    pub low: f64,
    pub width: f64,
    /// Number of values per set and bin.
    pub counts: Vec<Vec<usize>>,
    /// Number of values that are not finite and therefore in no bin.
    pub left_out: usize,
}

/// Bounds on the number of bins. Between them, the number is the square root of the largest set's size, rounded
/// up.
const MIN_BINS: usize = 6;
const MAX_BINS: usize = 24;

impl Bins {
    /// Bins from the smallest to the largest finite value of all sets. The last bin includes the
    /// largest value. `None` without a finite value.
    pub fn of(sets: &[Vec<f64>]) -> Option<Self> {
        let finite = || sets.iter().flatten().copied().filter(|v| v.abs() <= super::axis::MAX_DRAWN);
        let (mut low, mut high) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return None;
        }
        if high - low <= 1e-12 * low.abs().max(high.abs()) {
            let half = if low == 0.0 { 0.5 } else { 0.1 * low.abs() };
            (low, high) = (low - half, high + half);
        }
        let largest_set = sets.iter().map(Vec::len).max().unwrap_or(0);
        let number = ((largest_set as f64).sqrt().ceil() as usize).clamp(MIN_BINS, MAX_BINS);
        let width = (high - low) / number as f64;
        let bin = |v: f64| (((v - low) / width) as usize).min(number - 1);
        let count = |set: &Vec<f64>| {
            let mut counts = vec![0; number];
            set.iter().filter(|v| v.abs() <= super::axis::MAX_DRAWN).for_each(|&v| counts[bin(v)] += 1);
            counts
        };
        let left_out = sets.iter().map(Vec::len).sum::<usize>() - finite().count();
        Some(Self { low, width, counts: sets.iter().map(count).collect(), left_out })
    }

    /// Lower edge of a bin. The edge after the last bin is its upper edge.
    pub fn edge(&self, bin: usize) -> f64 {
        self.low + self.width * bin as f64
    }
}

/// Pearson correlation of the finite pairs; `None` for fewer than two pairs, or if x or y is constant.
pub fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let pairs: Vec<_> = pairs.iter().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let n = pairs.len() as f64;
    if pairs.len() < 2 {
        return None;
    }
    let (mean_x, mean_y) = (pairs.iter().map(|p| p.0).sum::<f64>() / n, pairs.iter().map(|p| p.1).sum::<f64>() / n);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for &&(x, y) in &pairs {
        let (dx, dy) = (x - mean_x, y - mean_y);
        (xx, yy, xy) = (xx + dx * dx, yy + dy * dy, xy + dx * dy);
    }
    let product = xx.sqrt() * yy.sqrt();
    (product > 0.0 && product.is_finite()).then(|| (xy / product).clamp(-1.0, 1.0))
}

/// Mean of the finite values; NaN if there are none.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.filter(|v| v.is_finite()).fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    sum / count as f64
}

/// Running mean of each value and up to `window - 1` values before it. Values that are not finite
/// are left out; a window without finite values gives NaN, which is drawn as a gap.
pub fn smoothed(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let from = |end: usize| (end + 1).saturating_sub(window.max(1));
    (0..points.len()).map(|end| (points[end].0, mean(points[from(end)..=end].iter().map(|p| p.1)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_value_is_in_one_bin() {
        let sets =
            [(0..100).map(|i| f64::from(i) * 0.37 - 3.0).collect(), vec![5.0, f64::NAN, -9.25, f64::INFINITY, 40.0]];
        let bins = Bins::of(&sets).unwrap();
        assert_eq!(bins.counts.iter().map(|c| c.iter().sum()).collect::<Vec<usize>>(), [100, 3]);
        assert_eq!((bins.left_out, bins.counts[0].len()), (2, 10));
        assert_eq!((bins.edge(0), bins.edge(10)), (-9.25, 40.0));
        assert_eq!((bins.counts[1][0], bins.counts[1][9]), (1, 1));
        assert_eq!(Bins::of(&[vec![f64::NAN]]), None);
        let same = Bins::of(&[vec![2.5; 7], vec![2.5; 3]]).unwrap();
        assert_eq!(same.counts.iter().map(|c| c.iter().sum()).collect::<Vec<usize>>(), [7, 3]);
    }

    #[test]
    fn the_correlation_is_pearsons() {
        // By hand: means 3 and 4.2; xy 9, xx 10, yy 14.8; r = 9 / sqrt(148) = 0.7398.
        let pairs = [(1.0, 2.0), (2.0, 5.0), (3.0, 3.0), (4.0, 4.0), (5.0, 7.0)];
        let pairs_with_gap = [&pairs[..], &[(f64::NAN, 1.0), (9.0, f64::INFINITY)]].concat();
        for pairs in [&pairs[..], &pairs_with_gap] {
            let r = correlation(pairs).unwrap();
            assert!((r - 9.0 / 148f64.sqrt()).abs() < 1e-12, "{r}");
        }
        assert!((correlation(&[(1.0, 3.0), (2.0, 1.0)]).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(correlation(&[(1.0, 3.0)]), None);
        assert_eq!(correlation(&[(1.0, 3.0), (1.0, 4.0)]), None);
    }

    #[test]
    fn running_means_cover_earlier_values() {
        let points: Vec<_> = [4.0, f64::NAN, 2.0, 6.0].iter().enumerate().map(|(i, &y)| (i as f64, y)).collect();
        let ys: Vec<f64> = smoothed(&points, 2).iter().map(|p| p.1).collect();
        assert_eq!(ys, [4.0, 4.0, 2.0, 4.0]);
        assert!(mean(std::iter::empty()).is_nan());
    }
}
