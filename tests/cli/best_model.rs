//! The best checkpoint by a metric: selection, retention, its record, and loading at the end of a
//! run.

use mapl::train::checkpoint;
use serde_json::Value;

use crate::workbench::Bench;

fn dpo(out: &str, rest: &str) -> String {
    format!(
        "dpo --model model --train-file groups.jsonl --eval-file groups.jsonl --output-dir {out} --quiet \
         --per-device-train-batch-size 4 --max-steps 10 --learning-rate 1e-3 --eval-steps 2 --save-steps 2 {rest}"
    )
}

/// Steps and values of a metric at the evaluations after step 0.
fn values(bench: &Bench, run: &str, name: &str) -> Vec<(u64, f64)> {
    let rows = bench.metrics(run, "eval");
    rows.iter().map(|row| (row["step"].as_u64().unwrap(), row[name].as_f64().unwrap())).filter(|v| v.0 > 0).collect()
}

fn same(bench: &Bench, a: &str, b: &str) -> bool {
    bench.bytes(&format!("{a}/model.safetensors")) == bench.bytes(&format!("{b}/model.safetensors"))
}

#[test]
fn the_best_checkpoint_is_kept_and_loaded() {
    let bench = Bench::new();
    bench.run(&dpo("plain", "")).ok();
    assert!(same(&bench, "plain", "plain/checkpoint-10"));
    assert_eq!(bench.json("plain/trainer_state.json")["best_global_step"], Value::Null);
    // The loss falls until the end. With --greater-is-better the first checkpoint is therefore the
    // best and is kept.
    let cases = [
        ("least", "--metric-for-best-model loss", "eval_loss", false),
        ("most", "--metric-for-best-model eval_loss --greater-is-better true", "eval_loss", true),
        ("intra", "--metric-for-best-model accuracy/intra", "eval_rewards/accuracies/intra", true),
        ("margin", "--metric_for_best_model rewards/margins --greater_is_better False", "eval_rewards/margins", false),
        ("default", "", "eval_loss", false),
    ];
    for (run, rest, name, greater) in cases {
        bench.run(&dpo(run, &format!("--load-best-model-at-end --save-total-limit 1 {rest}"))).ok();
        let values = values(&bench, run, name);
        assert_eq!(values.iter().map(|v| v.0).collect::<Vec<_>>(), [2, 4, 6, 8, 10]);
        let better = |a: f64, b: f64| if greater { a > b } else { a < b };
        let best = values.iter().fold(values[0], |best, &v| if better(v.1, best.1) { v } else { best });
        let state = bench.json(&format!("{run}/trainer_state.json"));
        assert_eq!((&state["best_global_step"], &state["best_metric"]), (&best.0.into(), &best.1.into()), "{run}");
        assert_eq!(state["best_model_checkpoint"], format!("{run}/checkpoint-{}", best.0));
        assert_eq!(state["global_step"], 10);
        let kept: Vec<u64> = checkpoint::list(&bench.at(run)).into_iter().map(|(step, _)| step).collect();
        assert_eq!(kept, if best.0 == 10 { vec![10] } else { vec![best.0, 10] }, "{run}");
        assert!(same(&bench, run, &format!("{run}/checkpoint-{}", best.0)), "{run}");
        assert!(same(&bench, "plain/checkpoint-10", &format!("{run}/checkpoint-10")));
        assert_eq!(same(&bench, run, "plain"), best.0 == 10);
    }
    let early = |run: &str| bench.json(&format!("{run}/trainer_state.json"))["best_global_step"].as_u64().unwrap();
    assert_eq!((early("most"), early("least") > 2), (2, true));
    // `--save-total-limit 3` counts the best checkpoint, so the other two kept checkpoints are the latest.
    bench.run(&dpo("three", "--metric-for-best-model loss --greater-is-better --save-total-limit 3")).ok();
    let kept: Vec<u64> = checkpoint::list(&bench.at("three")).into_iter().map(|(step, _)| step).collect();
    assert_eq!(kept, [2, 8, 10]);
    assert!(same(&bench, "three", "plain"), "without --load-best-model-at-end the last weights are final");
}

#[test]
fn a_resumed_run_keeps_the_best_checkpoint_and_warns_if_it_is_missing() {
    let bench = Bench::new();
    let rest = "--load-best-model-at-end --metric-for-best-model loss --greater-is-better true";
    bench.run(&dpo("out", rest)).ok();
    let weights = bench.bytes("out/model.safetensors");
    std::fs::remove_file(bench.at("out/model.safetensors")).unwrap();
    for n in [8, 10] {
        checkpoint::remove(&bench.at(&format!("out/checkpoint-{n}"))).unwrap();
    }
    bench.run(&dpo("out", &format!("{rest} --resume-from-checkpoint true"))).ok();
    assert!(bench.bytes("out/model.safetensors") == weights);
    assert_eq!(bench.json("out/trainer_state.json")["best_global_step"], 2);
    let other = "--load-best-model-at-end --metric-for-best-model margin --resume-from-checkpoint true";
    bench.run(&dpo("out", other)).fails(6, &["metric for the best model was loss, greater: true, is rewards/margins"]);

    checkpoint::remove(&bench.at("out/checkpoint-2")).unwrap();
    let done = bench.run(&dpo("out", &format!("{rest} --resume-from-checkpoint out/checkpoint-8")));
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(
        done.err.contains("warning: out/checkpoint-2, the best checkpoint so far, no longer exists"),
        "{}",
        done.err
    );
    assert_eq!(bench.json("out/trainer_state.json")["best_global_step"], 10);
}

#[test]
fn best_model_flags_without_evaluations_are_refused_before_anything_is_written() {
    let bench = Bench::new();
    let base = "dpo --model model --train-file groups.jsonl --output-dir out --max-steps 4";
    let eval = "--eval-file pairs.jsonl";
    let best = "--load-best-model-at-end";
    for (rest, why) in [
        (best.to_owned(), "--load-best-model-at-end needs an evaluation before every checkpoint"),
        (format!("{best} {eval} --save-steps 2"), "needs an evaluation before every checkpoint"),
        (format!("{best} {eval} --eval-steps 2"), "needs an evaluation before every checkpoint"),
        (format!("{best} {eval} --eval-steps 2 --save-steps 3"), "a multiple of --eval-steps"),
        (format!("{best} {eval} --eval-strategy epoch --save-steps 3"), "--save-strategy epoch"),
        (format!("--metric-for-best-model loss {eval}"), "--metric-for-best-model needs an evaluation"),
        ("--greater-is-better true".to_owned(), "has no effect without --metric-for-best-model"),
        (
            format!("{best} {eval} --eval-steps 2 --save-steps 2 --metric-for-best-model f1"),
            "--metric-for-best-model f1: dpo reports loss, accuracy and margin",
        ),
        (
            format!("{best} {eval} --eval-steps 2 --save-steps 2 --metric-for-best-model accuracy/intra"),
            "the rows of --eval-file have no intra comparisons",
        ),
    ] {
        bench.run(&format!("{base} {rest}")).fails(2, &[why]);
        assert!(!bench.at("out").exists(), "{rest}");
    }
    let words = format!("{base} {best} {eval} --eval-strategy epoch --save-strategy epoch --max-steps 3");
    bench.run(&words.replacen("--max-steps 4", "--per-device-train-batch-size 12", 1)).ok();
    assert_eq!(
        checkpoint::list(&bench.at("out")).len(),
        2,
        "one checkpoint at the end of the epoch and one at the end of the run"
    );
}
