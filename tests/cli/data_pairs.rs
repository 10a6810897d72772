//! Tests of `mapl data pairs`, which turns judged responses of a policy into preference rows.

use serde_json::{Value, json};

use crate::workbench::Bench;

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Responses to two prompts with instructions, and to a third prompt with a single response.
fn samples() -> String {
    let row = |prompt: &str, response: &str, ids: &[&str]| {
        json!({"key": 1, "prompt": prompt, "instruction_id_list": ids, "kwargs": vec![json!({}); ids.len()],
               "response": response, "tokens": [1, 2], "finish": "stop"})
    };
    let both = ["punctuation:no_comma", "change_case:english_lowercase"];
    lines(&[
        row("One", "all of it is in lower case and has no comma", &both),
        row("One", "Some, but not all, of This", &both),
        row("Two", "yes", &both[..1]),
        row("One", "this, however, is the half of it that was asked", &both),
        row("Two", "no", &both[..1]),
        row("Three", "alone", &both[..1]),
        row("One", "", &both),
        row("One", "another text in lower case without any mark", &both),
    ])
}

#[test]
fn the_share_of_instructions_makes_pairs() {
    let bench = Bench::new();
    bench.write("samples.jsonl", samples());
    let run = "data pairs --input samples.jsonl --output pairs-out.jsonl --judge ifeval";
    let done = bench.run(run).ok();
    let best = "all of it is in lower case and has no comma";
    let worst = "Some, but not all, of This";
    let row = json!({"id": "samples-1", "prompt": "One", "chosen": best, "rejected": worst, "score_chosen": 1.0,
                     "score_rejected": 0.0});
    assert_eq!(bench.rows("pairs-out.jsonl"), [row]);
    for part in ["1 pair of 8 responses to 3 prompts", "1 tie,", "1 prompt with one response", "1 empty response"] {
        assert!(done.out.contains(part), "{part} in {}", done.out);
    }
    let count = |flags: &str| {
        let done = bench.run(&format!("{run} {flags}")).ok();
        (bench.rows("pairs-out.jsonl"), done.out)
    };
    let (rows, out) = count("--select best-of-n --margin");
    assert_eq!(rows.iter().map(|row| row["margin"].as_f64().unwrap()).collect::<Vec<_>>(), [1.0, 0.5]);
    assert_eq!((&rows[0]["id"], &rows[1]["id"]), (&json!("samples-1-1"), &json!("samples-1-2")));
    assert!(out.contains("2 ties"), "{out}");
    let (rows, out) = count("--select all --min-gap 0.75");
    assert!(rows.len() == 2 && out.contains("2 ties, 3 pairs below --min-gap"), "{out}");
    // `data check`, `dpo` and `reward` read the written rows without changes.
    bench.run("data check pairs-out.jsonl").ok();
    let (rows, _) = count("--select all --apply-chat-template");
    assert_eq!(rows.len(), 5);
    assert_eq!(rows[0]["prompt"], json!([{"role": "user", "content": "One"}]));
    assert_eq!(rows[0]["rejected"], json!([{"role": "assistant", "content": worst}]));
    bench.run("dpo --model model --train-file pairs-out.jsonl --max-steps 1 --output-dir policy").ok();
    bench.run("reward --model model --train-file pairs-out.jsonl --score-margin --max-steps 1 --output-dir judge").ok();
}

/// Generates responses with a policy, scores them with a reward model, and builds pairs from the rewards.
#[test]
fn rewards_of_generated_responses_make_pairs() {
    let bench = Bench::new();
    bench.run("reward --model model --train-file pairs.jsonl --max-steps 1 --output-dir judge").ok();
    let prompts = [
        json!({"prompt": "the cat", "id": "t"}),
        json!({"prompt": [{"role": "user", "content": "name a colour"}], "n": 5}),
    ];
    for (at, prompt) in prompts.iter().enumerate() {
        bench.write("prompts.jsonl", lines(std::slice::from_ref(prompt)));
        let generate = "generate --model model --input prompts.jsonl --output samples.jsonl --temperature 1.5 \
                        --num-return-sequences 4 --max-new-tokens 8 --seed 1";
        bench.run(generate).ok();
        let pairs = "data pairs --input samples.jsonl --output out.jsonl --reward-model judge --select all";
        bench.run(pairs).ok();
        let rows = bench.rows("out.jsonl");
        assert!(!rows.is_empty() && rows[0]["prompt"] == prompt["prompt"]);
        // The scores are those of `mapl score`.
        bench.run("score --model judge --input samples.jsonl --output scores.jsonl").ok();
        let rewards: Vec<f64> =
            bench.rows("scores.jsonl").iter().map(|row| row["sequences"][0]["reward"].as_f64().unwrap()).collect();
        for row in &rows {
            let [chosen, rejected] = ["score_chosen", "score_rejected"].map(|key| row[key].as_f64().unwrap());
            let known = |score: f64| rewards.iter().any(|reward| (reward - score).abs() < 1e-5);
            assert!(chosen > rejected && known(chosen) && known(rejected), "{at}: {row}");
        }
        bench.run("data check out.jsonl").ok();
    }
}

#[test]
fn what_cannot_be_judged_is_refused() {
    let bench = Bench::new();
    bench.write("samples.jsonl", samples());
    let bare = [json!({"prompt": "a", "response": "b"}), json!({"prompt": "a", "response": "c"})];
    bench.write("bare.jsonl", lines(&bare));
    bench.write("single.jsonl", lines(&bare[..1]));
    bench.write("pair.jsonl", lines(&[json!({"prompt": "a", "chosen": "b", "rejected": "c"})]));
    let mut differ = [bare[0].clone(), bare[1].clone()];
    differ[0]["instruction_id_list"] = json!(["punctuation:no_comma"]);
    differ[0]["kwargs"] = json!([{}]);
    bench.write("differ.jsonl", lines(&differ));
    let run = |flags: &str| bench.run(&format!("data pairs --output out.jsonl {flags}"));
    run("--input bare.jsonl").fails(2, &["--judge", "--reward-model"]);
    run("--input bare.jsonl --judge ifeval").fails(3, &["bare.jsonl:1", "rows of IFEval"]);
    run("--input single.jsonl --judge ifeval").fails(3, &["1 prompt with one response", "--num-return-sequences"]);
    run("--input pair.jsonl --judge ifeval").fails(3, &["pair.jsonl:1", "\"response\" is missing"]);
    run("--input differ.jsonl --judge ifeval").fails(3, &["differ.jsonl:2", "instructions differ"]);
    run("--input bare.jsonl --reward-model model").fails(6, &["is a language model"]);
    run("--input bare.jsonl --judge ifeval --max-length 9").fails(2, &["--max-length has no effect"]);
    run("--input samples.jsonl --judge ifeval --min-gap 2")
        .fails(3, &["1 pair below --min-gap", "a smaller --min-gap"]);
    // A response that is a message is an error for a plain-text prompt. Equal ids in two files are made
    // distinct.
    let message = |text: &str| {
        json!({"prompt": "a", "response": [{"role": "assistant", "content": text}], "kwargs": [{}],
               "instruction_id_list": ["punctuation:no_comma"]})
    };
    bench.write("message.jsonl", lines(&[message("b"), message("c, d")]));
    run("--input message.jsonl --judge ifeval")
        .fails(3, &["message.jsonl:1", "the response is a message, but the prompt is plain text"]);

    run("--input samples.jsonl --judge ifeval --min-gap=-1").fails(2, &["at least 0"]);
    assert!(!bench.at("out.jsonl").exists());
    let other = samples().replace("\"One\"", "\"Uno\"");
    ["x", "y"].iter().for_each(|folder| std::fs::create_dir(bench.at(folder)).unwrap());
    bench.write("x/samples.jsonl", samples());
    bench.write("y/samples.jsonl", other.lines().filter(|line| line.contains("Uno")).collect::<Vec<_>>().join("\n"));
    let done = run("--input x/samples.jsonl y/samples.jsonl --judge ifeval").ok();
    let ids: Vec<Value> = bench.rows("out.jsonl").iter().map(|row| row["id"].clone()).collect();
    assert_eq!(ids, ["samples-1", "samples-1-2"]);
    assert!(done.out.contains("1 id got a number appended, because another pair has the same id"), "{}", done.out);
}
