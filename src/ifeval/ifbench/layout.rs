//! IFBench instructions on punctuation marks, quotations, lines and lists.

use std::sync::LazyLock;

use regex::Regex;

use super::Rule;
use super::text::{bare, first, pattern, sentences, trimmed};
use crate::data::instructions::{Kwargs, text_argument};
use crate::ifeval::capitals::{is_lower, is_upper, tokens};

pub(super) static RULES: [(&str, Rule); 16] = [
    ("count:punctuation", |_, text| {
        let joined = text.contains("!?") || text.contains("?!") || text.contains('‽');
        let mut rest = text.replacen("?!", "", 1);
        if rest.len() == text.len() {
            rest = text.replacen("!?", "", 1);
        }
        Some(joined && ['.', ',', '!', '?', ';', ':'].iter().all(|mark| rest.contains(*mark)))
    }),
    ("format:parentheses", |_, text| Some(has_nested_brackets(text))),
    ("format:quotes", |_, text| Some(has_nested_quotes(text))),
    ("format:options", follows_option),
    ("format:newline", |_, text| {
        let text = bare(text);
        let lines = text.trim().split('\n').filter(|line| !line.is_empty()).count();
        Some(lines == text.split_whitespace().count())
    }),
    ("format:line_indent", |_, text| Some(is_staircase(text))),
    ("format:quote_unquote", |_, text| {
        let text = text.replace(['“', '”'], "\"").replace("'\"'", "");
        let text: String = text.split_whitespace().collect();
        let edge = |c: char| c != '"' && (c.is_ascii_digit() || c.is_ascii_punctuation());
        let rest = text.trim_matches(edge);
        Some(!text.contains("\"\"") && !rest.is_empty() && !rest.ends_with('"'))
    }),
    ("format:list", |arguments, text| Some(text.matches(text_argument(arguments, "sep")?).count() >= 2)),
    ("format:thesis", |_, text| {
        let Some(start) = text.find("<i>").or_else(|| text.find("<em>")) else { return Some(false) };
        let text = &text[start..];
        let Some(end) = text.find("</i>").or_else(|| text.find("</em>")) else { return Some(false) };
        Some(!text[3..end].trim().is_empty() && !text[end + 4..].trim().is_empty())
    }),
    ("format:sub-bullets", |_, text| Some(text.split('*').skip(1).all(|bullet| bullet.contains('-')))),
    ("format:no_bullets_bullets", |_, text| Some(has_sentences_then_bullets(text))),
    ("format:title_case", |_, text| {
        let is_title = |word: &String| {
            let rest = word.get(first(word).map_or(0, char::len_utf8)..).unwrap_or_default();
            !first(word).is_some_and(char::is_lowercase) || !(is_upper(rest) || is_lower(rest))
        };
        Some(tokens(text).iter().all(is_title))
    }),
    ("format:output_template", |_, text| {
        Some(["My Answer:", "My Conclusion:", "Future Outlook:"].iter().all(|part| text.contains(part)))
    }),
    ("format:no_whitespace", |_, text| Some(!text.contains(char::is_whitespace))),
    ("custom:mcq_count_length", |_, text| Some(has_four_questions(text))),
    ("custom:date_format_list", |_, text| Some(text.trim().split(',').all(|date| is_date(date.trim())))),
];

/// True if the text has five nested levels of brackets. A closing bracket that does not match starts the
/// count again.
fn has_nested_brackets(text: &str) -> bool {
    let (mut open, mut deepest) = (Vec::new(), 0);
    for c in text.chars() {
        match c {
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.last() == Some(&c) => {
                open.pop();
                if deepest >= 5 {
                    return true;
                }
            }
            ')' | ']' | '}' => {
                open.clear();
                deepest = 0;
            }
            _ => {}
        }
        deepest = deepest.max(open.len());
    }
    false
}

/// True if the text has three nested levels of quotation marks, all closed.
fn has_nested_quotes(text: &str) -> bool {
    let (mut open, mut deepest): (Vec<char>, usize) = (Vec::new(), 0);
    for c in text.chars().filter(|c| matches!(c, '"' | '\'')) {
        if open.last() == Some(&c) {
            open.pop();
            if deepest - open.len() >= 3 {
                return true;
            }
        } else {
            open.push(c);
            deepest = deepest.max(open.len());
        }
    }
    false
}

fn follows_option(arguments: &Kwargs, text: &str) -> Option<bool> {
    static LETTERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\W*[aA]\W*[bB]\W*[cC]\W*"));
    let options = text_argument(arguments, "options")?;
    let separator = ["/", "or", ","].into_iter().find(|separator| options.contains(separator)).unwrap_or(",");
    let mut options_of = options.split(separator).map(str::trim);
    if LETTERS.is_match(options) {
        return Some(options_of.any(|option| option == text));
    }
    let answer = trimmed(text).to_lowercase();
    Some(options_of.any(|option| trimmed(option).to_lowercase() == answer))
}

/// True if every line starts with more spaces than the line before. As in the checker, only every second line
/// of a run of blank lines is skipped.
fn is_staircase(text: &str) -> bool {
    let mut lines: Vec<&str> = text.split('\n').collect();
    // At least half of the lines stay, and their indents must grow, so the text must be longer than the sum of
    // these indents. Without this limit, removing lines one by one would need quadratic time.
    let least = lines.len() / 2;
    if least * least.saturating_sub(1) / 2 > text.len() {
        return false;
    }
    let mut at = 0;
    while at < lines.len() {
        if lines[at].trim().is_empty()
            && let Some(same) = lines.iter().position(|line| *line == lines[at])
        {
            lines.remove(same);
        }
        at += 1;
    }
    let indents: Vec<usize> = lines.iter().map(|line| line.len() - line.trim_start_matches(' ').len()).collect();
    indents.windows(2).all(|pair| pair[0] < pair[1])
}

/// True if the text is at least two sentences, then at least two lines that start with `*`, and nothing else.
fn has_sentences_then_bullets(text: &str) -> bool {
    let (mut in_sentences, mut count, mut bullets) = (true, 0, 0);
    for line in text.split('\n').map(str::trim) {
        if line.starts_with('*') {
            if count < 2 {
                return false;
            }
            (in_sentences, bullets) = (false, bullets + 1);
        } else if in_sentences {
            let found = sentences(line).len();
            // As in the checker, a blank line ends the sentences.
            (in_sentences, count) = (found > 0, count + found);
        } else {
            return false;
        }
    }
    bullets >= 2
}

/// True if the text is four questions with five options each, every question longer than the one before.
fn has_four_questions(text: &str) -> bool {
    static QUESTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"\n*Question \d+[.|):;]?\s*"));
    static OPTION: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[A-Ea-e][.|)]\s*\w"));
    let questions: Vec<&str> = QUESTION.split(text).map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_option = |line: &&str| OPTION.is_match(line.trim());
    let has_options = |question: &&str| question.split('\n').filter(is_option).count() == 5;
    let length = |question: &&str| {
        let lines = question.split('\n').take_while(|line| !is_option(line)).map(str::trim);
        lines.collect::<Vec<_>>().join(" ").trim().chars().count()
    };
    let lengths: Vec<usize> = questions.iter().map(length).collect();
    text.starts_with("Question")
        && questions.len() == 4
        && questions.iter().all(has_options)
        && lengths.windows(2).all(|pair| pair[0] < pair[1])
}

/// True for a date YYYY-MM-DD within Napoleon's life, from 1769 to 1821.
fn is_date(date: &str) -> bool {
    static DATE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([0-9]{4})-([0-9]{2})-([0-9]{2})$"));
    let Some(parts) = DATE.captures(date) else { return false };
    let [year, month, day] = [1, 2, 3].map(|part| parts[part].parse::<u32>().unwrap_or(0));
    let days = match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        0 => 99,
        _ => 31,
    };
    (1769..=1821).contains(&year) && month <= 12 && day <= days
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_recognised() {
        let none = Kwargs::new();
        let follows = |id: &str, text: &str| {
            let rule = RULES.iter().find(|(name, _)| *name == id).unwrap().1;
            rule(&none, text).unwrap()
        };
        assert!(follows("format:parentheses", "([{(())}])") && !follows("format:parentheses", "((((]((()"));
        assert!(follows("format:quotes", "\"a 'b \"c\" d' e\"") && !follows("format:quotes", "\"a 'b' c\""));
        assert!(follows("format:newline", "One,\ntwo\n\nthree") && !follows("format:newline", "one two"));
        assert!(follows("format:line_indent", "a\n b\n\n   c") && !follows("format:line_indent", "a\nb"));
        assert!(follows("format:quote_unquote", "\"a\" means b.") && !follows("format:quote_unquote", "b \"a\"."));
        assert!(follows("format:thesis", "x <i>a</i> b") && !follows("format:thesis", "<i> </i> b"));
        assert!(
            follows("format:no_bullets_bullets", "So it. Is it.\n* c\n* d")
                && !follows("format:no_bullets_bullets", "So it. Is it.\n\nNo.\n* c\n* d")
        );
        assert!(follows("format:title_case", "A Big-Day, Is It") && !follows("format:title_case", "A big Day"));
        assert!(
            follows("custom:date_format_list", "1796-04-12, 1812-09-07")
                && !follows("custom:date_format_list", "1796-4-12")
        );
        assert!(
            follows("count:punctuation", "a. b, c! d? e; f: g?!")
                && !follows("count:punctuation", "a. b, d? e; f: g?!")
        );
    }

    /// The time is linear in the text; with quadratic time, this test would run for hours.
    #[test]
    fn many_blank_lines_are_not_a_staircase() {
        assert!(!is_staircase(&"\n".repeat(1 << 22)));
        assert!(is_staircase("a\n\n b") && !is_staircase("a\n\n\n b\n"));
    }
}
