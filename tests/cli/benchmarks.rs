//! Tests of `mapl eval` on rows of reward benchmarks: recognition of the benchmark, metrics as JSON and as a
//! table, and bad rows. Expected metrics are computed from the scores of `mapl score`.

use serde_json::{Value, json};

use crate::workbench::Bench;

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn rm_bench() -> Value {
    json!({
        "id": 4, "prompt": "why is grass green", "domain": "safety-refuse",
        "chosen": ["a b", "a b c", "a b c d"], "rejected": ["e f", "e f g", "e f g h"],
    })
}

fn rmb(best_of: bool) -> Value {
    let turns = json!([{"role": "user", "content": "hello", "language": "English"}]);
    if best_of {
        json!({
            "conversation_input": turns, "bon_uid": "7", "category_path": "BoN_set/Helpfulness/Chat/Discussion",
            "bon_best": {"answer": "yes it is", "llm_name": "x"},
            "loser_list": [{"answer": "no", "llm_name": "y"}, {"answer": "maybe so", "llm_name": "z"}],
        })
    } else {
        json!({
            "conversation_input": turns, "pair_uid": "8", "category_path": "Pairwise_set/Harmlessness/S1",
            "chosen": {"answer": "I cannot", "llm_name": "x"}, "reject": {"answer": "sure", "llm_name": "y"},
        })
    }
}

fn reward_bench_2() -> Vec<Value> {
    let row = |id: &str, subset: &str, chosen: Value, rejected: Value| {
        let correct = chosen.as_array().unwrap().len();
        json!({"id": id, "prompt": "name a colour", "subset": subset, "chosen": chosen, "rejected": rejected,
               "num_correct": correct, "num_rejected": rejected.as_array().unwrap().len(), "models": ["m"],
               "total_completions": correct + rejected.as_array().unwrap().len(), "additional_metadata": {"x": 1}})
    };
    vec![
        row("1", "Focus", json!(["red"]), json!(["cat", "dog", "tree"])),
        row("ref:3", "Ties", json!(["red"]), json!(["cat", "dog"])),
        row("tied:3", "Ties", json!(["red", "blue"]), json!(["cat", "dog"])),
    ]
}

fn if_reward_bench() -> Value {
    let edge = |a: usize, b: usize| json!({"chosen": {"response_id": a}, "rejected": {"response_id": b}});
    json!({
        "id": 1, "response_generation_model": "m", "instruction_type": "Multi_Turn",
        "messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"},
                     {"role": "assistant", "content": "hi"}, {"role": "user", "content": "why"}],
        "checklist": ["short", "kind"], "constraint_type": [[], []],
        "responses": [{"response": "so it is"}, {"response": "because"}, {"response": "no"}],
        "preference_graph": [edge(0, 1), edge(0, 2)],
    })
}

/// Scores that `mapl score` gives to the responses of one prompt.
fn scores(bench: &Bench, prompt: &Value, responses: &[&str]) -> Vec<f64> {
    let all: Vec<usize> = (1..responses.len()).collect();
    let pair = |other: &usize| {
        json!({"kind": "base", "terms": [
            {"prompt": 0, "response": 0, "sign": 1}, {"prompt": 0, "response": other, "sign": -1}]})
    };
    let answers: Vec<Value> = responses.iter().map(|text| json!({"role": "assistant", "content": text})).collect();
    let group = json!({"id": "g", "prompts": [prompt], "responses": answers,
                       "comparisons": all.iter().map(pair).collect::<Vec<_>>()});
    bench.write("group.jsonl", lines(&[group]));
    bench.run("score --model judge --input group.jsonl --output scores.jsonl").ok();
    let row = &bench.rows("scores.jsonl")[0];
    row["sequences"].as_array().unwrap().iter().map(|one| one["reward"].as_f64().unwrap()).collect()
}

fn bench() -> Bench {
    let bench = Bench::new();
    let train = "--train-file pairs.jsonl --max-steps 1 --per-device-train-batch-size 2";
    bench.run(&format!("reward --model model --output-dir judge {train}")).ok();
    bench
}

#[test]
fn every_benchmark_is_recognised_and_its_figures_follow_from_its_scores() {
    let bench = bench();
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    let figures = |file: &str, flags: &str| -> Value {
        let run = format!("eval --model judge --input {file} --json --output rows.jsonl {flags}");
        serde_json::from_str(&bench.run(&run).ok().out).unwrap()
    };
    let of_row = |row: &Value| -> Vec<f64> {
        row["scores"].as_array().unwrap().iter().map(|score| score.as_f64().unwrap()).collect()
    };
    let right = |a: f64, b: f64| f64::from(u8::from(a > b));

    // RM-Bench is published as a JSON document, so the test file is a JSON document too.
    bench.write("rm.json", json!([rm_bench()]).to_string());
    let value = figures("rm.json", "");
    let s = scores(&bench, &user("why is grass green"), &["a b", "a b c", "a b c d", "e f", "e f g", "e f g h"]);
    assert_eq!(of_row(&bench.rows("rows.jsonl")[0]), s);
    let hard = (right(s[0], s[4]) + right(s[0], s[5]) + right(s[1], s[5])) / 3.0;
    let normal = (right(s[0], s[3]) + right(s[1], s[4]) + right(s[2], s[5])) / 3.0;
    assert_eq!((&value["benchmark"], &value["rows"]), (&json!("rm-bench"), &json!(1)));
    let number = |name: &str| value["figures"][name]["value"].as_f64().unwrap();
    assert!((number("hard") - hard).abs() < 1e-12 && (number("safety/normal") - normal).abs() < 1e-12, "{value}");
    assert_eq!(bench.rows("rows.jsonl")[0]["id"], "4");

    bench.write("rmb.json", json!([rmb(true), rmb(false)]).to_string());
    let value = figures("rmb.json", "");
    let s = scores(&bench, &user("hello"), &["yes it is", "no", "maybe so"]);
    assert_eq!(of_row(&bench.rows("rows.jsonl")[0]), s);
    let best = f64::from(u8::from(s[0] > s[1] && s[0] > s[2]));
    assert_eq!(value["figures"]["Helpfulness/best-of-n"]["value"], best);
    let pair = scores(&bench, &user("hello"), &["I cannot", "sure"]);
    assert_eq!(value["figures"]["Harmlessness/pairwise/S1"]["value"], right(pair[0], pair[1]));
    assert_eq!(value["figures"]["overall"]["value"], (best + right(pair[0], pair[1])) / 2.0);

    bench.write("rb2.jsonl", lines(&reward_bench_2()));
    let value = figures("rb2.jsonl", "--bootstrap 200");
    let rows = bench.rows("rows.jsonl");
    let s = scores(&bench, &user("name a colour"), &["red", "blue", "cat", "dog"]);
    assert_eq!(of_row(&rows[2]), s);
    let margin = s[0].min(s[1]) - s[2].max(s[3]);
    assert_eq!(rows[2]["margin"], margin);
    assert_eq!(value["figures"]["Ties/tied accuracy"]["value"], right(margin, 0.0));
    let ties = value["figures"]["Ties"]["value"].as_f64().unwrap();
    let overall = (ties + value["figures"]["Focus"]["value"].as_f64().unwrap()) / 2.0;
    assert!((value["figures"]["overall"]["value"].as_f64().unwrap() - overall).abs() < 1e-12, "{value}");

    bench.write("graph.jsonl", lines(&[if_reward_bench()]));
    let value = figures("graph.jsonl", "");
    let s = scores(&bench, &if_reward_bench()["messages"], &["so it is", "because", "no"]);
    assert_eq!(of_row(&bench.rows("rows.jsonl")[0]), s);
    let share = (right(s[0], s[1]) + right(s[0], s[2])) / 2.0;
    assert_eq!(value["figures"]["accuracy"]["value"], share);
    assert_eq!(value["figures"]["tau/Multi_Turn"]["value"], 2.0 * share - 1.0);
    assert_eq!(value["figures"]["accuracy/turn 2"]["rows"], 1);

    // For standard input, `--benchmark` must name the benchmark. Metrics are also printed as a table.
    // `--benchmark none` reads ordinary rows.
    let script = r#"cat graph.jsonl | "$MAPL" eval --model judge --input - --benchmark if-reward-bench"#;
    let table = bench.bash(script).ok().out;
    assert!(table.contains("if-reward-bench: 1 rows") && table.contains("tau/Multi_Turn"), "{table}");
    let ordinary = bench.run("eval --model judge --input rb2.jsonl --benchmark none --json").ok().out;
    assert!(serde_json::from_str::<Value>(&ordinary).unwrap()["semantic"].is_object(), "{ordinary}");
}

/// Rows with conversations are read as ordinary rows although they have keys of a benchmark. Rows with lists
/// of texts are read as ordinary rows only with `--benchmark none`.
#[test]
fn ordinary_rows_with_keys_of_a_benchmark_are_ordinary() {
    let bench = bench();
    let turn = |text: &str| json!([{"role": "assistant", "content": text}]);
    let row = json!({"prompt": [{"role": "user", "content": "hello"}], "chosen": turn("yes"), "rejected": turn("no"),
                     "domain": "math", "subset": "a", "num_correct": 1});
    bench.write("rows.jsonl", lines(&[row]));
    let out = bench.run("eval --model judge --input rows.jsonl --bootstrap 0").ok().out;
    assert!(out.contains("semantic"), "{out}");
    bench.write("two.jsonl", lines(&[json!({"prompt": "q", "chosen": ["a"], "rejected": ["b"], "domain": "math"})]));
    bench.run("eval --model judge --input two.jsonl").fails(3, &["two.jsonl:1", "--benchmark none"]);
    bench.run("eval --model judge --input two.jsonl --benchmark none --bootstrap 0").ok();
    bench.write("rm.jsonl", lines(&[rm_bench()]));
    bench
        .run("eval --model judge --input rm.jsonl --apply-chat-template")
        .fails(2, &["--apply-chat-template has no effect"]);
}

#[test]
fn bad_rows_of_benchmarks_are_named_by_file_and_line() {
    let bench = bench();
    let with = |mut row: Value, key: &str, value: Value| {
        row[key] = value;
        row
    };
    let [single, reference, tied] = &reward_bench_2()[..] else { panic!() };
    let graph = if_reward_bench();
    let edge = json!([{"chosen": {"response_id": 0}, "rejected": {"response_id": 3}}]);
    for (name, rows, parts) in [
        ("rm-bench", vec![rm_bench(), rmb(true)], &["bad.jsonl:2", "is a row of rmb", "rm-bench"][..]),
        ("rm-bench", vec![rm_bench(), json!({"prompt": "x"})], &["bad.jsonl:2", "is not a row of rm-bench", "domain"]),
        (
            "rm-bench",
            vec![with(rm_bench(), "chosen", json!(["a"]))],
            &["bad.jsonl:1", "three styles", "\"chosen\" has 1"],
        ),
        (
            "rm-bench",
            vec![with(rm_bench(), "rejected", json!(["a", "", "b"]))],
            &["bad.jsonl:1", "\"rejected\"", "empty"],
        ),
        ("rmb", vec![with(rmb(true), "loser_list", json!([]))], &["bad.jsonl:1", "\"loser_list\""]),
        ("rmb", vec![with(rmb(false), "reject", json!({"answer": ""}))], &["bad.jsonl:1", "\"reject\""]),
        ("rmb", vec![with(rmb(false), "category_path", json!("S1"))], &["bad.jsonl:1", "\"category_path\""]),
        ("reward-bench-2", vec![with(single.clone(), "num_correct", json!(2))], &["bad.jsonl:1", "\"num_correct\""]),
        ("reward-bench-2", vec![with(tied.clone(), "id", json!("3"))], &["bad.jsonl:1", "ref:N or tied:N"]),
        ("reward-bench-2", vec![with(tied.clone(), "subset", json!("Math"))], &["bad.jsonl:1", "only the subset Ties"]),
        ("reward-bench-2", vec![single.clone(), tied.clone()], &["bad.jsonl:2", "one of the two is missing"]),
        (
            "reward-bench-2",
            vec![reference.clone(), tied.clone(), tied.clone()],
            &["bad.jsonl:3", "the id is the same as at bad.jsonl:2"],
        ),
        ("if-reward-bench", vec![with(graph.clone(), "preference_graph", json!([]))], &["bad.jsonl:1", "no edges"]),
        (
            "if-reward-bench",
            vec![with(graph.clone(), "preference_graph", edge)],
            &["bad.jsonl:1", "\"rejected\"", "below 3"],
        ),
        ("if-reward-bench", vec![with(graph, "messages", json!([{"role": "user"}]))], &["bad.jsonl:1", "\"messages\""]),
    ] {
        bench.write("bad.jsonl", lines(&rows));
        bench.run(&format!("eval --model judge --input bad.jsonl --benchmark {name}")).fails(3, parts);
    }
    bench.write("good.jsonl", lines(&[rm_bench()]));
    let run = "eval --model judge --input good.jsonl";
    bench.run(&format!("{run} --prompt-blindness")).fails(2, &["--prompt-blindness has no effect", "rm-bench"]);
    bench.run(&format!("{run} --pairs best")).fails(2, &["--pairs"]);
    bench.run(&format!("{run} --benchmark rm")).fails(2, &["rm-bench, rmb"]);
    bench.run("eval --compare judge judge --input good.jsonl --benchmark rmb").fails(2, &["--benchmark has no effect"]);
}
