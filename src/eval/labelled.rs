//! Measures of rows with one response and a label, as KTO trains on: how well scores separate the
//! desirable responses from the undesirable ones.
//!
//! ```text
//! AUC        = share of (desirable row, undesirable row) with the desirable score above, ties count half
//! difference = mean score of desirable rows - mean score of undesirable rows
//! ```
//!
//! The AUC is the Mann-Whitney statistic divided by the number of pairs (Hanley and McNeil 1982). The two
//! rows of a pair have different prompts in general, so a part of the score that depends only on the prompt
//! affects the AUC. A row whose score is NaN counts as ranked wrongly in all its pairs. Intervals come from a
//! percentile bootstrap that draws rows with replacement within each label.

use super::statistics::{Estimate, Moments, Resampling, percentile_interval, unanimous_interval};
use crate::rng::Rng;

/// A row: whether its response is desirable, and the score of the response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Labelled {
    /// Label of the row.
    pub desirable: bool,
    /// Score of the response.
    pub score: f64,
}

/// Measures of a set of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelledSummary {
    /// Scores of all rows.
    pub all: Option<Moments>,
    /// Scores of desirable rows.
    pub desirable: Option<Moments>,
    /// Scores of undesirable rows.
    pub undesirable: Option<Moments>,
    /// Number of scores that are NaN or infinite.
    pub non_finite: usize,
    /// Share of pairs of a desirable and an undesirable row in which the desirable one has the larger
    /// score, ties as a half. `None` if all rows have one label.
    pub auc: Option<Estimate>,
    /// Difference of the means of desirable and undesirable rows; `None` as for the AUC.
    pub difference: Option<Estimate>,
}

impl LabelledSummary {
    /// Measures rows; the random numbers of the intervals depend on the seed only.
    pub fn of(rows: &[Labelled], resampling: Resampling) -> Self {
        let scores = |keep: &dyn Fn(&Labelled) -> bool| -> Vec<f64> {
            rows.iter().filter(|row| keep(row)).map(|row| row.score).collect()
        };
        let (of_desirable, of_undesirable) = (scores(&|row| row.desirable), scores(&|row| !row.desirable));
        let mut summary = Self {
            all: Moments::of(&scores(&|_| true)),
            desirable: Moments::of(&of_desirable),
            undesirable: Moments::of(&of_undesirable),
            non_finite: rows.iter().filter(|row| !row.score.is_finite()).count(),
            auc: None,
            difference: None,
        };
        if of_desirable.is_empty() || of_undesirable.is_empty() {
            return summary;
        }
        let ranked = Ranked::new(rows);
        let [auc, difference] = ranked.measures(&vec![1; rows.len()]);
        let [auc_interval, difference_interval] = ranked.intervals(resampling);
        let fewer = of_desirable.len().min(of_undesirable.len());
        let unanimous = resampling.resamples > 0 && fewer > 1 && (auc == 0.0 || auc == 1.0);
        // Every resample then gives the same AUC. The interval is the bound for as many independent trials as
        // the rarer label has rows.
        let auc_interval = if unanimous { Some(unanimous_interval(fewer, auc == 1.0)) } else { auc_interval };
        summary.auc = Some(Estimate { value: auc, interval: auc_interval });
        summary.difference = Some(Estimate { value: difference, interval: difference_interval });
        summary
    }
}

/// Rows in ascending order of score, with NaN scores at the end.
struct Ranked {
    rows: Vec<Labelled>,
    /// Indices of the rows of each label: undesirable, desirable.
    of_label: [Vec<usize>; 2],
}

impl Ranked {
    fn new(rows: &[Labelled]) -> Self {
        let mut rows = rows.to_vec();
        rows.sort_by(|a, b| a.score.is_nan().cmp(&b.score.is_nan()).then(a.score.total_cmp(&b.score)));
        let of = |desirable| (0..rows.len()).filter(|&i| rows[i].desirable == desirable).collect();
        let of_label = [of(false), of(true)];
        Self { rows, of_label }
    }

    /// AUC and difference of means if row `i` occurs `times[i]` times. Both labels must occur.
    fn measures(&self, times: &[u32]) -> [f64; 2] {
        let (mut below, mut right, mut at) = (0.0, 0.0, 0);
        let (mut counts, mut sums) = ([0.0; 2], [0.0; 2]);
        while at < self.rows.len() {
            // Rows of equal score.
            let score = self.rows[at].score;
            let (mut here, mut end) = ([0.0; 2], at);
            // `-0.0` equals `0.0`, and every NaN forms a separate class.
            while end < self.rows.len() && (end == at || self.rows[end].score == score) {
                here[usize::from(self.rows[end].desirable)] += f64::from(times[end]);
                end += 1;
            }
            if !score.is_nan() {
                right += here[1] * (below + 0.5 * here[0]);
                below += here[0];
            }
            for label in 0..2 {
                counts[label] += here[label];
                // Rows of infinite score that occur 0 times are skipped, because 0 times infinity is NaN.
                sums[label] += if here[label] > 0.0 { here[label] * score } else { 0.0 };
            }
            at = end;
        }
        let [undesirable, desirable] = counts;
        [right / (undesirable * desirable), sums[1] / desirable - sums[0] / undesirable]
    }

    fn intervals(&self, resampling: Resampling) -> [Option<[f64; 2]>; 2] {
        if self.of_label.iter().any(|rows| rows.len() < 2) {
            return [None; 2];
        }
        let mut rng = Rng::keyed(resampling.seed, &["bootstrap", "labelled"]);
        let mut drawn = [const { Vec::new() }; 2];
        for _ in 0..resampling.resamples {
            let mut times = vec![0; self.rows.len()];
            for rows in &self.of_label {
                rows.iter().for_each(|_| times[rows[rng.below(rows.len())]] += 1);
            }
            for (values, value) in drawn.iter_mut().zip(self.measures(&times)) {
                values.push(value);
            }
        }
        drawn.map(percentile_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESAMPLING: Resampling = Resampling { resamples: 400, seed: 7 };

    fn rows(desirable: &[f64], undesirable: &[f64]) -> Vec<Labelled> {
        let of = |scores: &[f64], desirable| {
            scores.iter().map(move |&score| Labelled { desirable, score }).collect::<Vec<_>>()
        };
        [of(desirable, true), of(undesirable, false)].concat()
    }

    fn auc(desirable: &[f64], undesirable: &[f64]) -> f64 {
        LabelledSummary::of(&rows(desirable, undesirable), RESAMPLING).auc.unwrap().value
    }

    #[test]
    fn the_auc_is_the_share_of_pairs_that_are_ranked_rightly() {
        assert_eq!(auc(&[3.0, 1.0], &[2.0, 0.0]), 0.75);
        assert_eq!((auc(&[2.0], &[1.0]), auc(&[1.0], &[2.0]), auc(&[1.0], &[1.0])), (1.0, 0.0, 0.5));
        // Two of the six pairs are right and one is a tie; zeros of both signs are equal.
        assert_eq!(auc(&[0.0, 5.0], &[-0.0, 1.0, 7.0]), 2.5 / 6.0);
        assert_eq!(auc(&[f64::INFINITY], &[f64::NEG_INFINITY]), 1.0);
        // Every pair with a NaN score is wrong.
        assert_eq!((auc(&[f64::NAN, 2.0], &[1.0]), auc(&[2.0], &[f64::NAN, 1.0])), (0.5, 0.5));
        // The AUC equals the share that is counted pair by pair.
        let mut rng = Rng::keyed(3, &["auc"]);
        let mut draw = |n: usize| (0..n).map(|_| rng.below(9) as f64).collect::<Vec<_>>();
        let (a, b) = (draw(40), draw(23));
        let pairs = a.iter().flat_map(|x| {
            b.iter().map(move |y| {
                if x > y {
                    1.0
                } else if x == y {
                    0.5
                } else {
                    0.0
                }
            })
        });
        assert_eq!(auc(&a, &b), pairs.sum::<f64>() / (40.0 * 23.0));
    }

    #[test]
    fn intervals_cover_the_value_and_one_label_has_no_separation() {
        let mixed = rows(&[3.0, 1.0, 2.5, 0.5, 4.0], &[2.0, 0.0, 1.5, 3.5]);
        let summary = LabelledSummary::of(&mixed, RESAMPLING);
        for estimate in [summary.auc.unwrap(), summary.difference.unwrap()] {
            let [low, high] = estimate.interval.unwrap();
            assert!(low < estimate.value && estimate.value < high, "{estimate:?}");
        }
        assert!((summary.difference.unwrap().value - (2.2 - 1.75)).abs() < 1e-12);
        assert_eq!(summary, LabelledSummary::of(&mixed, RESAMPLING), "the seed decides the interval");
        assert_ne!(summary, LabelledSummary::of(&mixed, Resampling { seed: 8, ..RESAMPLING }));
        // All pairs are ranked correctly, so the interval is the exact bound. The rarer label has two
        // rows, so the bound is for two trials.
        let apart = LabelledSummary::of(&rows(&[5.0, 6.0, 7.0], &[1.0, 2.0]), RESAMPLING).auc.unwrap();
        assert_eq!((apart.value, apart.interval), (1.0, Some(unanimous_interval(2, true))));
        let none = LabelledSummary::of(&mixed, Resampling { resamples: 0, ..RESAMPLING });
        assert_eq!((none.auc.unwrap().interval, none.difference.unwrap().interval), (None, None));
        let one = LabelledSummary::of(&rows(&[1.0, f64::NAN], &[]), RESAMPLING);
        assert_eq!((one.auc, one.difference, one.undesirable, one.non_finite), (None, None, None, 1));
        assert_eq!(one.desirable.unwrap().count, 2);
        assert_eq!(LabelledSummary::of(&[], RESAMPLING).all, None);
    }
}
