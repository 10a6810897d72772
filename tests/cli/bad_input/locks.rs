//! Two runs with one output folder: the second is rejected, and a killed run leaves no lock.

use std::process::{Child, Stdio};
use std::time::Duration;

use crate::workbench::Bench;

const RUN: &str = "dpo --model model --train-file groups.jsonl --output-dir out --max-steps 1000000 --save-steps 1 \
                   --per-device-train-batch-size 1 --save-total-limit 2 --lr-scheduler-type constant";

/// Background run, killed on drop.
struct Running(Child);

impl Running {
    /// Sends SIGKILL, so the process cannot clean up.
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a long run and waits until it has written a checkpoint.
fn start(bench: &Bench) -> Running {
    let child = bench.command(RUN).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let running = Running(child);
    let written = || {
        let entries = std::fs::read_dir(bench.at("out")).into_iter().flatten().flatten();
        let mut folders = entries.filter(|e| e.file_name().to_string_lossy().starts_with("checkpoint-"));
        folders.any(|e| e.path().join("DONE").exists())
    };
    for _ in 0..12_000 {
        if written() {
            return running;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no checkpoint after two minutes");
}

#[test]
fn a_folder_in_use_is_refused_and_released_by_a_kill() {
    let bench = Bench::new();
    let mut running = start(&bench);
    let number = format!("process {}", running.0.id());
    for flag in ["", "--overwrite-output-dir", "--resume-from-checkpoint true"] {
        let words = format!("{RUN} {flag}");
        let done = bench.run(&words);
        assert!(running.0.try_wait().unwrap().is_none(), "the first run has ended");
        done.fails(2, &["--output-dir out", "is in use by another run", &number]);
    }
    assert!(bench.at("out/metrics.jsonl").exists());
    running.kill();
    assert!(bench.at("out/run.lock").exists(), "the lock file remains after a kill, only the lock is released");
    bench.run(&RUN.replace("--max-steps 1000000", "--max-steps 1 --overwrite-output-dir")).ok();
    assert!(!bench.at("out/run.lock").exists());
}
