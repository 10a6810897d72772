//! State of a run: its values over the steps, its last row, and its events.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::terminal::shown;
use crate::train::metrics::tie_names;

/// Values of a metric as (step, value), finite values only.
pub type Series = Vec<(f64, f64)>;

/// State of a run, built from its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunState {
    /// Values of training rows and of evaluations (with names starting with `eval_`).
    pub series: BTreeMap<String, Series>,
    pub last: Map<String, Value>,
    pub step: u64,
    /// Total steps of the run, if known.
    pub total: Option<u64>,
    /// Total epochs of the run; they determine the total steps.
    epochs: Option<f64>,
    pub status: Option<String>,
    /// Events and warnings, newest last.
    pub events: Vec<String>,
    /// (time, step) of the last rows, to estimate the remaining time.
    pace: Vec<(f64, u64)>,
    /// Number of values that were not finite.
    pub not_finite: usize,
}

/// Whether the value is an accuracy whose comparisons are all ties, as before the first step of DPO. Such an
/// accuracy is 0 and would look like a failure.
fn is_undecided(name: &str, row: &Map<String, Value>) -> bool {
    let number = |name: &String| row.get(name).and_then(Value::as_f64);
    tie_names(name).is_some_and(|names| match names.each_ref().map(number) {
        [Some(ties), Some(comparisons)] => comparisons > 0.0 && ties == comparisons,
        _ => false,
    })
}

/// Maximum number of stored events.
const MAX_EVENTS: usize = 200;
/// Number of rows over which the pace is measured.
const PACE_ROWS: usize = 50;

impl RunState {
    /// Reads the length and status of the run from `run.json`.
    pub fn manifest(&mut self, run: &Value) {
        self.total = run["settings"]["max_steps"].as_u64();
        self.epochs = run["settings"]["epochs"].as_f64();
        self.status = run["status"].as_str().map(shown);
    }

    /// Adds a row. A row of an unknown kind becomes an event.
    pub fn add(&mut self, row: Map<String, Value>) {
        let step = row.get("step").and_then(Value::as_u64).unwrap_or(self.step);
        match row.get("kind").and_then(Value::as_str) {
            Some("train") => {
                self.step = step;
                self.numbers(step, &row);
                if let Some(time) = row.get("time").and_then(Value::as_f64) {
                    self.pace.push((time, step));
                    if self.pace.len() > PACE_ROWS {
                        self.pace.remove(0);
                    }
                }
                self.last = row;
            }
            Some("eval") => self.numbers(step, &row),
            _ => {
                let skip = ["schema", "kind", "step", "time"];
                let said: Vec<String> = row
                    .iter()
                    .filter(|(name, _)| !skip.contains(&name.as_str()))
                    .map(|(name, value)| {
                        let value = value.as_str().map_or(value.to_string(), str::to_owned);
                        format!("{} {}", shown(name), shown(&value))
                    })
                    .collect();
                self.events.push(format!("step {step}: {}", said.join(", ")));
                if self.events.len() > MAX_EVENTS {
                    self.events.remove(0);
                }
            }
        }
    }

    fn numbers(&mut self, step: u64, row: &Map<String, Value>) {
        for (name, value) in row {
            if ["schema", "step", "time"].contains(&name.as_str()) || is_undecided(name, row) {
                continue;
            }
            match value {
                Value::Number(number) => {
                    let Some(value) = number.as_f64().filter(|x| x.is_finite()) else { continue };
                    self.series.entry(name.clone()).or_default().push((step as f64, value));
                }
                // Values that are not finite are written as text.
                Value::String(text) if text.parse::<f64>().is_ok_and(|x| !x.is_finite()) => self.not_finite += 1,
                _ => {}
            }
        }
        // Tokens per second, from the token count and the step time.
        let tokens = self.series.get("num_tokens").map(Vec::as_slice).unwrap_or_default();
        let seconds = row.get("step_seconds").and_then(Value::as_f64).filter(|&seconds| seconds > 0.0);
        let ([.., before, now], Some(seconds)) = (tokens, seconds) else { return };
        if now.0 == step as f64 && now.0 == before.0 + 1.0 && now.1 >= before.1 {
            let point = (now.0, (now.1 - before.1) / seconds);
            self.series.entry("tokens_per_s".into()).or_default().push(point);
        }
    }

    /// Total steps of the run, from `run.json` or extrapolated from the current epoch.
    pub fn total(&self) -> Option<u64> {
        self.total.or_else(|| {
            let epoch = self.last.get("epoch").and_then(Value::as_f64).filter(|&epoch| epoch > 0.0)?;
            Some((self.step as f64 * self.epochs? / epoch).round() as u64)
        })
    }

    /// Estimated remaining seconds at the pace of the last rows.
    pub fn seconds_left(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (*self.pace.first()?, *self.pace.last()?);
        let steps = last.checked_sub(first).filter(|&steps| steps > 0)?;
        let left = self.total()?.saturating_sub(self.step) as f64;
        Some(((to - from) / steps as f64 * left).max(0.0))
    }
}
