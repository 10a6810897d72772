//! Lists and dicts printed as in Python; templates that write `{{ tools }}` rely on it. Strings inside them
//! are in single quotes unless they contain a single quote and no double quote. Control characters are
//! escaped. Python also escapes unassigned code points; here they are kept unchanged.

use minijinja::value::{Value, ValueKind};

use super::json::python_number;

/// Returns the text of a container or float as in Python; `None` for other values, which Python and minijinja
/// print alike.
pub(super) fn container_or_float(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => {
            serde_json::Number::from_f64(f64::try_from(value.clone()).ok()?).map(|number| python_number(&number))
        }
        ValueKind::Seq | ValueKind::Map => {
            let value = serde_json::to_value(value).ok()?;
            let mut out = String::new();
            write(&value, &mut out);
            Some(out)
        }
        _ => None,
    }
}

fn write(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Null => out.push_str("None"),
        serde_json::Value::Bool(flag) => out.push_str(if *flag { "True" } else { "False" }),
        serde_json::Value::Number(number) => out.push_str(&python_number(number)),
        serde_json::Value::String(text) => string(text, out),
        serde_json::Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                write(item, out);
            }
            out.push(']');
        }
        serde_json::Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                string(key, out);
                out.push_str(": ");
                write(item, out);
            }
            out.push('}');
        }
    }
}

fn string(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}
