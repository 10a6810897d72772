//! Cues in the prompts of intra comparisons: whether the two prompts reveal the preferred one
//! without the response. The rules use prompt length, number of instructions, relations, numbers,
//! and all of these together with the words. Comparisons with such cues train a preference for
//! prompts instead of instruction following.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::corpus::{Corpus, prompt_text};
use super::finding::{Finding, Level, Place};
use super::holdout::{Example, Examples, SignedValue, correctness, held_out, sign_rule};
use super::interval::Share;
use super::linear::{self, Features};
use super::words::{Vocabulary, WordCounts};
use crate::data::group::{Instruction, Kind, PreferenceGroup};
use crate::data::instructions::Relation;

/// Held-out accuracy above which a rule causes a warning; the whole interval must be above.
/// Unbiased prompts give one half.
const LIMIT: f64 = 0.55;
/// Maximum number of comparisons used, spaced evenly over the data.
const MAX_COMPARISONS: usize = 20_000;

/// Result of one rule that predicts the preferred one of two prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cue {
    pub cue: &'static str,
    /// Held-out accuracy; `None` with too little data.
    pub accuracy: Option<Share>,
}

/// Intra comparison: one response under two prompts.
struct Intra {
    row: usize,
    /// Indices of the better and the worse prompt in the group.
    prompts: [usize; 2],
}

/// Evaluates every rule; empty without intra comparisons.
pub(super) fn check(corpus: &Corpus, findings: &mut Vec<Finding>) -> Vec<Cue> {
    let all = intra(corpus);
    let kept = all.len().min(MAX_COMPARISONS);
    let used: Vec<&Intra> = (0..kept).map(|i| &all[i * all.len() / kept]).collect();
    if used.is_empty() {
        return Vec::new();
    }
    let number = |cue: &'static str, of: &dyn Fn(&PreferenceGroup, usize) -> f64| {
        let value_of = |intra: &&Intra| {
            let group = &corpus.rows[intra.row].group;
            let [better, worse] = intra.prompts.map(|prompt| of(group, prompt));
            SignedValue { cluster: corpus.row_cluster(intra.row), value: better - worse }
        };
        let values: Vec<SignedValue> = used.iter().map(value_of).collect();
        Cue { cue, accuracy: sign_rule(Examples { train: &values, test: None }) }
    };
    let sum = |group: &PreferenceGroup, prompt, of: fn(&Instruction) -> f64| {
        group.instructions.iter().filter(|i| i.prompt == prompt).map(of).sum::<f64>()
    };
    let cues = vec![
        number("prompt length", &|group, prompt| prompt_text(&group.prompts[prompt]).chars().count() as f64),
        number("number of instructions", &|group, prompt| sum(group, prompt, |_| 1.0)),
        number("\"at least\" against \"less than\"", &|group, prompt| sum(group, prompt, relation)),
        number("size of the numbers", &|group, prompt| sum(group, prompt, |i| threshold(i).map_or(0.0, f64::ln_1p))),
        Cue { cue: "all of it and the words", accuracy: combined(corpus, &used) },
    ];
    let strong: Vec<String> = cues
        .iter()
        .filter_map(|cue| cue.accuracy.filter(|a| a.above(LIMIT)).map(|a| format!("{} ({a})", cue.cue)))
        .collect();
    if !strong.is_empty() {
        let what = format!(
            "the preferred prompt of an intra comparison can be predicted without the response, by: {}; accuracies on \
             held-out comparisons",
            strong.join(", ")
        );
        let best = cues.iter().filter_map(|c| c.accuracy).fold(0.0, |best: f64, a| best.max(a.share));
        let count = (best * used.len() as f64).round() as usize;
        let finding = Finding::new(Level::Warning, "instruction-cue", (count, used.len()), what)
            .why("a model satisfies such comparisons by preferring certain prompts and learns nothing about responses")
            .advice(
                "build both responses of a pair under the same prompts (--intra-responses both, --inter-prompts \
                     shared) and use functions that have both relations",
            )
            .places(used.iter().map(|intra| Place::row(corpus, intra.row)));
        findings.push(finding);
    }
    cues
}

fn intra(corpus: &Corpus) -> Vec<Intra> {
    let of_row = |(row, source): (usize, &crate::data::source::SourceRow)| {
        let pairs = source.group.comparisons.iter().filter(|c| c.kind == Kind::Intra).filter_map(move |comparison| {
            let [a, b] = comparison.terms[..] else { return None };
            let prompts = if a.sign > 0 { [a.prompt, b.prompt] } else { [b.prompt, a.prompt] };
            (a.response == b.response).then_some(Intra { row, prompts })
        });
        pairs.collect::<Vec<_>>()
    };
    corpus.rows.iter().enumerate().flat_map(of_row).collect()
}

fn relation(instruction: &Instruction) -> f64 {
    match Relation::of(&instruction.kwargs) {
        Some(Relation::AtLeast) => 1.0,
        Some(Relation::LessThan) => -1.0,
        None => 0.0,
    }
}

/// Returns the first number among the arguments.
fn threshold(instruction: &Instruction) -> Option<f64> {
    instruction.kwargs.values().find_map(serde_json::Value::as_f64).filter(|n| n.is_finite() && *n >= 0.0)
}

/// Held-out accuracy of a linear model over function, relation, size of the number and words of the
/// prompts.
fn combined(corpus: &Corpus, used: &[&Intra]) -> Option<Share> {
    let counts = WordCounts::of_pairs(used, |intra| {
        intra.prompts.map(|prompt| -> Cow<'_, str> { prompt_text(&corpus.rows[intra.row].group.prompts[prompt]) })
    });
    let vocabulary = Vocabulary::new(&counts);
    let mut names: BTreeMap<String, u32> = BTreeMap::new();
    let mut examples = Vec::with_capacity(used.len());
    for (intra, counts) in used.iter().zip(&counts) {
        let group = &corpus.rows[intra.row].group;
        let mut values = Vec::new();
        for (prompt, sign) in intra.prompts.into_iter().zip([1.0, -1.0]) {
            for instruction in group.instructions.iter().filter(|i| i.prompt == prompt) {
                for name in feature_names(instruction) {
                    let next = names.len() as u32;
                    values.push((*names.entry(name).or_insert(next), sign));
                }
            }
        }
        examples.push((corpus.row_cluster(intra.row), values, counts));
    }
    let offset = names.len() as u32;
    let examples: Vec<Example<Features>> = examples
        .into_iter()
        .map(|(cluster, mut values, counts)| {
            values.extend(vocabulary.difference(counts, offset));
            Example { cluster, value: Features::new(values) }
        })
        .collect();
    let width = names.len() + vocabulary.len();
    let fit = |examples: &[&Example<Features>]| linear::fit(examples.iter().map(|e| &e.value), width);
    held_out(Examples { train: &examples, test: None }, fit, |weights, e| correctness(e.value.dot(weights)))
}

/// Returns the feature names of an instruction: the function, the function with its relation, and
/// both with the magnitude of the number.
fn feature_names(instruction: &Instruction) -> [String; 3] {
    let id = &instruction.id;
    let relation = Relation::of(&instruction.kwargs).map_or("", Relation::name);
    let magnitude = threshold(instruction).map_or(-1, |n| (n + 1.0).log2() as i64);
    [id.clone(), format!("{id}|{relation}"), format!("{id}|{relation}|{magnitude}")]
}
