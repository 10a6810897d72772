//! Python's string methods that minijinja lacks, or whose positions and widths it counts in bytes. Here,
//! positions and widths count code points, as in Python.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind};

use super::limits::check_width;

/// Calls a string method; `None` if this file does not implement it.
pub(super) fn text(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let whole = || from_args::<()>(args);
    Some(match method {
        "find" | "rfind" | "index" | "rindex" => position(text, method, args),
        "count" => count(text, args),
        "startswith" | "endswith" => affix(text, method == "startswith", args),
        "removeprefix" => from_args::<(&str,)>(args).map(|(p,)| text.strip_prefix(p).unwrap_or(text).into()),
        "removesuffix" => from_args::<(&str,)>(args).map(|(s,)| text.strip_suffix(s).unwrap_or(text).into()),
        "partition" | "rpartition" => partition(text, method == "partition", args),
        "split" | "rsplit" => split(text, method == "split", args),
        "splitlines" => splitlines(text, args),
        "ljust" | "rjust" | "center" => justify(text, method, args),
        "zfill" => from_args::<(usize,)>(args).and_then(|(width,)| zfill(text, width)),
        "casefold" => whole().map(|()| text.to_uppercase().to_lowercase().replace('ς', "σ").into()),
        "swapcase" => whole().map(|()| text.chars().flat_map(swapped).collect::<String>().into()),
        "title" => whole().map(|()| title(text).into()),
        _ => return None,
    })
}

fn refuse(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, why.into())
}

/// Returns the byte offset of code point `at`, or the length of the text if it has fewer code points.
fn offset(text: &str, at: usize) -> usize {
    text.char_indices().nth(at).map_or(text.len(), |(offset, _)| offset)
}

/// Returns the part of a text between two positions, which follow the rules of Python's slices, and the
/// number of code points before the part. `None` if the start is after the end.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    let len = text.chars().count();
    let place = |at: i64| if at < 0 { len.saturating_sub(at.unsigned_abs() as usize) } else { at as usize };
    let (start, end) = (start.map_or(0, place), end.map_or(len, place).min(len));
    if start > end {
        return None;
    }
    Some((&text[offset(text, start)..offset(text, end)], start))
}

fn position(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end) = from_args::<(&str, Option<i64>, Option<i64>)>(args)?;
    let found = slice(text, start, end).and_then(|(part, before)| {
        let at = if method.starts_with('r') { part.rfind(what) } else { part.find(what) }?;
        Some(before + part[..at].chars().count())
    });
    match found {
        Some(at) => Ok(at.into()),
        None if method.ends_with("find") => Ok((-1).into()),
        None => Err(refuse("substring not found")),
    }
}

fn count(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end) = from_args::<(&str, Option<i64>, Option<i64>)>(args)?;
    let Some((part, _)) = slice(text, start, end) else { return Ok(0.into()) };
    // An empty `what` is found before every character and at the end, as in Python.
    Ok(part.matches(what).count().into())
}

fn affix(text: &str, starts: bool, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end) = from_args::<(&Value, Option<i64>, Option<i64>)>(args)?;
    let Some((part, _)) = slice(text, start, end) else { return Ok(false.into()) };
    let one = |value: &Value| {
        let affix =
            value.as_str().ok_or_else(|| refuse("startswith and endswith need a string or a list of strings"))?;
        Ok::<_, Error>(if starts { part.starts_with(affix) } else { part.ends_with(affix) })
    };
    if what.kind() != ValueKind::Seq {
        return one(what).map(Value::from);
    }
    for value in what.try_iter()? {
        if one(&value)? {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

fn partition(text: &str, first: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator,) = from_args::<(&str,)>(args)?;
    if separator.is_empty() {
        return Err(refuse("empty separator"));
    }
    let found = if first { text.split_once(separator) } else { text.rsplit_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if first => [text, "", ""],
        None => ["", "", text],
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// White space of Python's `str.split` and `str.isspace`.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn split(text: &str, from_start: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit, named) = from_args::<(Option<Value>, Option<i64>, Kwargs)>(args)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => named.get::<Option<Value>>("sep")?,
    };
    let limit = match limit {
        Some(limit) => limit,
        None => named.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
    };
    named.assert_all_used()?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let separator = separator.filter(|separator| !separator.is_none());
    let mut parts: Vec<&str> = match &separator {
        None => split_at_space(text, from_start, limit),
        Some(separator) => {
            let separator = separator.as_str().ok_or_else(|| refuse("the separator must be a string"))?;
            match separator {
                "" => return Err(refuse("empty separator")),
                _ if from_start => text.splitn(limit.saturating_add(1), separator).collect(),
                _ => text.rsplitn(limit.saturating_add(1), separator).collect(),
            }
        }
    };
    if !from_start {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits a text at white space. After `limit` splits, the remaining text is one part, which keeps its trailing
/// white space. If `from_start` is false, splitting starts at the end, the last part keeps its leading white
/// space, and the parts are in reverse order.
fn split_at_space(text: &str, from_start: bool, limit: usize) -> Vec<&str> {
    let trim =
        |text| if from_start { str::trim_start_matches(text, is_space) } else { text.trim_end_matches(is_space) };
    let (mut parts, mut rest) = (Vec::new(), trim(text));
    while !rest.is_empty() {
        let cut = if from_start { rest.find(is_space) } else { rest.rfind(is_space) };
        let Some(cut) = cut.filter(|_| parts.len() < limit) else {
            parts.push(rest);
            break;
        };
        let width = rest[cut..].chars().next().map_or(0, char::len_utf8);
        let (word, after) =
            if from_start { (&rest[..cut], &rest[cut..]) } else { (&rest[cut + width..], &rest[..cut + width]) };
        parts.push(word);
        rest = trim(after);
    }
    parts
}

fn splitlines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep, named) = from_args::<(Option<bool>, Kwargs)>(args)?;
    let keep = keep.or(named.get("keepends")?).unwrap_or(false);
    named.assert_all_used()?;
    let ends = |c: char| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(ends) {
        let width =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keep { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    Ok(lines.into_iter().map(Value::from).collect())
}

fn justify(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill) = from_args::<(i64, Option<char>)>(args)?;
    let side = match method {
        "ljust" => Side::Left,
        "rjust" => Side::Right,
        _ => Side::Center,
    };
    padded(text, width, fill.unwrap_or(' '), side).map(Value::from)
}

/// Alignment of a text within its padding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
    Center,
}

/// Pads a text to `width` code points. If a centred text gets an odd number of fill characters, Python puts
/// the extra one on the left only if the width is odd.
pub(super) fn padded(text: &str, width: i64, fill: char, side: Side) -> Result<String, Error> {
    let width = check_width(usize::try_from(width).unwrap_or(0))?;
    let pad = width.saturating_sub(text.chars().count());
    let before = match side {
        Side::Left => 0,
        Side::Right => pad,
        Side::Center => pad / 2 + (pad & width & 1),
    };
    let fill = |n: usize| std::iter::repeat_n(fill, n);
    Ok(fill(before).chain(text.chars()).chain(fill(pad - before)).collect())
}

fn zfill(text: &str, width: usize) -> Result<Value, Error> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = &text[..text.len() - digits.len()];
    let width = check_width(width)? - sign.len().min(width);
    Ok(Value::from(format!("{sign}{}", padded(digits, width as i64, '0', Side::Right)?)))
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

/// Writes the first letter of each run of cased letters in upper case and the others in lower case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// Returns the position of the first occurrence of a value in a list, as `list.index` does.
pub(super) fn list_index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (what, _) = from_args::<(&Value, Rest<Value>)>(args)?;
    let at = list.try_iter()?.position(|item| item == *what);
    at.map(Value::from).ok_or_else(|| refuse("the value is not in the list"))
}
