//! Tests of data files: damage that `damage.rs` does not cover, and rows above the length limit.

use std::io::Write as _;

use crate::workbench::Bench;

const GOOD: &str = r#"{"prompt": "Say a word.", "chosen": "A fern.", "rejected": "No."}"#;

fn packed(text: &str) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(text.as_bytes()).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn damaged_files_are_named_with_their_line() {
    let bench = Bench::new();
    let whole = packed(&format!("{GOOD}\n").repeat(40));
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    let mut checksum = whole.clone();
    let end = checksum.len();
    checksum[end - 6] ^= 1;
    let group = |index: &str| {
        format!(
            r#"{{"prompts": ["p"], "responses": ["a", "b"], "comparisons": [{{"kind": "base", "terms":
            [{{"prompt": 0, "response": 0, "sign": 1}}, {{"prompt": 0, "response": {index}, "sign": -1}}]}}]}}"#
        )
        .replace('\n', " ")
    };
    let deep = 100_000;
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (whole[..whole.len() / 2].to_vec(), &["bad.jsonl", "damaged or cut off"]),
        (whole[..12].to_vec(), &["bad.jsonl", "damaged or cut off"]),
        (flipped, &["bad.jsonl"]),
        (checksum, &["bad.jsonl", "damaged or cut off"]),
        (format!("[{GOOD},\n{GOOD}").into(), &["bad.jsonl:2", "cut off"]),
        (format!("[{GOOD},\n{{\"prompt\": \"p").into(), &["bad.jsonl:2", "cut off"]),
        (format!("[{GOOD}]\n{GOOD}").into(), &["bad.jsonl:2", "not valid JSON"]),
        (format!("[{GOOD},\n7]").into(), &["bad.jsonl:2", "a number"]),
        (b"[]".to_vec(), &["bad.jsonl", "no rows"]),
        (format!("{GOOD}\n{}{}\n", "[".repeat(deep), "]".repeat(deep)).into(), &["bad.jsonl:2", "nested too deep"]),
        (
            format!("{GOOD}\n{{\"prompt\": {}\n", "{\"a\":".repeat(deep)).into(),
            &["bad.jsonl:2", "nested too deep"],
        ),
        (format!("[{GOOD},\n{}", "[".repeat(deep)).into(), &["bad.jsonl:2", "nested too deep"]),
        (format!("{GOOD}\n{}\n", GOOD.replace('}', ", \"margin\": 1e400}")).into(), &["bad.jsonl:2"]),
        (format!("{GOOD}\n{}\n", GOOD.replace('}', ", \"margin\": NaN}")).into(), &["bad.jsonl:2"]),
        (format!("{}\n", group("1000000000000000000000000000000")).into(), &["bad.jsonl:1", "comparisons[0]"]),
        (format!("{}\n", group("18446744073709551615")).into(), &["bad.jsonl:1", "does not exist"]),
        (format!("{GOOD}\n{}\n", GOOD.replace('}', ", \"margin\": 1e39}")).into(), &["bad.jsonl:2", "3.4e38"]),
        (format!("{}\n", group("-1")).into(), &["bad.jsonl:1", "comparisons[0]"]),
        (format!("{}\n", group("1.5")).into(), &["bad.jsonl:1", "comparisons[0]"]),
        (format!("{}\n", group("\"0\"")).into(), &["bad.jsonl:1", "comparisons[0]"]),
        (format!("{GOOD}\n{}\n", GOOD.replace("A fern.", "\\ud800")).into(), &["bad.jsonl:2"]),
        (format!("{GOOD}\n\u{0}\u{0}\u{0}\n").into(), &["bad.jsonl:2", "NUL"]),
        (b"\xff\xfe{\x00}\x00".to_vec(), &["bad.jsonl", "UTF-16"]),
        (GOOD.replace("\"A fern.\"", "[]").into(), &["bad.jsonl:1", "chosen"]),
        (
            br#"{"chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": ""}], "rejected": [{"role":
            "user", "content": "p"}, {"role": "assistant", "content": "a"}]}"#
                .iter()
                .map(|&b| if b == b'\n' { b' ' } else { b })
                .collect(),
            &["bad.jsonl:1", "empty"],
        ),
    ];
    for (content, parts) in cases {
        bench.write("bad.jsonl", content);
        let before = bench.listing();
        bench.run("reward --model model --train-file bad.jsonl --output-dir out").fails(3, parts);
        bench.run("data build --input pairs.jsonl bad.jsonl --output b.jsonl --report r.json").fails(3, parts);
        assert_eq!(bench.listing(), before, "{parts:?}");
    }
}

#[test]
fn a_key_that_a_row_has_twice_is_named() {
    let bench = Bench::new();
    bench.write(
        "twice.jsonl",
        r#"{"prompt": "x", "chosen": "A", "prompt": "Say", "chosen": " fern", "rejected": " no"}"#,
    );
    let build = "data build --input twice.jsonl --output b.jsonl --objective base";
    bench.run(build).fails(3, &["twice.jsonl:1", "\"prompt\" twice"]);
    assert!(!bench.at("b.jsonl").exists());
}

#[test]
fn a_missing_file_is_named() {
    let bench = Bench::new();
    let before = bench.listing();
    for words in [
        "sft --model model --train-file none.jsonl --output-dir out",
        "dpo --model model --train-file pairs.jsonl --eval-file none.jsonl --output-dir out",
        "score --model model --input none.jsonl --output s.jsonl",
        "data build --input none.jsonl --output b.jsonl",
    ] {
        bench.run(words).fails(1, &["cannot open none.jsonl", "No such file"]);
    }
    bench.run("dpo --model model --train-file model --output-dir out").fails(3, &["model", "is a folder"]);
    bench
        .run("dpo --model model --train-file pairs.jsonl --chat-template-path none.jinja --output-dir out")
        .fails(1, &["none.jinja"]);
    assert_eq!(bench.listing(), before);
}

/// Writes four rows: one exceeds 64 tokens by its prompt, the last by its chosen response.
fn long_rows(bench: &Bench) {
    let row = |prompt: &str, chosen: &str| {
        serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": " no"}).to_string()
    };
    let fern = " fern".repeat(200);
    let rows = [row("Say", " a fern"), row("Say", " two ferns"), row(&format!("Say{fern}"), " yes"), row("Say", &fern)];
    bench.write("long.jsonl", rows.join("\n"));
}

#[test]
fn rows_above_the_limit_are_dropped_truncated_or_refused_and_counted() {
    let bench = Bench::new();
    long_rows(&bench);
    let run = |rule: &str, out: &str| {
        bench.run(&format!(
            "dpo --model model --train-file long.jsonl --output-dir {out} --max-length 64 --max-steps 1 \
             --max-drop-fraction 0.6 {rule}"
        ))
    };
    let dropped = run("", "a").ok().out;
    assert!(dropped.contains("4 read, 2 kept (base 2); dropped: 2 too long"), "{dropped}");
    let left = run("--on-too-long truncate-prompt-left", "b").ok().out;
    assert!(left.contains("4 read, 3 kept (base 3); dropped: 1 too long even after cutting"), "{left}");
    assert!(left.contains("1 prompt on the left, 0 responses on the right"), "{left}");
    let right = run("--on-too-long truncate-completion-right", "c").ok().out;
    assert!(right.contains("4 read, 3 kept (base 3); dropped: 1 too long even after cutting"), "{right}");
    assert!(right.contains("0 prompts on the left, 1 response on the right"), "{right}");
    let before = bench.listing();
    run("--on-too-long error", "d").fails(3, &["long.jsonl:3", "--max-length 64", "--on-too-long"]);
    bench
        .run("dpo --model model --train-file long.jsonl --output-dir f --max-length 64 --max-drop-fraction 0.1")
        .fails(3, &["long.jsonl:3", "--max-drop-fraction"]);
    assert_eq!(bench.listing(), before);
}
