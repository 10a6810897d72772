//! Report of training runs: `report.html` of one run, or a comparison of several.
//!
//! - `log`: reads a run folder into columns of numbers
//! - `curves`: loss, accuracy, margin, rewards, optimiser and speed by step
//! - `rewards`: reward histograms, and reward by length
//! - `warnings`: outcome of the run, and signs of misleading numbers
//! - `facts`: data, configuration, command, environment, hashes

mod curves;
mod facts;
pub(crate) mod log;
mod rewards;
mod warnings;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::page::{Block, Page, Section};
use crate::Result;
use crate::files::{write_atomic, write_text};
use crate::train::logs::EVAL_SCORES_FILE;
use log::RunLog;

/// File name of the report in a run folder.
pub const REPORT_FILE: &str = "report.html";
/// Files of a run folder that a report reads.
pub const RUN_LOGS: [&str; 3] = [crate::train::manifest::FILE, log::METRICS_FILE, EVAL_SCORES_FILE];
/// Maximum number of runs in a report; a chart distinguishes that many by colour and dash pattern.
pub const MAX_RUNS: usize = 8;

/// Reads run folders and writes their report.
///
/// # Errors
/// Errors of reading a run folder, and [`crate::Error::Io`] if `output` cannot be written.
pub fn write_report(dirs: &[PathBuf], output: &Path) -> Result<()> {
    write_text(output, &run_report(&RunLog::read_all(dirs)?))
}

/// Writes the report of one run into its folder, and replaces a file or link of that name.
pub fn write_own_report(dir: &Path) -> Result<()> {
    let report = run_report(&RunLog::read_all(&[dir.to_path_buf()])?);
    write_atomic(&dir.join(REPORT_FILE), report.as_bytes())
}

/// Report of one or several runs as HTML.
fn run_report(runs: &[RunLog]) -> String {
    let mut sections: Vec<Section> = warning_section(runs).into_iter().collect();
    sections.push(curves::lead(runs));
    sections.push(facts::overview(runs));
    if runs.len() > 1 {
        sections.push(facts::configuration(runs));
    }
    sections.extend(curves::sections(runs));
    sections.extend(rewards::section(runs));
    sections.push(facts::data(runs));
    if runs.len() == 1 {
        sections.push(facts::configuration(runs));
    }
    sections.push(facts::commands(runs));
    sections.push(facts::environment(runs));
    let (title, lead) = match runs {
        [run] => {
            let (method, step) = (run.method(), run.last_step().unwrap_or(0));
            let status = if run.killed { "killed" } else { run.status() };
            (run.name.clone(), format!("A {method} run: {status}, {step} steps."))
        }
        _ => (format!("{} runs", runs.len()), "Comparison of training runs.".to_owned()),
    };
    Page { title, lead, sections }.to_html()
}

fn warning_section(runs: &[RunLog]) -> Option<Section> {
    let mut blocks = Vec::new();
    for run in runs {
        let name = if runs.len() == 1 { String::new() } else { format!("{}: ", run.name) };
        blocks.extend(warnings::warnings(run).into_iter().map(|text| Block::Warning(format!("{name}{text}"))));
    }
    (!blocks.is_empty()).then(|| Section { heading: "Warnings".into(), blocks })
}
