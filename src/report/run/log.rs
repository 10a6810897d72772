//! Reads a run folder for a report: `run.json`, the columns of `metrics.jsonl`, and `eval_scores.jsonl` if
//! present. A missing or damaged file is an error that names the file. A last line without a newline is still
//! being written by the run and is left out.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::files::input;
use crate::ranks::host::host_name;
use crate::train::logs::EVAL_SCORES_FILE;
use crate::train::manifest::FILE;
use crate::train::metrics::read_number;
use crate::{Error, Result};

/// Name of the file with the events of a run.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Maximum length of a log line in bytes; a longer line is an error.
const MAX_LINE: u64 = 64 << 20;
/// Maximum length of a run name in a legend, in characters.
const MAX_NAME: usize = 28;

/// For each column name, its points (step, value) in ascending order of steps.
pub type Columns = BTreeMap<String, Vec<(u64, f64)>>;

/// One training run.
#[derive(Clone, Debug, Default)]
pub struct RunLog {
    /// Short name, unique among the runs of a report.
    pub name: String,
    pub dir: PathBuf,
    pub manifest: Value,
    /// Whether the status is `running` although the process no longer exists on this machine.
    pub killed: bool,
    pub train: Columns,
    pub eval: Columns,
    /// Steps after which the run was resumed.
    pub resumed: Vec<u64>,
    pub scores: Option<EvalScores>,
}

/// Token length and reward of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredResponse {
    pub tokens: f64,
    pub reward: f64,
}

/// Scores of the latest evaluation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalScores {
    pub step: u64,
    /// Chosen and rejected response of each base comparison.
    pub pairs: Vec<(ScoredResponse, ScoredResponse)>,
}

impl RunLog {
    /// Reads a run folder.
    ///
    /// # Errors
    /// [`Error::Usage`] if the folder is not a run folder or has no metrics, [`Error::Data`] for a
    /// damaged file.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        if !input::is_named(&path) {
            return Err(Error::Usage(format!(
                "{} is not a run folder: it has no {FILE}; name the --output-dir of a training run",
                dir.display()
            )));
        }
        let bytes = input::read(&path, input::MAX_CONFIG).map_err(input::data_error(&path))?;
        let manifest: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::data(&path, e.line(), None, format!("is damaged: {e}; the report needs it")))?;
        if !(manifest.is_object() && manifest["status"].is_string()) {
            return Err(Error::data(&path, 0, None, "has no status, so it is not the manifest of a training run"));
        }
        let mut run = Self { dir: dir.to_path_buf(), manifest, ..Self::default() };
        run.killed = run.status() == "running" && is_killed(&run.manifest);
        run.read_metrics()?;
        run.read_scores()?;
        Ok(run)
    }

    /// Reads several run folders and gives each a unique name.
    pub fn read_all(dirs: &[PathBuf]) -> Result<Vec<Self>> {
        let mut runs = dirs.iter().map(|dir| Self::read(dir)).collect::<Result<Vec<_>>>()?;
        let names = names(dirs);
        runs.iter_mut().zip(names).for_each(|(run, name)| run.name = name);
        Ok(runs)
    }

    /// Status: `running`, `finished`, `stopped`, `diverged` or `failed`.
    pub fn status(&self) -> &str {
        self.manifest["status"].as_str().unwrap_or_default()
    }

    /// Method: `sft`, `reward`, `dpo` or `kto`.
    pub fn method(&self) -> &str {
        self.manifest["method"].as_str().unwrap_or_default()
    }

    /// Last training step.
    pub fn last_step(&self) -> Option<u64> {
        self.train.get("loss").and_then(|points| points.last()).map(|p| p.0)
    }

    fn read_metrics(&mut self) -> Result<()> {
        let path = self.dir.join(METRICS_FILE);
        if !input::is_named(&path) {
            return Err(Error::Usage(format!(
                "{} has no {METRICS_FILE}, so there is nothing to report; train with jsonl in --report-to",
                self.dir.display()
            )));
        }
        each_row(&path, |line, row| {
            let Some(step) = row["step"].as_u64() else {
                return Err(Error::data(&path, line, None, "is damaged: an event has no step"));
            };
            let columns = match row["kind"].as_str() {
                Some("train") => &mut self.train,
                Some("eval") => &mut self.eval,
                _ => {
                    if row["event"] == "resumed" {
                        self.resumed.push(step);
                    }
                    return Ok(());
                }
            };
            for (key, value) in row.as_object().into_iter().flatten() {
                if let Some(number) = read_number(value).filter(|_| key != "schema" && key != "step") {
                    let key = key.strip_prefix("eval_").unwrap_or(key);
                    match columns.get_mut(key) {
                        Some(points) => points.push((step, number)),
                        None => drop(columns.insert(key.to_owned(), vec![(step, number)])),
                    }
                }
            }
            Ok(())
        })
    }

    fn read_scores(&mut self) -> Result<()> {
        let path = self.dir.join(EVAL_SCORES_FILE);
        if !input::is_named(&path) {
            return Ok(());
        }
        let mut scores = EvalScores::default();
        each_row(&path, |line, row| {
            let broken =
                || Error::data(&path, line, None, "is damaged: a comparison refers to a sequence without a score");
            scores.step = row["step"].as_u64().ok_or_else(broken)?;
            let scored = |side: &Value| -> Option<ScoredResponse> {
                let sequence = row["sequences"].get(usize::try_from(side.as_u64()?).ok()?)?;
                Some(ScoredResponse { tokens: sequence["tokens"].as_f64()?, reward: read_number(&sequence["reward"])? })
            };
            let comparisons = row["comparisons"].as_array().ok_or_else(broken)?;
            for pair in comparisons.iter().filter(|c| c["kind"] == "base" && !c["chosen"].is_null()) {
                let chosen = scored(&pair["chosen"]).ok_or_else(broken)?;
                let rejected = scored(&pair["rejected"]).ok_or_else(broken)?;
                scores.pairs.push((chosen, rejected));
            }
            Ok(())
        })?;
        self.scores = (!scores.pairs.is_empty()).then_some(scores);
        Ok(())
    }
}

/// Calls `each` for every complete line of a JSON-lines file, with its line number from 1.
fn each_row(path: &Path, mut each: impl FnMut(usize, &Value) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::new(input::open(path).map_err(input::data_error(path))?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(Error::io("read", path))?;
        if read as u64 > MAX_LINE {
            let why = format!("is damaged: the line is longer than {} MiB", MAX_LINE >> 20);
            return Err(Error::data(path, line, None, why));
        }
        if read == 0 || bytes.last() != Some(&b'\n') {
            break;
        }
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(row) if row.is_object() => each(line, &row)?,
            Ok(_) => return Err(Error::data(path, line, None, "is damaged: the line is not a JSON object")),
            Err(e) => return Err(Error::data(path, line, None, format!("is damaged: {e}"))),
        }
    }
    Ok(())
}

/// Whether a run with status `running` is known to be dead: it ran on this machine, and its process
/// no longer exists.
fn is_killed(manifest: &Value) -> bool {
    let here = manifest["host"].as_str() == Some(&host_name()) && Path::new("/proc/self").exists();
    here && manifest["pid"].as_u64().is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// Returns a unique name for each run: its folder name, after as many parent folders as necessary. If three
/// parent folders are not enough, the folder name follows the index of the run.
fn names(dirs: &[PathBuf]) -> Vec<String> {
    let whole: Vec<PathBuf> = dirs.iter().map(|dir| dir.canonicalize().unwrap_or_else(|_| dir.clone())).collect();
    let tail = |dir: &Path, parts: usize| {
        let all: Vec<_> = dir.components().map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
        clipped(&all[all.len().saturating_sub(parts)..].join("/"))
    };
    for parts in 1..=4 {
        let found: Vec<String> = whole.iter().map(|dir| tail(dir, parts)).collect();
        if (1..found.len()).all(|i| !found[..i].contains(&found[i])) {
            return found;
        }
    }
    whole.iter().enumerate().map(|(i, dir)| format!("{} {}", i + 1, tail(dir, 1))).collect()
}

/// Shortens a name to [`MAX_NAME`] characters by leaving out its middle.
fn clipped(name: &str) -> String {
    let all: Vec<char> = name.chars().collect();
    if all.len() <= MAX_NAME {
        return name.to_owned();
    }
    let half = (MAX_NAME - 1) / 2;
    let (front, back) = (&all[..MAX_NAME - 1 - half], &all[all.len() - half..]);
    front.iter().chain(['…'].iter()).chain(back).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_short_unique_names() {
        let of = |dirs: &[&str]| names(&dirs.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["a/x", "a/y"]), ["x", "y"]);
        assert_eq!(of(&["a/x", "b/x"]), ["a/x", "b/x"]);
        assert_eq!(of(&["a/x", "a/x"]), ["1 x", "2 x"]);
        let long = format!("{}end", "run".repeat(20));
        let name = &of(&[&long])[0];
        assert!(name.chars().count() == MAX_NAME && name.starts_with("runrun") && name.ends_with("end"), "{name}");
    }
}
