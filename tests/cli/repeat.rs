//! Equal runs give equal bytes for any number of threads. The split into micro-batches changes only
//! rounding.

use serde_json::Value;

use crate::workbench::Bench;

fn train(method: &str, output: &str, rest: &str) -> String {
    format!("{method} --model model --train-file groups.jsonl --eval-file pairs.jsonl --output-dir {output} {rest}")
}

#[test]
fn equal_runs_give_equal_bytes_on_any_number_of_threads() {
    let bench = Bench::new();
    for (method, rest) in [
        ("dpo", "--max-steps 5 --learning-rate 1e-3"),
        ("reward", "--max-steps 5 --learning-rate 1e-3"),
        ("sft", "--max-steps 5 --learning-rate 1e-3 "),
    ] {
        let name = |i: usize| format!("{method}-{i}");
        let rest = format!("{rest} --per-device-train-batch-size 3 --gradient-accumulation-steps 2 --save-steps 5");
        for (i, threads) in ["1", "2", "3", "3"].into_iter().enumerate() {
            bench.run_with(&train(method, &name(i), &rest), ("RAYON_NUM_THREADS", threads)).ok();
        }
        for other in [name(1), name(2), name(3)] {
            for file in ["model.safetensors", "checkpoint-5/state/optimizer-rank00000.safetensors"] {
                let bytes = |run: &str| bench.bytes(&format!("{run}/{file}"));
                assert!(bytes(&name(0)) == bytes(&other), "{file} of {other}");
            }
            for kind in ["train", "eval"] {
                let rows = bench.metrics(&name(0), kind);
                assert_eq!(rows, bench.metrics(&other, kind), "{other}");
                assert!(rows.len() >= 2 && rows[0] != rows[1], "{other}");
            }
        }
        assert!(bench.bytes("model/model.safetensors") != bench.bytes(&format!("{method}-0/model.safetensors")));
    }
    let build = |output: &str, threads: &str, seed: u64| {
        let words = format!("data build --input pairs.jsonl --output {output} --data-seed {seed}");
        bench.run_with(&words, ("RAYON_NUM_THREADS", threads)).ok();
        bench.bytes(output)
    };
    assert!(build("a.jsonl", "1", 1) == build("b.jsonl", "2", 1));
    assert!(build("a.jsonl", "1", 1) != build("b.jsonl", "1", 2));
}

fn close(a: &Value, b: &Value, place: &str) {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            // Margins are differences of numbers near 1, so their error is relative to 1.
            assert!((a - b).abs() <= 1e-5 * a.abs().max(b.abs()) + 1e-6, "{place}: {a} and {b}");
        }
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()));
            a.iter().for_each(|(key, value)| close(value, &b[key], &format!("{place} {key}")));
        }
        _ => assert_eq!(a, b, "{place}"),
    }
}

#[test]
fn micro_batches_change_only_rounding() {
    let bench = Bench::new();
    for (method, rate) in [("reward", "1e-4"), ("dpo", "1e-5"), ("sft", "1e-4")] {
        let run = |size: usize, times: usize| {
            let name = format!("{method}-{size}");
            let rest = format!(
                "--per-device-train-batch-size {size} --gradient-accumulation-steps {times} --max-steps 3 \
                 --learning-rate {rate} --lr-scheduler-type constant"
            );
            bench.run(&train(method, &name, &rest)).ok();
            bench.metrics(&name, "train")
        };
        let whole = run(4, 1);
        assert_eq!(whole.len(), 3);
        for split in [run(2, 2), run(1, 4)] {
            for (a, b) in whole.iter().zip(&split) {
                for (key, value) in a.as_object().unwrap() {
                    // After small updates DPO's logits are within rounding of 0, so their signs may differ.
                    // Reward models run the same code that counts signs, and their counts are compared.
                    if method == "dpo" && (key.starts_with("rewards/accuracies") || key.starts_with("ties/")) {
                        continue;
                    }
                    close(value, &b[key], &format!("{method}, step {}, {key}", a["step"]));
                }
            }
        }
        assert!(whole[0]["loss"] != whole[2]["loss"], "{method} does not train");
    }
}

#[test]
fn a_total_batch_size_derives_the_accumulation() {
    let bench = Bench::new();
    let rest = "--max-steps 2 --per_device_train_batch_size 2";
    bench.run(&train("reward", "a", &format!("{rest} --total-batch-size 6"))).ok();
    bench.run(&train("reward", "b", &format!("{rest} --gradient_accumulation_steps 3"))).ok();
    assert_eq!(bench.metrics("a", "train"), bench.metrics("b", "train"));
    assert_eq!(bench.metrics("a", "train")[0]["comparisons/base"], 6.0);
    bench
        .run(&train("reward", "c", &format!("{rest} --total-batch-size 5")))
        .fails(2, &["--total-batch-size 5", "multiple of --per-device-train-batch-size 2"]);
}

/// Id and scores of every row, with all digits of each number.
fn scores(bench: &Bench, model: &str, rows: &[&str]) -> Vec<(String, String)> {
    bench.write("rows.jsonl", rows.join("\n"));
    bench.run(&format!("score --model {model} --input rows.jsonl --output scores.jsonl")).ok();
    let rows = bench.rows("scores.jsonl");
    rows.iter().map(|row| (row["id"].to_string(), row["sequences"].to_string())).collect()
}

#[test]
fn scores_do_not_depend_on_the_other_rows() {
    let bench = Bench::new();
    bench.run(&train("reward", "rewards", "--max-steps 2")).ok();
    let text = String::from_utf8(bench.bytes("groups.jsonl")).unwrap();
    let mut rows: Vec<&str> = text.lines().collect();
    for model in ["model", "rewards"] {
        let together = scores(&bench, model, &rows);
        assert_eq!(together.len(), 24);
        rows.reverse();
        let mut back = scores(&bench, model, &rows);
        back.reverse();
        rows.reverse();
        assert_eq!(together, back, "{model}");
        let mut shuffled: Vec<usize> = (0..24).map(|i| i * 7 % 24).collect();
        let mixed = scores(&bench, model, &shuffled.iter().map(|&i| rows[i]).collect::<Vec<_>>());
        for (row, i) in mixed.into_iter().zip(shuffled.drain(..)) {
            assert_eq!(row, together[i], "{model}");
        }
        for i in [0, 11, 23] {
            assert_eq!(scores(&bench, model, &rows[i..=i]), together[i..=i], "{model}, only row {i}");
        }
    }
}
