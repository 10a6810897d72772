//! Tests of full or read-only disks: the error names the file, and earlier checkpoints are kept.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::workbench::{Bench, Done};

const RUN: &str = "dpo --model model --train-file groups.jsonl --output-dir DIR --per-device-train-batch-size 2 \
                   --lr-scheduler-type constant --max-steps 6 --save-steps 2";

/// Runs a bash script in the bench's folder; `$MAPL` is the binary.
fn bash(bench: &Bench, script: &str) -> (Option<i32>, String) {
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(bench.path()).env("MAPL", env!("CARGO_BIN_EXE_mapl"));
    let output = command.env("NO_COLOR", "1").output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Prints the reason to stderr directly, because the harness shows print macros only for failing
/// tests.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn one_error(err: &str, parts: &[&str]) {
    assert!(!err.contains("panicked"), "{err}");
    assert_eq!(err.lines().filter(|line| line.starts_with("error:")).count(), 1, "{err}");
    parts.iter().for_each(|part| assert!(err.contains(part), "no {part:?} in {err}"));
}

/// Names of the complete checkpoint folders.
fn checkpoints(out: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out).unwrap().map(|e| e.unwrap());
    let complete = entries.filter(|e| e.path().join("DONE").exists());
    let mut names: Vec<String> = complete.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with("checkpoint-") && !name.ends_with(".tmp"));
    names.sort();
    names
}

/// Final weights of an undisturbed run.
fn expected(bench: &Bench) -> Vec<u8> {
    bench.run(&RUN.replace("DIR", "whole")).ok();
    bench.bytes("whole/model.safetensors")
}

/// Resumes an interrupted run and asserts the weights of the undisturbed run and no unfinished
/// folder.
fn resumes_to(bench: &Bench, out: &str, weights: &[u8]) {
    let done: Done = bench.run(&format!("{} --resume-from-checkpoint true", RUN.replace("DIR", out))).ok();
    assert!(done.out.contains("resumed after step"), "{}", done.out);
    assert!(bench.bytes(&format!("{out}/model.safetensors")) == weights, "the resumed run differs");
    let unfinished = |path: &PathBuf| path.extension().is_some_and(|end| end == "tmp");
    let left: Vec<_> = bench.listing().into_iter().filter(unfinished).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(bench.rows(&format!("{out}/metrics.jsonl")).iter().filter(|row| row["kind"] == "train").count(), 6);
}

#[test]
fn a_disk_full_during_a_save_keeps_the_last_checkpoint() {
    let bench = Bench::new();
    let weights = expected(&bench);
    let size: u64 = walk(&bench.at("whole/checkpoint-2"));
    std::fs::create_dir(bench.at("small")).unwrap();
    // The disk has room for one checkpoint and most of a second one.
    let mount = format!("mount -t tmpfs -o size={} tmpfs small", size * 17 / 10);
    if bash(&bench, &mount).0 != Some(0) {
        skipped("mounting a small tmpfs is not permitted here; the test of a file-size limit covers the code");
        return;
    }
    let run = RUN.replace("DIR", "small/out");
    let (code, err) = bash(&bench, &format!("$MAPL {run}"));
    let kept = checkpoints(&bench.at("small/out"));
    bench.copy("small", "moved");
    assert_eq!(bash(&bench, "umount small").0, Some(0));
    assert_eq!(code, Some(1), "{err}");
    one_error(&err, &["small/out", "No space left on device"]);
    assert_eq!(kept, ["checkpoint-2"]);
    resumes_to(&bench, "moved/out", &weights);
}

fn walk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.map(|path| if path.is_dir() { walk(&path) } else { path.metadata().unwrap().len() }).sum()
}

#[test]
fn a_save_that_fails_midway_keeps_the_last_checkpoint() {
    let bench = Bench::new();
    let weights = expected(&bench);
    bench.run(&RUN.replace("DIR", "out").replace("--max-steps 6", "--max-steps 2")).ok();
    std::fs::remove_file(bench.at("out/model.safetensors")).unwrap();
    // Files may grow to 16 KiB, less than the weights need. SIGXFSZ, ignored or not, does not end the run.
    let run = format!("{} --resume-from-checkpoint true", RUN.replace("DIR", "out"));
    for trap in ["trap '' XFSZ;", ""] {
        let (code, err) = bash(&bench, &format!("{trap} ulimit -f 16; exec $MAPL {run} > /dev/null"));
        assert_eq!(code, Some(1), "{err}");
        one_error(&err, &["out/checkpoint-4", "model.safetensors", "File too large"]);
        assert_eq!(checkpoints(&bench.at("out")), ["checkpoint-2"]);
        assert!(!bench.listing().iter().any(|path| path.to_string_lossy().ends_with(".tmp")));
        assert!(!bench.at("out/model.safetensors").exists());
    }
    resumes_to(&bench, "out", &weights);
}

#[test]
fn outputs_on_a_full_device_are_errors() {
    let bench = Bench::new();
    if !Path::new("/dev/full").exists() {
        skipped("this system has no /dev/full");
        return;
    }
    for words in [
        "score --model model --input pairs.jsonl --output /dev/full",
        "eval --model model --input pairs.jsonl --output /dev/full",
        "data build --input pairs.jsonl --output /dev/full",
    ] {
        bench.run(words).fails(1, &["/dev/full", "No space left on device"]);
    }
    // A run continues if its messages cannot be printed.
    let run = RUN.replace("DIR", "out").replace("--max-steps 6", "--max-steps 1");
    assert_eq!(bash(&bench, &format!("$MAPL {run} > /dev/full")).0, Some(0));
    assert!(bench.at("out/model.safetensors").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_before_training() {
    let bench = Bench::new();
    bench.write("file", "x");
    let before = bench.listing();
    for dir in ["file/out", "/proc/mapl-out"] {
        let (code, err) = bash(&bench, &format!("$MAPL {}", RUN.replace("DIR", dir)));
        assert_eq!(code, Some(1), "{err}");
        one_error(&err, &["cannot create", dir]);
    }
    // The folder exists, but has no write permission. A privileged user ignores permissions, so root gets a
    // read-only mount.
    std::fs::create_dir(bench.at("locked")).unwrap();
    let run = RUN.replace("DIR", "locked");
    let guard = "[ $(id -u) = 0 ] && { mount --bind locked locked && mount -o remount,ro,bind locked || exit 77; } \
                 || chmod 555 locked";
    let (code, err) = bash(&bench, &format!("{guard}; $MAPL {run}; code=$?; umount locked 2>/dev/null; exit $code"));
    if code == Some(77) {
        skipped("a read-only mount is not permitted here; the folders above cover the code");
    } else {
        assert_eq!(code, Some(1), "{err}");
        one_error(&err, &["cannot write locked/run.lock"]);
    }
    std::fs::remove_dir_all(bench.at("locked")).unwrap();
    assert_eq!(bench.listing(), before);
}

#[test]
fn an_incomplete_metrics_line_does_not_stop_a_resumed_run() {
    let bench = Bench::new();
    bench.run(&RUN.replace("DIR", "out").replace("--max-steps 6", "--max-steps 2")).ok();
    // The file ends in the middle of a line, as after a crash.
    let mut text = bench.bytes("out/metrics.jsonl");
    text.extend_from_slice(b"{\"schema\":1,\"kind\":\"train\",\"step\":3,\"lo");
    bench.write("out/metrics.jsonl", text);
    bench.run(&format!("{} --resume-from-checkpoint true", RUN.replace("DIR", "out"))).ok();
    let steps: Vec<Value> = bench.metrics("out", "train").iter().map(|row| row["step"].clone()).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
}

/// Commands whose result goes to stdout.
const PRINTING: [&str; 31] = [
    "--help",
    "--version",
    "dpo --help",
    "data build --help",
    "env",
    "env --json",
    "data check pairs.jsonl",
    "data check pairs.jsonl --json",
    "data show --input pairs.jsonl --tokenizer tok --rows 1",
    "eval --model model --input pairs.jsonl --bootstrap 0",
    "eval --model model --input pairs.jsonl --bootstrap 0 --json",
    "eval --compare a.json a.json",
    "compare a.json a.json",
    "compare a.json a.json --json",
    "bench --list --device cpu --model tiny",
    "bench --plan --preset quickstart --pairs 1 --prompt 16 --response 16",
    "bench --plan --preset quickstart --pairs 1 --prompt 16 --response 16 --json",
    "bench --device cpu --model tiny --op norm_fwd --repeats 1 --passes 1 --seconds 0 --rotate-mib 1",
    "watch out --once",
    "score --model model --input pairs.jsonl --output /dev/stdout",
    "data build --input pairs.jsonl --output /dev/stdout",
    "data build --input pairs.jsonl --output -",
    "data export --input pairs.jsonl --to trl --output -",
    "report out --output /dev/stdout",
    "completions bash",
    "man",
    "ifeval --input asked.jsonl --responses answers.jsonl",
    "ifeval --input asked.jsonl --responses answers.jsonl --json",
    "generate --model model --input pairs.jsonl --output - --max-new-tokens 1",
    "data convert --to groups --input pairs.jsonl --output -",
    "data language --split train --rows 3 --output -",
];

/// Commands whose results are files; stdout has their messages.
const WRITING: [&str; 14] = [
    "quickstart",
    "export",
    "tokenizer",
    "init",
    "sft",
    "reward",
    "dpo",
    "kto",
    "study sft",
    "study reward",
    "study dpo",
    "study kto",
    "study bench",
    "data pairs",
];

fn prepare(bench: &Bench) {
    bench.run("eval --model model --input pairs.jsonl --bootstrap 0 --output a.json").ok();
    let asked = r#"{"key": 1, "prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}"#;
    bench.write("asked.jsonl", asked);
    bench.write("answers.jsonl", r#"{"prompt": "a", "response": "b"}"#);
    bench.run(&RUN.replace("DIR", "out").replace("--max-steps 6", "--max-steps 1")).ok();
}

#[test]
fn every_command_prints_or_writes_its_result() {
    use clap::CommandFactory as _;

    let mut names = Vec::new();
    for command in mapl::cli::Cli::command().get_subcommands() {
        let mut below = command.get_subcommands().peekable();
        if below.peek().is_none() {
            names.push(command.get_name().to_owned());
        }
        names.extend(below.map(|sub| format!("{} {}", command.get_name(), sub.get_name())));
    }
    for name in names {
        let prints = PRINTING.iter().any(|words| words.starts_with(&format!("{name} ")) || *words == name);
        // `chat` prints answers to the turns that it reads; `chat.rs` tests it.
        let other = ["study sweep", "chat"].contains(&&*name);
        assert!(prints || WRITING.contains(&&*name) || other, "{name} is in neither list");
    }
}

#[test]
fn a_result_that_cannot_be_printed_is_an_error() {
    let bench = Bench::new();
    let Ok(_) = std::fs::metadata("/dev/full") else { return skipped("this system has no /dev/full") };
    prepare(&bench);
    for words in PRINTING {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = bench.command(words).stdout(full).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}: {err}");
        one_error(&err, &["cannot write standard output", "No space left on device"]);
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let bench = Bench::new();
    prepare(&bench);
    for words in PRINTING {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = bench.command(words).stdout(writer).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        // `data check` still returns the exit code of its findings.
        let expected = if words.starts_with("data check") { bench.run(words).code } else { Some(0) };
        assert_eq!(output.status.code(), expected, "{words}: {err}");
        assert!(expected != Some(0) || !err.contains("error:"), "{words}: {err}");
    }
}

/// Rows that a command writes to `/dev/stdout` are the same bytes as rows in a file; no message is among
/// them.
#[test]
fn rows_on_stdout_are_whole() {
    let bench = Bench::new();
    for words in ["score --model model --input pairs.jsonl --output", "data build --input pairs.jsonl --output"] {
        bench.run(&format!("{words} rows.jsonl")).ok();
        let (code, err) = bash(&bench, &format!("$MAPL {words} /dev/stdout > stdout.jsonl"));
        assert_eq!(code, Some(0), "{err}");
        assert!(bench.bytes("stdout.jsonl") == bench.bytes("rows.jsonl"), "{words}");
    }
}
