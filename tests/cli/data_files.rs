//! Tests of the ways to name data files in a command: standard input and output, folders, patterns and
//! compressed outputs; and of bad rows.

use std::io::Read as _;

use serde_json::json;

use crate::workbench::Bench;

#[test]
fn standard_input_and_output_join_commands() {
    let bench = Bench::new();
    bench.run("data build --input pairs.jsonl --output plain.jsonl").ok();
    let piped = bench.bash("cat pairs.jsonl | $MAPL data build --input - --output - 2> log > piped.jsonl").ok();
    assert_eq!(piped.out, "");
    let log = String::from_utf8(bench.bytes("log")).unwrap();
    assert!(log.contains("groups in -"), "{log}");
    assert_eq!(bench.bytes("piped.jsonl"), bench.bytes("plain.jsonl"));
    bench.bash("gzip < pairs.jsonl | $MAPL data check - --json > check.json").ok();
    assert_eq!(bench.json("check.json")["rows"], bench.rows("pairs.jsonl").len());
    bench
        .bash("$MAPL data build --input - - --output x.jsonl < pairs.jsonl")
        .fails(2, &["standard input (-) is named twice"]);
    let row = json!({"prompt": "q", "chosen": " a", "rejected": ""});
    bench.write("bad.jsonl", row.to_string());
    bench
        .bash("$MAPL data build --input - --output x.jsonl < bad.jsonl")
        .fails(3, &["-:1 (id stdin-1): \"rejected\" is empty"]);
}

/// A pipe may give one byte at first, and the remaining bytes later.
#[test]
fn a_slow_pipe_is_read_like_a_file() {
    let bench = Bench::new();
    bench.run("data build --input pairs.jsonl --output plain.jsonl").ok();
    bench.bash("gzip -c pairs.jsonl > a.gz; (printf '\\357\\273\\277'; cat pairs.jsonl) > marked.jsonl").ok();
    for file in ["a.gz", "marked.jsonl"] {
        let slow = format!("(head -c 1 {file}; sleep .3; tail -c +2 {file})");
        bench.bash(&format!("{slow} | $MAPL data build --input - --output piped.jsonl")).ok();
        assert_eq!(bench.bytes("piped.jsonl"), bench.bytes("plain.jsonl"), "{file}");
    }
}

#[test]
fn folders_patterns_and_compressed_outputs_are_read_and_written() {
    let bench = Bench::new();
    bench.bash("mkdir shards && split -n l/3 --additional-suffix=.jsonl pairs.jsonl shards/train- && gzip shards/train-ab.jsonl").ok();
    let before = bench.listing();
    bench.run("data build --input pairs.jsonl --output plain.jsonl").ok();
    bench.run("data build --input shards --output a.jsonl").ok();
    bench.run("data build --input shards/train-*.jsonl* --output b.jsonl.gz").ok();
    let mut unpacked = String::new();
    flate2::read::GzDecoder::new(&bench.bytes("b.jsonl.gz")[..]).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked.as_bytes(), bench.bytes("a.jsonl"));
    assert_eq!(bench.rows("a.jsonl").len(), bench.rows("plain.jsonl").len());
    bench.run("data build --input b.jsonl.gz --output c.jsonl").ok();
    assert_eq!(bench.bytes("c.jsonl"), bench.bytes("a.jsonl"));
    bench.run("sft --model model --train-file shards --output-dir run --max-steps 1 --quiet").ok();
    assert_eq!(bench.json("run/run.json")["files"]["train"].as_array().unwrap().len(), 3);
    // Outputs that would replace a shard, formats that are not written, and patterns without a file are
    // errors.
    bench.run("data build --input shards --output shards/train-aa.jsonl").fails(2, &["shards/train-aa.jsonl", "input"]);
    bench.run("data build --input pairs.jsonl --output d.jsonl.zst").fails(2, &["plain or gzipped (.gz) JSON"]);
    bench.run("data build --input shards/none-* --output d.jsonl").fails(3, &["shards/none-*", "matches no file"]);
    assert!(before.iter().all(|path| path.exists()));
}

#[test]
fn pairs_of_any_shape_are_exported_as_rows_of_trl() {
    let bench = Bench::new();
    let list = json!({"id": "l", "question": "Name a bird.", "responses": ["A bus.", "A wren.", "A tit."], "scores": [1, 3, 2]});
    let text = json!({"id": "t", "prompt": "2+2=", "chosen": " 4", "rejected": " 5", "margin": 0.5});
    bench.write("rows.jsonl", format!("{list}\n{text}\n"));
    // Hugging Face `datasets` reads a column either as text or as messages, so a mix of both is an error.
    bench
        .run("data export --to trl --input rows.jsonl --mixed-formats --output trl.jsonl")
        .fails(3, &["rows.jsonl:2", "is text, and rows.jsonl:1 is a conversation", "two files"]);
    bench.write("list.jsonl", list.to_string());
    bench.write("text.jsonl", text.to_string());
    bench.run("data export --to trl --input list.jsonl --output trl.jsonl").ok();
    bench.run("data export --to trl --input text.jsonl --output plain.jsonl").ok();
    let turn = |role: &str, text: &str| json!([{"role": role, "content": text}]);
    let pair = |rejected: &str| {
        json!({"id": "l", "prompt": turn("user", "Name a bird."), "chosen": turn("assistant", "A wren."),
               "rejected": turn("assistant", rejected)})
    };
    assert_eq!(bench.rows("trl.jsonl"), [pair("A bus."), pair("A tit.")]);
    assert_eq!(bench.rows("plain.jsonl"), [text]);
    // Comparisons that are left out are counted, and it is an error if none is left.
    bench.run("data build --input trl.jsonl --objective mapl --output built.jsonl").ok();
    let comparisons = |row: &serde_json::Value| row["comparisons"].as_array().unwrap().len();
    let built: usize = bench.rows("built.jsonl").iter().map(comparisons).sum();
    let done = bench.run("data export --to trl --input built.jsonl --output again.jsonl").ok();
    assert_eq!(bench.rows("again.jsonl").len(), 2);
    assert!(built == 2 || done.err.contains(&format!("{} comparisons are left out", built - 2)), "{}", done.err);
    let side = |user: &str| json!([{"role": "user", "content": user}, {"role": "assistant", "content": "A wren."}]);
    bench.write("intra.jsonl", json!({"chosen": side("Name a bird."), "rejected": side("Name a bus.")}).to_string());
    bench.run("data export --to trl --input intra.jsonl --output x.jsonl").fails(3, &["none of 1 comparisons"]);
}

#[test]
fn bad_rows_are_left_out_with_a_warning_up_to_a_limit() {
    let bench = Bench::new();
    let row = |rejected: &str| json!({"prompt": "q", "chosen": " a", "rejected": rejected}).to_string();
    bench.write("rows.jsonl", [row(" b"), row(""), "{".into(), row(" c"), row("")].join("\n"));
    let build = "data build --input rows.jsonl --output groups2.jsonl --skip-bad-rows";
    bench.run(&format!("{build} 2")).fails(3, &["rows.jsonl:5", "is empty", "more than --skip-bad-rows 2"]);
    let done = bench.run(&format!("{build} 3")).ok();
    assert!(done.err.contains("warning: rows.jsonl:2: 2 bad rows are left out: \"rejected\" is empty"), "{}", done.err);
    assert!(done.err.contains("warning: rows.jsonl:3: 1 bad row is left out: is not valid JSON"), "{}", done.err);
    assert!(done.out.contains("3 bad rows are left out"), "{}", done.out);
    assert_eq!(bench.rows("groups2.jsonl").len(), 2);
}
