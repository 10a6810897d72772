//! Python's `%` formatting. minijinja has no `%` for strings, so `'...' % value` becomes `'...'|format(value)`
//! in the source. A format string that is not a literal is left as it is and fails with minijinja's message.

/// Maximum nesting of rewritten operands. Deeper operands are left as they are, because unbounded recursion on
/// an untrusted source could overflow the stack.
const MAX_NESTING: usize = 16;

/// Rewrites every `%` after a string literal inside `{{ }}` and `{% %}`.
pub(super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (close, code) = match rest.as_bytes().get(at + 1) {
            Some(b'{') => ("}}", true),
            Some(b'%') => ("%}", true),
            Some(b'#') => ("#}", false),
            _ => {
                out.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
                continue;
            }
        };
        out.push_str(&rest[..at + 2]);
        rest = &rest[at + 2..];
        let end = if code { end_of_code(rest, close) } else { rest.find(close) };
        let body = &rest[..end.unwrap_or(rest.len())];
        if code {
            expression(body, 0, &mut out)
        } else {
            out.push_str(body)
        }
        rest = &rest[body.len()..];
        // The text of a raw block is not code.
        if code && body.trim_matches(|c: char| "-+ \t\n\r".contains(c)) == "raw" {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

/// Returns the offset of the closing delimiter `close`, ignoring string literals.
pub(super) fn end_of_code(text: &str, close: &str) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(close) {
            return Some(at);
        }
        at += step(&text[at..]);
    }
    None
}

/// Returns the length in bytes of the string literal at the start of a text. If the text starts with something
/// else, returns the length of its first character.
pub(super) fn step(text: &str) -> usize {
    let first = text.chars().next().map_or(1, char::len_utf8);
    let Some(quote) = text.chars().next().filter(|c| "'\"".contains(*c)) else { return first };
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn expression(mut text: &str, nesting: usize, out: &mut String) {
    if nesting > MAX_NESTING {
        out.push_str(text);
        return;
    }
    while !text.is_empty() {
        let literal = text.starts_with(['\'', '"']);
        let width = step(text);
        out.push_str(&text[..width]);
        text = &text[width..];
        let Some(right) = text.trim_start().strip_prefix('%').filter(|_| literal) else { continue };
        let right = right.trim_start();
        let operand = &right[..operand(right)];
        if operand.is_empty() {
            continue;
        }
        out.push_str("|format(");
        match operand.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
            Some(inner) => expression(inner.trim_end_matches([',', ' ']), nesting + 1, out),
            None => expression(operand, nesting + 1, out),
        }
        out.push(')');
        text = &right[operand.len()..];
    }
}

/// Returns the length in bytes of the operand at the start of a text: a name, number, string or parentheses,
/// with the suffixes that are applied to it (`.name`, `[...]`, `(...)`, `|filter`).
fn operand(text: &str) -> usize {
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut at = match text.chars().next() {
        Some('\'' | '"') => step(text),
        Some('(') => enclosed(text),
        Some(c) if c.is_alphanumeric() || c == '_' => word(text),
        _ => return 0,
    };
    loop {
        let rest = &text[at..];
        at += match rest.chars().next() {
            Some('[') => enclosed(rest),
            // A `(` right after a `)` is not treated as a call.
            Some('(') if !text[..at].ends_with(')') => enclosed(rest),
            Some('.') => 1 + word(&rest[1..]),
            _ => {
                let Some(filter) = rest.trim_start().strip_prefix('|') else { return at };
                let name = filter.trim_start();
                rest.len() - name.len() + word(name)
            }
        };
    }
}

/// Returns the number of bytes from an opening bracket to its closing bracket.
fn enclosed(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        at += step(&text[at..]);
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_before_a_percent_sign_are_formatted() {
        for (source, expected) in [
            ("{{ '%s' % x.y['a'](1)|upper ~ z }}", "{{ '%s'|format(x.y['a'](1)|upper) ~ z }}"),
            (r#"{{ "a'%s" % (x, ('%d' % 3)) }}"#, r#"{{ "a'%s"|format(x, ('%d'|format(3))) }}"#),
            ("{%- set a = '%}' % b -%}", "{%- set a = '%}'|format(b) -%}"),
        ] {
            assert_eq!(rewrite(source), expected);
        }
        for source in [
            "'%s' % x",
            "{# '%s' % x #}{{ 7 % 3 }}{{ x % 3 }}",
            "{% raw %}{{ '%s' % x }}{% endraw %}",
            "{% if a == 'b' %}c",
            "{{ '%s' % {'a': 1} }}",
            "{{ 'open % x",
        ] {
            assert_eq!(rewrite(source), source);
        }
    }

    #[test]
    fn deep_nesting_is_left_as_it_is() {
        let deep = |n: usize| format!("{{{{ {}1{} }}}}", "'%s' % (".repeat(n), ")".repeat(n));
        for (levels, rewritten) in [(MAX_NESTING, MAX_NESTING), (1 << 18, MAX_NESTING + 1)] {
            assert_eq!(rewrite(&deep(levels)).matches("|format(").count(), rewritten);
        }
        assert_eq!(rewrite(&"'%s' % (".repeat(1 << 18)), "'%s' % (".repeat(1 << 18));
        assert!(rewrite(&"{{ '%s' % (".repeat(1 << 18)).contains("|format("));
    }
}
