//! Two responses in separate columns, with a label that says which is better, in the formats of published
//! data sets. A row whose label names neither response is a tie.

use serde_json::Value;

use super::candidates::{Candidate, Margins, group, side};
use super::context::Context;
use super::fields::{Row, describe, number};
use super::{Format, Parsed};

/// Meaning of a label.
#[derive(Clone, Copy)]
enum Label {
    /// 0 if the first response is better, 1 if the second is.
    Index,
    /// 1 if the first response is better, 0 if the second is (SHP). With `--score-margin`, the scores in these
    /// two columns give the margin.
    First([&'static str; 2]),
    /// Below 0 if the first response is better, above 0 if the second is; the absolute value can be the margin
    /// (HelpSteer).
    Strength,
    /// The name of the winner (arena).
    Winner,
    /// The first response is always the better one.
    Always,
    /// Each response has a score.
    Scores([&'static str; 2]),
}

/// Columns of the responses, column of the label, and meaning of the label.
const SHAPES: [([&str; 2], &str, Label); 9] = [
    (["response_0", "response_1"], "better_response_id", Label::Index),
    (["response_1", "response_2"], "preference_strength", Label::Strength),
    (["response1", "response2"], "overall_preference", Label::Strength),
    (["human_ref_A", "human_ref_B"], "labels", Label::First(["score_A", "score_B"])),
    (["conversation_a", "conversation_b"], "winner", Label::Winner),
    (["response_a", "response_b"], "winner", Label::Winner),
    (["response_j", "response_k"], "response_j", Label::Always),
    (["answer_0", "answer_1"], "score_0", Label::Scores(["score_0", "score_1"])),
    (["response_a", "response_b"], "score_a", Label::Scores(["score_a", "score_b"])),
];

/// Returns the index in [`SHAPES`] of the shape of a row; an error if two responses have no label.
pub(super) fn shape(row: &Row<'_>) -> Result<Option<usize>, String> {
    let both = |columns: &[&str; 2]| columns.iter().all(|key| row.has(key));
    if let Some(found) = SHAPES.iter().position(|(columns, label, _)| both(columns) && row.has(label)) {
        return Ok(Some(found));
    }
    let Some((columns, ..)) = SHAPES.iter().find(|(columns, ..)| both(columns)) else { return Ok(None) };
    let labels: Vec<&str> = SHAPES.iter().filter(|(other, ..)| other == columns).map(|(_, label, _)| *label).collect();
    let [a, b] = columns;
    Err(format!(
        "\"{a}\" and \"{b}\" have no label that says which is better (\"{}\" is missing); add it, or name the columns \
         with --column-map chosen={a},rejected={b} if the first is always better",
        labels.join("\" or \"")
    ))
}

/// Reads a row of the shape at this index in [`SHAPES`].
pub(super) fn read(row: &mut Row<'_>, shape: usize) -> Result<Parsed, String> {
    let (columns, column, label) = SHAPES[shape];
    let (numbers, margins) = numbers(row, column, label)?;
    let context = Context::take(row)?;
    let mut candidates = Vec::new();
    for (key, number) in columns.into_iter().zip(numbers) {
        let value = row.take(key).unwrap_or_default();
        candidates.push(Candidate { side: side(value, &format!("\"{key}\""))?, number });
    }
    group(row, &context, candidates, Format::Labelled, margins)
}

/// Numbers of the two responses, and whether their difference can be a margin.
fn numbers(row: &mut Row<'_>, column: &'static str, label: Label) -> Result<([f64; 2], Margins), String> {
    let mut value = |key: &'static str| {
        let value = row.take(key).unwrap_or_default();
        number(&value).ok_or_else(|| format!("\"{key}\" must be a number, found {}", describe(&value)))
    };
    let index = |first: f64, found: f64| match found {
        _ if found == first => Ok([1.0, 0.0]),
        _ if found == 1.0 - first => Ok([0.0, 1.0]),
        _ => Err(format!("\"{column}\" must be 0 or 1, found {found}")),
    };
    Ok(match label {
        Label::Always => ([1.0, 0.0], Margins::None),
        Label::Index => (index(0.0, value(column)?)?, Margins::None),
        Label::Strength => ([-value(column)?, 0.0], Margins::Gaps),
        Label::Scores(columns) => ([value(columns[0])?, value(columns[1])?], Margins::Gaps),
        Label::First(scores) => {
            let order = index(1.0, value(column)?)?;
            match scores.map(|key| row.get(key).and_then(number)) {
                [Some(a), Some(b)] if row.score_margin && (a - b) * (order[0] - order[1]) > 0.0 => {
                    scores.into_iter().for_each(|key| drop(row.take(key)));
                    ([a, b], Margins::Gaps)
                }
                [Some(a), Some(b)] if row.score_margin => {
                    return Err(format!("\"{column}\" contradicts the scores {a} and {b}, so they give no margin"));
                }
                _ => (order, Margins::None),
            }
        }
        Label::Winner => {
            let winner = row.take(column).unwrap_or_default();
            let name = winner.as_str().unwrap_or_default().to_lowercase();
            let order = match &*name {
                "model_a" | "response_a" | "a" => [1.0, 0.0],
                "model_b" | "response_b" | "b" => [0.0, 1.0],
                "both_bad" | "both_good" | "bothbad" => [0.0, 0.0],
                tie if tie.starts_with("tie") => [0.0, 0.0],
                _ => {
                    let found = describe(&winner);
                    return Err(format!("\"{column}\" must be model_a, model_b or tie, found {found}"));
                }
            };
            (order, Margins::None)
        }
    })
}

/// Columns that may hold the label of a row with one response.
pub(super) const LABELS: [&str; 3] = ["label", "kto_tag", "is_desirable"];

/// Returns the column of the label of one response, as for KTO, and its sign: 1 for desirable, -1 for undesirable.
pub(super) fn label_of(row: &Row<'_>) -> Option<(&'static str, i8)> {
    LABELS.into_iter().find_map(|key| {
        let label = match row.get(key)? {
            Value::Bool(label) => *label,
            Value::Number(label) => match label.as_f64()? {
                0.0 => false,
                1.0 => true,
                _ => return None,
            },
            Value::String(text) => match &*text.to_lowercase() {
                "true" | "1" | "1.0" => true,
                "false" | "0" | "0.0" => false,
                _ => return None,
            },
            _ => return None,
        };
        Some((key, if label { 1 } else { -1 }))
    })
}

/// Returns the error message for a row with one completion and a label, as for KTO; `None` for other rows.
pub(super) fn unpaired(row: &Row<'_>) -> Option<String> {
    let (label, _) = label_of(row)?;
    let one = ["completion", "messages", "conversations", "response", "output", "answer", "text"];
    one.iter().any(|key| row.has(key)).then(|| {
        format!(
            "this is an unpaired row, one completion with a label (\"{label}\"), as for KTO; train on it with `mapl kto`. A \
             comparison needs two responses to one prompt: join rows of equal prompts, the one with true as chosen and the \
             one with false as rejected, or keep the rows with true, without the column (--drop-columns {label}), for \
             `mapl sft`"
        )
    })
}
