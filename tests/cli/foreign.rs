//! Tests that model folders are read as by transformers: the pad token of reward models, named chat
//! templates, and settings of the chat template.

use serde_json::{Value, json};

use crate::workbench::Bench;

const TALK: &str = r#"{"prompt": [{"role": "user", "content": "Name it."}], "chosen": [{"role": "assistant", "content": "ka lo"}], "rejected": [{"role": "assistant", "content": "ti"}]}
"#;

/// Chat template whose generation prompt opens the block `<t>` and closes it only if `thinking` is false.
/// With an open block, the prompt is not a prefix of the whole conversation.
const THINKING: &str = "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n<t></t>' + m.content + \
'<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<t>' }}{% if thinking is defined and not thinking %}\
{{ '</t>' }}{% else %}{{ '\n' }}{% endif %}{% endif %}";

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("talk.jsonl", TALK);
    bench
}

fn edit(bench: &Bench, file: &str, key: &str, value: Value) {
    let mut object = bench.json(file);
    object[key] = value;
    bench.write(file, object.to_string());
}

/// Makes the EOS token the pad token, as in many published folders.
fn pad_with_the_end(bench: &Bench, folder: &str) {
    edit(bench, &format!("{folder}/config.json"), "pad_token_id", json!(2));
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        edit(bench, &format!("{folder}/{file}"), "pad_token", json!("<|im_end|>"));
    }
}

fn rewards(bench: &Bench, model: &str) -> (Vec<f64>, String) {
    let done = bench.run(&format!("score --model {model} --input talk.jsonl --output scores.jsonl")).ok();
    let rows = bench.rows("scores.jsonl");
    let sequences = rows.iter().flat_map(|row| row["sequences"].as_array().unwrap().clone());
    (sequences.map(|s| s["reward"].as_f64().unwrap()).collect(), done.err)
}

#[test]
fn a_reward_model_is_not_padded_with_the_token_that_ends_its_texts() {
    let bench = bench();
    pad_with_the_end(&bench, "model");
    let words = "reward --model model --train-file talk.jsonl --max-steps 3 --learning-rate 1e-2";
    let done = bench.run(&format!("{words} --output-dir out")).ok();
    assert!(
        done.out.contains("the pad token of the reward model and its tokenizer is \"<|pad|>\" (3)"),
        "{}",
        done.out
    );
    assert_eq!(bench.json("out/config.json")["pad_token_id"], 3);
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        assert_eq!(bench.json(&format!("out/{file}"))["pad_token"], "<|pad|>");
    }
    let reward = bench.json("out/run.json")["reward"].clone();
    assert_eq!(reward, json!({"pad_token_id": 3, "pad_token": "<|pad|>", "read_at": "last token"}));
    // The weights equal those of a model that had a separate pad token from the start.
    let own = bench_with_own_pad(words);
    assert_eq!(bench.bytes("out/model.safetensors"), own);
}

fn bench_with_own_pad(words: &str) -> Vec<u8> {
    let bench = bench();
    let done = bench.run(&format!("{words} --output-dir out")).ok();
    assert!(!done.out.contains("pad token") && done.err.is_empty(), "{}{}", done.out, done.err);
    bench.bytes("out/model.safetensors")
}

/// transformers reads the reward at the rightmost token that is not the pad token, here the token before the
/// EOS token.
#[test]
fn a_foreign_reward_folder_is_read_where_transformers_reads() {
    let bench = bench();
    bench.run("reward --model model --train-file talk.jsonl --max-steps 3 --learning-rate 1e-2 --output-dir out").ok();
    let (last, quiet) = rewards(&bench, "out");
    assert!(quiet.is_empty(), "{quiet}");
    bench.copy("out", "foreign");
    std::fs::remove_file(bench.at("foreign/run.json")).unwrap();
    pad_with_the_end(&bench, "foreign");
    let (before, note) = rewards(&bench, "foreign");
    assert!(note.contains("last token that is not the pad token \"<|im_end|>\" (2), as in transformers"), "{note}");
    assert!(last.iter().zip(&before).all(|(a, b)| a != b), "{last:?} {before:?}");
    // Training continues with the read position and the pad token of the start model.
    let words = "reward --model foreign --train-file talk.jsonl --max-steps 1 --learning-rate 1e-30 --output-dir next";
    let done = bench.run(words);
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.err.contains("warning: rewards are read at the last token that is not the pad token"), "{}", done.err);
    assert_eq!(bench.json("next/config.json")["pad_token_id"], 2);
    assert_eq!(bench.json("next/run.json")["reward"]["read_at"], "last token that is not the pad token");
    assert_eq!(rewards(&bench, "next").0, before);
    // For a run of an earlier version, which read the last token, the note says how to restore that.
    let mut run = bench.json("out/run.json");
    run.as_object_mut().unwrap().shift_remove("reward");
    bench.write("foreign/run.json", run.to_string());
    let (same, note) = rewards(&bench, "foreign");
    assert!(same == before && note.contains("earlier version") && note.contains("pad_token_id"), "{note}");
}

#[test]
fn a_response_of_padding_cannot_be_trained() {
    let bench = bench();
    bench.run("reward --model model --train-file talk.jsonl --max-steps 1 --output-dir out").ok();
    pad_with_the_end(&bench, "out");
    bench.write("pad.jsonl", TALK.replace("\"ti\"", "\"<|im_end|>\""));
    let words = "reward --model out --train-file pad.jsonl --max-steps 1 --output-dir next";
    bench.run(words).fails(2, &["pad-1", "response 1", "pad token", "remove the row"]);
    bench.run("score --model out --input pad.jsonl --output scores.jsonl").ok();
}

#[test]
fn additional_templates_are_used_for_rows_with_tools() {
    let bench = bench();
    std::fs::create_dir(bench.at("tok/additional_chat_templates")).unwrap();
    let template = "{{ 'TOOLS ' + (tools | tojson) }}{% for m in messages %}{{ ' ' + m.content }}{% endfor %}";
    bench.write("tok/additional_chat_templates/tool_use.jinja", template);
    let tools = TALK.replacen('{', "{\"tools\": [{\"name\": \"rain\"}], ", 1);
    bench.write("tools.jsonl", format!("{tools}{TALK}"));
    let text = bench.run("data show --input tools.jsonl --tokenizer tok").ok().out;
    assert!(text.contains("TOOLS [{\"name\": \"rain\"}] Name it."), "{text}");
    assert!(text.contains("<|im_start|>user\nName it."), "{text}");
    bench.write("tok/additional_chat_templates/tool_use.jinja", "{% if %}");
    bench.run("data show --input tools.jsonl --tokenizer tok").fails(6, &["tool_use.jinja", "does not parse"]);
}

#[test]
fn settings_of_the_template_hold_for_all_rows_and_travel_with_the_run() {
    let bench = bench();
    bench.write("thinking.jinja", THINKING);
    let run = |words: &str, kwargs: Option<&str>| {
        let mut command = bench.command(words);
        if let Some(kwargs) = kwargs {
            command.args(["--chat-template-kwargs", kwargs]);
        }
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let train =
        "dpo --model model --train-file talk.jsonl --chat-template-path thinking.jinja --max-steps 1 --output-dir";
    let (code, _, why) = run(&format!("{train} none"), None);
    assert_eq!(code, Some(3), "{why}");
    assert!(why.contains("reads thinking:") && why.contains("--chat-template-kwargs '{\"thinking\": false}'"), "{why}");
    let (code, _, why) = run(&format!("{train} out"), Some("{\"thinking\": false}"));
    assert_eq!(code, Some(0), "{why}");
    assert_eq!(bench.json("out/run.json")["config"]["chat_template_kwargs"], json!({"thinking": false}));
    // Scoring uses the settings of the run; settings on the command line replace them.
    let score = "score --model out --input talk.jsonl --output scores.jsonl";
    let (code, _, note) = run(score, None);
    assert!(code == Some(0) && note.contains("{\"thinking\":false}"), "{note}");
    assert_eq!(run(score, Some("{}")).0, Some(3));
    assert_eq!(run("eval --model out --input talk.jsonl", None).0, Some(0));
    assert_eq!(run("data show --tokenizer out --input talk.jsonl", None).0, Some(0));
    // Template settings in a row take precedence over those of the run.
    let own = TALK.replacen('{', "{\"chat_template_kwargs\": {\"thinking\": true}, ", 1);
    bench.write("own.jsonl", &own);
    assert_eq!(run("data show --tokenizer out --input own.jsonl", None).0, Some(3));
    // Built groups keep the settings.
    let build = "data build --input talk.jsonl --output built.jsonl --k-min 1 --k-max 1";
    assert_eq!(run(build, Some("{\"thinking\": false}")).0, Some(0));
    assert!(bench.rows("built.jsonl").iter().all(|row| row["chat_template_kwargs"] == json!({"thinking": false})));
    let (code, _, why) = run("data build --input pairs.jsonl --output none.jsonl", Some("{\"thinking\": false}"));
    assert!(code == Some(2) && why.contains("no effect"), "{why}");
    for bad in ["[1]", "x", "{\"messages\": 1}"] {
        assert_eq!(run(score, Some(bad)).0, Some(2), "{bad}");
    }
    // A `run.json` that cannot be used gives a note, and a pipe named `run.json` does not block the command.
    let show = "data show --tokenizer model --input pairs.jsonl --rows 1";
    for (record, note) in [
        (
            "{\"method\": \"sft\", \"config\": {\"chat_template_kwargs\": [1]}}",
            "\"chat_template_kwargs\" is not an object",
        ),
        ("{}", "it names no \"method\""),
    ] {
        bench.write("model/run.json", record);
        assert!(run(show, None).1.contains(note), "{record}");
    }
    let done = bench.bash(&format!("rm model/run.json && mkfifo model/run.json && $MAPL {show}"));
    assert!(done.code == Some(0) && done.out.contains("run.json cannot be read"), "{:?} {}", done.code, done.err);
}

/// Makes `<|pad|>` an ordinary token, and removes the pad token from the folder.
fn without_pad(bench: &Bench, folder: &str) {
    let mut tokenizer = bench.json(&format!("{folder}/tokenizer.json"));
    for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
        if ["<|pad|>", "<|endoftext|>"].iter().any(|content| token["content"] == *content) {
            token["special"] = json!(false);
        }
    }
    bench.write(&format!("{folder}/tokenizer.json"), tokenizer.to_string());
    for file in ["config.json", "tokenizer_config.json", "special_tokens_map.json"] {
        let path = format!("{folder}/{file}");
        let mut object = bench.json(&path);
        let object_map = object.as_object_mut().unwrap();
        object_map.shift_remove("pad_token");
        object_map.shift_remove("pad_token_id");
        bench.write(&path, object.to_string());
    }
}

/// If the tokenizer has no other token for padding, the EOS token is the pad token. Rewards are then read at
/// the token before it, as in transformers.
#[test]
fn without_any_other_token_the_end_token_pads_with_a_notice() {
    let bench = bench();
    without_pad(&bench, "model");
    let words = "reward --model model --train-file talk.jsonl --max-steps 2 --learning-rate 1e-2 --output-dir";
    let done = bench.run(&format!("{words} out"));
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(
        done.out.contains("so the reward model uses the EOS token (2); --pad-token sets a different one"),
        "{}",
        done.out
    );
    assert!(done.err.contains("warning: rewards are read at the last token that is not the pad token"), "{}", done.err);
    assert_eq!(bench.json("out/config.json")["pad_token_id"], 2);
    assert_eq!(bench.json("out/tokenizer_config.json")["pad_token"], "<|im_end|>");
    assert_eq!(bench.json("out/run.json")["reward"]["read_at"], "last token that is not the pad token");
    let (rewards, note) = rewards(&bench, "out");
    assert!(rewards.len() == 2 && note.contains("as in transformers"), "{note}");
    // With `--pad-token` and a token other than the EOS token, rewards are read at the last token.
    bench.run(&format!("{words} named --pad-token <|pad|>")).ok();
    assert_eq!(bench.json("named/config.json")["pad_token_id"], 3);
    assert_eq!(bench.json("named/tokenizer_config.json")["pad_token"], "<|pad|>");
    assert_eq!(bench.json("named/run.json")["reward"]["read_at"], "last token");
}

#[test]
fn a_named_pad_token_must_be_one_and_fit_the_start_model() {
    let bench = bench();
    let run = "reward --model model --train-file talk.jsonl --max-steps 1 --output-dir";
    for (token, part) in [("<|nothing|>", "no such token"), ("ka-lo-mi", "no such token")] {
        bench.run(&format!("{run} out --pad-token {token}")).fails(2, &["--pad-token", token, part]);
    }
    bench
        .run("dpo --model model --train-file talk.jsonl --pad-token <|pad|> --output-dir out")
        .fails(2, &["only reward supports it"]);
    bench.run(&format!("{run} out --pad-token <|pad|>")).ok();
    let next = "reward --model out --train-file talk.jsonl --max-steps 1 --output-dir next --pad-token";
    bench.run(&format!("{next} <|im_end|>")).fails(2, &["stay at the token position at which its head was trained"]);
    bench.run(&format!("{next} <|pad|>")).ok();
}

/// If a reward model has no pad token, rewards are read at the last token of each sequence.
#[test]
fn scoring_needs_no_pad_token() {
    let bench = bench();
    bench.run("reward --model model --train-file talk.jsonl --max-steps 2 --learning-rate 1e-2 --output-dir out").ok();
    let (padded, _) = rewards(&bench, "out");
    without_pad(&bench, "out");
    let (bare, note) = rewards(&bench, "out");
    assert!(bare == padded && note.contains("names no pad_token_id, so rewards are read at the last token"), "{note}");
    // Training continues to read at the last token, so the pad token must not be an EOS token.
    let next = "reward --model out --train-file talk.jsonl --max-steps 1 --learning-rate 1e-30 --output-dir next";
    bench
        .run(&format!("{next} --pad-token <|im_end|>"))
        .fails(2, &["stay at the token position at which its head was trained"]);
    bench.run(&format!("{next} --pad-token <|pad|>")).ok();
    assert_eq!(bench.json("next/config.json")["pad_token_id"], 3);
    assert_eq!(rewards(&bench, "next").0, padded);
}

#[test]
fn settings_of_the_template_are_refused_on_plain_text() {
    let bench = bench();
    for words in [
        "dpo --model model --train-file pairs.jsonl --output-dir out",
        "sft --model model --train-file pairs.jsonl --output-dir out",
        "score --model model --input pairs.jsonl --output scores.jsonl",
        "eval --model model --input pairs.jsonl",
        "data show --tokenizer tok --input pairs.jsonl",
        "data check pairs.jsonl --model model",
    ] {
        let words = format!("{words} --chat-template-kwargs {{\"thinking\":true}}");
        bench.run(&words).fails(2, &["--chat-template-kwargs has no effect: no row is a conversation"]);
    }
    bench.run("data show --tokenizer tok --input talk.jsonl --chat-template-kwargs {\"thinking\":true}").ok();
}

#[test]
fn probes_say_what_they_leave_out() {
    let bench = bench();
    let tools = TALK.replacen('{', "{\"tools\": [{\"name\": \"rain\"}], ", 1);
    bench.write("tools.jsonl", format!("{tools}{TALK}"));
    let out = bench.run("eval --model model --input tools.jsonl --prompt-blindness --ref-model none").ok().out;
    assert!(out.contains("empty prompts: 1 row has tools, which an empty prompt leaves out"), "{out}");
    let out = bench.run("eval --model model --input talk.jsonl --prompt-blindness --ref-model none").ok().out;
    assert!(!out.contains("tools"), "{out}");
}
