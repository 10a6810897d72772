//! One instruction of IFEval or IFBench with its arguments, and whether a response follows it. Verdicts are
//! those of the official checkers (google-research `instruction_following_eval`, lm-eval's `ifeval`). The
//! checkers that build training data are used if they decide in the same way; sentences, words in capitals,
//! languages and JSON have separate implementations here.
//!
//! Keywords, section splitters and postscript markers are regular expressions, as in the official checkers;
//! without special characters they are plain text.
//!
//! Two differences remain. If a `letter` is not a Latin letter, or an argument is zero or empty, the official
//! checkers replace it with a random value, whereas here it is used as written. langdetect is random unless it
//! is seeded, whereas here its seed is 0.

use regex::{Regex, RegexBuilder};

use super::capitals::{capital_words, is_lower, is_upper};
use super::ifbench;
use super::json::is_json;
use super::languages::detect;
use super::sentences::sentences;
use crate::data::instructions::{
    Analysis, Function, Kwargs, Relation, by_id, count_argument, text_argument, words_argument,
};

/// An instruction that is ready to be checked.
pub struct Instruction {
    /// IFEval's id, `family:name`.
    pub id: String,
    check: Check,
}

enum Check {
    Language(String),
    Sentences(usize, Relation),
    CapitalWords(usize, Relation),
    English {
        upper: bool,
    },
    Json,
    /// All expressions match.
    All(Vec<Regex>),
    /// No expression matches.
    None(Vec<Regex>),
    Occurrences(Regex, usize, Relation),
    /// At least this number of matches.
    AtLeast(Regex, usize),
    /// The expression matches the text in lower case.
    InLower(Regex),
    Shared(&'static Function, Kwargs),
    /// An instruction type of IFBench.
    Further(ifbench::Rule, Kwargs),
    Undecided,
}

impl Instruction {
    /// Prepares an instruction. An instruction with an unknown id gives no verdict. For a known id, `Err` says
    /// which argument is missing or malformed.
    pub fn new(id: &str, arguments: &Kwargs) -> Result<Self, String> {
        // Rows of the Hugging Face data sets list the arguments of all instructions, most of them
        // null.
        let mut given = arguments.clone();
        given.retain(|_, value| !value.is_null());
        let malformed = |given: &Kwargs| {
            let shown = serde_json::Value::Object(given.clone()).to_string();
            format!("the arguments of {id} are incomplete or malformed: {}", crate::terminal::shown(&shown))
        };
        let Some(function) = by_id(id) else {
            let check = match ifbench::rule(id) {
                Some(rule) if rule(&given, "text").is_none() => return Err(malformed(&given)),
                Some(rule) => Check::Further(rule, given),
                None => Check::Undecided,
            };
            return Ok(Self { id: id.to_owned(), check });
        };
        if function.check(&given, &Analysis::new("text")).is_none() && id != "language:response_language" {
            return Err(malformed(&given));
        }
        let check = match id {
            "language:response_language" => {
                let code = text_argument(&given, "language")
                    .ok_or_else(|| format!("{id} needs a \"language\", such as \"en\""))?;
                Check::Language(code.to_owned())
            }
            "length_constraints:number_sentences" => {
                bound(&given, "num_sentences").map_or(Check::Undecided, |(n, r)| Check::Sentences(n, r))
            }
            "change_case:capital_word_frequency" => {
                bound(&given, "capital_frequency").map_or(Check::Undecided, |(n, r)| Check::CapitalWords(n, r))
            }
            "change_case:english_capital" => Check::English { upper: true },
            "change_case:english_lowercase" => Check::English { upper: false },
            "detectable_format:json_format" => Check::Json,
            _ => match expressions(id, &given)? {
                Some(check) => check,
                None => Check::Shared(function, given),
            },
        };
        Ok(Self { id: id.to_owned(), check })
    }

    /// True if the instruction gives a verdict on responses; false for an unknown id.
    pub fn is_decided(&self) -> bool {
        !matches!(self.check, Check::Undecided)
    }

    /// True if a response that is not blank follows the instruction; `None` if there is no verdict.
    fn follows(&self, response: &Analysis) -> Option<bool> {
        let text = response.text();
        Some(match &self.check {
            Check::Language(code) => detect(text).is(code),
            Check::Sentences(threshold, relation) => relation.holds(sentences(text).len(), *threshold),
            Check::CapitalWords(threshold, relation) => relation.holds(capital_words(text), *threshold),
            Check::English { upper: true } => is_upper(text) && detect(text).is("en"),
            Check::English { upper: false } => is_lower(text) && detect(text).is("en"),
            Check::Json => is_json(unfenced(text)),
            Check::All(words) => words.iter().all(|word| word.is_match(text)),
            Check::None(words) => !words.iter().any(|word| word.is_match(text)),
            Check::Occurrences(word, threshold, relation) => relation.holds(word.find_iter(text).count(), *threshold),
            Check::AtLeast(mark, least) => mark.find_iter(text).count() >= *least,
            Check::InLower(mark) => mark.is_match(&text.to_lowercase()),
            Check::Shared(function, arguments) => return function.check(arguments, response),
            Check::Further(rule, arguments) => return rule(arguments, text),
            Check::Undecided => return None,
        })
    }
}

/// The JSON text of a response, without a code fence.
fn unfenced(text: &str) -> &str {
    let mut body = text.trim();
    for fence in ["```json", "```Json", "```JSON", "```"] {
        body = body.strip_prefix(fence).unwrap_or(body);
    }
    body.strip_suffix("```").unwrap_or(body).trim()
}

fn bound(arguments: &Kwargs, key: &str) -> Option<(usize, Relation)> {
    Some((count_argument(arguments, key)?, Relation::of(arguments)?))
}

/// Checks of keywords and markers that contain special characters of regular expressions; `None` for plain
/// text, and for other instructions.
fn expressions(id: &str, arguments: &Kwargs) -> Result<Option<Check>, String> {
    let one = |key| text_argument(arguments, key).map(|text| vec![text.trim()]);
    let found = match id {
        "keywords:existence" => words_argument(arguments, "keywords"),
        "keywords:forbidden_words" => words_argument(arguments, "forbidden_words"),
        "keywords:frequency" => one("keyword"),
        "detectable_format:multiple_sections" => one("section_spliter"),
        "detectable_content:postscript" => {
            one("postscript_marker").filter(|mark| !matches!(mark[..], ["P.S." | "P.P.S"]))
        }
        _ => None,
    };
    let Some(words) = found.filter(|words| words.iter().any(|word| is_special(word))) else { return Ok(None) };
    let compile = |before: &str, after: &str, ignore_case: bool| {
        let one = |word: &&str| {
            RegexBuilder::new(&format!("{before}{word}{after}")).case_insensitive(ignore_case).build().map_err(|_| {
                format!(
                    "{id}: \"{word}\" is not a regular expression that can be run, and IFEval reads it as one; put a \
                     backslash before its special characters"
                )
            })
        };
        words.iter().map(one).collect::<Result<Vec<Regex>, String>>()
    };
    let first = |mut list: Vec<Regex>| list.swap_remove(0);
    Ok(Some(match id {
        "keywords:existence" => Check::All(compile("", "", true)?),
        "keywords:forbidden_words" => Check::None(compile(r"\b", r"\b", true)?),
        "keywords:frequency" => {
            let Some((threshold, relation)) = bound(arguments, "frequency") else { return Ok(None) };
            Check::Occurrences(first(compile("", "", true)?), threshold, relation)
        }
        "detectable_format:multiple_sections" => {
            let Some(least) = count_argument(arguments, "num_sections") else { return Ok(None) };
            Check::AtLeast(first(compile(r"\s?", r"\s?\d+\s?", false)?), least)
        }
        _ => Check::InLower(first(compile("", "", true)?)),
    }))
}

fn is_special(word: &str) -> bool {
    word.contains(['\\', '.', '+', '*', '?', '(', ')', '|', '[', ']', '{', '}', '^', '$'])
}

/// Verdicts on one response, one for each instruction; `None` for an instruction that gives no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// Verdicts on the response as it is.
    pub strict: Vec<Option<bool>>,
    /// True if the response or one of its seven variants follows the instruction. The variants lack the first
    /// line, the last line or both, the asterisks, or lines and asterisks.
    pub loose: Vec<Option<bool>>,
}

/// Checks a response. A blank response follows no instruction.
pub fn verdicts(instructions: &[Instruction], response: &str) -> Verdicts {
    let lines: Vec<&str> = response.split('\n').collect();
    let part = |from: usize, to: usize| lines.get(from..to).unwrap_or_default().join("\n").trim().to_owned();
    let (n, whole) = (lines.len(), response.to_owned());
    let mut variants = vec![whole, part(1, n), part(0, n - 1), part(1, (n - 1).max(1))];
    let bare: Vec<String> = variants.iter().map(|text| text.replace('*', "")).collect();
    variants.extend(bare);
    let analyses: Vec<Option<Analysis>> =
        variants.iter().map(|text| (!text.trim().is_empty()).then(|| Analysis::new(text))).collect();
    let follows = |instruction: &Instruction, response: &Option<Analysis>| match response {
        Some(response) => instruction.follows(response),
        None => instruction.is_decided().then_some(false),
    };
    let strict: Vec<Option<bool>> = instructions.iter().map(|i| follows(i, &analyses[0])).collect();
    let any = |(instruction, strict): (&Instruction, &Option<bool>)| {
        strict.map(|strict| strict || analyses[1..].iter().any(|text| follows(instruction, text) == Some(true)))
    };
    let loose = instructions.iter().zip(&strict).map(any).collect();
    Verdicts { strict, loose }
}
