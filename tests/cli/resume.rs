//! Resuming: a run that stops and resumes equals an uninterrupted run.

use crate::workbench::Bench;

fn dpo(rest: &str) -> String {
    format!("dpo --model model --output-dir out --quiet --gradient-accumulation-steps 2 {rest}")
}

/// Removes all state after a checkpoint, as if the run had been killed right after saving it.
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
fn six_steps_equal_three_steps_and_a_resume_on_the_cpu() {
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
fn a_resumed_run_with_groups_redrawn_per_epoch_is_exact() {
    let bench = Bench::new();
    let run = "--train-file pairs.jsonl --objective mapl --redraw epoch --k-max 1 --per-device-train-batch-size 6 \
               --max-steps 5 --save-steps 1 --learning-rate 1e-3";
    same_run(&bench, run, 5, 3);
    let counts: Vec<_> = bench.metrics("out", "train").iter().map(|row| row["num_tokens"].clone()).collect();
    assert!(counts.windows(2).all(|w| w[0] != w[1]));
}

#[test]
fn a_different_run_is_not_resumed_and_changes_no_file() {
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
    let done = bench.bytes("out/checkpoint-3/DONE");
    std::fs::remove_file(bench.at("out/checkpoint-3/DONE")).unwrap();
    bench.run(&run("--max-steps 3 --resume-from-checkpoint out/checkpoint-3")).fails(6, &["not a complete checkpoint"]);
    bench.write("out/checkpoint-3/DONE", done);
    assert!((bench.listing(), bench.bytes("out/metrics.jsonl"), bench.bytes("out/run.json")) == before);

    std::fs::remove_file(bench.at("out/checkpoint-2/state/state.json")).unwrap();
    bench.run(&run(from)).fails(6, &["state.json", "another checkpoint"]);
    let moments = "out/checkpoint-3/state/optimizer-rank00000.safetensors";
    let bytes = bench.bytes(moments);
    bench.write(moments, &bytes[..bytes.len() - 5]);
    let from = "--max-steps 3 --resume-from-checkpoint out/checkpoint-3";
    bench.run(&run(from)).fails(6, &["optimizer-rank00000", "damaged"]);
}

#[test]
fn evaluations_and_several_resumes_change_nothing() {
    let bench = Bench::new();
    let words = |out: &str| {
        format!(
            "reward --model model --train-file groups.jsonl --eval-file pairs.jsonl --output-dir {out} --quiet \
             --per-device-train-batch-size 2 --gradient-accumulation-steps 2 --max-steps 11 --eval-steps 2 \
             --save-steps 3 --logging-steps 1 --learning-rate 1e-3 --warmup-steps 3"
        )
    };
    bench.run(&words("straight")).ok();
    bench.run(&words("out")).ok();
    for checkpoint in [9, 3, 6] {
        forget_after(&bench, checkpoint);
        bench.run(&format!("{} --resume-from-checkpoint out/checkpoint-{checkpoint}", words("out"))).ok();
        for file in ["model.safetensors", "checkpoint-11/state/optimizer-rank00000.safetensors"] {
            assert!(bench.bytes(&format!("out/{file}")) == bench.bytes(&format!("straight/{file}")), "{file}");
        }
        for kind in ["train", "eval"] {
            assert_eq!(bench.metrics("out", kind), bench.metrics("straight", kind), "from {checkpoint}");
        }
    }
    // Each resume drops later events, so only the resumes at steps 3 and 6 are left.
    let marks: Vec<_> = bench.metrics("out", "event").iter().map(|row| row["step"].clone()).collect();
    assert_eq!(marks, [3, 6]);
    let timeless = |run: &str| {
        let mut state = bench.json(&format!("{run}/trainer_state.json"));
        for entry in state["log_history"].as_array_mut().unwrap() {
            let entry = entry.as_object_mut().unwrap();
            entry.remove("time");
            entry.remove("step_seconds");
        }
        state
    };
    assert_eq!(timeless("out"), timeless("straight"));
    // Resumes into a new folder, which gets the events up to the checkpoint.
    bench.run(&format!("{} --resume-from-checkpoint out/checkpoint-6", words("moved"))).ok();
    assert!(bench.bytes("moved/model.safetensors") == bench.bytes("straight/model.safetensors"));
    assert_eq!(bench.metrics("moved", "train"), bench.metrics("straight", "train"));
    bench
        .run(&format!("{} --resume-from-checkpoint out/checkpoint-6", words("straight")))
        .fails(2, &["straight already holds a run"]);
}

#[test]
fn a_resume_with_a_changed_file_names_it() {
    let bench = Bench::new();
    let words = "reward --model model --train-file pairs.jsonl --eval-file pairs.jsonl --output-dir out --objective mapl \
                 --k-max 1 --max-steps 2 --save-steps 1";
    bench.run(words).ok();
    let resume = format!("{words} --resume-from-checkpoint out/checkpoint-1");
    let listing = (bench.listing(), bench.bytes("out/metrics.jsonl"), bench.bytes("out/run.json"));
    let pairs = String::from_utf8(bench.bytes("pairs.jsonl")).unwrap();
    bench.write("fewer.jsonl", pairs.lines().skip(1).collect::<Vec<_>>().join("\n"));
    for (flag, message) in
        [("--train-file pairs.jsonl", "training data was"), ("--eval-file pairs.jsonl", "evaluation data was")]
    {
        bench.run(&resume.replace(flag, &flag.replace("pairs", "fewer"))).fails(6, &["cannot resume", message]);
    }
    bench.run(&format!("{resume} --redraw epoch")).fails(6, &["cannot resume", "construction was"]);
    let change = |file: &str, from: &str, to: &str, message: &str| {
        let before = String::from_utf8(bench.bytes(file)).unwrap();
        assert!(before.contains(from), "{before}");
        bench.write(file, before.replacen(from, to, 1));
        bench.run(&resume).fails(6, &["cannot resume", message]);
        bench.write(file, before);
    };
    change("model/config.json", "\"rms_norm_eps\": 0.00001", "\"rms_norm_eps\": 0.00002", "model config was");
    change("model/tokenizer_config.json", "{", "{ ", "tokenizer was");
    change("model/chat_template.jinja", "{", " {", "chat template was");
    std::fs::remove_file(bench.at("fewer.jsonl")).unwrap();
    assert!((bench.listing(), bench.bytes("out/metrics.jsonl"), bench.bytes("out/run.json")) == listing);
    bench.run(&resume).ok();
}

#[test]
fn a_finished_run_continues_if_the_schedule_allows_it() {
    let bench = Bench::new();
    let run = |out: &str, steps: u64, rest: &str| {
        format!(
            "dpo --model model --train-file groups.jsonl --output-dir {out} --quiet --learning-rate 1e-3 --save-steps 2 \
             --per-device-train-batch-size 5 --max-steps {steps} {rest}"
        )
    };
    let warm = "--lr-scheduler-type constant_with_warmup --warmup-steps 2";
    bench.run(&run("out", 3, warm)).ok();
    bench.run(&run("straight", 7, warm)).ok();
    bench.run(&run("out", 7, &format!("{warm} --resume-from-checkpoint true"))).ok();
    assert!(bench.bytes("out/model.safetensors") == bench.bytes("straight/model.safetensors"));
    assert_eq!(bench.metrics("out", "train"), bench.metrics("straight", "train"));
    let events = bench.metrics("out", "event");
    assert_eq!((events.len(), &events[0]["step"]), (1, &3.into()));
    let in_bf16 = format!("{warm} --resume-from-checkpoint true --dtype bf16");
    let done = bench.run(&run("straight", 8, &in_bf16)).ok();
    assert!(done.err.contains("used --dtype f32 so far and continues with --dtype bf16"), "{}", done.err);
    // A resume into a different folder compares its dtype with the run.json next to the checkpoint.
    let elsewhere = format!("{warm} --resume-from-checkpoint straight/checkpoint-8");
    let done = bench.run(&run("elsewhere", 9, &elsewhere)).ok();
    assert!(done.err.contains("used --dtype bf16 so far and continues with --dtype f32"), "{}", done.err);
    assert!(!done.err.contains("run.json"), "{}", done.err);
    // In bf16, the CPU units selected by `MAPL_CPU_UNITS` affect the bits of the results, so a change causes
    // a note.
    let masked = |run: &str, dtype: &str| {
        let mut command = bench.command(&format!("{run} --dtype {dtype}"));
        let output = command.env("MAPL_CPU_UNITS", "f32").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let note = "MAPL_CPU_UNITS was unset so far in this run and is f32 now";
    let on = |steps| run("straight", steps, &format!("{warm} --resume-from-checkpoint true"));
    assert!(masked(&on(9), "bf16").contains(note));
    assert_eq!(
        bench.json("straight/run.json")["resumes"][1]["variables_before"]["MAPL_CPU_UNITS"],
        serde_json::Value::Null
    );
    assert!(!masked(&on(10), "bf16").contains(note), "the units are those of the part before");
    assert!(!masked(&run("straight", 11, &format!("{warm} --resume-from-checkpoint true")), "f32").contains(note));
    let back = format!("{warm} --resume-from-checkpoint true");
    bench.run(&run("out", 4, &back)).fails(6, &["checkpoint-7", "is after step 7", "ends after step 4"]);
    bench.run(&run("linear", 3, "")).ok();
    let longer = run("linear", 7, "--resume-from-checkpoint true");
    bench
        .run(&longer)
        .fails(6, &["length was 3 steps, is 7 steps", "the learning-rate schedule depends on it", "constant"]);
    bench.run(&run("linear", 3, "--resume-from-checkpoint true")).ok();
}

#[test]
fn a_resume_after_skipped_updates_counts_them() {
    let bench = Bench::new();
    let words = "dpo --model model --train-file groups.jsonl --output-dir out --learning-rate 1e30 --max-steps 9 \
                 --max-skipped-steps 3 --save-steps 1";
    // No update was applied after any of the checkpoints, so none of the checkpoints is known to be good.
    bench.run(words).fails(4, &["3 updates in a row", "step 4", "no good checkpoint"]);
    // The two updates that were skipped before the checkpoint still count after the resume.
    let again = format!("{words} --resume-from-checkpoint true");
    bench.run(&again).fails(4, &["3 updates in a row", "step 4", "no good checkpoint"]);
}
