//! Data, configuration, command, environment and input hashes of runs, as tables with one column
//! per run.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::distribution::mean;
use super::super::page::{Block, Section, Table};
use super::super::{NO_VALUE, decimal, significant};
use super::curves::throughput;
use super::log::RunLog;
use super::warnings::last;
use crate::data::template::utc;

/// Number of hash digits shown.
const HASH_DIGITS: usize = 16;
/// Options that always differ between runs.
const ALWAYS_DIFFERENT: [&str; 2] = ["output_dir", "overwrite_output_dir"];

/// Table rows with a cell for every run.
struct Rows<'a> {
    runs: &'a [RunLog],
    rows: Vec<Vec<String>>,
}

impl<'a> Rows<'a> {
    fn of(runs: &'a [RunLog]) -> Self {
        Self { runs, rows: Vec::new() }
    }

    /// Adds a row if at least one run has the value.
    fn add(&mut self, name: &str, cell: impl Fn(&RunLog) -> Option<String>) {
        let cells: Vec<Option<String>> = self.runs.iter().map(cell).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|c| c.unwrap_or_else(|| NO_VALUE.to_owned()));
            self.rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
        }
    }

    fn table(self, caption: &str) -> Table {
        let header = match self.runs {
            [_] => Vec::new(),
            runs => std::iter::once(String::new()).chain(runs.iter().map(|r| r.name.clone())).collect(),
        };
        Table { caption: caption.to_owned(), header, rows: self.rows, numeric: Vec::new() }
    }
}

/// Outcome and final metrics of the runs.
pub(super) fn overview(runs: &[RunLog]) -> Section {
    let mut rows = Rows::of(runs);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    rows.add("folder", |r| Some(r.dir.display().to_string()));
    rows.add("method", |r| text(&r.manifest["method"]));
    rows.add("loss", |r| text(&r.manifest["loss_formula"]));
    rows.add("status", |r| {
        let status = if r.killed { "killed" } else { r.status() };
        Some(match r.manifest["exit_code"].as_i64() {
            Some(code) if code != 0 => format!("{status}, exit code {code}"),
            _ => status.to_owned(),
        })
    });
    rows.add("started", |r| date(&r.manifest["started"]));
    rows.add("ended", |r| date(&r.manifest["ended"]));
    rows.add("resumed after step", |r| {
        let steps: Vec<String> = r.resumed.iter().map(u64::to_string).collect();
        (!steps.is_empty()).then(|| steps.join(", "))
    });
    rows.add("steps", |r| Some(r.last_step().unwrap_or(0).to_string()));
    rows.add("total step time", |r| r.train.get("step_seconds").map(|p| duration(p.iter().map(|p| p.1).sum())));
    rows.add("tokens per second", |r| {
        Some(significant(mean(throughput(&r.train).into_iter().map(|p| p.1)))).filter(|text| text != NO_VALUE)
    });
    rows.add("final training loss", |r| last(&r.train, "loss").map(significant));
    rows.add("final evaluation loss", |r| last(&r.eval, "loss").map(significant));
    for kind in ["base", "intra", "inter"] {
        let column = format!("rewards/accuracies/{kind}");
        rows.add(&format!("final evaluation accuracy, {kind}"), |r| last(&r.eval, &column).map(|a| decimal(a, 3)));
    }
    Section { heading: if runs.len() == 1 { "Run" } else { "Runs" }.into(), blocks: vec![Block::Table(rows.table(""))] }
}

fn date(value: &Value) -> Option<String> {
    value.as_f64().filter(|s| *s >= 0.0).map(|seconds| format!("{} UTC", utc(seconds as u64)))
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{} s", decimal(s, 1)),
        s if s < 7200.0 => format!("{} min", decimal(s / 60.0, 1)),
        s => format!("{} h", decimal(s / 3600.0, 1)),
    }
}

/// Rows and comparisons read, kept and dropped, lengths, and savings by prefix sharing.
pub(super) fn data(runs: &[RunLog]) -> Section {
    let mut blocks = Vec::new();
    for (split, name) in [("train", "Training data"), ("eval", "Evaluation data")] {
        let mut rows = Rows::of(runs);
        let number = |r: &RunLog, key: &str| r.manifest["data"][split][key].as_u64();
        let some = |r: &RunLog, key: &str| number(r, key).filter(|&n| n > 0).map(|n| n.to_string());
        rows.add("rows read", |r| number(r, "rows_read").map(|n| n.to_string()));
        rows.add("rows kept", |r| number(r, "rows_kept").map(|n| n.to_string()));
        rows.add("comparisons read", |r| number(r, "read").map(|n| n.to_string()));
        rows.add("comparisons kept", |r| number(r, "kept").map(|n| n.to_string()));
        for (i, kind) in ["base", "intra", "inter"].into_iter().enumerate() {
            rows.add(&format!("kept, {kind}"), |r| {
                let kept = r.manifest["data"][split]["kept_by_kind"][i].as_u64();
                kept.filter(|&n| n > 0).map(|n| n.to_string())
            });
        }
        rows.add("dropped: too long", |r| some(r, "dropped_too_long"));
        rows.add("dropped: no room after truncation", |r| some(r, "dropped_no_room"));
        rows.add("dropped: sides equal after truncation", |r| some(r, "dropped_sides_equal"));
        rows.add("dropped: sides with equal ids", |r| some(r, "dropped_equal_ids"));
        rows.add("messages that the template leaves out or changes", |r| some(r, "lost_messages"));
        rows.add("prompts truncated on the left", |r| some(r, "truncated_prompts"));
        rows.add("responses truncated on the right", |r| some(r, "truncated_responses"));
        rows.add("distinct sequences", |r| some(r, "kept_sequences"));
        rows.add("tokens per sequence: median, 90 %, 99 %, maximum", |r| {
            let lengths = &r.manifest["data"][split]["lengths"];
            let all: Option<Vec<String>> =
                ["p50", "p90", "p99", "max"].iter().map(|key| Some(lengths[*key].as_u64()?.to_string())).collect();
            all.map(|all| all.join(", "))
        });
        rows.add("response tokens", |r| some(r, "response_tokens"));
        rows.add("responses with an EOS token", |r| some(r, "ended"));
        rows.add("tokens per pass over the data, with prefix sharing", |r| {
            let (unshared, shared) = (number(r, "tokens_alone")?, number(r, "tokens_shared")?);
            let saved = 100.0 * (unshared.saturating_sub(shared)) as f64 / unshared.max(1) as f64;
            Some(format!("{shared} of {unshared} ({} % saved)", decimal(saved, 0)))
        });
        if !rows.rows.is_empty() {
            blocks.push(Block::Table(rows.table(name)));
        }
    }
    if blocks.is_empty() {
        blocks.push(Block::Paragraph("The manifest has no facts about the data.".into()));
    }
    Section { heading: "Data".into(), blocks }
}

/// All options of a single run, or the options that differ between runs.
pub(super) fn configuration(runs: &[RunLog]) -> Section {
    let heading = if runs.len() == 1 { "Configuration" } else { "Configuration differences" }.to_owned();
    let options = |run: &RunLog| -> BTreeMap<String, String> {
        let config = run.manifest["config"].as_object();
        config.into_iter().flatten().map(|(name, value)| (name.clone(), display(value))).collect()
    };
    let all: Vec<_> = runs.iter().map(options).collect();
    let mut names: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    names.sort_unstable();
    names.dedup();
    let differs = |name: &str| {
        !ALWAYS_DIFFERENT.contains(&name) && all.iter().any(|options| options.get(name) != all[0].get(name))
    };
    let cell = |options: &BTreeMap<String, String>, name: &str| {
        options.get(name).cloned().unwrap_or_else(|| NO_VALUE.to_owned())
    };
    let rows: Vec<Vec<String>> = names
        .into_iter()
        .filter(|name| runs.len() == 1 || differs(name))
        .map(|name| std::iter::once(name.clone()).chain(all.iter().map(|o| cell(o, name))).collect())
        .collect();
    let number = rows.len();
    let header = std::iter::once("option".to_owned());
    let columns =
        if runs.len() == 1 { vec!["value".to_owned()] } else { runs.iter().map(|r| r.name.clone()).collect() };
    let table = Table { header: header.chain(columns).collect(), rows, ..Table::default() };
    let block = match (runs.len(), number) {
        (1, _) => Block::Folded { heading: format!("All {number} options with their values"), table },
        (_, 0) => Block::Paragraph("All options are equal except the output folder.".into()),
        _ => Block::Table(table),
    };
    Section { heading, blocks: vec![block] }
}

/// Manifest value as text: lists without brackets, null as a dash.
fn display(value: &Value) -> String {
    match value {
        Value::Null => NO_VALUE.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(all) if all.is_empty() => NO_VALUE.to_owned(),
        Value::Array(all) => all.iter().map(display).collect::<Vec<_>>().join(", "),
        Value::Object(all) => all.iter().map(|(k, v)| format!("{k} {}", display(v))).collect::<Vec<_>>().join(", "),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Commands of the runs, including resumes.
pub(super) fn commands(runs: &[RunLog]) -> Section {
    let mut blocks = Vec::new();
    for run in runs {
        let text = run.manifest["command"].as_str().unwrap_or("The manifest has no command.").to_owned();
        let caption = if runs.len() == 1 { String::new() } else { run.name.clone() };
        blocks.push(Block::Code { caption, text });
        let resumes = run.manifest["resumes"].as_array().into_iter().flatten();
        let points: Vec<String> = resumes
            .map(|r| {
                let when = date(&r["time"]).unwrap_or_default();
                format!("resumed on {when} after step {} from {}", display(&r["step"]), display(&r["checkpoint"]))
            })
            .collect();
        if !points.is_empty() {
            blocks.push(Block::List(points));
        }
    }
    Section { heading: if runs.len() == 1 { "Command" } else { "Commands" }.into(), blocks }
}

/// Version, machine, and hashes of all inputs.
pub(super) fn environment(runs: &[RunLog]) -> Section {
    let mut rows = Rows::of(runs);
    let known = |value: &Value| (!value.is_null()).then(|| display(value)).filter(|text| !text.is_empty());
    rows.add("mapl", |r| known(&r.manifest["version"]));
    for (name, key) in [
        ("system", "os"),
        ("architecture", "arch"),
        ("device", "device"),
        ("threads", "threads"),
        ("ranks", "ranks"),
        ("CPU features", "cpu_features"),
        ("environment variables", "variables"),
        ("working folder", "folder"),
    ] {
        rows.add(name, |r| known(&r.manifest["environment"][key]));
    }
    rows.add("machine", |r| known(&r.manifest["host"]));
    rows.add("crates", |r| known(&r.manifest["crates"]));
    let mut blocks = vec![Block::Table(rows.table(""))];
    for run in runs {
        let caption = if runs.len() == 1 { "Inputs".to_owned() } else { format!("Inputs, {}", run.name) };
        blocks.push(Block::Table(inputs(run, caption)));
    }
    let text = format!("Hashes are the first {HASH_DIGITS} digits of BLAKE3; run.json has the full hashes.");
    blocks.push(Block::Paragraph(text));
    Section { heading: "Environment and inputs".into(), blocks }
}

fn inputs(run: &RunLog, caption: String) -> Table {
    let mut rows = Vec::new();
    for (role, files) in run.manifest["files"].as_object().into_iter().flatten() {
        for file in files.as_array().into_iter().flatten() {
            let hash = match file["blake3"].as_str() {
                Some(hash) => hash.chars().take(HASH_DIGITS).collect(),
                None => display(&file["why_no_hash"]),
            };
            rows.push(vec![role.replace('_', " "), display(&file["path"]), display(&file["bytes"]), hash]);
        }
    }
    Table { caption, header: ["input", "file", "bytes", "hash"].map(str::to_owned).to_vec(), rows, numeric: vec![2] }
}
