//! Result of a quick start: the content of `summary.json` and the input of its report.
//!
//! The top level has `seconds` and `runs`. A run has `name`, the accuracies `semantic`, `intra` and
//! `inter` (0 to 1, ties count as wrong), `steps`, `tokens` and `seconds`, its `seed` and `folder`,
//! then the `counts` of the accuracies and the curves. Numbers that are not finite are written as the strings `"NaN"`,
//! `"inf"` and `"-inf"`.

use serde::{Deserialize, Serialize};

use crate::statistics::wilson_interval;

/// Everything the quick start reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuickstartSummary {
    /// Wall-clock seconds of the whole quick start.
    #[serde(with = "number")]
    pub seconds: f64,
    /// Runs.
    pub runs: Vec<RunSummary>,
    /// Tables about the data: rows, comparisons by kind and function.
    #[serde(default)]
    pub data: Vec<DataTable>,
    /// Decoded examples, shown verbatim.
    #[serde(default)]
    pub examples: Vec<NamedText>,
    /// Commands of the quick start in order, and commands for the user's own data.
    #[serde(default)]
    pub commands: Vec<NamedText>,
    /// Environment: version, processor, threads, device, memory.
    #[serde(default)]
    pub environment: Vec<Fact>,
    /// Warnings.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Name and value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    pub name: String,
    pub value: String,
}

/// Caption and preformatted text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedText {
    pub caption: String,
    pub text: String,
}

/// Table of text; the first column names the row, the others are aligned as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataTable {
    pub caption: String,
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// Numbers of correct, tied and all comparisons of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub correct: u64,
    pub ties: u64,
    pub total: u64,
}

impl Count {
    /// Share of correct comparisons; ties count as wrong. 0 if there is no comparison, see `total`.
    pub fn accuracy(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.correct as f64 / self.total as f64 }
    }

    /// 95 % confidence interval of the share, by Wilson's score (1927); `None` without comparisons.
    pub fn interval(&self) -> Option<(f64, f64)> {
        if self.total == 0 {
            return None;
        }
        let [low, high] = wilson_interval(self.accuracy(), self.total as f64);
        Some((low, high))
    }
}

/// Point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub step: u64,
    #[serde(with = "number")]
    pub value: f64,
}

/// Held-out accuracies after a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccuracyPoint {
    pub step: u64,
    #[serde(with = "number")]
    pub semantic: f64,
    #[serde(with = "number")]
    pub intra: f64,
    #[serde(with = "number")]
    pub inter: f64,
    /// Share of ties among the comparisons of `semantic`, `intra` and `inter`.
    #[serde(default)]
    pub ties: [f64; 3],
}

/// Training run with its scores on held-out prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(into = "RunRow", from = "RunRow")]
pub struct RunSummary {
    /// Method and objective, such as `reward-base` or `dpo-mapl`.
    pub name: String,
    /// Comparisons of the original held-out pairs.
    pub semantic: Count,
    /// Comparisons of one response under two prompts.
    pub intra: Count,
    /// Comparisons of the reward gap of a pair under two prompts.
    pub inter: Count,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens that the trained model has processed; shared prompt tokens count once.
    pub tokens: u64,
    /// Wall-clock seconds of training and evaluation.
    pub seconds: f64,
    pub seed: u64,
    /// Folder of the run, relative to the quick start's folder, with `/` between parts.
    pub folder: String,
    /// Training loss by step.
    pub loss: Vec<Point>,
    /// Held-out accuracies by step.
    pub accuracy: Vec<AccuracyPoint>,
}

/// JSON object of a [`RunSummary`] in `summary.json`.
#[derive(Serialize, Deserialize)]
struct RunRow {
    name: String,
    semantic: f64,
    intra: f64,
    inter: f64,
    steps: u64,
    #[serde(default)]
    tokens: u64,
    #[serde(with = "number")]
    seconds: f64,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    folder: String,
    counts: Counts,
    #[serde(default)]
    loss: Vec<Point>,
    #[serde(default)]
    accuracy: Vec<AccuracyPoint>,
}

#[derive(Serialize, Deserialize)]
struct Counts {
    semantic: Count,
    intra: Count,
    inter: Count,
}

impl From<RunSummary> for RunRow {
    fn from(run: RunSummary) -> Self {
        Self {
            semantic: run.semantic.accuracy(),
            intra: run.intra.accuracy(),
            inter: run.inter.accuracy(),
            counts: Counts { semantic: run.semantic, intra: run.intra, inter: run.inter },
            name: run.name,
            steps: run.steps,
            tokens: run.tokens,
            seconds: run.seconds,
            seed: run.seed,
            folder: run.folder,
            loss: run.loss,
            accuracy: run.accuracy,
        }
    }
}

impl From<RunRow> for RunSummary {
    /// Reads only the counts, which determine the accuracies.
    fn from(row: RunRow) -> Self {
        Self {
            name: row.name,
            semantic: row.counts.semantic,
            intra: row.counts.intra,
            inter: row.counts.inter,
            steps: row.steps,
            tokens: row.tokens,
            seconds: row.seconds,
            seed: row.seed,
            folder: row.folder,
            loss: row.loss,
            accuracy: row.accuracy,
        }
    }
}

/// JSON numbers, with strings for values that JSON cannot represent.
mod number {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.collect_str(value) }
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(f64),
        Text(String),
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(value) => Ok(value),
            Written::Text(text) => match text.as_str() {
                "NaN" => Ok(f64::NAN),
                "inf" => Ok(f64::INFINITY),
                "-inf" => Ok(f64::NEG_INFINITY),
                _ => {
                    Err(de::Error::invalid_value(de::Unexpected::Str(&text), &"a number, \"NaN\", \"inf\" or \"-inf\""))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> QuickstartSummary {
        QuickstartSummary {
            seconds: 12.5,
            runs: vec![RunSummary {
                name: "reward-mapl".into(),
                semantic: Count { correct: 9, ties: 0, total: 10 },
                intra: Count { correct: 3, ties: 1, total: 4 },
                inter: Count::default(),
                steps: 40,
                tokens: 1234,
                seconds: 3.25,
                seed: 43,
                folder: "seed-43/reward-mapl".into(),
                loss: vec![Point { step: 1, value: 0.5 }, Point { step: 2, value: f64::INFINITY }],
                accuracy: vec![AccuracyPoint {
                    step: 40,
                    semantic: 0.9,
                    intra: 0.75,
                    inter: 0.0,
                    ties: [0.0, 0.25, 1.0],
                }],
            }],
            ..Default::default()
        }
    }

    #[test]
    fn fixed_keys_are_at_the_top_level_and_the_file_reads_back() {
        let text = serde_json::to_string(&summary()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["seconds"], 12.5);
        let run = &value["runs"][0];
        assert_eq!((&run["name"], &run["steps"], &run["seconds"]), (&"reward-mapl".into(), &40.into(), &3.25.into()));
        assert_eq!((&run["semantic"], &run["intra"], &run["inter"]), (&0.9.into(), &0.75.into(), &0.0.into()));
        assert_eq!(run["counts"]["intra"]["ties"], 1);
        assert_eq!(run["loss"][1]["value"], "inf");
        assert_eq!(serde_json::from_str::<QuickstartSummary>(&text).unwrap(), summary());
        assert!(serde_json::from_str::<Point>(r#"{"step":1,"value":"large"}"#).is_err());
    }

    #[test]
    fn the_interval_is_wilsons() {
        // For 8 of 10, the interval is 0.4902 to 0.9433, computed by hand from the formula.
        let (low, high) = Count { correct: 8, ties: 0, total: 10 }.interval().unwrap();
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
        let (low, high) = Count { correct: 10, ties: 0, total: 10 }.interval().unwrap();
        assert!(low > 0.7 && high > 1.0 - 1e-9 && high <= 1.0, "{low} {high}");
        assert_eq!(Count::default().interval(), None);
        assert_eq!(Count::default().accuracy(), 0.0);
    }
}
