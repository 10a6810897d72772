//! Commands of the binary. Each file holds the arguments of a family of commands and their
//! implementation on top of the library.
//!
//! - [`args`]: processing of the command line before it is parsed: spellings, `config_file` (with
//!   `config_tree`) for `--config`, and `trl_flags`, the flags of TRL that mapl does not have under that name
//! - `device`: selection of a backend
//! - `invocation`: how this program was called, for printed commands
//! - `inputs`: rejects outputs that would destroy an input, for every command that writes
//! - `output`: checks of output files and folders, before any work
//! - `data`, `data_check`, `data_export`, `data_language`, `data_pairs`: the commands of `data`
//! - `generate`, `answers`: the command `generate`; `chat`: the command `chat`; `ends`: EOS tokens and stop
//!   texts of both commands
//! - `score`: `score`, and scoring for `eval`; `scored_reference`, `scored_loss`: the reference that scores
//!   are relative to, and the loss that defines them; `evaluate`: `eval`, `compare`; `evaluate_labelled`:
//!   `eval` on rows with a label; `ifeval`: `ifeval`
//! - `train_args`, `cadence`, `step_count`, `train`, `train_inputs`, `fingerprint`, `startup`, `manifest`,
//!   `config_record`: the commands `sft`, `reward`, `dpo` and `kto`; `train_models`: their models; `lora`:
//!   flags of adapters; `train_ranks`, `same_start`: training on several ranks; `reward_pad`: the pad token of
//!   a reward model; `train_ifeval`: instruction following of the policy in evaluations
//! - `model_folder`: adapters and their bases
//! - `export`: whole models from adapters; `save_dtype`: the type of written weights
//! - [`method_options`]: options that only some training methods support
//! - `template`: the tokenizer with `--chat-template-kwargs`
//! - `report`: HTML report of runs; `watch`: live view of a run in the terminal
//! - `reference`: flags of precomputed reference log-probs and their cache folder
//! - `run_lock`: lock of an output folder
//! - `study`: training runs under observation; `sweep`: the same over a grid of flags
//! - `bench`: op benchmarks; `plan`: predicted lower bound of the time of a training step
//! - `make`: `tokenizer`, `init`
//! - `quickstart`: the complete pipeline on an artificial language
//! - `env`: capabilities of this machine and this build; `manual`: completions and man pages

mod answers;
pub mod args;
mod bench;
mod cadence;
mod chat;
mod config_file;
mod config_record;
mod config_tree;
mod data;
mod data_check;
mod data_export;
mod data_language;
mod data_pairs;
mod device;
mod ends;
mod env;
mod evaluate;
mod evaluate_labelled;
mod export;
mod fingerprint;
mod generate;
mod ifeval;
mod inputs;
mod invocation;
mod lora;
mod make;
mod manifest;
mod manual;
mod meeting;
pub mod method_options;
mod model_folder;
mod output;
mod plan;
mod quickstart;
mod reference;
mod report;
mod reward_pad;
mod run_lock;
mod same_start;
mod save_dtype;
mod score;
mod scored_loss;
mod scored_reference;
mod startup;
mod step_count;
mod study;
mod sweep;
mod template;
mod train;
mod train_args;
mod train_ifeval;
mod train_inputs;
mod train_models;
mod train_ranks;
mod trl_flags;
mod watch;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::data::source::expand;
use crate::files::is_dash;
use crate::loss::objective::Method;
use crate::ranks::world;
use crate::train::signals::Signals;
use crate::{Error, Result};

/// Note below the help of a training command.
const MORE_OPTIONS: &str = "-h lists the common options, --help lists all of them.";

/// Preference training of transformers with multi-level aware preference learning.
#[derive(Parser, Debug)]
#[command(name = "mapl", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Command of the binary.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make data and a small model, train reward and DPO runs with and without MAPL, evaluate, and
    /// report
    Quickstart(quickstart::QuickstartArgs),
    /// Train a byte-level BPE tokenizer
    Tokenizer(make::TokenizerArgs),
    /// Make a model with random weights
    Init(make::InitArgs),
    /// Build, show and check preference groups
    #[command(subcommand)]
    Data(data::DataCommand),
    /// Fine-tune a model on responses, as a start for preference training
    #[command(mut_args(|arg| method_options::listed(Method::Sft, arg)), after_help = MORE_OPTIONS)]
    Sft(train_args::TrainArgs),
    /// Train a reward model on comparisons
    #[command(mut_args(|arg| method_options::listed(Method::Reward, arg)), after_help = MORE_OPTIONS)]
    Reward(train_args::TrainArgs),
    /// Train a policy on comparisons by direct preference optimisation
    #[command(mut_args(|arg| method_options::listed(Method::Dpo, arg)), after_help = MORE_OPTIONS)]
    Dpo(train_args::TrainArgs),
    /// Train a policy on responses with a label, desirable or not, by Kahneman-Tversky optimisation
    #[command(mut_args(|arg| method_options::listed(Method::Kto, arg)), after_help = MORE_OPTIONS)]
    Kto(train_args::TrainArgs),
    /// Answer prompts with a language model, greedily or by sampling
    Generate(Box<generate::GenerateArgs>),
    /// Talk to a language model in the terminal, or over pipes
    Chat(Box<chat::ChatArgs>),
    /// Write log-probs or rewards of every sequence, and the logit of every comparison
    Score(score::ScoreArgs),
    /// Evaluate a model on held-out groups, or compare two models
    Eval(evaluate::EvalArgs),
    /// Compare two models on the same data, exactly as `eval --compare` does: paired bootstrap
    /// intervals, McNemar's test
    Compare(Box<evaluate::CompareArgs>),
    /// Check which instructions responses follow (IFEval), or compare two sets of responses
    Ifeval(ifeval::IfevalArgs),
    /// Write a whole model from an adapter and its base
    Export(export::ExportArgs),
    /// Write an HTML report of training runs: curves, rewards, data, warnings, configuration
    Report(report::ReportArgs),
    /// Watch a run's metrics in the terminal while it trains
    Watch(watch::WatchArgs),
    /// Observe a training run or a benchmark: time by op compared with ceilings, and hardware
    /// readings
    #[command(subcommand)]
    Study(study::StudyCommand),
    /// Verify and time every op, with ceilings measured in the same run, or predict the lower bound of a step's
    /// time on a GPU
    Bench(Box<bench::BenchArgs>),
    /// Show the capabilities of this machine and this build
    Env(env::EnvArgs),
    /// Print completions for a shell
    Completions(manual::CompletionsArgs),
    /// Print the man page, or write one per command
    Man(manual::ManArgs),
}

impl Command {
    /// Returns the arguments that list data files. Folders and glob patterns in them are expanded before the
    /// command runs.
    fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        match self {
            Command::Tokenizer(args) => args.data_files(),
            Command::Data(command) => command.data_files(),
            Command::Sft(args) | Command::Reward(args) | Command::Dpo(args) | Command::Kto(args) => args.data_files(),
            Command::Generate(args) => args.data_files(),
            Command::Score(args) => args.data_files(),
            Command::Eval(args) => args.data_files(),
            Command::Compare(args) => args.data_files(),
            Command::Ifeval(args) => args.data_files(),
            Command::Study(command) => command.data_files(),
            Command::Quickstart(_)
            | Command::Init(_)
            | Command::Chat(_)
            | Command::Export(_)
            | Command::Report(_)
            | Command::Watch(_)
            | Command::Bench(_)
            | Command::Env(_)
            | Command::Completions(_)
            | Command::Man(_) => Vec::new(),
        }
    }
}

impl Command {
    /// Stores the environment variables that a configuration file sets, so that they are recorded with the run.
    pub fn set_variables(&mut self, variables: &[(String, String)]) {
        match self {
            Command::Sft(args) | Command::Reward(args) | Command::Dpo(args) | Command::Kto(args) => {
                args.env = variables.to_vec();
            }
            Command::Study(command) => command.set_variables(variables),
            _ => {}
        }
    }

    /// Name of the command, and whether several ranks share its work.
    fn shares_work(&self) -> (&'static str, bool) {
        match self {
            Command::Sft(_) => ("sft", true),
            Command::Reward(_) => ("reward", true),
            Command::Dpo(_) => ("dpo", true),
            Command::Kto(_) => ("kto", true),
            Command::Env(_) => ("env", false),
            Command::Score(_) => ("score", true),
            Command::Eval(_) => ("eval", true),
            Command::Generate(_) => ("generate", true),
            Command::Compare(_) => ("compare", true),
            Command::Quickstart(_) => ("quickstart", false),
            Command::Tokenizer(_) => ("tokenizer", false),
            Command::Init(_) => ("init", false),
            Command::Data(_) => ("data", false),
            Command::Chat(_) => ("chat", false),
            Command::Ifeval(_) => ("ifeval", false),
            Command::Export(_) => ("export", false),
            Command::Report(_) => ("report", false),
            Command::Watch(_) => ("watch", false),
            Command::Study(_) => ("study", false),
            Command::Bench(_) => ("bench", false),
            Command::Completions(_) => ("completions", false),
            Command::Man(_) => ("man", false),
        }
    }

    /// Whether only errors, warnings and the result are printed.
    pub fn is_quiet(&self) -> bool {
        match self {
            Command::Sft(args) | Command::Reward(args) | Command::Dpo(args) | Command::Kto(args) => args.quiet,
            Command::Study(command) => command.is_quiet(),
            _ => false,
        }
    }
}

/// Maximum number of worker threads, unless the machine has more cores. Results do not depend on this number.
const MAX_THREADS: usize = 1024;

/// Bytes of address space of a thread's stack.
#[cfg(target_os = "linux")]
const STACK: u64 = 2 << 20;

/// Starts Rayon's thread pool. It would otherwise start at its first use, where a failure would panic.
fn start_threads() -> Result<()> {
    use std::error::Error as _;
    let mut pool = rayon::ThreadPoolBuilder::new();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|value| value.parse::<usize>().ok());
    let most = MAX_THREADS.max(cores);
    if let Some(asked) = asked.filter(|&asked| asked > most) {
        output::warn([format!("RAYON_NUM_THREADS is {asked}; {most} threads are started, the most that are allowed")]);
        pool = pool.num_threads(most);
    }
    // Without this check, a thread that has just started may run out of address space, which ends the process
    // with an error about memory.
    #[cfg(target_os = "linux")]
    {
        let threads = asked.filter(|&asked| asked > 0).unwrap_or(cores).min(most) as u64;
        let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
        if let Some(limit) = limit.filter(|&limit| threads * STACK > limit) {
            let [stacks, limit] = [threads * STACK, limit].map(|bytes| bytes >> 20);
            return Err(no_threads(&format!(
                "{threads} stacks of 2 MiB need {stacks} MiB, and {limit} MiB are allowed"
            )));
        }
    }
    match pool.build_global() {
        // Only a failed start has a source error. Without one, the pool already exists.
        Err(e) if e.source().is_some() => Err(no_threads(&e.to_string())),
        _ => Ok(()),
    }
}

/// The error of a start of the worker threads that failed.
fn no_threads(why: &str) -> Error {
    Error::Runtime(format!(
        "cannot start the worker threads: {why}; a limit on threads or memory was reached (`ulimit -u`, `ulimit -v`, \
         or the limit of the container); raise it, or lower the environment variable RAYON_NUM_THREADS"
    ))
}

/// Prints the message of an outcome and returns the exit code. An error of one rank ends all ranks.
pub fn finished(outcome: Result<()>) -> i32 {
    world::finish(outcome)
}

/// Must be called before a usage error is printed. It delays all ranks but rank 0, so that rank 0 prints an
/// error that several ranks have.
pub fn usage_error() {
    world::let_first_speak();
}

/// Runs a command.
pub fn run(cli: Cli, command_line: &str) -> Result<()> {
    match &cli.command {
        Command::Env(_) => world::follow_launcher(),
        command => command.join()?,
    }
    if !matches!(cli.command, Command::Watch(_)) {
        start_threads()?;
        // Until a training loop defers them, stop signals end the process at once, and its temporary
        // files are removed.
        Signals::listen()?;
    }
    let mut cli = cli;
    for files in cli.command.data_files() {
        *files = expand(files)?;
        if world::is_shared() && files.iter().any(|file| is_dash(file)) {
            return Err(Error::Usage(
                "standard input reaches rank 0 only; with several ranks name a file that all of them can read".into(),
            ));
        }
    }
    match cli.command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Tokenizer(args) => make::tokenizer(&args),
        Command::Init(args) => make::init(&args),
        Command::Data(command) => data::run(command),
        Command::Sft(args) => train::run(Method::Sft, &args, command_line).map(|_| ()),
        Command::Reward(args) => train::run(Method::Reward, &args, command_line).map(|_| ()),
        Command::Dpo(args) => train::run(Method::Dpo, &args, command_line).map(|_| ()),
        Command::Kto(args) => train::run(Method::Kto, &args, command_line).map(|_| ()),
        Command::Generate(args) => generate::generate(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Score(args) => score::score(&args),
        Command::Eval(args) => evaluate::eval(&args),
        Command::Compare(args) => evaluate::compare_models(&args),
        Command::Ifeval(args) => ifeval::run(&args),
        Command::Export(args) => export::export(&args),
        Command::Report(args) => report::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Study(command) => study::run(&command, command_line),
        Command::Bench(args) => bench::run(&args),
        Command::Env(args) => env::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::error::ErrorKind;
    use clap::{Arg, ArgAction, Args as _, CommandFactory as _};

    use super::*;

    /// Returns the arguments that give a flag a valid value.
    fn given(arg: &Arg) -> Vec<String> {
        let long = format!("--{}", arg.get_long().unwrap());
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            return vec![long];
        }
        let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
        let possible = arg.get_possible_values().first().map(|value| value.get_name().to_owned());
        let other = match long.as_str() {
            "--model" => "tiny",
            "--ladder" => "product",
            "--link" | "--network" => "1GB/s",
            "--memory" => "1GB",
            _ => "1",
        };
        let value = default.or(possible).unwrap_or_else(|| other.into());
        vec![long, value]
    }

    fn refused(words: &[&str], arg: &Arg) -> Option<ErrorKind> {
        let words = words.iter().map(ToString::to_string).chain(given(arg));
        Cli::try_parse_from(words).err().map(|e| e.kind())
    }

    /// Every flag of `mapl bench` applies to some of the modes timing, `--list` and `--plan`, and is an error
    /// in a mode that would ignore it.
    #[test]
    fn bench_refuses_every_flag_of_another_mode() {
        let all = Cli::command();
        let bench = all.find_subcommand("bench").unwrap();
        let plan = plan::StepPlanArgs::augment_args(clap::Command::new("plan"));
        let planned: BTreeSet<&str> = plan.get_arguments().filter_map(Arg::get_long).collect();
        let listed = ["device", "dtype", "op", "model", "tokens", "shape"];
        let mut count = 0;
        for arg in bench.get_arguments().filter(|arg| arg.get_long().is_some()) {
            let long = arg.get_long().unwrap();
            count += 1;
            match long {
                "plan" | "list" => assert_eq!(refused(&["mapl", "bench"], arg), None),
                _ if planned.contains(long) => {
                    assert_eq!(refused(&["mapl", "bench"], arg), Some(ErrorKind::MissingRequiredArgument), "{long}");
                    let alone = refused(&["mapl", "bench", "--plan"], arg);
                    let with_others = ["processors", "memory", "link", "network", "hosts"].contains(&long);
                    assert!(alone.is_none() || with_others, "{long}: {alone:?}");
                    // A flag of `--plan` without `--plan` is an error next to other flags too. A
                    // `conflicts_with` between them would make clap skip the check of `requires`.
                    for other in [&["--list"][..], &["--model", "tiny"], &["--tokens", "64"]] {
                        assert!(refused(&[&["mapl", "bench"], other].concat(), arg).is_some(), "{other:?} {long}");
                    }
                }
                _ => {
                    assert!(refused(&["mapl", "bench", "--plan"], arg).is_some(), "--plan --{long}");
                    let with_list = refused(&["mapl", "bench", "--list"], arg);
                    assert_eq!(with_list.is_none(), listed.contains(&long), "--list --{long}: {with_list:?}");
                    let needed =
                        ["threshold", "fail-if-slower", "gpu", "ncu", "ncu-csv", "tune-output"].contains(&long);
                    assert_eq!(refused(&["mapl", "bench"], arg).is_some(), needed, "{long}");
                }
            }
        }
        assert!(count > 25, "{count}");
        assert!(Cli::try_parse_from(["mapl", "bench", "--plan", "--list"]).is_err());
    }

    #[test]
    fn watch_and_check_refuse_flags_of_another_mode() {
        let refuses = |words: &str| Cli::try_parse_from(words.split(' ')).is_err();
        for words in [
            "mapl watch run --once --interval 100",
            "mapl watch run --interval 100 --page loss",
            "mapl watch run --page loss",
            "mapl watch run --width 80",
            "mapl watch run --height 20",
            "mapl data check a.jsonl --max-length 10",
            "mapl data check a.jsonl --chat-template-path t",
        ] {
            assert!(refuses(words), "{words}");
        }
        assert!(!refuses("mapl watch run --once --page loss") && !refuses("mapl watch run --interval 100"));
    }
}
