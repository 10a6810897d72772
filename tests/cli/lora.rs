//! `--use-peft`: adapters are trained, saved in PEFT's layout, resumed and scored.

use serde_json::json;

use crate::workbench::Bench;

const STEPS: &str = "--train-file groups.jsonl --per-device-train-batch-size 4 --learning-rate 1e-2";

/// Writes `few.jsonl` with four pairs, which are one batch.
fn few(bench: &Bench) {
    let rows = String::from_utf8(bench.bytes("pairs.jsonl")).unwrap();
    bench.write("few.jsonl", rows.lines().take(4).collect::<Vec<_>>().join("\n"));
}

#[test]
fn adapters_are_saved_and_described_for_every_method() {
    let bench = Bench::new();
    few(&bench);
    for method in ["sft", "reward", "dpo"] {
        let run = format!(
            "{method} --model qwen --output-dir {method} --train-file few.jsonl --max-steps 4 --learning-rate 5e-3 \
             --lr-scheduler-type constant --use-peft --lora-r 4"
        );
        let done = bench.run(&run).ok();
        for part in
            ["LoRA of rank 4, alpha 32, scale alpha / rank = 8, on all-linear", "trained parameters", "PEFT's list for"]
        {
            assert!(done.out.contains(part), "no {part:?} in {}", done.out);
        }
        // For the other methods, TRL's trainers have no dropout by default either.
        assert_eq!(done.out.contains("no dropout; TRL's default"), method == "sft", "{}", done.out);
        assert_eq!(done.out.contains("identity check passed"), method == "dpo", "{}", done.out);
        assert_eq!(done.out.contains("the model without its adapter"), method == "dpo", "{}", done.out);
        assert!(!bench.at(&format!("{method}/model.safetensors")).exists());
        assert!(!bench.at(&format!("{method}/config.json")).exists());
        let config = bench.json(&format!("{method}/adapter_config.json"));
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(32)), "{config}");
        let mut targets: Vec<&str> =
            config["target_modules"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        targets.sort_unstable();
        assert_eq!(targets, ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]);
        assert_eq!(config["peft_type"], "LORA");
        let (task, saved) = if method == "reward" { ("SEQ_CLS", json!(["score"])) } else { ("CAUSAL_LM", json!(null)) };
        assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!(task), &saved));
        let adapter = &bench.json(&format!("{method}/run.json"))["adapter"];
        assert_eq!((&adapter["rank"], &adapter["base"], &adapter["scale"]), (&json!(4), &json!("qwen"), &json!(8.0)));
        let losses: Vec<_> = bench.metrics(method, "train").iter().map(|row| row["loss"].as_f64().unwrap()).collect();
        assert!(losses[3] < losses[0], "{losses:?}");
    }
}

#[test]
fn a_trained_adapter_scores_instead_of_a_model() {
    let bench = Bench::new();
    for method in ["reward", "dpo"] {
        let eval = "--eval-file pairs.jsonl --eval-strategy steps --eval-steps 3";
        bench
            .run(&format!("{method} --model model --output-dir {method} {STEPS} --max-steps 3 --use-peft {eval}"))
            .ok();
        let logged = bench.metrics(method, "eval").pop().unwrap();
        bench.run(&format!("score --model {method} --input pairs.jsonl --output {method}.jsonl")).ok();
        let correct = |row: &serde_json::Value| row["comparisons"][0]["correct"] == true;
        let rows = bench.rows(&format!("{method}.jsonl"));
        let share = rows.iter().filter(|row| correct(row)).count() as f64 / rows.len() as f64;
        let [logged, loss_of_run] =
            ["eval_rewards/accuracies/base", "eval_loss"].map(|key| logged[key].as_f64().unwrap());
        assert!((logged - share).abs() < 1e-6, "{logged} against {share}");
        // The base without the adapter has different logits: 0 for a policy, those of an untrained head for
        // rewards.
        let loss =
            rows.iter().map(|row| (-row["comparisons"][0]["logit"].as_f64().unwrap()).exp().ln_1p()).sum::<f64>();
        let loss = loss / rows.len() as f64;
        assert!((loss_of_run - loss).abs() < 1e-5 && (loss - 2f64.ln()).abs() > 1e-4, "{loss_of_run} against {loss}");
    }
}

#[test]
fn a_resumed_run_of_adapters_is_exact() {
    for (method, device) in [("dpo", "cpu"), ("reward", "reference")] {
        let bench = Bench::new();
        few(&bench);
        let words = format!(
            "{method} --model model --train-file few.jsonl --per-device-train-batch-size 2 --learning-rate 1e-2 --quiet \
             --max-steps 4 --save-steps 2 --use-peft --lora-r 2 --device {device} --output-dir"
        );
        bench.run(&format!("{words} whole")).ok();
        bench.copy("whole", "part");
        for file in ["adapter_model.safetensors", "adapter_config.json", "trainer_state.json"] {
            std::fs::remove_file(bench.at(&format!("part/{file}"))).unwrap();
        }
        std::fs::remove_dir_all(bench.at("part/checkpoint-4")).unwrap();
        bench.run(&format!("{words} part --resume-from-checkpoint true")).ok();
        for file in
            ["adapter_model.safetensors", "checkpoint-4/state/optimizer-rank00000.safetensors", "adapter_config.json"]
        {
            let bytes = |run: &str| bench.bytes(&format!("{run}/{file}"));
            assert!(bytes("whole") == bytes("part"), "{method}: {file} differs");
        }
        // The optimiser state covers only the adapter, so it is far smaller than the model.
        let state = bench.bytes("whole/checkpoint-4/state/optimizer-rank00000.safetensors").len();
        let number = if device == "reference" { 8 } else { 4 };
        let model = number * bench.bytes("model/model.safetensors").len() / 4;
        assert!(state < model, "{state} bytes of state, {model} of the model");
        assert!(!bench.at("whole/checkpoint-4/model.safetensors").exists());
    }
}

#[test]
fn another_base_or_another_adapter_is_not_resumed() {
    let bench = Bench::new();
    let words = format!("sft --model model --output-dir out --quiet {STEPS} --max-steps 2 --save-steps 1");
    bench.run(&format!("{words} --use-peft --lora-r 2")).ok();
    let resume = "--resume-from-checkpoint out/checkpoint-1";
    bench.run(&format!("{words} {resume} --use-peft --lora-r 4")).fails(6, &["rank of adapter was 2, is 4"]);
    bench.run(&format!("{words} {resume}")).fails(6, &["adapter was", "is not set now"]);
    let weights = bench.bytes("model/model.safetensors");
    let mut changed = weights.clone();
    let last = changed.len() - 2;
    changed[last] ^= 1;
    bench.write("model/model.safetensors", changed);
    bench.run(&format!("{words} {resume} --use-peft --lora-r 2")).fails(6, &["base model was"]);
}

#[test]
fn stored_log_probs_of_the_base_change_no_byte_of_a_run_of_adapters() {
    let bench = Bench::new();
    let words = format!("dpo --model qwen {STEPS} --max-steps 3 --use-peft --lora-r 4 --output-dir");
    bench.run(&format!("{words} online")).ok();
    let cache = ("MAPL_CACHE_DIR", bench.at("cache").to_str().unwrap().to_owned());
    for run in ["first", "again"] {
        let done =
            bench.run_with(&format!("{words} {run} --precompute-ref-log-probs"), (cache.0, cache.1.as_str())).ok();
        assert!(done.out.contains("identity check passed"), "{}", done.out);
        let weights = |run: &str| bench.bytes(&format!("{run}/adapter_model.safetensors"));
        assert!(weights("online") == weights(run), "{run}");
    }
}

#[test]
fn the_best_adapter_is_loaded_at_the_end() {
    let bench = Bench::new();
    bench
        .run(&format!(
            "reward --model model --output-dir out {STEPS} --max-steps 4 --use-peft --eval-file pairs.jsonl --save-steps 1 \
             --eval-steps 1 --load-best-model-at-end --save-total-limit 9"
        ))
        .ok();
    let best = bench.json("out/trainer_state.json")["best_global_step"].as_u64().unwrap();
    let best = bench.bytes(&format!("out/checkpoint-{best}/adapter_model.safetensors"));
    assert!(bench.bytes("out/adapter_model.safetensors") == best);
}

#[test]
fn a_whole_model_and_an_adapter_replace_each_other() {
    let bench = Bench::new();
    let words = format!("sft --model model --output-dir out --quiet {STEPS} --max-steps 1 --overwrite-output-dir");
    let whole = ["config.json", "generation_config.json", "model.safetensors"];
    let adapter = ["adapter_config.json", "adapter_model.safetensors"];
    let has = |names: &[&str]| names.iter().filter(|name| bench.at(&format!("out/{name}")).exists()).count();
    for (rest, held) in [("", (3, 0)), ("--use-peft", (0, 2)), ("", (3, 0))] {
        bench.run(&format!("{words} {rest}")).ok();
        assert_eq!((has(&whole), has(&adapter)), held, "{rest:?}");
    }
    bench.run(&format!("{words} --use-peft")).ok();
    bench.copy("out", "adapter");
    let words = words.replace("--model model", "--model adapter");
    bench.run(&format!("{words} --use-peft")).fails(2, &["adapter holds an adapter already", "mapl export --merge"]);
}

#[test]
fn flags_that_cannot_work_are_refused() {
    let bench = Bench::new();
    let fails = |rest: &str, parts: &[&str]| {
        bench.run(&format!("dpo --model model --output-dir out {STEPS} --max-steps 1 {rest}")).fails(2, parts);
        assert!(!bench.at("out").exists());
    };
    fails("--lora-r 8", &["--lora-r has no effect without --use-peft"]);
    fails("--use_rslora", &["--use-rslora has no effect without --use-peft"]);
    fails("--use-peft --lora-r 0", &["--lora-r 0"]);
    fails("--use-peft --lora-dropout 1", &["--lora-dropout 1", "below 1"]);
    let sft = format!("sft --model model --output-dir out {STEPS} --max-steps 1 --use-peft --lora-dropout 0.05");
    bench.run(&sft).fails(2, &["--lora-dropout 0.05", "sft", "use 0"]);
    assert!(!bench.at("out").exists());
    fails(
        "--use-peft --lora-target-modules q_proj c_attn",
        &["c_attn", "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj", "all-linear"],
    );
}

#[test]
fn an_adapter_is_bound_to_the_base_of_its_run() {
    let bench = Bench::new();
    bench.bash("head -n 3 pairs.jsonl > few.jsonl").ok();
    let run = "dpo --model model --train-file few.jsonl --output-dir run --max-steps 1 --learning-rate 1e-2 --use-peft";
    bench.run(run).ok();
    let eval = |rest: &str| bench.run(&format!("eval --input few.jsonl --bootstrap 0 {rest}")).ok();
    let before = eval("--model run --json").out;
    // With `--base-model`, the moved base is used for both the policy and the reference.
    bench.bash("mv model moved").ok();
    let done = eval("--model run --base-model moved");
    assert!(done.out.starts_with("reference: moved (run.json of the policy)"), "{}", done.out);
    assert!(!done.err.contains("was trained on"), "{}", done.err);
    let moved: serde_json::Value = serde_json::from_str(&eval("--model run --base-model moved --json").out).unwrap();
    let before: serde_json::Value = serde_json::from_str(&before).unwrap();
    assert_eq!(moved["semantic"], before["semantic"]);
    // The base in `other/` has different weights of the same shapes.
    let mut weights = bench.bytes("moved/model.safetensors");
    *weights.last_mut().unwrap() ^= 1;
    bench.copy("moved", "other");
    bench.write("other/model.safetensors", weights);
    let warned = |words: &str| {
        let err = bench.run(words).ok().err;
        assert!(
            err.contains("warning: the adapter run was trained on ") && err.contains("base other"),
            "{words}: {err}"
        );
    };
    warned("score --model run --base-model other --input few.jsonl --output s.jsonl");
    warned("export --merge --model run --base-model other --output whole");
    warned("generate --model run --base-model other --input few.jsonl --output g.jsonl --max-new-tokens 1");
    let train = "--train-file few.jsonl --max-steps 1 --base-model other";
    warned(&format!("sft --model run --output-dir a {train}"));
    warned(&format!("dpo --model moved --ref-model run --output-dir b {train}"));
}

#[test]
fn weights_beyond_float16_are_found_at_the_start_and_never_lose_a_run() {
    let bench = Bench::new();
    bench.bash("head -n 3 pairs.jsonl > few.jsonl").ok();
    let run = "sft --train-file few.jsonl --max-steps 1 --save-dtype f16";
    let done = bench.run(&format!("{run} --model model --learning-rate 1e6 --output-dir large")).ok();
    let warning = done.err.lines().find(|line| line.starts_with("warning: tensor")).unwrap_or_default();
    assert!(warning.contains("float16 cannot hold; the model is saved as float32 instead"), "{}", done.err);
    assert!(String::from_utf8_lossy(&bench.bytes("large/model.safetensors")[..4000]).contains("\"F32\""));
    let words = format!("{run} --model large --output-dir again");
    bench.run(&words).fails(2, &["--save-dtype: tensor", "of the start model holds", "use f32 or bf16"]);
    assert!(!bench.at("again").exists());
    bench.run(&format!("{run} --model model --output-dir small")).ok();
    assert!(String::from_utf8_lossy(&bench.bytes("small/model.safetensors")[..4000]).contains("\"F16\""));
}
