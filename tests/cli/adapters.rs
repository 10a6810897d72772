//! Tests of adapter folders as models: commands that read a model merge the adapter, and `export --merge`
//! writes a model folder without adapters.

use std::path::Path;

use mapl::model::adapter::{AdapterConfig, Targets, TaskType, write_adapter};
use mapl::model::config::{ModelConfig, StoredDtype};
use mapl::rng::Rng;
use serde_json::{Value, json};

use crate::workbench::Bench;

/// Writes an adapter on a model of the bench, with values as large as typical weights.
pub(crate) fn adapter(bench: &Bench, folder: &str, base: &str, named: &str, reward: bool) {
    std::fs::create_dir_all(bench.at(folder)).unwrap();
    let task = if reward { TaskType::SeqCls } else { TaskType::CausalLm };
    let targets = Targets::Names(vec!["q_proj".into(), "down_proj".into()]);
    let mut config = AdapterConfig::new(Some(named.into()), task, (4, 8.0), targets);
    let mut model = ModelConfig::read(&bench.at(base)).unwrap();
    if reward {
        config.modules_to_save = vec!["score".into()];
        model = model.into_reward(3).unwrap();
    }
    let tensors = config.tensors(&model).unwrap();
    write_adapter(&bench.at(folder), &config, &tensors, StoredDtype::F32, &mut |tensor, offset, out| {
        let mut rng = Rng::keyed(7, &[&tensor.name, &offset.to_string()]);
        out.iter_mut().for_each(|x| *x = 0.1 * rng.normal() as f32);
        Ok(())
    })
    .unwrap();
}

fn bench() -> Bench {
    let bench = Bench::new();
    adapter(&bench, "lora", "model", "model", false);
    adapter(&bench, "reward-lora", "model", "model", true);
    bench
}

/// Returns the rows that `score` writes, and its stderr.
fn scores(bench: &Bench, words: &str) -> (Vec<Value>, String) {
    let done = bench.run(&format!("score {words} --input pairs.jsonl --output scores.jsonl")).ok();
    (bench.rows("scores.jsonl"), done.err)
}

fn export(bench: &Bench, words: &str) -> String {
    bench.run(&format!("export --merge {words}")).ok().err
}

#[test]
fn an_adapter_folder_is_scored_as_its_base_with_the_adapter() {
    let bench = bench();
    let (of_base, _) = scores(&bench, "--model model");
    let (merged, said) = scores(&bench, "--model lora");
    assert!(said.contains("the adapter lora is merged with its base model: 4 tensors change"), "{said}");
    assert!(said.contains("the tokenizer is that of the base model"), "{said}");
    assert_ne!(merged, of_base);
    export(&bench, "--model lora --output whole --save-dtype f32");
    assert_eq!(scores(&bench, "--model whole").0, merged);
    // A folder that holds an adapter and its base is read as the base with the adapter.
    bench.copy("model", "both");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(bench.at("lora").join(file), bench.at("both").join(file)).unwrap();
    }
    assert_eq!(scores(&bench, "--model both").0, merged);
    let mut config = bench.json("both/adapter_config.json");
    config["base_model_name_or_path"] = json!("org/elsewhere");
    bench.write("both/adapter_config.json", config.to_string());
    let (rows, said) = scores(&bench, "--model both");
    assert_eq!(rows, merged);
    assert!(said.contains("merged with the model in its own folder") && said.contains("org/elsewhere"), "{said}");
}

#[test]
fn a_reward_adapter_is_read_with_its_head_and_its_pad_token() {
    let bench = bench();
    let (merged, said) = scores(&bench, "--model reward-lora");
    assert!(said.contains("5 tensors change"), "{said}");
    assert!(merged.iter().all(|row| row["sequences"][0]["reward"].is_f64()), "{merged:?}");
    export(&bench, "--model reward-lora --output whole --save-dtype f32");
    let config = bench.json("whole/config.json");
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!((&config["pad_token_id"], &config["id2label"]), (&json!(3), &json!({"0": "LABEL_0"})));
    assert_eq!(bench.json("whole/tokenizer_config.json")["pad_token"], "<|pad|>");
    assert!(!bench.at("whole/generation_config.json").exists());
    assert_eq!(scores(&bench, "--model whole").0, merged);
    let command = "eval --model reward-lora --input pairs.jsonl --json";
    let whole = bench.run("eval --model whole --input pairs.jsonl --json").ok().out;
    assert_eq!(bench.run(command).ok().out.replace("reward-lora", "whole"), whole);
}

#[test]
fn every_command_that_reads_a_model_reads_an_adapter() {
    let bench = bench();
    export(&bench, "--model lora --output whole --save-dtype f32");
    let eval = |words: &str| bench.run(&format!("{words} --input pairs.jsonl --json --bootstrap 0")).ok().out;
    let same = |of_adapter: String, of_whole: String| assert_eq!(of_adapter.replace("\"lora\"", "\"whole\""), of_whole);
    same(eval("eval --model lora"), eval("eval --model whole"));
    same(eval("eval --model model --ref-model lora"), eval("eval --model model --ref-model whole"));
    same(eval("compare lora model"), eval("compare whole model"));
    let shown = bench.run("data show --input pairs.jsonl --tokenizer lora --rows 1").ok().out;
    let of_base = bench.run("data show --input pairs.jsonl --tokenizer model --rows 1").ok().out;
    assert_eq!(shown.replace("note: the tokenizer is that of the base model\n", ""), of_base);
    let check = |folder: &str| bench.run(&format!("data check pairs.jsonl --model {folder} --json")).out;
    assert_eq!(check("lora"), check("model"));
}

/// With an update that is too small to change a weight, a run writes the model that it started from.
#[test]
fn training_starts_from_the_merged_model_and_says_so() {
    let bench = bench();
    export(&bench, "--model lora --output whole --save-dtype f32");
    let common = "--train-file pairs.jsonl --max-steps 1 --learning-rate 1e-30 --per-device-train-batch-size 2";
    for method in ["sft", "dpo"] {
        let done = bench.run(&format!("{method} --model lora --output-dir {method} {common}")).ok();
        assert!(done.out.contains("the adapter lora is merged with its base model"), "{}", done.out);
        assert_eq!(bench.bytes(&format!("{method}/model.safetensors")), bench.bytes("whole/model.safetensors"));
        assert!(!bench.at(method).join("adapter_config.json").exists());
        let files = bench.json(&format!("{method}/run.json"))["files"]["model"].to_string();
        for name in ["lora/adapter_config.json", "lora/adapter_model.safetensors", "model/model.safetensors"] {
            assert!(files.contains(name), "{name} in {files}");
        }
    }
    // The reference of the policy is the merged adapter, so the adapter's base must not change either.
    let eval = || bench.run("eval --model dpo --input pairs.jsonl").ok();
    assert!(eval().out.contains("reference: lora (run.json of the policy)"));
    let (kept, mut changed) = (bench.bytes("model/model.safetensors"), bench.bytes("model/model.safetensors"));
    *changed.last_mut().unwrap() ^= 1;
    bench.write("model/model.safetensors", changed);
    assert!(eval().out.contains("the reference lora of this DPO policy has changed since the run"));
    bench.write("model/model.safetensors", kept);
    let done = bench.run(&format!("reward --model reward-lora --output-dir reward {common}")).ok();
    assert!(done.out.contains("merged") && !done.out.contains("drawn from normal"), "{}", done.out);
    export(&bench, "--model reward-lora --output whole-reward --save-dtype f32");
    assert_eq!(bench.bytes("reward/model.safetensors"), bench.bytes("whole-reward/model.safetensors"));
}

#[test]
fn a_run_from_an_adapter_is_resumed_bit_for_bit() {
    let bench = bench();
    let common = "dpo --model lora --train-file pairs.jsonl --save-steps 1 --learning-rate 1e-3 --lr-scheduler-type \
                  constant --per-device-train-batch-size 4";
    bench.run(&format!("{common} --max-steps 2 --output-dir two")).ok();
    bench.run(&format!("{common} --max-steps 1 --output-dir one")).ok();
    let more = format!("{common} --max-steps 2 --output-dir one --resume-from-checkpoint true");
    bench.run(&more).ok();
    assert_eq!(bench.bytes("one/model.safetensors"), bench.bytes("two/model.safetensors"));
    // With a changed adapter, the run is a different one, so it cannot be resumed.
    let mut config = bench.json("lora/adapter_config.json");
    config["lora_alpha"] = json!(9);
    bench.write("lora/adapter_config.json", config.to_string());
    bench.run(&more).fails(6, &["cannot resume a different run", "reference was"]);
}

#[test]
fn tokenizer_and_template_are_those_of_the_adapter_else_of_the_base() {
    let bench = bench();
    bench.write(
        "talk.jsonl",
        concat!(
            r#"{"prompt": [{"role": "user", "content": "ka"}], "chosen": [{"role": "assistant", "content": "lo"}], "#,
            r#""rejected": [{"role": "assistant", "content": "ti"}]}"#,
        ),
    );
    let template = |text: &str| {
        format!(
            "{{% for m in messages %}}{{{{ '{text}' + m.content }}}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{text}' }}}}{{% endif %}}"
        )
    };
    bench.write("model/chat_template.jinja", template("<B>"));
    let show = || bench.run("data show --tokenizer lora --input talk.jsonl --rows 1").ok().out;
    assert!(show().contains("<B>ka<B>"), "{}", show());
    bench.write("lora/chat_template.jinja", template("<A>"));
    assert!(show().contains("<A>ka<A>"), "{}", show());
    bench.copy("tok", "lora");
    bench.write("lora/chat_template.jinja", template("<A>"));
    assert!(show().contains("<A>ka<A>") && !show().contains("of the base"), "{}", show());
    std::fs::remove_file(bench.at("lora/chat_template.jinja")).unwrap();
    let own = show();
    assert!(own.contains("<B>ka<B>") && own.contains("the chat template is that of the base"), "{own}");
    export(&bench, "--model lora --output whole");
    assert_eq!(bench.bytes("whole/chat_template.jinja"), bench.bytes("model/chat_template.jinja"));
}

#[test]
fn an_adapter_can_be_the_reference_of_a_run() {
    let bench = bench();
    export(&bench, "--model lora --output whole --save-dtype f32");
    let run = |reference: &str| {
        let words = format!(
            "dpo --model model --ref-model {reference} --train-file pairs.jsonl --max-steps 2 --learning-rate 1e-3 \
             --output-dir of-{reference}"
        );
        bench.run(&words).ok();
        bench.bytes(&format!("of-{reference}/model.safetensors"))
    };
    assert_eq!(run("lora"), run("whole"));
    let cached = "dpo --model model --ref-model lora --train-file pairs.jsonl --max-steps 2 --learning-rate 1e-3 \
                  --output-dir cached --precompute-ref-log-probs --ref-cache-dir cache";
    bench.run(cached).ok();
    assert_eq!(bench.bytes("cached/model.safetensors"), bench.bytes("of-whole/model.safetensors"));
}

#[test]
fn the_base_is_found_by_folder_by_cache_or_by_flag() {
    let bench = bench();
    let (expected, _) = scores(&bench, "--model lora");
    let name = |base: &str| {
        let mut config = bench.json("lora/adapter_config.json");
        config["base_model_name_or_path"] = json!(base);
        bench.write("lora/adapter_config.json", config.to_string());
    };
    // A relative base path starts at the adapter's folder.
    name("../model");
    assert_eq!(scores(&bench, "--model lora").0, expected);
    name(bench.at("model").to_str().unwrap());
    assert_eq!(scores(&bench, "--model lora").0, expected);
    name("org/base");
    let command = "score --model lora --input pairs.jsonl --output scores.jsonl";
    let empty = ("HF_HUB_CACHE", "no-cache");
    let parts =
        ["lora/adapter_config.json", "org/base", "`hf download org/base --local-dir base`", "--base-model base"];
    bench.run_with(command, empty).fails(6, &parts);
    let repository = bench.at("hub/models--org--base");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), "c0ffee").unwrap();
    bench.copy("model", "hub/models--org--base/snapshots/c0ffee");
    let done = bench.run_with(command, ("HF_HUB_CACHE", bench.at("hub").to_str().unwrap())).ok();
    assert!(done.err.contains("snapshots/c0ffee"), "{}", done.err);
    assert_eq!(bench.rows("scores.jsonl"), expected);
    assert_eq!(scores(&bench, "--model lora --base-model model").0, expected);
    // A policy trained on the adapter is scored with the reference of its run, including the adapter's base.
    bench.run("dpo --model lora --base-model model --train-file pairs.jsonl --max-steps 1 --output-dir policy").ok();
    let done = bench.run_with("eval --model policy --input pairs.jsonl", empty).ok();
    assert!(done.out.contains("reference: lora (run.json of the policy)"), "{}", done.out);
}

#[test]
fn a_base_that_nothing_reads_is_an_error() {
    let bench = bench();
    for words in [
        "score --model model --input pairs.jsonl --output scores.jsonl",
        "eval --model model --input pairs.jsonl",
        "compare model qwen --input pairs.jsonl",
        "sft --model model --train-file pairs.jsonl --output-dir out",
        "data show --tokenizer model --input pairs.jsonl",
        "data check pairs.jsonl --model model",
    ] {
        bench.run(&format!("{words} --base-model model")).fails(2, &["--base-model has no effect"]);
    }
}

#[test]
fn an_exported_folder_is_complete_and_replaces_nothing() {
    let bench = bench();
    let said = export(&bench, "--model lora --output whole");
    assert!(said.contains("the adapter lora is merged with its base model"), "{said}");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert!(bench.at("whole").join(file).is_file(), "{file}");
    }
    assert!(!bench.at("whole/adapter_config.json").exists());
    // Chat template variables in `run.json` are not part of the exported model folder, so a warning names
    // them.
    bench.write("lora/run.json", r#"{"method": "sft", "config": {"chat_template_kwargs": {"style": "terse"}}}"#);
    let said = export(&bench, "--model lora --output another");
    assert!(said.contains("warning: the run of lora gave the chat template {\"style\":\"terse\"}"), "{said}");
    bench.run("export --merge --model lora --output whole").fails(2, &["--output whole", "already holds config.json"]);
    bench.run("export --merge --model lora --output model").fails(2, &["--output model", "already holds"]);
    bench.run("export --merge --model lora --output lora").fails(2, &["--output lora", "adapter_config.json"]);
    bench.run("export --merge --model model --output new").fails(2, &["--model model holds no adapter"]);
    bench.run("export --merge --model none --output new").fails(6, &["none"]);
    bench.run("export --model lora --output new").fails(2, &["--merge"]);
    assert!(!bench.at("new").exists());
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[test]
fn weights_are_saved_in_the_requested_type() {
    let bench = bench();
    export(&bench, "--model lora --output wide");
    export(&bench, "--model lora --output narrow --save-dtype bf16");
    export(&bench, "--model lora --output half --save-dtype f16");
    for (folder, dtype) in [("wide", "float32"), ("narrow", "bfloat16"), ("half", "float16")] {
        let config = bench.json(&format!("{folder}/config.json"));
        assert_eq!((&config["dtype"], &config["torch_dtype"]), (&json!(dtype), &json!(dtype)), "{folder}");
    }
    let file = |folder: &str| size(&bench.at(folder).join("model.safetensors"));
    assert!(3 * file("narrow") < 2 * file("wide"), "{} {}", file("narrow"), file("wide"));
    // The headers differ only in the names of the types, which differ by a letter.
    assert!(file("half").abs_diff(file("narrow")) < 64);
    // By default, the exported model has the data type of the base.
    adapter(&bench, "on-narrow", "narrow", "narrow", false);
    export(&bench, "--model on-narrow --output again");
    assert_eq!((file("again"), bench.json("again/config.json")["dtype"].clone()), (file("narrow"), json!("bfloat16")));
    // After training, the final folder has the requested type, and a resumed run continues bit for bit.
    let common = "sft --model model --train-file pairs.jsonl --save-steps 1 --learning-rate 1e-3 --save-dtype bf16 \
                  --lr-scheduler-type constant";
    bench.run(&format!("{common} --max-steps 2 --output-dir two")).ok();
    assert_eq!((file("two"), bench.json("two/config.json")["dtype"].clone()), (file("narrow"), json!("bfloat16")));
    assert!(file("two/checkpoint-2") == file("wide"), "{}", file("two/checkpoint-2"));
    assert_eq!(bench.json("two/checkpoint-2/config.json")["dtype"], "float32");
    bench.run(&format!("{common} --max-steps 1 --output-dir one")).ok();
    bench.run(&format!("{common} --max-steps 2 --output-dir one --resume-from-checkpoint true")).ok();
    for file in ["checkpoint-2/model.safetensors", "model.safetensors"] {
        assert_eq!(bench.bytes(&format!("one/{file}")), bench.bytes(&format!("two/{file}")), "{file}");
    }
    bench.run("score --model two --input pairs.jsonl --output scores.jsonl").ok();
}

#[test]
fn outputs_spare_the_base_of_an_adapter() {
    let bench = bench();
    let before = bench.bytes("model/model.safetensors");
    let file = "model/model.safetensors";
    for words in [
        format!("score --model lora --input pairs.jsonl --output {file}"),
        format!("eval --model lora --input pairs.jsonl --output {file}"),
        format!("compare lora qwen --input pairs.jsonl --output {file}"),
        format!("data check pairs.jsonl --model lora --output {file}"),
        "sft --model lora --train-file pairs.jsonl --output-dir model --overwrite-output-dir".to_owned(),
        "dpo --model qwen --ref-model lora --train-file pairs.jsonl --output-dir model --overwrite-output-dir"
            .to_owned(),
    ] {
        bench.run(&words).fails(2, &["write over", "the base of an adapter"]);
    }
    assert_eq!(bench.bytes(file), before);
}

#[test]
fn a_failed_export_leaves_nothing() {
    let bench = bench();
    let mut bytes = bench.bytes("lora/adapter_model.safetensors");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    bench.write("lora/adapter_model.safetensors", bytes);
    let before = bench.listing();
    bench.run("export --merge --model lora --output whole").fails(6, &["adapter_model.safetensors", "must be finite"]);
    assert_eq!(bench.listing(), before);
}

#[test]
fn a_whole_model_is_not_written_into_an_adapter_folder() {
    let bench = bench();
    let words = "sft --model model --train-file pairs.jsonl --max-steps 1 --output-dir lora";
    bench.run(words).fails(2, &["lora", "adapter_config.json of another model"]);
    bench.run(&format!("{words} --overwrite-output-dir")).ok();
    assert!(!bench.at("lora/adapter_config.json").exists() && !bench.at("lora/adapter_model.safetensors").exists());
    bench.run("score --model lora --input pairs.jsonl --output scores.jsonl").ok();
}
