//! Tests of `mapl data convert` and `mapl data export`: a data set has the same content in every file format
//! and row format.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::workbench::Bench;

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Made-up rows as (question, better answer, worse answer).
const ROWS: [[&str; 3]; 4] = [
    ["Name a bird, and\nsay where it lives.", "The wren lives in hedges.", "A bus lives in \"town\"."],
    ["Which number follows 8?", "Nine follows eight. It is odd.", "Eleven, perhaps, or twelve; who knows?"],
    ["Grüße auf Deutsch!", "Guten Tag, schön dich zu sehen.", "Hello there, my friend."],
    ["List two colours.", "- red\n- blue", "Colours are nice, 😀 and many."],
];

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Formats a CSV cell; lists are written as JSON.
fn cell(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn csv(rows: &[Value]) -> String {
    let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
    let header = keys.iter().map(|key| key.to_string()).collect::<Vec<_>>().join(",");
    let row = |row: &Value| keys.iter().map(|key| cell(&row[key.as_str()])).collect::<Vec<_>>().join(",");
    format!("{header}\n{}\n", rows.iter().map(row).collect::<Vec<_>>().join("\n"))
}

#[test]
fn three_shapes_in_three_containers_are_the_same_groups() {
    let bench = Bench::new();
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    type Shape = fn(&dyn Fn(&str, &str) -> Value, &[&str; 3]) -> Value;
    let shapes: [(&str, Shape); 3] = [
        (
            "trl",
            |turn, [q, good, bad]| json!({"prompt": [turn("user", q)], "chosen": [turn("assistant", good)], "rejected": [turn("assistant", bad)]}),
        ),
        ("ultrafeedback", |turn, [q, good, bad]| {
            let whole = |answer: &str| json!([turn("user", q), turn("assistant", answer)]);
            json!({"prompt": q, "chosen": whole(good), "rejected": whole(bad)})
        }),
        ("alpaca", |_, [q, good, bad]| json!({"instruction": q, "chosen": good, "rejected": bad})),
    ];
    let mut expected: Option<(Vec<u8>, Vec<u8>)> = None;
    for (name, shape) in shapes {
        let rows: Vec<Value> = ROWS
            .iter()
            .enumerate()
            .map(|(i, row)| {
                let mut row = shape(&turn, row);
                row["id"] = json!(format!("row {i}"));
                row
            })
            .collect();
        bench.write("a.jsonl", lines(&rows));
        bench.write("a.jsonl.gz", gzip(&lines(&rows)));
        bench.write("a.csv", csv(&rows));
        for file in ["a.jsonl", "a.jsonl.gz", "a.csv"] {
            let done = bench.run(&format!("data convert --input {file} --output groups.jsonl")).ok();
            assert!(done.out.contains("4 groups with 4 comparisons in groups.jsonl"), "{}", done.out);
            bench.run(&format!("data build --input {file} --output built.jsonl")).ok();
            let found = (bench.bytes("groups.jsonl"), bench.bytes("built.jsonl"));
            assert_eq!(expected.get_or_insert_with(|| found.clone()), &found, "{name} in {file}");
        }
    }
    assert_eq!(bench.rows("groups.jsonl")[2]["responses"][0]["content"], ROWS[2][1]);
}

#[test]
fn groups_survive_and_containers_follow_the_name() {
    let bench = Bench::new();
    bench.run("data convert --input groups.jsonl --output again.jsonl.gz").ok();
    assert!(bench.bytes("again.jsonl.gz").starts_with(&[0x1f, 0x8b]));
    bench.run("data convert --input again.jsonl.gz --output plain.jsonl").ok();
    assert_eq!(bench.bytes("plain.jsonl"), bench.bytes("groups.jsonl"));
    let piped = bench.bash("$MAPL data convert --input - --output - < pairs.jsonl 2> log | $MAPL data convert --input - --output end.jsonl").ok();
    assert!(piped.out.contains("24 groups"), "{}", piped.out);
    for name in ["x.csv", "x.parquet", "x.jsonl.zst", "x.arrow"] {
        bench
            .run(&format!("data convert --input pairs.jsonl --output {name}"))
            .fails(2, &["plain or gzipped (.gz) JSON"]);
    }
    // `data convert --to trl` writes the rows of `data export`.
    bench.run("data convert --to trl --input pairs.jsonl --output a.jsonl").ok();
    bench.run("data export --to trl --input pairs.jsonl --output b.jsonl").ok();
    assert_eq!(bench.bytes("a.jsonl"), bench.bytes("b.jsonl"));
    assert_eq!(bench.rows("a.jsonl").len(), 24);
    // A number is appended to a repeated id, because ids of group rows must be distinct.
    let row = json!({"id": "x", "prompt": "a", "chosen": "b", "rejected": "c"});
    bench.write("twice.jsonl", lines(&[row.clone(), row]));
    let done = bench.run("data convert --input twice.jsonl --output twice-groups.jsonl").ok();
    assert!(done.out.contains("1 row has the id of an earlier row"), "{}", done.out);
    bench.run("data check twice-groups.jsonl").ok();
}

#[test]
fn long_rows_are_left_out_and_counted() {
    let bench = Bench::new();
    let turns = json!([{"role": "user", "content": "héé"}]);
    let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
    bench.write(
        "rows.jsonl",
        lines(&[
            json!({"prompt": turns, "chosen": answer("four"), "rejected": answer("thirteen more")}),
            json!({"prompt": turns, "chosen": answer("four"), "rejected": answer("two")}),
        ]),
    );
    let done = bench.run("data convert --input rows.jsonl --max-characters 15 --output short.jsonl").ok();
    assert!(done.out.contains("1 of 2 rows left out, with more than 15 characters"), "{}", done.out);
    assert_eq!(bench.rows("short.jsonl").len(), 1);
    bench.run("data convert --input rows.jsonl --max-characters 16 --output all.jsonl").ok();
    assert_eq!(bench.rows("all.jsonl").len(), 2);
    let refused = bench.run("data convert --input rows.jsonl --max-characters 6 --output none.jsonl");
    refused.fails(3, &["rows.jsonl:2", "7 characters", "--max-characters 6 leaves none"]);
    assert!(!bench.path().join("none.jsonl").exists());
}

#[test]
fn what_rows_of_trl_have_no_place_for_is_counted_by_reason() {
    let bench = Bench::new();
    let term = |prompt: usize, response: usize, sign: i8| json!({"prompt": prompt, "response": response, "sign": sign});
    let pair = json!({"kind": "base", "terms": [term(0, 0, 1), term(0, 1, -1)]});
    let mut weighted = pair.clone();
    weighted["weight"] = json!(0.5);
    let crossed = json!({"kind": "base", "terms": [term(0, 0, 1), term(1, 1, -1)]});
    let intra = json!({"kind": "intra", "terms": [term(0, 0, 1), term(1, 0, -1)]});
    let group = |comparisons: Vec<&Value>| json!({"id": "g", "prompts": ["a", "b"], "responses": ["c", "d"], "comparisons": comparisons});
    bench.write("all.jsonl", lines(&[group(vec![&pair, &weighted, &crossed, &intra])]));
    let done = bench.run("data export --to trl --input all.jsonl --output out.jsonl").ok();
    assert!(
        done.err.contains("3 comparisons are left out")
            && done.err.contains("1 intra or inter, 1 of responses to two prompts, 1 with a weight other than 1"),
        "{}",
        done.err
    );
    assert_eq!(bench.rows("out.jsonl").len(), 1);
    bench.write("half.jsonl", lines(&[group(vec![&weighted])]));
    bench
        .run("data export --to trl --input half.jsonl --output out.jsonl")
        .fails(3, &["none of 1 comparisons", "1 with a weight other than 1"]);
    // Responses are written as text or as messages, like their prompt, because TRL does not read a row that
    // mixes them.
    let prompts = json!([[{"role": "user", "content": "a"}]]);
    let mut mixed = group(vec![&pair]);
    mixed["prompts"] = prompts;
    bench.write("mixed.jsonl", lines(&[mixed]));
    bench.run("data export --to trl --input mixed.jsonl --output out.jsonl").ok();
    assert_eq!(bench.rows("out.jsonl")[0]["chosen"], json!([{"role": "assistant", "content": "c"}]));
    let mut refused = group(vec![&pair]);
    refused["responses"] = json!([{"role": "assistant", "content": "c"}, "d"]);
    bench.write("refused.jsonl", lines(&[refused]));
    bench
        .run("data export --to trl --input refused.jsonl --output out.jsonl")
        .fails(3, &["refused.jsonl:1", "the response is a message, but the prompt is plain text"]);
}

#[test]
fn a_chat_model_says_once_that_plain_text_is_bare() {
    let bench = Bench::new();
    let note = "plain text, which is tokenised without the chat template";
    let reward = "reward --model model --train-file pairs.jsonl --max-steps 1 --overwrite-output-dir --output-dir run";
    let scored = "score --model model --input pairs.jsonl --output scores.jsonl";
    let text = bench.run(&format!("{scored} --apply-chat-template")).ok();
    let turns = bench.rows("scores.jsonl");
    let count = |done: &str| done.matches(note).count();
    assert_eq!(count(&text.err), 0, "{}", text.err);
    let bare = bench.run(scored).ok();
    assert_eq!(count(&bare.err), 1, "{}", bare.err);
    assert_ne!(bench.rows("scores.jsonl"), turns);
    let trained = bench.run(reward).ok();
    assert_eq!(count(&(trained.out + &trained.err)), 1);
    let trained = bench.run(&format!("{reward} --apply-chat-template")).ok();
    assert_eq!(count(&(trained.out + &trained.err)), 0);
    bench.run("data show --tokenizer model --input pairs.jsonl --apply-chat-template --rows 1").ok();
    let checked = bench.bash("$MAPL data check pairs.jsonl --model model > /dev/null");
    assert_eq!(count(&checked.err), 1, "{}", checked.err);
}
