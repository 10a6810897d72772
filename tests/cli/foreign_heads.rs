//! Reward models of OpenRLHF, LLaMA-Factory and TRL, and folders for which transformers rebuilds the
//! tokenizer.

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

use crate::adapters::adapter;
use crate::workbench::Bench;

fn edit(bench: &Bench, file: &str, change: impl Fn(&mut Value)) {
    let mut object = bench.json(file);
    change(&mut object);
    bench.write(file, object.to_string());
}

/// Returns the rewards and logits of all rows, and the stderr of `score`.
fn scores(bench: &Bench, model: &str) -> (Vec<f64>, Vec<f64>, String) {
    let done = bench.run(&format!("score --model {model} --input pairs.jsonl --output scores.jsonl")).ok();
    let rows = bench.rows("scores.jsonl");
    let all = |list: &str, key: &str| -> Vec<f64> {
        let entries = rows.iter().flat_map(|row| row[list].as_array().unwrap());
        entries.map(|entry| entry[key].as_f64().unwrap_or_else(|| panic!("{entry}"))).collect()
    };
    (all("sequences", "reward"), all("comparisons", "logit"), done.err)
}

#[track_caller]
fn close(got: &[f64], expected: impl Iterator<Item = f64>) {
    let expected: Vec<f64> = expected.collect();
    assert_eq!(got.len(), expected.len());
    for (a, b) in got.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-6, "{got:?} {expected:?}");
    }
}

#[test]
fn rewards_are_normalised_as_the_configuration_of_openrlhf_says() {
    let bench = Bench::new();
    bench.run("reward --model model --train-file pairs.jsonl --max-steps 2 --learning-rate 1e-2 --output-dir out").ok();
    let (rewards, logits, said) = scores(&bench, "out");
    assert!(!said.contains("warning"), "{said}");
    bench.copy("out", "rlhf");
    std::fs::remove_file(bench.at("rlhf/run.json")).unwrap();
    edit(&bench, "rlhf/config.json", |config| {
        let config = config.as_object_mut().unwrap();
        for key in ["id2label", "label2id", "pad_token_id"] {
            config.shift_remove(key);
        }
        config.insert("architectures".into(), json!(["RewardModel"]));
        config.extend([
            ("normalize_reward".to_owned(), json!(true)),
            ("mean".to_owned(), json!(0.25)),
            ("std".to_owned(), json!(0.5)),
        ]);
    });
    let (of_rlhf, of_logits, said) = scores(&bench, "rlhf");
    assert!(said.contains("OpenRLHF") && said.contains("(reward - 0.25) / 0.5"), "{said}");
    close(&of_rlhf, rewards.iter().map(|r| (r - 0.25) / 0.5));
    close(&of_logits, logits.iter().map(|l| l / 0.5));
    let margin = |model: &str| {
        let text = bench.run(&format!("eval --model {model} --input pairs.jsonl --json --bootstrap 0")).ok().out;
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let (own, other) = (margin("out"), margin("rlhf"));
    assert!(own["semantic"]["accuracy"].is_f64(), "{own}");
    assert_eq!(own["semantic"]["accuracy"], other["semantic"]["accuracy"]);
    let mean = |result: &Value| result["scores"]["chosen"]["mean"].as_f64().unwrap();
    close(&[mean(&other)], [(mean(&own) - 0.25) / 0.5].into_iter());
    // More training changes the rewards, so the written model has no mean and deviation.
    let words = "reward --model rlhf --train-file pairs.jsonl --max-steps 1 --learning-rate 1e-30 --output-dir next";
    let done = bench.run(words).ok();
    assert!(done.out.contains("\"mean\" and \"std\" of the start model's rewards are left out"), "{}", done.out);
    let config = bench.json("next/config.json");
    assert!(config.get("mean").is_none() && config.get("normalize_reward").is_none(), "{config}");
    assert_eq!(
        (&config["architectures"], &config["pad_token_id"]),
        (&json!(["LlamaForSequenceClassification"]), &json!(3))
    );
    close(&scores(&bench, "next").0, rewards.iter().copied());
}

/// Writes a value head next to a language model, as LLaMA-Factory does.
fn value_head(bench: &Bench, folder: &str, bias: f32) {
    let weight: Vec<u8> = (0..32).flat_map(|i| (0.1 * (i as f32 - 15.0)).to_le_bytes()).collect();
    let bias = bias.to_le_bytes();
    let tensors = [
        ("v_head.summary.weight", TensorView::new(Dtype::F32, vec![1, 32], &weight).unwrap()),
        ("v_head.summary.bias", TensorView::new(Dtype::F32, vec![1], &bias).unwrap()),
    ];
    serialize_to_file(tensors, None, &bench.at(folder).join("value_head.safetensors")).unwrap();
}

#[test]
fn a_folder_with_a_value_head_is_a_reward_model_and_no_language_model() {
    let bench = Bench::new();
    bench.copy("model", "factory");
    value_head(&bench, "factory", 0.0);
    let (without, logits, said) = scores(&bench, "factory");
    assert!(said.contains("value head") && said.contains("v_head.summary.weight"), "{said}");
    assert!(without.iter().any(|reward| reward.abs() > 1e-3), "{without:?}");
    value_head(&bench, "factory", 1.5);
    let (with, same, said) = scores(&bench, "factory");
    assert!(said.contains("v_head.summary.bias") && said.contains("added to every reward"), "{said}");
    close(&with, without.iter().map(|reward| reward + 1.5));
    close(&same, logits.into_iter());
    let words = "--train-file pairs.jsonl --max-steps 1 --learning-rate 1e-30 --output-dir out";
    for method in ["sft", "dpo"] {
        bench.run(&format!("{method} --model factory {words}")).fails(6, &["factory", "holds a reward model"]);
    }
    let done = bench.run(&format!("reward --model factory {words}")).ok();
    assert!(!done.out.contains("drawn from normal"), "{}", done.out);
    close(&scores(&bench, "out").0, without.into_iter());
    // After LoRA, LLaMA-Factory leaves the head in the adapter's folder.
    adapter(&bench, "lora", "model", "model", false);
    value_head(&bench, "lora", 1.5);
    let (merged, _, said) = scores(&bench, "lora");
    assert!(said.contains("the adapter lora is merged") && said.contains("v_head.summary.weight"), "{said}");
    assert!(merged.iter().zip(&with).any(|(a, b)| (a - b).abs() > 1e-3), "{merged:?}");
    bench.run("export --merge --model lora --output whole").fails(6, &["lora", "a reward head with a bias"]);
    assert!(!bench.at("whole").exists());
    // First the head is missing, then it is in a format that cannot be read.
    std::fs::rename(bench.at("factory/value_head.safetensors"), bench.at("value_head.bin")).unwrap();
    bench.run("score --model factory --input pairs.jsonl --output scores.jsonl").ok();
    assert!(bench.rows("scores.jsonl")[0]["sequences"][0]["logp"].is_f64());
    std::fs::rename(bench.at("value_head.bin"), bench.at("factory/value_head.bin")).unwrap();
    let words = "score --model factory --input pairs.jsonl --output scores.jsonl";
    bench.run(words).fails(6, &["value_head.bin", "pickled"]);
}

#[test]
fn a_tokenizer_that_transformers_rebuilds_is_a_warning_that_names_both() {
    let bench = Bench::new();
    let commands = |folder: &str| {
        [
            format!("data show --tokenizer {folder} --input pairs.jsonl --rows 1"),
            format!("data check pairs.jsonl --model {folder}"),
            format!("sft --model {folder} --train-file pairs.jsonl --max-steps 1 --output-dir out-{folder}"),
        ]
    };
    let warned = |words: &str| bench.run(words).err.contains("warning: transformers 5 loads the tokenizer");
    // Tokenizers trained by mapl split text as Qwen2's do, so there is no warning.
    assert!(!commands("qwen").iter().any(|words| warned(words)));
    for folder in ["qwen", "model"] {
        bench.copy(folder, &format!("bytes-{folder}"));
        edit(&bench, &format!("bytes-{folder}/tokenizer.json"), |tokenizer| {
            tokenizer["pre_tokenizer"] =
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        });
    }
    for words in commands("bytes-qwen") {
        let said = bench.run(&words).err;
        let parts = [
            "warning: transformers 5",
            "bytes-qwen as Qwen2Tokenizer",
            "NFC, then Split(",
            "holds NFC, then ByteLevel",
        ];
        assert!(parts.iter().all(|part| said.contains(part)), "{words}: {said}");
    }
    // transformers loads the tokenizer.json of a Llama folder unchanged, so there is no warning.
    assert!(!commands("bytes-model").iter().any(|words| warned(words)));
}
