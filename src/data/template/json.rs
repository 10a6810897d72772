//! The `tojson` filter as transformers defines it: Python's `json.dumps` with the separators `", "` and `": "`.
//! Characters outside ASCII are kept unless `ensure_ascii` is set, HTML is not escaped, and keys keep their
//! order unless `sort_keys` is set.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};

use super::limits::check_items;

/// Settings of one call of `tojson`.
struct JsonFormat {
    ensure_ascii: bool,
    sort_keys: bool,
    /// Text of one indentation level; `None` writes a single line.
    indent: Option<String>,
    between_items: String,
    after_key: String,
}

/// Writes a value as JSON with the keyword arguments of the filter.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let refuse = |why: String| Error::new(ErrorKind::InvalidOperation, why);
    let optional = |name: &str| -> Result<Option<Value>, Error> {
        Ok(kwargs.get::<Option<Value>>(name)?.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let indent = match optional("indent")? {
        None => None,
        Some(value) => match (value.as_str(), u8::try_from(value.clone())) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Ok(spaces)) => Some(" ".repeat(spaces.into())),
            (None, Err(_)) => {
                return Err(refuse(format!("tojson: indent {value} must be a string or a number of spaces up to 255")));
            }
        },
    };
    let (between_items, after_key) = match optional("separators")? {
        // Python drops the space after the comma if every item is on a separate line.
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => match string_pair(&pair) {
            Some(pair) => pair,
            None => return Err(refuse("tojson: separators must be two strings".into())),
        },
    };
    let flag = |name: &str| Ok::<_, Error>(optional(name)?.is_some_and(|value| value.is_true()));
    let layout = JsonFormat {
        ensure_ascii: flag("ensure_ascii")?,
        sort_keys: flag("sort_keys")?,
        indent,
        between_items,
        after_key,
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(refuse("tojson: the value is undefined".into()));
    }
    check_items(value)?;
    let value = serde_json::to_value(value).map_err(|e| refuse(format!("tojson: {e}")))?;
    let mut out = String::new();
    layout.write(&value, 0, &mut out);
    Ok(out)
}

/// Reads a two-element sequence of strings.
fn string_pair(value: &Value) -> Option<(String, String)> {
    let items: Vec<Value> = value.try_iter().ok()?.collect();
    match &items[..] {
        [a, b] => Some((a.as_str()?.to_owned(), b.as_str()?.to_owned())),
        _ => None,
    }
}

impl JsonFormat {
    fn write(&self, value: &serde_json::Value, depth: usize, out: &mut String) {
        match value {
            serde_json::Value::Null => out.push_str("null"),
            serde_json::Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            serde_json::Value::Number(number) => out.push_str(&python_number(number)),
            serde_json::Value::String(text) => self.string(text, out),
            serde_json::Value::Array(items) => {
                self.items(items.iter(), items.len(), ('[', ']'), depth, out, |item, out| {
                    self.write(item, depth + 1, out);
                });
            }
            serde_json::Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                let length = entries.len();
                self.items(entries.into_iter(), length, ('{', '}'), depth, out, |(key, item), out| {
                    self.string(key, out);
                    out.push_str(&self.after_key);
                    self.write(item, depth + 1, out);
                });
            }
        }
    }

    fn items<T>(
        &self,
        items: impl Iterator<Item = T>,
        length: usize,
        (open, close): (char, char),
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        out.push(open);
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.between_items);
            }
            self.new_line(depth + 1, out);
            write(item, out);
        }
        if length > 0 {
            self.new_line(depth, out);
        }
        out.push(close);
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if u32::from(c) < 0x20 || (self.ensure_ascii && u32::from(c) > 0x7e) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// Python's `repr` of a number.
pub(super) fn python_number(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => python_float(float),
        _ => number.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that round-trip, with an exponent below 1e-4 and
/// from 1e16 on.
fn python_float(x: f64) -> String {
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let Ok(power) = exponent.parse::<i32>() else { return scientific };
    if x != 0.0 && !(-4..16).contains(&power) {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", power.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use super::python_float;

    #[test]
    fn floats_are_printed_as_in_python() {
        let cases = [(1.0, "1.0"), (0.1, "0.1"), (1e16, "1e+16"), (1e15, "1000000000000000.0"), (1.5e-5, "1.5e-05")];
        for (x, expected) in cases {
            assert_eq!(python_float(x), expected);
        }
        assert_eq!(python_float(-0.0), "-0.0");
        assert_eq!(python_float(1e300), "1e+300");
        assert_eq!(python_float(0.0001), "0.0001");
    }
}
