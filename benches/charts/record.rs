//! Reads the records of `benches/record`. A selection from a CSV file must match exactly one row. A
//! [`Record`] is one file, so that a comparison uses rows of one run.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use serde::Deserialize;

/// A benchmark record: one CSV file of `mapl bench`.
pub struct Record {
    rows: Vec<BTreeMap<String, String>>,
}

impl Record {
    /// Reads a CSV file.
    pub fn read(path: &Path) -> Result<Self, Box<dyn Error>> {
        let mut reader = csv::Reader::from_path(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self { rows: reader.deserialize().collect::<Result<_, _>>()? })
    }

    /// Median in milliseconds of the one measured row with this variant, op, and a shape that starts with `shape`.
    pub fn milliseconds(&self, variant: &str, op: &str, shape: &str) -> Result<f64, Box<dyn Error>> {
        let wanted = |row: &&BTreeMap<String, String>| {
            row["variant"] == variant
                && row["op"] == op
                && row["shape"].starts_with(shape)
                && row["status"] == "measured"
        };
        let found: Vec<_> = self.rows.iter().filter(wanted).collect();
        let [row] = found[..] else {
            return Err(format!("{} measured rows of {variant:?}, {op}, {shape}; expected 1", found.len()).into());
        };
        Ok(row["median_us"].parse::<f64>()? / 1000.0)
    }
}

/// The record of a quick start.
#[derive(Deserialize)]
pub struct Quickstart {
    pub runs: Vec<QuickstartRun>,
}

/// Held-out accuracies of one run.
#[derive(Deserialize)]
pub struct QuickstartRun {
    pub name: String,
    pub semantic: f64,
    pub intra: f64,
    pub inter: f64,
}

/// The record of a training step with every op timed.
#[derive(Deserialize)]
pub struct Step {
    pub ops: Vec<StepOp>,
}

/// Time of all calls of one op in a step.
#[derive(Deserialize)]
pub struct StepOp {
    pub op: String,
    pub milliseconds: f64,
}

/// The record of `benches/trl_cpu/run.py`.
#[derive(Deserialize)]
pub struct TrlOnCpu {
    pub results: Vec<TrlCase>,
}

/// Runs of `mapl` and of TRL in one case.
#[derive(Deserialize)]
pub struct TrlCase {
    pub case: String,
    pub table: BTreeMap<String, Vec<TrlRun>>,
}

/// One run of `mapl` or of TRL.
#[derive(Deserialize)]
pub struct TrlRun {
    pub pairs_per_s: f64,
}

impl TrlOnCpu {
    /// Median rate of `side` (`mapl` or `trl`) in pair rows per second.
    pub fn rate(&self, case: &str, side: &str) -> Result<f64, Box<dyn Error>> {
        let found = self.results.iter().find(|result| result.case == case).and_then(|result| result.table.get(side));
        let mut rates: Vec<f64> = found.into_iter().flatten().map(|run| run.pairs_per_s).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().ok_or_else(|| format!("no runs of {side} in {case}").into())
    }
}

/// Reads a JSON record.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, Box<dyn Error>> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?)
}
