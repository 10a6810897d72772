//! Statistics of evaluations. Expected values come from scipy 1.x and numpy: `binomtest(min(a, b),
//! a + b).pvalue`, `binom.ppf`, `beta.ppf`, `quantile`, and by enumerating all resamples of four
//! groups.

use mapl::eval::measure::{Observation, Summary};
use mapl::eval::statistics::{Cluster, Moments, Resampling, estimates, exact_test, unanimous_interval};
use mapl::rng::Rng;

fn resampling(resamples: usize) -> Resampling {
    Resampling { resamples, seed: 1 }
}

/// One observation per entry; `groups` holds, for each group, whether each answer is right.
fn observations(groups: &[Vec<bool>]) -> Vec<Observation> {
    let of = |(group, all): (usize, &Vec<bool>)| {
        all.iter().map(|&right| Observation { group, logit: if right { 0.5 } else { -2.0 } }).collect::<Vec<_>>()
    };
    groups.iter().enumerate().flat_map(of).collect()
}

#[test]
fn the_exact_test_agrees_with_scipy() {
    for (a, b, expected) in [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (7, 8, 1.0),
        (1, 9, 0.021484375),
        (3, 14, 0.012725830078125),
        (0, 8, 0.0078125),
        (120, 175, 0.0016216284047333134),
        (4000, 4300, 0.001029736761268162),
        (50_000, 51_000, 0.0016696304559914016),
    ] {
        for (a, b) in [(a, b), (b, a)] {
            let p = exact_test(a, b);
            assert!((p / expected - 1.0).abs() < 1e-9, "{a} against {b}: {p}, scipy {expected}");
        }
    }
    // Below the smallest f64 the p-value is 0, not NaN.
    assert_eq!(exact_test(0, 5000), 0.0);
}

/// With one observation per group, resampled sums are binomial, so the interval's ends are binomial
/// quantiles.
#[test]
fn percentile_intervals_agree_with_the_binomial_distribution() {
    for (n, right, low, high) in [(100, 70, 0.61, 0.79), (50, 30, 23.0 / 50.0, 37.0 / 50.0)] {
        let groups: Vec<Vec<bool>> = (0..n).map(|i| vec![i < right]).collect();
        let summary = Summary::of(&observations(&groups), resampling(20_000), &["x"]);
        assert_eq!(summary.accuracy.value, right as f64 / n as f64);
        let [found_low, found_high] = summary.accuracy.interval.unwrap();
        assert!((found_low - low).abs() < 1e-12 && (found_high - high).abs() < 1e-12, "{found_low} to {found_high}");
    }
}

/// Two equal observations per group carry no more information than one: the interval is for 50
/// trials, not for 100. Treating the observations as independent would give [0.50, 0.69] (scipy).
#[test]
fn the_bootstrap_resamples_groups_and_not_comparisons() {
    let groups: Vec<Vec<bool>> = (0..50).map(|i| vec![i < 30; 2]).collect();
    let summary = Summary::of(&observations(&groups), resampling(20_000), &["x"]);
    assert_eq!((summary.count, summary.groups, summary.correct), (100, 50, 60));
    let [low, high] = summary.accuracy.interval.unwrap();
    assert!((low - 0.46).abs() < 1e-12 && (high - 0.74).abs() < 1e-12, "{low} to {high}");
}

/// Four groups of unequal size have 256 equally likely resamples. numpy's 2.5 % and 97.5 %
/// quantiles of their ratios are 0.1 and 1; 13.67 % of the ratios are at most 0.2.
#[test]
fn groups_of_unequal_size_keep_their_weights() {
    let clusters: Vec<Cluster<1>> =
        [(1.0, 1.0), (0.0, 3.0), (2.0, 2.0), (1.0, 4.0)].map(|(sum, weight)| Cluster { weight, sums: [sum] }).into();
    let [estimate] = estimates(&clusters, resampling(20_000), &["x"]);
    assert_eq!(estimate.value, 0.4);
    let [low, high] = estimate.interval.unwrap();
    assert!((low - 0.1).abs() < 1e-12 && (high - 1.0).abs() < 1e-12, "{low} to {high}");
}

#[test]
fn intervals_depend_on_seed_and_label() {
    let groups: Vec<Vec<bool>> = (0..40).map(|i| vec![i % 3 == 0, i % 7 == 0]).collect();
    let observations = observations(&groups);
    let mean = |seed, label: &str| {
        let resampling = Resampling { resamples: 100, seed };
        Summary::of(&observations, resampling, &[label]).mean_logit.interval.unwrap()
    };
    assert_eq!(mean(1, "a"), mean(1, "a"));
    assert_ne!(mean(1, "a"), mean(2, "a"));
    assert_ne!(mean(1, "a"), mean(1, "b"));
}

#[test]
fn unanimous_results_get_the_exact_bound_as_interval() {
    // scipy: beta.ppf(0.025, 400, 1) and beta.ppf(0.975, 1, 12).
    assert!((unanimous_interval(400, true)[0] - 0.9908201954163347).abs() < 1e-12);
    assert!((unanimous_interval(12, false)[1] - 0.2646484693970512).abs() < 1e-12);
    let of = |groups: &[Vec<bool>], n| Summary::of(&observations(groups), resampling(n), &["x"]);
    let all = of(&vec![vec![true]; 400], 200);
    assert_eq!(all.accuracy.interval, Some(unanimous_interval(400, true)));
    assert_eq!(of(&vec![vec![false]; 12], 200).accuracy.interval, Some(unanimous_interval(12, false)));
    // Each group is half right: there is no spread, but the share is not known exactly.
    assert_eq!(of(&vec![vec![true, false]; 12], 200).accuracy.interval, None);
    // A single group or no resamples give no interval.
    assert_eq!(of(&[vec![true, false]], 200).accuracy.interval, None);
    assert_eq!(of(&vec![vec![true]; 400], 0).accuracy.interval, None);
    let ties = vec![Observation { group: 0, logit: 0.0 }, Observation { group: 1, logit: -0.0 }];
    let summary = Summary::of(&ties, resampling(200), &["x"]);
    assert_eq!((summary.ties, summary.correct, summary.accuracy.value), (2, 0, 0.0));
    assert_eq!((summary.accuracy_half.value, summary.accuracy_half.interval), (0.5, None));
}

#[test]
fn non_finite_scores_are_counted() {
    let logits = [f64::NAN, f64::NEG_INFINITY, f64::INFINITY, 1.0];
    let observations: Vec<_> = logits.iter().enumerate().map(|(group, &logit)| Observation { group, logit }).collect();
    let summary = Summary::of(&observations, resampling(100), &["x"]);
    assert_eq!((summary.count, summary.correct, summary.ties, summary.non_finite), (4, 2, 0, 3));
    assert!(summary.mean_logit.value.is_nan());
}

/// Sixty groups of three comparisons; all comparisons of a group have the same difficulty.
/// Resampled by group, the interval covers the true share about as often as stated; resampled by
/// comparison, far too rarely. The rates are over 500 data sets, so their standard deviation is one
/// per cent.
#[test]
fn intervals_cover_the_true_share() {
    let mut rng = Rng::keyed(11, &["coverage"]);
    let (mut by_group, mut by_comparison) = (0, 0);
    let sets = 500;
    for set in 0..sets {
        // Group shares are 0.2 or 0.95 with equal probability, 0.575 on average.
        let groups: Vec<Vec<bool>> = (0..60)
            .map(|_| {
                let share = if rng.flip() { 0.95 } else { 0.2 };
                (0..3).map(|_| rng.unit() < share).collect()
            })
            .collect();
        let covers = |observations: &[Observation]| {
            let resampling = Resampling { resamples: 200, seed: set };
            let [low, high] = Summary::of(observations, resampling, &["x"]).accuracy.interval.unwrap();
            usize::from(low <= 0.575 && 0.575 <= high)
        };
        let grouped = observations(&groups);
        let apart: Vec<_> =
            grouped.iter().enumerate().map(|(group, o)| Observation { group, logit: o.logit }).collect();
        by_group += covers(&grouped);
        by_comparison += covers(&apart);
    }
    let rate = |n| n as f64 / sets as f64;
    assert!((0.91..=0.98).contains(&rate(by_group)), "by group {}", rate(by_group));
    assert!(rate(by_comparison) < 0.88, "by comparison {}", rate(by_comparison));
}

#[test]
fn moments_agree_with_numpy() {
    let moments = Moments::of(&[3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0]).unwrap();
    assert_eq!((moments.count, moments.mean, moments.min, moments.max), (8, 2.375, -5.0, 9.0));
    assert!((moments.std - 3.998046397929869).abs() < 1e-12);
    // A small spread far from zero keeps its precision.
    let far = Moments::of(&[1e9 + 1.0, 1e9 - 1.0]).unwrap();
    assert_eq!((far.mean, far.std), (1e9, 1.0));
    assert_eq!(Moments::of(&[]), None);
}
