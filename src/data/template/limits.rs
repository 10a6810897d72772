//! Resource limits of a chat template. A template is a program that came with a model folder. The budgets for
//! instructions and output are far above the needs of any conversation. Built-ins that would run or grow
//! without bound for some arguments are replaced by versions that reject those arguments.
//!
//! This file does not limit the size of a single value, such as a text that is repeatedly joined to itself,
//! or the depth of values. Worker processes limit both ([`crate::data::worker`]).

use std::io;

use minijinja::value::{Kwargs, Rest, StringInput, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::methods;

/// Instruction budget of one rendering: 1000 turns at 5000 each, a fraction of a second of work.
pub(super) const MAX_INSTRUCTIONS: u64 = 5_000_000;

/// Maximum output bytes of one rendering: twice the longest accepted row.
pub(super) const MAX_TEXT: usize = 128 << 20;

/// Maximum width of padding and indentation, and maximum number of parts of a split list.
const MAX_WIDTH: usize = 10_000;

/// Maximum number of items that a filter or the output iterates over. `[1] * 10**12` is a short expression
/// for a huge list.
const MAX_ITEMS: usize = MAX_INSTRUCTIONS as usize;

/// Replaces built-in filters by ones that first check the number of items.
macro_rules! with_bounded_items {
    ($env:ident: $($name:ident)*) => {$(
        $env.add_filter(concat!("unchecked ", stringify!($name)), filters::$name);
        $env.add_filter(
            stringify!($name),
            |state: &State<'_, '_>, value: &Value, rest: Rest<Value>| -> Result<Value, Error> {
                check_items(value)?;
                let args: Vec<Value> = [value.clone()].into_iter().chain(rest.iter().cloned()).collect();
                state.apply_filter(concat!("unchecked ", stringify!($name)), &args)
            },
        );
    )*};
}

/// Rejects a list with too many items.
pub(super) fn check_items(value: &Value) -> Result<(), Error> {
    match value.len() {
        Some(items) if items > MAX_ITEMS && value.as_str().is_none() => {
            Err(refuse(format!("a list has {items} items, more than the limit of {MAX_ITEMS}")))
        }
        _ => Ok(()),
    }
}

/// Sets the limits of an environment; must be called after everything else is registered.
pub(super) fn apply(env: &mut Environment<'static>) {
    env.set_fuel(Some(MAX_INSTRUCTIONS));
    env.set_unknown_method_callback(python_method);
    with_bounded_items!(env: join list map max min reject rejectattr reverse select selectattr sort sum unique);
    env.add_filter("indent", indent);
    env.add_filter("slice", |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        check_items(&value)?;
        check_width(count).and_then(|count| filters::slice(state, value, count, fill))
    });
    env.add_filter("batch", |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        check_items(&value)?;
        check_width(count).and_then(|count| filters::batch(state, value, count, fill))
    });
    env.add_filter("format", |state: &State<'_, '_>, text: &Value, values: Rest<Value>| {
        percent_widths(text.as_str().unwrap_or_default(), &values)?;
        filters::format(state, text, values)
    });
}

fn refuse(why: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

pub(super) fn check_width(count: usize) -> Result<usize, Error> {
    if count > MAX_WIDTH { Err(refuse(format!("{count} is above the maximum width {MAX_WIDTH}"))) } else { Ok(count) }
}

fn indent(
    value: StringInput<'_>,
    by: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let named = kwargs.get::<Option<usize>>("width")?;
    check_width(by.or(named).unwrap_or(0))?;
    filters::indent(value, by, first, blank, kwargs)
}

/// Rejects a width or precision that is too large in one conversion specifier of a format, such as the 12 or the
/// 3 of `%12.3f`.
fn check_numbers(conversion: &str) -> Result<(), Error> {
    let digits = conversion.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    digits.map(|digits| check_width(digits.parse().unwrap_or(usize::MAX))).try_for_each(|checked| checked.map(|_| ()))
}

/// Checks the widths in a format string of the filter `format`. If a width is `*`, all numbers in `values` are
/// checked too.
fn percent_widths(text: &str, values: &[Value]) -> Result<(), Error> {
    for part in text.split('%').skip(1) {
        // A key in parentheses may precede the width, as in `%(key)5d`.
        let part = part.strip_prefix('(').and_then(|key| key.split_once(')')).map_or(part, |(_, rest)| rest);
        let end = part.find(|c: char| !c.is_ascii_digit() && !"-+ #.*".contains(c)).unwrap_or(part.len());
        check_numbers(&part[..end])?;
        if part[..end].contains('*') {
            for value in values.iter().filter(|value| value.kind() == ValueKind::Number) {
                check_width(value.as_i64().map_or(usize::MAX, |number| number.unsigned_abs() as usize))?;
            }
        }
    }
    Ok(())
}

/// Checks the widths in a format string of Python's `str.format`, which are the numbers after a colon in
/// braces.
fn brace_widths(text: &str) -> Result<(), Error> {
    let fields = text.split('{').skip(1).filter_map(|part| part.split('}').next());
    fields.filter_map(|field| field.split_once(':')).try_for_each(|(_, conversion)| check_numbers(conversion))
}

/// Calls a Python method of a value: the version of `methods` if there is one, otherwise minijinja's.
fn python_method(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if method == "format" {
            brace_widths(text)?;
        }
        if let Some(result) = methods::text(text, method, args) {
            return result;
        }
    }
    if method == "index" && value.kind() == ValueKind::Seq {
        return methods::list_index(value, args);
    }
    unknown_method_callback(state, value, method, args)
}

/// Output of a rendering, up to [`MAX_TEXT`] bytes.
#[derive(Default)]
pub(super) struct BoundedText {
    pub bytes: Vec<u8>,
    /// True if the output would have been longer.
    pub overflowed: bool,
}

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_TEXT {
            self.overflowed = true;
            return Err(io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ChatTemplate;

    fn render(source: &str) -> Result<String, String> {
        let user = super::super::Message::new("user", "x");
        ChatTemplate::compile(source, Vec::new())?.render(&[user], true, None, None)
    }

    #[test]
    fn an_endless_loop_runs_out_of_instructions() {
        let inner = "{% for b in range(99999) %}{% set x = a + b %}{% endfor %}";
        let why = render(&format!("{{% for a in range(99999) %}}{inner}{{% endfor %}}")).unwrap_err();
        assert!(why.contains("5000000 instructions"), "{why}");
        let why = render("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}").unwrap_err();
        assert!(why.contains("recursion"), "{why}");
        assert_eq!(render("{{ 'aba'.count('') }}{{ 'aba'.count('a') }}").unwrap(), "42");
    }

    #[test]
    fn an_endless_text_is_refused() {
        let why = render("{% set a = 'x' * 1000000 %}{% for i in range(1000) %}{{ a }}{% endfor %}").unwrap_err();
        assert!(why.contains("more than 128 MiB"), "{why}");
    }

    #[test]
    fn endless_lists_are_refused_and_others_work() {
        for filter in ["list", "join", "sum", "tojson", "string", "batch(2)|list", "map('string')|list", "max"] {
            let why = render(&format!("{{{{ ([1] * 10**12)|{filter} }}}}")).unwrap_err();
            assert!(why.contains("1000000000000 items"), "{filter}: {why}");
        }
        assert!(render("{{ [1] * 10**12 }}").unwrap_err().contains("items"));
        assert!(render("{% for x in [1] * 10**12 %}{% endfor %}").unwrap_err().contains("instructions"));
        for (source, expected) in [
            ("([1] * 3)|list", "[1, 1, 1]"),
            ("[3, 1]|sort(reverse=true)|join('-')", "3-1"),
            ("[{'a': 1}, {'a': 2}]|map(attribute='a')|sum", "3"),
            ("[1, 2, 3]|select('gt', 1)|list", "[2, 3]"),
            ("[{'a': 1}, {'a': 2}]|selectattr('a', 'equalto', 2)|list|length", "1"),
            ("('a' * 6000000)|list|length", "6000000"),
        ] {
            assert_eq!(render(&format!("{{{{ {source} }}}}")).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn the_longest_chains_do_not_overflow_the_stack() {
        for link in ["~ 'a'", "|upper", "[0:]", "if 1", "and 1", "% 7"] {
            let start = if link.starts_with('%') { "9" } else { "'a'" };
            render(&format!("{{{{ {start} {} }}}}", format!("{link} ").repeat(490))).unwrap();
        }
        render(&format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(490))).unwrap();
    }

    #[test]
    fn huge_widths_are_refused_and_others_work() {
        for source in [
            "'a'|indent(99999999999, true)",
            "'a'|indent(width=10001)",
            "[1]|slice(99999999999)|list",
            "[1]|batch(99999999999)|list",
            "'%99999999999d'|format(1)",
            "'%*d'|format(99999999999, 1)",
            "'%.99999999999f'|format(1.5)",
            "'{:>99999999999}'.format(1)",
        ] {
            let why = render(&format!("{{{{ {source} }}}}")).unwrap_err();
            assert!(why.contains("above the maximum width"), "{source}: {why}");
        }
        for (source, expected) in [
            ("'a\nb'|indent(2)", "a\n  b"),
            ("'a\nb'|indent(width=1, first=true)", " a\n b"),
            ("[1, 2, 3]|batch(2)|list", "[[1, 2], [3]]"),
            ("[1, 2, 3]|slice(2)|list", "[[1, 2], [3]]"),
            ("'%5d 123456 %s'|format(7, 99999)", "    7 123456 99999"),
            ("'{:>3} 123456 {}'.format(7, 99999)", "  7 123456 99999"),
        ] {
            assert_eq!(render(&format!("{{{{ {source} }}}}")).unwrap(), expected, "{source}");
        }
    }
}
