//! Odd values, which a row may hold although JSON, or this program, cannot represent them:
//!
//! - NaN, Infinity and -Infinity, which Python's json module writes: read as `null`
//! - numbers beyond double precision, such as 1e999: read as `null`
//! - half of a surrogate pair, such as `\ud800`: read as U+FFFD
//! - control characters in a text without an escape, such as a carriage return: read as they are
//! - integers of more than 64 bits: rounded
//!
//! The keys that held them are recorded. A row is rejected if a reader uses such a key; a key that no reader
//! uses may hold anything.

use serde_json::{Number, Value};

/// Kind of a value that cannot be represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Nan,
    Infinity,
    MinusInfinity,
    TooLarge,
    Surrogate,
    Control,
    LongInteger,
}

/// A key of a row, and the kind of odd value that it held at any depth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Odd {
    pub key: String,
    pub what: What,
}

const WORDS: [(&str, What); 3] = [("NaN", What::Nan), ("Infinity", What::Infinity), ("-Infinity", What::MinusInfinity)];

/// Start of a placeholder, which replaces an odd value until its row is known. The letter of [`What::code`] and
/// a NUL follow.
const MARK: &str = "\0odd value\0";

/// Maximum length of a recorded key, and of a number, in bytes.
const MAX_KEY: usize = 256;
const MAX_NUMBER: usize = 1 << 16;

/// Number of digits of the shortest integer that 64 bits may not represent.
const LONG: usize = 19;

impl What {
    const ALL: [What; 7] = [
        What::Nan,
        What::Infinity,
        What::MinusInfinity,
        What::TooLarge,
        What::Surrogate,
        What::Control,
        What::LongInteger,
    ];

    /// Returns the text that follows "holds" in a message: the value and the remedy.
    pub(super) fn fault(self) -> &'static str {
        match self {
            What::Nan => "NaN, which is not JSON; write a number or null",
            What::Infinity => "Infinity, which is not JSON; write a number or null",
            What::MinusInfinity => "-Infinity, which is not JSON; write a number or null",
            What::TooLarge => "a number beyond double precision (1.8e308); write a smaller number or null",
            What::Surrogate => {
                "half of a surrogate pair (\\ud800 to \\udfff), which is not a character; repair or remove it"
            }
            What::Control => {
                "a control character without an escape (\\r, \\t, \\u0001); write the escape, or remove it"
            }
            What::LongInteger => "an integer of more than 64 bits, which would be rounded; write it as text",
        }
    }

    /// Whether the text of the row is valid JSON with this value, so that it can be written as it was read.
    pub(super) fn is_json(self) -> bool {
        matches!(self, What::TooLarge | What::Surrogate | What::LongInteger)
    }

    fn code(self) -> char {
        char::from(b'a' + self as u8)
    }
}

/// Replaces odd values in a text that it reads byte by byte.
#[derive(Debug)]
pub(super) struct Rewriter {
    /// Depth of brackets inside a row: 1 for lines, 2 for the elements of an array.
    row: usize,
    depth: usize,
    in_string: bool,
    /// Whether the next string directly inside a row is a value instead of a key.
    after_colon: bool,
    /// Whether the current string is a key of the row.
    naming: bool,
    /// Text of the latest key of the row.
    key: Vec<u8>,
    /// Bytes that are held back: a word or a number outside strings, or an escape in a string.
    held: Vec<u8>,
    /// Kinds of odd values in the key itself.
    in_key: Vec<What>,
    found: Vec<Odd>,
    /// Whether placeholders ([`MARK`]) are written.
    marks: bool,
}

impl Rewriter {
    /// Creates a rewriter for text in which a row's keys are inside `row` brackets.
    pub fn new(row: usize) -> Self {
        let (key, held, in_key, found) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (in_string, after_colon, naming, marks) = (false, false, false, false);
        Self { row, depth: 0, in_string, after_colon, naming, key, held, in_key, found, marks }
    }

    /// Reads one byte. Appends to `out` all bytes that need not be held back any longer.
    pub fn push(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.in_string {
            // If one or seven bytes are held, the last one is a backslash, which escapes a quote.
            let closing = byte == b'"' && !matches!(self.held.len(), 1 | 7);
            if self.naming && !closing && self.key.len() < MAX_KEY {
                self.key.push(byte);
            }
            return self.push_text(byte, out);
        }
        if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte) {
            self.held.push(byte);
            if self.held.len() > MAX_NUMBER {
                out.append(&mut self.held);
            }
            return;
        }
        self.end_token(out);
        let inside = self.depth == self.row;
        match byte {
            b'"' => {
                self.in_string = true;
                self.naming = inside && !self.after_colon;
                if self.naming {
                    self.key.clear();
                }
            }
            b'{' | b'[' => {
                self.depth += 1;
                self.after_colon &= self.depth != self.row;
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b':' if inside => self.after_colon = true,
            b',' if inside => self.after_colon = false,
            _ => {}
        }
        out.push(byte);
    }

    /// Reads one byte of a string.
    fn push_text(&mut self, byte: u8, out: &mut Vec<u8>) {
        let held = self.held.len();
        let digit = byte.is_ascii_hexdigit();
        match (held, byte) {
            (0, b'\\') => self.held.push(byte),
            (0, b'"') => {
                self.in_string = false;
                out.push(byte);
                if std::mem::take(&mut self.naming) {
                    std::mem::take(&mut self.in_key).into_iter().for_each(|what| self.record(what));
                }
            }
            (0, 0..0x20) => {
                self.odd(What::Control, out);
                out.extend(format!("\\u{byte:04x}").as_bytes());
            }
            (0, _) => out.push(byte),
            (1 | 7, b'u') | (6, b'\\') => self.held.push(byte),
            (1, _) => {
                out.append(&mut self.held);
                out.push(byte);
            }
            (2..6 | 8..12, _) if digit => {
                self.held.push(byte);
                self.end_escape(out);
            }
            // An escape that ends too early stays as it is, and the text is not valid JSON.
            (2..6, _) => {
                out.append(&mut self.held);
                self.push_text(byte, out);
            }
            // The held bytes start with the first half of a surrogate pair, which has no second half.
            (6.., _) => {
                self.held.drain(..6);
                self.odd(What::Surrogate, out);
                if !self.marks {
                    out.extend(b"\\ufffd");
                }
                if self.held.len() == 1 {
                    return self.push_text(byte, out);
                }
                out.append(&mut self.held);
                self.push_text(byte, out);
            }
        }
    }

    /// Writes held escapes that are complete. The first half of a surrogate pair is held until the second half.
    fn end_escape(&mut self, out: &mut Vec<u8>) {
        let unit = |digits: &[u8]| {
            std::str::from_utf8(digits).ok().and_then(|text| u16::from_str_radix(text, 16).ok()).unwrap_or_default()
        };
        let high = |unit: u16| (0xd800..0xdc00).contains(&unit);
        let low = |unit: u16| (0xdc00..0xe000).contains(&unit);
        let lone = |rewriter: &mut Self, out: &mut Vec<u8>| {
            rewriter.held.drain(..6);
            rewriter.odd(What::Surrogate, out);
            if !rewriter.marks {
                out.extend(b"\\ufffd");
            }
        };
        match self.held.len() {
            6 if high(unit(&self.held[2..])) => {}
            6 if low(unit(&self.held[2..])) => lone(self, out),
            12 if low(unit(&self.held[8..])) => out.append(&mut self.held),
            12 => {
                lone(self, out);
                self.end_escape(out);
            }
            6 => out.append(&mut self.held),
            _ => {}
        }
    }

    /// Writes a word or a number that is complete.
    fn end_token(&mut self, out: &mut Vec<u8>) {
        if self.held.is_empty() {
            return;
        }
        let token = std::mem::take(&mut self.held);
        let text = std::str::from_utf8(&token).unwrap_or_default();
        let word = WORDS.iter().find(|(word, _)| *word == text).map(|(_, what)| *what);
        match word.or_else(|| odd_number(text)) {
            None => out.extend(&token),
            Some(What::LongInteger) if self.marks => {
                let code = What::LongInteger.code();
                out.extend(serde_json::to_vec(&format!("{MARK}{code}\0{text}")).unwrap_or_default());
            }
            Some(What::LongInteger) => {
                out.extend(&token);
                self.record(What::LongInteger);
            }
            Some(what) if self.marks => {
                out.extend(serde_json::to_vec(&format!("{MARK}{}\0", what.code())).unwrap_or_default());
                self.record(what);
            }
            Some(what) => {
                out.extend(b"null");
                self.record(what);
            }
        }
    }

    /// Records an odd value in a string; with `marks`, also writes its placeholder.
    fn odd(&mut self, what: What, out: &mut Vec<u8>) {
        if self.naming {
            self.in_key.push(what);
        } else {
            self.record(what);
        }
        if self.marks {
            let mark = serde_json::to_string(&format!("{MARK}{}\0", what.code())).unwrap_or_default();
            out.extend(mark.trim_matches('"').as_bytes());
        }
    }

    fn record(&mut self, what: What) {
        let text = String::from_utf8_lossy(&self.key).into_owned();
        let key = serde_json::from_str(&format!("\"{text}\"")).unwrap_or(text);
        let odd = Odd { key, what };
        if !self.found.contains(&odd) {
            self.found.push(odd);
        }
    }

    /// Appends the bytes that are still held at the end of the text.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match self.in_string {
            true => out.append(&mut self.held),
            false => self.end_token(out),
        }
    }

    /// Rewrites a whole text; `None` if it holds no odd value.
    fn whole(mut self, text: &[u8]) -> Option<(Vec<u8>, Vec<Odd>)> {
        let mut out = Vec::with_capacity(text.len());
        text.iter().for_each(|&byte| self.push(byte, &mut out));
        self.finish(&mut out);
        (out != text || !self.found.is_empty()).then_some((out, self.found))
    }

    /// Returns and forgets the values found so far.
    pub fn take(&mut self) -> Vec<Odd> {
        std::mem::take(&mut self.found)
    }
}

/// Returns the kind of a number that is valid JSON but that this program cannot represent; `None` for other texts.
fn odd_number(text: &str) -> Option<What> {
    if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return None;
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if text.parse::<f64>().ok()?.is_infinite() {
        return digits.starts_with(|c: char| c.is_ascii_digit()).then_some(What::TooLarge);
    }
    let integer = digits.len() >= LONG && digits.bytes().all(|byte| byte.is_ascii_digit());
    (integer && text.parse::<i64>().is_err() && text.parse::<u64>().is_err()).then_some(What::LongInteger)
}

/// Rewrites one row of text; `None` if it holds no odd value.
pub(super) fn rewrite(text: &[u8]) -> Option<(Vec<u8>, Vec<Odd>)> {
    Rewriter::new(1).whole(text)
}

/// Integers of more than 64 bits in a row of valid JSON.
pub(super) fn long_integers(text: &[u8]) -> Vec<Odd> {
    if !has_long_run(text) {
        return Vec::new();
    }
    rewrite(text).map_or_else(Vec::new, |(_, found)| found)
}

/// True if the text has a run of at least [`LONG`] digits.
fn has_long_run(text: &[u8]) -> bool {
    // A run of LONG digits contains one of every LONG consecutive bytes, so testing one byte in LONG finds it.
    let mut at = LONG - 1;
    while let Some(byte) = text.get(at) {
        if byte.is_ascii_digit() {
            let before = text[..at].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
            let after = text[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if before + after >= LONG {
                return true;
            }
            at += after;
        }
        at += LONG;
    }
    false
}

/// Replaces the odd values in a text by placeholders for [`unmark`]; `None` if it holds none.
pub(super) fn mark(text: &[u8]) -> Option<Vec<u8>> {
    Rewriter { marks: true, ..Rewriter::new(1) }.whole(text).map(|(text, _)| text)
}

/// Replaces the placeholders in a value by the values that the module comment lists, and returns their kinds.
/// Long integers become text if `long_as_text` is set, and are rounded otherwise.
pub(super) fn unmark(value: &mut Value, long_as_text: bool) -> Vec<What> {
    match value {
        Value::String(text) => {
            let (mut found, mut clean, mut rest) = (Vec::new(), String::new(), &text[..]);
            while let Some((before, after)) = rest.split_once(MARK) {
                clean += before;
                let code = after.chars().next();
                let what = What::ALL.into_iter().find(|what| Some(what.code()) == code);
                let Some(what) = what.filter(|_| after[1..].starts_with('\0')) else { return Vec::new() };
                rest = &after[2..];
                if what == What::Surrogate {
                    clean.push('\u{fffd}');
                }
                found.push(what);
            }
            let Some(&first) = found.first() else { return found };
            *value = match first {
                What::Surrogate | What::Control => Value::String(clean + rest),
                What::LongInteger if long_as_text => Value::String(rest.to_owned()),
                What::LongInteger => rest.parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number),
                What::Nan | What::Infinity | What::MinusInfinity | What::TooLarge => Value::Null,
            };
            found
        }
        Value::Array(list) => list.iter_mut().flat_map(|value| unmark(value, long_as_text)).collect(),
        Value::Object(object) => object.values_mut().flat_map(|value| unmark(value, long_as_text)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd(key: &str, what: What) -> Odd {
        Odd { key: key.into(), what }
    }

    #[test]
    fn words_outside_strings_become_null_and_their_keys_are_named() {
        let (text, found) =
            rewrite(br#"{"a": NaN, "b\"": {"c": [-Infinity, -1]}, "d": "NaN", "a": Infinity}"#).unwrap();
        assert_eq!(text, br#"{"a": null, "b\"": {"c": [null, -1]}, "d": "NaN", "a": null}"#);
        assert_eq!(found, [odd("a", What::Nan), odd("b\"", What::MinusInfinity), odd("a", What::Infinity)]);
        for text in
            [r#"{"NaN": 1, "x": -5e3, "y": null}"#, r#"{"a": Nan}"#, r#"{"a": -Inf}"#, "{\"a\": \"\\\" NaN\"}", "-"]
        {
            assert_eq!(rewrite(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn numbers_surrogates_and_control_characters_are_replaced_and_named() {
        let (text, found) = rewrite(
            br#"{"a": [1e999, -1E+400, 12.5], "b": {"c": "x\ud800y\udc00\ud83d\ude00\ud83d\n"}, "\ud9ab": "\\ud800",
                "d": "\ud800\ud83d\ude00", "e": 123456789012345678901}"#,
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            r#"{"a": [null, null, 12.5], "b": {"c": "x\ufffdy\ufffd\ud83d\ude00\ufffd\n"}, "\ufffd": "\\ud800",
                "d": "\ufffd\ud83d\ude00", "e": 123456789012345678901}"#
        );
        let kinds: Vec<(&str, What)> = found.iter().map(|odd| (&*odd.key, odd.what)).collect();
        let surrogate = What::Surrogate;
        assert_eq!(
            kinds,
            [
                ("a", What::TooLarge),
                ("b", surrogate),
                ("\\ud9ab", surrogate),
                ("d", surrogate),
                ("e", What::LongInteger)
            ]
        );
        let (text, found) = rewrite(b"{\"a\": \"x\ry\t\", \"b\": 1}").unwrap();
        assert_eq!(text, br#"{"a": "x\u000dy\u0009", "b": 1}"#);
        assert_eq!(found, [odd("a", What::Control)]);
        for text in [r#"{"a": 18446744073709551615, "b": -9223372036854775808, "c": "\u00e9\ud83d\ude00"}"#, "1e308"] {
            assert_eq!(rewrite(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn marked_values_are_found_in_their_rows() {
        let text = b"{\"a\": [NaN], \"b\": \"x\\ud800y\", \"c\": 123456789012345678901, \"d\": \"1\r2\"}";
        let mut value: Value = serde_json::from_slice(&mark(text).unwrap()).unwrap();
        let mut found = |key: &str, text: bool| (unmark(&mut value[key], text), value[key].clone());
        assert_eq!(found("a", false), (vec![What::Nan], serde_json::json!([null])));
        assert_eq!(found("b", false), (vec![What::Surrogate], "x\u{fffd}y".into()));
        assert_eq!(found("c", true), (vec![What::LongInteger], "123456789012345678901".into()));
        assert_eq!(found("d", false), (vec![What::Control], "1\r2".into()));
        assert_eq!(mark(b"{\"a\": \"\\u00e9\", \"b\": 1.5}"), None);
    }

    #[test]
    fn long_runs_of_digits_are_found_at_every_place() {
        for at in 0..40 {
            let text = |digits: usize| format!("{}{}x{}", "x".repeat(at), "7".repeat(digits), "5".repeat(18));
            assert!(!has_long_run(text(18).as_bytes()) && has_long_run(text(19).as_bytes()), "{at}");
        }
    }
}
