//! `mapl generate`: input of every kind, output rows, settings and errors.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::workbench::Bench;

const ROWS: &str = r#"{"key": 7, "prompt": "the cat", "kwargs": [{"n": 1.5}, null]}
{"prompt": [{"role": "user", "content": "name a colour"}], "note": "x"}
{"system": "be short", "question": "why?"}
{"id": "g", "prompts": ["first", "second"], "responses": ["a", "b"], "comparisons": [{"kind": "base", "terms": [{"prompt": 0, "response": 0, "sign": 1}, {"prompt": 0, "response": 1, "sign": -1}]}]}
"#;

fn bench() -> Bench {
    let bench = Bench::new();
    bench.write("rows.jsonl", ROWS);
    bench
}

/// Runs `mapl generate` with the Llama model and returns the rows.
fn rows(bench: &Bench, flags: &str) -> Vec<Value> {
    bench.run(&format!("generate --model model --output out.jsonl {flags}")).ok();
    bench.rows("out.jsonl")
}

#[test]
fn every_kind_of_row_is_answered_and_kept() {
    let bench = bench();
    let done = bench.run("generate --model model --input rows.jsonl --output out.jsonl --max-new-tokens 9").ok();
    assert!(done.out.contains("4 responses in out.jsonl"), "{}", done.out);
    assert!(done.err.contains("at most 9 new tokens (--max-new-tokens)"), "{}", done.err);
    assert!(done.err.contains("only the first of each is answered"), "{}", done.err);
    assert!(done.err.contains("2 of 4 prompts are plain text"), "{}", done.err);
    let given: Vec<Value> = ROWS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let made = bench.rows("out.jsonl");
    assert_eq!(made.len(), 4);
    for (mut made, given) in made.into_iter().zip(given) {
        let row = made.as_object_mut().unwrap();
        let tokens = row.remove("tokens").unwrap();
        let tokens = tokens.as_array().unwrap().clone();
        let finish = row.remove("finish").unwrap();
        assert!((1..=9).contains(&tokens.len()) && tokens.iter().all(Value::is_u64));
        assert!(finish == "stop" || (finish == "length" && tokens.len() == 9), "{finish}");
        assert!(row.remove("response").unwrap().is_string());
        assert_eq!(made, given, "the row's own keys stay");
    }
}

#[test]
fn a_text_does_not_depend_on_other_rows_batch_size_or_threads() {
    let bench = bench();
    let flags = "--temperature 1.5 --top-k 90 --num-return-sequences 3 --seed 4 --max-new-tokens 12";
    let all = rows(&bench, &format!("--input rows.jsonl {flags}"));
    assert_eq!(all.len(), 12);
    assert!(all.iter().map(|row| row["tokens"].to_string()).collect::<BTreeSet<_>>().len() > 10);
    assert_eq!(rows(&bench, &format!("--input rows.jsonl --batch-size 1 {flags}")), all);
    bench.write("turned.jsonl", ROWS.lines().rev().map(|line| format!("{line}\n")).collect::<String>());
    let turned = rows(&bench, &format!("--input turned.jsonl {flags}"));
    assert_eq!(turned.chunks(3).rev().flatten().cloned().collect::<Vec<_>>(), all);
    let single = "generate --model model --input rows.jsonl --output one.jsonl";
    bench.run_with(&format!("{single} {flags}"), ("RAYON_NUM_THREADS", "1")).ok();
    assert_eq!(bench.rows("one.jsonl"), all);
    let other = rows(&bench, &format!("--input rows.jsonl {}", flags.replace("--seed 4", "--seed 5")));
    assert_ne!(other, all);
    // The default seed is 0, and a repeated run gives the same bytes.
    let unseeded = rows(&bench, &format!("--input rows.jsonl {}", flags.replace("--seed 4", "--seed 0")));
    assert_eq!(rows(&bench, &format!("--input rows.jsonl {}", flags.replace("--seed 4", ""))), unseeded);
}

#[test]
fn equal_prompts_get_equal_texts_and_standard_input_is_read() {
    let bench = bench();
    let script = r#"printf '{"prompt": "a b", "n": 1}\n{"prompt": "a b", "n": 2}\n' |
        "$MAPL" generate --model qwen --input - --output - --max-new-tokens 6 --temperature 1"#;
    let done = bench.bash(script).ok();
    let rows: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), &rows[0]["tokens"]), (2, &rows[1]["tokens"]));
    assert_eq!((&rows[0]["n"], &rows[1]["n"]), (&json!(1), &json!(2)));
}

#[test]
fn a_plain_prompt_becomes_a_turn_on_request() {
    let bench = bench();
    bench.write("text.jsonl", "{\"prompt\": \"name a colour\"}\n");
    bench.write("turn.jsonl", "{\"prompt\": [{\"role\": \"user\", \"content\": \"name a colour\"}]}\n");
    let tokens = |flags: &str| rows(&bench, &format!("--max-new-tokens 8 {flags}"))[0]["tokens"].clone();
    let turn = tokens("--input turn.jsonl");
    assert_eq!(tokens("--input text.jsonl --apply-chat-template"), turn);
    assert_ne!(tokens("--input text.jsonl"), turn);
    let command = "generate --model model --output out.jsonl --apply-chat-template --input turn.jsonl";
    bench.run(command).fails(2, &["--apply-chat-template has no effect"]);
}

#[test]
fn a_dialogue_becomes_its_turns_and_template_options_need_turns() {
    let bench = bench();
    let dialogue = "\\n\\nHuman: name a colour\\n\\nAssistant:";
    bench.write("text.jsonl", format!("{{\"prompt\": \"{dialogue}\"}}\n"));
    bench.write("turn.jsonl", "{\"prompt\": [{\"role\": \"user\", \"content\": \"name a colour\"}]}\n");
    let tokens = |flags: &str| rows(&bench, &format!("--max-new-tokens 8 {flags}"))[0]["tokens"].clone();
    assert_eq!(tokens("--input text.jsonl --apply-chat-template"), tokens("--input turn.jsonl"));
    bench.write("template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let command = "generate --model model --output out.jsonl --input text.jsonl --max-new-tokens 2";
    for flag in ["--chat-template-path template.jinja", "--chat-template-kwargs {\"a\":1}"] {
        bench
            .run(&format!("{command} {flag}"))
            .fails(2, &[flag.split(' ').next().unwrap(), "no row is a conversation"]);
        bench.run(&format!("{command} {flag} --apply-chat-template")).ok();
    }
    let scored = "score --model model --input pairs.jsonl --output s.jsonl --chat-template-path template.jinja";
    bench.run(scored).fails(2, &["--chat-template-path has no effect"]);
    bench.bash("grep prompts groups.jsonl | head -n 2 > g.jsonl").ok();
    let mapped = "generate --model model --output out.jsonl --input g.jsonl --max-new-tokens 2 --column-map prompt=q";
    bench.run(mapped).fails(2, &["--column-map has no effect"]);
}

/// Values of an input row that are copied to the output keep the digits and the spelling of the file.
#[test]
fn numbers_and_texts_of_a_row_leave_as_they_came() {
    let bench = bench();
    let kept = r#""id":123456789012345678901234567890,"a":[1.0,1e5,0.10,-0,18446744073709551616],"b":1e999,"c":"\u00e9\ud800\/ x""#;
    bench.write(
        "rows.jsonl",
        format!("{{ {}, \"prompt\" : \"a\" }}\n{{\"prompt\":\"b\"}}\n", kept.replace(",\"", ", \"")),
    );
    let command = "generate --model model --input rows.jsonl --output out.jsonl --max-new-tokens 2";
    bench.run(command).ok();
    let text = String::from_utf8(bench.bytes("out.jsonl")).unwrap();
    let start = format!("{{{kept},\"prompt\":\"a\",\"response\":\"");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with("{\"prompt\":\"b\",\"response\":\""), "{text}");
    // Rows in a JSON list keep them too. Where the text of a number is not available, the number is an error
    // instead of being rounded.
    bench.write("rows.jsonl", "[{\"n\": 123456789012345678901,\n \"prompt\": \"a\"}]");
    bench.run(command).ok();
    let text = String::from_utf8(bench.bytes("out.jsonl")).unwrap();
    assert!(text.starts_with("{\"n\":123456789012345678901,\"prompt\":\"a\",\"response\":\""), "{text}");
    bench.write("rows.jsonl", "{\"n\": 123456789012345678901,\n \"prompt\": \"a\"}");
    bench.run(command).fails(3, &["\"n\" could not be written again", "more than 64 bits"]);
    bench.write("rows.jsonl", "{\"n\": \"\\ud800\", \"prompt\": \"\\ud800\"}");
    bench.run(command).fails(3, &["\"prompt\" holds half of a surrogate pair"]);
}

#[test]
fn responses_end_at_stop_texts_and_end_ids() {
    let bench = bench();
    bench.write("one.jsonl", "{\"prompt\": \"the cat\"}\n");
    let free = &rows(&bench, "--input one.jsonl --max-new-tokens 30")[0];
    let text = free["response"].as_str().unwrap().to_owned();
    // The stop text is a letter or digit from the middle of the text, so the command line does not split it.
    let (at, stop) = text.char_indices().skip(3).find(|(_, c)| c.is_ascii_alphanumeric()).unwrap();
    let at = text.find(stop).unwrap_or(at);
    let cut = &rows(&bench, &format!("--input one.jsonl --max-new-tokens 30 --stop {stop} zzzzzz"))[0];
    assert_eq!((cut["response"].as_str().unwrap(), &cut["finish"]), (&text[..at], &json!("stop")));
    let (cut, whole) = (cut["tokens"].as_array().unwrap(), free["tokens"].as_array().unwrap());
    assert!(whole.starts_with(cut) && cut.len() < whole.len());
    // An EOS id from a list in generation_config.json is among the tokens, but not in the text.
    let first = whole[1].clone();
    bench.write("model/generation_config.json", json!({"eos_token_id": [first, 3], "max_new_tokens": 5}).to_string());
    let done = bench.run("generate --model model --input one.jsonl --output out.jsonl").ok();
    assert!(done.err.contains("at most 5 new tokens (generation_config.json)"), "{}", done.err);
    let row = &bench.rows("out.jsonl")[0];
    let end = whole.iter().position(|id| *id == first).unwrap();
    assert_eq!((&row["tokens"], &row["finish"]), (&json!(whole[..=end]), &json!("stop")));
    assert!(text.starts_with(row["response"].as_str().unwrap()));
}

#[test]
fn settings_of_the_folder_that_are_not_used_are_named() {
    let bench = bench();
    let config = json!({"do_sample": true, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1});
    bench.write("model/generation_config.json", config.to_string());
    let command = "generate --model model --input rows.jsonl --output out.jsonl --max-new-tokens 2";
    let err = bench.run(command).ok().err;
    assert!(err.contains("json sets --temperature 0.6 --top-k 20 --repetition-penalty 1.1,"), "{err}");
    let err = bench.run(&format!("{command} --temperature 0 --repetition-penalty 1.1")).ok().err;
    assert!(err.contains("json sets --top-k 20,"), "{err}");
    bench.write("model/generation_config.json", json!({"temperature": 0.6, "repetition_penalty": 1.0}).to_string());
    let err = bench.run(command).ok().err;
    assert!(!err.contains("json sets"), "{err}");
    bench.write("model/generation_config.json", json!({"max_new_tokens": "many"}).to_string());
    bench.run("generate --model model --input rows.jsonl --output out.jsonl").fails(6, &["max_new_tokens", "many"]);
}

#[test]
fn output_rows_are_input_of_other_commands() {
    let bench = bench();
    bench.run("generate --model model --input rows.jsonl --output out.jsonl --max-new-tokens 3").ok();
    // A pair with the keys of a response is still a pair.
    bench.write("pair.jsonl", r#"{"prompt": "a", "chosen": "b c", "rejected": "d"}"#);
    bench.run("generate --model model --input pair.jsonl --output pair-out.jsonl --max-new-tokens 2").ok();
    bench.run("score --model model --input pair-out.jsonl --output scores.jsonl --ref-model none").ok();
    // A prompt with its response is a row for fine-tuning.
    bench.write("one.jsonl", r#"{"prompt": "the cat"}"#);
    bench.run("generate --model model --input one.jsonl --output one-out.jsonl --max-new-tokens 4").ok();
    bench.run("sft --model model --train-file one-out.jsonl --output-dir tuned --max-steps 1").ok();
    // Text, a conversation and a group with one response each are scored without comparisons. With
    // --apply-chat-template, a prompt becomes a turn for scoring as for generation.
    let scores = |input: &str, flags: &str| {
        bench.run(&format!("score --model model --input {input} --output scores.jsonl {flags}")).ok();
        bench.rows("scores.jsonl")
    };
    bench.write("several.jsonl", ROWS);
    bench.run("generate --model model --input several.jsonl --output several-out.jsonl --max-new-tokens 3").ok();
    let found = scores("several-out.jsonl", "").len();
    assert_eq!(found, 4);
    let generated = "generate --model model --input one.jsonl --output turn-out.jsonl --max-new-tokens 4";
    bench.run(&format!("{generated} --apply-chat-template")).ok();
    let row = &scores("turn-out.jsonl", "--apply-chat-template")[0];
    assert_eq!((&row["comparisons"], &row["sequences"][0]["response"]), (&json!([]), &json!(0)));
    let response = bench.rows("turn-out.jsonl")[0]["response"].clone();
    let turns = |response: Value| json!({"prompt": [{"role": "user", "content": "the cat"}], "response": response});
    let message = json!({"role": "assistant", "content": response});
    let expected = row["sequences"][0]["logp"].clone();
    for row in [turns(response), turns(message.clone()), turns(json!([message]))] {
        bench.write("turns.jsonl", row.to_string());
        assert_eq!(scores("turns.jsonl", "")[0]["sequences"][0]["logp"], expected, "{row}");
    }
    assert_ne!(scores("turn-out.jsonl", "")[0]["sequences"][0]["logp"], expected, "as bare text");
    let again = "generate --model model --input out.jsonl --output again.jsonl";
    bench.run(again).fails(3, &["out.jsonl:1", "\"response\"", "rename"]);
}

#[test]
fn rows_that_ask_for_nothing_are_refused_with_their_place() {
    let bench = bench();
    for (row, parts) in [
        (r#"{"text": "x"}"#, &["\"prompt\" is missing", "\"text\""][..]),
        (r#"{"prompt": ""}"#, &["the prompt is empty"]),
        (r#"{"prompt": []}"#, &["no messages"]),
        (r#"{"prompt": 3}"#, &["must be a string or a list of messages"]),
        (
            r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            &["assistant turn"],
        ),
        (r#"{"prompt": "a", "tokens": [1]}"#, &["\"tokens\"", "rename"]),
        (r#"{"prompt": "a", "n": NaN}"#, &["\"n\"", "NaN"]),
        (r#"{"prompt": "a", "image": "x.png"}"#, &["image"]),
        (r#"{"prompt": "a", "context": "some text"}"#, &["\"context\"", "--drop-columns context"]),
    ] {
        bench.write("bad.jsonl", format!("{{\"prompt\": \"fine\"}}\n{row}\n"));
        let before = bench.listing();
        let command = "generate --model model --input bad.jsonl --output out.jsonl --max-new-tokens 2";
        bench.run(command).fails(3, &[&["bad.jsonl:2"], parts].concat());
        assert_eq!(bench.listing(), before, "{row}");
    }
    bench.write("empty.jsonl", "\n");
    bench.run("generate --model model --input empty.jsonl --output out.jsonl").fails(3, &["no rows"]);
    // The options that the messages name are accepted.
    bench.write("bad.jsonl", "{\"text\": \"a\", \"context\": \"some text\"}\n");
    let command = "generate --model model --input bad.jsonl --output out.jsonl --max-new-tokens 2";
    bench.run(&format!("{command} --column-map prompt=text --drop-columns context")).ok();
    assert_eq!(bench.rows("out.jsonl")[0]["context"], "some text");
    bench.run(&format!("{command} --column-map prompt=text --drop-columns contxt,context")).fails(2, &["contxt"]);
    bench.write("long.jsonl", json!({"prompt": "word and ".repeat(300)}).to_string());
    let command = "generate --model model --input long.jsonl --output out.jsonl";
    bench.run(command).fails(3, &["long.jsonl:1", "max_position_embeddings 256"]);
}

#[test]
fn flags_without_effect_and_models_without_text_are_refused() {
    let bench = bench();
    let command = "generate --model model --input rows.jsonl --output out.jsonl";
    for (flags, parts) in [
        ("--num-return-sequences 2", &["--num-return-sequences", "--temperature 1"][..]),
        ("--seed 3", &["--seed has no effect"]),
        ("--temperature 0 --top-p 0.5", &["--top-p has no effect with --temperature 0"]),
        ("--temperature -1", &["at least 0"]),
        ("--top-p 0", &["above 0, at most 1"]),
        ("--min-p 1.5", &["from 0 to 1"]),
        ("--top-k 0", &["from 1 to"]),
        ("--repetition-penalty 0", &["from 0.001 to 1000"]),
        ("--max-new-tokens 0", &["from 1 to"]),
        ("--batch-size 0", &["from 1 to"]),
        ("--base-model qwen", &["--base-model has no effect"]),
    ] {
        bench.run(&format!("{command} {flags}")).fails(2, parts);
    }
    let script = "\"$MAPL\" generate --model model --input rows.jsonl --output out.jsonl --stop ''";
    bench.bash(script).fails(2, &["--stop", "empty text"]);
    bench.run("generate --model model --input rows.jsonl --output rows.jsonl").fails(2, &["input of this command"]);
    bench.golden("qwen3-reward", "judge");
    let command = "generate --model judge --input rows.jsonl --output out.jsonl";
    bench.run(command).fails(6, &["judge", "reward model"]);
    std::fs::remove_file(bench.at("model/chat_template.jinja")).ok();
    let mut config = bench.json("model/tokenizer_config.json");
    config.as_object_mut().unwrap().remove("chat_template");
    bench.write("model/tokenizer_config.json", config.to_string());
    let command = "generate --model model --input rows.jsonl --output out.jsonl";
    bench.run(command).fails(6, &["no chat template", "--chat-template-path"]);
}

#[test]
fn adapters_generate_what_their_merged_model_generates() {
    let bench = bench();
    let train = "--train-file pairs.jsonl --max-steps 3 --per-device-train-batch-size 4 --learning-rate 1e-2";
    bench.run(&format!("sft --model model --output-dir tuned --use-peft {train}")).ok();
    bench.run("export --merge --model tuned --output whole").ok();
    let tokens = |model: &str| -> Vec<Value> {
        let command = format!("generate --model {model} --input rows.jsonl --output out.jsonl --max-new-tokens 9");
        bench.run(&command).ok();
        bench.rows("out.jsonl").iter().map(|row| row["tokens"].clone()).collect()
    };
    let tuned = tokens("tuned");
    assert_eq!(tuned, tokens("whole"));
    assert_ne!(tuned, tokens("model"));
}
