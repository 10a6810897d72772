//! Properties of the text of a JSON object that its parsed form has lost: duplicate keys and the digits of
//! long numbers. Also writes a JSON text on one line.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Replaces a number under one of the keys `ids` by its text if a 64-bit integer cannot represent it. `inner`
/// is the text of the object after its opening brace.
pub(super) fn keep_id_text(object: &mut Map<String, Value>, inner: &[u8], ids: &[&str]) {
    for key in ids {
        if let Some(value @ Value::Number(_)) = object.get_mut(*key)
            && value.as_i64().is_none()
            && value.as_u64().is_none()
            && let Some(text) = number_text(inner, key)
        {
            *value = Value::String(text);
        }
    }
}

/// Text of the number under `key` of a valid JSON object. `inner` is the text after the opening brace.
fn number_text(inner: &[u8], key: &str) -> Option<String> {
    let mut found = None;
    each_key(inner, |name, value| {
        if serde_json::from_slice::<String>(name).is_ok_and(|name| name == key) {
            let digits = value.iter().take_while(|b| b.is_ascii_digit() || b"+-.eE".contains(b)).count();
            found = (digits > 0).then(|| String::from_utf8_lossy(&value[..digits]).into_owned());
        }
    })?;
    found
}

/// Rejects an object with a duplicate key, because JSON does not define which value counts. `inner` is the
/// text after the opening brace.
pub(super) fn distinct_keys(object: &Map<String, Value>, inner: &[u8]) -> Result<(), String> {
    let mut count = 0;
    if each_key(inner, |_, _| count += 1).is_none() || count == object.len() {
        return Ok(());
    }
    let (mut known, mut twice) = (HashSet::new(), None);
    each_key(inner, |name, _| {
        let name: String = serde_json::from_slice(name).unwrap_or_default();
        if twice.is_none() && !known.insert(name.clone()) {
            twice = Some(name);
        }
    });
    twice.map_or(Ok(()), |name| Err(format!("the row has the key \"{name}\" twice; leave one of them out")))
}

/// Calls `f` with every key of a valid JSON object, in quotes, and the text that starts at its value. `inner`
/// is the text after the opening brace. `None` if the object is not complete.
fn each_key<'a>(inner: &'a [u8], mut f: impl FnMut(&'a [u8], &'a [u8])) -> Option<()> {
    let (mut depth, mut at) = (1usize, 0);
    while depth > 0 {
        match *inner.get(at)? {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let end = string_end(inner, at)?;
                if depth == 1
                    && let Some((b':', value)) = inner[end..].trim_ascii_start().split_first()
                {
                    f(&inner[at..end], value.trim_ascii_start());
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    Some(())
}

/// Returns the index after the closing quote of the string that starts at `start`.
fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns the number under `key` exactly as the row's text writes it; `None` for other values.
pub(crate) fn written_number(row: &str, key: &str) -> Option<String> {
    number_text(row.trim_start().strip_prefix('{')?.as_bytes(), key)
}

/// Returns the text of a JSON value without white space outside strings.
pub(super) fn on_one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = in_string,
            '"' => in_string = !in_string,
            ' ' | '\t' | '\r' | '\n' if !in_string => continue,
            _ => {}
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_stay_as_they_are_written() {
        let row = "{ \"a\" : [1.0,\n 2e5, \"x \\\" : y\"], \"b\": 123456789012345678901234 , \"c\": \"7\"}";
        assert_eq!(on_one_line(row), r#"{"a":[1.0,2e5,"x \" : y"],"b":123456789012345678901234,"c":"7"}"#);
        assert_eq!(written_number(row, "b").unwrap(), "123456789012345678901234");
        assert_eq!(["a", "c", "d"].map(|key| written_number(row, key)), [None, None, None]);
    }
}
