//! Runs with several ranks over MPI (`mpirun -n N mapl ...`). Training losses agree with those of one rank.
//! Scores and generated texts are byte for byte those of one rank. Further tests cover errors, and check that
//! all ranks end when one of them is killed.
//!
//! Without Open MPI, or without the cargo feature `mpi`, these tests say that they are skipped.
//! `MAPL_REQUIRE_MPI=1` makes that a failure.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::workbench::{Bench, Done, full};

/// Whether this machine and this build can run several ranks.
fn has_mpi(bench: &Bench) -> bool {
    let launcher = Command::new("mpirun").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    let env: Value = serde_json::from_str(&bench.run("env --json").ok().out).unwrap();
    let library = env["ranks"]["mpi"].as_str().unwrap().to_owned();
    let found = launcher && library.starts_with("libmpi");
    if !found {
        let why = format!("mpirun {}; libmpi: {library}", if launcher { "is there" } else { "is not there" });
        assert!(std::env::var_os("MAPL_REQUIRE_MPI").is_none_or(|v| v != "1"), "{why}");
        println!("SKIPPED: several ranks need Open MPI and --features mpi: {why}");
    }
    found
}

/// Returns an `mpirun` command with the arguments in `launch`, which may oversubscribe the cores and run as
/// root.
fn mpirun(bench: &Bench, launch: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--bind-to", "none"]).args(launch.split_whitespace());
    command.current_dir(bench.path()).env("NO_COLOR", "1").stdin(Stdio::null());
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    // Waiting ranks yield their core to the others.
    command.env("OMPI_MCA_mpi_yield_when_idle", "1").env("RAYON_NUM_THREADS", "1");
    // Containers often forbid a process to read another's memory, which MPI's single-copy transfers need.
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command.env_remove("CI").env_remove("SOURCE_DATE_EPOCH");
    command
}

/// Runs `mapl` on several ranks.
fn on_ranks(bench: &Bench, ranks: usize, words: &str) -> Done {
    let mut command = mpirun(bench, &format!("-n {ranks}"));
    command.arg(env!("CARGO_BIN_EXE_mapl")).args(words.split_whitespace());
    bench.finish(command, &format!("on {ranks} ranks: {words}"))
}

/// Arguments of a training run with batches of 6 rows, which do not divide evenly among 4 ranks. The last
/// batch of an epoch has 4 rows.
fn train(method: &str, output: &str, rest: &str) -> String {
    format!(
        "{method} --model model --train-file pairs.jsonl --eval-file few.jsonl --output-dir {output} \
         --per-device-train-batch-size 3 --gradient-accumulation-steps 2 --learning-rate 1e-3 --device cpu \
         --max-length 96 --eval-steps 3 --report-to jsonl {rest}"
    )
}

/// Writes `few.jsonl`, the rows of the evaluation.
fn write_few(bench: &Bench) {
    bench.bash("head -n 5 pairs.jsonl > few.jsonl").ok();
}

/// Compares the metrics of two runs; losses must agree within 1e-6.
fn assert_close(bench: &Bench, one: &str, several: &str) {
    assert_within(bench, (one, several), 1e-6);
}

/// Compares the metrics of two runs; losses must agree within `of_loss`.
fn assert_within(bench: &Bench, (one, several): (&str, &str), of_loss: f64) {
    for kind in ["train", "eval"] {
        let [a, b] = [one, several].map(|run| bench.metrics(run, kind));
        assert!(!a.is_empty() && a.len() == b.len(), "{kind}: {} and {} rows", a.len(), b.len());
        for (a, b) in a.iter().zip(&b) {
            let names = |row: &Value| row.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(a), names(b));
            for (name, value) in a.as_object().unwrap() {
                let (Some(x), Some(y)) = (value.as_f64(), b[name].as_f64()) else {
                    assert_eq!(value, &b[name], "{name}");
                    continue;
                };
                // The ranks sum f32 gradients in a different order. Logits and norms have a larger tolerance,
                // because they are not divided by a count.
                let tolerance = if name.ends_with("loss") { of_loss } else { 100.0 * of_loss * (1.0 + x.abs()) };
                assert!((x - y).abs() <= tolerance, "{several} {kind} {name}: {x} and {y}\n{a}\n{b}");
            }
        }
    }
}

#[test]
fn losses_of_several_ranks_are_those_of_one_and_repeat_bit_for_bit() {
    let bench = Bench::new();
    if !has_mpi(&bench) {
        return;
    }
    write_few(&bench);
    for (method, all) in [("dpo", &[2, 4][..]), ("reward", &[4])] {
        let one = format!("{method}1");
        bench.run(&train(method, &one, "--max-steps 5")).ok();
        for &ranks in all {
            let several = format!("{method}{ranks}");
            let out = on_ranks(&bench, ranks, &train(method, &several, "--max-steps 5")).ok().out;
            assert_eq!(out.matches("done: 5 steps").count(), 1, "{out}");
            assert!(out.contains(&format!("ranks         {ranks} on ")), "{out}");
            assert_close(&bench, &one, &several);
        }
    }
    on_ranks(&bench, 2, &train("dpo", "again", "--max-steps 5")).ok();
    assert!(bench.bytes("again/model.safetensors") == bench.bytes("dpo2/model.safetensors"), "weights differ");
    assert_eq!(bench.metrics("again", "train"), bench.metrics("dpo2", "train"));
    assert_eq!(bench.bytes("again/eval_scores.jsonl"), bench.bytes("dpo2/eval_scores.jsonl"));
    // With the whole optimiser state on every rank, losses are the same and a checkpoint has one optimiser
    // file, as with one rank.
    on_ranks(&bench, 2, &train("dpo", "whole", "--max-steps 5 --save-steps 4 --shard-optimizer off")).ok();
    assert_close(&bench, "dpo1", "whole");
    let parts = |run: &str| {
        let files = std::fs::read_dir(bench.at(&format!("{run}/checkpoint-4/state"))).unwrap().flatten();
        files.filter(|file| file.file_name().to_str().unwrap().starts_with("optimizer-rank")).count()
    };
    assert_eq!(parts("whole"), 1);
    // With five ranks, one has no row of the last batch of an epoch (4 rows); of a batch of 6 rows, every rank
    // computes one micro-batch. One rank then resumes from the checkpoint of five.
    let short = "--max-steps 5 --save-steps 4";
    on_ranks(&bench, 5, &train("reward", "five", short)).ok();
    assert_close(&bench, "reward1", "five");
    assert_eq!(parts("five"), 5);
    let resumed = train("reward", "resumed", short);
    bench.run(&format!("{resumed} --resume-from-checkpoint five/checkpoint-4")).ok();
    let last = |run: &str| bench.metrics(run, "train").last().unwrap()["loss"].as_f64().unwrap();
    assert!((last("resumed") - last("reward1")).abs() <= 1e-6);
}

#[test]
fn sharded_weights_train_save_and_resume_like_one_rank() {
    let bench = Bench::new();
    if !has_mpi(&bench) {
        return;
    }
    write_few(&bench);
    let short = "--max-steps 5 --save-steps 3";
    bench.run(&train("dpo", "one", short)).ok();
    let sharded = format!("{short} --shard-weights");
    let out = on_ranks(&bench, 3, &train("dpo", "three", &sharded)).ok().out;
    assert!(out.contains("MiB with --shard-weights"), "{out}");
    assert_close(&bench, "one", "three");
    // A resume on the same number of ranks is bitwise equal.
    let resume = "--resume-from-checkpoint three/checkpoint-3";
    on_ranks(&bench, 3, &train("dpo", "again", &format!("{sharded} {resume}"))).ok();
    assert!(bench.bytes("again/model.safetensors") == bench.bytes("three/model.safetensors"), "weights differ");
    // One rank resumes the sharded checkpoint of three ranks. Two ranks with sharded weights resume the
    // checkpoint of one.
    let last = |run: &str| bench.metrics(run, "train").last().unwrap()["loss"].as_f64().unwrap();
    bench.run(&train("dpo", "alone", &format!("{short} {resume}"))).ok();
    let from_one = format!("{sharded} --resume-from-checkpoint one/checkpoint-3");
    on_ranks(&bench, 2, &train("dpo", "two", &from_one)).ok();
    for run in ["alone", "two"] {
        assert!((last(run) - last("one")).abs() <= 1e-6, "{run}: {} and {}", last(run), last("one"));
    }
    // Trains adapters on a frozen base. The reference log-probs are computed before training.
    let adapters = "--max-steps 2 --use-peft --lora-r 2 --precompute-ref-log-probs --precompute-ref-batch-size 4";
    bench.run(&train("dpo", "lora1", &format!("{adapters} --ref-cache-dir cache1"))).ok();
    on_ranks(&bench, 2, &train("dpo", "lora2", &format!("{adapters} --ref-cache-dir cache2 --shard-weights"))).ok();
    assert_close(&bench, "lora1", "lora2");
}

/// The output folder is removed during the run, and with it the best checkpoint, which is the first one. Only
/// rank 0 notices this, but every rank must forget the checkpoint.
#[test]
fn a_folder_that_is_removed_during_a_run_is_forgotten_by_all_ranks() {
    let bench = Bench::new();
    if !has_mpi(&bench) {
        return;
    }
    write_few(&bench);
    let best = "--load-best-model-at-end --metric-for-best-model loss --greater-is-better true";
    let words = train("dpo", "gone", &format!("--max-steps 63 --save-steps 21 --shard-weights {best}"));
    let mut command = mpirun(&bench, "-n 2");
    command.arg(env!("CARGO_BIN_EXE_mapl")).args(words.split_whitespace());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !bench.at("gone/checkpoint-21").is_dir() {
        assert!(began.elapsed() < Duration::from_secs(100), "the ranks did not come to step 21");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::fs::rename(bench.at("gone"), bench.at("removed")).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("was removed"), "{said}");
    assert!(bench.at("gone/model.safetensors").is_file() && said.contains("gone/checkpoint-42"), "{said}");
}

#[test]
fn scores_texts_and_reference_log_probs_of_two_ranks_are_the_bytes_of_one() {
    let bench = Bench::new();
    if !has_mpi(&bench) {
        return;
    }
    write_few(&bench);
    let both = |words: &str, file: &str| {
        bench.run(&words.replace("OUT", &format!("one-{file}"))).ok();
        on_ranks(&bench, 2, &words.replace("OUT", &format!("two-{file}"))).ok();
        assert!(!bench.bytes(&format!("one-{file}")).is_empty());
        assert!(bench.bytes(&format!("one-{file}")) == bench.bytes(&format!("two-{file}")), "{file} differs");
    };
    let score = "--model model --ref-model qwen --input groups.jsonl --batch-tokens 300 --device cpu --output OUT";
    both(&format!("score {score}"), "scores.jsonl");
    both(&format!("eval {score} --bootstrap 100 --prompt-blindness"), "eval.json");
    both(
        "generate --model model --input pairs.jsonl --max-new-tokens 8 --temperature 1 --seed 3 --batch-size 4 \
         --device cpu --output OUT",
        "texts.jsonl",
    );
    for (ranks, name) in [(1, "one"), (3, "three")] {
        let words = train("dpo", name, "--max-steps 1 --precompute-ref-log-probs --precompute-ref-batch-size 4");
        let done = match ranks {
            1 => bench.run(&format!("{words} --ref-cache-dir cache-{name}")),
            _ => on_ranks(&bench, ranks, &format!("{words} --ref-cache-dir cache-{name}")),
        };
        done.ok();
    }
    let file = |folder: &str| {
        let mut files: Vec<_> = std::fs::read_dir(bench.at(folder)).unwrap().map(|f| f.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "logps"));
        assert_eq!(files.len(), 1);
        std::fs::read(&files[0]).unwrap()
    };
    assert!(file("cache-one") == file("cache-three"), "cached log-probs differ");
}

#[test]
fn the_emulator_on_two_ranks_agrees_with_one() {
    let bench = Bench::new();
    if !has_mpi(&bench) {
        return;
    }
    if bench.run("env").ok().out.contains("no C++ compiler") {
        assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"));
        println!("SKIPPED: this build has no emulator");
        return;
    }
    bench.bash("head -n 3 pairs.jsonl > three.jsonl").ok();
    let words = "reward --model model --train-file three.jsonl --per-device-train-batch-size 3 --max-length 40 \
                 --on-too-long truncate-completion-right --learning-rate 1e-3 --max-steps 2 --device emulator --dtype f32";
    bench.run(&format!("{words} --output-dir one")).ok();
    on_ranks(&bench, 2, &format!("{words} --output-dir two")).ok();
    for (a, b) in bench.metrics("one", "train").iter().zip(&bench.metrics("two", "train")) {
        let [a, b] = [a, b].map(|row| row["loss"].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-6, "{a} and {b}");
    }
}

#[test]
fn ranks_that_cannot_work_together_are_refused_with_one_message() {
    let bench = Bench::new();
    let contradiction = [("RANK", "0"), ("WORLD_SIZE", "2"), ("PMI_RANK", "1"), ("PMI_SIZE", "2")];
    let words = train("dpo", "out", "--max-steps 1");
    let mut command = bench.command(&words);
    command.envs(contradiction);
    let all = ["RANK=0, WORLD_SIZE=2, PMI_RANK=1, PMI_SIZE=2"];
    bench.finish(command, &words).fails(2, &all);
    if !has_mpi(&bench) {
        return;
    }
    write_few(&bench);
    // The ranks run the same program with two learning rates.
    let mapl = env!("CARGO_BIN_EXE_mapl");
    let mut command = mpirun(&bench, "-n 2");
    command.arg(mapl).args(words.split_whitespace()).args([":", "-n", "1", mapl]);
    command.args(words.replace("1e-3", "2e-3").split_whitespace());
    let parts = ["the ranks differ in --learning-rate: 0.001 on ranks 0 and 1; 0.002 on rank 2; start every rank"];
    bench.finish(command, "two learning rates").fails(2, &parts);
    // The ranks read the same relative path in two folders, which hold different files.
    bench.bash("mkdir other && head -n 9 pairs.jsonl > other/pairs.jsonl && ln -s ../model ../few.jsonl other").ok();
    let mut command = mpirun(&bench, "-n 1");
    command.arg(mapl).args(words.split_whitespace()).args([":", "-n", "1", "--wdir", "other", mapl]);
    command.args(words.split_whitespace());
    bench.finish(command, "two files").fails(2, &["the ranks differ in training data: "]);
    assert!(!bench.at("out").exists());
    bench
        .run(&train("dpo", "out", "--shard-optimizer on"))
        .fails(2, &["--shard-optimizer has no effect with one rank"]);
    bench.run(&train("dpo", "out", "--shard-weights")).fails(2, &["--shard-weights has no effect with one rank"]);
    on_ranks(&bench, 2, &train("dpo", "out", "--shard-weights --shard-optimizer off")).fails(
        2,
        &["--shard-weights with --shard-optimizer off: the optimiser state is sharded together with the weights"],
    );
    let no_effect = ["--nccl-init has no effect without a GPU"];
    for place in ["fs:/tmp/id", "env"] {
        let words = train("dpo", "out", &format!("--nccl-init {place}"));
        bench.run(&words).fails(2, &no_effect);
        bench.run(&format!("study {words} --study-dir study")).fails(2, &no_effect);
        on_ranks(&bench, 2, &words).fails(2, &no_effect);
    }
    assert!(!bench.at("out").exists() && !bench.at("study").exists());
    on_ranks(&bench, 2, "data check pairs.jsonl").fails(2, &["data runs as one process"]);
    let env: Value = serde_json::from_str(&bench.run("env --json").ok().out).unwrap();
    if env["ranks"]["nccl"].as_str().unwrap().starts_with("none") {
        let on_gpus = train("dpo", "out", "").replace("--device cpu", "--device cuda");
        on_ranks(&bench, 2, &on_gpus)
            .fails(5, &["2 ranks on GPUs meet over NCCL, which cannot be loaded", "pip install", "--device cpu"]);
        // A single-process run uses NCCL only with `--nccl-init`, both with and without a launcher.
        let one = ["one rank on a GPU joins over NCCL, which cannot be loaded", "or leave out --nccl-init"];
        bench.run(&format!("{on_gpus} --nccl-init env")).fails(5, &one);
        on_ranks(&bench, 1, &format!("{on_gpus} --nccl-init env")).fails(5, &one);
        assert!(!on_ranks(&bench, 1, &on_gpus).err.contains("NCCL"));
    }
    on_ranks(&bench, 2, &train("dpo", "out", "--profile")).fails(2, &["--profile needs one rank"]);
}

/// Whether the process `id` runs the thread that watches the other ranks.
fn watches(id: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    let name = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
    threads.map(name).any(|name| name.trim() == "ranks")
}

/// Returns the process id of a rank that `mpirun` started.
fn process_of(rank: usize, output: &str) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_rank = |id: &u32| {
        let read = |file: &str| std::fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
        let has = |bytes: Vec<u8>, word: &str| bytes.split(|b| *b == 0).any(|part| part == word.as_bytes());
        has(read("environ"), &format!("OMPI_COMM_WORLD_RANK={rank}")) && has(read("cmdline"), output)
    };
    ids.into_iter().find(is_rank)
}

#[test]
fn kto_adapters_and_bf16_on_two_ranks_agree_with_one() {
    let bench = Bench::new();
    if !has_mpi(&bench) {
        return;
    }
    write_few(&bench);
    // Weights and activations in bf16 have 8 significant bits, so a different order of summation changes the
    // rounding of a few of them. The tolerance is a quarter of a rounding step of a reward of 1, 2^-8. Seen:
    // 2.7e-4 on a processor without units for bf16, less than 1e-4 on one with AVX-512 BF16.
    for (name, method, rest, tolerance) in [
        ("kto", "kto", "", 1e-6),
        ("lora", "dpo", "--use-peft --lora-r 2", 1e-6),
        ("bf16", "reward", "--dtype bf16", 1e-3),
    ] {
        let runs = [1, 2].map(|ranks| format!("{name}{ranks}"));
        let words = runs.each_ref().map(|run| train(method, run, &format!("--max-steps 3 {rest}")));
        bench.run(&words[0]).ok();
        on_ranks(&bench, 2, &words[1]).ok();
        assert_within(&bench, (&runs[0], &runs[1]), tolerance);
    }
}

/// Kills a rank of a run `moment` after all three ranks watch each other and the run has reached `step`.
/// Returns the output of mpirun, and the time from the kill until every rank has ended. Returns `None` if the
/// run ended before the kill.
fn kill_one(
    bench: &Bench,
    (command, name): (&mut Command, &str),
    (rank, step, moment): (usize, u64, Duration),
) -> Option<(std::process::Output, Duration)> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (began, name) = (Instant::now(), bench.at(name).display().to_string());
    let ids: Vec<u32> = loop {
        let all: Vec<u32> = (0..3).filter_map(|rank| process_of(rank, &name)).collect();
        if last_step(&name) >= step && all.len() == 3 && all.iter().all(|&id| watches(id)) {
            break all;
        }
        assert!(began.elapsed() < Duration::from_secs(100), "the ranks did not come to step {step}");
        std::thread::sleep(Duration::from_millis(2));
    };
    std::thread::sleep(moment);
    let killed = Instant::now();
    let signal = Command::new("kill").args(["-9", &ids[rank].to_string()]).stderr(Stdio::null()).status().unwrap();
    let is_there = |id: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        name.contains("mapl")
    };
    while ids.iter().any(is_there) {
        assert!(killed.elapsed() < Duration::from_secs(60), "ranks go on after rank {rank} was killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = killed.elapsed();
    let output = child.wait_with_output().unwrap();
    (signal.success() && !output.status.success()).then_some((output, took))
}

/// Returns the step of the last checkpoint, or 0 if the folder has no checkpoint.
fn last_step(output_dir: &str) -> u64 {
    mapl::train::checkpoint::list(std::path::Path::new(output_dir)).last().map_or(0, |(step, _)| *step)
}

#[test]
fn a_killed_rank_ends_all_with_one_message_and_the_run_resumes_bit_for_bit() {
    let bench = Bench::new();
    if !has_mpi(&bench) {
        return;
    }
    write_few(&bench);
    // The full test kills 20 ranks in one long run, and resumes from the last checkpoint after each kill.
    let (kills, steps) = if full() { (20, 80) } else { (2, 8) };
    let run = |name: &str| {
        train("reward", name, &format!("--max-steps {steps} --save-steps 2")).replace("--eval-steps 3", "")
    };
    on_ranks(&bench, 3, &run("whole")).ok();
    let path = bench.at("killed").display().to_string();
    let mut rng = mapl::rng::Rng::keyed(21, &["killed ranks"]);
    let (mut done, mut longest) = (0, Duration::ZERO);
    while done < kills {
        let last = last_step(&path);
        let resume = if last > 0 { " --resume-from-checkpoint true" } else { "" };
        // Kills a random rank up to half a second after `step`. That step is 0, 2 or 4 steps after the last
        // checkpoint; checkpoints are written every 2 steps.
        let (rank, step) = (rng.below(3), last + 2 * rng.below(3) as u64);
        let moment = Duration::from_millis(rng.below(500) as u64);
        let mut command = mpirun(&bench, "-n 3");
        command.arg(env!("CARGO_BIN_EXE_mapl")).args(format!("{}{resume}", run(&path)).split_whitespace());
        let Some((output, took)) = kill_one(&bench, (&mut command, "killed"), (rank, step, moment)) else { break };
        (done, longest) = (done + 1, longest.max(took));
        let err = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code();
        println!("kill {done}: rank {rank} {moment:?} after step {step}: all ended after {took:?}, code {code:?}");
        assert!(took < Duration::from_secs(10), "{took:?}\n{err}");
        assert!(code.is_some_and(|code| code != 0), "{code:?}\n{err}");
        assert_eq!(err.matches("error:").count(), 1, "{err}");
        let said = err.lines().find(|line| line.starts_with("error:")).unwrap();
        assert!(said.contains(&format!("rank {rank} of 3 on ")) && said.contains("was killed"), "{err}");
        assert!(said.contains("last checkpoint: ") || said.contains("no checkpoint has been written"), "{err}");
        if step > last {
            // The resumed run has made a step, so its manifest exists. Rank 0 records there why the run
            // ended, unless rank 0 was killed.
            let run: Value = serde_json::from_slice(&bench.bytes("killed/run.json")).unwrap();
            let recorded = (run["status"].as_str().unwrap(), run["message"].as_str());
            match rank {
                0 => assert_eq!(recorded, ("running", None)),
                _ => assert_eq!(recorded, ("failed", said.strip_prefix("error: "))),
            }
        }
    }
    println!("{done} kills; the longest end took {longest:?}");
    assert!(done > 0 && (done == kills || !full()), "the run was over after {done} kills");
    let resume = if last_step(&path) == 0 { "--overwrite-output-dir" } else { "--resume-from-checkpoint true" };
    on_ranks(&bench, 3, &format!("{} {resume}", run(&path))).ok();
    assert!(bench.bytes("killed/model.safetensors") == bench.bytes("whole/model.safetensors"), "weights differ");
    assert_eq!(bench.metrics("killed", "train"), bench.metrics("whole", "train"));
}
