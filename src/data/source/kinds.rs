//! Unsupported kinds of files, recognised by their first bytes, with advice on how to make rows from them.

/// Magic numbers with the kind of the file and advice for the user.
const MAGIC: [(&[u8], &str, &str); 17] = [
    (b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it first (`unlz4`)"),
    (
        b"PK\x03\x04",
        "a zip archive or an Excel file",
        "unpack it (`unzip`) or save it as text, and pass the files in it",
    ),
    (b"PK\x05\x06", "an empty zip archive", "pass a file with rows"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and pass the files in it"),
    (b"ARROW1", "an Arrow file, which is not supported", TABLE),
    (b"\xff\xff\xff\xff", "an Arrow stream, which is not supported", TABLE),
    (b"FEA1", "a Feather file, which is not supported", TABLE),
    (b"ORC", "an ORC file, which is not supported", TABLE),
    (b"Obj\x01", "an Avro file, which is not supported", TABLE),
    (b"\x89HDF", "an HDF5 file, which is not supported", TABLE),
    (b"\x93NUMPY", "a NumPy array", TABLE),
    (b"SQLite format 3\0", "an SQLite database", "export its rows as JSON, one object per line (`sqlite3 -json`)"),
    (b"%PDF", "a PDF", "pass a file with rows"),
    // The byte-order mark of UTF-32 comes before that of UTF-16, which is a prefix of it.
    (b"\xff\xfe\0\0", "UTF-32 text", UTF8),
    (b"\0\0\xfe\xff", "UTF-32 text", UTF8),
    (b"\xff\xfe", "UTF-16 text", UTF8),
    (b"\xfe\xff", "UTF-16 text", UTF8),
];

const TABLE: &str =
    "convert it to Parquet or JSONL first (Dataset.to_parquet of `datasets`, or to_parquet of `pandas`)";
const UTF8: &str = "save it as UTF-8 (`iconv -f ENCODING -t UTF-8`)";

/// First bytes of a Parquet file.
pub(super) const PARQUET: &[u8] = b"PAR1";

/// Column names of preference data, by which the header of a table is recognised.
const COLUMNS: [&str; 15] = [
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "text",
    "completion",
    "instruction",
    "input",
    "output",
    "question",
    "answer",
    "response",
    "id",
    "label",
    "score",
];

/// Returns the kind of an unsupported file that starts with these bytes, with advice; `None` if it may hold
/// rows or compressed rows.
pub(crate) fn foreign(start: &[u8]) -> Option<String> {
    let found = MAGIC.iter().find(|(magic, ..)| start.starts_with(magic)).map(|(_, what, way)| (*what, *way));
    let (what, way) = found.or_else(|| match start {
        [0x80, 2..=5, ..] => Some(("a Python pickle", "load it in Python and write one JSON object per line")),
        [b'{' | b'[' | b'"', 0, ..] | [0, b'{' | b'[' | b'"', ..] => Some(("UTF-16 text", UTF8)),
        _ if start.get(257..262) == Some(b"ustar") => {
            Some(("a tar archive", "unpack it (`tar -xf`) and pass the files in it"))
        }
        _ => None,
    })?;
    Some(format!("is {what}; {way}"))
}

/// Returns the kind of a text that does not start with a JSON object or array, with advice; `None` if it is
/// not recognised. `start` is the text's start, without a byte-order mark and white space.
pub(super) fn foreign_text(start: &[u8]) -> Option<String> {
    if start.starts_with(b"<") {
        return Some("is XML or HTML; rows are JSON objects, one per line".into());
    }
    let line = start.split(|&byte| byte == b'\n').next()?;
    let line = std::str::from_utf8(line.trim_ascii_end()).ok()?;
    if line == "---" || line.starts_with("%YAML") {
        return Some("is YAML; convert it to JSON objects, one per line".into());
    }
    None
}

/// Returns the separator of a table with a header; `None` for other texts. A table is a file with the
/// extension `.csv` or `.tsv`, or a text whose first line has a known column name. `start` is the start of
/// the text.
pub(super) fn table_separator(start: &[u8], name: &str) -> Option<u8> {
    let name = name.to_lowercase();
    let name = [".gz", ".zst", ".bz2", ".xz"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    if name.ends_with(".tsv") {
        return Some(b'\t');
    }
    let line = start.split(|&byte| byte == b'\n').next()?;
    let line = std::str::from_utf8(line.trim_ascii_end()).ok()?;
    let count = |separator: &char| line.matches(*separator).count();
    // Of separators that occur equally often, the first is used.
    let separator = [',', '\t', ';', '|'].into_iter().rev().max_by_key(count)?;
    let mut fields = line.split(separator).map(|field| field.trim_matches(['"', ' ']).to_lowercase());
    let header = line.contains(separator) && fields.any(|field| COLUMNS.contains(&field.as_str()));
    (header || name.ends_with(".csv")).then_some(separator as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_a_table_by_its_name_or_a_known_column() {
        for (start, name, separator) in [
            ("prompt,chosen,rejected\na,b,c", "x", Some(b',')),
            ("\"id\"\t\"text\"\r\n", "x", Some(b'\t')),
            ("Prompt;Antwort ä\n", "x", Some(b';')),
            ("Hello, world\n", "x", None),
            ("prompt\n", "x", None),
            ("frage;antwort", "x.csv.gz", Some(b';')),
            ("frage,antwort", "x.tsv", Some(b'\t')),
            ("frage", "x.CSV", Some(b',')),
        ] {
            assert_eq!(table_separator(start.as_bytes(), name), separator, "{start}");
        }
        assert!(
            foreign_text(b"<html>").unwrap().contains("HTML") && foreign_text(b"---\na: 1").unwrap().contains("YAML")
        );
    }

    #[test]
    fn rows_and_packed_files_are_not_foreign() {
        for start in [&b"{\"a\": 1}"[..], b"[{", b"\x1f\x8b\x08", b"\xef\xbb\xbf{", b"", b"BZh91AY", b"PAR1", b"7z"] {
            assert_eq!(foreign(start), None);
        }
    }
}
