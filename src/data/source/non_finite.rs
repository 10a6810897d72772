//! NaN, Infinity and -Infinity, which Python's json module writes and JSON does not have. They are
//! read as `null`, and the keys that held them are remembered: a key that no reader uses may hold
//! anything.

use serde_json::Value;

/// A key of a row, and what it held, at any depth.
pub(super) type NonFinite = (String, &'static str);

/// Start of the placeholder of a word until the row of the word is known.
const MARK: &str = "\0non-finite\0";

const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// Longest key that is remembered, in bytes.
const MAX_KEY: usize = 256;

/// Replaces the words outside strings, byte by byte.
#[derive(Debug)]
pub(super) struct Rewriter {
    /// Depth of brackets inside a row: 1 for lines, 2 for the elements of an array.
    row: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Content of the latest string directly inside a row; the key, when a value follows.
    key: Vec<u8>,
    /// Start of a word.
    word: Vec<u8>,
    /// Keys of the current row.
    found: Vec<NonFinite>,
    /// Replaces words by placeholders ([`MARK`]) instead of `null`.
    marks: bool,
}

impl Rewriter {
    /// For text in which a row's keys are inside `row` brackets.
    pub fn new(row: usize) -> Self {
        let (key, word, found) = (Vec::new(), Vec::new(), Vec::new());
        Self { row, depth: 0, in_string: false, escaped: false, key, word, found, marks: false }
    }

    /// Reads one byte, and appends what is complete to `out`.
    pub fn push(&mut self, byte: u8, out: &mut Vec<u8>) {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            if self.in_string && self.depth == self.row && self.key.len() < MAX_KEY {
                self.key.push(byte);
            }
            out.push(byte);
            return;
        }
        self.word.push(byte);
        if let Some(word) = WORDS.iter().find(|word| word.as_bytes() == self.word) {
            self.word.clear();
            let key = String::from_utf8_lossy(&self.key).into_owned();
            if !self.found.iter().any(|(known, _)| *known == key) {
                self.found.push((key, word));
            }
            match self.marks {
                true => out.extend(serde_json::to_vec(&format!("{MARK}{word}")).unwrap_or_default()),
                false => out.extend(b"null"),
            }
            return;
        }
        if WORDS.iter().any(|word| word.as_bytes().starts_with(&self.word)) {
            return;
        }
        self.finish(out);
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == self.row {
                    self.key.clear();
                }
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    /// Appends the start of a word that did not become one.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.word);
    }

    /// Rewrites a whole text; `None` if it holds none of the words outside strings.
    fn whole(mut self, text: &[u8]) -> Option<(Vec<u8>, Vec<NonFinite>)> {
        let mut out = Vec::with_capacity(text.len());
        text.iter().for_each(|&byte| self.push(byte, &mut out));
        self.finish(&mut out);
        (!self.found.is_empty()).then_some((out, self.found))
    }

    /// Returns and forgets the keys found so far.
    pub fn take(&mut self) -> Vec<NonFinite> {
        std::mem::take(&mut self.found)
    }
}

/// Rewrites one row of text; `None` if it holds none of the words outside strings.
pub(super) fn rewrite(text: &[u8]) -> Option<(Vec<u8>, Vec<NonFinite>)> {
    Rewriter::new(1).whole(text)
}

/// Text with the words outside strings replaced by placeholders for [`unmark`]; `None` if it holds none.
pub(super) fn mark(text: &[u8]) -> Option<Vec<u8>> {
    Rewriter { marks: true, ..Rewriter::new(1) }.whole(text).map(|(text, _)| text)
}

/// Replaces the placeholders in a value by `null`, and returns the word of the first.
pub(super) fn unmark(value: &mut Value) -> Option<&'static str> {
    match value {
        Value::String(text) => {
            let text = text.strip_prefix(MARK)?;
            let word = WORDS.into_iter().find(|word| *word == text)?;
            *value = Value::Null;
            Some(word)
        }
        Value::Array(list) => list.iter_mut().fold(None, |found, value| found.or(unmark(value))),
        Value::Object(object) => object.values_mut().fold(None, |found, value| found.or(unmark(value))),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_outside_strings_become_null_and_their_keys_are_named() {
        let (text, found) =
            rewrite(br#"{"a": NaN, "b\"": {"c": [-Infinity, -1]}, "d": "NaN", "a": Infinity}"#).unwrap();
        assert_eq!(text, br#"{"a": null, "b\"": {"c": [null, -1]}, "d": "NaN", "a": null}"#);
        assert_eq!(found, [("a".to_owned(), "NaN"), ("b\\\"".to_owned(), "-Infinity")]);
        for text in
            [r#"{"NaN": 1, "x": -5e3, "y": null}"#, r#"{"a": Nan}"#, r#"{"a": -Inf}"#, "{\"a\": \"\\\" NaN\"}", "-"]
        {
            assert_eq!(rewrite(text.as_bytes()), None, "{text}");
        }
    }
}
