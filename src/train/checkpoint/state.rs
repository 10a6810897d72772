//! `state/state.json`: the state of a run apart from weights and moments.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::loader::Position;
use crate::{Error, Result};

/// Version of `state/state.json`.
pub const SCHEMA: u32 = 2;

/// Fingerprint entry for the length of a run.
pub const LENGTH_KEY: &str = "length";

/// Best evaluation that has a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Step of the evaluation.
    pub step: u64,
    /// Value of the metric.
    pub value: f64,
}

/// State of a run apart from weights and moments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Version of the file format.
    pub schema: u32,
    /// Optimiser steps taken, skipped ones included.
    pub step: u64,
    /// Position at which the data order continues.
    pub position: Position,
    /// Tokens processed by the policy so far.
    pub num_tokens: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Consecutive skipped updates up to this step.
    pub skipped_in_a_row: u64,
    /// Whether a signal interrupted the evaluation of this step; if so, the resumed run starts with that
    /// evaluation.
    pub evaluation_due: bool,
    /// Best checkpoint so far, if a metric selects one.
    pub best: Option<Best>,
    /// Settings and inputs that a resumed run must not change: option or file, and its value or
    /// hash.
    pub fingerprint: Vec<(String, String)>,
    /// BLAKE3 of every file of the checkpoint except this one and `DONE`, by path.
    pub files: BTreeMap<String, String>,
}

/// Describes the changes between two values of a fingerprint entry. Values with several fields, such as `Name
/// { field: value, other: value }`, are compared field by field.
fn differences(name: &str, before: &str, now: &str) -> Vec<String> {
    let (Some(old), Some(new)) = (fields(before), fields(now)) else {
        return vec![format!("{name} was {}, is {}", readable(before), readable(now))];
    };
    let value = |all: &[(&str, &str)], field: &str| {
        let found = all.iter().find(|(known, _)| *known == field);
        found.map_or("not set".to_owned(), |(_, value)| readable(value))
    };
    let mut names: Vec<&str> = new.iter().chain(&old).map(|(field, _)| *field).collect();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|field| seen.insert(*field));
    let changes = names.into_iter().map(|field| (field, value(&old, field), value(&new, field)));
    let text = |(field, old, new): (&str, String, String)| {
        format!("{} of {name} was {old}, is {new}", field.replace('_', " "))
    };
    let all: Vec<String> = changes.filter(|(_, old, new)| old != new).map(text).collect();
    // Texts from different program versions may differ although all their fields are equal.
    if all.is_empty() { vec![format!("{name} was {}, is {}", readable(before), readable(now))] } else { all }
}

/// Fields of `Name { field: value, ... }`, with nested values whole; `None` for text in a different form.
fn fields(text: &str) -> Option<Vec<(&str, &str)>> {
    let (name, inner) = text.strip_suffix(" }")?.split_once(" { ")?;
    if !name.chars().all(char::is_alphanumeric) {
        return None;
    }
    parts(inner).into_iter().map(|part| part.split_once(": ")).collect()
}

/// Splits at commas outside of brackets.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// Formats a value for people: `Some(5.0)` is 5, `None` is none, and a type name is followed by its fields.
fn readable(value: &str) -> String {
    if let Some(inner) = value.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')')) {
        return readable(inner);
    }
    if let Some(fields) = fields(value) {
        let name = value.split(" { ").next().unwrap_or_default();
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name} {}", readable(value))).collect();
        return format!("{name} ({})", fields.join(", ").replace('_', " "));
    }
    for (open, close) in [('[', ']'), ('(', ')')] {
        if let Some(inner) = value.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)) {
            let all: Vec<String> = parts(inner).into_iter().map(readable).collect();
            return all.join(", ");
        }
    }
    match value {
        "None" => "none".to_owned(),
        number if number.parse::<f64>().is_ok() => number.strip_suffix(".0").unwrap_or(number).to_owned(),
        other => other.to_owned(),
    }
}

impl RunState {
    /// Returns an error that names the changes if settings or data differ from those of the checkpoint.
    pub fn check(&self, folder: &Path, fingerprint: &[(String, String)]) -> Result<()> {
        let mut changed = Vec::new();
        for (name, now) in fingerprint {
            match self.fingerprint.iter().find(|(known, _)| known == name) {
                Some((_, before)) if before == now => {}
                Some((_, before)) if name == LENGTH_KEY => changed.push(format!(
                    "{name} was {before}, is {now}, and the learning-rate schedule depends on it (only \
                     --lr-scheduler-type constant, constant_with_warmup and inverse_sqrt allow a longer run)"
                )),
                Some((_, before)) => changed.extend(differences(name, before, now)),
                None => changed.push(format!("{name} was not set, is {}", readable(now))),
            }
        }
        for (name, before) in &self.fingerprint {
            if !fingerprint.iter().any(|(known, _)| known == name) {
                changed.push(format!("{name} was {}, is not set now", readable(before)));
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        Err(Error::model(folder, format!("cannot resume a different run: {}", changed.join("; "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_resume_names_the_fields_that_changed() {
        let state = |loss: &str, rest: &str| RunState {
            fingerprint: vec![("loss".into(), loss.into()), ("shuffling".into(), rest.into())],
            ..RunState::default()
        };
        let before = state(
            "Loss { curve: Sigmoid { smoothing: 0.1 }, scale: [0.1, 0.1, 0.1], types: [(Ipo, 1.0)], pop_clip: None }",
            "Some(42)",
        );
        let after = state(
            "Loss { curve: Hinge, scale: [0.1, 0.2, 0.1], types: [(Ipo, 2.0)], pop_clip: Some(5.0), new: true }",
            "None",
        );
        let why = before.check(Path::new("f"), &after.fingerprint).unwrap_err().to_string();
        for part in [
            "curve of loss was Sigmoid (smoothing 0.1), is Hinge; ",
            "scale of loss was 0.1, 0.1, 0.1, is 0.1, 0.2, 0.1; ",
            "types of loss was Ipo, 1, is Ipo, 2; ",
            "pop clip of loss was none, is 5; ",
            "new of loss was not set, is true; ",
            "shuffling was 42, is none",
        ] {
            assert!(why.contains(part), "{part} in {why}");
        }
        assert!(!why.contains(" { ") && !why.contains("Some("), "{why}");
        let cut = state("Loss { curve: Hinge }", "Some(42)");
        assert!(cut.check(Path::new("f"), &[("loss".into(), "x".into())]).is_err());
    }
}
