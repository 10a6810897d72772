//! Checkpoints: a run that stops and goes on is the run that never stopped.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::Stdio;

use super::bench::Bench;

fn dpo(rest: &str) -> String {
    format!("dpo --model model --output-dir out --quiet --gradient-accumulation-steps 2 {rest}")
}

/// Moves the state after a checkpoint away: what a run killed right after saving leaves.
fn forget_after(bench: &Bench, step: u64) {
    let out = bench.at("out");
    for entry in std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()) {
        let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
        match name.strip_prefix("checkpoint-") {
            Some(n) if n.parse::<u64>().unwrap() > step => std::fs::remove_dir_all(&entry).unwrap(),
            Some(_) => {}
            None if name == "metrics.jsonl" => {}
            None => std::fs::remove_file(&entry).unwrap(),
        }
    }
}

fn same_run(bench: &Bench, run: &str, steps: u64, checkpoint: u64) {
    let words = dpo(run);
    bench.run(&words).ok();
    let (weights, metrics) = (bench.bytes("out/model.safetensors"), bench.metrics("out", "train"));
    assert_eq!(metrics.len() as u64, steps);
    assert!(metrics[0]["loss"] != metrics[metrics.len() - 1]["loss"]);
    let moments = format!("out/checkpoint-{steps}/state/optimizer-rank00000.safetensors");
    let state = bench.bytes(&moments);
    let history = bench.json("out/trainer_state.json");
    forget_after(bench, checkpoint);
    assert!(!bench.at("out/model.safetensors").exists());
    bench.run(&format!("{words} --resume-from-checkpoint true")).ok();
    assert!(bench.bytes("out/model.safetensors") == weights, "weights differ");
    assert!(bench.bytes(&moments) == state, "moments differ");
    assert_eq!(bench.metrics("out", "train"), metrics);
    assert_eq!(bench.json("out/trainer_state.json")["global_step"], history["global_step"]);
    let events = bench.metrics("out", "event");
    assert_eq!((events.len(), &events[0]["event"]), (1, &"resumed".into()));
}

#[test]
fn six_steps_equal_three_steps_and_a_resumed_run_on_the_cpu() {
    let bench = Bench::new();
    let run = "--train-file groups.jsonl --per-device-train-batch-size 4 --max-steps 6 --save-steps 3 \
               --learning-rate 1e-3 --warmup-steps 2 --device cpu";
    same_run(&bench, run, 6, 3);
}

#[test]
fn a_resumed_run_is_exact_on_the_reference_device() {
    let bench = Bench::new();
    let rows = String::from_utf8(bench.bytes("pairs.jsonl")).unwrap();
    bench.write("two.jsonl", rows.lines().take(2).collect::<Vec<_>>().join("\n"));
    let run = "--train-file two.jsonl --per-device-train-batch-size 1 --max-steps 3 --save-steps 1 \
               --learning-rate 1e-3 --device reference";
    same_run(&bench, run, 3, 1);
}

#[test]
fn groups_drawn_anew_in_each_epoch_resume_too() {
    let bench = Bench::new();
    let run = "--train-file pairs.jsonl --objective mapl --redraw epoch --k-max 1 --per-device-train-batch-size 6 \
               --max-steps 5 --save-steps 1 --learning-rate 1e-3";
    same_run(&bench, run, 5, 3);
    let counts: Vec<_> = bench.metrics("out", "train").iter().map(|row| row["num_tokens"].clone()).collect();
    assert!(counts.windows(2).all(|w| w[0] != w[1]));
}

#[test]
fn a_different_run_is_not_resumed_and_leaves_everything_as_it_was() {
    let bench = Bench::new();
    let run = |rest: &str| dpo(&format!("--train-file groups.jsonl --save-steps 1 {rest}"));
    bench.run(&run("--max-steps 3 --save-total-limit 2")).ok();
    let left = |n: u64| bench.at(&format!("out/checkpoint-{n}/DONE")).is_file();
    assert_eq!([left(1), left(2), left(3)], [false, true, true]);
    let before = (bench.listing(), bench.bytes("out/metrics.jsonl"), bench.bytes("out/run.json"));
    let from = "--max-steps 3 --resume-from-checkpoint out/checkpoint-2";
    let changes = [
        ("--learning-rate 1e-3", "learning rate was 0.000001, is 0.001"),
        ("--per-device-train-batch-size 2", "batch size was 8, is 2"),
        ("--seed 1", "shuffling was"),
        ("--beta 0.2", "loss was"),
        ("--weight-decay 0.1", "AdamW was"),
        ("--objective base", "training data was"),
        ("--ref-model qwen", "reference was"),
        ("--lr-scheduler-type cosine", "schedule was"),
    ];
    for (change, message) in changes {
        bench.run(&run(&format!("{from} {change}"))).fails(6, &["out/checkpoint-2", "cannot resume", message]);
    }
    bench.run(&run("--max-steps 4 --resume-from-checkpoint true")).fails(6, &["length was 3 steps, is 4 steps"]);
    bench.run(&run("--max-steps 3 --resume-from-checkpoint out/checkpoint-9")).fails(6, &["checkpoint-9"]);
    bench.run(&run("--max-steps 3 --resume-from-checkpoint true --output-dir new")).fails(2, &[]);
    std::fs::remove_file(bench.at("out/checkpoint-3/DONE")).unwrap();
    bench.run(&run("--max-steps 3 --resume-from-checkpoint out/checkpoint-3")).fails(6, &["not a complete checkpoint"]);
    bench.write("out/checkpoint-3/DONE", "");
    assert!((bench.listing(), bench.bytes("out/metrics.jsonl"), bench.bytes("out/run.json")) == before);

    std::fs::remove_file(bench.at("out/checkpoint-2/state/state.json")).unwrap();
    bench.run(&run(from)).fails(6, &["state.json", "another checkpoint"]);
    let moments = "out/checkpoint-3/state/optimizer-rank00000.safetensors";
    let bytes = bench.bytes(moments);
    bench.write(moments, &bytes[..bytes.len() - 5]);
    bench.run(&run("--max-steps 3 --resume-from-checkpoint true")).fails(6, &["optimizer-rank00000", "damaged"]);
}

/// Starts a run that would take hours, sends it a signal once it has made a step, and returns its exit code.
fn stopped(bench: &Bench, words: &str, signal: &str) -> Option<i32> {
    let mut child = bench.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the run made no step");
    let killed = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    lines.for_each(drop);
    let code = child.wait().unwrap().code();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(err.contains("error: stopped by signal") && err.contains("state saved in out/checkpoint-"), "{err}");
    code
}

fn last_checkpoint(out: &Path) -> u64 {
    mapl::train::checkpoint::list(out).last().unwrap().0
}

#[test]
fn a_signal_ends_the_step_saves_and_the_run_goes_on_later() {
    let bench = Bench::new();
    let run = |steps: u64, rest: &str| {
        format!(
            "reward --model model --train-file groups.jsonl --output-dir out --lr-scheduler-type constant \
             --max-steps {steps} {rest}"
        )
    };
    assert_eq!(stopped(&bench, &run(1_000_000, ""), "-TERM"), Some(143));
    let first = last_checkpoint(&bench.at("out"));
    assert!(!bench.at("out/model.safetensors").exists());
    assert_eq!(bench.metrics("out", "train").last().unwrap()["step"], first);
    // Without a decay the length is free, so the run may end sooner than it was meant to.
    bench.run(&run(first + 2, "--resume-from-checkpoint true")).ok();
    let train = bench.metrics("out", "train");
    assert_eq!(train.len() as u64, first + 2);
    bench.run(&run(first + 2, "").replace("--output-dir out", "--output-dir straight")).ok();
    assert_eq!(bench.metrics("straight", "train"), train);
    assert!(bench.bytes("straight/model.safetensors") == bench.bytes("out/model.safetensors"));

    assert_eq!(stopped(&bench, &run(1_000_000, "--overwrite-output-dir"), "-INT"), Some(130));
}

#[test]
fn a_run_asked_to_save_saves_and_goes_on() {
    let bench = Bench::new();
    let words = "reward --model model --train-file groups.jsonl --output-dir out --max-steps 1000000";
    let mut child = bench.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the run made no step");
    let send = |signal: &str, child: &std::process::Child| {
        assert!(std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    };
    send("-USR1", &child);
    let saved = || mapl::train::checkpoint::list(&bench.at("out")).len();
    // Step lines arrive while the run goes on; the checkpoint is there after a few of them.
    assert!(lines.by_ref().take(10_000).any(|_| saved() == 1), "nothing was saved");
    assert!(lines.next().is_some() && child.try_wait().unwrap().is_none(), "the run goes on");
    send("-TERM", &child);
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(saved(), 2);
}
