//! Figures of reward benchmarks against hand-computed values, and their intervals.

use std::path::Path;
use std::sync::Arc;

use mapl::data::group::{PreferenceGroup, Prompt};
use mapl::data::source::SourceRow;
use mapl::eval::benchmark::figures::{figures, graph_figures, shared_credit, style_shares, tie_margins};
use mapl::eval::benchmark::summary::summarise;
use mapl::eval::benchmark::{Benchmark, Item, Judged, Shape};
use mapl::eval::statistics::Resampling;

fn item(shape: Shape) -> Item {
    let group = PreferenceGroup::new("x".into(), vec![Prompt::Text("p".into())], Vec::new(), Vec::new());
    Item { row: SourceRow { group, file: Arc::from(Path::new("f")), line: 1, scores: None }, shape }
}

fn values(benchmark: Benchmark, rows: &[(Shape, Vec<f64>)]) -> Vec<(String, usize, f64)> {
    let items: Vec<Item> = rows.iter().map(|(shape, _)| item(shape.clone())).collect();
    let judged: Vec<Judged> =
        items.iter().zip(rows).map(|(item, (_, scores))| Judged { item, scores: scores.clone() }).collect();
    let all: Vec<&Judged> = judged.iter().collect();
    figures(benchmark, &all).into_iter().map(|figure| (figure.name, figure.count, figure.value)).collect()
}

fn value(found: &[(String, usize, f64)], name: &str) -> (usize, f64) {
    let (_, count, value) = found.iter().find(|figure| figure.0 == name).unwrap_or_else(|| panic!("{name}"));
    (*count, *value)
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} {b}");
}

#[test]
fn rm_bench_compares_styles_below_on_and_above_the_diagonal() {
    // chosen 2, 4, 6 and rejected 1, 5, 6. Ties are wrong.
    let scores = [2.0, 4.0, 6.0, 1.0, 5.0, 6.0];
    let [easy, normal, hard] = style_shares(&scores);
    close(easy, 1.0);
    close(normal, 1.0 / 3.0);
    close(hard, 0.0);
    let row = |domain: &str, scores: [f64; 6]| (Shape::Styles { domain: domain.into() }, scores.to_vec());
    let perfect = [2.0, 2.0, 2.0, 1.0, 1.0, 1.0];
    let rows = [
        row("chat", scores),
        row("safety-refuse", scores),
        row("safety-refuse", scores),
        row("safety-response", perfect),
    ];
    let found = values(Benchmark::RmBench, &rows);
    // Both safety domains are one domain of three rows: hard (0 + 0 + 1) / 3.
    assert_eq!(value(&found, "safety/hard").0, 3);
    close(value(&found, "safety/hard").1, 1.0 / 3.0);
    close(value(&found, "safety-refuse/hard").1, 0.0);
    close(value(&found, "hard").1, 0.5 * (0.0 + 1.0 / 3.0));
    let (easy, normal) = (1.0, 0.5 * (1.0 / 3.0 + 5.0 / 9.0));
    close(value(&found, "overall").1, (easy + normal + 1.0 / 6.0) / 3.0);
    close(value(&found, "chat").1, (1.0 + 1.0 / 3.0) / 3.0);
}

#[test]
fn rmb_wants_the_best_above_every_loser_and_averages_its_four_cells() {
    let row = |pair: bool, goal: &str, scores: &[f64]| {
        (Shape::Best { pair, goal: goal.into(), category: "Chat".into() }, scores.to_vec())
    };
    let rows = [
        row(false, "Helpfulness", &[3.0, 2.0, 1.0]),
        row(false, "Helpfulness", &[3.0, 2.0, 3.0]),
        row(true, "Helpfulness", &[1.0, 0.0]),
        row(true, "Harmlessness", &[0.0, 0.0]),
        row(true, "Harmlessness", &[f64::NAN, 0.0]),
    ];
    let found = values(Benchmark::Rmb, &rows);
    assert_eq!(value(&found, "Helpfulness/best-of-n"), (2, 0.5));
    assert_eq!(value(&found, "Harmlessness/pairwise"), (2, 0.0));
    close(value(&found, "overall").1, (0.5 + 1.0 + 0.0) / 3.0);
}

#[test]
fn reward_bench_2_shares_the_credit_of_equal_scores_and_scores_ties_by_margins() {
    assert_eq!(shared_credit(&[1.0, 1.0, 0.0, 1.0]), 1.0 / 3.0);
    assert_eq!(shared_credit(&[1.0, 2.0]), 0.0);
    assert_eq!(shared_credit(&[1.0, f64::NAN, 0.5]), 0.0);
    assert_eq!(tie_margins(&[5.0, 4.0, 1.0, 2.0], 2), (2.0, 1.0));
    let ties = |tied: bool, prompt: i64, correct: usize, scores: &[f64]| {
        (Shape::Ties { tied, prompt, correct }, scores.to_vec())
    };
    let rows = [
        (Shape::Chosen { subset: "Math".into() }, vec![2.0, 1.0, 2.0]),
        // Prompt 1: margin 2, spread 1; its reference has margin 0.5.
        ties(true, 1, 2, &[5.0, 4.0, 1.0, 2.0]),
        ties(false, 1, 1, &[2.5, 2.0]),
        // Prompt 2, in the other order: margin -1, spread 0, so tanh(-inf) = -1; reference 3.
        ties(false, 2, 1, &[4.0, 1.0]),
        ties(true, 2, 2, &[1.0, 1.0, 2.0]),
    ];
    let found = values(Benchmark::RewardBench2, &rows);
    close(value(&found, "Ties/tied accuracy").1, 0.5);
    close(value(&found, "Ties/reference accuracy").1, 1.0);
    close(value(&found, "Ties/correctness preferred").1, 0.5);
    close(value(&found, "Ties/correctness preferred, hard").1, 0.0);
    let margin = 0.5 * ((0.5f64 - 1.0).tanh() - 1.0);
    close(value(&found, "Ties/margin").1, margin);
    let overall = 0.3 * 0.5 + 0.3 + 0.2 * 0.5 + 0.01 * margin;
    close(value(&found, "Ties").1, overall);
    close(value(&found, "Math").1, 0.5);
    close(value(&found, "overall").1, 0.5 * (overall + 0.5));
}

#[test]
fn if_reward_bench_has_accuracy_and_tau_b_of_every_graph() {
    // Two edges in order, one reversed, one equal: 1 / sqrt(3 * 4).
    let [accuracy, tau] = graph_figures(&[3.0, 2.0, 3.0, 4.0], &[(0, 1), (2, 1), (0, 3), (0, 2)]);
    close(accuracy, 0.5);
    close(tau, 1.0 / 12.0f64.sqrt());
    assert_eq!(graph_figures(&[1.0, 1.0], &[(0, 1)]), [0.0, 0.0]);
    let row = |kind: &str, scores: [f64; 2]| {
        let shape = Shape::Graph { kind: kind.into(), generator: None, turn: 1, constraints: 7, edges: vec![(0, 1)] };
        (shape, scores.to_vec())
    };
    let rows = [
        row("Single_Turn", [1.0, 0.0]),
        row("Single_Turn", [0.0, 1.0]),
        row("Multi_Turn", [1.0, 0.0]),
        row("Other", [0.0, 1.0]),
    ];
    let found = values(Benchmark::IfRewardBench, &rows);
    // The total is the mean over the two known types that occur; an unknown type has only a separate line.
    assert_eq!(value(&found, "accuracy"), (3, 0.75));
    assert_eq!(value(&found, "tau"), (3, 0.5));
    assert_eq!(value(&found, "accuracy/Other"), (1, 0.0));
    assert_eq!(value(&found, "tau/constraints >=7").0, 4);
}

#[test]
fn intervals_cover_the_figures_and_keep_every_category() {
    let shape = |subset: &str| Shape::Chosen { subset: subset.into() };
    let ties = |tied: bool, prompt: i64| Shape::Ties { tied, prompt, correct: 1 + usize::from(tied) };
    let mut rows: Vec<(Shape, Vec<f64>)> =
        (0..40).map(|i| (shape(if i < 39 { "Math" } else { "Focus" }), vec![f64::from(i % 3), 0.5])).collect();
    for prompt in 0..6 {
        let lift = prompt as f64 - 2.5;
        rows.push((ties(true, prompt), vec![1.0 + lift, 1.1 + lift, 0.9]));
        rows.push((ties(false, prompt), vec![1.0 + lift, 0.5]));
    }
    let items: Vec<Item> = rows.iter().map(|(shape, _)| item(shape.clone())).collect();
    let judged: Vec<Judged> =
        items.iter().zip(&rows).map(|(item, (_, scores))| Judged { item, scores: scores.clone() }).collect();
    let resampling = Resampling { resamples: 300, seed: 1 };
    let found = summarise(Benchmark::RewardBench2, &judged, resampling);
    assert_eq!(found, summarise(Benchmark::RewardBench2, &judged, resampling));
    for line in &found {
        match (line.name.as_str(), line.value.interval) {
            // A value of a single row has no interval.
            ("Focus", interval) => assert_eq!(interval, None),
            (name, Some([low, high])) => {
                assert!(low <= line.value.value && line.value.value <= high && low < high, "{name}");
            }
            (name, None) => panic!("{name} has no interval"),
        }
    }
    let none = summarise(Benchmark::RewardBench2, &judged, Resampling { resamples: 0, seed: 1 });
    assert!(none.iter().all(|line| line.value.interval.is_none()) && none.len() == found.len());
}
