//! Filters and tests of Jinja 2 that minijinja lacks or implements differently.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

use super::limits::check_items;
use super::methods::{Side, padded};
use super::repr;

/// Registers the filters and tests.
pub(super) fn apply(env: &mut Environment<'static>) {
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", |value: &Value| value.kind() != ValueKind::Iterable && is_iterable(value));
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_filter("int", int);
    env.add_filter("float", |value: &Value, default: Option<f64>| float(value).or(default).unwrap_or(0.0));
    env.add_filter("string", |value: &Value| -> Result<String, Error> {
        check_items(value)?;
        Ok(repr::container_or_float(value).unwrap_or_else(|| value.to_string()))
    });
    env.add_filter("wordcount", |text: String| word_count(&text));
    env.add_filter("center", |text: String, width: Option<i64>| padded(&text, width.unwrap_or(80), ' ', Side::Center));
    env.add_filter("replace", |text: String, from: String, to: String, count: Option<usize>| match count {
        Some(count) => text.replacen(&from, &to, count),
        None => text.replace(&from, &to),
    });
    env.add_filter("round", round);
}

/// True if a value can be iterated. `None`, numbers and booleans cannot; an undefined value is an empty list.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.is_undefined() || value.try_iter().is_ok() || value.as_str().is_some())
}

/// Number of runs of letters, digits and underscores.
fn word_count(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// Converts a number, a boolean, or the text of a number to a float.
fn float(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    }
}

/// Converts a number or the text of a number to an integer, rounding towards zero. Returns `default`, or 0
/// without one, for everything else.
fn int(value: &Value, default: Option<i64>, base: Option<u32>) -> Result<i64, Error> {
    let base = base.unwrap_or(10);
    if !(2..=36).contains(&base) {
        return Err(Error::new(ErrorKind::InvalidOperation, "the base of int must be from 2 to 36"));
    }
    let text = value.as_str().map(|text| text.trim().to_lowercase());
    let whole = match &text {
        Some(text) => {
            let prefix = [(16, "0x"), (8, "0o"), (2, "0b")].into_iter().find(|(of, _)| *of == base).map_or("", |x| x.1);
            i64::from_str_radix(text.strip_prefix(prefix).unwrap_or(text), base).ok()
        }
        None if value.is_integer() => i64::try_from(value.clone()).ok(),
        None => None,
    };
    let rounded = || float(value).filter(|number| number.is_finite()).map(|number| number as i64);
    Ok(whole.or_else(rounded).or(default).unwrap_or(0))
}

/// Rounds to a number of decimals. The method `common` rounds the exact decimal expansion of the float, with
/// ties to even, as Python does.
fn round(value: &Value, precision: Option<i32>, method: Option<String>) -> Result<Value, Error> {
    let refuse = |why: &str| Error::new(ErrorKind::InvalidOperation, why.to_owned());
    let places = precision.unwrap_or(0).clamp(-400, 400);
    let number = f64::try_from(value.clone()).map_err(|_| refuse("round needs a number"))?;
    let whole = value.is_integer();
    let scale = 10f64.powi(places);
    Ok(match method.as_deref().unwrap_or("common") {
        "ceil" => Value::from((number * scale).ceil() / scale),
        "floor" => Value::from((number * scale).floor() / scale),
        "common" if whole && places >= 0 => value.clone(),
        "common" if whole => Value::from(((number * scale).round_ties_even() / scale) as i64),
        "common" if places >= 0 => {
            Value::from(format!("{number:.*}", places as usize).parse::<f64>().unwrap_or(number))
        }
        "common" => Value::from((number * scale).round_ties_even() / scale),
        _ => return Err(refuse("the method of round must be common, ceil or floor")),
    })
}
