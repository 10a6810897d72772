//! The report of training runs: `report.html` of a run folder, or several runs laid over one another.
//!
//! - [`log`]: a run folder as columns of numbers; what it refuses
//! - `curves`: loss, accuracy, margin, rewards, optimiser and speed over the steps
//! - [`rewards`]: histograms, length against reward
//! - [`warnings`]: how the run ended, and signs that its numbers mislead
//! - `facts`: data, configuration, command, environment, hashes

mod curves;
mod facts;
pub mod log;
pub mod rewards;
pub mod warnings;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::page::{Block, Page, Section};
use crate::Result;
use crate::files::write_text;
use crate::train::logs::EVAL_SCORES_FILE;
use log::RunLog;

/// Name of the report in a run folder.
pub const REPORT_FILE: &str = "report.html";
/// Files of a run folder that a report is made from.
pub const RUN_LOGS: [&str; 3] = [crate::train::manifest::FILE, log::METRICS_FILE, EVAL_SCORES_FILE];
/// Runs that one chart can tell apart by colour and dash pattern.
pub const MOST_RUNS: usize = 8;

/// Reads run folders and writes the page about them.
///
/// # Errors
/// Those of [`RunLog::read`], and [`crate::Error::Io`] when `output` cannot be written.
pub fn write_report(dirs: &[PathBuf], output: &Path) -> Result<()> {
    write_text(output, &run_report(&RunLog::read_all(dirs)?))
}

/// The page about one or several runs as HTML.
pub fn run_report(runs: &[RunLog]) -> String {
    let mut sections: Vec<Section> = warning_section(runs).into_iter().collect();
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
            let status = if run.gone { "killed" } else { run.status() };
            (run.name.clone(), format!("A {method} run: {status}, {step} steps."))
        }
        _ => (format!("{} runs", runs.len()), "Training runs laid over one another.".to_owned()),
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
