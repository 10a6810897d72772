//! Losses that are not finite: the update is skipped and counted. A run with too many skipped updates
//! in a row, with a skipped last update, or with weights that are not finite ends with exit code 4
//! and names the last checkpoint known to be good. Scores that are not finite are counted.

use serde_json::{Value, json};

use crate::workbench::Bench;

/// Writes `good` ordinary rows, then `bad` rows with a loss that exceeds f32, then `more` ordinary ones.
fn rows(bench: &Bench, good: usize, bad: usize, more: usize) {
    let mut rows: Vec<Value> = bench.rows("pairs.jsonl");
    rows.truncate(good + bad + more);
    for (i, row) in rows.iter_mut().enumerate() {
        row["id"] = json!(format!("row-{i}"));
        if (good..good + bad).contains(&i) {
            row["comparisons"][0]["margin"] = json!(1e38);
            row["comparisons"][0]["weight"] = json!(1e3);
        }
    }
    let text: Vec<String> = rows.iter().map(Value::to_string).collect();
    bench.write("rows.jsonl", text.join("\n"));
}

/// Arguments of a new run that starts from the checkpoint named in the error.
const AGAIN: &str = "--model out/checkpoint-2 --train-file rows.jsonl --output-dir again";

fn run(command: &str, rest: &str) -> String {
    format!(
        "{command} --model model --train-file rows.jsonl --output-dir out --no-shuffle --per-device-train-batch-size 1 \
         --num-train-epochs 1 --learning-rate 1e-3 --lr-scheduler-type constant --save-steps 1 {rest}"
    )
}

#[test]
fn a_non_finite_step_updates_nothing_and_is_counted() {
    let bench = Bench::new();
    rows(&bench, 2, 2, 1);
    for command in ["reward", "dpo"] {
        let done = bench.run(&run(command, "--overwrite-output-dir --max-skipped-steps 3"));
        assert_eq!(done.code, Some(0), "{}", done.err);
        assert!(done.err.contains("warning: step 3") && done.err.contains("groups row-2"), "{}", done.err);
        let file = |step: u64, name: &str| bench.bytes(&format!("out/checkpoint-{step}/{name}"));
        let weights = |step: u64| file(step, "model.safetensors");
        assert!(weights(1) != weights(2), "{command}: a finite step must change the weights");
        assert!(weights(2) == weights(3) && weights(3) == weights(4), "{command}: weights changed");
        // The optimiser file also holds the counter of skipped updates, which does change.
        for name in ["m", "v"] {
            let moment = |step: u64| {
                let bytes = file(step, "state/optimizer-rank00000.safetensors");
                safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data().to_vec()
            };
            assert!(moment(1) != moment(2), "{command}: a finite step must change {name}");
            assert!(moment(2) == moment(3) && moment(3) == moment(4), "{command}: {name} changed");
        }
        assert!(weights(4) != weights(5), "{command}: the next finite step must change the weights");
        assert!(bench.bytes("out/model.safetensors") == weights(5));
        let skipped: Vec<Value> =
            bench.metrics("out", "train").iter().map(|row| row["skipped_steps"].clone()).collect();
        assert_eq!(skipped, [0, 0, 1, 2, 2]);
    }
}

#[test]
fn too_many_skipped_updates_stop_the_run_and_name_a_good_checkpoint() {
    let bench = Bench::new();
    rows(&bench, 3, 4, 0);
    bench
        .run(&run("dpo", "--max-skipped-steps 3"))
        .fails(4, &["step 6", "3 updates in a row", "groups row-3", "out/checkpoint-2", "--learning-rate"]);
    assert!(!bench.at("out/model.safetensors").exists(), "a diverged run leaves no final model");
    rows(&bench, 4, 0, 0);
    bench
        .run(&run("dpo", "--max-steps 1").replace("--model model --train-file rows.jsonl --output-dir out", AGAIN))
        .ok();
}

#[test]
fn an_extreme_learning_rate_or_extreme_weights_stop_with_code_4() {
    let bench = Bench::new();
    let words = "reward --model model --train-file groups.jsonl --output-dir out --learning-rate 1e38 --max-steps 9 \
                 --max-skipped-steps 2";
    bench.run(words).fails(4, &["2 updates in a row", "no good checkpoint"]);
    // The weights are finite, but GEMM results overflow.
    let mut bytes = bench.bytes("model/model.safetensors");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for number in bytes[header..].as_chunks_mut::<4>().0 {
        *number = 1e15f32.to_le_bytes();
    }
    bench.write("model/model.safetensors", bytes);
    let before = bench.bytes("model/model.safetensors");
    let dpo = "dpo --model model --train-file groups.jsonl --output-dir big --max-skipped-steps 2 --max-steps 9";
    bench.run(dpo).fails(4, &["the start model scores sequence 0", "NaN"]);
    bench.run(&format!("{dpo} --ref-model none --overwrite-output-dir")).fails(4, &["2 updates in a row"]);
    assert!(!bench.at("big/model.safetensors").exists() && bench.bytes("model/model.safetensors") == before);
}

/// Names of the files and folders in a run folder, except its logs.
fn contents(bench: &Bench, run: &str) -> Vec<String> {
    let entries = std::fs::read_dir(bench.at(run)).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let logs = ["metrics.jsonl", "run.json", "run.yaml", "report.html", "eval_scores.jsonl"];
    names.retain(|name| !logs.contains(&name.as_str()) && !name.starts_with("events."));
    names.sort();
    names
}

#[test]
fn a_run_that_ends_with_skipped_updates_has_diverged() {
    let bench = Bench::new();
    let diverges = |words: &str, parts: &[&str], kept: &[&str]| {
        bench.run(&format!("{words} --overwrite-output-dir")).fails(4, parts);
        assert_eq!(contents(&bench, "out"), kept);
        let manifest = bench.json("out/run.json");
        assert_eq!((&manifest["status"], &manifest["exit_code"]), (&json!("diverged"), &json!(4)));
    };
    for command in ["reward", "dpo"] {
        rows(&bench, 2, 2, 0);
        let good = ["2 updates in a row", "at step 4", "last good checkpoint: out/checkpoint-1;"];
        diverges(&run(command, ""), &good, &["checkpoint-1", "checkpoint-2", "checkpoint-3"]);
        // `--save-total-limit` does not remove the last good checkpoint while updates are skipped.
        diverges(&run(command, "--save-total-limit 2"), &good, &["checkpoint-1", "checkpoint-3"]);
    }
    rows(&bench, 3, 1, 0);
    diverges(
        &run("reward", "--save-total-limit 3"),
        &["the last update had a non-finite loss or gradient at step 4", "last good checkpoint: out/checkpoint-2;"],
        &["checkpoint-1", "checkpoint-2", "checkpoint-3"],
    );
    let words = "reward --model model --train-file groups.jsonl --output-dir out --max-steps 9 --learning-rate 1e10";
    diverges(words, &["8 updates in a row", "at step 9", "no good checkpoint", "--learning-rate"], &[]);
}

#[test]
fn weights_that_are_not_finite_are_never_written() {
    let bench = Bench::new();
    let words =
        "reward --model model --train-file groups.jsonl --output-dir out --overwrite-output-dir --learning-rate";
    for rest in ["--max-steps 1", "--max-steps 3 --save-steps 1"] {
        bench
            .run(&format!("{words} 1e38 {rest}"))
            .fails(4, &["are not finite after step 1, so nothing was saved", "no good checkpoint", "--learning-rate"]);
        assert!(contents(&bench, "out").is_empty());
    }
    // With warm-up, the first update has learning rate 0, so the checkpoint after it is good.
    bench
        .run(&format!("{words} 3e38 --warmup-steps 2 --max-steps 3 --save-steps 1 --save-total-limit 1"))
        .fails(4, &["are not finite after step 2", "last good checkpoint: out/checkpoint-1;"]);
    assert_eq!(contents(&bench, "out"), ["checkpoint-1"]);
    mapl::train::checkpoint::verify(&bench.at("out/checkpoint-1")).unwrap();
}

/// Sets the first element of a tensor in a checkpoint's optimiser state, and updates the checkpoint's hashes.
fn set_moment(bench: &Bench, folder: &str, tensor: &str, value: f32) {
    let (name, state) = ("state/optimizer-rank00000.safetensors", format!("{folder}/state/state.json"));
    let mut bytes = bench.bytes(&format!("{folder}/{name}"));
    let data = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr() as usize;
    let start = data - bytes.as_ptr() as usize;
    bytes[start..start + 4].copy_from_slice(&value.to_le_bytes());
    bench.write(&format!("{folder}/{name}"), &bytes);
    let mut content = bench.json(&state);
    content["files"][name] = json!(blake3::hash(&bytes).to_hex().as_str());
    let content = mapl::files::json_text(&content);
    let line = format!("state/state.json {}\n", blake3::hash(content.as_bytes()).to_hex());
    bench.write(&format!("{folder}/DONE"), format!("{line}{}\n", blake3::hash(line.as_bytes()).to_hex()));
    bench.write(&state, content);
}

#[test]
fn a_resumed_moment_that_is_not_finite_is_named() {
    let bench = Bench::new();
    rows(&bench, 4, 0, 0);
    let more = "--max-steps 4 --resume-from-checkpoint out/checkpoint-2";
    for (tensor, value) in [("m", f32::NAN), ("v", f32::INFINITY), ("control", f32::NAN)] {
        bench.run(&run("reward", "--max-steps 2 --overwrite-output-dir")).ok();
        set_moment(&bench, "out/checkpoint-2", tensor, 0.25);
        mapl::train::checkpoint::verify(&bench.at("out/checkpoint-2")).unwrap();
        set_moment(&bench, "out/checkpoint-2", tensor, value);
        bench.run(&run("reward", more)).fails(
            6,
            &[
                "out/checkpoint-2/state/optimizer-rank00000.safetensors",
                &format!("tensor {tensor} holds"),
                "not finite",
            ],
        );
    }
}

#[test]
fn scores_that_are_not_finite_are_counted_in_every_output() {
    let bench = Bench::new();
    bench.copy("model", "big");
    let mut bytes = bench.bytes("big/model.safetensors");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for number in bytes[header..].as_chunks_mut::<4>().0 {
        *number = 1e15f32.to_le_bytes();
    }
    bench.write("big/model.safetensors", bytes);
    let warning = "warning: big: 48 of 48 scores are NaN or infinite";
    let warned = |words: &str| {
        let done = bench.run(words);
        assert_eq!((done.code, done.err.matches("NaN or infinite").count()), (Some(0), 1), "{}", done.err);
        assert!(done.err.contains("warning: big"), "{}", done.err);
        done
    };
    let done = warned("score --model big --input pairs.jsonl --output scores.jsonl");
    assert!(done.err.contains(warning) && done.out.contains("48 of 48 scores are NaN or infinite"), "{}", done.out);
    assert!(bench.rows("scores.jsonl").iter().all(|row| row["non_finite"] == 2));
    let done = warned("eval --model big --input pairs.jsonl --output big.json --bootstrap 0");
    assert!(done.err.contains(warning) && done.out.contains("score, NaN or infinite: 48"), "{}", done.out);
    assert_eq!(bench.json("big.json")["scores"]["non_finite"], 48);
    // A model with finite scores has no warning, and its count of non-finite scores is 0.
    let done = bench.run("eval --model model --input pairs.jsonl --output good.json --bootstrap 0").ok();
    assert!(!done.err.contains("warning") && !done.out.contains("NaN or infinite"), "{}", done.err);
    assert_eq!(bench.json("good.json")["scores"]["non_finite"], 0);
    for sides in ["good.json big.json", "model big --input pairs.jsonl", "good.json big --input pairs.jsonl"] {
        let done = warned(&format!("compare {sides} --bootstrap 0 --output compared.json"));
        assert!(done.out.contains("scores that are NaN or infinite: A 0, B 48"), "{}", done.out);
        assert_eq!(bench.json("compared.json")["non_finite_scores"], json!({ "a": 0, "b": 48 }));
    }
}
