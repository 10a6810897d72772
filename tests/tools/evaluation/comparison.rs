//! Comparison of two models on the same data, and result files.

use mapl::eval::compare::{Paired, compare};
use mapl::eval::measure::{By, Measure, Observation, Quantity};
use mapl::eval::statistics::{Resampling, exact_test};
use mapl::eval::{Evaluation, Rewards, record};
use serde_json::Map;

const RESAMPLING: Resampling = Resampling { resamples: 500, seed: 3 };

fn observations(logits: &[f64], per_group: usize) -> Vec<Observation> {
    logits.iter().enumerate().map(|(i, &logit)| Observation { group: i / per_group, logit }).collect()
}

/// An evaluation with one observation per group, broken down by length.
fn evaluation(logits: &[f64], data: &str) -> Evaluation {
    let mut measure = Measure::new(Quantity::Semantic);
    for (group, &logit) in logits.iter().enumerate() {
        let label = if group % 2 == 0 { "chosen longer" } else { "rejected longer" };
        measure.add(group, logit, vec![(By::Length, label.into())]);
    }
    let groups = logits.len();
    Evaluation { measures: vec![measure], groups, data: data.into(), rewards: Rewards::default() }
}

/// Logits of A and B on 18 comparisons. Only A is right on 1, only B on 9. One of these 9 is a tie
/// of A, which counts as wrong or half right.
fn sides() -> (Vec<f64>, Vec<f64>) {
    let mut a = vec![1.0; 18];
    let mut b = vec![2.0; 18];
    a[..8].fill(-1.0);
    a[8] = 0.0;
    b[9] = -0.5;
    (a, b)
}

#[test]
fn discordant_pairs_are_counted_and_tested() {
    let (a, b) = sides();
    let paired = Paired::of(&observations(&a, 1), &observations(&b, 1), RESAMPLING, &["x"]);
    assert_eq!((paired.count, paired.groups, paired.only_a, paired.only_b), (18, 18, 1, 9));
    assert_eq!((paired.a, paired.b), (0.5, 17.0 / 18.0));
    assert_eq!(paired.difference.value, 8.0 / 18.0);
    assert_eq!(paired.difference_half.value, 7.5 / 18.0);
    // scipy: binomtest(1, 10).pvalue. With one comparison per group both tests are McNemar's test.
    assert!((paired.mcnemar - 0.021484375).abs() < 1e-12);
    assert_eq!(paired.sign_test, paired.mcnemar);
    let [low, high] = paired.difference.interval.unwrap();
    assert!(0.1 < low && low < 8.0 / 18.0 && 8.0 / 18.0 < high && high < 0.8, "{low} to {high}");
    // With exchanged models the results are mirrored; the resamples are the same.
    let back = Paired::of(&observations(&b, 1), &observations(&a, 1), RESAMPLING, &["x"]);
    assert_eq!((back.only_a, back.only_b, back.mcnemar), (9, 1, paired.mcnemar));
    let [back_low, back_high] = back.difference.interval.unwrap();
    assert!((back_low + high).abs() < 1e-12 && (back_high + low).abs() < 1e-12);
}

/// A paired difference has less variance than the two shares: equal models differ by exactly 0.
#[test]
fn a_model_does_not_differ_from_itself() {
    let (a, _) = sides();
    let paired = Paired::of(&observations(&a, 1), &observations(&a, 1), RESAMPLING, &["x"]);
    assert_eq!((paired.difference.value, paired.difference.interval, paired.mcnemar), (0.0, None, 1.0));
}

/// Three comparisons of a group that always change together count as one in the test over groups.
#[test]
fn the_test_over_groups_counts_groups() {
    let (a, b) = sides();
    let triple = |logits: &[f64]| observations(&logits.iter().flat_map(|&z| [z; 3]).collect::<Vec<_>>(), 3);
    let paired = Paired::of(&triple(&a), &triple(&b), RESAMPLING, &["x"]);
    assert_eq!((paired.only_a, paired.only_b, paired.groups_a, paired.groups_b), (3, 27, 1, 9));
    assert_eq!((paired.mcnemar, paired.sign_test), (exact_test(3, 27), exact_test(1, 9)));
    // With one comparison lost and one won in a group, neither model is better on the group.
    let mixed = Paired::of(&observations(&[1.0, -1.0], 2), &observations(&[-1.0, 1.0], 2), RESAMPLING, &["x"]);
    assert_eq!((mixed.only_a, mixed.only_b, mixed.groups_a, mixed.groups_b), (1, 1, 0, 0));
}

#[test]
fn evaluations_are_compared_per_breakdown_and_other_data_is_refused() {
    let (a, b) = sides();
    let (a, b) = (evaluation(&a, "one"), evaluation(&b, "one"));
    let comparison = compare(("A", &a), ("B", &b), RESAMPLING).unwrap();
    let titles: Vec<_> = comparison.lines.iter().map(|line| line.place.title()).collect();
    assert_eq!(titles, ["semantic", "  chosen longer", "  rejected longer"]);
    assert_eq!(comparison.lines.iter().map(|line| line.summary.count).collect::<Vec<_>>(), [18, 9, 9]);
    let only: Vec<_> = comparison.lines.iter().map(|line| (line.summary.only_a, line.summary.only_b)).collect();
    assert_eq!(only, [(1, 9), (0, 5), (1, 4)]);

    let other = Evaluation { data: "two".into(), ..b.clone() };
    let error = compare(("A", &a), ("B", &other), RESAMPLING).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("different data"), "{error}");
    let mut moved = b.clone();
    moved.measures[0].observations[3].group = 2;
    let error = compare(("A", &a), ("B", &moved), RESAMPLING).unwrap_err();
    assert!(error.to_string().contains("same comparisons of semantic"), "{error}");
    // A probe may leave out different pairs, and a measure may be missing on one side. Such
    // measures are not compared.
    let as_probe = |mut e: Evaluation| {
        e.measures[0].quantity = Quantity::SemanticEmptyPrompt;
        e
    };
    let comparison = compare(("A", &as_probe(a.clone())), ("B", &as_probe(moved)), RESAMPLING).unwrap();
    assert_eq!((comparison.lines.len(), comparison.unmatched), (0, vec![Quantity::SemanticEmptyPrompt]));
    let comparison = compare(("A", &a), ("B", &as_probe(b)), RESAMPLING).unwrap();
    assert_eq!(comparison.unmatched, [Quantity::Semantic, Quantity::SemanticEmptyPrompt]);
}

fn written(evaluation: &Evaluation) -> String {
    let result = record::result_json(Map::new(), &evaluation.summaries(RESAMPLING), evaluation);
    record::file_text(&result, evaluation)
}

#[test]
fn written_results_are_read_back_unchanged() {
    let logits = [0.1, -0.25, 0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-300, -3.5];
    let evaluation = evaluation(&logits, "hash");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    let text = written(&evaluation);
    std::fs::write(&path, &text).unwrap();
    let back = record::read(&path).unwrap();
    assert_eq!((back.groups, back.data.as_str()), (8, "hash"));
    assert_eq!(back.measures[0].splits, evaluation.measures[0].splits);
    for (a, b) in back.measures[0].observations.iter().zip(&evaluation.measures[0].observations) {
        assert!(a.group == b.group && (a.logit == b.logit || (a.logit.is_nan() && b.logit.is_nan())), "{a:?} {b:?}");
    }
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["semantic"]["mean_logit"], "NaN");
    assert_eq!((&value["semantic"]["non_finite"], &value["semantic"]["count"]), (&3.into(), &8.into()));
    assert_eq!(value["by_length"]["semantic"]["chosen longer"]["count"], 4);
    assert_eq!(value["by_rule"], serde_json::json!({}));
}

#[test]
fn damaged_results_are_refused_with_their_name() {
    let text = written(&evaluation(&[1.0, -1.0, 0.5], "hash"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("result.json");
    let fails = |from: &str, to: &str, part: &str| {
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let error = record::read(&path).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("result.json") && error.to_string().contains(part), "{error}");
    };
    fails("\"schema\": 1", "\"schema\": 9", "schema is 9");
    fails("\"schema\": 1,", "", "\"schema\" is missing");
    fails("\"data\"", "\"dato\"", "\"data\"");
    fails("\"observations\"", "\"others\"", "\"observations\" is missing");
    fails("\"group\":[0,1,2]", "\"group\":[0,1,3]", "not a list of group indices");
    fails("\"group\":[0,1,2]", "\"group\":[0,1]", "not a list of numbers");
    fails("\"logit\":[1.0", "\"logit\":[\"one\"", "not a list of numbers");
    fails("[0,2]", "[0,7]", "not a list of observation indices");
    fails("\"by_length\":", "\"by_height\":", "unknown split");
    fails("{\"semantic\":{", "{\"sem\":{", "unknown measure");
    fails("}", "", "is not a result of `mapl eval --output`");
}
