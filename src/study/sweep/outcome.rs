//! Results of a point of a sweep: some values of its `study.json`, or the reason why there are
//! none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use super::grid::{Grid, Point};
use crate::eval::measure::{By, Quantity};
use crate::files::input;
use crate::train::manifest::hashes;
use crate::{Error, Result};

/// Results of one point, which are a row of the sweep's table. Unavailable values are absent.
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
    /// MiB used on a device with separate memory.
    pub taken_mib: Option<f64>,
    pub peak_resident_mib: Option<f64>,
    /// Estimated FLOPs of the whole run in units of 10^12: its steps times the mean FLOPs of the measured
    /// steps.
    pub tflop: Option<f64>,
    /// Accuracies of `mapl eval` after the run, by measure, and response metrics of `mapl ifeval`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub accuracy: BTreeMap<String, f64>,
}

/// Reads one metric of an outcome.
pub type Metric = fn(&Outcome) -> Option<f64>;

/// Metrics by name, in table order.
pub const METRICS: [(&str, Metric); 12] = [
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
    ("tflop", |o| o.tflop),
];

impl Outcome {
    /// Outcome of a run without results.
    pub fn failed(point: &Point, error: String) -> Self {
        Self { point: point.name.clone(), values: point.values.clone(), error, ..Self::default() }
    }

    /// Reads the outcome of a run from its study, its evaluation and its IFEval results; the last two are
    /// null if they did not run.
    pub fn of(point: &Point, [study, evaluation, ifeval]: &[Value; 3]) -> Self {
        let number = |path: &str| study.pointer(path).and_then(Value::as_f64);
        let mib = |path: &str| number(path).map(|bytes| bytes / f64::from(1 << 20));
        let tflop_per_s = number("/summary/tflop_per_s");
        let all_steps = study["steps"].as_array().map_or(0, Vec::len) as f64;
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
            tflop: number("/summary/flops_per_step").map(|flops| all_steps * flops / 1e12),
            accuracy: accuracies(evaluation).into_iter().chain(of_responses(ifeval)).collect(),
            ..Self::failed(point, String::new())
        }
    }
}

/// Metrics of responses, as (name, JSON pointer into the output of `mapl ifeval`).
const OF_RESPONSES: [(&str, &str); 6] = [
    ("prompts strict", "/prompt/strict/accuracy"),
    ("prompts loose", "/prompt/loose/accuracy"),
    ("instructions strict", "/instruction/strict/accuracy"),
    ("instructions loose", "/instruction/loose/accuracy"),
    ("response tokens", "/response_tokens"),
    ("responses ended", "/responses_ended"),
];

/// Returns the metrics of a policy's responses.
fn of_responses(ifeval: &Value) -> impl Iterator<Item = (String, f64)> {
    let one = |(name, place): (&str, &str)| Some((name.to_owned(), ifeval.pointer(place)?.as_f64()?));
    OF_RESPONSES.into_iter().filter_map(one)
}

/// Returns the accuracies of an evaluation: every measure, and its parts by held-out instruction functions
/// and by the longer response.
fn accuracies(evaluation: &Value) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for quantity in Quantity::ALL {
        let name = quantity.name();
        if let Some(value) = evaluation[name]["accuracy"].as_f64() {
            found.insert(name.to_owned(), value);
        }
        for by in [By::Holdout, By::Length] {
            let parts = evaluation[by.name()][name].as_object();
            for (label, part) in parts.into_iter().flatten() {
                if let Some(value) = part["accuracy"].as_f64() {
                    found.insert(format!("{name}, {}", by.title(label)), value);
                }
            }
        }
    }
    found
}

/// Names of the accuracies that outcomes have, in the order of the measures.
pub fn accuracy_names(outcomes: &[Outcome]) -> Vec<String> {
    let all: std::collections::BTreeSet<&String> = outcomes.iter().flat_map(|o| o.accuracy.keys()).collect();
    let of = |quantity: &Quantity| {
        let name = quantity.name();
        let part = format!("{name}, ");
        all.iter().filter(|found| ***found == name || found.starts_with(&part)).map(|found| (*found).clone()).collect()
    };
    let measures = Quantity::ALL.iter().flat_map(|quantity| -> Vec<String> { of(quantity) });
    let responses = OF_RESPONSES.iter().map(|(name, _)| (*name).to_owned()).filter(|name| all.contains(name));
    measures.chain(responses).collect()
}

/// Returns the rows as CSV, with columns for the point, the varied flags, the error and the metrics.
pub fn csv(grid: &Grid, outcomes: &[Outcome]) -> Result<Vec<u8>> {
    let failed = |e: &dyn std::fmt::Display| Error::Runtime(format!("cannot write the rows of a sweep: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = ["point"].into_iter().chain(grid.axes.iter().map(String::as_str)).chain(["error"]);
    let names = accuracy_names(outcomes);
    let columns = METRICS.iter().map(|n| n.0).chain(names.iter().map(String::as_str));
    writer.write_record(header.chain(columns)).map_err(|e| failed(&e))?;
    for o in outcomes {
        let metrics = METRICS.iter().map(|(_, of)| of(o));
        let accuracies = names.iter().map(|name| o.accuracy.get(name).copied());
        let numbers = metrics.chain(accuracies).map(|value| value.map_or(String::new(), |x| x.to_string()));
        let start = [o.point.clone()].into_iter().chain(o.values.iter().cloned()).chain([o.error.clone()]);
        writer.write_record(start.chain(numbers)).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

/// All commands of a point, as they are recorded in its folder.
pub fn commands(point: &Point, words: &[String]) -> Value {
    match (point.prepare.is_empty(), &point.measure, &point.ifeval) {
        (true, None, None) => json!(words),
        (_, measure, None) => json!({ "prepare": point.prepare, "train": words, "measure": measure }),
        (_, measure, ifeval) => {
            json!({ "prepare": point.prepare, "train": words, "measure": measure, "ifeval": ifeval })
        }
    }
}

/// Whether `folder` holds a finished run from an earlier sweep with the same preparation and training commands:
/// its study, its weights, and the hashes of inputs that have not changed since.
pub fn is_trained(folder: &Path, commands: &Value) -> bool {
    // A list is the training command alone.
    fn parts(commands: &Value) -> (&Value, &[Value]) {
        let prepare = commands["prepare"].as_array().map_or(&[][..], Vec::as_slice);
        (if commands.is_array() { commands } else { &commands["train"] }, prepare)
    }
    let run = folder.join("run");
    let same_inputs = |record: &Value| {
        let mut files = record["files"].as_object().into_iter().flat_map(|files| files.values());
        files.all(|files| {
            let paths = files.as_array().into_iter().flatten().filter_map(|file| file["path"].as_str());
            hashes(&paths.map(PathBuf::from).collect::<Vec<_>>()) == *files
        })
    };
    let has_weights = || {
        let mut entries = std::fs::read_dir(&run).into_iter().flatten().flatten();
        entries.any(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"))
    };
    read(&folder.join("command.json")).is_some_and(|earlier| parts(&earlier) == parts(commands))
        && read(&folder.join("study.json")).is_some_and(|study| study["outcome"] == "finished")
        && has_weights()
        && read(&run.join("run.json")).is_some_and(|record| record["status"] == "finished" && same_inputs(&record))
}

/// Reads a JSON file; `None` if it is missing or damaged.
fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&input::read(path, input::MAX_RECORD).ok()?).ok()
}

/// Returns the finished study, the evaluation and the IFEval results of an earlier sweep in `folder`, if the
/// commands of this point produced them.
pub fn finished_study(folder: &Path, commands: &Value, point: &Point) -> Option<[Value; 3]> {
    let read = |name: &str| read(&folder.join(name));
    let study = read("study.json").filter(|study| study["outcome"] == "finished")?;
    let evaluation = if point.measure.is_some() { read("eval.json")? } else { Value::Null };
    let ifeval = if point.ifeval.is_some() { read("ifeval.json")? } else { Value::Null };
    (read("command.json")? == *commands).then_some([study, evaluation, ifeval])
}
