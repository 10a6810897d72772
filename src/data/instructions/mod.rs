//! Instruction functions. Each function draws arguments from responses and their required flags,
//! phrases the arguments as an instruction, and checks any response against them. Ids, arguments
//! and checks follow IFEval (arXiv 2311.07911), so training rows and evaluation share one checker.
//! The wording and the rules that derive arguments are this project's own.
//!
//! - `analysis`: cached measurements of a text
//! - `quantity`: relations and thresholds; `lexical`: words drawn from responses; `wording`:
//!   grammar of the texts
//! - one file per IFEval family with its functions; `conflicts`: functions and arguments that
//!   exclude each other
//!
//! To add a function: write `draw`, `phrase` and `check` in the file of its family, add it to the
//! list of that file, and add its conflicts to `conflicts`. The tests in `tests/data/instructions.rs`
//! then cover it.

use serde_json::{Map, Value};

use crate::rng::Rng;

mod analysis;
mod change_case;
mod combination;
mod conflicts;
mod detectable_content;
mod detectable_format;
mod keywords;
mod language;
mod length;
mod lexical;
mod punctuation;
mod quantity;
mod startend;
mod stop_words;
mod wording;

pub use analysis::Analysis;
pub use conflicts::{clash, conflicts};
pub use quantity::Relation;

/// Arguments of an instruction, with IFEval's names.
pub type Kwargs = Map<String, Value>;

/// How a function's arguments depend on a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// A count with the relation "at least" or "less than".
    TwoSided,
    /// A count that must be met exactly.
    Exact,
    /// A count with "at least" only.
    AtLeast,
    /// Words or phrases of a response.
    Lexical,
    /// No argument, or an argument that does not depend on the response.
    Fixed,
}

/// A response and its required flag: `Some(true)` to satisfy the instruction, `Some(false)` to
/// violate it. A response with `None` is unconstrained and only offers words.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The response.
    pub response: &'a Analysis<'a>,
    /// Required flag of the response; `None` if the response is unconstrained.
    pub flag: Option<bool>,
}

/// Input for drawing arguments.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The responses and their flags.
    pub targets: &'a [Target<'a>],
    /// The original prompt. Its words are not used as keywords.
    pub prompt: &'a Analysis<'a>,
    /// Arguments of the same function in the other prompt of the comparison. If both relations are feasible,
    /// the relation opposite to that of these arguments is drawn. With equal relations, the laxer prompt would
    /// be recognisable as the better one without reading a response.
    pub partner: Option<&'a Kwargs>,
}

impl<'a> Request<'a> {
    fn with_flag(&self, flag: bool) -> impl Iterator<Item = &'a Analysis<'a>> {
        self.targets.iter().filter(move |t| t.flag == Some(flag)).map(|t| t.response)
    }

    fn satisfied(&self) -> impl Iterator<Item = &'a Analysis<'a>> {
        self.with_flag(true)
    }

    fn violated(&self) -> impl Iterator<Item = &'a Analysis<'a>> {
        self.with_flag(false)
    }

    fn free(&self) -> impl Iterator<Item = &'a Analysis<'a>> {
        self.targets.iter().filter(|t| t.flag.is_none()).map(|t| t.response)
    }
}

/// One instruction function.
pub struct Function {
    /// IFEval's id, `family:name`.
    pub id: &'static str,
    /// Relation of the arguments to a response.
    pub kind: FunctionKind,
    /// True if the check only approximates IFEval's.
    pub approximate: bool,
    /// Lower-case words that show that a prompt already mentions the subject of the function.
    triggers: &'static [&'static str],
    draw: fn(&Request, &mut Rng) -> Option<Kwargs>,
    phrase: fn(&Kwargs, usize) -> Option<String>,
    check: fn(&Kwargs, &Analysis) -> Option<bool>,
}

/// Maximum number of draws before a request counts as infeasible. A draw can miss a flag, for
/// example because a keyword is inside another word or both responses share a phrase.
const MAX_DRAWS: usize = 6;

/// Number of phrasings to draw from; functions with fewer repeat them.
pub const VARIANTS: usize = 12;

impl Function {
    /// Draws arguments that give every target its flag; `None` if none were found. A request
    /// without any flag is infeasible.
    pub fn draw(&self, request: &Request, rng: &mut Rng) -> Option<Kwargs> {
        if request.targets.iter().all(|t| t.flag.is_none()) {
            return None;
        }
        for _ in 0..MAX_DRAWS {
            let kwargs = (self.draw)(request, rng)?;
            let holds = |t: &Target| t.flag.is_none() || self.check(&kwargs, t.response) == t.flag;
            if request.targets.iter().all(holds) {
                return Some(kwargs);
            }
        }
        None
    }

    /// Returns the instruction as one sentence, in phrasing `variant` (any number; see
    /// [`VARIANTS`]). `None` if an argument is missing or malformed.
    pub fn phrase(&self, kwargs: &Kwargs, variant: usize) -> Option<String> {
        (self.phrase)(kwargs, variant)
    }

    /// Draws arguments ([`Function::draw`]) and phrases them ([`Function::phrase`]).
    pub fn build(&self, request: &Request, rng: &mut Rng) -> Option<(String, Kwargs)> {
        let kwargs = self.draw(request, rng)?;
        let text = self.phrase(&kwargs, rng.below(VARIANTS))?;
        Some((text, kwargs))
    }

    /// Returns whether a response satisfies the instruction. `None` if this is undecidable: an
    /// argument is missing or malformed, or the language of the response is not recognised.
    pub fn check(&self, kwargs: &Kwargs, response: &Analysis) -> Option<bool> {
        (self.check)(kwargs, response)
    }

    /// True if the prompt already mentions the subject of the function.
    pub fn is_mentioned_in(&self, prompt: &Analysis) -> bool {
        self.triggers.iter().any(|trigger| prompt.contains_whole(trigger))
    }
}

/// Returns all 25 functions, by family, in the order in which tables list them.
pub fn all() -> &'static [&'static Function] {
    static ALL: std::sync::LazyLock<Vec<&'static Function>> = std::sync::LazyLock::new(|| {
        let families: [&'static [Function]; 9] = [
            &keywords::FUNCTIONS,
            &language::FUNCTIONS,
            &length::FUNCTIONS,
            &detectable_content::FUNCTIONS,
            &detectable_format::FUNCTIONS,
            &combination::FUNCTIONS,
            &startend::FUNCTIONS,
            &change_case::FUNCTIONS,
            &punctuation::FUNCTIONS,
        ];
        families.into_iter().flatten().collect()
    });
    &ALL
}

/// Returns the function with this id.
pub fn by_id(id: &str) -> Option<&'static Function> {
    all().iter().copied().find(|f| f.id == id)
}

/// Draws no arguments. [`Function::draw`] then checks whether the responses have the required flags.
fn no_arguments(_: &Request, _: &mut Rng) -> Option<Kwargs> {
    Some(Kwargs::new())
}

pub(crate) fn text_argument<'a>(kwargs: &'a Kwargs, key: &str) -> Option<&'a str> {
    kwargs.get(key)?.as_str()
}

pub(crate) fn count_argument(kwargs: &Kwargs, key: &str) -> Option<usize> {
    let value = kwargs.get(key)?;
    // Some writers of IFEval rows store counts as floats.
    let whole = |x: f64| (x >= 0.0 && x.fract() == 0.0 && x < 1e15).then_some(x as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole)).and_then(|n| usize::try_from(n).ok())
}

pub(crate) fn words_argument<'a>(kwargs: &'a Kwargs, key: &str) -> Option<Vec<&'a str>> {
    kwargs.get(key)?.as_array()?.iter().map(Value::as_str).collect()
}

/// Builds arguments from pairs.
fn kwargs<const N: usize>(pairs: [(&str, Value); N]) -> Kwargs {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
