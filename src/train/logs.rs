//! Logs of a run apart from the console: `metrics.jsonl` (every step), TensorBoard event files (at
//! the logging cadence) and `eval_scores.jsonl` (the latest evaluation, rewritten each time).

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::evaluate::GroupScores;
use super::manifest::now;
use super::metrics::{MetricsWriter, number};
use super::tensorboard::EventWriter;
use crate::data::group::Kind;
use crate::data::tokenized::{SequenceComparison, TokenizedGroup};
use crate::files::{input, write_atomic};
use crate::loss::objective::{Loss, Method};
use crate::terminal::follows;
use crate::{Error, Result};

/// Name of the file with the scores of the latest evaluation, one line per group.
pub const EVAL_SCORES_FILE: &str = "eval_scores.jsonl";

/// Value of `--report-to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogName {
    /// TensorBoard event files with the tags of transformers
    #[value(name = "tensorboard")]
    TensorBoard,
    /// metrics.jsonl, eval_scores.jsonl, and report.html at the end
    Jsonl,
    /// Every log
    All,
    /// No log
    None,
}

/// Enabled logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportTo {
    /// Whether TensorBoard files are written.
    pub tensorboard: bool,
    /// Whether JSON lines are written.
    pub jsonl: bool,
}

impl ReportTo {
    /// Returns the logs enabled by a list of names. `none` and `all` exclude other names.
    pub fn of(names: &[LogName]) -> Result<Self> {
        if let (2.., Some(name)) = (names.len(), names.iter().find(|n| matches!(n, LogName::None | LogName::All))) {
            let name = if *name == LogName::None { "none" } else { "all" };
            return Err(Error::Usage(format!(
                "--report-to: {name} excludes other values; leave out {name} or the others"
            )));
        }
        let has = |name| names.contains(&name) || names.contains(&LogName::All);
        Ok(Self { tensorboard: has(LogName::TensorBoard), jsonl: has(LogName::Jsonl) })
    }

    /// Names for the manifest.
    pub fn names(self) -> Vec<&'static str> {
        let all = [("tensorboard", self.tensorboard), ("jsonl", self.jsonl)];
        all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect()
    }
}

/// Open logs of a run.
pub struct Logs {
    metrics: Option<MetricsWriter>,
    events: Option<EventWriter>,
    scores: Option<PathBuf>,
}

impl Logs {
    /// Opens the logs of a run folder. `from` is the checkpoint of a resumed run and its step;
    /// records of later steps are removed or superseded.
    pub fn open(dir: &Path, to: ReportTo, from: Option<(&Path, u64)>) -> Result<Self> {
        if follows() {
            return Ok(Self { metrics: None, events: None, scores: None });
        }
        let resumed = from.map(|(_, step)| step);
        let scores = dir.join(EVAL_SCORES_FILE);
        if input::is_named(&scores) && resumed.is_none_or(|step| scores_step(&scores).is_none_or(|of| of > step)) {
            std::fs::remove_file(&scores).map_err(Error::io("remove", &scores))?;
        }
        Ok(Self {
            metrics: to.jsonl.then(|| MetricsWriter::open(dir, from)).transpose()?,
            events: to.tensorboard.then(|| EventWriter::create(dir, now(), resumed)).transpose()?,
            scores: to.jsonl.then_some(scores),
        })
    }

    /// Appends an event to `metrics.jsonl`.
    pub fn write(&mut self, kind: &str, step: u64, values: Map<String, Value>) -> Result<()> {
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(kind, step, values))
    }

    /// Whether a log file was removed since it was opened, so that writes to it are lost.
    pub fn are_lost(&self) -> bool {
        let paths =
            self.metrics.as_ref().map(|log| &log.path).into_iter().chain(self.events.as_ref().map(|log| &log.path));
        paths.into_iter().any(|path| !input::is_named(path))
    }

    /// Syncs written events to disk.
    pub fn sync(&self) -> Result<()> {
        self.metrics.as_ref().map_or(Ok(()), MetricsWriter::sync)
    }

    /// Writes the numbers of a logged step or an evaluation to the event file.
    pub fn scalars(&mut self, step: u64, values: &Map<String, Value>) -> Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(step, now(), values))
    }

    /// Replaces `eval_scores.jsonl` with the scores after `step`. SFT has no comparisons, so it has no such
    /// file.
    pub fn eval_scores(&self, step: u64, loss: &Loss, groups: &[TokenizedGroup], scores: &[GroupScores]) -> Result<()> {
        let Some(path) = self.scores.as_ref().filter(|_| loss.method != Method::Sft) else { return Ok(()) };
        let mut text = String::new();
        for (group, scores) in groups.iter().zip(scores) {
            text += &row(step, loss, group, scores).to_string();
            text.push('\n');
        }
        write_atomic(path, text.as_bytes())
    }
}

/// Reads the step of an `eval_scores.jsonl` file from its first line.
fn scores_step(path: &Path) -> Option<u64> {
    use std::io::BufRead as _;
    let mut line = String::new();
    std::io::BufReader::new(input::open(path).ok()?).read_line(&mut line).ok()?;
    serde_json::from_str::<Value>(&line).ok()?["step"].as_u64()
}

/// Line of a group in `eval_scores.jsonl`:
///
/// ```text
/// {"step", "id", "sequences": [{"tokens", "score", "reward"}],
///  "comparisons": [{"kind", "logit", ...}]}
/// ```
///
/// The score is a log-prob or a reward. For log-probs, the reward is the score used by the loss, which for
/// plain DPO is beta times the difference to the frozen reference. A comparison of two sequences names them
/// as `chosen` and `rejected`.
fn row(step: u64, loss: &Loss, group: &TokenizedGroup, scores: &GroupScores) -> Value {
    let sequences: Vec<Value> = group
        .sequences
        .iter()
        .enumerate()
        .map(|(i, sequence)| {
            let (score, reward) = (scores.policy[i], scores.rho_of(loss, group, i, Kind::Base));
            json!({ "tokens": sequence.response_ids.len(), "score": number(score), "reward": number(reward) })
        })
        .collect();
    let comparisons: Vec<Value> = group
        .comparisons
        .iter()
        .zip(&scores.logits)
        .map(|(comparison, &logit)| {
            let mut value = json!({ "kind": comparison.kind.name(), "logit": number(logit) });
            if let Some((chosen, rejected)) = sides(comparison) {
                value["chosen"] = json!(chosen);
                value["rejected"] = json!(rejected);
            }
            value
        })
        .collect();
    json!({ "schema": 1, "step": step, "id": group.group.id, "sequences": sequences, "comparisons": comparisons })
}

/// Chosen and rejected sequence of a comparison of two sequences.
fn sides(comparison: &SequenceComparison) -> Option<(usize, usize)> {
    match comparison.terms.as_slice() {
        [a, b] if a.sign > 0 && b.sign < 0 => Some((a.sequence, b.sequence)),
        [a, b] if a.sign < 0 && b.sign > 0 => Some((b.sequence, a.sequence)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_names_form_a_set_and_none_and_all_exclude_others() {
        use LogName::*;
        let on = |names: &[LogName]| ReportTo::of(names).unwrap().names();
        assert_eq!(on(&[Jsonl, TensorBoard, Jsonl]), ["tensorboard", "jsonl"]);
        assert_eq!(on(&[All]), ["tensorboard", "jsonl"]);
        assert_eq!([on(&[None]).len(), on(&[Jsonl]).len()], [0, 1]);
        for list in [[None, Jsonl], [TensorBoard, All], [All, None]] {
            assert!(ReportTo::of(&list).unwrap_err().to_string().contains("excludes other values"));
        }
    }
}
