//! IFEval family `detectable_format`: bullet points, highlighted passages, sections, JSON, title, one of three
//! fixed answers.

use std::sync::LazyLock;

use regex::Regex;

use super::analysis::compile;
use super::quantity::{draw_exact, draw_minimum};
use super::wording::{noun, pick};
use super::{Analysis, Function, FunctionKind, Kwargs, Request, count_argument, kwargs, no_arguments, text_argument};
use crate::rng::Rng;

pub(super) static FUNCTIONS: [Function; 6] = [
    Function {
        id: "detectable_format:number_bullet_lists",
        kind: FunctionKind::Exact,
        approximate: false,
        triggers: &["bullet", "bullets", "bulleted", "list", "lists", "items"],
        draw: |request, rng| Some(kwargs([("num_bullets", draw_exact(request, rng, bullets)?.into())])),
        phrase: bullets_phrase,
        check: |kwargs, response| Some(bullets(response) == count_argument(kwargs, "num_bullets")?),
    },
    Function {
        id: "detectable_format:constrained_response",
        kind: FunctionKind::Fixed,
        approximate: false,
        triggers: &["my answer is", "yes or no"],
        draw: no_arguments,
        phrase: |_, variant| {
            let [yes, no, maybe] = FIXED_ANSWERS;
            pick(
                variant,
                [
                    format!("Reply with one of these sentences: \"{yes}\", \"{no}\" or \"{maybe}\""),
                    format!("State either \"{yes}\" or \"{no}\" or \"{maybe}\""),
                ],
            )
        },
        check: |_, response| Some(FIXED_ANSWERS.iter().any(|answer| response.text().contains(answer))),
    },
    Function {
        id: "detectable_format:number_highlighted_sections",
        kind: FunctionKind::AtLeast,
        approximate: false,
        triggers: &["highlight", "highlighted", "bold", "italic", "markdown", "asterisk", "asterisks"],
        draw: |request, rng| Some(kwargs([("num_highlights", draw_minimum(request, rng, highlights)?)])),
        phrase: highlights_phrase,
        check: |kwargs, response| Some(highlights(response) >= count_argument(kwargs, "num_highlights")?),
    },
    Function {
        id: "detectable_format:multiple_sections",
        kind: FunctionKind::AtLeast,
        approximate: false,
        triggers: &["section", "sections", "chapter", "chapters"],
        draw: draw_sections,
        phrase: sections_phrase,
        check: |kwargs, response| {
            let splitter = text_argument(kwargs, "section_spliter")?;
            Some(sections(splitter, response)? >= count_argument(kwargs, "num_sections")?)
        },
    },
    Function {
        id: "detectable_format:json_format",
        kind: FunctionKind::Fixed,
        approximate: false,
        triggers: &["json"],
        draw: no_arguments,
        phrase: |_, variant| {
            pick(
                variant,
                [
                    "Give the whole answer as JSON.".to_owned(),
                    "Format everything you write as a single JSON value.".to_owned(),
                    "Your answer must be valid JSON and nothing else.".to_owned(),
                ],
            )
        },
        check: |_, response| Some(is_json(response.text())),
    },
    Function {
        id: "detectable_format:title",
        kind: FunctionKind::Fixed,
        approximate: false,
        triggers: &["title", "titled", "headline"],
        draw: no_arguments,
        phrase: |_, variant| {
            pick(
                variant,
                [
                    "Give your answer a title in double angular brackets, like <<title>>.".to_owned(),
                    "Add a title written as <<your title>>.".to_owned(),
                    "Put a title between << and >>.".to_owned(),
                ],
            )
        },
        check: |_, response| Some(has_title(response.text())),
    },
];

const FIXED_ANSWERS: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

/// Number of lines that start with a hyphen, or with an asterisk that does not open bold text.
fn bullets(response: &Analysis) -> usize {
    static ASTERISK: LazyLock<Regex> = LazyLock::new(|| compile(r"(?m)^\s*\*[^*].*$"));
    static HYPHEN: LazyLock<Regex> = LazyLock::new(|| compile(r"(?m)^\s*-.*$"));
    ASTERISK.find_iter(response.text()).count() + HYPHEN.find_iter(response.text()).count()
}

fn bullets_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let n = count_argument(kwargs, "num_bullets")?;
    let points = noun(n, "bullet point", "bullet points");
    pick(
        variant,
        [
            format!("Use exactly {n} {points}, each on a line that starts with * or -."),
            format!("Your answer must contain exactly {n} markdown {points}."),
            format!("Include exactly {n} {points}, no more and no fewer."),
        ],
    )
}

/// Number of passages between single and between double asterisks, counted as in IFEval.
fn highlights(response: &Analysis) -> usize {
    static SINGLE: LazyLock<Regex> = LazyLock::new(|| compile(r"\*[^\n*]*\*"));
    static DOUBLE: LazyLock<Regex> = LazyLock::new(|| compile(r"\*\*[^\n*]*\*\*"));
    let filled = |m: &regex::Match| !m.as_str().trim_matches('*').trim().is_empty();
    let text = response.text();
    SINGLE.find_iter(text).filter(filled).count() + DOUBLE.find_iter(text).filter(filled).count()
}

fn highlights_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let n = count_argument(kwargs, "num_highlights")?;
    let passages = noun(n, "passage", "passages");
    pick(
        variant,
        [
            format!("Highlight at least {n} {passages} with asterisks, like *this*."),
            format!("Set at least {n} {passages} in markdown emphasis, such as *important words*."),
            format!("Emphasise at least {n} {passages} by writing *passage*."),
        ],
    )
}

const SPLITTERS: [&str; 2] = ["Section", "SECTION"];

/// Number of occurrences of the splitter before a number; `None` if the splitter is too long for a
/// regular expression.
fn sections(splitter: &str, response: &Analysis) -> Option<usize> {
    // Most responses lack the splitter, and then no regular expression is compiled.
    if !response.text().contains(splitter.trim()) {
        return Some(0);
    }
    let pattern = Regex::new(&format!(r"{}\s?\d+", regex::escape(splitter.trim()))).ok()?;
    Some(pattern.find_iter(response.text()).count())
}

fn draw_sections(request: &Request, rng: &mut Rng) -> Option<Kwargs> {
    let mut splitters = SPLITTERS;
    rng.shuffle(&mut splitters);
    splitters.into_iter().find_map(|splitter| {
        let number = draw_minimum(request, rng, |r| sections(splitter, r).unwrap_or(0))?;
        Some(kwargs([("section_spliter", splitter.into()), ("num_sections", number)]))
    })
}

fn sections_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let (n, splitter) = (count_argument(kwargs, "num_sections")?, text_argument(kwargs, "section_spliter")?);
    let sections = noun(n, "section", "sections");
    pick(
        variant,
        [
            format!("Divide the answer into at least {n} {sections}, headed {splitter} 1 and so on."),
            format!("Write at least {n} {sections} and open each with {splitter} and its number."),
            format!("Structure your answer in {n} or more {sections}, marked {splitter} X with X the number."),
        ],
    )
}

/// True for a JSON value, with or without a code fence.
fn is_json(text: &str) -> bool {
    let mut body = text.trim();
    for fence in ["```json", "```Json", "```JSON", "```"] {
        body = body.strip_prefix(fence).unwrap_or(body);
    }
    let body = body.strip_suffix("```").unwrap_or(body).trim();
    serde_json::from_str::<serde::de::IgnoredAny>(body).is_ok()
}

fn has_title(text: &str) -> bool {
    static TITLE: LazyLock<Regex> = LazyLock::new(|| compile(r"<<[^\n]+>>"));
    TITLE.find_iter(text).any(|m| !m.as_str().trim_start_matches('<').trim_end_matches('>').trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bullets_are_lines_of_asterisk_or_hyphen() {
        let count = |text| bullets(&Analysis::new(text));
        assert_eq!(count("* one\r\n* two\r\n - three\n**bold** line\n1. no"), 3);
        assert_eq!(count(""), 0);
    }

    #[test]
    fn highlights_count_single_and_double_asterisks() {
        let count = |text| highlights(&Analysis::new(text));
        assert_eq!(count("*a* and *b*"), 2);
        assert_eq!(count("* *"), 0);
        // The pattern for single asterisks matches only the two `**`, which are empty, so the passage counts once.
        assert_eq!(count("**bold**"), 1);
    }

    #[test]
    fn fences_do_not_hide_json() {
        assert!(is_json("```json\n{\"a\": [1, 2]}\n```") && is_json(" 3 ") && is_json("\"x\""));
        assert!(!is_json("") && !is_json("{a: 1}") && !is_json("text"));
    }

    #[test]
    fn titles_and_sections() {
        assert!(has_title("<<A>>") && !has_title("<< >>") && !has_title("<<a\nb>>"));
        let text = Analysis::new("Section 1\na\nSection2 b SECTION 3");
        assert_eq!((sections("Section", &text), sections("SECTION", &text)), (Some(2), Some(1)));
        assert_eq!(sections("S(", &text), Some(0));
    }
}
