//! `mapl report`: an HTML report of one or several runs.

use std::path::PathBuf;

use clap::Args;

use super::output::{check_output, remark};
use crate::report::run::{MAX_RUNS, REPORT_FILE, RUN_LOGS, write_report};
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
    let inputs = args.runs.iter().flat_map(|run| RUN_LOGS.iter().map(|name| run.join(name)));
    if args.output.is_some() {
        check_output(&output, &inputs.collect::<Vec<_>>())?;
    }
    write_report(&args.runs, &output)?;
    remark(&output, &format!("report in {}", output.display()));
    Ok(())
}
