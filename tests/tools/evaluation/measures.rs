//! Measures and breakdowns of groups with scores set by hand.

use mapl::data::group::{Comparison, Direction, Kind, PreferenceGroup, Prompt, Response, Term};
use mapl::eval::measure::{By, Measure, Quantity};
use mapl::eval::statistics::Resampling;
use mapl::eval::{Evaluation, Scored, Settings, data_hash};

/// A full group with five prompts: x, x_up, one that is worse for the chosen response, x_down, and one that
/// is worse for the rejected response. It has k = 3 and rule A; the chosen response violates one instruction
/// and the rejected response two.
fn bakery() -> PreferenceGroup {
    let group: PreferenceGroup = serde_json::from_str(include_str!("../../fixtures/bakery_group.json")).unwrap();
    group.validate().unwrap();
    group
}

/// Scores a group with a function of prompt and response.
fn scored(group: &PreferenceGroup, score: impl Fn(usize, usize) -> f64) -> Scored<'_> {
    let scores: Vec<f64> = group.sequences().into_iter().map(|(p, r)| score(p, r)).collect();
    Scored::new(group, &scores)
}

fn evaluate(scored: &[Scored<'_>], holdout: &[&str]) -> Evaluation {
    let holdout_functions = holdout.iter().map(|id| (*id).to_owned()).collect();
    Evaluation::of(scored, &Settings { holdout_functions }, Vec::new())
}

fn logits(evaluation: &Evaluation, quantity: Quantity) -> Vec<f64> {
    evaluation.measure(quantity).map_or(Vec::new(), |m| m.observations.iter().map(|o| o.logit).collect())
}

/// Labels and observations of a breakdown.
fn labels(measure: &Measure, by: By) -> Vec<(&str, Vec<usize>)> {
    measure.splits.iter().filter(|s| s.by == by).map(|s| (s.label.as_str(), s.members.clone())).collect()
}

/// Scores of sequences (0,0) (0,1) (1,0) (1,1) (2,0) (3,0) (3,1) (4,1).
const SCORES: [f64; 8] = [2.0, 1.5, 3.0, 0.5, 3.5, 0.25, 1.0, 1.0];

#[test]
fn measures_of_the_worked_example_match_values_by_hand() {
    let group = bakery();
    let evaluation = evaluate(&[Scored::new(&group, &SCORES)], &[]);
    let z = |quantity| logits(&evaluation, quantity);
    // gap(x) = 0.5, gap(x_up) = 2.5, gap(x_down) = -0.75.
    assert_eq!(z(Quantity::Semantic), [0.5]);
    assert_eq!(z(Quantity::Intra), [3.0 - 3.5, 1.0 - 1.0]);
    assert_eq!(z(Quantity::Inter), [2.5 - 0.5, 0.5 + 0.75]);
    assert_eq!(z(Quantity::Sensitivity), [2.5 + 0.75]);
    assert_eq!(z(Quantity::SensitivityFlip), [0.75]);
    assert_eq!(z(Quantity::Conflict), [0.75]);
    let [better, worse] = [0, 1].map(|r| group.responses[r].text().chars().count() as f64);
    assert_eq!(z(Quantity::LengthOnly), [better - worse]);
    assert_eq!(z(Quantity::SemanticEmptyPrompt), Vec::<f64>::new());

    let intra = evaluation.measure(Quantity::Intra).unwrap().tally();
    assert_eq!((intra.count, intra.correct, intra.ties), (2, 0, 1));
    assert_eq!((intra.accuracy(), intra.accuracy_half()), (0.0, 0.25));
    let tallies = evaluation.tallies();
    assert_eq!(tallies.map(|t| (t.count, t.correct, t.ties)), [(1, 1, 0), (2, 0, 1), (2, 2, 0)]);

    let (all, chosen, rejected) =
        (evaluation.rewards.all.unwrap(), evaluation.rewards.chosen.unwrap(), evaluation.rewards.rejected.unwrap());
    assert_eq!((all.count, all.mean, all.min, all.max), (8, 12.75 / 8.0, 0.25, 3.5));
    assert_eq!((chosen.mean, rejected.mean, chosen.std), (2.0, 1.5, 0.0));
}

#[test]
fn breakdowns_of_the_worked_example_match_values_by_hand() {
    let group = bakery();
    let held = ["keywords:existence", "startend:end_checker"];
    let evaluation = evaluate(&[Scored::new(&group, &SCORES)], &held);
    let measure = |quantity| evaluation.measure(quantity).unwrap();
    let [words, keywords, end] = ["length_constraints:number_words", "keywords:existence", "startend:end_checker"];

    assert_eq!(labels(measure(Quantity::Semantic), By::Length), [("chosen longer", vec![0])]);
    assert_eq!(labels(measure(Quantity::Semantic), By::Instructions), []);
    let intra = measure(Quantity::Intra);
    assert_eq!(labels(intra, By::Instructions), [("3", vec![0, 1])]);
    assert_eq!(labels(intra, By::Rule), [("A", vec![0, 1])]);
    assert_eq!(labels(intra, By::Violations), [("1", vec![0]), ("2", vec![1])]);
    // The first comparison differs only in the number of words; the second differs only in keywords
    // and ending.
    assert_eq!(labels(intra, By::Function), [(keywords, vec![1]), (words, vec![0]), (end, vec![1])]);
    assert_eq!(labels(intra, By::Holdout), [("held out", vec![1]), ("trained", vec![0])]);
    let inter = measure(Quantity::Inter);
    assert_eq!(labels(inter, By::Direction), [("down", vec![1]), ("up", vec![0])]);
    assert_eq!(labels(inter, By::Function), [(keywords, vec![0, 1]), (words, vec![0, 1]), (end, vec![0, 1])]);
    assert_eq!(labels(inter, By::Holdout), [("mixed", vec![0, 1])]);
    assert_eq!(labels(inter, By::Violations), []);
    assert_eq!(labels(measure(Quantity::Conflict), By::Instructions), [("3", vec![0])]);
    assert_eq!(labels(measure(Quantity::Sensitivity), By::Instructions), [("3", vec![0])]);
    // Without a list of held-out functions there is no such breakdown.
    let plain = evaluate(&[Scored::new(&group, &SCORES)], &[]);
    assert!(plain.measures.iter().all(|m| labels(m, By::Holdout).is_empty()));
}

#[test]
fn instruction_counts_are_sorted_by_value() {
    let mut measure = Measure::new(Quantity::Intra);
    for n in ["10", "2", "1"] {
        measure.add(0, 1.0, vec![(By::Instructions, n.to_owned())]);
    }
    measure.sort_splits();
    assert_eq!(measure.splits.iter().map(|s| s.label.as_str()).collect::<Vec<_>>(), ["1", "2", "10"]);
}

/// A scorer that ignores the prompt, and a scorer that reads only the response's length.
#[test]
fn prompt_blind_and_length_only_scorers_tie_on_every_intra_comparison() {
    let group = bakery();
    let length = |r: usize| group.responses[r].text().chars().count() as f64;
    let blind: Vec<Scored<'_>> = (0..20).map(|i| scored(&group, |_, r| ((i * 7 + r * 3) as f64).sin())).collect();
    let long: Vec<Scored<'_>> = (0..20).map(|_| scored(&group, |_, r| 0.01 * length(r))).collect();
    for scored in [&blind, &long] {
        let evaluation = evaluate(scored, &[]);
        for quantity in [Quantity::Intra, Quantity::Inter, Quantity::Sensitivity] {
            let tally = evaluation.measure(quantity).unwrap().tally();
            assert_eq!((tally.correct, tally.ties), (0, tally.count), "{quantity:?}");
            assert_eq!((tally.accuracy(), tally.accuracy_half()), (0.0, 0.5), "{quantity:?}");
        }
    }
    let evaluation = evaluate(&long, &[]);
    let share = |quantity| evaluation.measure(quantity).unwrap().tally().accuracy();
    assert_eq!(share(Quantity::Semantic), share(Quantity::LengthOnly));
    // The blind scorer prefers the same response under every prompt, so it never flips.
    assert_eq!(evaluate(&blind, &[]).measure(Quantity::SensitivityFlip).unwrap().tally().correct, 0);
}

/// Sensitivity is correct if the gap follows the instructions, the flip only if the preferred
/// response changes.
#[test]
fn sensitivity_and_flip_differ_if_the_gap_narrows_without_changing_sign() {
    let group = bakery();
    let gap = |up: f64, down: f64| {
        move |p: usize, r: usize| match (p, r) {
            (1, 0) => up,
            (3, 0) => down,
            _ => 0.0,
        }
    };
    for (up, down, sensitive, flips) in
        [(2.0, 1.0, true, false), (2.0, -1.0, true, true), (-1.0, -2.0, true, false), (-1.0, 2.0, false, false)]
    {
        let evaluation = evaluate(&[scored(&group, gap(up, down))], &[]);
        let right = |q| evaluation.measure(q).unwrap().tally().correct == 1;
        assert_eq!((right(Quantity::Sensitivity), right(Quantity::SensitivityFlip)), (sensitive, flips), "{up} {down}");
        assert_eq!(right(Quantity::Conflict), down < 0.0);
    }
    // A gap of exactly 0 under one prompt is a tie, not a flip; NaN is neither.
    let tie = evaluate(&[scored(&group, gap(1.0, 0.0))], &[]);
    assert_eq!(tie.measure(Quantity::SensitivityFlip).unwrap().tally().ties, 1);
    let broken = evaluate(&[scored(&group, gap(f64::NAN, -1.0))], &[]);
    let tally = broken.measure(Quantity::SensitivityFlip).unwrap().tally();
    assert_eq!((tally.correct, tally.ties), (0, 0));
}

fn comparison(kind: Kind, direction: Option<Direction>, terms: &[(usize, usize, i8)]) -> Comparison {
    let terms = terms.iter().map(|&(prompt, response, sign)| Term { prompt, response, sign }).collect();
    Comparison { kind, terms, margin: 0.0, weight: 1.0, rule: None, direction }
}

/// The conflict measure needs the scores of both responses under x_down, which may come from any comparisons.
/// It needs no comparison of its own kind.
#[test]
fn conflict_is_found_through_the_instructions() {
    let mut group = bakery();
    let base = group.comparisons[0].clone();
    // Both responses occur under prompt 3, in two intra comparisons; there is no inter comparison.
    let under = |r| comparison(Kind::Intra, None, &[(3, r, 1), (0, r, -1)]);
    group.comparisons = vec![base.clone(), under(0), under(1)];
    let evaluation = evaluate(&[scored(&group, |p, r| if (p, r) == (3, 1) { 1.0 } else { 0.0 })], &[]);
    assert_eq!(logits(&evaluation, Quantity::Conflict), [1.0]);
    assert_eq!(logits(&evaluation, Quantity::Sensitivity), Vec::<f64>::new());
    // Only one response was scored under prompt 3.
    group.comparisons = vec![base, under(1)];
    assert_eq!(logits(&evaluate(&[scored(&group, |_, _| 0.0)], &[]), Quantity::Conflict), Vec::<f64>::new());
    // An instruction with an unknown flag gives no conflict.
    let mut group = bakery();
    group.instructions.iter_mut().filter(|i| i.prompt == 3).for_each(|i| i.satisfied[1] = None);
    assert_eq!(logits(&evaluate(&[scored(&group, |_, _| 0.0)], &[]), Quantity::Conflict), Vec::<f64>::new());
}

/// Each pair uses only the added prompts that an inter comparison links to its own prompt.
#[test]
fn added_prompts_are_not_assigned_to_another_pair() {
    let mut group = bakery();
    group.prompts.push(Prompt::Text("Suggest another name.".into()));
    group.comparisons.push(comparison(Kind::Base, None, &[(5, 0, 1), (5, 1, -1)]));
    let evaluation = evaluate(&[scored(&group, |_, _| 0.0)], &[]);
    let count = |q| logits(&evaluation, q).len();
    assert_eq!((count(Quantity::Semantic), count(Quantity::Conflict), count(Quantity::Sensitivity)), (2, 1, 1));
}

#[test]
fn lengths_are_in_characters_and_equal_lengths_tie() {
    let pair = |chosen: &str, rejected: &str| {
        let text = |s: &str| Response::Text(s.into());
        PreferenceGroup::pair("1".into(), Prompt::Text("p".into()), text(chosen), text(rejected), 0.0)
    };
    let groups = [pair("äöü", "abc"), pair("ab", "abc"), pair("abcd", "abc")];
    let all: Vec<_> = groups.iter().map(|g| scored(g, |_, r| r as f64)).collect();
    let evaluation = evaluate(&all, &[]);
    assert_eq!(logits(&evaluation, Quantity::LengthOnly), [0.0, -1.0, 1.0]);
    let expected = [("chosen longer", vec![2]), ("equal length", vec![0]), ("rejected longer", vec![1])];
    assert_eq!(labels(evaluation.measure(Quantity::Semantic).unwrap(), By::Length), expected);
    let lines = evaluation.summaries(Resampling { resamples: 0, seed: 0 });
    assert_eq!(lines.iter().map(|l| l.summary.count).collect::<Vec<_>>(), [3, 1, 1, 1, 3]);
}

#[test]
fn the_data_hash_depends_on_content_and_order() {
    let (group, mut renamed, mut other) = (bakery(), bakery(), bakery());
    renamed.id = "another".into();
    other.comparisons[0].weight = 2.0;
    let hash = |groups: &[&PreferenceGroup]| data_hash(groups.iter().copied());
    assert_eq!(hash(&[&group]), hash(&[&renamed]));
    assert_ne!(hash(&[&group]), hash(&[&other]));
    assert_ne!(hash(&[&group, &other]), hash(&[&other, &group]));
    assert_ne!(hash(&[&group]), hash(&[&group, &group]));
}
