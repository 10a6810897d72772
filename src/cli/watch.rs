//! `mapl watch`: live view of a run in the terminal.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::Result;
use crate::terminal::emit;
use crate::watch::Watched;
use crate::watch::view::{PANELS, ViewState};

/// Arguments of `watch`.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// Output folder of a run, or its metrics.jsonl; a copy that rsync keeps up to date works too
    run: PathBuf,
    /// Milliseconds between reads of the file
    #[arg(long, conflicts_with_all = ["once", "page", "width", "height"], default_value_t = 500, value_parser = clap::value_parser!(u64).range(20..=60_000))]
    interval: u64,
    /// Print one frame as text and exit
    #[arg(long)]
    once: bool,
    /// Page to print: loss, accuracy, margins, optimiser
    #[arg(long, requires = "once", default_value = "loss", value_parser = PANELS.map(|panel| panel.0))]
    page: String,
    /// Width of the frame in columns
    #[arg(long, requires = "once", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=500))]
    width: u16,
    /// Height of the frame in rows
    #[arg(long, requires = "once", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=200))]
    height: u16,
}

/// Runs the command.
pub fn run(args: &WatchArgs) -> Result<()> {
    let mut watched = Watched::new(&args.run)?;
    if !args.once {
        return watched.live(Duration::from_millis(args.interval));
    }
    watched.poll()?;
    let panel = PANELS.iter().position(|panel| panel.0 == args.page).unwrap_or_default();
    emit(&watched.render(ViewState { panel, window: None }, args.width, args.height)?)
}
