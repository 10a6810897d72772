//! `mapl watch`: a live view of a run in the terminal.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::Result;
use crate::terminal::say;
use crate::watch::Watched;
use crate::watch::view::{Choice, PANELS};

/// Arguments of `watch`.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// Output folder of a run, or its metrics.jsonl; it may be a copy that is brought up to date
    run: PathBuf,
    /// Milliseconds between looks at the file
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(20..=60_000))]
    interval: u64,
    /// Print one picture as text and end
    #[arg(long)]
    once: bool,
    /// Page of the picture: loss, accuracy, margins, optimiser
    #[arg(long, requires = "once", default_value = "loss", value_parser = PANELS.map(|panel| panel.0))]
    page: String,
    /// Columns of the picture
    #[arg(long, requires = "once", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=500))]
    width: u16,
    /// Rows of the picture
    #[arg(long, requires = "once", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=200))]
    height: u16,
}

/// Watches.
pub fn run(args: &WatchArgs) -> Result<()> {
    let mut watched = Watched::new(&args.run)?;
    if !args.once {
        return watched.live(Duration::from_millis(args.interval));
    }
    watched.look()?;
    let panel = PANELS.iter().position(|panel| panel.0 == args.page).unwrap_or_default();
    say(&watched.picture(Choice { panel, window: None }, args.width, args.height)?);
    Ok(())
}
