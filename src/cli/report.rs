//! `mapl report`: an HTML report of one or several runs.

use std::path::PathBuf;

use clap::Args;

use super::inputs::Inputs;
use super::output::{check_output, remark};
use crate::files::check_writable;
use crate::report::run::{MAX_RUNS, REPORT_FILE, write_report};
use crate::{Error, Result};

/// Arguments of `report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Output folders of training runs; several runs share the charts
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// HTML file to write [default: report.html in the folder of a single run]
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Writes the report.
pub fn run(args: &ReportArgs) -> Result<()> {
    if args.runs.len() > MAX_RUNS {
        let (n, most) = (args.runs.len(), MAX_RUNS);
        return Err(Error::Usage(format!("{n} runs: at most {most} can be told apart in one chart; name fewer")));
    }
    let output = match (&args.output, args.runs.as_slice()) {
        (Some(output), _) => output.clone(),
        (None, [run]) => run.join(REPORT_FILE),
        (None, _) => return Err(Error::Usage("--output is needed for a page about several runs".into())),
    };
    let inputs = Inputs::default().with("a run", &args.runs);
    match &args.output {
        Some(output) => check_output("--output", output, &inputs)?,
        None => {
            inputs.spare(("the report", &output), std::slice::from_ref(&output))?;
            // A missing run folder is reported later, by the error about the run.
            if args.runs.iter().all(|run| run.is_dir()) {
                check_writable(&output)?;
            }
        }
    }
    write_report(&args.runs, &output)?;
    remark(&output, &format!("report in {}", output.display()));
    Ok(())
}
