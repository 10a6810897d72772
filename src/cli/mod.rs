//! The commands of the binary. Each file holds one family: arguments, and what the command does with the library.
//!
//! - [`args`]: flag spellings, and flags of TRL that mapl does not have
//! - [`device`]: the choice of a backend, made once
//! - [`output`]: what may be written where, checked before any work
//! - [`data`], [`data_check`]: `data build`, `data show`, `data check`
//! - [`score`]: `score`, and loading and scoring for it and `eval`; [`evaluate`]: `eval`, `compare`
//! - [`train_args`], [`cadence`], [`train`], [`fingerprint`], [`startup`], [`manifest`]: `sft`, `reward`, `dpo`
//! - [`mod@report`]: the page about runs; [`mod@watch`]: a run in the terminal
//! - [`mod@reference`]: flags of precomputed reference log-probs, and where their cache lies
//! - [`run_lock`]: one run at a time in an output folder
//! - [`mod@study`]: training runs under observation; [`sweep`]: over a grid of flags
//! - [`mod@bench`]: ops timed beside ceilings; [`plan`]: floors of a step
//! - [`make`]: `tokenizer`, `init`
//! - [`quickstart`]: the whole program on a language of its own
//! - [`mod@env`]: what this machine and this build can do

pub mod args;
mod bench;
mod cadence;
mod data;
mod data_check;
mod device;
mod env;
mod evaluate;
mod fingerprint;
mod make;
mod manifest;
mod output;
mod plan;
mod quickstart;
mod reference;
mod report;
mod run_lock;
mod score;
mod startup;
mod study;
mod sweep;
mod train;
mod train_args;
mod watch;

use clap::{Parser, Subcommand};

use crate::Result;
use crate::loss::objective::Method;

/// Preference training of transformers with multi-level aware preference learning.
#[derive(Parser, Debug)]
#[command(name = "mapl", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make data and a small model, train reward and DPO runs with and without MAPL, evaluate, and report
    Quickstart(quickstart::QuickstartArgs),
    /// Train a byte-level BPE tokenizer
    Tokenizer(make::TokenizerArgs),
    /// Make a model with random weights
    Init(make::InitArgs),
    /// Build and look at preference groups
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Fine-tune a model on responses, to start preference training from
    Sft(train_args::TrainArgs),
    /// Train a reward model on comparisons
    Reward(train_args::TrainArgs),
    /// Train a policy on comparisons by direct preference optimisation
    Dpo(train_args::TrainArgs),
    /// Write log-probs or rewards of every sequence, and the logit of every comparison
    Score(score::ScoreArgs),
    /// Measure a model on held-out groups, or compare two
    Eval(evaluate::EvalArgs),
    /// Compare two models on the same data: paired intervals by bootstrap, McNemar's test
    Compare(Box<evaluate::CompareArgs>),
    /// Write one HTML page about training runs: curves, rewards, data, warnings, configuration
    Report(report::ReportArgs),
    /// Watch a run's numbers in the terminal while it trains
    Watch(watch::WatchArgs),
    /// Observe a training run: time by op under ceilings, and what the hardware does meanwhile
    #[command(subcommand)]
    Study(study::StudyCommand),
    /// Time every op, verified first, beside ceilings of the same run; or plan a step on a card that is not here
    Bench(Box<bench::BenchArgs>),
    /// Show what this machine and this build can do
    Env(env::EnvArgs),
}

/// Runs a command.
pub fn run(cli: Cli, command_line: &str) -> Result<()> {
    match cli.command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Tokenizer(args) => make::tokenizer(&args),
        Command::Init(args) => make::init(&args),
        Command::Data(command) => data::run(command),
        Command::Sft(args) => train::run(Method::Sft, &args, command_line).map(|_| ()),
        Command::Reward(args) => train::run(Method::Reward, &args, command_line).map(|_| ()),
        Command::Dpo(args) => train::run(Method::Dpo, &args, command_line).map(|_| ()),
        Command::Score(args) => score::score(&args),
        Command::Eval(args) => evaluate::eval(&args),
        Command::Compare(args) => evaluate::compare_models(&args),
        Command::Report(args) => report::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Study(command) => study::run(&command, command_line),
        Command::Bench(args) => bench::run(&args),
        Command::Env(args) => env::run(&args),
    }
}
