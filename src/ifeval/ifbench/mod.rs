//! Instruction types of IFBench (Pyatkin et al. 2025, arXiv 2507.02833) that are checked here, with the
//! verdicts of its checkers. Where a checker of IFBench would stop with an error, the verdict is false.
//!
//! Nine of its 58 types are not checked, because they need a list of stop words, a list of emoji, a pronouncing
//! dictionary, a tagger of parts of speech, a CSV dialect or a decomposition of letters.
//!
//! - `text`: words and sentences as IFBench splits them; `words`: counts and orders of words;
//!   `sentences`: properties of sentences and copies; `layout`: marks, lines and lists

mod layout;
mod sentences;
mod text;
mod words;

use crate::data::instructions::Kwargs;

/// Checks whether a response that is not blank follows an instruction of one type; `None` if an argument is
/// missing or malformed.
pub(super) type Rule = fn(&Kwargs, &str) -> Option<bool>;

/// Returns the rule of an instruction type; `None` if the type is not checked.
pub(super) fn rule(id: &str) -> Option<Rule> {
    let all = words::RULES.iter().chain(&sentences::RULES).chain(&layout::RULES);
    all.copied().find(|(name, _)| *name == id).map(|(_, rule)| rule)
}
