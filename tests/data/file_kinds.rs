//! Files that hold no rows: the error names the kind of file and a remedy. Further tests cover NaN and
//! infinities as Python writes them, and rows that would take hours.

use mapl::data::group::Response;
use mapl::data::source::{ReadOptions, read_files, read_sft_files, read_texts};
use serde_json::json;

use crate::sources::{Folder, defect, gzip, read};

const GOOD: &str = r#"{"prompt": "p", "chosen": "a", "rejected": "b"}"#;

#[test]
fn files_of_other_kinds_are_named_with_the_way_on() {
    let utf16 = |order: fn(u16) -> [u8; 2], mark: bool| {
        let units = mark.then_some(0xfeff).into_iter().chain(GOOD.encode_utf16());
        units.flat_map(order).collect::<Vec<u8>>()
    };
    let mut tar = vec![0; 512];
    tar[..9].copy_from_slice(b"rows.json");
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, parts) in [
        (utf16(u16::to_le_bytes, true), &["UTF-16", "iconv"][..]),
        (utf16(u16::to_be_bytes, true), &["UTF-16", "iconv"]),
        (utf16(u16::to_le_bytes, false), &["UTF-16"]),
        (utf16(u16::to_be_bytes, false), &["UTF-16"]),
        (b"PK\x03\x04....".to_vec(), &["zip archive", "unzip"]),
        (b"BZh91AY&SY....".to_vec(), &["damaged or cut off"]),
        (b"\xfd7zXZ\0....".to_vec(), &["damaged or cut off"]),
        (b"\x28\xb5\x2f\xfd....".to_vec(), &["damaged or cut off"]),
        (b"ARROW1\0\0....".to_vec(), &["Arrow", "to_parquet"]),
        (b"\xff\xff\xff\xff\x10\0\0\0".to_vec(), &["Arrow stream", "to_parquet"]),
        (b"PAR1....".to_vec(), &["cannot be read as Parquet"]),
        (b"\x80\x04\x95....".to_vec(), &["pickle"]),
        (tar.clone(), &["tar archive", "tar -xf"]),
        (gzip(&gzip(GOOD.as_bytes())), &["gzip twice", "gunzip"]),
        (gzip(&tar), &["compressed with gzip", "tar archive"]),
        (gzip(b"PAR1...."), &["compressed with gzip", "Parquet"]),
        (b"\xef\xbb\xbf\n<!doctype html>".to_vec(), &[":2: is XML or HTML"]),
        (b"---\nprompt: p\n".to_vec(), &["YAML"]),
        (format!("{GOOD}\n\u{feff}{GOOD}\n").into(), &[":2: the line starts with a byte-order mark", "joined", "sed"]),
    ] {
        let why = defect(&bytes);
        assert!(parts.iter().all(|part| why.contains(part)), "{parts:?} in {why}");
    }
    let folder = Folder::new();
    let path = folder.write("text.txt", utf16(u16::to_le_bytes, true));
    let why = read_texts(&[path], &ReadOptions::default()).unwrap_err().to_string();
    assert!(why.contains("UTF-16"), "{why}");
    // A byte order mark at the start of a file is accepted.
    assert_eq!(read(&folder.write("a.jsonl", format!("\u{feff}{GOOD}\n"))).unwrap().len(), 1);
}

/// Python's json module writes NaN and infinities, which are not JSON.
#[test]
fn not_a_number_hurts_only_in_a_key_that_is_used() {
    let folder = Folder::new();
    let with = |key: &str, value: &str| GOOD.replacen('{', &format!("{{\"{key}\": {value}, "), 1);
    let harmless = [
        with("x", "NaN"),
        with("score_chosen", "-Infinity"),
        with("nested", "{\"a\": [NaN, {\"b\": Infinity}]}"),
        with("x", "\"NaN\""),
    ];
    let lines = folder.write("a.jsonl", harmless.join("\n"));
    let array = folder.write("a.json", format!("[{}]", harmless.join(",\n")));
    for path in [&lines, &array] {
        let rows = read(path).unwrap();
        assert_eq!(rows.len(), 4);
        assert!(rows.iter().all(|row| row.group.responses[0] == Response::Text("a".into()) && row.scores.is_none()));
    }
    for (row, part) in [
        (with("margin", "NaN"), "\"margin\" holds NaN, which is not JSON"),
        (with("id", "Infinity"), "\"id\" holds Infinity"),
        (with("tools", "[{\"a\": -Infinity}]"), "\"tools\" holds -Infinity"),
        (GOOD.replace("\"a\"", "NaN"), "\"chosen\" holds NaN"),
    ] {
        for text in [format!("{GOOD}\n{row}\n"), format!("[{GOOD},\n{row}]")] {
            let why = defect(&text);
            assert!(why.starts_with(":2") && why.contains(part), "{part} in {why}");
        }
    }
    // The error names the mapped key `margin`, not the column `gap` of the file.
    let options = ReadOptions { column_map: "margin=gap".parse().unwrap(), ..ReadOptions::default() };
    let why = read_files(&[folder.write("b.jsonl", with("gap", "NaN"))], &options).unwrap_err().to_string();
    assert!(why.contains("\"margin\" holds NaN"), "{why}");
    // Malformed JSON is an error, even in a key that is not used.
    assert!(defect(with("x", "NaN NaN")).starts_with(":1: is not valid JSON"));
    assert!(defect(with("x", "nan")).starts_with(":1: is not valid JSON"));
}

/// JSON may contain halves of surrogate pairs and numbers that Rust's types cannot hold, and Python's writers
/// leave control characters in strings. They are errors only under a used key.
#[test]
fn halves_of_pairs_control_characters_and_large_numbers_hurt_only_in_a_key_that_is_used() {
    let folder = Folder::new();
    let with = |key: &str, value: &str| GOOD.replacen('{', &format!("{{\"{key}\": {value}, "), 1);
    let long = "123456789012345678901234567890";
    let harmless = [
        with("x", "1e999"),
        with("x", "{\"a\": [-1e999, \"\\ud800\"]}"),
        with("x", "\"a\rb\tc\""),
        with("\\udc00", "0"),
        with("x", long),
        with("score_chosen", "1e999"),
    ];
    let lines = folder.write("a.jsonl", harmless.join("\n"));
    let array = folder.write("a.json", format!("[{}]", harmless.join(",\n")));
    let spread = folder.write("b.json", format!("{{\n\"data\": [{}]}}", harmless.join(",\n")));
    let rows_apart = folder.write("c.json", harmless.join("\n").replace("{\"", "{\n\""));
    for path in [&lines, &array, &spread, &rows_apart] {
        let rows = read(path).unwrap();
        assert_eq!(rows.len(), 6, "{}", path.display());
        assert!(rows.iter().all(|row| row.group.responses[0] == Response::Text("a".into()) && row.scores.is_none()));
    }
    // A numeric id keeps all its digits.
    for text in [with("id", long), format!("[{}]", with("id", long)), with("id", long).replace("{\"", "{\n\"")] {
        assert_eq!(read(&folder.write("id.json", text)).unwrap()[0].group.id, long);
    }
    for (row, part) in [
        (with("margin", "1e999"), "\"margin\" holds a number beyond double precision"),
        (with("tools", &format!("[{{\"a\": {long}}}]")), "\"tools\" holds an integer of more than 64 bits"),
        (GOOD.replace("\"a\"", "\"a\\udfff\""), "\"chosen\" holds half of a surrogate pair"),
        (GOOD.replace("\"a\"", "\"a\rb\""), "\"chosen\" holds a control character"),
    ] {
        for text in [format!("{GOOD}\n{row}\n"), format!("[{GOOD},\n{row}]")] {
            let why = defect(&text);
            assert!(why.starts_with(":2") && why.contains(part), "{part} in {why}");
        }
    }
}

/// Checks and training read a row's texts once for each comparison or assistant turn, so their time grows
/// with that number times the size of the texts.
#[test]
fn rows_that_would_take_hours_are_refused() {
    let comparison = json!({"kind": "base", "terms": [
        {"prompt": 0, "response": 0, "sign": 1}, {"prompt": 0, "response": 1, "sign": -1}]});
    let group = |bytes: usize, comparisons: usize| {
        json!({"id": "g", "prompts": ["p".repeat(bytes)], "responses": ["a", "b"],
               "comparisons": vec![comparison.clone(); comparisons]})
    };
    let folder = Folder::new();
    assert_eq!(read(&folder.write("a.jsonl", group(1 << 20, 1000).to_string())).unwrap().len(), 1);
    for large in [group(1 << 20, 3000), group(1, 20_000)] {
        let why = defect(large.to_string());
        assert!(
            why.starts_with(":1 (id g): the row has 3 prompts and responses") && why.contains("Split the row"),
            "{why}"
        );
    }
    let talk = |turns: usize, bytes: usize| {
        let turn = |i: usize| json!({"role": if i.is_multiple_of(2) { "user" } else { "assistant" }, "content": "x".repeat(bytes)});
        json!({"messages": (0..turns).map(turn).collect::<Vec<_>>()})
    };
    let sft =
        |row: serde_json::Value| read_sft_files(&[folder.write("t.jsonl", row.to_string())], &ReadOptions::default());
    assert!(sft(talk(200, 1000)).is_ok() && sft(talk(2, 1 << 24)).is_ok());
    let why = sft(talk(4000, 1000)).unwrap_err().to_string();
    assert!(why.contains("2000 assistant turns") && why.contains("Split the conversation"), "{why}");
}
