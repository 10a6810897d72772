//! Results of a point of a sweep: some values of its `study.json`, or the reason why there are
//! none.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::grid::{Grid, Point};
use crate::files::input;
use crate::{Error, Result};

/// A row of the sweep. Unavailable values are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    pub point: String,
    /// Values of the varied flags.
    pub values: Vec<String>,
    /// Empty if the run finished.
    pub error: String,
    pub steps: Option<f64>,
    pub step_ms: Option<f64>,
    pub tokens_per_s: Option<f64>,
    pub groups_per_s: Option<f64>,
    pub tflop_per_s: Option<f64>,
    /// Share of the data sheet's FLOP/s.
    pub utilisation: Option<f64>,
    /// Share of the GEMM rate measured in the same run.
    pub share_of_product: Option<f64>,
    pub joules_per_group: Option<f64>,
    pub planned_mib: Option<f64>,
    /// Memory used on a device with its own memory.
    pub taken_mib: Option<f64>,
    pub peak_resident_mib: Option<f64>,
}

/// Reads one metric of an outcome.
pub type Metric = fn(&Outcome) -> Option<f64>;

/// Metrics by name, in table order.
pub const METRICS: [(&str, Metric); 11] = [
    ("steps", |o| o.steps),
    ("step_ms", |o| o.step_ms),
    ("tokens_per_s", |o| o.tokens_per_s),
    ("groups_per_s", |o| o.groups_per_s),
    ("tflop_per_s", |o| o.tflop_per_s),
    ("utilisation", |o| o.utilisation),
    ("share_of_product", |o| o.share_of_product),
    ("joules_per_group", |o| o.joules_per_group),
    ("planned_mib", |o| o.planned_mib),
    ("taken_mib", |o| o.taken_mib),
    ("peak_resident_mib", |o| o.peak_resident_mib),
];

impl Outcome {
    /// Outcome of a run without results.
    pub fn failed(point: &Point, error: String) -> Self {
        Self { point: point.name.clone(), values: point.values.clone(), error, ..Self::default() }
    }

    /// Outcome of a run, read from its study.
    pub fn of(point: &Point, study: &Value) -> Self {
        let number = |path: &str| study.pointer(path).and_then(Value::as_f64);
        let mib = |path: &str| number(path).map(|bytes| bytes / f64::from(1 << 20));
        let tflop_per_s = number("/summary/tflop_per_s");
        let outcome = study["outcome"].as_str().unwrap_or("no outcome");
        let error = match (outcome, study["summary"].is_null()) {
            ("finished", false) => String::new(),
            ("finished", true) => "the run has no steps after the first two; raise max-steps".into(),
            (why, _) => why.into(),
        };
        Self {
            error,
            steps: number("/summary/steps"),
            step_ms: number("/summary/step_seconds").map(|seconds| 1e3 * seconds),
            tokens_per_s: number("/summary/tokens_per_s"),
            groups_per_s: number("/summary/groups_per_s"),
            tflop_per_s,
            utilisation: number("/summary/utilisation"),
            share_of_product: tflop_per_s.zip(number("/product_flops_per_s")).map(|(tera, rate)| 1e12 * tera / rate),
            joules_per_group: number("/summary/energy/joules_per_group"),
            planned_mib: mib("/memory/planned_total"),
            taken_mib: mib("/memory/taken"),
            peak_resident_mib: mib("/memory/peak_resident"),
            ..Self::failed(point, String::new())
        }
    }
}

/// Rows as CSV: point, varied flags, error, values.
pub fn csv(grid: &Grid, outcomes: &[Outcome]) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Runtime(format!("cannot write the rows of a sweep: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = ["point"].into_iter().chain(grid.axes.iter().map(String::as_str)).chain(["error"]);
    writer.write_record(header.chain(METRICS.iter().map(|n| n.0))).map_err(|e| failed(&e))?;
    for o in outcomes {
        let numbers = METRICS.iter().map(|(_, of)| of(o).map_or(String::new(), |x| x.to_string()));
        let start = [o.point.clone()].into_iter().chain(o.values.iter().cloned()).chain([o.error.clone()]);
        writer.write_record(start.chain(numbers)).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

/// Finished study of an earlier sweep in `folder`, if it was made by the same command.
pub fn finished_study(folder: &Path, words: &[String]) -> Option<Value> {
    let read = |name: &str| input::read(&folder.join(name), input::MAX_RECORD).ok();
    let before: Vec<String> = serde_json::from_slice(&read("command.json")?).ok()?;
    let study: Value = serde_json::from_slice(&read("study.json")?).ok()?;
    (before == words && study["outcome"] == "finished").then_some(study)
}
