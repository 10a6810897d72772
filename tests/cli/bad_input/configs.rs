//! Model configurations that are invalid or exceed any machine's memory.

use serde_json::{Value, json};

use crate::workbench::Bench;

/// A copy of the bench's model with one key of config.json changed; `null` removes it.
fn with(bench: &Bench, folder: &str, key: &str, value: &Value) {
    bench.copy("model", folder);
    let mut config = bench.json("model/config.json");
    let map = config.as_object_mut().unwrap();
    if value.is_null() {
        assert!(map.remove(key).is_some(), "{key}");
    } else {
        map.insert(key.to_owned(), value.clone());
    }
    bench.write(&format!("{folder}/config.json"), config.to_string());
}

#[test]
fn invalid_configurations_are_refused_by_key() {
    let bench = Bench::new();
    let cases: Vec<(&str, Value, &[&str])> = vec![
        ("num_attention_heads", json!(0), &["num_attention_heads", "from 1"]),
        ("num_attention_heads", json!(3), &["num_attention_heads"]),
        ("num_key_value_heads", json!(3), &["num_key_value_heads", "multiple"]),
        ("vocab_size", json!(1_000_000_000_000_u64), &["vocab_size", "1000000000000"]),
        ("vocab_size", json!(1e30), &["vocab_size"]),
        ("vocab_size", json!("320"), &["vocab_size", "integer"]),
        ("vocab_size", Value::Null, &["vocab_size", "missing"]),
        ("num_hidden_layers", json!(-2), &["num_hidden_layers", "-2"]),
        ("num_hidden_layers", json!(1_000_000), &["num_hidden_layers"]),
        ("num_hidden_layers", json!(1.5), &["num_hidden_layers", "1.5"]),
        ("hidden_size", json!(33), &["hidden_size", "multiple"]),
        ("hidden_size", json!(0), &["hidden_size"]),
        ("intermediate_size", json!([1]), &["intermediate_size"]),
        ("head_dim", json!(5), &["head_dim", "even"]),
        ("head_dim", json!(1 << 20), &["head_dim"]),
        ("rms_norm_eps", json!(0), &["rms_norm_eps", "above 0"]),
        ("rms_norm_eps", json!(-1e-6), &["rms_norm_eps", "above 0"]),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 1e300}), &["rope_theta", "1e15"]),
        ("rope_parameters", json!({"rope_type": "linear", "factor": 0}), &["factor"]),
        ("rope_scaling", json!({"rope_type": "ntk"}), &["\"ntk\"", "linear"]),
        ("max_position_embeddings", json!(0), &["max_position_embeddings"]),
        ("initializer_range", json!(-1), &["initializer_range"]),
        ("model_type", json!("mixtral"), &["\"mixtral\" is not supported", "llama"]),
        ("model_type", json!(7), &["model_type"]),
        ("architectures", json!(["LlamaForTokenClassification"]), &["architectures"]),
        ("pad_token_id", json!(320), &["pad_token_id"]),
        ("hidden_act", json!("relu"), &["hidden_act"]),
    ];
    for (i, (key, value, _)) in cases.iter().enumerate() {
        with(&bench, &format!("c{i}"), key, value);
    }
    bench.copy("model", "nan");
    let text = String::from_utf8(bench.bytes("model/config.json")).unwrap();
    let eps = text.lines().find(|line| line.contains("rms_norm_eps")).unwrap();
    bench.write("nan/config.json", text.replace(eps, "\"rms_norm_eps\": NaN,"));
    bench.copy("model", "deep");
    bench.write("deep/config.json", "{\"a\":".repeat(100_000));
    bench.copy("model", "vast");
    bench.write("vast/config.json", text.replace(eps, "\"rms_norm_eps\": 1e400,"));
    bench.copy("model", "bytes");
    bench.write("bytes/config.json", b"{\"model_type\": \"\xff\"}");
    bench.copy("model", "list");
    bench.write("list/config.json", "[]");
    let before = bench.listing();
    for (i, (_, _, parts)) in cases.iter().enumerate() {
        let parts = [&["config.json"][..], parts].concat();
        bench.run(&format!("dpo --model c{i} --train-file pairs.jsonl --output-dir out")).fails(6, &parts);
        bench.run(&format!("init --config c{i}/config.json --tokenizer tok --output-dir out")).fails(6, &parts);
    }
    for folder in ["nan", "deep", "vast", "bytes", "list"] {
        let words = format!("reward --model {folder} --train-file pairs.jsonl --output-dir out");
        bench.run(&words).fails(6, &[&format!("{folder}/config.json"), "JSON"]);
    }
    assert_eq!(bench.listing(), before);
}

#[test]
fn a_model_too_large_for_memory_ends_with_code_7() {
    let bench = Bench::new();
    let mut config = bench.json("model/config.json");
    for (key, value) in [("hidden_size", 1 << 16), ("intermediate_size", 1 << 18), ("num_hidden_layers", 1)] {
        config[key] = json!(value);
    }
    config["num_attention_heads"] = json!(512);
    config["num_key_value_heads"] = json!(512);
    config["head_dim"] = json!(128);
    bench.write("vast.json", config.to_string());
    let before = bench.listing();
    // The model has 69 billion parameters, and the process is limited to 8 GiB.
    let script = format!(
        "ulimit -v 8388608; exec {} init --config vast.json --tokenizer tok --output-dir out",
        env!("CARGO_BIN_EXE_mapl")
    );
    let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(bench.path()).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(7), "{err}");
    assert!(err.starts_with("error:") && err.contains("cannot allocate") && !err.contains("panicked"), "{err}");
    assert_eq!(bench.listing(), before);
}
