//! Evaluations as JSON. A file contains the summaries and, under `observations`, the underlying
//! numbers, so two files can be compared without their models. Non-finite numbers are strings, as
//! in metrics.jsonl.
//!
//! On reading, a different schema, missing keys and indices out of range are errors.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::compare::{Comparison, Paired};
use super::labelled::LabelledSummary;
use super::measure::{By, Measure, Observation, Quantity, Split, Summary};
use super::statistics::{Estimate, LEVEL, Moments, Resampling};
use super::{Evaluation, Line, Rewards};
use crate::files::input;
use crate::train::metrics::number;
use crate::{Error, Result};

/// Version of the file format.
const SCHEMA: u64 = 1;

/// Returns `{"semantic": {...}, ..., "by_function": {"intra": {"<id>": {...}}}, ...}`. Measures
/// without observations are absent.
fn summaries_json(lines: &[Line<Summary>]) -> Map<String, Value> {
    nested(lines, |s| {
        let mut entry = json!({
            "count": s.count, "groups": s.groups, "correct": s.correct, "ties": s.ties, "non_finite": s.non_finite,
        });
        insert_estimate(&mut entry, "accuracy", &s.accuracy);
        insert_estimate(&mut entry, "accuracy_half", &s.accuracy_half);
        insert_estimate(&mut entry, "mean_logit", &s.mean_logit);
        entry
    })
}

/// Returns the lines of a comparison, nested like the summaries of a result, and the numbers of scores
/// that are not finite.
pub fn comparison_json(comparison: &Comparison) -> Map<String, Value> {
    let [a, b] = comparison.non_finite;
    let mut map = Map::new();
    map.insert("non_finite_scores".into(), json!({ "a": a, "b": b }));
    map.extend(lines_json(comparison));
    map
}

fn lines_json(comparison: &Comparison) -> Map<String, Value> {
    nested(&comparison.lines, |s: &Paired| {
        let mut entry = json!({
            "count": s.count, "groups": s.groups, "accuracy_a": number(s.a), "accuracy_b": number(s.b),
            "only_a": s.only_a, "only_b": s.only_b, "mcnemar_p": number(s.mcnemar),
            "groups_a": s.groups_a, "groups_b": s.groups_b, "groups_p": number(s.sign_test),
        });
        insert_estimate(&mut entry, "difference", &s.difference);
        insert_estimate(&mut entry, "difference_half", &s.difference_half);
        entry
    })
}

/// Inserts a value under `name`, and its interval (two ends or null) under `<name>_interval`.
fn insert_estimate(entry: &mut Value, name: &str, estimate: &Estimate) {
    entry[name] = number(estimate.value);
    entry[format!("{name}_interval")] = match estimate.interval {
        Some([low, high]) => json!([number(low), number(high)]),
        None => Value::Null,
    };
}

/// Nests lines: whole measures by name, then one object per split criterion.
fn nested<T>(lines: &[Line<T>], entry: impl Fn(&T) -> Value) -> Map<String, Value> {
    let mut map = Map::new();
    for line in lines.iter().filter(|line| line.place.split.is_none()) {
        map.insert(line.place.quantity.name().into(), entry(&line.summary));
    }
    for by in By::ALL {
        let mut of_measure = Map::new();
        for line in lines {
            if let Some((_, label)) = line.place.split.as_ref().filter(|(found, _)| *found == by) {
                let labels = of_measure.entry(line.place.quantity.name()).or_insert_with(|| json!({}));
                labels[label] = entry(&line.summary);
            }
        }
        map.insert(by.name().into(), Value::Object(of_measure));
    }
    map
}

/// Settings of the bootstrap intervals as JSON; null without intervals.
pub fn resampling_json(resampling: Resampling) -> Value {
    match resampling.resamples {
        0 => Value::Null,
        n => json!({"method": "percentile, by group", "level": LEVEL, "resamples": n, "seed": resampling.seed}),
    }
}

/// Moments of the scores.
fn rewards_json(rewards: &Rewards) -> Value {
    json!({
        "all": moments_json(rewards.all), "chosen": moments_json(rewards.chosen),
        "rejected": moments_json(rewards.rejected), "non_finite": rewards.non_finite,
    })
}

fn moments_json(moments: Option<Moments>) -> Value {
    match moments {
        Some(Moments { count, mean, std, min, max }) => json!({
            "count": count, "mean": number(mean), "std": number(std), "min": number(min), "max": number(max),
        }),
        None => Value::Null,
    }
}

/// Returns a result without its observations. `head` describes what was evaluated and how.
pub fn result_json(head: Map<String, Value>, lines: &[Line<Summary>], evaluation: &Evaluation) -> Value {
    let mut map = Map::new();
    map.insert("schema".into(), json!(SCHEMA));
    map.extend(head);
    map.insert("groups".into(), json!(evaluation.groups));
    map.insert("data".into(), json!(evaluation.data));
    map.insert("scores".into(), rewards_json(&evaluation.rewards));
    map.extend(summaries_json(lines));
    Value::Object(map)
}

/// Returns the text of a result file: `result` of [`result_json`], indented, and the observations
/// on one line.
pub fn file_text(result: &Value, evaluation: &Evaluation) -> String {
    with_observations(result, &observations_json(&evaluation.measures))
}

/// Returns the text of a result with its observations.
pub fn with_observations(result: &Value, observations: &Value) -> String {
    let text = format!("{result:#}");
    let open = text.strip_suffix("\n}").unwrap_or(&text);
    format!("{open},\n  \"observations\": {observations}\n}}\n")
}

/// Settings of the intervals of rows with a label.
pub fn resampling_by_label_json(resampling: Resampling) -> Value {
    let mut value = resampling_json(resampling);
    if value.is_object() {
        value["method"] = json!("percentile, by row within each label");
    }
    value
}

/// Measures of rows with a label: moments of the scores, `auc` and `difference` with intervals, null if all
/// rows have one label.
pub fn labelled_json(summary: &LabelledSummary) -> Map<String, Value> {
    let mut value = json!({"scores": {
        "all": moments_json(summary.all), "desirable": moments_json(summary.desirable),
        "undesirable": moments_json(summary.undesirable), "non_finite": summary.non_finite,
    }});
    for (name, estimate) in [("auc", summary.auc), ("difference", summary.difference)] {
        match estimate {
            Some(estimate) => insert_estimate(&mut value, name, &estimate),
            None => value[name] = Value::Null,
        }
    }
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn observations_json(measures: &[Measure]) -> Value {
    let mut map = Map::new();
    for measure in measures {
        let mut splits = Map::new();
        for split in &measure.splits {
            let labels = splits.entry(split.by.name()).or_insert_with(|| json!({}));
            labels[&split.label] = json!(split.members);
        }
        let groups: Vec<usize> = measure.observations.iter().map(|o| o.group).collect();
        let logits: Vec<Value> = measure.observations.iter().map(|o| number(o.logit)).collect();
        map.insert(measure.quantity.name().into(), json!({"group": groups, "logit": logits, "splits": splits}));
    }
    Value::Object(map)
}

/// Reads a result file into an [`Evaluation`]. Only the number of non-finite scores is restored from the
/// distribution of the scores.
pub fn read(path: &Path) -> Result<Evaluation> {
    let bytes = input::read(path, input::MAX_RECORD).map_err(input::data_error(path))?;
    let fail = |why: String| Error::data(path, 0, None, format!("is not a result of `mapl eval --output`: {why}"));
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
    parse(&value).map_err(fail)
}

fn parse(value: &Value) -> Result<Evaluation, String> {
    match value.get("schema").and_then(Value::as_u64) {
        Some(SCHEMA) => {}
        Some(other) => return Err(format!("its schema is {other}, but this version reads {SCHEMA}; evaluate again")),
        None => return Err("\"schema\" is missing".into()),
    }
    if value.get("auc").is_some() {
        return Err(
            "it holds results of labelled rows, which have no comparisons to pair; compare the \"auc\" values of \
             the two files"
                .into(),
        );
    }
    let groups = value.get("groups").and_then(Value::as_u64).ok_or("\"groups\" is missing or not a number")? as usize;
    let data = value.get("data").and_then(Value::as_str).ok_or("\"data\" is missing or not a string")?.to_owned();
    let all = value.get("observations").and_then(Value::as_object).ok_or("\"observations\" is missing")?;
    let mut measures = Vec::new();
    for (name, entry) in all {
        let quantity = Quantity::from_name(name).ok_or_else(|| format!("unknown measure \"{name}\""))?;
        let at = |why: String| format!("observations of {name}: {why}");
        measures.push(measure(quantity, entry, groups).map_err(at)?);
    }
    measures.sort_by_key(|m| m.quantity);
    // Results of earlier versions lack this count.
    let non_finite = value["scores"]["non_finite"].as_u64().unwrap_or(0) as usize;
    Ok(Evaluation { measures, groups, data, rewards: Rewards { non_finite, ..Rewards::default() } })
}

fn measure(quantity: Quantity, entry: &Value, groups: usize) -> Result<Measure, String> {
    let group = indices(&entry["group"], groups).ok_or("\"group\" is not a list of group indices")?;
    let logits: Option<Vec<f64>> = entry["logit"].as_array().and_then(|list| list.iter().map(parse_number).collect());
    let logits =
        logits.filter(|l| l.len() == group.len()).ok_or("\"logit\" is not a list of numbers as long as \"group\"")?;
    let observations = group.into_iter().zip(logits).map(|(group, logit)| Observation { group, logit }).collect();
    let mut measure = Measure { quantity, observations, splits: Vec::new() };
    let splits = entry["splits"].as_object().ok_or("\"splits\" is missing")?;
    for (name, labels) in splits {
        let by = By::from_name(name).ok_or_else(|| format!("unknown split \"{name}\""))?;
        for (label, members) in labels.as_object().ok_or_else(|| format!("\"{name}\" is not an object"))? {
            let members = indices(members, measure.observations.len())
                .ok_or_else(|| format!("\"{name}\", \"{label}\": not a list of observation indices"))?;
            measure.splits.push(Split { by, label: label.clone(), members });
        }
    }
    measure.sort_splits();
    Ok(measure)
}

/// Parses a list of integers below `bound`.
fn indices(value: &Value, bound: usize) -> Option<Vec<usize>> {
    let index = |v: &Value| v.as_u64().map(|n| n as usize).filter(|&n| n < bound);
    value.as_array()?.iter().map(index).collect()
}

/// Inverse of [`number`].
fn parse_number(value: &Value) -> Option<f64> {
    match value {
        Value::String(text) => text.parse().ok().filter(|x: &f64| !x.is_finite()),
        _ => value.as_f64(),
    }
}
