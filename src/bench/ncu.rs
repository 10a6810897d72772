//! Metrics of NVIDIA's profiler, joined to a call by the names of its kernels. The input is the output of
//! `ncu --csv --page raw`: a line of column names, a line of units, then a line for each launch. Lines of
//! other programs before it are skipped.

use std::fmt::Write as _;
use std::path::Path;

use super::own::launches;
use super::run::cost;
use super::shapes::Case;
use crate::backend::contract::Precision;
use crate::backend::kernels::device::Properties;
use crate::{Error, Result};

/// Metrics that are requested in addition to the full set: time, bytes of DRAM, shares of the peaks, active
/// warps, bank conflicts of shared memory, registers.
pub(crate) const METRICS: [&str; 7] = [
    "gpu__time_duration.sum",
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l1tex__data_bank_conflicts_pipe_lsu.sum",
    "launch__registers_per_thread",
];

/// A launch in the profile.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profiled {
    /// Name of the kernel without parameters.
    pub kernel: String,
    /// Blocks of the grid, if the profile has them.
    pub blocks: Option<u64>,
    /// Values of [`METRICS`] in seconds, bytes, percent or counts; `None` for those that the profile lacks.
    pub metrics: [Option<f64>; METRICS.len()],
}

/// Size of a unit: seconds, bytes, or 1 for shares and counts.
fn unit(text: &str) -> Option<f64> {
    Some(match text {
        "ns" | "nsecond" => 1e-9,
        "us" | "usecond" => 1e-6,
        "ms" | "msecond" => 1e-3,
        "Kbyte" => 1e3,
        "Mbyte" => 1e6,
        "Gbyte" => 1e9,
        "Tbyte" => 1e12,
        "" | "s" | "second" | "byte" | "%" | "register/thread" => 1.0,
        _ => return None,
    })
}

/// Parses the launches of a profile. Returns [`Error::Data`] with the line of a number or unit that cannot be
/// read.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Vec<Profiled>> {
    let wrong = |line: usize, why: String| Error::data(file, line, None, why);
    let Some(skipped) = text.lines().position(|line| line.starts_with("\"ID\"") || line.starts_with("ID,")) else {
        return Err(wrong(
            0,
            "has no line of columns that begins with \"ID\"; write it with ncu --csv --page raw".into(),
        ));
    };
    let table: Vec<&str> = text.lines().skip(skipped).filter(|line| !line.starts_with("==")).collect();
    let table = table.join("\n");
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(table.as_bytes());
    let mut lines = reader.records().enumerate().map(|(at, line)| {
        let line = line.map_err(|e| wrong(skipped + at + 1, e.to_string()))?;
        Ok((skipped + at + 1, line))
    });
    let Some((first, columns)) = lines.next().transpose()? else { return Ok(Vec::new()) };
    let place = |name: &str| columns.iter().position(|column| column == name);
    let Some(kernel_at) = place("Kernel Name") else {
        return Err(wrong(first, "has no column \"Kernel Name\"; write it with ncu --csv --page raw".into()));
    };
    let (grid_at, metrics_at) = (place("Grid Size"), METRICS.map(place));
    if metrics_at.iter().all(Option::is_none) {
        return Err(wrong(first, format!("has none of the metrics {}; use --page raw", METRICS.join(", "))));
    }
    let Some((second, units)) = lines.next().transpose()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut sizes = [1.0; METRICS.len()];
    for (size, at) in sizes.iter_mut().zip(metrics_at) {
        let text = at.and_then(|at| units.get(at)).unwrap_or("");
        *size = unit(text)
            .ok_or_else(|| wrong(second, format!("the unit {text:?} is not known; use --print-units base")))?;
    }
    for line in lines {
        let (number, line) = line?;
        let mut metrics = [None; METRICS.len()];
        for ((metric, at), size) in metrics.iter_mut().zip(metrics_at).zip(sizes) {
            let text = at.and_then(|at| line.get(at)).unwrap_or("").replace(',', "");
            if !text.is_empty() && text != "n/a" {
                let value: f64 = text.parse().map_err(|_| wrong(number, format!("{text:?} is not a number")))?;
                if !(value.is_finite() && value >= 0.0) {
                    return Err(wrong(number, format!("{text:?} is not a number of at least 0")));
                }
                *metric = Some(value * size);
            }
        }
        let name = line.get(kernel_at).unwrap_or("");
        let blocks = |text: &str| {
            text.trim_matches(['(', ')']).split(',').map(|n| n.trim().parse::<u64>().ok()).product::<Option<u64>>()
        };
        found.push(Profiled {
            kernel: name.split(['(', '<']).next().unwrap_or("").trim().to_owned(),
            blocks: grid_at.and_then(|at| line.get(at)).and_then(blocks),
            metrics,
        });
    }
    Ok(found)
}

/// Mean of a metric over launches that have it.
fn mean(launches: &[&Profiled], metric: usize) -> Option<f64> {
    let values: Vec<f64> = launches.iter().filter_map(|launch| launch.metrics[metric]).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The metrics of a call's kernels, one line each, and their sums against the call's contract.
/// [`Error::Usage`] if the profile has none of the call's kernels.
pub(crate) fn joined(case: &Case, gpu: &Properties, precision: Precision, profile: &[Profiled]) -> Result<String> {
    let launched = launches(&case.work, gpu, precision)?;
    let (mut text, mut seconds, mut bytes, mut known) = (String::new(), 0.0, Some(0.0), false);
    for launch in &launched {
        let of_kernel: Vec<&Profiled> = profile.iter().filter(|p| p.kernel == launch.kernel).collect();
        let of_grid: Vec<&Profiled> =
            of_kernel.iter().copied().filter(|p| p.blocks.is_none_or(|blocks| blocks == launch.blocks)).collect();
        let _ = write!(text, "  ncu          {}: ", launch.kernel);
        let Some(first) = of_kernel.first() else {
            text += "not in the profile\n";
            bytes = None;
            continue;
        };
        if of_grid.is_empty() {
            let blocks = first.blocks.unwrap_or(0);
            let _ = writeln!(
                text,
                "profiled with {blocks} blocks, but this call launches {}; the profile is of a different call",
                launch.blocks
            );
            bytes = None;
            continue;
        }
        known = true;
        let metric = |at: usize| mean(&of_grid, at);
        let mut parts = vec![format!("{} launch(es)", of_grid.len())];
        if let Some(time) = metric(0) {
            parts.push(format!("{:.2} us", 1e6 * time));
            seconds += launch.count as f64 * time;
        }
        if let Some(moved) = metric(1) {
            parts.push(format!("{:.2} MB of DRAM", 1e-6 * moved));
        }
        bytes = bytes.zip(metric(1)).map(|(sum, moved)| sum + launch.count as f64 * moved);
        let shares = [(2, "of the DRAM peak"), (3, "of the SM peak"), (4, "of the warps active")];
        parts.extend(shares.iter().filter_map(|(at, of)| Some(format!("{:.0}% {of}", metric(*at)?))));
        parts.extend(metric(5).map(|conflicts| format!("{conflicts:.0} bank conflicts")));
        parts.extend(metric(6).map(|registers| format!("{registers:.0} registers")));
        let _ = writeln!(text, "{}", parts.join(", "));
    }
    if !known {
        let mut names: Vec<&str> = profile.iter().map(|launch| launch.kernel.as_str()).collect();
        names.dedup();
        return Err(Error::Usage(format!(
            "the profile has no launch of this call of {}; its kernels are {}\n{}",
            case.work_op(),
            if names.is_empty() { "none".into() } else { names.join(", ") },
            text.trim_end()
        )));
    }
    let contract = cost(&case.work, precision)?.bytes as f64;
    let _ = write!(text, "  by ncu       {:.2} us in all kernels", 1e6 * seconds);
    if let Some(bytes) = bytes.filter(|&bytes| bytes > 0.0) {
        let _ = write!(text, "; {:.2}x the bytes of the contract", bytes / contract);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
==PROF== Connected to process 17
op          model
\"ID\",\"Process ID\",\"Kernel Name\",\"Grid Size\",\"dram__bytes.sum\",\"gpu__time_duration.sum\",\"launch__registers_per_thread\"
\"\",\"\",\"\",\"\",\"Mbyte\",\"us\",\"register/thread\"
\"0\",\"17\",\"norm_fwd_bf16(const bf16 *, int)\",\"(1056, 1, 1)\",\"1,029.5\",\"12.25\",\"40\"
==PROF== Disconnected from process 17
\"1\",\"17\",\"other<float>(int)\",\"(2, 3, 4)\",\"n/a\",\"3\",\"\"
";

    #[test]
    fn launches_are_read_with_their_units() {
        let found = parse(Path::new("p.csv"), SAMPLE).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kernel.as_str(), found[0].blocks), ("norm_fwd_bf16", Some(1056)));
        let [time, bytes, .., conflicts, registers] = found[0].metrics;
        assert!((time.unwrap() - 12.25e-6).abs() < 1e-15 && bytes == Some(1029.5e6) && registers == Some(40.0));
        assert_eq!(conflicts, None);
        assert_eq!((found[1].kernel.as_str(), found[1].blocks, found[1].metrics[1]), ("other", Some(24), None));
    }

    #[test]
    fn a_profile_that_cannot_be_read_is_refused_with_its_line() {
        let error = |text: &str| parse(Path::new("p.csv"), text).unwrap_err().to_string();
        assert!(error("").contains("no line of columns"));
        assert!(error("\"ID\",\"Name\"\n").starts_with("p.csv:1: has no column \"Kernel Name\""));
        assert!(error("\"ID\",\"Kernel Name\"\n\"\",\"\"\n").contains("none of the metrics"));
        let unit = error(&SAMPLE.replace("\"us\"", "\"fortnight\""));
        assert!(unit.starts_with("p.csv:4: the unit \"fortnight\" is not known"), "{unit}");
        let number = error(&SAMPLE.replace("12.25", "soon"));
        assert!(number.starts_with("p.csv:5: \"soon\" is not a number"), "{number}");
    }
}
