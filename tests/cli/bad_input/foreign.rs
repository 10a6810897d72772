//! Text from files in terminal output: control characters are escaped, long values are cut with a count, and
//! an error names the file at fault.

use serde_json::json;

use crate::workbench::Bench;

/// Text that clears the screen, sets a colour by a C1 character, and reverses the order of a line.
const ACTING: &str = "\u{1b}[2Jx\u{9b}31m\u{202e}y\u{7f}";

fn assert_plain(text: &str, words: &str) {
    let acts = |c: char| (c.is_control() && c != '\n' && c != '\t') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(acts), "{words}: {text:?}");
}

#[test]
fn nothing_from_a_file_acts_on_the_terminal() {
    let bench = Bench::new();
    let row = |id: &str, chosen: &str| {
        json!({"id": id, "prompt": format!("Name a bird {ACTING}"), "chosen": chosen, "rejected": "no", ACTING: 1})
            .to_string()
    };
    bench.write("rows.jsonl", (0..6).map(|i| row(&format!("{i}{ACTING}"), "a wren") + "\n").collect::<String>());
    bench.write("bad.jsonl", row(ACTING, "") + "\n");
    let named = format!("{ACTING}.jsonl");
    std::fs::copy(bench.at("bad.jsonl"), bench.at(&named)).unwrap();
    std::fs::copy(bench.at("rows.jsonl"), bench.at(&format!("r{named}"))).unwrap();
    for words in [
        "data build --input rows.jsonl --output b.jsonl",
        "data show --input rows.jsonl --tokenizer tok",
        "data check rows.jsonl",
        "data check NAMED",
        "dpo --model model --train-file rows.jsonl --output-dir out --max-steps 1 --overwrite-output-dir",
        "dpo --model model --train-file rNAMED --output-dir out --max-steps 1 --overwrite-output-dir",
        "eval --model model --input rows.jsonl --bootstrap 0",
        "dpo --model model --train-file bad.jsonl --output-dir out",
        "data build --input NAMED --output b.jsonl",
        "score --model NAMED --input rows.jsonl --output s.jsonl",
    ] {
        let done = bench.run(&words.replace("NAMED", &named));
        assert_plain(&done.out, words);
        assert_plain(&done.err, words);
    }
    bench.run("data build --input bad.jsonl --output b.jsonl").fails(3, &[r"(id \u{1b}[2Jx\u{9b}31m\u{202e}y\u{7f})"]);
    // Result files keep the unescaped text.
    bench.run("score --model model --input rows.jsonl --output s.jsonl").ok();
    assert_eq!(bench.rows("s.jsonl")[0]["id"], format!("0{ACTING}"));
    // `watch` escapes text from a run's log too.
    let event = json!({"schema": 1, "kind": "event", "step": 1, "event": ACTING, ACTING: "x"});
    bench.write(
        "out/metrics.jsonl",
        format!("{}{event}\n", String::from_utf8(bench.bytes("out/metrics.jsonl")).unwrap()),
    );
    let done = bench.run("watch out --once").ok();
    assert_plain(&done.out, "watch");
    assert!(done.out.contains(r"event \u{1b}[2Jx"), "{}", done.out);
}

#[test]
fn long_values_are_cut_with_a_count() {
    let bench = Bench::new();
    let long = "q".repeat(5000);
    let row = json!({"id": long, "prompt": "p", "chosen": "", "rejected": "no", long.clone(): 1}).to_string();
    bench.write("bad.jsonl", &row);
    let done = bench.run("data build --input bad.jsonl --output b.jsonl");
    assert!(done.err.len() < 1000, "{}", done.err);
    done.fails(3, &["qqq... (5000 characters)", "is empty"]);
    bench.write("bad.jsonl", row.replace("\"chosen\":\"\"", "\"chosen\":\"yes\""));
    let done = bench.run("data build --input bad.jsonl --output b.jsonl").ok();
    assert!(done.out.contains("keys not used: qqq") && done.out.contains("qqq... (5000 characters)"), "{}", done.out);
    assert!(done.out.len() < 4500, "{}", done.out);
    bench.write("model/tokenizer_config.json", json!({"eos_token": long}).to_string());
    let done = bench.run("score --model model --input pairs.jsonl --output s.jsonl");
    assert!(done.err.len() < 1000, "{}", done.err);
    done.fails(6, &["qqq... (5000 characters)", "is not in the vocabulary"]);
}

#[test]
fn an_error_blames_the_file_with_the_fault() {
    let bench = Bench::new();
    let score = |model: &str| bench.run(&format!("score --model {model} --input pairs.jsonl --output s.jsonl"));
    bench.copy("model", "bad");
    let mut config = bench.json("bad/tokenizer_config.json");
    config.as_object_mut().unwrap().remove("eos_token");
    bench.write("bad/tokenizer_config.json", config.to_string());
    for (value, why) in [(json!("<|unheard|>"), "not in the vocabulary"), (json!(7), "must be a string")] {
        bench.write("bad/special_tokens_map.json", json!({"eos_token": value}).to_string());
        score("bad").fails(6, &["bad/special_tokens_map.json: eos_token", why]);
        // tokenizer_config.json takes precedence, so an error in it names that file.
        bench.write("bad/tokenizer_config.json", json!({"eos_token": value}).to_string());
        score("bad").fails(6, &["bad/tokenizer_config.json: eos_token", why]);
        bench.write("bad/tokenizer_config.json", config.to_string());
    }
    bench.copy("model", "short");
    let mut config = bench.json("short/config.json");
    config["max_position_embeddings"] = json!(1);
    bench.write("short/config.json", config.to_string());
    score("short").fails(6, &["short/config.json: \"max_position_embeddings\" is 1", "at least 2"]);
}

#[test]
fn a_data_position_beyond_the_data_is_a_damaged_checkpoint() {
    let bench = Bench::new();
    let run = "dpo --model model --train-file pairs.jsonl --output-dir out --max-steps 2 --save-steps 1";
    bench.run(run).ok();
    let mut state = bench.json("out/checkpoint-1/state/state.json");
    state["position"]["offset"] = json!(10_000);
    let text = state.to_string();
    bench.write("out/checkpoint-1/state/state.json", &text);
    let line = format!("state/state.json {}\n", blake3::hash(text.as_bytes()).to_hex());
    bench.write("out/checkpoint-1/DONE", format!("{line}{}\n", blake3::hash(line.as_bytes()).to_hex()));
    bench
        .run(&format!("{run} --resume-from-checkpoint out/checkpoint-1"))
        .fails(6, &["out/checkpoint-1", "group 10000"]);
}

#[test]
fn offsets_beyond_a_weight_file_are_damage_of_that_file() {
    let bench = Bench::new();
    let weights = bench.bytes("model/model.safetensors");
    let size = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + size]).unwrap();
    let name = header.as_object().unwrap().keys().find(|name| *name != "__metadata__").unwrap().clone();
    for offsets in [
        json!([1u64 << 40, (1u64 << 40) + 4]),
        json!([0, 1u64 << 63]),
        json!([u64::MAX - 7, u64::MAX - 3]),
        json!([8, 4]),
    ] {
        let mut changed = header.clone();
        changed[&name]["data_offsets"] = offsets;
        let text = changed.to_string();
        let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &weights[8 + size..]].concat();
        bench.copy("model", "bad");
        bench.write("bad/model.safetensors", bytes);
        for words in ["score --input pairs.jsonl --output s.jsonl", "dpo --train-file pairs.jsonl --output-dir out"] {
            bench.run(&format!("{words} --model bad")).fails(6, &["bad/model.safetensors", "offset"]);
        }
    }
}
