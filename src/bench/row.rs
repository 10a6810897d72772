//! A row of a record: one op, shape, storage and contender, with measurements and ceilings.
//! benches/README.md describes the columns. `benches/peers` writes the same columns.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::files::{input, write_text};
use crate::{Error, Result};

/// Version of the columns.
pub const SCHEMA: u32 = 1;

/// Outcome of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Verified and timed.
    Measured,
    /// The library is not available.
    Absent,
    /// Skipped because of its duration or memory; the note says which.
    Skipped,
    /// The call failed or its results are wrong; the note says how.
    Failed,
}

/// Location of the operands when a call starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// In memory: the rotating operand sets exceed the caches.
    Cold,
    /// Completely or partly in a cache.
    Warm,
}

/// Columns in file order. Times are per call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Version of the columns.
    pub schema: u32,
    /// Day, as `2026-01-31`.
    pub date: String,
    /// Version of the program.
    pub commit: String,
    /// Name of the GPU or CPU.
    pub device: String,
    /// Name of the backend.
    pub backend: String,
    /// `mapl`, or name and version of the peer.
    pub variant: String,
    /// Storage of activations.
    pub dtype: String,
    /// Name of the op.
    pub op: String,
    /// Model whose sizes the call has.
    pub model: String,
    /// Layer of the call.
    pub layer: String,
    /// Every size as `name=value`.
    pub shape: String,
    /// Where operands are when a call starts.
    pub cache: Option<Cache>,
    /// Outcome.
    pub status: Status,
    /// Number of samples.
    pub samples: Option<u64>,
    /// Number of calls.
    pub calls: Option<u64>,
    /// Median of the samples in microseconds.
    pub median_us: Option<f64>,
    /// 20 % quantile of the samples in microseconds.
    pub p20_us: Option<f64>,
    /// 80 % quantile of the samples in microseconds.
    pub p80_us: Option<f64>,
    /// Smallest sample in microseconds.
    pub least_us: Option<f64>,
    /// Median of the samples, each divided by the yardstick sample next to it (`bench::yardstick`).
    #[serde(default)]
    pub paced_median: Option<f64>,
    /// 20 % quantile in units of the yardstick.
    #[serde(default)]
    pub paced_p20: Option<f64>,
    /// 80 % quantile in units of the yardstick.
    #[serde(default)]
    pub paced_p80: Option<f64>,
    /// Bytes that a call moves.
    pub bytes: Option<u64>,
    /// Floating-point operations.
    pub flops: Option<u64>,
    /// Bytes divided by the median time, in 10^9 per second.
    pub gb_per_s: Option<f64>,
    /// FLOPs divided by the median time, in 10^12 per second.
    pub tflop_per_s: Option<f64>,
    /// Ceiling that sets the floor: `memory` or `product`.
    pub bound: Option<String>,
    /// Ceiling of memory bandwidth in this run, in 10^9 bytes per second.
    pub memory_gb_per_s: Option<f64>,
    /// Ceiling of GEMMs in this run, in 10^12 FLOP/s.
    pub product_tflop_per_s: Option<f64>,
    /// Floor divided by median.
    pub share: Option<f64>,
    /// Predicted microseconds: by tiles, by a simulated work list, or by bytes and latency.
    #[serde(default)]
    pub predicted_us: Option<f64>,
    /// Millijoules of a call.
    pub energy_mj: Option<f64>,
    /// CPU cores that other programs used during the samples.
    pub others: Option<f64>,
    /// Largest error of the verified results, divided by the tolerance of the contract.
    pub error_share: Option<f64>,
    /// Why a row was not measured, or a remark.
    pub note: String,
}

impl Row {
    /// A row with a status and nothing else.
    pub(super) fn blank(status: Status) -> Self {
        Self {
            schema: SCHEMA,
            date: String::new(),
            commit: String::new(),
            device: String::new(),
            backend: String::new(),
            variant: String::new(),
            dtype: String::new(),
            op: String::new(),
            model: String::new(),
            layer: String::new(),
            shape: String::new(),
            cache: None,
            status,
            samples: None,
            calls: None,
            median_us: None,
            p20_us: None,
            p80_us: None,
            least_us: None,
            paced_median: None,
            paced_p20: None,
            paced_p80: None,
            bytes: None,
            flops: None,
            gb_per_s: None,
            tflop_per_s: None,
            bound: None,
            memory_gb_per_s: None,
            product_tflop_per_s: None,
            share: None,
            predicted_us: None,
            energy_mj: None,
            others: None,
            error_share: None,
            note: String::new(),
        }
    }

    /// Identity of the measured call: everything except day, commit and numbers.
    pub fn key(&self) -> [&str; 8] {
        let texts =
            [&self.device, &self.backend, &self.variant, &self.dtype, &self.op, &self.model, &self.layer, &self.shape];
        texts.map(String::as_str)
    }

    /// Median, 20 % and 80 % quantiles and minimum in microseconds, if the row has times.
    pub fn timed(&self) -> Option<(f64, f64, f64, f64)> {
        Some((self.median_us?, self.p20_us?, self.p80_us?, self.least_us?))
    }

    /// Median, 20 % and 80 % quantiles in units of the yardstick, if it was timed next to the call.
    pub fn paced(&self) -> Option<(f64, f64, f64)> {
        Some((self.paced_median?, self.paced_p20?, self.paced_p80?))
    }

    /// Returns an error for a row with contradictory or missing values.
    pub fn check(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("schema {} is not supported; this program reads schema {SCHEMA}", self.schema));
        }
        let day = self.date.as_bytes();
        let digits = |range: std::ops::Range<usize>| day.get(range).is_some_and(|d| d.iter().all(u8::is_ascii_digit));
        if day.len() != 10 || !digits(0..4) || !digits(5..7) || !digits(8..10) || day[4] != b'-' || day[7] != b'-' {
            return Err(format!("date {:?} is not a day such as 2026-01-31", self.date));
        }
        let named = [&self.device, &self.backend, &self.variant, &self.dtype, &self.op, &self.shape];
        if named.iter().any(|text| text.is_empty()) {
            return Err("one of device, backend, variant, dtype, op and shape is empty".into());
        }
        let times = [self.median_us, self.p20_us, self.p80_us, self.least_us];
        let paced = [self.paced_median, self.paced_p20, self.paced_p80];
        let rates = [self.gb_per_s, self.tflop_per_s, self.share];
        let numbers = times.into_iter().chain(paced).chain(rates).collect::<Vec<_>>();
        if numbers.iter().flatten().any(|x| !(x.is_finite() && *x >= 0.0)) {
            return Err("a time, rate or share is negative or not finite".into());
        }
        if let Some((median, p20, p80)) = self.paced()
            && !(0.0 < p20 && p20 <= median && median <= p80)
        {
            return Err(format!("paced times are not in order (p20, median, p80): {p20} {median} {p80}"));
        }
        match (self.status, self.timed()) {
            (Status::Measured, None) => Err("the row is measured but lacks times".into()),
            (Status::Measured, Some((median, p20, p80, least))) => {
                let ordered = 0.0 < least && least <= p20 && p20 <= median && median <= p80;
                if ordered {
                    Ok(())
                } else {
                    Err(format!("times are not in order (least, p20, median, p80): {least} {p20} {median} {p80}"))
                }
            }
            (_, Some(_)) => Err("the row has times but was not measured".into()),
            (_, None) if self.note.is_empty() => Err("the row was not measured, and its note does not say why".into()),
            (_, None) => Ok(()),
        }
    }
}

/// Writes rows as CSV, or as a JSON array if the name ends in `.json`. The file is written
/// completely or not at all.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Runtime(format!("cannot write {}: {e}", path.display()));
    let text = if path.extension().is_some_and(|e| e == "json") {
        serde_json::to_string_pretty(rows).map_err(|e| failed(&e))?
    } else {
        let mut writer = csv::Writer::from_writer(Vec::new());
        rows.iter().try_for_each(|row| writer.serialize(row)).map_err(|e| failed(&e))?;
        let bytes = writer.into_inner().map_err(|e| failed(&e))?;
        String::from_utf8(bytes).map_err(|e| failed(&e))?
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|source| Error::Io {
            action: "create",
            path: parent.to_owned(),
            source,
        })?;
    }
    write_text(path, &text)
}

/// Reads and checks a record. [`Error::Data`] names the line of an error.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let bytes = input::read(path, input::MAX_RECORD).map_err(input::data_error(path))?;
    let wrong = |line: usize, why: String| Error::Data { file: path.to_owned(), line, id: None, why };
    let text = String::from_utf8(bytes).map_err(|_| wrong(0, "is not UTF-8 text".into()))?;
    if path.extension().is_some_and(|e| e == "json") {
        let rows: Vec<Row> = serde_json::from_str(&text).map_err(|e| wrong(e.line(), e.to_string()))?;
        for (at, row) in rows.iter().enumerate() {
            row.check().map_err(|why| wrong(0, format!("row {}: {why}", at + 1)))?;
        }
        return Ok(rows);
    }
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let mut rows = Vec::new();
    for (at, row) in reader.deserialize().enumerate() {
        let line = at + 2;
        let row: Row = row.map_err(|e| wrong(line, format!("{e}; benches/README.md describes the columns")))?;
        row.check().map_err(|why| wrong(line, why))?;
        rows.push(row);
    }
    Ok(rows)
}
