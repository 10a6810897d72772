//! Rows with several responses to one prompt, and numbers, ranks or a label for them. Every such row becomes
//! a group with one base comparison for each selected pair ([`Pairs`]).
//!
//! - a list of responses, with numbers inside the entries or in a separate list
//! - lists of chosen and of rejected responses
//! - two responses in separate columns, with a label (`two_columns`)
//!
//! Higher numbers are better, lower ranks are better. Responses with equal numbers are not compared;
//! they are counted. A row without any pair is left out and counted.

use serde_json::Value;

use super::super::group::{Comparison, Kind, Message, PreferenceGroup, Prompt};
use super::chat_pair::TWO_PROMPTS;
use super::context::Context;
use super::fields::{Row, describe, number};
use super::message::{message, messages, split_response};
use super::options::Pairs;
use super::{Format, Parsed};

/// Columns with a list of responses.
const LISTS: [&str; 9] = [
    "completions",
    "responses",
    "answers",
    "candidates",
    "outputs",
    "generations",
    "ranked_responses",
    "all_responses",
    "output",
];
/// Lists in the order of preference, best first.
const ORDERED: [&str; 2] = ["ranked_responses", "output"];
/// Keys of the text of a list entry, by precedence.
const TEXTS: [&str; 8] = ["response", "answer", "text", "completion", "output", "generation", "output_text", "content"];
/// Keys under which lower numbers are better.
const LOWER: [&str; 2] = ["rank", "ranking"];
/// Keys of the number of a list entry, by precedence.
const NUMBERS: [&str; 9] =
    ["rank", "ranking", "fine-grained_score", "overall_score", "score", "pm_score", "rating", "reward", "value"];
/// Lists of numbers next to a list of responses; lower is better in the first three.
const NUMBER_LISTS: [&str; 7] = ["ranks", "ranking", "rank", "scores", "ratings", "rewards", "overall_scores"];

/// One response with its number; higher is better.
pub(super) struct Candidate {
    /// The response, or the whole conversation that ends with it.
    pub side: Vec<Message>,
    pub number: f64,
}

/// Column with a list of responses, if the row has one.
pub(super) fn list_column(row: &Row<'_>) -> Option<&'static str> {
    let list = |key: &&str| row.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    LISTS.into_iter().find(|key| list(key))
}

/// Reads a list of responses with numbers.
pub(super) fn read_list(row: &mut Row<'_>, column: &'static str) -> Result<Parsed, String> {
    let context = Context::take(row)?;
    let Some(Value::Array(list)) = row.take(column) else { return Err(format!("\"{column}\" must be a list")) };
    let what = |i: usize| format!("\"{column}\"[{i}]");
    let separate = NUMBER_LISTS.iter().enumerate().find(|(_, key)| row.get(key).is_some_and(Value::is_array));
    // Whether the numbers are ranks, whose differences have no meaning.
    let mut places = false;
    let numbers: Vec<Option<f64>> = match separate {
        Some((place, key)) => {
            let numbers = row.take(key).and_then(|value| value.as_array().cloned()).unwrap_or_default();
            if numbers.len() != list.len() {
                return Err(format!("\"{key}\" has {} numbers for {} responses", numbers.len(), list.len()));
            }
            places = place < 3;
            let sign = if places { -1.0 } else { 1.0 };
            numbers.iter().map(|value| number(value).map(|number| sign * number)).collect()
        }
        None => match own_numbers(&list, row.score_key.as_deref()) {
            Some((numbers, of_places)) => {
                places = of_places;
                numbers
            }
            None if ORDERED.contains(&column) && row.score_key.is_none() => {
                places = true;
                (0..list.len()).map(|i| Some(-(i as f64))).collect()
            }
            None => vec![None; list.len()],
        },
    };
    row.used_score_key |= separate.is_none() && row.score_key.is_some();
    let unrated = numbers.iter().filter(|number| number.is_none()).count();
    if list.len() - unrated < 2 {
        let needed = row.score_key.as_deref().map_or_else(
            || format!("{} in the entries, or a list such as \"scores\" or \"ranks\"", NUMBERS.join(", ")),
            |key| format!("\"{key}\" in the entries"),
        );
        return Err(format!(
            "\"{column}\" lists {} responses, and {} of them have a number; two are needed to compare ({needed}); \
             --score-key names the key",
            list.len(),
            list.len() - unrated
        ));
    }
    let mut candidates = Vec::with_capacity(list.len());
    for (i, (entry, number)) in list.into_iter().zip(numbers).enumerate() {
        if let Some(number) = number {
            candidates.push(Candidate { side: side(entry, &what(i))?, number });
        }
    }
    let margins = if places { Margins::None } else { Margins::Gaps };
    let parsed = group(row, &context, candidates, Format::Scored, margins)?;
    Ok(Parsed { unrated, ..parsed })
}

/// True if `chosen` and `rejected` are lists of responses.
pub(super) fn are_lists(row: &Row<'_>) -> bool {
    let texts = |key: &str| {
        let list = row.get(key).and_then(Value::as_array);
        list.is_some_and(|list| list.first().is_some_and(Value::is_string) && list.iter().all(Value::is_string))
    };
    texts("chosen") && texts("rejected")
}

/// Reads lists of chosen and rejected responses.
pub(super) fn read_lists(row: &mut Row<'_>) -> Result<Parsed, String> {
    let context = Context::take(row)?;
    let mut candidates = Vec::new();
    for (key, number) in [("chosen", 1.0), ("rejected", 0.0)] {
        let Some(Value::Array(list)) = row.take(key) else { return Err(format!("\"{key}\" must be a list")) };
        for (i, entry) in list.into_iter().enumerate() {
            candidates.push(Candidate { side: side(entry, &format!("\"{key}\"[{i}]"))?, number });
        }
    }
    let parsed = group(row, &context, candidates, Format::Lists, Margins::None)?;
    Ok(Parsed { ties: 0, ..parsed })
}

/// Returns the numbers of the entries, and whether they are ranks. The numbers are those under `key`, or
/// under the first known key with at least two numbers, or the mean ratings of the annotations. `None` if no
/// source has two numbers.
fn own_numbers(list: &[Value], key: Option<&str>) -> Option<(Vec<Option<f64>>, bool)> {
    let under = |key: &str| -> Vec<Option<f64>> {
        let sign = if LOWER.contains(&key) { -1.0 } else { 1.0 };
        // In a message with the key `from`, the key `value` holds the text.
        let is_text = |entry: &Value| key == "value" && entry.get("from").is_some();
        let of = |entry: &Value| entry.get(key).filter(|_| !is_text(entry)).and_then(number);
        list.iter().map(|entry| of(entry).map(|number| sign * number)).collect()
    };
    let two = |numbers: &Vec<Option<f64>>| numbers.iter().flatten().count() >= 2;
    match key {
        Some(key) => Some((under(key), LOWER.contains(&key))),
        None => {
            let annotated = || list.iter().map(annotations).collect::<Vec<_>>();
            let known = NUMBERS.into_iter().map(|key| (under(key), LOWER.contains(&key)));
            let found = known.into_iter().find(|(numbers, _)| two(numbers));
            found.or_else(|| Some((annotated(), false)).filter(|(numbers, _)| two(numbers)))
        }
    }
}

/// Mean rating of an entry's annotations.
fn annotations(entry: &Value) -> Option<f64> {
    let ratings = entry.get("annotations")?.as_object()?.values();
    let ratings: Vec<f64> = ratings.filter_map(|aspect| number(aspect.get("Rating")?)).collect();
    (!ratings.is_empty()).then(|| ratings.iter().sum::<f64>() / ratings.len() as f64)
}

/// Messages of an entry: a text, a message, a conversation, or an object with a text.
pub(super) fn side(entry: Value, what: &str) -> Result<Vec<Message>, String> {
    match entry {
        Value::String(text) => Ok(vec![Message::new("assistant", text)]),
        Value::Array(_) => messages(entry, what),
        Value::Object(ref object) if object.contains_key("role") || object.contains_key("from") => {
            Ok(vec![message(entry, what)?])
        }
        Value::Object(mut object) => {
            let text = TEXTS.iter().find_map(|key| object.remove(*key).filter(|value| !value.is_null()));
            match text {
                Some(text @ (Value::String(_) | Value::Array(_))) => side(text, what),
                _ => Err(format!("{what} has no text; one of {} is needed", TEXTS.join(", "))),
            }
        }
        other => Err(format!("{what} must be a text or an object with a text, found {}", describe(&other))),
    }
}

/// Whether differences of numbers can be margins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Margins {
    /// The numbers only order the responses.
    None,
    Gaps,
}

/// Builds the group of the selected pairs. Responses that no pair uses are left out.
pub(super) fn group(
    row: &mut Row<'_>,
    context: &Context,
    candidates: Vec<Candidate>,
    format: Format,
    margins: Margins,
) -> Result<Parsed, String> {
    if row.has("margin") {
        return Err("\"margin\" next to several responses is ambiguous; leave it out (--drop-columns margin)".into());
    }
    if row.score_margin && margins == Margins::None {
        return Err(
            "--score-margin needs scores, and the row only says which response is better; leave it out, or name \
                    the key of a score with --score-key"
                .into(),
        );
    }
    let numbers: Vec<f64> = candidates.iter().map(|candidate| candidate.number).collect();
    let (pairs, ties) = row.pairs.select(&numbers);
    row.used_pairs |= candidates.len() > 2;
    row.used_score_margin |= row.score_margin;
    let mut kept: Vec<Option<usize>> = vec![None; candidates.len()];
    let mut sides: Vec<Option<Vec<Message>>> = candidates.into_iter().map(|candidate| Some(candidate.side)).collect();
    let (mut prompts, mut responses, mut prompt_of) = (Vec::new(), Vec::new(), Vec::new());
    for i in (0..sides.len()).filter(|i| pairs.iter().any(|pair| pair.0 == *i || pair.1 == *i)) {
        let side = sides[i].take().unwrap_or_default();
        if context.has_no_question() && side.len() == 1 {
            let keys = row.keys_for_message();
            return Err(format!("the responses have no question (the row has {keys}); name it with --column-map"));
        }
        let (turns, response) = split_response(context.before(side, "a response")?, &format!("response {i}"))?;
        let prompt = prompts.iter().position(|known| *known == turns).unwrap_or_else(|| {
            prompts.push(turns);
            prompts.len() - 1
        });
        kept[i] = Some(responses.len());
        responses.push(response);
        prompt_of.push(prompt);
    }
    if prompts.len() > 1 && !row.whole_conversations {
        return Err(format!("the conversations differ before their last message; {TWO_PROMPTS}"));
    }
    let place = |i: usize| kept[i].map(|response| (prompt_of[response], response)).unwrap_or_default();
    let comparisons = pairs.iter().map(|&(better, worse)| {
        let margin = if row.score_margin { finite_gap(numbers[better], numbers[worse])? } else { 0.0 };
        Ok(Comparison::pair(Kind::Base, place(better), place(worse), margin))
    });
    let comparisons = comparisons.collect::<Result<Vec<_>, String>>()?;
    let prompts = prompts.into_iter().map(Prompt::Messages).collect();
    let mut group = PreferenceGroup::new(row.id().to_owned(), prompts, responses, comparisons);
    row.template_settings(&mut group)?;
    Ok(Parsed { ties, tied: pairs.is_empty(), ..Parsed::new(format, group) })
}

/// Returns the gap of two scores as a margin. The gap must be finite in f32, in which training computes.
pub(super) fn finite_gap(better: f64, worse: f64) -> Result<f64, String> {
    let gap = better - worse;
    if (gap as f32).is_finite() {
        return Ok(gap);
    }
    Err(format!(
        "the gap of the scores {better:e} and {worse:e} is not finite in single precision, so it gives no margin"
    ))
}

impl Pairs {
    /// Returns the selected pairs (better, worse) of responses with these numbers, and the number of ties left out.
    fn select(self, numbers: &[f64]) -> (Vec<(usize, usize)>, usize) {
        let best = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let worst = numbers.iter().copied().fold(f64::INFINITY, f64::min);
        let (mut pairs, mut ties) = (Vec::new(), 0);
        for i in 0..numbers.len() {
            for j in i + 1..numbers.len() {
                let (better, worse) = if numbers[i] >= numbers[j] { (i, j) } else { (j, i) };
                let wanted = match self {
                    Pairs::All => true,
                    Pairs::BestRest => numbers[better] == best,
                    Pairs::BestWorst => numbers[better] == best && numbers[worse] == worst,
                };
                match wanted {
                    true if numbers[i] == numbers[j] => ties += 1,
                    true => pairs.push((better, worse)),
                    false => {}
                }
            }
        }
        if self == Pairs::BestWorst {
            // Of several best or worst responses, the first is used.
            pairs.sort_unstable();
            ties += pairs.len().saturating_sub(1);
            pairs.truncate(1);
        }
        (pairs, ties)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_selected_and_ties_counted() {
        let numbers = [3.0, 9.0, 7.0, 3.0, 9.0];
        assert_eq!(Pairs::BestRest.select(&numbers), (vec![(1, 0), (4, 0), (1, 2), (1, 3), (4, 2), (4, 3)], 1));
        assert_eq!(Pairs::BestWorst.select(&numbers), (vec![(1, 0)], 3));
        let (all, ties) = Pairs::All.select(&numbers);
        assert_eq!((all.len(), ties), (8, 2));
        for pairs in [Pairs::All, Pairs::BestRest, Pairs::BestWorst] {
            assert_eq!(pairs.select(&[2.0, 2.0]), (vec![], 1));
            assert_eq!(pairs.select(&[-2.0, -1.0]), (vec![(1, 0)], 0));
        }
    }
}
