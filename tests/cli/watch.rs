//! `mapl watch`: logs that grow, are truncated, replaced or damaged; pages at any size; keys.

use std::io::Write as _;
use std::path::Path;

use mapl::watch::tail::Tail;
use mapl::watch::view::{PANELS, ViewState};
use mapl::watch::{Watched, handle_key};
use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use crate::workbench::Bench;

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn step(n: u64, loss: &str) -> String {
    let time = 1000.0 + n as f64;
    format!(
        "{{\"schema\":1,\"kind\":\"train\",\"step\":{n},\"time\":{time},\"step_seconds\":0.5,\"epoch\":{},\"loss\":{loss},\
         \"grad_norm\":1.5,\"learning_rate\":1e-6,\"num_tokens\":{}}}\n",
        n as f64 / 100.0,
        1000 * n
    )
}

#[test]
fn incomplete_lines_wait_and_replaced_files_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut tail = Tail::new(&path);
    assert_eq!(tail.poll().unwrap().rows.len(), 0);
    let (first, second) = (step(1, "0.7"), step(2, "0.6"));
    append(&path, &first);
    append(&path, &second[..20]);
    let news = tail.poll().unwrap();
    assert_eq!((news.rows.len(), news.restarted), (1, false));
    append(&path, &second[20..]);
    append(&path, "no json\n[1]\n\n");
    let news = tail.poll().unwrap();
    assert_eq!((news.rows.len(), news.restarted, tail.damaged), (1, false, 2));
    assert_eq!(tail.poll().unwrap().rows.len(), 0);
    // The log is truncated, as by a resumed run.
    std::fs::write(&path, &first).unwrap();
    let news = tail.poll().unwrap();
    assert_eq!((news.rows.len(), news.restarted, tail.damaged), (1, true, 0));
    // The log is replaced by that of another, longer run.
    std::fs::write(&path, [step(7, "0.1"), step(8, "0.1"), step(9, "0.1")].concat()).unwrap();
    let news = tail.poll().unwrap();
    assert_eq!((news.rows.len(), news.restarted), (3, true));
    std::fs::remove_file(&path).unwrap();
    assert!(tail.poll().unwrap().restarted);
    assert!(!tail.poll().unwrap().restarted);
}

#[test]
fn non_finite_numbers_are_counted_and_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    for n in 1..=5 {
        append(&path, &step(n, if n == 3 { "\"NaN\"" } else { "0.5" }));
    }
    append(
        &path,
        "{\"kind\":\"eval\",\"step\":5,\"eval_loss\":0.4}\n{\"kind\":\"event\",\"step\":5,\"event\":\"saved\"}\n",
    );
    append(&path, &step(6, "\"inf\""));
    std::fs::write(
        folder.path().join("run.json"),
        r#"{"status":"running","settings":{"max_steps":null,"epochs":0.5}}"#,
    )
    .unwrap();
    let mut watched = Watched::new(folder.path()).unwrap();
    watched.poll().unwrap();
    let state = &watched.state;
    assert_eq!((state.not_finite, state.step, state.series["loss"].len()), (2, 6, 4));
    assert_eq!(state.series["tokens_per_s"], [2.0, 3.0, 4.0, 5.0, 6.0].map(|n| (n, 2000.0)));
    // The run is half an epoch of 100 steps, at one second per step.
    assert_eq!((state.total(), state.seconds_left()), (Some(50), Some(44.0)));
    let text = watched.render(ViewState::default(), 120, 30).unwrap();
    for part in ["running", "loss inf", "2 numbers were not finite", "step 6 of 50, 44 s left", "step 5: event saved"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    // On a narrow terminal, a value that does not fit is left out with its name.
    let narrow = watched.render(ViewState::default(), 60, 30).unwrap();
    let head = narrow.lines().next().unwrap();
    assert!(head.contains("2 numbers were not finite") && !head.ends_with("gnorm") && !head.contains("lr"), "{head}");
}

#[test]
fn every_page_is_drawn_at_every_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut watched = Watched::new(&path).unwrap();
    watched.poll().unwrap();
    assert!(watched.render(ViewState::default(), 60, 12).unwrap().contains("waiting for the first step"));
    (1..=40).for_each(|n| append(&path, &step(n, "0.5")));
    watched.poll().unwrap();
    for panel in 0..PANELS.len() {
        for (width, height) in [(1, 1), (2, 3), (10, 5), (40, 8), (80, 24), (300, 100)] {
            for window in [None, Some(1), Some(10)] {
                let text = watched.render(ViewState { panel, window }, width, height).unwrap();
                assert_eq!(text.split('\n').count(), usize::from(height));
                assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)));
            }
        }
    }
}

#[test]
fn legends_are_above_the_charts_and_cover_no_curve() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    // Both curves rise to the upper right corner, where a legend over the chart would be.
    for n in 1..=40 {
        let value = n as f64 / 40.0;
        append(&path, &format!("{{\"kind\":\"train\",\"step\":{n},\"loss\":{value}}}\n"));
        append(&path, &format!("{{\"kind\":\"eval\",\"step\":{n},\"eval_loss\":{value}}}\n"));
    }
    let mut watched = Watched::new(&path).unwrap();
    watched.poll().unwrap();
    let is_curve = |c: char| ('\u{2801}'..='\u{28ff}').contains(&c);
    for width in [40, 80, 120] {
        let text = watched.render(ViewState::default(), width, 30).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let legend = lines.iter().position(|line| line.contains("━━ loss  ━━ eval_loss")).unwrap();
        assert!(!lines[legend].contains(is_curve), "{text}");
        // The curve ends in the last column inside the frame, in the row below the legend.
        let row: Vec<char> = lines[legend + 1].chars().collect();
        assert!(is_curve(row[usize::from(width) - 2]), "{text}");
        assert!(!lines[..legend].iter().any(|line| line.contains(is_curve)), "{text}");
    }
    // Names that do not fit in a row continue in the next.
    for kind in ["base", "intra", "inter"] {
        append(&path, &format!("{{\"kind\":\"eval\",\"step\":9,\"eval_rewards/accuracies/{kind}\":0.5}}\n"));
    }
    watched.poll().unwrap();
    let text = watched.render(ViewState { panel: 1, window: None }, 80, 30).unwrap();
    assert!(["base", "intra", "inter"].iter().all(|kind| text.contains(&format!("━━ eval_rewards/accuracies/{kind}"))));
}

#[test]
fn accuracies_of_ties_only_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    for (step, accuracy, ties) in [(0, 0.0, 8), (5, 0.0, 4), (10, 0.75, 0)] {
        append(
            &path,
            &format!(
                "{{\"kind\":\"eval\",\"step\":{step},\"eval_rewards/accuracies/base\":{accuracy},\
                 \"eval_ties/base\":{ties},\"eval_comparisons/base\":8}}\n"
            ),
        );
    }
    let mut watched = Watched::new(&path).unwrap();
    watched.poll().unwrap();
    assert_eq!(watched.state.series["eval_rewards/accuracies/base"], [(5.0, 0.0), (10.0, 0.75)]);
}

#[test]
fn keys_turn_pages_and_change_the_window() {
    let mut choice = ViewState::default();
    let mut press = |key| handle_key(&mut choice, key, KeyModifiers::NONE, 1000).then_some(choice);
    assert_eq!(press(KeyCode::Left), Some(ViewState { panel: PANELS.len() - 1, window: None }));
    assert_eq!(press(KeyCode::Right), Some(ViewState { panel: 0, window: None }));
    assert_eq!(press(KeyCode::Char('+')), Some(ViewState { panel: 0, window: Some(500) }));
    assert_eq!(press(KeyCode::Char('+')).unwrap().window, Some(250));
    assert_eq!(press(KeyCode::Char('-')).unwrap().window, Some(500));
    assert_eq!(press(KeyCode::Char('-')).unwrap().window, None);
    assert_eq!(press(KeyCode::Char('x')).unwrap().window, None);
    assert_eq!(press(KeyCode::Char('q')), None);
    assert_eq!(press(KeyCode::Esc), None);
    assert!(!handle_key(&mut choice, KeyCode::Char('c'), KeyModifiers::CONTROL, 9));
}

#[test]
fn a_real_run_is_shown_and_a_live_view_needs_a_terminal() {
    let bench = Bench::new();
    bench.run("dpo --model model --train-file groups.jsonl --output-dir run --max-steps 4 --device cpu --quiet").ok();
    for (page, part) in
        [("loss", "loss by kind"), ("accuracy", "rewards/accuracies/intra"), ("optimiser", "learning rate")]
    {
        let out = bench.run(&format!("watch run --once --page {page} --width 110 --height 40")).ok().out;
        assert!(out.contains(part) && out.contains("step 4 of 4") && out.contains("finished"), "{out}");
    }
    let copy = bench.run("watch run/metrics.jsonl --once").ok().out;
    assert!(copy.contains("step 4 of 4"), "{copy}");
    bench.run("watch run").fails(2, &["--once"]);
    bench.run("watch nowhere").fails(2, &["nowhere", "metrics.jsonl"]);
    bench.run("watch run --once --width 0").fails(2, &["--width"]);
    bench.run("watch run --page loss").fails(2, &["--once"]);
}
