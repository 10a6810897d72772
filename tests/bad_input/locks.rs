//! Two runs, one folder: the second is refused, and a killed run leaves no lock behind.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::bench::Bench;

const RUN: &str = "dpo --model model --train-file groups.jsonl --output-dir out --max-steps 1000000 --save-steps 1 \
                   --per-device-train-batch-size 1 --save-total-limit 2 --lr-scheduler-type constant";

/// Starts a long run and waits until it has written a checkpoint.
fn start(bench: &Bench) -> Child {
    let child = bench.command(RUN).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let written = || {
        let entries = std::fs::read_dir(bench.at("out")).into_iter().flatten().flatten();
        let mut folders = entries.filter(|e| e.file_name().to_string_lossy().starts_with("checkpoint-"));
        folders.any(|e| e.path().join("DONE").exists())
    };
    for _ in 0..12_000 {
        if written() {
            return child;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no checkpoint after two minutes");
}

#[test]
fn a_folder_in_use_is_refused_and_free_after_a_kill() {
    let bench = Bench::new();
    let mut child = start(&bench);
    let number = format!("process {}", child.id());
    for flag in ["", "--overwrite-output-dir", "--resume-from-checkpoint true"] {
        let words = format!("{RUN} {flag}");
        let done = bench.run(&words);
        assert!(child.try_wait().unwrap().is_none(), "the first run goes on");
        done.fails(2, &["--output-dir out", "is in use by another run", &number]);
    }
    assert!(bench.at("out/metrics.jsonl").exists());
    // SIGKILL: the process cleans nothing up.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(bench.at("out/run.lock").exists(), "the file stays, the lock does not");
    bench.run(&RUN.replace("--max-steps 1000000", "--max-steps 1 --overwrite-output-dir")).ok();
    assert!(!bench.at("out/run.lock").exists());
}
