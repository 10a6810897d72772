//! Stop signals at random moments: one or two, to the process or to its group. A training run saves a
//! checkpoint and says in `run.json` how it ended; every other command leaves nothing behind.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mapl::rng::Rng;
use mapl::train::checkpoint;
use serde_json::json;

use crate::workbench::{Bench, full};

/// Number of runs with `MAPL_TEST_FULL=1`, and without it.
const RUNS: [usize; 2] = [200, 8];

const SIGNALS: [(&str, i32); 2] = [("INT", 130), ("TERM", 143)];

/// Sends a signal to a process, or to its process group, whose id equals the id of the process.
fn send(signal: &str, child: &Child, group: bool) {
    let target = format!("{}{}", if group { "-" } else { "" }, child.id());
    // The process may have ended since the first of two signals.
    let _ = Command::new("kill").args(["-s", signal, "--", &target]).stderr(Stdio::null()).status();
}

fn wait(rng: &mut Rng, most_ms: usize) {
    std::thread::sleep(Duration::from_micros(rng.below(1000 * most_ms) as u64));
}

#[test]
fn a_run_stopped_at_a_random_moment_has_a_checkpoint_and_says_how_it_ended() {
    let bench = Bench::new();
    let mut rng = Rng::keyed(3, &["signals"]);
    let run = "--model model --train-file groups.jsonl --output-dir out --lr-scheduler-type constant \
               --per-device-train-batch-size 4";
    let mut counts = [[0; 2]; 2];
    for i in 0..if full() { RUNS[0] } else { RUNS[1] } {
        let (pair, group, method) = (i % 2 == 1, i / 2 % 2 == 1, if i / 4 % 2 == 0 { "reward" } else { "dpo" });
        let saving = if i / 8 % 2 == 1 { "--save-steps 1 --save-total-limit 2" } else { "" };
        let words = format!("{method} {run} --max-steps 1000000 --overwrite-output-dir {saving}");
        let mut command = bench.command(&words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("step 1/")), "run {i} made no step");
        let rest = std::thread::spawn(move || lines.for_each(drop));
        wait(&mut rng, 60);
        let first = rng.below(2);
        send(SIGNALS[first].0, &child, group);
        let mut sent = vec![SIGNALS[first].1];
        if pair {
            let most_ms = [1, 20, 300][rng.below(3)];
            wait(&mut rng, most_ms);
            let second = rng.below(2);
            send(SIGNALS[second].0, &child, group);
            sent.push(SIGNALS[second].1);
        }
        let code = child.wait().unwrap().code();
        rest.join().unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        // Signals that arrive almost together are delivered in any order.
        assert!(code.is_some_and(|code| sent.contains(&code)), "run {i}: {code:?} after {sent:?}: {err}");
        let manifest = bench.json("out/run.json");
        let ended = (manifest["status"].as_str(), manifest["exit_code"].as_i64().map(|code| code as i32));
        assert_eq!(ended, (Some("stopped"), code), "run {i}: {manifest:#}");
        let (step, folder) = checkpoint::list(&bench.at("out")).pop().unwrap_or_else(|| panic!("run {i}: {err}"));
        let state = checkpoint::verify(&folder).unwrap();
        assert!(
            state.step == step && err.contains(&format!("after step {step}; state saved in out/checkpoint-{step}")),
            "{err}"
        );
        let unfinished = |path: &std::path::PathBuf| path.to_str().is_some_and(|name| name.ends_with(".tmp"));
        assert!(!bench.listing().iter().any(unfinished), "run {i}: {:?}", bench.listing());
        counts[usize::from(pair)][usize::from(group)] += 1;
    }
    let _ = writeln!(
        std::io::stderr(),
        "stopped with a checkpoint: {} of one signal to the process, {} to the group; {} of two to the process, {} to the group",
        counts[0][0],
        counts[0][1],
        counts[1][0],
        counts[1][1]
    );
}

#[test]
fn commands_without_a_checkpoint_end_at_the_first_signal_and_leave_nothing() {
    let bench = Bench::new();
    // Scoring these rows on the reference device needs minutes. No two sequences are equal, because equal
    // ones would be computed once.
    let long = "the wren sees a red door ".repeat(40);
    let row = |i: usize| json!({ "prompt": format!("row {i}"), "chosen": format!("{i} {long}"), "rejected": long });
    bench.write("rows.jsonl", (0..1000).map(|i| format!("{}\n", row(i))).collect::<String>());
    bench.bash("mkfifo pipe.jsonl").ok();
    let device = "--device reference";
    for (i, words) in [
        format!("score --model model --input pipe.jsonl --output s.jsonl {device}"),
        format!("eval --model model --input pipe.jsonl --output e.json {device}"),
        format!("compare model qwen --input pipe.jsonl --output e.json {device}"),
        format!("dpo --model model --train-file pipe.jsonl --output-dir out --precompute-ref-log-probs --ref-cache-dir cache {device}"),
        "data build --input pipe.jsonl --output b.jsonl".into(),
        "tokenizer --input pipe.jsonl --vocab-size 300 --output-dir t".into(),
    ]
    .into_iter()
    .enumerate()
    {
        let before = bench.listing();
        let (signal, code) = SIGNALS[i % 2];
        let mut child = bench.command(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // This call blocks until the command opens the pipe.
        let mut pipe = std::fs::OpenOptions::new().write(true).open(bench.at("pipe.jsonl")).unwrap();
        if i < 4 {
            pipe.write_all(&bench.bytes("rows.jsonl")).unwrap();
            drop(pipe);
            std::thread::sleep(Duration::from_millis(300));
        } else {
            pipe.write_all(b"{").unwrap();
        }
        send(signal, &child, false);
        let began = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{words}");
        assert!(began.elapsed() < Duration::from_secs(20), "{words}");
        let after = bench.listing();
        let left: Vec<_> = after.iter().filter(|path| !before.contains(path)).collect();
        assert!(left.iter().all(|path| path.ends_with("cache")), "{words}: {left:?}");
    }
}

#[test]
fn a_signal_while_an_output_is_written_leaves_no_temporary_file() {
    let bench = Bench::new();
    let row = r#"{"prompt": "name a bird", "chosen": "a wren", "rejected": "no"}"#.to_owned() + "\n";
    bench.write("rows.jsonl", row.repeat(200_000));
    bench.write("built.jsonl", "earlier\n");
    let before = bench.listing();
    let temporary = || bench.listing().into_iter().any(|path| path.to_str().is_some_and(|name| name.ends_with(".tmp")));
    let mut in_time = 0;
    for _ in 0..6 {
        let mut child = bench.command("data build --input rows.jsonl --objective rows --output built.jsonl");
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The command first tests the folder with a temporary file, which it removes at once. So a temporary
        // file that is seen in two polls in a row holds the output rows.
        let mut seen = 0;
        while child.try_wait().unwrap().is_none() && seen < 2 {
            seen = if temporary() { seen + 1 } else { 0 };
            std::thread::sleep(Duration::from_millis(1));
        }
        send("TERM", &child, false);
        in_time += usize::from(child.wait().unwrap().code() == Some(143));
        assert_eq!(bench.listing(), before);
    }
    assert!(in_time > 0, "no signal arrived in time");
}
