//! Tests of every model family, from a config.json to trained folders and scores; `pipeline.rs` has Llama and
//! Qwen2 in detail.

use mapl::model::config::Head;
use mapl::model::family::FAMILIES;
use serde_json::json;

use crate::workbench::{Bench, golden};

/// `config.json` of the golden model of a family, for the bench's tokenizer.
fn write_config(bench: &Bench, family: &str) {
    let folder = golden(family.trim_end_matches("_text"));
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["vocab_size"] = bench.json("model/config.json")["vocab_size"].clone();
    if family == "phi3" {
        // No sequence of the pairs has more than 100 tokens.
        config["original_max_position_embeddings"] = json!(100);
    }
    bench.write("config.json", config.to_string());
}

#[test]
fn every_family_is_trained_and_scored() {
    let bench = Bench::new();
    let common = "--train-file pairs.jsonl --per-device-train-batch-size 4 --max-steps 1";
    for family in FAMILIES.into_iter().filter(|family| !["llama", "qwen2"].contains(&family.model_type)) {
        write_config(&bench, family.model_type);
        let run = |name: &str| format!("{}-{name}", family.model_type);
        let (start, sft, reward, dpo) = (run("start"), run("sft"), run("reward"), run("dpo"));
        bench.run(&format!("init --config config.json --tokenizer tok --output-dir {start}")).ok();
        bench.run(&format!("sft --model {start} --output-dir {sft} {common} --learning-rate 1e-2")).ok();
        bench.run(&format!("reward --model {sft} --output-dir {reward} {common} --gradient-checkpointing")).ok();
        bench.run(&format!("dpo --model {sft} --output-dir {dpo} {common} --gradient-checkpointing")).ok();
        if family.model_type == "gemma2" {
            let weighted = format!("dpo --model {sft} --output-dir weighted {common} --use-weighting");
            bench.run(&weighted).fails(2, &["--use-weighting", "final_logit_softcapping"]);
        }
        if family.model_type == "gpt2" {
            // GPT-2's weights are (inputs, outputs), which the adapter's configuration tells PEFT.
            bench.run(&format!("dpo --model {sft} --output-dir adapter {common} --use-peft")).ok();
            assert_eq!(bench.json("adapter/adapter_config.json")["fan_in_fan_out"], true);
            let done = bench.run("score --model adapter --input pairs.jsonl --output scores.jsonl").ok();
            assert!(!done.err.contains("fan_in_fan_out"), "{}", done.err);
        }
        for (folder, head) in [(&sft, Head::LanguageModel), (&reward, Head::Reward), (&dpo, Head::LanguageModel)] {
            let config = bench.json(&format!("{folder}/config.json"));
            assert_eq!(config["architectures"], json!([family.class_of(head)]));
            assert_eq!(config["model_type"], family.model_type);
        }
        for (folder, key) in [(&reward, "reward"), (&dpo, "logp")] {
            bench.run(&format!("score --model {folder} --input pairs.jsonl --output scores.jsonl")).ok();
            let rows = bench.rows("scores.jsonl");
            let values = rows.iter().flat_map(|row| row["sequences"].as_array().unwrap());
            assert!(values.clone().count() > 40 && values.clone().all(|s| s[key].as_f64().unwrap().is_finite()));
            assert!(values.map(|s| s[key].to_string()).collect::<std::collections::BTreeSet<_>>().len() > 20);
        }
    }
}

/// Beyond the original length of a longrope model, a score would depend on the other sequences of its batch.
#[test]
fn longrope_refuses_sequences_beyond_its_original_length() {
    let bench = Bench::new();
    write_config(&bench, "phi3");
    bench.run("init --config config.json --tokenizer tok --output-dir start").ok();
    let command = "score --model start --input pairs.jsonl --output scores.jsonl --ref-model none --max-length 101";
    bench.run(command).fails(2, &["--max-length 101", "original_max_position_embeddings 100"]);
}
