//! Limits of a template's source, checked before it is parsed: its length, and the length of chains
//! (operators, filters, calls, `elif`). minijinja walks a chain by recursion, so a long one would
//! overflow the stack.

use super::percent::{end_of_code, step};

/// Maximum bytes of a source; templates of public models have up to 50 kB.
const MAX_SOURCE: usize = 1 << 20;

/// Maximum links of a chain: `a ~ b ~ c` has two.
const MAX_CHAIN: usize = 500;

/// Rejects a source above a limit.
pub(super) fn check(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE {
        return Err(format!("has {} bytes, more than the limit of {MAX_SOURCE}", source.len()));
    }
    let mut rest = source;
    let (mut line, mut elifs) = (1, 0);
    while let Some(at) = rest.find('{') {
        line += rest[..at].matches('\n').count();
        let close = match rest.as_bytes().get(at + 1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            _ => {
                rest = &rest[at + 1..];
                continue;
            }
        };
        rest = &rest[at + 2..];
        let body = &rest[..end_of_code(rest, close).unwrap_or(rest.len())];
        let links = longest_chain(body);
        elifs += usize::from(body.trim_start_matches(['-', '+', ' ', '\t', '\r', '\n']).starts_with("elif"));
        if links.max(elifs) > MAX_CHAIN {
            return Err(format!(
                "has a chain of more than {MAX_CHAIN} operators, filters, calls or elif at line {line}; split it with \
                 {{% set %}}"
            ));
        }
        line += body.matches('\n').count();
        rest = &rest[body.len()..];
    }
    Ok(())
}

/// Returns the number of links in the longest chain of a tag. A comma or an opening bracket starts a new
/// chain. Text after a closing bracket continues the chain before that bracket.
fn longest_chain(body: &str) -> usize {
    let mut outer = Vec::new();
    let (mut links, mut longest) = (0, 0);
    let mut rest = body;
    while let Some(c) = rest.chars().next() {
        let mut width = step(rest);
        match c {
            '(' | '[' | '{' => {
                outer.push(links + 1);
                links = 0;
            }
            ')' | ']' | '}' => links = outer.pop().unwrap_or(0),
            ',' => links = 0,
            '.' | '|' | '~' | '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!' => links += 1,
            c if c.is_alphanumeric() || c == '_' => {
                width = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                links += usize::from(matches!(&rest[..width], "and" | "or" | "not" | "in" | "is" | "if" | "else"));
            }
            _ => {}
        }
        longest = longest.max(links);
        rest = &rest[width..];
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_chains_are_refused_in_every_form_and_long_lists_are_not() {
        let chain = |link: &str, n: usize| format!("\n{{{{ x{} }}}}", link.repeat(n));
        for link in [" ~ x", "|f", " % x", ".a", "[0]", "()", " and x", " if x", " is f", " - x", "|f(1, 2)"] {
            assert!(check(&chain(link, 100)).is_ok(), "{link}");
            let why = check(&chain(link, MAX_CHAIN + 1)).unwrap_err();
            assert!(why.contains("chain") && why.contains("line 2"), "{link}: {why}");
        }
        assert!(check(&format!("{{{{ {}x }}}}", "not ".repeat(MAX_CHAIN + 1))).is_err());
        let branches = |n: usize| format!("{{% if x %}}{}{{% endif %}}", "{%- elif y -%}z".repeat(n));
        assert!(check(&branches(100)).is_ok() && check(&branches(MAX_CHAIN + 1)).is_err());
        for fine in [
            format!("{{{{ [{}] }}}}", "{'a': -1}, ".repeat(5000)),
            format!("{{{{ '{}' }}}}", "~ x".repeat(5000)),
            "{{ x ~ y }} a ~ b ".repeat(5000),
        ] {
            assert_eq!(check(&fine), Ok(()));
        }
        assert!(check(&"x".repeat(MAX_SOURCE + 1)).unwrap_err().contains("bytes"));
    }
}
