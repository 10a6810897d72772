//! One set of rows gives the same groups, byte for byte, in every container and several formats. Errors name
//! damaged files and files of an unsupported kind. Further tests cover folders and patterns as input names.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mapl::data::construct::build_rows;
use mapl::data::group::Prompt;
use mapl::data::options::{BuildArgs, Objective};
use mapl::data::source::{ReadOptions, expand, read_files};
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use crate::sources::{Folder, defect, gzip, read};

/// `lines` of [`rows`], compressed with xz.
const XZ: &str = "fd377a585a000004e6d6b446020021011c00000010cf58cce000f6008a5d003d88892681935385b17e8b40a3d535bed5\
    603f5d60ec5474ce6bb88730c689187b77ef54781e001703d0a77fe072148f291aed8c182756904bb05391d70c3e497f\
    d954a7b4c84a15dac8c6004d390d457a443c598bcd09f7bf6ae11a1da46dbbddff3f8ee60a8417f8339eeb84878d678c\
    0ae64522a1566ee918b4ae6dee5e8f3b583d7b474ea99e52c0000000ced07b2eddc2fbd00001a601f7010000b74b032b\
    b1c467fb020000000004595a";

/// Id, question and both answers.
const ROWS: [[&str; 4]; 3] = [
    ["a", "Name a bird.", " A wren.", " A bus."],
    ["b", "Name a \"tree\", please.", " An oak,\n or two.", " A cart; no."],
    ["c", "Grüße?", " Grüße.", " -"],
];
const KEYS: [&str; 4] = ["id", "prompt", "chosen", "rejected"];

fn rows() -> Vec<Value> {
    ROWS.iter().map(|row| KEYS.iter().zip(row).map(|(key, text)| ((*key).to_owned(), json!(text))).collect()).collect()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn table(separator: char) -> String {
    let cell = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let line = |cells: &[&str; 4]| cells.map(cell).join(&separator.to_string()) + "\r\n";
    [KEYS].iter().chain(&ROWS).map(line).collect()
}

/// Returns a Parquet file with one column per key: texts, or messages if `chat` is set.
fn parquet(chat: bool, compression: Compression) -> Vec<u8> {
    let messages = |name: &str| {
        format!(
            "optional group {name} (LIST) {{ repeated group list {{ optional group element {{ \
             optional binary role (UTF8); optional binary content (UTF8); }} }} }}"
        )
    };
    let text = |name: &str| format!("optional binary {name} (UTF8);");
    let fields: String = KEYS.iter().map(|key| if chat && *key != "id" { messages(key) } else { text(key) }).collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut write = |values: Vec<ByteArray>, definition: i16, repetition: Option<&[i16]>| {
        let mut column = group.next_column().unwrap().unwrap();
        let ColumnWriter::ByteArrayColumnWriter(typed) = column.untyped() else { panic!() };
        typed.write_batch(&values, Some(&vec![definition; values.len()]), repetition).unwrap();
        column.close().unwrap();
    };
    for (i, key) in KEYS.iter().enumerate() {
        let values: Vec<ByteArray> = ROWS.iter().map(|row| row[i].into()).collect();
        if chat && *key != "id" {
            let role = if *key == "prompt" { "user" } else { "assistant" };
            let roles: Vec<ByteArray> = ROWS.iter().map(|_| role.into()).collect();
            write(roles, 4, Some(&[0; 3]));
            write(values, 4, Some(&[0; 3]));
        } else {
            write(values, 1, None);
        }
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn xz() -> Vec<u8> {
    let digit = |i: usize| u8::from_str_radix(&XZ[i..i + 2], 16).unwrap();
    (0..XZ.len()).step_by(2).map(digit).collect()
}

/// The groups of MAPL's construction, as `data build` writes them.
fn built(path: &Path) -> String {
    let rows = read_files(&[path.to_owned()], &ReadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = BuildArgs::default().resolve(Objective::Mapl, [None; 3]).unwrap();
    let (rows, _) = build_rows(rows, &options, 0);
    rows.iter().map(|row| serde_json::to_string(&row.group).unwrap() + "\n").collect()
}

#[test]
fn one_set_of_rows_gives_the_same_groups_from_every_container() {
    let folder = Folder::new();
    let text = lines(&rows());
    let reference = built(&folder.write("rows.jsonl", &text));
    assert_eq!(reference.lines().count(), 3);
    let document = json!({"version": 1.0, "about": "rows", "data": rows()});
    let columns: Value =
        KEYS.iter().enumerate().map(|(i, key)| ((*key).to_owned(), json!(ROWS.map(|row| row[i])))).collect();
    let numbered: Value = KEYS
        .iter()
        .enumerate()
        .map(|(i, key)| ((*key).to_owned(), json!({"0": ROWS[0][i], "1": ROWS[1][i], "2": ROWS[2][i]})))
        .collect();
    let pretty: String = rows().iter().map(|row| format!("{row:#}\n")).collect();
    let two_frames =
        [zstd(&text.as_bytes()[..40]), b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zstd(&text.as_bytes()[40..])]
            .concat();
    for (name, bytes) in [
        ("a.json", serde_json::to_vec(&rows()).unwrap()),
        ("b.json", document.to_string().into_bytes()),
        ("c.json", format!("{document:#}").into_bytes()),
        ("d.json", columns.to_string().into_bytes()),
        ("e.json", format!("{numbered:#}").into_bytes()),
        ("f.jsonl", pretty.into_bytes()),
        ("g.csv", table(',').into_bytes()),
        ("h.tsv", table('\t').into_bytes()),
        ("i", table(';').into_bytes()),
        ("j.csv", format!("\u{feff}{}", table(',')).into_bytes()),
        ("k.gz", gzip(text.as_bytes())),
        ("l.csv.gz", gzip(table(',').as_bytes())),
        ("m.bz2", bzip2(text.as_bytes())),
        ("n.zst", zstd(text.as_bytes())),
        ("o.zst", two_frames),
        ("p.xz", xz()),
        ("q.parquet", parquet(false, Compression::UNCOMPRESSED)),
        ("r.parquet", parquet(false, Compression::SNAPPY)),
        ("s.parquet", parquet(false, Compression::GZIP(Default::default()))),
    ] {
        assert_eq!(built(&folder.write(name, bytes)), reference, "{name}");
    }
}

#[test]
fn nested_columns_and_formats_give_the_same_groups_too() {
    let folder = Folder::new();
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let chat = |id: &str, question: &str, chosen: &str, rejected: &str| {
        json!({"id": id, "prompt": [turn("user", question)], "chosen": [turn("assistant", chosen)],
               "rejected": [turn("assistant", rejected)]})
    };
    let each = |row: &dyn Fn(&str, &str, &str, &str) -> Value| lines(&ROWS.map(|[id, q, a, b]| row(id, q, a, b)));
    let reference = built(&folder.write("a.jsonl", each(&chat)));
    let whole = |id: &str, q: &str, a: &str, b: &str| {
        let side = |text: &str| json!([turn("user", q), turn("assistant", text)]);
        json!({"id": id, "prompt": q, "chosen": side(a), "rejected": side(b)})
    };
    let alpaca = |id: &str, q: &str, a: &str, b: &str| json!({"id": id, "instruction": q, "input": "", "chosen": a, "rejected": b});
    let scored =
        |id: &str, q: &str, a: &str, b: &str| json!({"id": id, "question": q, "responses": [b, a], "scores": [1, 2]});
    // The order of the responses in a list is their order in the group.
    let ranked =
        |id: &str, q: &str, a: &str, b: &str| json!({"id": id, "question": q, "responses": [a, b], "ranks": [1, 2]});
    let csv = |rows: &str| {
        let cell = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut table = KEYS.join(",") + "\n";
        for row in rows.lines() {
            let row: Value = serde_json::from_str(row).unwrap();
            let text = |key: &&str| row[*key].as_str().map_or_else(|| row[*key].to_string(), str::to_owned);
            table += &(KEYS.iter().map(|key| cell(&text(key))).collect::<Vec<_>>().join(",") + "\n");
        }
        table
    };
    for (name, bytes) in [
        ("b.jsonl", each(&whole).into_bytes()),
        ("c.jsonl", each(&alpaca).into_bytes()),
        ("d.jsonl", each(&ranked).into_bytes()),
        ("e.csv", csv(&each(&chat)).into_bytes()),
        ("f.csv", csv(&each(&whole)).into_bytes()),
        ("g.parquet", parquet(true, Compression::SNAPPY)),
    ] {
        assert_eq!(built(&folder.write(name, bytes)), reference, "{name}");
    }
    assert_eq!(built(&folder.write("h.jsonl", each(&scored))).lines().count(), 3);
}

/// Byte columns without a logical type are text. Numbers keep their value. NaN under a used key fails.
#[test]
fn columns_of_parquet_keep_their_values() {
    let folder = Folder::new();
    let file = |margin: f64| {
        let fields = "optional binary prompt; optional binary chosen; optional binary rejected; optional double margin; \
                      optional float score_chosen; optional int64 score_rejected;";
        let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
        let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for text in ["Grüße?", " Ja.", " Nein."] {
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&[text.into()], Some(&[1]), None).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[margin], Some(&[1]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<FloatType>().write_batch(&[0.1], Some(&[1]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[-3], Some(&[1]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        folder.write("typed.parquet", writer.into_inner().unwrap())
    };
    let rows = read_files(&[file(0.25)], &ReadOptions::default()).unwrap();
    let group = &rows[0].group;
    assert_eq!((&group.prompts[0], group.responses[1].text()), (&Prompt::Text("Grüße?".into()), " Nein."));
    assert_eq!((group.comparisons[0].margin, rows[0].scores), (0.25, Some([0.1, -3.0])));
    let why = read_files(&[file(f64::NAN)], &ReadOptions::default()).unwrap_err().to_string();
    assert!(why.contains("typed.parquet:1") && why.contains("\"margin\" holds NaN"), "{why}");
}

#[test]
fn damaged_tables_and_packed_files_are_refused_with_their_place() {
    let text = lines(&rows()).repeat(400);
    for (bytes, part) in [
        (bzip2(text.as_bytes()), "damaged or cut off"),
        (zstd(text.as_bytes()), "damaged or cut off"),
        (xz(), "damaged or cut off"),
        (parquet(false, Compression::SNAPPY), "cannot be read as Parquet"),
    ] {
        for keep in [bytes.len() / 2, bytes.len() - 9] {
            let why = defect(&bytes[..keep]);
            assert!(why.contains(part), "{why}");
        }
    }
    for (bytes, parts) in [
        ("prompt,chosen,rejected\na,b\n", &[":2: the row has 2 cells and the header 3"][..]),
        ("prompt,chosen,rejected,prompt\na,b,c,d\n", &[":1: the header names the column \"prompt\" twice"]),
        ("\nprompt,chosen,rejected\nq,a,b\nq,,b\n", &[":4 (id bad-4): \"chosen\" is missing"]),
        ("prompt,chosen,rejected,margin\nq,a,b,x\n", &[":2", "\"margin\" must be a number"]),
        ("prompt,text\nq,a\n", &[":2", "mapl sft"]),
        (
            "{\"data\": [\n{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"\"}]}",
            &[":2", "\"rejected\" is empty"],
        ),
        ("{\"data\": [\n{\"prompt\": \"q\"", &[":1: is not valid JSON", "cut off"]),
    ] {
        let why = defect(bytes);
        assert!(parts.iter().all(|part| why.contains(part)), "{parts:?} in {why}");
    }
    assert!(defect(gzip(&zstd(b"{}"))).contains("compressed with gzip and zstd again"));
    assert!(defect(gzip(&parquet(false, Compression::SNAPPY))).contains("a Parquet file compressed with gzip"));
    // Any damage is an error, never a panic.
    let whole = parquet(true, Compression::SNAPPY);
    let folder = Folder::new();
    for at in (4..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let path = folder.write("damaged.parquet", bytes);
        let _ = read_files(&[path], &ReadOptions::default());
    }
}

#[test]
fn quotes_of_tables_that_are_not_closed_or_go_on_are_refused() {
    let head = "prompt,chosen,rejected\n";
    for (rows, parts) in [
        ("p1,c1,\"r1\np2,c2,r2\n", &[":2: a quoted cell begins here", "closing quote is missing"][..]),
        ("p0,c0,r0\np1,\"c1\np1,c1\np2,c2,r2", &[":3: a quoted cell begins here"]),
        ("p1,\"Yes\" is what he said,r1\n", &[":2: the cell of \"chosen\" goes on after its closing quote"]),
        ("p0,c0,r0\np1,c1,\"He said\n\\\"hi\\\" ok\"\n", &[":3: the cell of \"rejected\" goes on", "double"]),
        ("p1,c1,\"r1\np2,c2,\"r2\"\n", &[":2: the cell of \"rejected\" goes on"]),
    ] {
        let why = defect(format!("{head}{rows}"));
        assert!(parts.iter().all(|part| why.contains(part)), "{parts:?} in {why}");
        let tabs = defect(format!("{head}{rows}").replace(',', "\t"));
        assert!(tabs.contains(parts[0]), "{tabs}");
    }
    assert!(defect("prompt,chosen,\"rejected\"x\np,c,r\n").contains(":1: a cell of the header goes on"));
    assert!(defect("prompt,chosen,\"rejected\np,c,r\n").contains(":1: a quoted cell begins here"));
    // Quotes within plain cells, and doubled quotes, are text. A malformed row can be skipped, as in other
    // formats.
    let folder = Folder::new();
    let text = format!("{head}p1,\"\"\"Yes\"\", he said\",5\" or\np2,\"a\"b,r\np3,\"\",r\np4,c4,\"r4\"");
    let options = ReadOptions { skip_bad_rows: Some(2), ..ReadOptions::default() };
    let rows = read_files(&[folder.write("t.csv", text)], &options).unwrap();
    let found: Vec<_> = rows.iter().map(|row| (row.line, row.group.responses[0].text())).collect();
    assert_eq!(found, [(2, "\"Yes\", he said"), (5, "c4")]);
}

#[test]
fn headers_of_spreadsheets_are_read_or_named() {
    let folder = Folder::new();
    let found = |name: &str, text: &str| {
        let rows = read(&folder.write(name, text)).unwrap_or_else(|e| panic!("{e}"));
        rows.iter().map(|row| (row.line, row.group.responses[0].text().to_owned())).collect::<Vec<_>>()
    };
    // pandas writes an index column with an empty header.
    for name in ["a.tsv", "a"] {
        assert_eq!(found(name, "\n\tprompt\tchosen\trejected\n0\tp\tc\tr\n"), [(3, "c".into())]);
    }
    assert_eq!(found("b.csv", ",prompt,chosen,rejected\n0,p,c,r\n"), [(2, "c".into())]);
    assert_eq!(found("c.jsonl", "\t {\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"r\"}"), [(1, "c".into())]);
    for start in ["sep=;", "\u{feff}SEP=,\r", "\"sep=;\""] {
        let why = defect(format!("{start}\nprompt;chosen;rejected\np;c;r\n"));
        assert!(why.contains(":1: is a line for Excel") && why.contains("remove"), "{why}");
    }
}

/// A gzip file with one member for each of `parts`.
fn members(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| gzip(part)).collect()
}

#[test]
fn the_kind_of_a_file_does_not_depend_on_the_first_read() {
    let folder = Folder::new();
    let text = lines(&rows());
    let reference = built(&folder.write("rows.jsonl", &text));
    let (marked, table) = (format!("\u{feff}{text}"), table(','));
    for (name, bytes) in [("a", marked.as_bytes()), ("b", table.as_bytes()), ("c", text.as_bytes())] {
        for cut in [1, 2, 6] {
            let packed = members(&[&bytes[..cut], b"", &bytes[cut..]]);
            assert_eq!(built(&folder.write(name, packed)), reference, "{name} after {cut} bytes");
        }
    }
    let parquet = parquet(false, Compression::SNAPPY);
    assert!(defect(members(&[&parquet[..1], &parquet[1..]])).contains("a Parquet file compressed with gzip"));
}

#[test]
fn columns_with_numbers_that_json_lacks_are_refused_if_used() {
    let columns = |gap: &str, other: &str| {
        format!(
            "{{\"prompt\": [\"p\", \"q\"], \"chosen\": [\"a\", \"b\"], \"rejected\": [\"c\", \"d\"], \
             \"margin\": [{gap}], \"note\": [{other}]}}\n"
        )
    };
    let why = defect(columns("null, NaN", "1, 2"));
    assert!(why.contains(":2") && why.contains("\"margin\" holds NaN"), "{why}");
    let rows = read(&Folder::new().write("a.json", columns("null, 1", "NaN, 2"))).unwrap();
    assert_eq!(rows.iter().map(|row| row.group.comparisons[0].margin).collect::<Vec<_>>(), [0.0, 1.0]);
    // The error for a JSON row that spans several lines names the first of its lines.
    let row = "{\n\"prompt\": \"p\", \"chosen\": \"a\",\n\"rejected\": \"b\", \"margin\": ";
    let why = defect(format!("{row}1}}\n{row}-Infinity}}\n"));
    assert!(why.contains(":4") && why.contains("\"margin\" holds -Infinity"), "{why}");
}

#[test]
fn a_row_of_lists_means_the_same_alone_and_with_others() {
    let folder = Folder::new();
    let sides = "\"chosen\": [\"good one\", \"great\"], \"rejected\": [\"bad one\", \"worse\"]}\n";
    let turns = "[{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"q\"}]";
    let outcome = |text: String| {
        let rows = read(&folder.write("lists.jsonl", text)).unwrap_or_else(|e| panic!("{e}"));
        rows.iter().map(|row| row.group.responses.len()).collect::<Vec<_>>()
    };
    for key in ["prompt", "messages"] {
        let row = format!("{{\"{key}\": {turns}, {sides}");
        assert_eq!(outcome(row.clone()), [4], "{key}");
        assert_eq!(outcome(row.repeat(2)), [4, 4], "{key}");
    }
    for rows in [1, 2] {
        let why = defect(format!("{{{sides}").repeat(rows));
        assert!(why.contains(":1") && why.contains("the responses have no question"), "{why}");
    }
    // A list of texts under one of these keys can only be a column, so the object holds two rows.
    for key in ["id", "prompt"] {
        assert_eq!(
            outcome(format!(
                "{{\"{key}\": [\"x\", \"y\"], {}",
                sides.replace("[\"", "[\"Q ").replace("\", \"", "\", \"Q ")
            )),
            [2, 2]
        );
    }
}

#[test]
fn a_key_that_a_row_has_twice_is_refused() {
    let row = |more: &str| {
        format!(
            "{{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b, \\\"chosen\\\": c\", \"x\": {{\"chosen\": 1}}{more}}}"
        )
    };
    let folder = Folder::new();
    for more in [", \"chosen\": \"z\"", ", \"\\u0063hosen\": \"z\"", ", \"score\": NaN, \"chosen\": \"z\""] {
        let why = "the row has the key \"chosen\" twice";
        assert!(defect(format!("{}\n{}\n", row(""), row(more))).contains(&format!(":2: {why}")));
        assert!(defect(format!("[{},\n{}]", row(""), row(more))).contains(&format!(":2: {why}")));
    }
    // The same error in JSON rows that span several lines, and in columns.
    let spread = |more: &str| row(more).replace("{", "{\n");
    let why = defect(format!("{}\n{}\n", spread(""), spread(", \"chosen\": \"z\"")));
    assert!(why.contains(":4: the row has the key \"chosen\" twice"), "{why}");
    let column = |key: &str| format!("\"{key}\": [\"a\", \"b\"]");
    let why = defect(format!("{{\n{}}}", ["prompt", "chosen", "rejected", "chosen"].map(column).join(", ")));
    assert!(why.contains(":1: the row has the key \"chosen\" twice"), "{why}");
    assert_eq!(read(&folder.write("a.jsonl", row(""))).unwrap().len(), 1);
    assert_eq!(read(&folder.write("b.json", format!("[{}]", row("")))).unwrap().len(), 1);
}

#[test]
fn parquet_with_other_codecs_or_a_repeated_column_is_refused() {
    // In the Parquet metadata, the number of the codec follows the name of the column.
    for (codec, name) in [(6, "zstd"), (4, "brotli"), (5, "lz4"), (7, "lz4")] {
        let mut bytes = parquet(false, Compression::SNAPPY);
        let key = [&b"\x19\x18\x06"[..], b"prompt", b"\x15\x02"].concat();
        let at = bytes.windows(key.len()).rposition(|window| window == key).unwrap();
        bytes[at + key.len() - 1] = 2 * codec;
        let why = defect(bytes);
        assert!(
            why.contains(&format!("compressed with {name}; write it with compression=\"snappy\" or \"gzip\"")),
            "{why}"
        );
    }
    let schema = "message rows { optional binary prompt; optional binary chosen; optional binary chosen; }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for text in ["p", "a", "b"] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[text.into()], Some(&[1]), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    let why = defect(writer.into_inner().unwrap());
    assert!(why.contains("two columns \"chosen\"; rename"), "{why}");
}

#[test]
fn lists_in_cells_are_read_like_lists_of_json() {
    let folder = Folder::new();
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => format!("\"{}\"", other.to_string().replace('"', "\"\"")),
    };
    let texts = json!(["A wren.", "A bus."]);
    for row in [
        json!({"question": "q", "outputs": texts, "scores": [2, 1]}),
        json!({"question": "q", "generations": texts, "overall_scores": [2, 1]}),
        json!({"question": "q", "responses": texts, "rank": [1, 2]}),
        json!({"question": "q", "all_responses": texts, "ranking": [1, 2]}),
        json!({"question": "q", "output": texts, "rewards": [2, 1]}),
        json!({"question": "q", "ranked_responses": texts}),
        json!({"question": "q", "chosen": ["A wren.", "A tit."], "rejected": ["A bus."]}),
        json!({"prompt": "q", "chosen": "a", "rejected": "b", "images": []}),
    ] {
        let object = row.as_object().unwrap();
        let line = |cells: Vec<String>| cells.join(",") + "\n";
        let table = line(object.keys().cloned().collect()) + &line(object.values().map(cell).collect());
        let (json, csv) = (folder.write("rows-1.jsonl", row.to_string()), folder.write("rows-1.csv", table));
        let group = |path: &Path| read(path).unwrap_or_else(|e| panic!("{row}: {e}"))[0].group.clone();
        let (json, csv) = (group(&json), group(&csv));
        assert_eq!((json.prompts, json.responses, json.comparisons), (csv.prompts, csv.responses, csv.comparisons));
    }
    // If only one of the two response cells holds a list, the list is text.
    let rows = read(&folder.write("t.csv", "prompt,chosen,rejected\nq,\"[\"\"a\"\"]\",b\n")).unwrap();
    assert_eq!(rows[0].group.responses[0].text(), "[\"a\"]");
}

#[test]
fn folders_and_patterns_name_their_files_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("shards/raw")).unwrap();
    for name in ["train-1.jsonl.gz", "train-0.parquet", "README.md", "dataset_info.json", "raw/x.json"] {
        std::fs::write(at("shards").join(name), "").unwrap();
    }
    let named = |path: PathBuf| {
        expand(&[path]).map(|files| {
            files.iter().map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
        })
    };
    assert_eq!(named(at("shards")).unwrap(), ["train-0.parquet", "train-1.jsonl.gz"]);
    assert_eq!(named(at("shards/train-*")).unwrap(), ["train-0.parquet", "train-1.jsonl.gz"]);
    assert_eq!(named(at("shards/*.par[q]uet")).unwrap(), ["train-0.parquet"]);
    assert_eq!(expand(&["-".into(), "none.jsonl".into()]).unwrap(), [PathBuf::from("-"), "none.jsonl".into()]);
    let why = |path: PathBuf| {
        let error = named(path).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    };
    assert!(why(at("none/*")).contains("matches no file"));
    std::fs::write(at("shards/test-0.csv"), "").unwrap();
    assert!(why(at("shards")).contains("several splits (test-0.csv, train-0.parquet)"));
    std::fs::create_dir_all(at("empty/data")).unwrap();
    assert!(why(at("empty")).contains("a folder in it (data)"));
    std::fs::write(at("empty/data-0.arrow"), "").unwrap();
    assert!(why(at("empty")).contains("Arrow"));
}
