//! `mapl ifeval`: rows of verdicts, figures, comparisons of two sets of responses, and bad input.

use serde_json::{Value, json};

use crate::workbench::Bench;

/// Returns three prompts with these instructions: no comma; at least 2 sentences and a title; a response in
/// German.
fn prompts() -> String {
    let rows = [
        json!({"key": 7, "prompt": "One", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
        json!({"key": "b", "prompt": "Two",
               "instruction_id_list": ["length_constraints:number_sentences", "detectable_format:title"],
               "kwargs": [{"relation": "at least", "num_sentences": 2.0, "num_words": null}, null]}),
        json!({"key": 9, "prompt": "Three", "instruction_id_list": ["language:response_language"],
               "kwargs": [{"language": "de"}]}),
    ];
    lines(&rows)
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn responses(texts: [&str; 3]) -> String {
    let [one, two, three] = texts;
    // The responses are in a different order from the prompts.
    lines(&[
        json!({"prompt": "Three", "response": three, "tokens": [1]}),
        json!({"prompt": "One", "response": one}),
        json!({"prompt": "Two", "response": two}),
    ])
}

const GOOD: [&str; 3] = ["No comma", "<<A>> One. Two.", "Das ist die Antwort auf deine Frage."];
/// Responses with one violation each: a comma in the last line; only one sentence, with an abbreviation;
/// English.
const MIXED: [&str; 3] = ["No comma\nBye, you", "<<A>> Mr. Moss left.", "This is the answer to your question."];

#[test]
fn rows_of_verdicts_are_in_the_order_of_the_prompts() {
    let bench = Bench::new();
    bench.write("prompts.jsonl", prompts());
    bench.write("answers.jsonl", responses(MIXED));
    let run = "ifeval --input prompts.jsonl --responses answers.jsonl";
    let table = bench.run(&format!("{run} --output a.jsonl")).ok().out;
    let row = |key: Value, prompt: &str, ids: &[&str], strict: &[bool], loose: &[bool]| json!({"key": key, "prompt": prompt, "instruction_id_list": ids, "strict": strict, "loose": loose});
    let expected = [
        row(json!(7), "One", &["punctuation:no_comma"], &[false], &[true]),
        row(
            json!("b"),
            "Two",
            &["length_constraints:number_sentences", "detectable_format:title"],
            &[false, true],
            &[false, true],
        ),
        row(json!(9), "Three", &["language:response_language"], &[false], &[false]),
    ];
    assert_eq!(bench.rows("a.jsonl"), expected);
    assert!(table.contains("3 prompts, 4 instructions, 0 blank responses"), "{table}");
    let figures: Value = serde_json::from_str(&bench.run(&format!("{run} --json")).ok().out).unwrap();
    assert_eq!(figures["prompt"]["strict"]["accuracy"], 0.0);
    assert_eq!(figures["prompt"]["count"], 3);
    assert_eq!(figures["instruction"]["strict"]["accuracy"], 0.25);
    assert_eq!(figures["instruction"]["loose"]["accuracy"], 0.5);
    assert_eq!(figures["by_type"]["detectable_format:title"]["strict"]["accuracy"], 1.0);
    // A repeated run gives the same bytes, also with one thread.
    for run in [format!("$MAPL {run}"), format!("RAYON_NUM_THREADS=1 $MAPL {run}")] {
        assert_eq!(bench.bash(&format!("{run} --output b.jsonl")).ok().out.replace("b.jsonl", "a.jsonl"), table);
        assert_eq!(bench.bytes("a.jsonl"), bench.bytes("b.jsonl"));
    }
}

#[test]
fn two_sets_of_responses_are_compared_in_pairs() {
    let bench = Bench::new();
    bench.write("prompts.jsonl", prompts());
    bench.write("mixed.jsonl", responses(MIXED));
    bench.write("good.jsonl", responses(GOOD));
    let run = "ifeval --input prompts.jsonl --compare mixed.jsonl good.jsonl";
    let table = bench.run(&format!("{run} --output c.json")).ok().out;
    assert!(table.contains("A = mixed.jsonl\nB = good.jsonl"), "{table}");
    let value = bench.json("c.json");
    let prompt = &value["prompt"]["strict"];
    assert_eq!([&prompt["a"], &prompt["b"], &prompt["difference"]], [&json!(0.0), &json!(1.0), &json!(1.0)]);
    assert_eq!([&prompt["only_a"], &prompt["only_b"]], [0, 3]);
    // All 3 differing prompts favour one side, so the exact test gives 2 / 2^3.
    assert!((prompt["mcnemar_p"].as_f64().unwrap() - 0.25).abs() < 1e-12, "{prompt}");
    assert_eq!(value["instruction"]["loose"]["difference"], 0.5);
    assert_eq!(value["by_type"]["detectable_format:title"]["strict"]["difference"], 0.0);
    assert_eq!(serde_json::from_str::<Value>(&bench.run(&format!("{run} --json")).ok().out).unwrap(), value);
    let other = bench.run(&format!("{run} --json --seed 1 --bootstrap 0")).ok().out;
    assert_eq!(serde_json::from_str::<Value>(&other).unwrap()["instruction"]["loose"]["interval"], Value::Null);
    bench.run("ifeval --input prompts.jsonl --responses good.jsonl --seed 1").fails(2, &["--seed", "--compare"]);
    bench.run("ifeval --input prompts.jsonl").fails(2, &["--responses", "--compare"]);
    bench.run(&format!("{run} --responses good.jsonl")).fails(2, &["--responses", "cannot be used with"]);
    bench.run(&format!("{run} --output good.jsonl")).fails(2, &["good.jsonl", "--compare"]);
}

#[test]
fn a_blank_response_follows_nothing_and_an_unknown_type_is_counted_by_name() {
    let bench = Bench::new();
    let ids = ["punctuation:no_comma", "length_constraints:number_words", "count:of_vowels"];
    let less = json!({"relation": "less than", "num_words": 5});
    let row = |prompt: &str, ids: &[&str]| {
        let kwargs = ids.iter().map(|id| if id.starts_with("len") { less.clone() } else { json!({}) });
        json!({"key": 1, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs.collect::<Vec<_>>()})
    };
    bench.write("prompts.jsonl", lines(&[row("One", &ids), row("Two", &ids[..2])]));
    let answer = |prompt: &str, text: &str| json!({"prompt": prompt, "response": text});
    bench.write("answers.jsonl", lines(&[answer("One", "So."), answer("Two", " \n"), answer("Other", "x")]));
    // With `--output -` and `--json`, rows of verdicts and metrics would be mixed on stdout, so this is an
    // error.
    for command in ["--responses answers.jsonl", "--compare answers.jsonl answers.jsonl"] {
        let mixed = format!("ifeval --input prompts.jsonl {command} --output - --json");
        bench.run(&mixed).fails(2, &["--json prints on standard output", "name a file"]);
    }
    let run = bench.run("ifeval --input prompts.jsonl --responses answers.jsonl --output -").ok();
    assert!(run.err.contains("blank responses"), "the table is not among the rows: {}", run.err);
    let verdicts: Vec<Value> = run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(verdicts.len(), 2);
    assert_eq!(verdicts[0]["strict"], json!([true, true, null]));
    assert_eq!(verdicts[1]["strict"], json!([false, false]));
    assert_eq!(verdicts[1]["loose"], json!([false, false]));
    let run = bench.run("ifeval --input prompts.jsonl --responses answers.jsonl --json").ok();
    let figures: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(figures["not_decided"], json!({"count:of_vowels": 1}));
    assert_eq!([&figures["blank_responses"], &figures["prompt"]["count"]], [1, 1]);
    assert_eq!(figures["instruction"]["count"], 4);
    assert!(run.err.contains("warning: responses to no prompt of --input, left out: 1, first"), "{}", run.err);
    assert!(run.err.contains("answers.jsonl:3"), "{}", run.err);
    let run = bench.run("ifeval --input prompts.jsonl --responses answers.jsonl --output v.jsonl --json").ok();
    assert_eq!(serde_json::from_str::<Value>(&run.out).unwrap(), figures, "stdout is JSON alone");
    let run = bench.run("ifeval --input prompts.jsonl --compare answers.jsonl answers.jsonl --output c.json").ok();
    assert!(run.out.contains("not decided, instructions: 1"), "{}", run.out);
    let value = bench.json("c.json");
    assert_eq!([&value["not_decided"], &value["blank_responses_b"]], [&json!({"count:of_vowels": 1}), &json!(1)]);
}

#[test]
fn bad_rows_are_named_by_file_and_line() {
    let bench = Bench::new();
    let good = json!({"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]});
    let answer = json!({"prompt": "p", "response": "r"});
    bench.write("answers.jsonl", lines(std::slice::from_ref(&answer)));
    let with = |key: &str, value: Value| {
        let mut row = good.clone();
        row[key] = value;
        row["prompt"] = json!("q");
        row
    };
    let one = |id: &str, arguments: Value| {
        let mut row = with("instruction_id_list", json!([id]));
        row["kwargs"] = json!([arguments]);
        row
    };
    let mut missing = good.clone();
    missing.as_object_mut().unwrap().remove("kwargs");
    for (row, parts) in [
        (missing, vec!["\"kwargs\" is missing"]),
        (good.clone(), vec!["the prompt is the same as at bad.jsonl:1"]),
        (with("kwargs", json!([])), vec!["1 entries", "\"kwargs\" 0"]),
        (with("kwargs", json!([3])), vec!["\"kwargs\" has an entry that is not an object"]),
        (with("instruction_id_list", json!([])), vec!["\"instruction_id_list\" is empty"]),
        (with("instruction_id_list", json!("x")), vec!["\"instruction_id_list\" is not a list"]),
        (
            one("length_constraints:number_words", json!({"num_words": 3})),
            vec!["number_words", "incomplete or malformed"],
        ),
        (
            one("length_constraints:number_sentences", json!({"num_sentences": 3, "relation": "around"})),
            vec!["number_sentences", "incomplete or malformed"],
        ),
        (one("language:response_language", json!({})), vec!["response_language needs a \"language\""]),
        (one("keywords:existence", json!({"keywords": ["a("]})), vec!["\"a(\" is not a regular expression"]),
    ] {
        bench.write("bad.jsonl", lines(&[good.clone(), row.clone()]));
        let parts: Vec<&str> = std::iter::once("bad.jsonl:2").chain(parts).collect();
        bench.run("ifeval --input bad.jsonl --responses answers.jsonl").fails(3, &parts);
    }
    bench.write("good.jsonl", lines(&[good.clone(), with("key", json!(2))]));
    let other = json!({"prompt": "q ", "response": "r"});
    for (rows, parts) in [
        (vec![answer.clone(), answer.clone()], vec!["bad.jsonl:2", "has a response at bad.jsonl:1"]),
        (vec![json!({"prompt": "p"})], vec!["bad.jsonl:1", "\"prompt\" and \"response\""]),
        (vec![json!({"prompt": "p", "response": null})], vec!["bad.jsonl:1", "\"response\" is not a string"]),
        (vec![json!({"prompt": [1], "response": "r"})], vec!["bad.jsonl:1", "\"prompt\" is neither a string nor"]),
        (vec![answer.clone()], vec!["prompts without a response: 1 of 2, first good.jsonl:2"]),
        (vec![answer.clone(), other], vec!["response: 1 of 2", "responses to other prompts: 1"]),
    ] {
        bench.write("bad.jsonl", lines(&rows));
        bench.run("ifeval --input good.jsonl --responses bad.jsonl --output out.jsonl").fails(3, &parts);
        assert!(!bench.at("out.jsonl").exists());
    }
}

/// Tests responses to conversations (as `mapl generate` writes them), prompts in a CSV table, and keys with
/// more digits than 64 bits hold.
#[test]
fn prompts_of_messages_tables_and_long_keys_are_read() {
    let bench = Bench::new();
    let long = "123456789012345678901234567890";
    let row = format!(
        "{{\"key\": {long}, \"prompt\": \"p\", \"instruction_id_list\": [\"punctuation:no_comma\"], \"kwargs\": [{{}}]}}\n"
    );
    bench.write("prompts.jsonl", row);
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    bench
        .write("answers.jsonl", lines(&[json!({"prompt": [turn("system", "s"), turn("user", "p")], "response": "r"})]));
    bench.run("ifeval --input prompts.jsonl --responses answers.jsonl --output v.jsonl").ok();
    let text = String::from_utf8(bench.bytes("v.jsonl")).unwrap();
    assert_eq!(
        text,
        format!(
            "{{\"key\":{long},\"prompt\":\"p\",\"instruction_id_list\":[\"punctuation:no_comma\"],\"strict\":[true],\
             \"loose\":[true]}}\n"
        )
    );
    bench.write("prompts.csv", "key,prompt,instruction_id_list,kwargs\n5,p,\"[\"\"punctuation:no_comma\"\"]\",[{}]\n");
    bench.run("ifeval --input prompts.csv --responses answers.jsonl --output v.jsonl").ok();
    assert_eq!(bench.rows("v.jsonl")[0]["key"], "5");
    let two = json!({"prompt": [turn("user", "p"), turn("assistant", "a"), turn("user", "q")], "response": "r"});
    bench.write("answers.jsonl", lines(&[two]));
    bench.run("ifeval --input prompts.jsonl --responses answers.jsonl").fails(3, &["answers.jsonl:1", "one user turn"]);
}

/// Special characters of a keyword make it a regular expression, as for the official checkers.
#[test]
fn keywords_are_regular_expressions() {
    let bench = Bench::new();
    let cases = [
        ("keywords:existence", json!({"keywords": ["colou?r"]}), "the COLOR red", true),
        ("keywords:existence", json!({"keywords": ["a.c", "x"]}), "ac x", false),
        ("keywords:forbidden_words", json!({"forbidden_words": ["colou?r"]}), "colorful", true),
        ("keywords:forbidden_words", json!({"forbidden_words": ["colou?r"]}), "a Colour.", false),
        ("keywords:frequency", json!({"keyword": "a|b", "frequency": 3, "relation": "at least"}), "A b ab", true),
        (
            "detectable_format:multiple_sections",
            json!({"section_spliter": "(Part|Step)", "num_sections": 2}),
            "Part 1 a Step2 b",
            true,
        ),
        ("detectable_content:postscript", json!({"postscript_marker": "N.B."}), "NxBy", true),
    ];
    let at = |i: usize| format!("p{i}");
    let row = |(i, (id, arguments, ..)): (usize, &(&str, Value, &str, bool))| json!({"key": i, "prompt": at(i), "instruction_id_list": [id], "kwargs": [arguments]});
    bench.write("prompts.jsonl", lines(&cases.iter().enumerate().map(row).collect::<Vec<_>>()));
    let answer = |(i, case): (usize, &(&str, Value, &str, bool))| json!({"prompt": at(i), "response": case.2});
    bench.write("answers.jsonl", lines(&cases.iter().enumerate().map(answer).collect::<Vec<_>>()));
    bench.run("ifeval --input prompts.jsonl --responses answers.jsonl --output v.jsonl").ok();
    for (row, case) in bench.rows("v.jsonl").iter().zip(&cases) {
        assert_eq!(row["strict"], json!([case.3]), "{case:?}");
    }
}

/// Prompts with tokens of the test models' vocabulary.
fn short_prompts() -> String {
    let letters = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "l", "m", "n", "o", "p", "r", "s", "t", "u"];
    let ids: Vec<&str> =
        std::iter::once("punctuation:no_comma").chain(letters.map(|_| "keywords:letter_frequency")).collect();
    let often = |letter| json!({"letter": letter, "let_frequency": 1, "let_relation": "at least"});
    let kwargs: Vec<Value> = std::iter::once(json!({})).chain(letters.map(often)).collect();
    let row = |key: usize, prompt: &str| json!({"key": key, "prompt": prompt, "instruction_id_list": ids, "kwargs": kwargs, "note": "kept"});
    lines(&[row(1, "the cat"), row(2, "name a colour"), row(3, "why")])
}

#[test]
fn a_model_is_judged_like_the_responses_that_it_generates() {
    let bench = Bench::new();
    bench.write("prompts.jsonl", short_prompts());
    let flags = "--max-new-tokens 12 --temperature 1.2 --top-k 60 --stop e";
    bench.run(&format!("generate --model model --input prompts.jsonl --output made.jsonl {flags} --seed 3")).ok();
    let judged = bench.run("ifeval --input prompts.jsonl --responses made.jsonl --output a.jsonl").ok();
    let direct = format!("ifeval --input prompts.jsonl --model model {flags} --seed 3");
    let run = bench.run(&format!("{direct} --output b.jsonl --save-responses saved.jsonl")).ok();
    assert_eq!(bench.bytes("saved.jsonl"), bench.bytes("made.jsonl"));
    assert_eq!(bench.bytes("a.jsonl"), bench.bytes("b.jsonl"));
    assert_eq!(run.out.replace("b.jsonl", "a.jsonl"), judged.out);
    assert!(run.err.contains("3 responses in saved.jsonl"), "{}", run.err);
    let value: Value = serde_json::from_str(&bench.run(&format!("{direct} --json")).ok().out).unwrap();
    assert_eq!((&value["model"], value.get("responses")), (&json!("model"), None));
    // A different seed gives different texts, so the seed reaches the sampler.
    bench
        .run(&format!("ifeval --input prompts.jsonl --model model {flags} --seed 4 --save-responses other.jsonl"))
        .ok();
    assert_ne!(bench.bytes("other.jsonl"), bench.bytes("saved.jsonl"));
}

#[test]
fn models_and_files_of_responses_are_compared_alike() {
    let bench = Bench::new();
    bench.write("prompts.jsonl", short_prompts());
    let flags = "--max-new-tokens 8 --batch-size 2";
    for model in ["model", "qwen"] {
        let run = format!("generate --model {model} --input prompts.jsonl --output {model}.jsonl {flags}");
        bench.run(&run).ok();
    }
    let run = "ifeval --input prompts.jsonl --json --bootstrap 200 --seed 5 --compare";
    let figures = |sides: &str| -> Value {
        let mut value: Value = serde_json::from_str(&bench.run(&format!("{run} {sides}")).ok().out).unwrap();
        ["a", "b"].iter().for_each(|side| drop(value.as_object_mut().unwrap().remove(*side)));
        value
    };
    let files = figures("model.jsonl qwen.jsonl");
    assert_eq!(figures(&format!("model qwen {flags} --save-responses a.jsonl b.jsonl")), files);
    assert_eq!(figures(&format!("model.jsonl qwen {flags} --save-responses c.jsonl")), files);
    assert_eq!(bench.bytes("a.jsonl"), bench.bytes("model.jsonl"));
    assert_eq!(
        ["b.jsonl", "c.jsonl"].map(|file| bench.bytes(file)),
        ["qwen.jsonl", "qwen.jsonl"].map(|file| bench.bytes(file))
    );
}

#[test]
fn generation_flags_without_a_model_and_rows_that_cannot_be_saved_are_refused() {
    let bench = Bench::new();
    bench.write("prompts.jsonl", short_prompts());
    bench.write("a.jsonl", "");
    let run = "ifeval --input prompts.jsonl";
    for (flags, parts) in [
        ("--responses a.jsonl --max-new-tokens 3", &["--max-new-tokens has no effect", "--model"][..]),
        ("--compare a.jsonl a.jsonl --temperature 1", &["--temperature has no effect"]),
        ("--responses a.jsonl --batch-size 3", &["--batch-size has no effect"]),
        ("--responses a.jsonl --save-responses b.jsonl", &["--save-responses has no effect"]),
        ("--responses a.jsonl --model model", &["cannot be used with"]),
        ("--model model --seed 1", &["--seed has no effect without sampling"]),
        ("--model model --bootstrap 200", &["--bootstrap has no effect"]),
        ("--model model --base-model qwen", &["--base-model has no effect"]),
        ("--model model --save-responses b.jsonl c.jsonl", &["2 files for 1 model folder"]),
        ("--compare model qwen --save-responses b.jsonl", &["1 file for 2 model folders"]),
        ("--compare model qwen --save-responses b.jsonl b.jsonl", &["given twice"]),
        ("--model model --save-responses b.jsonl --output b.jsonl", &["both b.jsonl"]),
        ("--model model --save-responses b.jsonl --output ./b.jsonl", &["both ./b.jsonl"]),
        ("--model model --save-responses - --output /dev/stdout", &["both /dev/stdout"]),
        ("--model model --save-responses - --json", &["--save-responses - is standard output too"]),
        ("--model model --save-responses prompts.jsonl", &["input of this command"]),
    ] {
        bench.run(&format!("{run} {flags}")).fails(2, parts);
    }
    // The file in the second argument of `--compare` is checked before the model in the first argument
    // generates responses.
    bench.write(
        "short.jsonl",
        short_prompts().lines().next().unwrap().replace("\"key\"", "\"response\": \"a\", \"key\""),
    );
    let slow = "--max-new-tokens 16777216";
    bench.run(&format!("{run} --compare model short.jsonl {slow}")).fails(3, &["short.jsonl"]);
    bench.run("reward --model model --train-file pairs.jsonl --max-steps 1 --output-dir judge").ok();
    bench.run(&format!("{run} --compare model judge")).fails(6, &["judge: is a reward model"]);
    bench.run(&format!("{run} --model none")).fails(6, &["none: is not a local folder", "mapl init"]);
    let mut row: Value = serde_json::from_str(short_prompts().lines().next().unwrap()).unwrap();
    row["tokens"] = json!([1]);
    bench.write(
        "prompts.jsonl",
        format!("{}{row}\n", short_prompts().lines().nth(1).map(|line| format!("{line}\n")).unwrap()),
    );
    let run = "ifeval --input prompts.jsonl --model model --max-new-tokens 2";
    bench.run(run).ok();
    bench.run(&format!("{run} --save-responses b.jsonl")).fails(3, &["prompts.jsonl:2", "\"tokens\"", "rename"]);
    bench.write("prompts.jsonl", short_prompts().replace("\"kept\"", "NaN"));
    bench.run(&format!("{run} --save-responses b.jsonl")).fails(3, &["prompts.jsonl:1", "\"note\"", "NaN"]);
    assert!(!bench.at("b.jsonl").exists());
}

/// Returns the step of every evaluation in the log, with its metrics of generated text.
fn logged(bench: &Bench, run: &str) -> Vec<(u64, Value)> {
    let rows = bench.rows(&format!("{run}/metrics.jsonl")).into_iter().filter(|row| row["kind"] == "eval");
    let figures = |row: &Value| -> Value {
        let all = row.as_object().unwrap().iter();
        Value::Object(all.filter(|(k, _)| k.starts_with("eval_ifeval/")).map(|(k, v)| (k.clone(), v.clone())).collect())
    };
    rows.map(|row| (row["step"].as_u64().unwrap(), figures(&row))).collect()
}

/// Returns the metrics of `mapl ifeval --model` for a model, under the names of the log.
fn figures_of(bench: &Bench, model: &str) -> Value {
    let run = "--input prompts.jsonl --max-new-tokens 8 --apply-chat-template --json";
    let value: Value =
        serde_json::from_str(&bench.run(&format!("ifeval --model {model} {run} --save-responses r.jsonl")).ok().out)
            .unwrap();
    let rows = bench.rows("r.jsonl");
    let tokens: usize = rows.iter().map(|row| row["tokens"].as_array().unwrap().len()).sum();
    let ended = rows.iter().filter(|row| row["finish"] == "stop").count();
    let mut named = json!({
        "eval_ifeval/mean_tokens": tokens as f64 / rows.len() as f64,
        "eval_ifeval/ended": ended as f64 / rows.len() as f64,
    });
    for name in ["prompt", "instruction"] {
        for kind in ["strict", "loose"] {
            named[format!("eval_ifeval/{name}_{kind}")] = value[name][kind]["accuracy"].clone();
        }
    }
    named
}

const TRAIN: &str = "--train-file pairs.jsonl --per-device-train-batch-size 2 --max-steps 4 --learning-rate 1e-1";

#[test]
fn training_logs_the_figures_of_its_policy_and_trains_the_same_model() {
    let bench = Bench::new();
    bench.write("prompts.jsonl", short_prompts());
    let asks = "--ifeval-file prompts.jsonl --ifeval-max-new-tokens 8 --eval-steps 2 --save-steps 2";
    for (method, flags) in [("dpo", ""), ("sft", "--use-peft")] {
        let run = format!("{method} --model model {TRAIN} {flags}");
        bench.run(&format!("{run} --output-dir plain-{method}")).ok();
        let done = bench.run(&format!("{run} --output-dir asked-{method} {asks}")).ok();
        assert!(done.out.contains("3 of 3 prompts, as the user's turn, at most 8 new tokens"), "{}", done.out);
        assert!(done.out.contains("eval 4 | ifeval/"), "{}", done.out);
        let file = if method == "dpo" { "model.safetensors" } else { "adapter_model.safetensors" };
        let weights = |run: &str| bench.bytes(&format!("{run}-{method}/{file}"));
        assert!(weights("plain") == weights("asked"), "{method}: generation changed the training");
        let rows = logged(&bench, &format!("asked-{method}"));
        assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), [0, 2, 4]);
        assert_eq!(rows[0].1, figures_of(&bench, "model"), "{method}");
        assert_eq!(rows[2].1, figures_of(&bench, &format!("asked-{method}")), "{method}");
        assert!(rows[0].1 != rows[2].1, "{method}: the figures are those of the policy as it is");
        // A run that resumes after step 2 ends with the same weights and metrics.
        let resumed = format!("{run} --output-dir again-{method} {asks}");
        bench.run(&format!("{resumed} --resume-from-checkpoint asked-{method}/checkpoint-2")).ok();
        assert!(weights("again") == weights("asked"), "{method}");
        assert_eq!(logged(&bench, &format!("again-{method}")).pop(), rows.into_iter().last(), "{method}");
    }
    bench.run("report asked-dpo").ok();
    let page = String::from_utf8(bench.bytes("asked-dpo/report.html")).unwrap();
    assert!(page.contains("Instruction following") && page.contains("Prompts followed"));
    let watched = bench.run("watch asked-dpo --once --page ifeval").ok().out;
    assert!(watched.contains("prompts followed"), "{watched}");
    assert!(bench.json("asked-dpo/run.json")["files"]["ifeval"][0].is_object());
}

#[test]
fn a_subset_of_prompts_is_answered_together_with_evaluation_rows() {
    let bench = Bench::new();
    bench.write("prompts.jsonl", short_prompts());
    let asks = "--eval-file pairs.jsonl --ifeval-file prompts.jsonl --ifeval-samples 2 --ifeval-max-new-tokens 3";
    let done = bench.run(&format!("dpo --model model {TRAIN} --output-dir out {asks}")).ok();
    assert!(done.out.contains("2 of 3 prompts"), "{}", done.out);
    let rows = bench.rows("out/metrics.jsonl");
    let last = rows.iter().rfind(|row| row["kind"] == "eval").unwrap();
    assert!(last["eval_loss"].is_f64() && last["eval_ifeval/prompt_strict"].is_f64(), "{last}");
    let run = |method: &str, flags: &str| format!("{method} --model model {TRAIN} --output-dir none {flags}");
    for (method, flags, parts) in [
        ("reward", "--ifeval-file prompts.jsonl", &["--ifeval-file", "reward", "sft, dpo and kto"][..]),
        ("dpo", "--ifeval-samples 2", &["--ifeval-samples has no effect", "--ifeval-file"]),
        ("sft", "--ifeval-max-new-tokens 2", &["--ifeval-max-new-tokens has no effect"]),
        ("dpo", "--ifeval-file prompts.jsonl --ifeval-samples 4", &["--ifeval-samples 4", "3 prompts"]),
        ("dpo", "--eval-steps 2", &["--eval-steps has no effect", "--ifeval-file"]),
        (
            "dpo",
            "--ifeval-file prompts.jsonl --eval-steps 2 --save-steps 2 --load-best-model-at-end",
            &["--eval-file", "--load-best-model-at-end"],
        ),
    ] {
        bench.run(&run(method, flags)).fails(2, parts);
    }
    bench.write("bad.jsonl", "{\"prompt\": \"x\"}\n");
    bench.run(&run("dpo", "--ifeval-file bad.jsonl")).fails(3, &["bad.jsonl:1", "missing"]);
    assert!(!bench.at("none").exists());
}
