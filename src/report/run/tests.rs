//! Tests of run reports, with synthetic runs.

use serde_json::json;

use super::super::tests::html::{has_no_broken_number, well_formed};
use super::log::{Columns, EvalScores, RunLog, ScoredResponse};
use super::rewards::PairStatistics;
use super::run_report;
use super::warnings::warnings;

/// DPO run of 100 steps without warnings.
fn run(name: &str, rate: f64) -> RunLog {
    let mut train = Columns::new();
    for step in 1..=100u64 {
        let at = step as f64 / 100.0;
        for (column, value) in [
            ("loss", 0.7 - 0.2 * at),
            ("loss/base", 0.7 - 0.2 * at),
            ("rewards/accuracies/base", 0.5 + 0.3 * at),
            ("rewards/margins/base", at),
            ("rewards/chosen", 0.5 * at),
            ("rewards/rejected", -0.5 * at),
            ("learning_rate", rate),
            ("grad_norm", 1.0),
            ("num_tokens", 50.0 * step as f64),
            ("step_seconds", 0.25),
            ("skipped_steps", 0.0),
        ] {
            train.entry(column.into()).or_default().push((step, value));
        }
    }
    let mut eval = Columns::new();
    for column in ["loss", "loss/base"] {
        eval.insert(column.into(), vec![(0, 0.7), (50, 0.65), (100, 0.6)]);
    }
    let side = |tokens: usize, reward: f64| ScoredResponse { tokens: tokens as f64, reward };
    let pairs = (0..40).map(|i| (side(10 + i % 7, 0.3), side(10 + i % 5, -0.3 + 0.1 * (i % 3) as f64))).collect();
    RunLog {
        name: name.into(),
        dir: name.into(),
        manifest: json!({
            "method": "dpo", "status": "finished", "exit_code": 0, "started": 0.0, "ended": 60.0, "version": "9.9.9",
            "command": "mapl dpo --model m", "loss_formula": "f",
            "config": { "learning_rate": rate, "seed": 42, "output_dir": name, "ref_model": "m" },
            "data": { "train": { "read": 100, "kept": 100, "rows_read": 100, "kept_by_kind": [100, 0, 0] } },
            "environment": { "threads": 2, "cpu_features": ["avx2"] },
            "files": { "train": [{ "path": "a.jsonl", "bytes": 12, "blake3": "ab".repeat(32) }] },
        }),
        train,
        eval,
        scores: Some(EvalScores { step: 100, pairs }),
        ..RunLog::default()
    }
}

fn whole(html: &str) -> String {
    let text = well_formed(html);
    has_no_broken_number(html);
    for outside in ["http", "//", "<script", "<link", "@import", "url(", "src="] {
        assert!(!html.contains(outside), "refers to something outside: {outside}");
    }
    text
}

#[test]
fn a_healthy_run_has_every_section_and_no_warning() {
    let html = run_report(&[run("one", 1e-6)]);
    let text = whole(&html);
    for heading in
        ["Run", "Loss", "Accuracy and margin", "Rewards", "Optimiser and speed", "Data", "Configuration", "Command"]
    {
        assert!(html.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    assert!(!html.contains("<h2>Warnings</h2>"), "{:?}", warnings(&run("one", 1e-6)));
    for expected in ["1970-01-01 00:01:00 UTC", "25.0 s", "200.0", "mapl dpo --model m", "abababababababab", "avx2"] {
        assert!(text.contains(expected), "{expected} is missing");
    }
    // The page has the loss in two sizes, accuracy, margin, rewards, four optimiser charts, a histogram and a
    // scatter chart.
    assert_eq!(html.matches("<svg").count(), 11);
    let first = html.split("<section>").nth(1).unwrap();
    assert!(first.contains("<h2>Loss</h2>") && first.contains("chart wide") && first.contains("chart narrow"));
    assert_eq!(html.matches("<figcaption>").count(), 10);
    assert_eq!(html.matches("<summary>Numbers</summary>").count(), 10);
}

#[test]
fn steps_at_which_everything_ties_are_a_gap() {
    let mut tied = run("one", 1e-6);
    let kind = |columns: &mut Columns, name: &str, values: [f64; 3]| {
        columns.insert(format!("{name}/intra"), [0, 50, 100].into_iter().zip(values).collect());
    };
    kind(&mut tied.eval, "rewards/accuracies", [0.0, 0.0, 0.75]);
    kind(&mut tied.eval, "ties", [8.0, 4.0, 0.0]);
    kind(&mut tied.eval, "comparisons", [8.0, 8.0, 8.0]);
    let html = run_report(&[tied]);
    let svg = html.split("<svg").find(|svg| svg.contains("<title>Accuracy, intra</title>")).unwrap();
    // At step 0 all comparisons are ties, so the curve starts at step 50. Half of the comparisons of step 50
    // are not ties, so its accuracy of 0 is drawn.
    assert!(svg.contains(r#"d="M254.0 256.0L446.0 98.5""#), "{svg}");
    assert!(html.contains("<th scope=\"row\" class=\"number\">0</th><td class=\"number\">–</td>"), "{html}");
}

#[test]
fn several_runs_are_overlaid_with_the_differences_of_their_options() {
    let html = run_report(&[run("slow", 1e-6), run("fast", 1e-3)]);
    let text = whole(&html);
    let section = html.split("<h2>Configuration differences</h2>").nth(1).unwrap().split("</section>").next().unwrap();
    assert!(section.contains(r#"<th scope="row">learning_rate</th><td>1e-6</td><td>0.001</td>"#), "{section}");
    assert!(!section.contains("seed") && !section.contains("output_dir"), "{section}");
    let loss = html.split("<svg").find(|svg| svg.contains("<title>Loss, train</title>")).unwrap();
    assert!(loss.contains(r#"class="line s0""#) && loss.contains(r#"class="line s1""#), "{loss}");
    assert!(loss.contains("Series: slow, fast."));
    assert!(text.contains("Loss, eval") && text.contains("Reward, chosen, train"));
    let same = run_report(&[run("a", 1e-6), run("b", 1e-6)]);
    assert!(same.contains("All options are equal except the output folder."));
}

#[test]
fn hostile_names_and_values_are_text() {
    let evil = "</pre></style><script>alert(\"1\")</script>&'\u{0}\u{1b}";
    let mut bad = run(evil, 1e-6);
    let strings = ["method", "command", "loss_formula", "version", "message", "host"];
    strings.iter().for_each(|key| bad.manifest[*key] = json!(evil));
    bad.manifest["status"] = json!("diverged");
    bad.manifest["config"][evil] = json!([evil, { evil: evil }]);
    bad.manifest["environment"]["variables"] = json!({ "CI": evil });
    bad.manifest["resumes"] = json!([{ "step": evil, "checkpoint": evil, "time": evil }]);
    bad.manifest["files"][evil] = json!([{ "path": evil, "why_no_hash": evil }]);
    for html in [run_report(&[bad.clone()]), run_report(&[bad, run("b", 1e-6)])] {
        well_formed(&html);
        assert!(html.contains("&lt;script&gt;"));
        assert!(!html.contains("<script") && !html.contains('\u{0}') && !html.contains('\u{1b}'));
    }
}

#[test]
fn a_run_without_numbers_still_has_a_page() {
    let empty = RunLog {
        manifest: json!({ "status": "running", "method": "reward", "config": null, "data": [], "files": 3 }),
        ..RunLog::default()
    };
    let text = whole(&run_report(std::slice::from_ref(&empty)));
    assert!(text.contains("No step has been logged yet.") && text.contains("running"), "{text}");
    let mut broken = run("x", f64::NAN);
    for points in broken.train.values_mut().chain(broken.eval.values_mut()) {
        points.iter_mut().step_by(2).for_each(|p| p.1 = f64::NAN);
        points[1].1 = f64::INFINITY;
    }
    broken.scores.as_mut().unwrap().pairs[0].0.reward = f64::NAN;
    let text = whole(&run_report(&[broken, empty]));
    assert!(text.contains("1 rewards are not finite"), "{text}");
}

#[test]
fn each_warning_is_given_for_its_cause() {
    let said = |change: &dyn Fn(&mut RunLog)| {
        let mut run = run("x", 1e-6);
        change(&mut run);
        warnings(&run).join("\n")
    };
    let pairs = |run: &mut RunLog, change: &dyn Fn(&mut (ScoredResponse, ScoredResponse))| {
        run.scores.as_mut().unwrap().pairs.iter_mut().for_each(change)
    };
    assert_eq!(said(&|_| ()), "");
    let cases: [(&str, String); 9] = [
        ("still running", said(&|r| r.manifest["status"] = json!("running"))),
        (
            "no longer exists",
            said(&|r| {
                r.manifest["status"] = json!("running");
                r.killed = true;
            }),
        ),
        (
            "The run diverged: why",
            said(&|r| {
                r.manifest["status"] = json!("diverged");
                r.manifest["message"] = json!("why");
            }),
        ),
        ("3 of 100 updates were skipped", said(&|r| r.train.get_mut("skipped_steps").unwrap()[99].1 = 3.0)),
        (
            "Saturation: the loss of base",
            said(&|r| {
                r.train.get_mut("loss/base").unwrap()[50..].iter_mut().for_each(|p| p.1 = 1e-4);
            }),
        ),
        (
            "lowest after step 50 (0.4000) and is 0.6000 after step 100",
            said(&|r| {
                r.eval.get_mut("loss").unwrap()[1].1 = 0.4;
            }),
        ),
        ("in 100 % of the evaluation pairs the chosen", said(&|r| pairs(r, &|p| p.0.reward = -0.1))),
        (
            "higher reward in 100 %",
            said(&|r| {
                pairs(r, &|p| {
                    (p.0.reward, p.1.reward) = (p.0.tokens, p.1.tokens);
                })
            }),
        ),
        (
            "40 comparisons (40.0 %) of the train data were dropped",
            said(&|r| {
                r.manifest["data"]["train"]["kept"] = json!(60);
            }),
        ),
    ];
    for (expected, said) in cases {
        assert!(said.contains(expected) && said.lines().count() == 1, "{expected}: {said}");
    }
    // Without a reference the sign of a reward has no meaning.
    let none = said(&|r| {
        pairs(r, &|p| p.0.reward -= 9.0);
        pairs(r, &|p| p.1.reward -= 9.0);
        r.manifest["config"]["ref_model"] = json!(null);
    });
    assert_eq!(none, "");
}

#[test]
fn pair_statistics_match_a_count_by_hand() {
    let side = |tokens: f64, reward: f64| ScoredResponse { tokens, reward };
    let pairs = vec![
        (side(4.0, 1.0), side(2.0, 0.0)),
        (side(2.0, -1.0), side(6.0, 2.0)),
        (side(3.0, 0.5), side(3.0, 0.0)),
        (side(1.0, 0.5), side(5.0, -1.0)),
    ];
    let figures = PairStatistics::of(&EvalScores { step: 1, pairs });
    assert_eq!((figures.pairs, figures.unequal_lengths, figures.falling_chosen), (4, 3, 0.25));
    assert_eq!((figures.mean_chosen, figures.mean_rejected), (0.25, 0.25));
    // Among the three pairs with different lengths, the longer response is chosen, rejected and rejected. It
    // has the higher reward in the first two.
    assert_eq!((figures.longer_is_chosen, figures.longer_wins), (1.0 / 3.0, 2.0 / 3.0));
    // Lengths 4 2 3 1 2 6 3 5 have mean 3.25, rewards 1 -1 .5 .5 0 2 0 -1 have mean 0.25. The sum of products
    // of deviations is 4.5; the sums of squares are 19.5 and 7.
    let r = figures.correlation.unwrap();
    assert!((r - 4.5 / (19.5f64 * 7.0).sqrt()).abs() < 1e-12, "{r}");
}
