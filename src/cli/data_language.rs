//! `mapl data language`: pairs of the quick start's artificial language.

use std::path::PathBuf;

use clap::Args;

use super::inputs::Inputs;
use super::output::{check_output, remark};
use crate::Result;
use crate::data::synth::{Split, SynthOptions, generate, to_jsonl};
use crate::files::write_text;

/// Arguments of `data language`.
#[derive(Args, Clone, Debug)]
pub struct LanguageCommand {
    /// Split of the prompts to draw from; the splits have no prompt in common
    #[arg(long, value_enum)]
    split: Split,
    /// Number of pairs; the first pairs do not depend on it
    #[arg(long, default_value_t = 12_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rows: u32,
    /// Seed of the pairs
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// JSON lines file to write, one pair a line
    #[arg(long)]
    output: PathBuf,
}

/// Generates the pairs and writes them.
pub fn language(args: &LanguageCommand) -> Result<()> {
    check_output("--output", &args.output, &Inputs::default())?;
    let pairs = generate(&SynthOptions { rows: args.rows as usize, seed: args.seed, split: args.split });
    write_text(&args.output, &to_jsonl(&pairs)?)?;
    remark(&args.output, &format!("wrote {} pairs of the {} split", pairs.len(), args.split.name()));
    Ok(())
}
