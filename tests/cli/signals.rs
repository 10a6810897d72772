//! Signals to a running process: when it stops, the checkpoint it saves, and its exit code.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::workbench::Bench;

fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
}

/// Starts a run that would take hours, sends it a signal after its first step, and returns its exit
/// code.
fn exit_code_after(bench: &Bench, words: &str, signal: &str) -> Option<i32> {
    let mut child = bench.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the run made no step");
    send(signal, &child);
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
fn a_signal_stops_after_the_step_saves_and_the_run_resumes_later() {
    let bench = Bench::new();
    let run = |steps: u64, rest: &str| {
        format!(
            "reward --model model --train-file groups.jsonl --output-dir out --lr-scheduler-type constant \
             --max-steps {steps} {rest}"
        )
    };
    assert_eq!(exit_code_after(&bench, &run(1_000_000, ""), "-TERM"), Some(143));
    let first = last_checkpoint(&bench.at("out"));
    assert!(!bench.at("out/model.safetensors").exists());
    assert_eq!(bench.metrics("out", "train").last().unwrap()["step"], first);
    // Without learning-rate decay a resume may change the number of steps, so the run may end earlier than
    // first planned.
    bench.run(&run(first + 2, "--resume-from-checkpoint true")).ok();
    let train = bench.metrics("out", "train");
    assert_eq!(train.len() as u64, first + 2);
    bench.run(&run(first + 2, "").replace("--output-dir out", "--output-dir straight")).ok();
    assert_eq!(bench.metrics("straight", "train"), train);
    assert!(bench.bytes("straight/model.safetensors") == bench.bytes("out/model.safetensors"));

    assert_eq!(exit_code_after(&bench, &run(1_000_000, "--overwrite-output-dir"), "-INT"), Some(130));
}

#[test]
fn a_run_saves_on_sigusr1_and_continues() {
    let bench = Bench::new();
    let words = "reward --model model --train-file groups.jsonl --output-dir out --max-steps 1000000";
    let mut child = bench.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the run made no step");
    send("-USR1", &child);
    let saved = || mapl::train::checkpoint::list(&bench.at("out")).len();
    // Step lines arrive while the run continues; the checkpoint exists after a few lines.
    assert!(lines.by_ref().take(10_000).any(|_| saved() == 1), "nothing was saved");
    assert!(lines.next().is_some() && child.try_wait().unwrap().is_none(), "the run stopped after saving");
    send("-TERM", &child);
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_eq!(saved(), 2);
}

/// Starts a run that reads its data from a pipe. Returns the run and the pipe once the run has opened the
/// pipe and is still in start-up.
fn start_with_pipe(bench: &Bench, rest: &str) -> (Child, std::fs::File) {
    assert!(std::process::Command::new("mkfifo").arg(bench.at("pipe.jsonl")).status().unwrap().success());
    let words = format!("reward --model model --train-file pipe.jsonl --output-dir out {rest}");
    let child = bench.command(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Opening a pipe for writing blocks until its reader opens it.
    let pipe = std::fs::OpenOptions::new().write(true).open(bench.at("pipe.jsonl")).unwrap();
    (child, pipe)
}

#[test]
fn in_start_up_the_first_signal_ends_the_run_without_output() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let bench = Bench::new();
        let (mut child, pipe) = start_with_pipe(&bench, "");
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(!bench.at("out").exists());
        drop(pipe);
    }
}

#[test]
fn a_save_requested_in_start_up_follows_the_first_step() {
    let bench = Bench::new();
    let (mut child, mut pipe) = start_with_pipe(&bench, "--max-steps 3");
    send("-USR1", &child);
    pipe.write_all(&bench.bytes("groups.jsonl")).unwrap();
    drop(pipe);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let found = mapl::train::checkpoint::list(&bench.at("out"));
    assert_eq!(found.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1]);
}

#[test]
fn an_evaluation_interrupted_by_a_signal_is_repeated_on_resume() {
    let bench = Bench::new();
    let rows = String::from_utf8(bench.bytes("groups.jsonl")).unwrap();
    bench.write("many.jsonl", (0..12).map(|i| rows.replace("train-", &format!("{i}-"))).collect::<String>());
    let run = |out: &str| {
        format!(
            "dpo --model model --train-file groups.jsonl --eval-file many.jsonl --output-dir {out} --max-steps 2 \
             --learning-rate 1e-3 --eval-steps 1 --save-steps 2 --load-best-model-at-end --metric-for-best-model accuracy"
        )
    };
    bench.run(&run("straight")).ok();
    // The signal arrives during the evaluation after step 1 or 2, unless this test process is slower than the
    // evaluation.
    for step in ["step 1/", "step 2/"] {
        let cut_short = (0..20).any(|_| {
            let words = run("out") + " --overwrite-output-dir";
            let mut child = bench.command(&words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().starts_with(step)));
            send("-TERM", &child);
            lines.for_each(drop);
            let code = child.wait().unwrap().code();
            assert!(code == Some(143) || code == Some(0), "{code:?}");
            if code == Some(0) {
                return false;
            }
            let (_, folder) = mapl::train::checkpoint::list(&bench.at("out")).pop().unwrap();
            let due = mapl::train::checkpoint::read_state(&folder).unwrap().evaluation_due;
            bench.run(&(run("out") + " --resume-from-checkpoint true")).ok();
            for kind in ["train", "eval"] {
                assert_eq!(bench.metrics("out", kind), bench.metrics("straight", kind));
            }
            assert!(bench.bytes("out/model.safetensors") == bench.bytes("straight/model.safetensors"));
            let best = |run: &str| bench.json(&format!("{run}/trainer_state.json"))["best_global_step"].clone();
            assert_eq!(best("out"), best("straight"));
            due
        });
        assert!(cut_short, "no evaluation was cut short at {step}");
    }
}

const NOTICE: &str = "stopping after this step; repeat the signal to stop at once\n";

/// Sends two signals to the process `child`, `gap` milliseconds apart.
fn send_pair(signals: [&str; 2], gap: u64, child: &Child) {
    let (id, pause) = (child.id(), gap as f64 / 1e3);
    let script = format!("kill {} {id}; sleep {pause}; kill {} {id}", signals[0], signals[1]);
    let script = if gap == 0 { script.replace("sleep 0;", "") } else { script };
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
}

#[test]
fn two_signals_close_together_are_one_stop_and_the_run_resumes() {
    let bench = Bench::new();
    let run = |out: &str, rest: &str| {
        format!(
            "reward --model model --train-file groups.jsonl --output-dir {out} --lr-scheduler-type constant \
             --per-device-train-batch-size 8 --gradient-accumulation-steps 3 {rest}"
        )
    };
    let (same, other) = (["-INT", "-INT"], ["-INT", "-TERM"]);
    for (i, (gap, signals)) in [(0, same), (2, other), (20, same), (200, other)].into_iter().enumerate() {
        let out = format!("out{i}");
        // A study handles signals as its run does.
        let command = if i == 0 { "study " } else { "" };
        let words = command.to_owned() + &run(&out, "--max-steps 1000000");
        // Without this variable, stderr has no note on rough ceilings.
        let mut command = bench.command(&words);
        command.env_remove("MAPL_CEILINGS").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the run made no step");
        send_pair(signals, gap, &child);
        lines.for_each(drop);
        let code = child.wait().unwrap().code();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        // Signals that arrive together are delivered in any order.
        let expected = if gap == 0 { signals } else { [signals[0]; 2] };
        let codes = expected.map(|signal| Some(if signal == "-INT" { 130 } else { 143 }));
        assert!(codes.contains(&code), "{signals:?} {gap} ms: {code:?} {err}");
        assert!(err.starts_with(NOTICE) && err.matches(NOTICE).count() == 1, "{err}");
        assert!(err.contains("error: stopped by signal"), "{err}");
        let manifest = bench.json(&format!("{out}/run.json"));
        assert_eq!(
            (&manifest["status"], manifest["exit_code"].as_i64()),
            (&"stopped".into(), code.map(i64::from)),
            "{signals:?} {gap} ms"
        );
        let step = last_checkpoint(&bench.at(&out));
        bench.run(&run(&out, &format!("--max-steps {} --resume-from-checkpoint true", step + 1))).ok();
        assert_eq!(bench.json(&format!("{out}/run.json"))["status"], "finished");
    }
}

/// Writes `rows.jsonl`: 500 quick rows, then 500 that take minutes on the reference device.
fn quick_then_long_rows(bench: &Bench) {
    let quick = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#.to_owned() + "\n";
    let text = "quietly ".repeat(12);
    let long = format!(r#"{{"prompt": "{text}", "chosen": "b {text}", "rejected": "c {text}"}}"#) + "\n";
    bench.write("rows.jsonl", quick.repeat(500) + &long.repeat(500));
}

#[test]
fn a_second_signal_after_two_seconds_ends_the_run_at_once() {
    for signals in [["-TERM", "-INT"], ["-INT", "-INT"]] {
        let bench = Bench::new();
        // A quick first step shows that training has started; the second step takes minutes.
        quick_then_long_rows(&bench);
        let words = "reward --model model --train-file rows.jsonl --output-dir out --device reference --no-shuffle \
                     --per-device-train-batch-size 1 --gradient-accumulation-steps 500 --max-steps 2 --save-steps 2";
        // A signal before the end of step 1 stops the run there, with a checkpoint; the test then
        // tries again.
        let in_step_2 = (0..20).any(|_| {
            let words = words.to_owned() + " --overwrite-output-dir";
            let mut child = bench.command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "the run made no step");
            send(signals[0], &child);
            std::thread::sleep(Duration::from_millis(2200));
            let waits = child.try_wait().unwrap().is_none();
            if waits {
                send(signals[1], &child);
            }
            let began = Instant::now();
            let code = child.wait().unwrap().code();
            let mut err = String::new();
            child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
            let saved = mapl::train::checkpoint::list(&bench.at("out"));
            if err.contains("after step 1;") {
                assert_eq!(saved.len(), 1);
                return false;
            }
            assert!(waits, "the first signal did not wait for the end of the step");
            assert!(began.elapsed() < Duration::from_secs(2), "the second signal waited");
            assert_eq!(code, Some(130));
            assert_eq!(err, NOTICE);
            assert!(saved.is_empty(), "the second signal must not save");
            let manifest = bench.json("out/run.json");
            assert_eq!((&manifest["status"], &manifest["exit_code"]), (&"stopped".into(), &130.into()));
            assert_eq!(manifest["message"], "ended at once by signal 2; no checkpoint has been written");
            true
        });
        assert!(in_step_2, "no signal came in step 2");
    }
}

#[test]
fn a_signal_before_the_first_step_is_recorded_in_run_json() {
    let bench = Bench::new();
    quick_then_long_rows(&bench);
    // The evaluation before the first step needs minutes.
    let words =
        "reward --model model --train-file pairs.jsonl --eval-file rows.jsonl --output-dir out --device reference";
    let mut child = bench.command(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !bench.at("out/metrics.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Repeats that arrive while the end is recorded change nothing. The later ones may find no process.
    let repeats = format!("kill -TERM {0} && for i in 1 2 3 4 5; do kill -TERM {0} 2>/dev/null; done", child.id());
    Command::new("sh").args(["-c", &repeats]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let manifest = bench.json("out/run.json");
    assert_eq!((&manifest["status"], &manifest["exit_code"]), (&"stopped".into(), &143.into()));
}
