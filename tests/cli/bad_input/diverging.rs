//! Losses that are not finite: the update is skipped and counted. After too many skipped updates
//! the run stops with exit code 4 and names the last checkpoint known to be good.

use serde_json::{Value, json};

use crate::workbench::Bench;

/// Writes `good` ordinary rows, then `bad` rows with a loss that exceeds f32.
fn rows(bench: &Bench, good: usize, bad: usize) {
    let mut rows: Vec<Value> = bench.rows("pairs.jsonl");
    rows.truncate(good + bad);
    for (i, row) in rows.iter_mut().enumerate() {
        row["id"] = json!(format!("row-{i}"));
        if i >= good {
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
    rows(&bench, 2, 2);
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
        assert!(bench.bytes("out/model.safetensors") == file(2, "model.safetensors"));
        let skipped: Vec<Value> =
            bench.metrics("out", "train").iter().map(|row| row["skipped_steps"].clone()).collect();
        assert_eq!(skipped, [0, 0, 1, 2]);
    }
}

#[test]
fn too_many_skipped_updates_stop_the_run_and_name_a_good_checkpoint() {
    let bench = Bench::new();
    rows(&bench, 3, 4);
    bench
        .run(&run("dpo", "--max-skipped-steps 3"))
        .fails(4, &["step 6", "3 updates in a row", "groups row-3", "out/checkpoint-2", "--learning-rate"]);
    assert!(!bench.at("out/model.safetensors").exists(), "a diverged run leaves no final model");
    rows(&bench, 4, 0);
    bench
        .run(&run("dpo", "--max-steps 1").replace("--model model --train-file rows.jsonl --output-dir out", AGAIN))
        .ok();
}

#[test]
fn an_extreme_learning_rate_or_extreme_weights_stop_with_code_4() {
    let bench = Bench::new();
    let words = "reward --model model --train-file groups.jsonl --output-dir out --learning-rate 1e38 --max-steps 9 \
                 --max-skipped-steps 2 --save-steps 1";
    bench.run(words).fails(4, &["2 updates in a row", "no good checkpoint"]);
    // Finite weights with GEMM results that overflow.
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
