//! Readers of preference files: every format, every container, and the message of every defect.

use std::io::Write;
use std::path::{Path, PathBuf};

use mapl::Error;
use mapl::data::group::{Kind, Message, PreferenceGroup, Prompt, Response};
use mapl::data::source::{
    Format, ReadOptions, SourceRow, read_files, read_files_with_reports, read_sft_files, read_texts,
};
use serde_json::{Value, json};

/// Temporary folder, removed at the end of the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn jsonl(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn read(path: &Path) -> Result<Vec<SourceRow>, Error> {
    read_files(&[path.to_owned()], &ReadOptions::default())
}

/// Error message of a file with these bytes, without the file name. The error must be a data error
/// (exit code 3) and start with the file name.
pub(crate) fn defect(bytes: impl AsRef<[u8]>) -> String {
    let folder = Folder::new();
    let path = folder.write("bad.jsonl", bytes);
    let error = read(&path).expect_err("a damaged file was accepted");
    assert_eq!(error.exit_code(), 3, "{error}");
    let text = error.to_string();
    text.strip_prefix(&path.display().to_string()).unwrap_or_else(|| panic!("{text}")).to_owned()
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn message(role: &str, content: &str) -> Message {
    Message::new(role, content)
}

/// Ten rows of every format, with the groups they must give.
fn formats() -> Vec<(Format, Vec<Value>, Vec<PreferenceGroup>)> {
    let text = |s: String| Response::Text(s);
    let all = [
        Format::Group,
        Format::TextExplicit,
        Format::TextImplicit,
        Format::ChatExplicit,
        Format::ChatImplicit,
        Format::HumanAssistant,
        Format::UltraFeedback,
    ];
    all.into_iter()
        .map(|format| {
            let rows = (0..10).map(|i| {
                let id = format!("r{i}");
                let (question, good, bad) = (format!("Name {i} birds."), format!(" wren {i}"), format!(" no, {i}"));
                let chat = |answer: &str| vec![turn("user", &question), turn("assistant", answer)];
                let plain = |prompt: String, good: &str, bad: &str| {
                    PreferenceGroup::pair(
                        id.clone(),
                        Prompt::Text(prompt),
                        text(good.into()),
                        text(bad.into()),
                        0.5 * f64::from(i),
                    )
                };
                let chat_group = PreferenceGroup::pair(
                    id.clone(),
                    Prompt::Messages(vec![message("user", &question)]),
                    Response::Message(message("assistant", &good)),
                    Response::Message(message("assistant", &bad)),
                    0.5 * f64::from(i),
                );
                let dialogue = format!("\n\nHuman: {question}\n\nAssistant:");
                let (mut row, group) = match format {
                    Format::Group => {
                        let mut group = plain(question.clone(), &good, &bad);
                        group.tools = Some(json!([{"name": "t"}]));
                        (serde_json::to_value(&group).unwrap(), group)
                    }
                    Format::TextExplicit => (
                        json!({"prompt": question, "chosen": good, "rejected": bad}),
                        plain(question.clone(), &good, &bad),
                    ),
                    Format::TextImplicit => (
                        json!({"chosen": format!("{question}{good}"), "rejected": format!("{question}{bad}")}),
                        plain(question.clone(), &good, &bad),
                    ),
                    Format::ChatExplicit => (
                        json!({"prompt": [turn("user", &question)], "chosen": [turn("assistant", &good)],
                               "rejected": [turn("assistant", &bad)]}),
                        chat_group,
                    ),
                    Format::ChatImplicit => (json!({"chosen": chat(&good), "rejected": chat(&bad)}), chat_group),
                    Format::HumanAssistant => (
                        json!({"chosen": format!("{dialogue}{good}"), "rejected": format!("{dialogue}{bad}")}),
                        plain(dialogue.clone(), &good, &bad),
                    ),
                    _ => (json!({"prompt": question, "chosen": chat(&good), "rejected": chat(&bad)}), chat_group),
                };
                row["id"] = json!(id);
                if format != Format::Group {
                    row["margin"] = json!(0.5 * f64::from(i));
                }
                (row, group)
            });
            let (rows, groups) = rows.unzip();
            (format, rows, groups)
        })
        .collect()
}

#[test]
fn every_format_round_trips_in_every_container() {
    for (format, rows, groups) in formats() {
        let folder = Folder::new();
        let lines = jsonl(&rows);
        let array = serde_json::to_string_pretty(&rows).unwrap();
        let containers = [
            folder.write("a.jsonl", &lines),
            folder.write("b.json", &array),
            folder.write("c.jsonl.gz", gzip(lines.as_bytes())),
            folder.write("d.json.gz", gzip(array.as_bytes())),
            folder.write("e.jsonl", format!("\u{feff}\r\n{}", lines.replace('\n', "\r\n\r\n"))),
            folder.write("f.jsonl", lines.trim_end()),
        ];
        for path in containers {
            let (read, reports) =
                read_files_with_reports(std::slice::from_ref(&path), &ReadOptions::default()).unwrap();
            assert_eq!(reports[0].formats, [(format, 10)], "{path:?}");
            assert!(reports[0].ignored_keys.is_empty());
            for (row, group) in read.iter().zip(&groups) {
                assert_eq!(&row.group, group, "{path:?}");
                row.group.validate().unwrap();
            }
            assert_eq!(read.len(), groups.len());
        }
        // All groups can be written as group rows and read again.
        let written: Vec<Value> = groups.iter().map(|group| serde_json::to_value(group).unwrap()).collect();
        let again = read(&folder.write("groups.jsonl", jsonl(&written))).unwrap();
        assert!(again.iter().map(|row| &row.group).eq(&groups));
    }
}

#[test]
fn lines_are_counted_in_every_container() {
    let folder = Folder::new();
    let row = json!({"prompt": "p", "chosen": "a", "rejected": "b"});
    let lines = folder.write("a.jsonl", format!("\n{row}\n\n{row}\n"));
    let array = folder.write("b.json", format!("\n[\n{row},\n\n{}\n]\n", serde_json::to_string_pretty(&row).unwrap()));
    let at = |path: &Path| read(path).unwrap().iter().map(|row| row.line).collect::<Vec<_>>();
    assert_eq!(at(&lines), [2, 4]);
    assert_eq!(at(&array), [3, 5]);
    let ids: Vec<String> = read(&lines).unwrap().into_iter().map(|row| row.group.id).collect();
    assert_eq!(ids, ["a-2", "a-4"]);
    let numbered = folder.write("c.jsonl", r#"{"id": 4711, "prompt": "p", "chosen": "a", "rejected": "b"}"#);
    assert_eq!(read(&numbered).unwrap()[0].group.id, "4711");
}

#[test]
fn numeric_ids_keep_their_text() {
    let folder = Folder::new();
    let ids =
        ["4711", "-0", "18446744073709551615", "18446744073709551616", "123456789012345678901234567890", "1.50", "2E3"];
    let row = |id: &str, key: &str| {
        format!(
            r#"{{"id ": "x\\\"{{", "{key}": {id} , "tools": [], "x": {{"id": 1e9}}, "prompt": "p\"\"id\": 7", "chosen": "a", "rejected": "b"}}"#
        )
    };
    let rows = |key: &str| ids.map(|id| row(id, key));
    let map = ReadOptions { column_map: "id=\u{fc}".parse().unwrap(), ..ReadOptions::default() };
    for (options, key) in [(ReadOptions::default(), "id"), (ReadOptions::default(), "\\u0069d"), (map, "\u{fc}")] {
        let lines = folder.write("a.jsonl", rows(key).join("\n"));
        let array = folder.write("b.json", format!("[{}]", rows(key).join(" ,\n")));
        for path in [lines, array] {
            let read = read_files(&[path], &options).unwrap();
            assert_eq!(read.iter().map(|row| row.group.id.as_str()).collect::<Vec<_>>(), ids, "{key}");
        }
    }
    let margin = folder.write("m.jsonl", r#"{"id": 1, "margin": 0.50, "prompt": "p", "chosen": "a", "rejected": "b"}"#);
    assert_eq!(read(&margin).unwrap()[0].group.comparisons[0].margin, 0.5);
}

#[test]
fn damaged_files_are_refused_with_their_line() {
    let good = r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#;
    let second = |bytes: &[u8]| {
        let mut file = format!("{good}\n").into_bytes();
        file.extend_from_slice(bytes);
        defect(file)
    };
    assert!(second(b"{\"prompt\": ").starts_with(":2: is not valid JSON"));
    assert!(second(b"{\"prompt\": ").contains("cut off"));
    assert!(second(b"{\"prompt\": \"\xff\"}").starts_with(":2: byte 13 of the line is not valid UTF-8"));
    assert!(second(b"{\"prompt\": \"a\0b\"}").starts_with(":2: byte 14 of the line is NUL"));
    assert!(second(b"[1]").starts_with(":2: the row is a list"));
    assert!(second(b"17").starts_with(":2: the row is a number"));
    let half = second(br#"{"prompt": "\ud800", "chosen": "a", "rejected": "b"}"#);
    assert!(half.contains("\"prompt\" holds half of a surrogate pair"), "{half}");
    let large = second(br#"{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e999}"#);
    assert!(large.contains("\"margin\" holds a number beyond double precision"), "{large}");
    let deep = format!("{{\"chosen\": {}", "[".repeat(100_000));
    assert!(second(deep.as_bytes()).contains("nested too deep"));
    let deep = "[".repeat(100_000);
    assert!(defect(&deep).contains("nested too deep"));
    let deep = "{\"a\":".repeat(100_000);
    assert!(defect(&deep).starts_with(":1: is not valid JSON"));
    assert!(defect("").contains(": the file has no rows"));
    assert!(defect("\n \n").contains("no rows"));
    assert!(defect("[]").contains("no rows"));
    assert!(defect(format!("[{good},\n{good}")).starts_with(":2: is not valid JSON"));
    assert!(defect(format!("[{good},\n\"x\"]")).starts_with(":2: the row is a string"));
    assert!(defect(format!("[{good}]\n\n{good}")).starts_with(":3: is not valid JSON"));
    let zipped = gzip(good.repeat(100).as_bytes());
    assert!(defect(&zipped[..zipped.len() - 9]).contains("damaged or cut off"));
}

#[test]
fn defects_of_a_row_name_the_key_and_the_id() {
    let row = |value: Value| defect(format!("{value}\n"));
    let cases = [
        (
            json!({"id": 4711, "prompt": "p", "chosen": "a"}),
            ":1 (id 4711): \"rejected\" is missing; a preference row needs",
        ),
        (json!({"prompt": "p", "rejected": "a"}), ":1 (id bad-1): \"chosen\" is missing"),
        (json!({"prompt": "p", "chosen": null, "rejected": "a"}), "\"chosen\" is missing"),
        (json!({"question": "p"}), "(the row has \"question\")"),
        (json!({}), "(the row has no keys)"),
        (json!({"messages": []}), "mapl sft"),
        (json!({"instruction": "x"}), "a preference row needs chosen and rejected"),
        (json!({"chosen_ids": [1]}), "token ids"),
        (
            json!({"prompt": "p", "chosen": 3, "rejected": "a"}),
            "\"chosen\" must be a string or a list of messages, found a number (3)",
        ),
        (json!({"prompt": true, "chosen": "a", "rejected": "b"}), "\"prompt\" must be"),
        (json!({"prompt": "p", "chosen": "a", "rejected": [turn("assistant", "b")]}), "must both be strings"),
        (json!({"prompt": "p", "chosen": "", "rejected": "b"}), "\"chosen\" is empty"),
        (json!({"prompt": "p", "chosen": "a", "rejected": "b", "margin": "x"}), "\"margin\" must be a number"),
        (json!({"prompt": "p", "chosen": "a", "rejected": "b", "tools": "x"}), "\"tools\" must be a list"),
        (json!({"prompt": "p", "chosen": "a", "rejected": "b", "chat_template_kwargs": 1}), "must be an object"),
        (json!({"id": [], "prompt": "p", "chosen": "a", "rejected": "b"}), "\"id\" must be"),
        (
            json!({"prompt": [], "chosen": [turn("assistant", "b")], "rejected": [turn("assistant", "b")]}),
            "has no messages",
        ),
        (
            json!({"prompt": [turn("user", "q")], "chosen": [turn("user", "b")], "rejected": [turn("assistant", "b")]}),
            "\"chosen\" ends with the role \"user\"",
        ),
        (
            json!({"prompt": [turn("user", "q")], "chosen": [turn("assistant", "")], "rejected": [turn("assistant", "b")]}),
            "is empty",
        ),
        (
            json!({"prompt": [{"role": "user"}], "chosen": [turn("assistant", "b")], "rejected": [turn("assistant", "b")]}),
            "\"prompt\"[0]: \"content\" is missing",
        ),
        (
            json!({"prompt": [{"role": "user", "content": "q", "name": "x"}], "chosen": [turn("assistant", "b")], "rejected": [turn("assistant", "b")]}),
            "key \"name\" is not supported",
        ),
        (
            json!({"prompt": [{"role": 1, "content": "q"}], "chosen": [turn("assistant", "b")], "rejected": [turn("assistant", "b")]}),
            "\"role\" must be a string",
        ),
        (json!({"chosen": [turn("assistant", "a")], "rejected": [turn("assistant", "b")]}), "only the response"),
        (
            json!({"chosen": [turn("user", "x"), turn("assistant", "a")], "rejected": [turn("user", "y"), turn("assistant", "b")]}),
            "differ before their last message",
        ),
        (
            json!({"prompt": "z", "chosen": [turn("user", "x"), turn("assistant", "a")], "rejected": [turn("user", "x"), turn("assistant", "b")]}),
            "none equals the prompt \"z\"",
        ),
        (
            json!({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: b"}),
            "\"chosen\" has no \"\\n\\nAssistant:\"",
        ),
        (
            json!({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: b"}),
            "ends with a Human turn",
        ),
        (
            json!({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: b"}),
            "differ before their last",
        ),
    ];
    for (value, expected) in cases {
        let text = row(value.clone());
        assert!(text.contains(expected), "{value}\n  gave     {text}\n  expected {expected}");
    }
}

#[test]
fn defects_of_a_group_row_name_the_part() {
    let good = json!({"id": "g", "prompts": ["p", "q"], "responses": ["a", "b"], "comparisons": [
        {"kind": "base", "terms": [{"prompt": 0, "response": 0, "sign": 1}, {"prompt": 0, "response": 1, "sign": -1}]}]});
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let broken = |edit: Edit<'_>| {
        let mut row = good.clone();
        edit(&mut row);
        defect(format!("{row}\n"))
    };
    let cases: [(Edit<'_>, &str); 13] = [
        (&|r| r["promts"] = json!([]), ":1 (id g): unknown key \"promts\"; a group row has id, prompts"),
        (&|r| r["responses"] = Value::Null, "\"responses\" is missing"),
        (&|r| r["prompts"] = json!("p"), "\"prompts\" must be a list"),
        (&|r| r["prompts"][0] = json!(1), "prompts[0] must be a string or a list of messages, found a number (1)"),
        (&|r| r["responses"][1] = json!(""), "responses[1] is empty"),
        (&|r| r["responses"][1] = turn("user", "x"), "responses[1] has the role \"user\""),
        (&|r| r["comparisons"] = json!([]), "\"comparisons\" is empty"),
        (&|r| r["comparisons"][0]["kind"] = json!("best"), "comparisons[0]: unknown variant `best`"),
        (&|r| r["comparisons"][0]["wieght"] = json!(1), "comparisons[0]: unknown field `wieght`"),
        (
            &|r| r["comparisons"][0]["terms"][1]["response"] = json!(7),
            "comparisons[0]: term 1: response 7 does not exist",
        ),
        (&|r| r["comparisons"][0]["terms"][1]["sign"] = json!(1), "as many terms"),
        (&|r| r["comparisons"][0]["terms"][1]["prompt"] = json!(-1), "comparisons[0]: invalid value"),
        (
            &|r| r["instructions"] = json!([{"prompt": 5, "id": "x", "kwargs": {}, "satisfied": []}]),
            "instructions[0]: prompt 5",
        ),
    ];
    for (edit, expected) in cases {
        let text = broken(edit);
        assert!(text.contains(expected), "gave {text}\nexpected {expected}");
    }
    let twice = defect(format!("{good}\n{good}\n"));
    assert!(twice.starts_with(":2 (id g): the id was already used in") && twice.contains(":1;"), "{twice}");
}

#[test]
fn mixed_formats_need_a_flag() {
    let folder = Folder::new();
    let path = folder.write(
        "mixed.jsonl",
        jsonl(&[
            json!({"prompt": "p", "chosen": "a", "rejected": "b"}),
            json!({"chosen": "the wren", "rejected": "the owl"}),
        ]),
    );
    let why = read(&path).unwrap_err().to_string();
    assert!(why.contains("line 2") && why.contains("line 1") && why.contains("--mixed-formats"), "{why}");
    let options = ReadOptions { mixed_formats: true, ..ReadOptions::default() };
    let (rows, reports) = read_files_with_reports(&[path], &options).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(reports[0].formats, [(Format::TextExplicit, 1), (Format::TextImplicit, 1)]);
    assert!(reports[0].to_string().contains("1 text pairs with a prompt, 1 text pairs without a prompt"));
}

#[test]
fn columns_are_renamed_and_unused_keys_are_reported() {
    let folder = Folder::new();
    let row = json!({"q": "p", "best": "p yes", "worst": "p no", "chosen": null, "score": 3, "empty": null});
    let path = folder.write("named.jsonl", jsonl(std::slice::from_ref(&row)));
    let map = |text: &str| ReadOptions { column_map: text.parse().unwrap(), ..ReadOptions::default() };
    let (rows, reports) =
        read_files_with_reports(std::slice::from_ref(&path), &map("prompt=q,chosen=best,rejected=worst")).unwrap();
    assert_eq!(rows[0].group.responses[0].text(), "p yes");
    assert_eq!(reports[0].ignored_keys.iter().collect::<Vec<_>>(), ["score"]);
    assert_eq!(reports[0].prompt_repeated, 1);
    let why = read_files(&[path], &map("prompt=other")).unwrap_err().to_string();
    assert!(why.contains("column \"other\", mapped to \"prompt\", is missing") && why.contains("\"best\""), "{why}");
}

#[test]
fn one_response_under_two_conversations_is_an_intra_comparison() {
    let folder = Folder::new();
    let side = |question: &str| json!([turn("user", question), turn("assistant", "wren")]);
    let path =
        folder.write("i.jsonl", jsonl(&[json!({"chosen": side("Name a bird."), "rejected": side("Name a fish.")})]));
    let group = read(&path).unwrap().remove(0).group;
    assert_eq!((group.prompts.len(), group.responses.len()), (2, 1));
    assert_eq!(group.comparisons[0].kind, Kind::Intra);
    assert_eq!(group.sequences(), [(0, 0), (1, 0)]);
}

#[test]
fn a_prompt_is_never_prepended_twice() {
    let folder = Folder::new();
    let q = turn("user", "Name a bird.");
    let whole = |answer: &str| json!([turn("system", "s"), q, turn("assistant", answer)]);
    let rows = [
        json!({"prompt": "Name a bird.", "chosen": whole("wren"), "rejected": whole("stone")}),
        json!({"prompt": [turn("system", "s"), q], "chosen": whole("wren"), "rejected": [turn("assistant", "stone")]}),
        json!({"prompt": [turn("system", "s"), q], "chosen": "wren", "rejected": "stone"}),
    ];
    let expected = Prompt::Messages(vec![message("system", "s"), message("user", "Name a bird.")]);
    for row in rows {
        let group = read(&folder.write("u.jsonl", jsonl(&[row]))).unwrap().remove(0).group;
        assert_eq!(group.prompts, std::slice::from_ref(&expected));
        assert_eq!([group.responses[0].text(), group.responses[1].text()], ["wren", "stone"]);
    }
}

#[test]
fn fine_tuning_rows_of_every_form_are_read() {
    let folder = Folder::new();
    let talk = json!([turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]);
    let path = folder.write(
        "sft.jsonl",
        jsonl(&[
            json!({"prompt": "p", "completion": " c"}),
            json!({"prompt": [turn("user", "a")], "completion": [turn("assistant", "b")]}),
            json!({"messages": talk}),
            json!({"text": "once"}),
            json!({"prompt": "p", "chosen": " c", "rejected": " r"}),
        ]),
    );
    let options = ReadOptions { mixed_formats: true, ..ReadOptions::default() };
    let (rows, _) = read_sft_files(&[path], &options).unwrap();
    assert!(rows.iter().all(|row| row.group.comparisons.is_empty()));
    assert_eq!(rows[0].group.prompts, rows[4].group.prompts);
    assert_eq!(rows[0].group.responses, rows[4].group.responses);
    assert_eq!(rows[2].group.prompts.len(), 2);
    assert_eq!(rows[2].group.responses[1].text(), "d");
    assert_eq!(rows[3].group.prompts, [Prompt::Text(String::new())]);
    let refuse = |row: Value| {
        let path = folder.write("bad.jsonl", jsonl(&[row]));
        read_sft_files(&[path], &options).unwrap_err().to_string()
    };
    assert!(refuse(json!({"messages": [turn("user", "x")]})).contains("no assistant turn"));
    assert!(refuse(json!({"messages": [turn("assistant", "x")]})).contains("starts with an assistant turn"));
    assert!(refuse(json!({"completion": "x"})).contains("\"prompt\" is missing"));
    assert!(refuse(json!({"text": ""})).contains("is empty"));
    assert!(refuse(json!({"text": "a", "messages": []})).contains("only one of"));
    assert!(refuse(json!({"body": "a"})).contains("no text to train on"));
}

#[test]
fn tokenizer_texts_hold_every_side_once() {
    let folder = Folder::new();
    let path = folder.write(
        "t.jsonl",
        jsonl(&[
            json!({"prompt": "p", "chosen": "a", "rejected": "p"}),
            json!({"messages": [turn("user", "u"), turn("assistant", "x"), turn("user", "v"), turn("assistant", "y")]}),
            json!({"text": "p"}),
        ]),
    );
    assert_eq!(read_texts(&[path], &ReadOptions::default()).unwrap().0, ["p", "a", "u", "x", "v", "y", "p"]);
}

#[test]
fn missing_files_and_folders_are_errors() {
    let folder = Folder::new();
    assert_eq!(read(&folder.0.path().join("none.jsonl")).unwrap_err().exit_code(), 1);
    assert!(read(folder.0.path()).unwrap_err().to_string().contains("is a folder"));
    assert_eq!(read_files(&[], &ReadOptions::default()).unwrap_err().exit_code(), 2);
}
