//! Tests of outputs that would overwrite an input: the exit code is 2, the message names both paths, and no
//! file changes.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::workbench::Bench;

/// Content of every file in the bench.
fn contents(bench: &Bench) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = bench.listing().into_iter().filter(|path| path.is_file());
    files.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Runs each command and asserts that it fails because its output is an input, and that it changes no file.
fn refused(bench: &Bench, cases: &[(&str, [&str; 2])]) {
    let before = contents(bench);
    for (words, [output, input]) in cases {
        bench.run(words).fails(2, &[output, input, "is an input of this command", "name another"]);
        assert!(contents(bench) == before, "{words}");
    }
}

/// A bench with a finished run and its checkpoints in `out/`, to which `link/` is a link.
fn with_run() -> Bench {
    let bench = Bench::new();
    let rest = "--train-file pairs.jsonl --max-steps 2 --save-steps 1 --per-device-train-batch-size 1 --quiet";
    bench.run(&format!("sft --model model --output-dir out {rest}")).ok();
    symlink("out", bench.at("link")).unwrap();
    bench
}

#[test]
fn a_training_run_spares_its_inputs() {
    let bench = with_run();
    std::fs::copy(bench.at("pairs.jsonl"), bench.at("out/checkpoint-1/rows.jsonl")).unwrap();
    std::fs::create_dir(bench.at("other")).unwrap();
    symlink("../out/checkpoint-1", bench.at("other/checkpoint-7")).unwrap();
    for method in ["sft", "reward", "dpo", "study dpo --device cpu"] {
        let run = |rest: &str| format!("{method} --overwrite-output-dir {rest}");
        let rows = "--train-file pairs.jsonl --output-dir out";
        let cases = [
            (run(&format!("{rows} --model out/checkpoint-1")), ["--output-dir out", "out/checkpoint-1"]),
            (run(&format!("{rows} --model link/checkpoint-2")), ["--output-dir out", "link/checkpoint-2"]),
            (
                run(&format!("{rows}/../out --model link")),
                ["--output-dir out/../out", "link/chat_template.jinja, a file of link"],
            ),
            (run(&format!("{rows} --model model --eval-file out/checkpoint-1/rows.jsonl")), ["out", "(--eval-file)"]),
            (run(&format!("{rows} --model model --chat-template-path link/chat_template.jinja")), ["out", "link/chat"]),
            (
                run("--train-file link/checkpoint-1/rows.jsonl --output-dir out --model model"),
                ["--output-dir out", "link/checkpoint-1/rows.jsonl"],
            ),
            (
                run("--train-file pairs.jsonl --output-dir other --model model \
                     --resume-from-checkpoint out/checkpoint-1"),
                ["--output-dir other", "(--resume-from-checkpoint)"],
            ),
        ];
        let cases: Vec<_> = cases.iter().map(|(words, parts)| (words.as_str(), *parts)).collect();
        refused(&bench, &cases);
    }
    refused(
        &bench,
        &[
            (
                "dpo --model model --ref-model out/checkpoint-2 --train-file pairs.jsonl --output-dir out \
                 --overwrite-output-dir",
                ["--output-dir out", "(--ref-model)"],
            ),
            // No message may propose --overwrite-output-dir if that would remove the run's input.
            (
                "dpo --model out/checkpoint-2 --train-file pairs.jsonl --output-dir out",
                ["--output-dir out", "out/checkpoint-2"],
            ),
        ],
    );
    // An input in the output folder is allowed if the run does not overwrite it, and so is a checkpoint of
    // the same run.
    std::fs::copy(bench.at("pairs.jsonl"), bench.at("out/rows.jsonl")).unwrap();
    let rest = "--save-steps 1 --per-device-train-batch-size 1 --quiet";
    let own = "--resume-from-checkpoint out/checkpoint-2 --max-steps 2";
    bench.run(&format!("sft --model model --train-file out/rows.jsonl --output-dir out {own} {rest}")).ok();
}

#[test]
fn studies_and_the_quick_start_spare_their_inputs() {
    let bench = Bench::new();
    std::fs::create_dir(bench.at("seen")).unwrap();
    std::fs::copy(bench.at("pairs.jsonl"), bench.at("seen/hw.jsonl")).unwrap();
    bench.write("seen/study.json", "x");
    bench.copy("model", "grid/p001/run");
    let point = "method = \"sft\"\n[vary]\nmax-steps = [1]\n[flags]\n";
    bench.write("grid.toml", format!("{point}model = \"grid/p001/run\"\ntrain-file = \"pairs.jsonl\"\n"));
    std::fs::create_dir(bench.at("rows")).unwrap();
    std::fs::copy(bench.at("pairs.jsonl"), bench.at("rows/sweep.json")).unwrap();
    bench.write(
        "rows.toml",
        format!("{point}model = \"model\"\ntrain-file = [\"groups.jsonl\", \"rows/sweep.json\"]\n"),
    );
    bench.write(".quickstart", "");
    refused(
        &bench,
        &[
            (
                "study sft --model model --train-file seen/hw.jsonl --output-dir new --study-dir seen \
                 --overwrite-output-dir --device cpu",
                ["--study-dir seen", "seen/hw.jsonl"],
            ),
            (
                "study bench --study-dir seen --overwrite --compare seen/study.json --device cpu",
                ["--study-dir seen", "seen/study.json"],
            ),
            ("study sweep grid.toml --output-dir grid", ["--output-dir grid", "grid/p001/run"]),
            ("study sweep rows.toml --output-dir ./rows", ["--output-dir ./rows", "rows/sweep.json"]),
            ("quickstart --output-dir . --scale 0.001", ["--output-dir .", "the current folder"]),
        ],
    );
}

#[test]
fn commands_that_write_files_spare_their_inputs() {
    let bench = with_run();
    std::fs::hard_link(bench.at("pairs.jsonl"), bench.at("hard.jsonl")).unwrap();
    symlink("pairs.jsonl", bench.at("soft.jsonl")).unwrap();
    std::fs::create_dir(bench.at("t")).unwrap();
    std::fs::copy(bench.at("pairs.jsonl"), bench.at("t/special_tokens_map.json")).unwrap();
    bench.run("eval --model model --input pairs.jsonl --bootstrap 0 --output a.json").ok();
    bench.write("b.csv", "x");
    std::fs::remove_file(bench.at("out/report.html")).unwrap();
    symlink("metrics.jsonl", bench.at("out/report.html")).unwrap();
    refused(
        &bench,
        &[
            ("init --preset quickstart --tokenizer tok --output-dir tok", ["--output-dir tok", "(--tokenizer)"]),
            (
                "tokenizer --input t/special_tokens_map.json --vocab-size 300 --output-dir t",
                ["--output-dir t", "t/special_tokens_map.json"],
            ),
            ("data build --input pairs.jsonl --output hard.jsonl", ["--output hard.jsonl", "pairs.jsonl"]),
            (
                "data build --input pairs.jsonl --output x.jsonl --report soft.jsonl",
                ["--report soft.jsonl", "pairs.jsonl"],
            ),
            (
                "data check groups.jsonl --test-file pairs.jsonl --output tok/../pairs.jsonl",
                ["--output tok/../pairs.jsonl", "(--test-file)"],
            ),
            ("data check pairs.jsonl --model tok --output tok/tokenizer.json", ["--output tok", "a file of tok"]),
            (
                "score --model model --input pairs.jsonl --output model/config.json",
                ["--output model/config.json", "a file of model"],
            ),
            (
                "score --model link/checkpoint-1 --input pairs.jsonl --output out/checkpoint-1/state/state.json",
                ["--output out/checkpoint-1/state/state.json", "link/checkpoint-1"],
            ),
            (
                "score --model model --ref-model out --input pairs.jsonl --output link/metrics.jsonl",
                ["--output link/metrics.jsonl", "(--ref-model)"],
            ),
            (
                "score --model model --chat-template-path tok/chat_template.jinja --input pairs.jsonl --output \
                 tok/chat_template.jinja",
                ["--output tok/chat_template.jinja", "(--chat-template-path)"],
            ),
            (
                "eval --model model --input pairs.jsonl --output ./model/model.safetensors",
                ["--output ./model/model.safetensors", "(--model)"],
            ),
            ("eval --compare a.json a.json --output ./a.json", ["--output ./a.json", "a.json"]),
            ("compare model a.json --input pairs.jsonl --output model/tokenizer.json", ["--output model", "a file of"]),
            ("bench --device cpu --compare b.csv --output ./b.csv", ["--output ./b.csv", "(--compare)"]),
            ("report out --output link/metrics.jsonl", ["--output link/metrics.jsonl", "out/metrics.jsonl"]),
            ("report out --output out/config.json", ["--output out/config.json", "a file of out"]),
            ("report out", ["the report out/report.html", "out/metrics.jsonl"]),
        ],
    );
    bench.run("data build --input pairs.jsonl --output x.jsonl --report ./x.jsonl").fails(2, &["the same file"]);
    // A file with a different name next to the model may be written repeatedly.
    for _ in 0..2 {
        bench.run("score --model model --input pairs.jsonl --output model/scores.jsonl").ok();
    }
}
