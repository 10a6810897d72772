//! The EXPORT lines of `kernels/`: constants and enums that Rust code shares with the kernels.
//! `build.rs` generates the Rust items from them. `kernels/README.md` has the grammar:
//!
//! ```text
//! EXPORT constexpr int NAME = 1, OTHER = 2, LIST[] = {1, 2};
//! EXPORT constexpr uint64_t NAME = 0x1f;
//! EXPORT enum Name : int { FIRST, SECOND };
//! EXPORT enum class Name : int { FIRST, SECOND };
//! ```
//!
//! Numbers are decimal or hexadecimal literals. Enumerators count from 0.

use std::fmt::Write as _;

/// An exported item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub name: String,
    pub item: Item,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Int(u64),
    Word(u64),
    List(Vec<u64>),
    Enum(Vec<String>),
}

impl Export {
    /// Enumerators of an enum; `None` for a constant.
    pub fn enumerators(&self) -> Option<&[String]> {
        match &self.item {
            Item::Enum(enumerators) => Some(enumerators),
            _ => None,
        }
    }
}

/// Parses the EXPORT lines of a file. An error names its line, counted from 1, and the cause.
pub fn parse(source: &str) -> Result<Vec<Export>, String> {
    let mut exports = Vec::new();
    for (number, line, text) in numbered(source) {
        if line.starts_with("EXPORT ") {
            exports.extend(item(text).map_err(|why| format!("line {number}: {why}"))?);
        }
    }
    Ok(exports)
}

/// Returns every line with its number, counted from 1, and the text from that line on. Lines end with LF or
/// CRLF.
pub fn numbered(source: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut offset = 0;
    source.split_inclusive('\n').enumerate().map(move |(at, line)| {
        let text = &source[offset..];
        offset += line.len();
        let line = line.strip_suffix('\n').unwrap_or(line);
        (at + 1, line.strip_suffix('\r').unwrap_or(line), text)
    })
}

fn item(text: &str) -> Result<Vec<Export>, String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("").to_owned() + " ").collect();
    let code = code.split_once(';').ok_or("an EXPORT without `;`")?.0;
    let code = code.trim_start_matches("EXPORT").trim();
    if let Some(rest) = code.strip_prefix("enum ").map(|rest| rest.strip_prefix("class ").unwrap_or(rest)) {
        return enumeration(rest).map(|export| vec![export]);
    }
    let constants = |rest: &str, word: bool| split(rest, ',').map(|text| constant(text, word)).collect();
    if let Some(rest) = code.strip_prefix("constexpr int ") {
        constants(rest, false)
    } else if let Some(rest) = code.strip_prefix("constexpr uint64_t ") {
        constants(rest, true)
    } else {
        Err(format!("`EXPORT {code}`; only `constexpr int`, `constexpr uint64_t` and `enum` can be exported"))
    }
}

fn enumeration(text: &str) -> Result<Export, String> {
    let refuse =
        || format!("`EXPORT enum {text}`; expected `EXPORT enum Name : int {{ FIRST, SECOND }}`, counted from 0");
    let (name, body) = text.split_once('{').ok_or_else(refuse)?;
    let body = body.trim().strip_suffix('}').ok_or_else(refuse)?;
    let enumerators: Vec<String> = split(body, ',').map(str::to_owned).collect();
    let distinct = (1..enumerators.len()).all(|i| !enumerators[..i].contains(&enumerators[i]));
    let name = name.trim().strip_suffix(": int").ok_or_else(refuse)?.trim();
    if !is_name(name) || enumerators.is_empty() || !distinct || !enumerators.iter().all(|e| is_name(e)) {
        return Err(refuse());
    }
    Ok(Export { name: name.to_owned(), item: Item::Enum(enumerators) })
}

fn constant(text: &str, word: bool) -> Result<Export, String> {
    let refuse = || format!("`{text}` in an EXPORT; expected `NAME = number` or `NAME[] = {{number, ...}}`");
    let (name, value) = text.split_once('=').ok_or_else(refuse)?;
    let (name, value) = (name.trim(), value.trim());
    let (name, item) = match name.strip_suffix("[]") {
        Some(name) => {
            let values = value.strip_prefix('{').and_then(|v| v.strip_suffix('}')).ok_or_else(refuse)?;
            (name, split(values, ',').map(number).collect::<Option<_>>().map(Item::List))
        }
        None => (name, number(value).map(if word { Item::Word } else { Item::Int })),
    };
    match item {
        Some(item) if is_name(name) => Ok(Export { name: name.to_owned(), item }),
        _ => Err(refuse()),
    }
}

/// Splits text at separators outside parentheses and braces. Parts are trimmed, and empty parts are left out.
pub fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        depth += i32::from(c == '(' || c == '{') - i32::from(c == ')' || c == '}');
        c == separator && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_uppercase()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Rust name of an enumerator: `TWO_WORDS` is `TwoWords`.
pub fn variant(enumerator: &str) -> String {
    let capital = |word: &str| word[..1].to_owned() + &word[1..].to_lowercase();
    enumerator.split('_').filter(|word| !word.is_empty()).map(capital).collect()
}

/// Returns the Rust items for the exports.
pub fn items(exports: &[Export]) -> String {
    let mut text = String::new();
    for Export { name, item } in exports {
        let _ = match item {
            Item::Int(value) => writeln!(text, "pub const {name}: usize = {value};"),
            Item::Word(value) => writeln!(text, "pub const {name}: u64 = {value};"),
            Item::List(values) => writeln!(text, "pub const {name}: [usize; {}] = {values:?};", values.len()),
            Item::Enum(enumerators) => {
                let variants: Vec<String> = enumerators.iter().map(|e| variant(e)).collect();
                let all: Vec<String> = variants.iter().map(|v| format!("Self::{v}")).collect();
                writeln!(
                    text,
                    "\n/// `{name}` of the kernels.\n#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
                     #[repr(i32)]\npub enum {name} {{\n    {}\n}}\n\nimpl {name} {{\n    \
                     pub const ALL: [Self; {}] = [{}];\n}}\n",
                    variants.join(",\n    "),
                    all.len(),
                    all.join(", ")
                )
            }
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_may_end_in_carriage_returns() {
        let text = "// größer\n\n// é\nEXPORT constexpr int A = 1;\n// é\nKERNEL(32, a)(int b) {}\n// é";
        let windows = text.replace('\n', "\r\n");
        assert_eq!(parse(&windows), parse(text));
        let kernels = super::super::grammar::parse(&windows, &[]).unwrap();
        assert_eq!((kernels.len(), &*kernels[0].name), (1, "a"));
        assert_eq!(numbered(&windows).map(|line| line.0).last(), Some(7));
    }

    #[test]
    fn constants_and_enums_are_exported() {
        let text = "\
constexpr int PRIVATE = 3;
EXPORT constexpr int ROWS = 16, COLUMNS = 32,  // of a patch
                     WIDTHS[] = {1, 2};
EXPORT constexpr uint64_t MAGIC = 0x1f;
EXPORT enum Curve : int {
    HINGE,    // max(0, 1 - z)
    LOG_LOSS
};
";
        let exports = parse(text).unwrap();
        let rust = items(&exports);
        for line in [
            "pub const ROWS: usize = 16;",
            "pub const COLUMNS: usize = 32;",
            "pub const WIDTHS: [usize; 2] = [1, 2];",
            "pub const MAGIC: u64 = 31;",
            "pub enum Curve {\n    Hinge,\n    LogLoss\n}",
            "pub const ALL: [Self; 2] = [Self::Hinge, Self::LogLoss];",
        ] {
            assert!(rust.contains(line), "{line:?} is not in {rust}");
        }
        assert!(!rust.contains("PRIVATE"));
    }

    #[test]
    fn an_error_names_its_line_and_cause() {
        for (text, why) in [
            ("\nEXPORT constexpr int A = B;", "line 2: `A = B` in an EXPORT"),
            ("EXPORT constexpr int A = -1;", "`A = -1`"),
            ("EXPORT constexpr int A[] = 1;", "`A[] = 1`"),
            ("EXPORT constexpr float A = 1;", "`EXPORT constexpr float A = 1`"),
            ("EXPORT enum A : int { ONE = 3 };", "counted from 0"),
            ("EXPORT enum A : int { ONE, ONE };", "counted from 0"),
            ("EXPORT enum A { ONE };", "expected `EXPORT enum Name : int"),
            ("EXPORT enum : int { ONE };", "expected `EXPORT enum Name"),
            ("EXPORT constexpr int A = 1", "without `;`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text:?} gave {error:?}");
        }
    }
}
