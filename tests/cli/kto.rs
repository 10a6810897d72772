//! `mapl kto`: rows with a label, pairs that are split, runs that resume, evaluation and scores of the
//! policy; and the DPO losses that weight tokens and pairs.

use serde_json::json;

use crate::workbench::Bench;

/// A bench with `kto.jsonl`: rows of TRL with a label, from the pairs; every third is undesirable.
fn bench() -> Bench {
    let bench = Bench::new();
    let pairs = bench.rows("pairs.jsonl");
    let rows: Vec<String> = pairs
        .iter()
        .take(10)
        .enumerate()
        .map(|(i, pair)| {
            // `pairs.jsonl` has group rows of one pair, with the better response first.
            let response = &pair["responses"][usize::from(i % 3 == 2)];
            json!({"prompt": pair["prompts"][0], "completion": response, "label": i % 3 != 2}).to_string()
        })
        .collect();
    bench.write("kto.jsonl", rows.join("\n"));
    bench
}

const RUN: &str = "kto --model model --output-dir out --learning-rate 1e-3 --per-device-train-batch-size 4";

#[test]
fn rows_with_a_label_train_and_resume_bit_for_bit() {
    let bench = bench();
    // Ten rows in micro-batches of four: the second update of an epoch has two rows.
    let run = format!("{RUN} --train-file kto.jsonl --gradient-accumulation-steps 2 --max-steps 5 --save-steps 2");
    let out = bench.run(&run).ok().out;
    for part in ["10 responses with a label", "KL = max(0, mean of log pi - log ref", "order of the file"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let (weights, metrics) = (bench.bytes("out/model.safetensors"), bench.metrics("out", "train"));
    assert_eq!(metrics[0]["loss"], 0.5, "policy and reference are equal");
    assert!(metrics[4]["loss"].as_f64().unwrap() < 0.5, "{metrics:?}");
    for name in ["rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "kl"] {
        assert!(metrics[0][name].is_number(), "{name}: {}", metrics[0]);
    }
    assert!(metrics[4]["kl"].as_f64().unwrap() > 0.0, "{}", metrics[4]);
    assert_eq!((&bench.json("out/run.json")["method"], &metrics[0]["comparisons/base"]), (&json!("kto"), &json!(8.0)));

    let resumed = run.replace("--output-dir out", "--output-dir again");
    bench.run(&format!("{resumed} --resume-from-checkpoint out/checkpoint-2")).ok();
    assert!(bench.bytes("again/model.safetensors") == weights, "weights differ");
    assert_eq!(bench.metrics("again", "train"), metrics);
    // Cached reference log-probs give the same bits.
    let cached = run.replace("--output-dir out", "--output-dir cached");
    bench.run(&format!("{cached} --precompute-ref-log-probs --ref-cache-dir refs")).ok();
    assert!(bench.bytes("cached/model.safetensors") == weights, "weights differ with cached log-probs");
}

#[test]
fn pairs_are_split_and_the_policy_is_evaluated_as_trained() {
    let bench = bench();
    bench.bash("head -n 6 pairs.jsonl > six.jsonl").ok();
    let run = format!("{RUN} --max-steps 3 --beta 0.2 --desirable-weight 0.5");
    let out = bench.run(&format!("{run} --train-file six.jsonl --eval-file kto.jsonl --eval-steps 3")).ok().out;
    assert!(out.contains("training: 6 pairs became 12 rows with a label"), "{out}");
    let eval = bench.metrics("out", "eval");
    for name in ["eval_loss", "eval_kl", "eval_rewards/margins", "eval_rewards/accuracies"] {
        assert!(eval[0][name].is_number(), "{name}: {eval:?}");
    }
    let out = bench.run("eval --model out --input pairs.jsonl").ok().out;
    assert!(out.contains("0.2 (log pi - log ref)") && out.contains("--loss-type kto"), "{out}");
    bench.run("score --model out --input pairs.jsonl --output scores.jsonl").ok();
    // A run with `--config out/run.yaml`, the recorded configuration, ends with the same weights.
    bench.run("kto --config out/run.yaml --output-dir twice").ok();
    assert!(bench.bytes("twice/model.safetensors") == bench.bytes("out/model.safetensors"));

    let other =
        format!("{RUN} --train-file kto.jsonl --max-steps 2 --loss-type apo_zero_unpaired --overwrite-output-dir");
    let out = bench.run(&other).ok().out;
    assert!(out.contains("sigmoid(-z) over desirable") && !out.contains("KL"), "{out}");
    assert!(bench.metrics("out", "train")[1]["kl"].is_null());
}

#[test]
fn what_has_no_meaning_for_rows_with_a_label_is_refused() {
    let bench = bench();
    let kto = "kto --model model --output-dir out --train-file kto.jsonl";
    for (words, code, parts) in [
        (format!("{kto} --per-device-train-batch-size 1"), 2, &["--per-device-train-batch-size 1", "at least 2"][..]),
        (format!("{kto} --loss-type sigmoid"), 2, &["one of kto and apo_zero_unpaired"]),
        (format!("{kto} --ref-model none"), 2, &["--ref-model none", "log-ratio"]),
        (format!("{kto} --objective mapl"), 2, &["--objective", "only reward and dpo"]),
        (format!("{kto} --desirable-weight 0 --undesirable-weight 0"), 2, &["both 0"]),
        (kto.replace("kto.jsonl", "groups.jsonl"), 3, &["groups.jsonl", "comparison", "mapl dpo"]),
        (kto.replacen("kto ", "dpo ", 1), 3, &["kto.jsonl:1", "mapl kto"]),
        (kto.replacen("kto ", "sft ", 1), 3, &["kto.jsonl:1", "mapl kto"]),
        (kto.replacen("kto ", "dpo ", 1) + " --loss-type kto", 2, &["`mapl kto --loss-type kto`"]),
        (kto.replacen("kto ", "dpo ", 1) + " --desirable-weight 2", 2, &["--desirable-weight", "only kto supports it"]),
    ] {
        bench.run(&words).fails(code, parts);
    }
    assert!(!bench.at("out").exists());
}

#[test]
fn dpo_weighs_tails_and_pairs_also_with_mapl_groups() {
    let bench = bench();
    let dpo = "dpo --model model --output-dir out --learning-rate 1e-3 --max-steps 2 --per-device-train-batch-size 4";
    let out = bench.run(&format!("{dpo} --train-file groups.jsonl --ld-alpha 0.25 --use-weighting")).ok().out;
    for part in ["beyond the shorter response of a pair times 0.25", "mean(log p - log sum p^2)"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let run = bench.json("out/run.json");
    assert_eq!((&run["config"]["ld_alpha"], &run["config"]["use_weighting"]), (&json!(0.25), &json!(true)));
    let out = bench.run("eval --model out --input pairs.jsonl").ok().out;
    assert!(out.contains("beyond the shorter response of a pair times 0.25"), "{out}");
    for (flags, part) in [
        ("--ld-alpha 1.5", "from 0 to 1"),
        ("--ld-alpha 0.5 --loss-type sigmoid sft", "likelihood"),
        ("--ld-alpha 0.5 --precompute-ref-log-probs", "--precompute-ref-log-probs"),
        ("--use-weighting --loss-type aot", "aot sorts"),
        ("--use-weighting --nll-weight 1", "likelihood"),
        ("--use-weighting --loss-type simpo", "simpo"),
    ] {
        bench.run(&format!("{dpo} --train-file pairs.jsonl --overwrite-output-dir {flags}")).fails(2, &[part]);
    }
    // In a list of responses, one response is compared with several.
    let row = json!({"prompt": "a b", "responses": ["one", "two three", "x y z"], "scores": [3, 2, 1]}).to_string();
    bench.write("list.jsonl", &row);
    let list = format!("{dpo} --train-file list.jsonl --overwrite-output-dir --ld-alpha 0.5");
    bench.run(&list).fails(2, &["compared with several", "--pairs best-worst"]);
    bench.run(&format!("{list} --pairs best-worst")).ok();
    bench.run(&format!("{list} --mix union")).ok();
}

#[test]
fn rows_with_a_label_are_scored_and_evaluated() {
    let bench = bench();
    bench.run(&format!("{RUN} --train-file kto.jsonl --max-steps 2")).ok();
    bench.run("score --model out --input kto.jsonl --output scores.jsonl").ok();
    let rows = bench.rows("scores.jsonl");
    let mut of_label = [Vec::new(), Vec::new()];
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((&row["label"], &row["comparisons"]), (&json!(i % 3 != 2), &json!([])), "{row}");
        let sequence = &row["sequences"][0];
        let reward = 0.1 * (sequence["logp"].as_f64().unwrap() - sequence["ref_logp"].as_f64().unwrap());
        let score = row["score"].as_f64().unwrap();
        assert!((score - reward).abs() < 1e-9 && row["sequences"].as_array().unwrap().len() == 1, "{row}");
        of_label[usize::from(i % 3 != 2)].push(score);
    }
    assert_eq!(of_label.each_ref().map(Vec::len), [3, 7]);

    let out = bench.run("eval --model out --input kto.jsonl --output result.json").ok().out;
    for part in ["0.1 (log pi - log ref)", "desirable          7", "undesirable        3", "AUC", "95 % interval"] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let result = bench.json("result.json");
    let [undesirable, desirable] = &of_label;
    let pairs = desirable.iter().flat_map(|a| undesirable.iter().map(move |b| if a > b { 1.0 } else { 0.0 }));
    let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
    for (name, expected) in [("auc", pairs.sum::<f64>() / 21.0), ("difference", mean(desirable) - mean(undesirable))] {
        let [low, high] = [0, 1].map(|end| result[format!("{name}_interval")][end].as_f64().unwrap());
        let value = result[name].as_f64().unwrap();
        assert!((value - expected).abs() < 1e-9 && low <= value && value <= high, "{name}: {result}");
    }
    assert_eq!((&result["rows"], &result["scores"]["desirable"]["count"]), (&json!(10), &json!(7)));
    assert_eq!(result["observations"]["label"].as_array().unwrap().len(), 10);
    assert_eq!(bench.run("eval --model out --input kto.jsonl --json").ok().out.matches("\"auc\"").count(), 1);

    // Rows with only one label, and a reward model without a reference, can be evaluated.
    bench.bash("grep '\"label\":true' kto.jsonl > good.jsonl").ok();
    let out = bench.run("eval --model out --input good.jsonl").ok().out;
    assert!(out.contains("all rows have the same label") && !out.contains("\nAUC"), "{out}");
    let steps = "--learning-rate 1e-3 --max-steps 1";
    bench.run(&format!("reward --model model --output-dir rm --train-file pairs.jsonl {steps}")).ok();
    bench.run("score --model rm --input kto.jsonl --output scores.jsonl").ok();
    let rows = bench.rows("scores.jsonl");
    assert!(rows.iter().all(|row| row["score"] == row["sequences"][0]["reward"]), "{}", rows[0]);
    assert!(bench.run("eval --model rm --input kto.jsonl").ok().out.contains("AUC"));

    bench.bash("(cat kto.jsonl; echo; cat pairs.jsonl) > mixed.jsonl").ok();
    for (command, code, parts) in [
        ("eval --model out --input mixed.jsonl --mixed-formats", 3, &["mixed.jsonl:11", "no label", "10 rows"][..]),
        ("eval --model out --input kto.jsonl --prompt-blindness", 2, &["--prompt-blindness has no effect", "no pairs"]),
        ("compare out model --input kto.jsonl", 3, &["kto.jsonl:1", "`mapl eval`"]),
        ("compare result.json result.json", 3, &["result.json", "labelled rows", "\"auc\""]),
        ("data build --input kto.jsonl --output built.jsonl", 3, &["unpaired row", "mapl kto"]),
    ] {
        bench.run(command).fails(code, parts);
    }
}
