//! Tests of damaged data and models: the exit code is right, the message names the damaged file, and no file
//! is left behind.

use crate::workbench::Bench;

const GOOD: &str = r#"{"prompt": "Say a word.", "chosen": "A fern.", "rejected": "No."}"#;
const TRAIN: [&str; 2] = ["reward", "dpo"];

#[test]
fn bad_rows_are_named_with_file_and_line() {
    let bench = Bench::new();
    let row = |chosen: &str| format!(r#"{{"prompt": "Say a word.", "chosen": {chosen}, "rejected": "No."}}"#);
    let deep = "[".repeat(4000);
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (format!("{GOOD}\n{{\"prompt\": \n").into(), &["bad.jsonl:2"]),
        (
            format!("{GOOD}\n{GOOD}\n{{\"prompt\": \"p\", \"chosen\": \"c\"}}\n").into(),
            &["bad.jsonl:3", "\"rejected\" is missing"],
        ),
        (format!("{GOOD}\n{{\"question\": \"p\"}}\n").into(), &["bad.jsonl:2", "\"question\""]),
        (Vec::new(), &["bad.jsonl", "no rows"]),
        (b"\n\n".to_vec(), &["bad.jsonl", "no rows"]),
        (format!("{}\n", row("\"\"")).into(), &["bad.jsonl:1", "chosen", "empty"]),
        (format!("{GOOD}\n{}\n", row("7")).into(), &["bad.jsonl:2", "chosen", "a number"]),
        ([format!("{GOOD}\n").as_bytes(), b"{\"prompt\": \"\xff\xfe\"}\n"].concat(), &["bad.jsonl:2", "UTF-8"]),
        (format!("{GOOD}\n{}\n", row("\"nul \0 here\"")).into(), &["bad.jsonl:2"]),
        (format!("{GOOD}\n{deep}\n").into(), &["bad.jsonl:2"]),
        (b"\x1f\x8b\x08\x00broken".to_vec(), &["bad.jsonl", "damaged or cut off"]),
        (b"PAR1....".to_vec(), &["bad.jsonl", "Parquet"]),
    ];
    for (content, parts) in cases {
        bench.write("bad.jsonl", content);
        let before = bench.listing();
        for command in TRAIN {
            bench.run(&format!("{command} --model model --train-file bad.jsonl --output-dir out")).fails(3, parts);
        }
        bench.run("data build --input bad.jsonl --output b.jsonl --report r.json").fails(3, parts);
        bench.run("data show --input bad.jsonl --tokenizer tok").fails(3, parts);
        bench.run("score --model model --input bad.jsonl --output s.jsonl").fails(3, parts);
        bench.run("eval --model model --input pairs.jsonl bad.jsonl --output e.json").fails(3, parts);
        bench.run("tokenizer --input bad.jsonl --vocab-size 300 --output-dir t").fails(3, parts);
        assert_eq!(bench.listing(), before);
    }
    bench.write("bad.txt", b"a\nb \xff\n");
    bench.run("tokenizer --input bad.txt --vocab-size 300 --output-dir t").fails(3, &["bad.txt:2", "UTF-8"]);
    bench.write("bad.txt", "\n \n");
    bench.run("tokenizer --input bad.txt --vocab-size 300 --output-dir t").fails(3, &["bad.txt", "no text"]);
    let long = row(&format!("\"{}\"", "fern ".repeat(400)));
    bench.write("bad.jsonl", format!("{GOOD}\n{long}\n"));
    bench
        .run("dpo --model model --train-file bad.jsonl --output-dir out")
        .fails(3, &["bad.jsonl:2", "--max-length 256"]);
    bench.run("score --model model --input bad.jsonl --output s.jsonl").fails(3, &["bad.jsonl:2", "256"]);
    bench.run("dpo --model model --train-file none.jsonl --output-dir out").fails(1, &["none.jsonl"]);
}

#[test]
fn bad_models_are_refused_by_name() {
    let bench = Bench::new();
    let change = |folder: &str, from: &str, to: &str| {
        bench.copy("model", folder);
        let config = String::from_utf8(bench.bytes("model/config.json")).unwrap();
        assert!(config.contains(from), "{from} in {config}");
        bench.write(&format!("{folder}/config.json"), config.replace(from, to));
    };
    change("mamba", "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
    change("shape", "\"hidden_size\": ", "\"hidden_size\": 1");
    bench.copy("model", "text");
    bench.write("text/config.json", "{ not json");
    bench.copy("model", "truncated");
    let weights = bench.bytes("model/model.safetensors");
    bench.write("truncated/model.safetensors", &weights[..weights.len() / 2]);
    bench.copy("model", "empty");
    bench.write("empty/model.safetensors", "");
    bench.copy("model", "bare");
    std::fs::remove_file(bench.at("bare/model.safetensors")).unwrap();
    bench.copy("model", "mute");
    std::fs::remove_file(bench.at("mute/tokenizer.json")).unwrap();
    bench.copy("model", "garbled");
    bench.write("garbled/tokenizer.json", "{\"model\": 3}");
    // The committed models have 160 token ids, fewer than the tokenizer.
    bench.golden("llama", "small");
    let cases: [(&str, &[&str]); 10] = [
        ("nowhere", &["nowhere", "is not a local folder"]),
        ("mamba", &["mamba"]),
        ("shape", &["shape"]),
        ("text", &["text/config.json"]),
        ("truncated", &["truncated/model.safetensors", "is truncated"]),
        ("empty", &["empty/model.safetensors"]),
        ("bare", &["bare", "model.safetensors"]),
        ("mute", &["mute/tokenizer.json", "missing"]),
        ("garbled", &["garbled/tokenizer.json"]),
        ("small", &["small", "token id", "vocabulary has 160"]),
    ];
    let before = bench.listing();
    for (folder, parts) in cases {
        for command in ["sft", "reward", "dpo"] {
            bench.run(&format!("{command} --model {folder} --train-file pairs.jsonl --output-dir out")).fails(6, parts);
        }
        bench.run(&format!("score --model {folder} --input pairs.jsonl --output s.jsonl")).fails(6, parts);
    }
    let dpo = |reference: &str| {
        bench.run(&format!("dpo --model model --ref-model {reference} --train-file pairs.jsonl --output-dir out"))
    };
    dpo("nowhere").fails(6, &["nowhere"]);
    dpo("truncated").fails(6, &["is truncated"]);
    dpo("small").fails(6, &["small", "160"]);
    assert_eq!(bench.listing(), before);
}

#[test]
fn reward_models_stay_reward_models() {
    let bench = Bench::new();
    bench.run("reward --model model --train-file pairs.jsonl --output-dir r --max-steps 1").ok();
    let config = bench.json("r/config.json");
    bench.copy("model", "causal");
    // The folder has a reward model's configuration with a language model's weights, which lack the reward
    // head.
    bench.write("causal/config.json", config.to_string());
    let before = bench.listing();
    for command in ["dpo", "sft"] {
        let words = format!("{command} --model r --train-file pairs.jsonl --output-dir out");
        bench.run(&words).fails(6, &["holds a reward model", "needs a language model"]);
    }
    let words = "dpo --model model --ref-model r --train-file pairs.jsonl --output-dir out";
    bench.run(words).fails(6, &["cannot be the reference"]);
    for command in ["score --output s.jsonl", "eval --output e.json"] {
        bench.run(&format!("{command} --model causal --input pairs.jsonl")).fails(6, &["score.weight"]);
    }
    bench.run("score --model model --ref-model r --input pairs.jsonl --output s.jsonl").fails(6, &["reference"]);
    assert_eq!(bench.listing(), before);
}

#[test]
fn nothing_is_overwritten_without_a_flag() {
    let bench = Bench::new();
    let run = |rest: &str| bench.run(&format!("reward --model model --train-file pairs.jsonl --max-steps 1 {rest}"));
    run("--output-dir out").ok();
    bench.write("file", "x");
    let pairs = bench.bytes("pairs.jsonl");
    let before = (bench.listing(), bench.bytes("out/metrics.jsonl"));
    run("--output-dir out").fails(2, &["already holds a run", "--resume-from-checkpoint", "--overwrite-output-dir"]);
    run("--output-dir model").fails(2, &["is an input of this command"]);
    run("--output-dir ./out/../model --overwrite-output-dir").fails(2, &["is an input of this command"]);
    run("--output-dir qwen").fails(2, &["config.json of another model"]);
    run("--output-dir file").fails(2, &["is a file"]);
    // A run that fails on damaged data before training does not remove the earlier run in its output folder.
    bench.run("reward --model model --train-file file --output-dir out --overwrite-output-dir").fails(3, &["file:1"]);
    bench.run("reward --model tok --train-file pairs.jsonl --output-dir out --overwrite-output-dir").fails(6, &["tok"]);
    run("--output-dir out --overwrite-output-dir --objective rows --base-weight 0").fails(2, &["kinds with weight 0"]);
    bench.run("init --preset quickstart --tokenizer tok --output-dir model").fails(2, &["already holds"]);
    bench.run("tokenizer --input pairs.jsonl --vocab-size 300 --output-dir tok").fails(2, &["already holds"]);
    for words in [
        "data build --input pairs.jsonl --output pairs.jsonl",
        "data build --input pairs.jsonl --output x.jsonl --report ./pairs.jsonl",
        "score --model model --input pairs.jsonl --output pairs.jsonl",
        "eval --model model --input pairs.jsonl --output pairs.jsonl",
    ] {
        bench.run(words).fails(2, &["pairs.jsonl", "is an input"]);
    }
    bench.run("score --model model --input pairs.jsonl --output no/s.jsonl").fails(2, &["folder does not exist"]);
    bench.run("score --model model --input pairs.jsonl --output out").fails(2, &["it is a folder"]);
    assert!((bench.listing(), bench.bytes("out/metrics.jsonl")) == before);
    assert!(bench.bytes("pairs.jsonl") == pairs);
    run("--output-dir out --overwrite-output-dir").ok();
}
