//! Tests of first use: the defaults work with long texts, and commands without options print short output.

use serde_json::json;

use crate::workbench::Bench;

#[test]
fn a_name_on_the_hub_says_how_to_get_it() {
    let bench = Bench::new();
    let download = "hf download Qwen/Qwen2.5-0.5B --local-dir Qwen2.5-0.5B";
    bench.run("dpo --model Qwen/Qwen2.5-0.5B --train-file pairs.jsonl --output-dir out").fails(6, &[download]);
    let words = "dpo --model model --train-file trl-lib/ultrafeedback_binarized --output-dir out";
    let line = "hf download trl-lib/ultrafeedback_binarized --repo-type dataset --local-dir ultrafeedback_binarized";
    bench.run(words).fails(3, &[line]);
    bench
        .run("data build --input hf://datasets/trl-lib/ultrafeedback_binarized/*.parquet --output g.jsonl")
        .fails(3, &[line]);
}

/// Writes 40 rows of growing length; many are above 1,024 tokens.
fn long_rows(bench: &Bench) {
    let row = |i: usize| {
        let long = "A bakery. ".repeat(1 + 6 * i);
        json!({ "prompt": format!("Row {i}:"), "chosen": format!(" {long}"), "rejected": " No." }).to_string()
    };
    let rows: Vec<String> = (0..40).map(row).collect();
    bench.write("long.jsonl", rows.join("\n"));
    bench.run("init --preset qwen2-tiny --tokenizer tok --output-dir tiny").ok();
}

/// A run with `--max-length 1024` would drop too many comparisons and is an error. A run without the option
/// trains.
#[test]
fn long_texts_train_and_are_evaluated_without_options() {
    let bench = Bench::new();
    long_rows(&bench);
    let run = "reward --model tiny --train-file long.jsonl --output-dir";
    bench.run(&format!("{run} short --max-length 1024 --max-steps 1")).fails(3, &["above --max-drop-fraction"]);
    let started = bench.run(&format!("{run} out --max-steps 1 --per-device-train-batch-size 1")).ok().out;
    assert!(started.contains("which 99 % of the sequences fit"), "{started}");
    let length = bench.json("out/run.json")["tokenize"]["max_length"].as_u64().unwrap();
    assert!(length > 1024 && length.is_multiple_of(64), "{length}");
    bench.write("one.jsonl", String::from_utf8(bench.bytes("long.jsonl")).unwrap().lines().last().unwrap());
    bench.run("eval --model out --input one.jsonl --bootstrap 0").ok();
}

/// A row above the limit of tokens is shown whole and marked, even if training would drop every row.
#[test]
fn rows_that_would_be_dropped_are_shown() {
    let bench = Bench::new();
    let out = bench.run("data show --input pairs.jsonl --tokenizer tok --rows 2 --max-length 3").ok().out;
    assert_eq!(out.matches(", would be dropped").count(), 2, "{out}");
    assert!(out.contains("training on only these rows would stop: all 2 comparisons"), "{out}");
}

/// A resumed run without `--max-length` has the limit of the run that it continues.
#[test]
fn a_resumed_run_keeps_the_recorded_length() {
    let bench = Bench::new();
    let run = "reward --model model --train-file pairs.jsonl --output-dir out --max-drop-fraction 1 --save-steps 1 \
               --lr-scheduler-type constant --max-steps";
    let shown = bench.run("data show --input pairs.jsonl --tokenizer model --rows 24").ok().out;
    let (_, rest) = shown.split_once("p50 ").unwrap();
    let median: usize = rest.split(',').next().unwrap().parse().unwrap();
    bench.run(&format!("{run} 1 --max-length {}", median + 1)).ok();
    bench.run(&format!("{run} 2 --resume-from-checkpoint")).ok();
    assert_eq!(bench.json("out/run.json")["tokenize"]["max_length"], median + 1);
}

#[test]
fn a_screen_comes_before_the_first_step() {
    let bench = Bench::new();
    let run = "dpo --model model --train-file groups.jsonl --max-steps 1 --output-dir";
    let out = bench.run(&format!("{run} a")).ok().out;
    let before = out.lines().take_while(|line| !line.starts_with("step 1/")).count();
    assert!(before < 40, "{before} lines\n{out}");
    assert!(out.contains("checkpoints   every 500 updates or 30 minutes"), "{out}");
    assert!(out.lines().filter(|line| line.contains("[[")).all(|line| line.chars().count() < 80), "{out}");
    let full = bench.run(&format!("{run} b --examples 1")).ok().out;
    assert!(full.contains("prefix tree") && !full.contains("examples, with"), "{full}");
    let quiet = bench.run(&format!("{run} c --quiet")).ok();
    assert!(quiet.out.starts_with("done: 1 step in") && quiet.out.lines().count() == 1, "{}", quiet.out);
}

#[test]
fn an_evaluation_prints_a_summary() {
    let bench = Bench::new();
    let words = "eval --model model --ref-model none --input groups.jsonl --bootstrap 100";
    let short = bench.run(words).ok().out;
    let all = bench.run(&format!("{words} --by-function")).ok().out;
    assert!(short.contains("chosen longer") && !short.contains("rule A"), "{short}");
    assert!(short.contains("--by-function") && short.contains("untrained model"), "{short}");
    // The table and its remarks fit a terminal of 80 columns.
    let table: Vec<&str> = short.lines().skip_while(|line| !line.contains("accuracy")).collect();
    assert!(table.len() > 8 && table.iter().all(|line| line.chars().count() <= 80), "{short}");
    assert!(all.contains("rule A") && all.contains(":") && all.lines().count() > short.lines().count(), "{all}");
}
