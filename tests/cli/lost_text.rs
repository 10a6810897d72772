//! Tests of the messages of every command about text that is lost between a row and its ids, and about rows
//! that only a reward model can read.

use serde_json::{Value, json};

use crate::workbench::Bench;

/// Chat template that deletes reasoning.
const STRIP: &str = "{%- for m in messages -%}{%- set c = m['content'].split('</think>')[-1] -%}\
    {{ '<|im_start|>' + m['role'] + '\\n' + c + '<|im_end|>\\n' }}{%- endfor -%}\
    {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";
/// Chat template that opens the reasoning in the generation prompt.
const OPEN_REASONING: &str = "{%- for m in messages -%}\
    {{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor -%}\
    {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}";

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn pair(question: &str, chosen: &str, rejected: &str) -> Value {
    json!({"prompt": [turn("user", question)], "chosen": [turn("assistant", chosen)],
           "rejected": [turn("assistant", rejected)]})
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Findings of `data check --json` as (level, check, count).
fn findings(bench: &Bench, words: &str) -> Vec<(String, String, u64)> {
    let done = bench.run(&format!("data check {words} --json"));
    let report: Value = serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", done.out, done.err));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    findings.map(|f| (text(&f["level"]), text(&f["check"]), f["count"].as_u64().unwrap())).collect()
}

fn finding(level: &str, check: &str, count: u64) -> (String, String, u64) {
    (level.into(), check.into(), count)
}

#[test]
fn comparisons_that_cancel_stop_training_and_are_found_by_data_check() {
    let bench = Bench::new();
    bench.write("strip.jinja", STRIP);
    let thought = |question: &str, [a, b]: [&str; 2], answer: &str| {
        pair(question, &format!("<think>{a}</think>{answer}"), &format!("<think>{b}</think>{answer}"))
    };
    let rows = [
        thought("2+2?", ["two and two", "cats"], "4"),
        thought("3+3?", ["three twice", "dogs"], "6"),
        pair("4+3?", "<think>four and three</think>7", "<think>hm</think>8"),
    ];
    bench.write("think.jsonl", lines(&rows));
    let options = "--model model --train-file think.jsonl --chat-template-path strip.jinja --max-steps 1";
    let why = ["think.jsonl:1 (id think-1): 2 of 3 comparisons", "sides with equal ids", "--chat-template-path"];
    for command in ["reward", "dpo"] {
        bench.run(&format!("{command} {options} --output-dir {command}")).fails(3, &why);
    }
    let checked = findings(&bench, "think.jsonl --model model --chat-template-path strip.jinja");
    assert_eq!(checked, [finding("error", "equal-token-ids", 2), finding("warning", "lost-messages", 6)]);
    // Up to the share of --max-drop-fraction, comparisons are dropped with a warning, also under --quiet.
    let done = bench.run(&format!("reward {options} --output-dir run --max-drop-fraction 0.7 --quiet")).ok();
    for part in ["text of 6 of 9 messages (66.7 %)", "sides of 2 of 3 comparisons (66.7 %)", "they are dropped"] {
        assert!(done.err.contains(part), "no {part:?} in {}", done.err);
    }
    let counts = &bench.json("run/run.json")["data"]["train"];
    assert_eq!((&counts["kept"], &counts["dropped_equal_ids"]), (&json!(1), &json!(2)));
    // Every row is scored and shown.
    for command in ["score --model run --output scores.jsonl", "data show --tokenizer model"] {
        let done = bench.run(&format!("{command} --input think.jsonl --chat-template-path strip.jinja")).ok();
        assert!(
            done.err.contains("sides of 2 of 3 comparisons (66.7 %) differ in text but have equal"),
            "{}",
            done.err
        );
    }
    assert_eq!(bench.rows("scores.jsonl").len(), 3);
    // The folder's template keeps the text.
    assert_eq!(findings(&bench, "think.jsonl --model model"), []);
}

#[test]
fn a_few_comparisons_that_cancel_are_a_warning() {
    let bench = Bench::new();
    bench.write("strip.jinja", STRIP);
    let mut rows: Vec<Value> = (0..9).map(|i| pair(&format!("{i}?"), "A wren.", "A bus.")).collect();
    rows.push(pair("Name a bird.", "<think>a</think>A wren.", "A wren."));
    bench.write("rows.jsonl", lines(&rows));
    let checked = findings(&bench, "rows.jsonl --model model --chat-template-path strip.jinja");
    assert!(checked.contains(&finding("warning", "equal-token-ids", 1)), "{checked:?}");
}

#[test]
fn columns_that_are_overlooked_are_named_by_every_command() {
    let bench = Bench::new();
    let stored = |role: &str, text: &str| json!([turn(role, text)]).to_string();
    let row = json!({"prompt": stored("user", "Name a bird."), "chosen": stored("assistant", "A wren."),
                     "rejected": stored("assistant", "A bus.")});
    bench.write("rows.jsonl", lines(&[row]));
    let checked = findings(&bench, "rows.jsonl --model model");
    assert_eq!(checked, [finding("warning", "messages-as-text", 1)]);
    bench.run("reward --model model --train-file rows.jsonl --output-dir run --max-steps 1 --quiet").ok();
    for command in [
        "reward --model model --train-file rows.jsonl --output-dir run2 --max-steps 1 --quiet",
        "sft --model model --train-file rows.jsonl --output-dir run3 --max-steps 1 --quiet",
        "score --model run --input rows.jsonl --output scores.jsonl",
        "eval --model run --input rows.jsonl",
        "compare run run --input rows.jsonl",
        "data build --input rows.jsonl --output groups2.jsonl",
        "data show --input rows.jsonl --tokenizer model",
    ] {
        let err = bench.run(command).ok().err;
        let part = "warning: rows.jsonl:1: in 1 of 1 rows a list of messages is stored as text";
        assert_eq!(err.matches(part).count(), 1, "mapl {command}\n{err}");
    }
}

#[test]
fn columns_that_no_reader_uses_are_refused_until_they_are_dropped_by_name() {
    let bench = Bench::new();
    let row = json!({"prompt": "Name a bird.", "chosen": " A wren.", "rejected": " A bus.", "context": "In a hedge."});
    bench.write("rows.jsonl", lines(&[row]));
    let checked = findings(&bench, "rows.jsonl");
    assert!(checked.contains(&finding("error", "refused-rows", 1)), "{checked:?}");
    assert!(!findings(&bench, "rows.jsonl --drop-columns context").iter().any(|(level, ..)| level == "error"));
    let why = [
        "rows.jsonl:1 (id rows-1): text that may belong to the conversation is not used (in \"context\")",
        "--drop-columns context",
    ];
    for command in [
        "reward --model model --train-file rows.jsonl --output-dir run --max-steps 1 --quiet",
        "sft --model model --train-file rows.jsonl --output-dir run2 --max-steps 1 --quiet",
        "score --model run --input rows.jsonl --output scores.jsonl",
        "data build --input rows.jsonl --output groups2.jsonl",
        "data show --input rows.jsonl --tokenizer model",
    ] {
        bench.run(command).fails(3, &why);
        bench.run(&format!("{command} --drop-columns context")).ok();
    }
    bench.run("data check rows.jsonl --drop-columns context --pairs all").fails(2, &["--pairs has no effect"]);
    let unknown = ["--drop-columns contxt: no row has this column"];
    bench.run("data build --input rows.jsonl --output g.jsonl --drop-columns context,contxt").fails(2, &unknown);
    let both =
        "reward --model model --train-file rows.jsonl --eval-file pairs.jsonl --output-dir run3 --max-steps 1 --quiet";
    bench.run(&format!("{both} --drop-columns context")).ok();
}

#[test]
fn built_groups_have_distinct_ids_and_are_read_again() {
    let bench = Bench::new();
    let row =
        |id: &str, answer: &str| json!({"id": id, "prompt": "Name a bird.", "chosen": answer, "rejected": " A bus."});
    bench.write(
        "rows.jsonl",
        lines(&[row("a", " A wren."), row("a-2", " An owl."), row("a", " A tit."), row("a", " A jay.")]),
    );
    let built = bench.run("data build --input rows.jsonl --output groups2.jsonl").ok();
    assert!(
        built.out.contains("2 rows have the id of an earlier row and get a number after it, such as a-3"),
        "{}",
        built.out
    );
    let ids: Vec<Value> = bench.rows("groups2.jsonl").iter().map(|row| row["id"].clone()).collect();
    assert_eq!(ids, ["a", "a-2", "a-3", "a-4"]);
    bench.run("data build --input groups2.jsonl --output again.jsonl").ok();
}

#[test]
fn options_that_differ_from_trl_are_named_at_the_start_of_a_run() {
    let bench = Bench::new();
    let run = |name: &str, flags: &str| {
        let words = format!("reward --model model --train-file pairs.jsonl --output-dir {name} --max-steps 1 {flags}");
        bench.run(&words).ok().out
    };
    let out = run("a", "--label-smoothing 0.1 --objective mapl --data-seed 7");
    assert!(
        out.contains("--label-smoothing 0.1 with the sigmoid loss is conservative DPO (cDPO) here; TRL ignores"),
        "{out}"
    );
    assert!(out.contains("--data-seed 7 seeds the construction of groups here; in TRL"), "{out}");
    let out = run("b", "--label-smoothing 0.1 --loss-type robust");
    assert!(!out.contains("TRL"), "{out}");
}

#[test]
fn reward_models_need_no_boundary_and_read_whole_conversations() {
    let bench = Bench::new();
    bench.write("open.jinja", OPEN_REASONING);
    let side = |user: &str, answer: &str| json!([turn("user", user), turn("assistant", answer)]);
    bench.write(
        "pairs.jsonl",
        lines(&[pair("Name a bird.", "A wren.", "A bus."), pair("Name a tree.", "An oak.", "A cart.")]),
    );
    let turns = json!({"chosen": side("Name a bird.", "A wren."), "rejected": side("Name a tree.", "A bus.")});
    bench.write("turns.jsonl", lines(&[turns, json!({"chosen": side("a", "b"), "rejected": side("c", "d")})]));
    let template = "--chat-template-path open.jinja";
    for (rows, template, refused) in [
        ("pairs.jsonl", template, ["pairs.jsonl:1 (id pairs-1)", "not a prefix of the rendered conversation"]),
        ("turns.jsonl", "", ["turns.jsonl:1 (id turns-1)", "only a reward model compares whole conversations"]),
    ] {
        let train = |method: &str| {
            bench.run(&format!(
                "{method} --model model --train-file {rows} --eval-file {rows} {template} --output-dir {method}-run \
                 --overwrite-output-dir --max-steps 2 --quiet"
            ))
        };
        train("dpo").fails(3, &refused);
        train("reward").ok();
        let loss = bench.metrics("reward-run", "train")[0]["loss"].as_f64().unwrap();
        assert!(loss > 0.0 && bench.metrics("reward-run", "train")[0]["grad_norm"].as_f64().unwrap() > 0.0);
        bench.run(&format!("score --model reward-run --input {rows} {template} --output scores.jsonl")).ok();
        let logit = |row: &Value| row["comparisons"][0]["logit"].as_f64().unwrap();
        assert!(bench.rows("scores.jsonl").iter().all(|row| logit(row) != 0.0));
        bench.run(&format!("eval --model reward-run --input {rows} {template} --prompt-blindness")).ok();
        bench.run(&format!("score --model model --input {rows} {template} --output logps.jsonl")).fails(3, &refused);
        // Without --reward, the data commands reject the rows that DPO rejects.
        bench.run(&format!("data show --input {rows} --tokenizer model {template}")).fails(3, &refused);
        let shown = bench.run(&format!("data show --input {rows} --tokenizer model {template} --reward")).ok();
        assert!(shown.out.contains("[[A wren.<|im_end|>"), "{}", shown.out);
        let strict = findings(&bench, &format!("{rows} --model model {template}"));
        assert!(strict.iter().any(|(level, _, count)| level == "error" && *count == 2), "{strict:?}");
        let free = findings(&bench, &format!("{rows} --model model {template} --reward"));
        assert!(free.iter().all(|(level, ..)| level == "warning"), "{free:?}");
    }
    // The checks of length and words also compare the sides of a pair that only a reward model can read.
    let checked = bench.run("data check turns.jsonl --reward").ok();
    assert!(checked.out.contains("chosen longer 1, shorter 0, equal 1"), "{}", checked.out);
    bench.run("data build --input turns.jsonl --output built.jsonl").fails(3, &["only a reward model"]);
    bench.run("data build --input turns.jsonl --output built.jsonl --reward").ok();
    assert_eq!(bench.rows("built.jsonl")[0]["prompts"].as_array().unwrap().len(), 2);
}

#[test]
fn the_probe_of_empty_prompts_follows_the_rendered_conversation() {
    // A conversation, with its prompt or with an emptied one, renders alike whether or not the generation
    // prompt opens the reasoning.
    let bench = Bench::new();
    bench.write("open.jinja", OPEN_REASONING);
    bench.write("plain.jinja", OPEN_REASONING.replace("<think>\\n", ""));
    bench.write(
        "pairs.jsonl",
        lines(&[pair("Name a bird.", "A wren.", "A bus."), pair("Name a tree.", "An oak.", "A cart.")]),
    );
    bench.run("reward --model model --train-file pairs.jsonl --chat-template-path open.jinja --output-dir run --max-steps 2 --quiet").ok();
    let measured = ["open", "plain"].map(|name| {
        let words = format!("eval --model run --input pairs.jsonl --chat-template-path {name}.jinja --prompt-blindness --output {name}.json");
        bench.run(&words).ok();
        bench.json(&format!("{name}.json"))
    });
    let [open, plain] = measured.map(|mut result| {
        assert!(result.to_string().contains("semantic_empty_prompt"));
        result.as_object_mut().unwrap().remove("model");
        result
    });
    assert_eq!(open, plain);
}
