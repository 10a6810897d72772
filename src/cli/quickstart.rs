//! `mapl quickstart`: the complete pipeline on an artificial language, from text to compared
//! models, with nothing but this binary. Every stage is a printed command of this program, so it
//! can be repeated by hand.

mod language;
mod process;
mod side_by_side;
mod stages;
mod trained;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, Parser as _};
use serde_json::Value;

use super::device::DeviceArgs;
use super::inputs::Inputs;
use super::invocation::program;
use super::{Cli, Command, args, evaluate};
use crate::eval::Evaluation;
use crate::files::{write_json, write_text};
use crate::loss::objective::Method;
use crate::report::run::log::RunLog;
use crate::report::summary::{Count, Fact, NamedText, QuickstartSummary, RunSummary};
use crate::report::{quickstart_report, quickstart_table};
use crate::statistics::MAX_T_VALUES;
use crate::terminal::say;
use crate::train::manifest;
use crate::train::metrics::KindTally;
use crate::train::signals::Signals;
use crate::{COMMIT, Error, Result};
use process::Process;
use side_by_side::run_all;
use stages::{EQUAL, SFT, STARTED, Stage};
use trained::Trained;

/// Arguments of `quickstart`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "On a CPU on which bf16 is faster, the stages compute in bf16 unless --dtype names another precision."
)]
pub struct QuickstartArgs {
    /// Folder for data, models, metrics and the report; a folder written by an earlier quick start
    /// is replaced
    #[arg(long, default_value = "quickstart")]
    output_dir: PathBuf,
    /// Factor on the number of steps; below 1 also on the number of pairs. Below 1 shows the pipeline,
    /// not its results
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Seed of the language, groups, weights and order
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Number of seeds, from --seed upwards; several give means with a 95 % interval over seeds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=MAX_T_VALUES as u64))]
    seeds: u64,
    /// Methods with one more base run, which trains on as many tokens as the MAPL run: a comparison
    /// at equal compute. It takes about as long as the MAPL run
    #[arg(long, value_enum, default_value = "dpo")]
    equal_compute: EqualCompute,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Methods that are also compared at equal compute.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum EqualCompute {
    None,
    Dpo,
    All,
}

impl EqualCompute {
    fn includes(self, method: Method) -> bool {
        self == Self::All || (self == Self::Dpo && method == Method::Dpo)
    }
}

/// Vocabulary size; nearly every word of the language and of the instructions is one token.
const VOCAB_SIZE: usize = 1024;
/// Number of training and held-out pairs, at scale 1 and at least.
const TRAIN_ROWS: [usize; 2] = [12_000, 300];
const TEST_ROWS: [usize; 2] = [400, 40];
/// Instruction functions that are feasible in both directions on the language's responses.
/// `forbidden_words` is left out: with it a shared word can speak for or against a response, and a
/// model of this size learns that more slowly. In one trial, intra accuracy reached 0.84 after 3000
/// updates with it and after 2500 without it.
const FUNCTIONS: &str = "number_words,number_sentences,existence,keywords:frequency,end_checker";
/// Runs that train at the same time on a CPU: a step of so small a model is too short for all cores.
const MOST_LANES: usize = 2;
/// File that marks a folder as written by a quick start.
const MARK: &str = ".quickstart";

/// Builds the arguments of a command as strings.
macro_rules! words {
    ($($word:expr),* $(,)?) => { vec![$($word.to_string()),*] };
}
use words;

/// Runs every stage and writes `summary.json` and `report.html`.
pub fn run(arguments: &QuickstartArgs) -> Result<()> {
    if !(arguments.scale.is_finite() && arguments.scale > 0.0) {
        return Err(Error::Usage(format!("--scale {}: a finite number above 0 is needed", arguments.scale)));
    }
    let began = Instant::now();
    if arguments.seed.checked_add(arguments.seeds).is_none() {
        return Err(Error::Usage(format!("--seed {}: too large for --seeds {}", arguments.seed, arguments.seeds)));
    }
    let on_cpu = arguments.device.is_cpu();
    let mut quick = Quickstart {
        arguments,
        device: if on_cpu { arguments.device.fastest_on_cpu() } else { arguments.device },
        lanes: if on_cpu { rayon::current_num_threads().min(MOST_LANES) } else { 1 },
        seed: arguments.seed,
        folder: arguments.output_dir.clone(),
        program: program(),
        summary: QuickstartSummary::default(),
    };
    quick.prepare()?;
    for seed in arguments.seed..arguments.seed + arguments.seeds {
        quick.one_seed(seed)?;
    }
    quick.folder = arguments.output_dir.clone();
    quick.summary.seconds = began.elapsed().as_secs_f64();
    quick.finish()
}

struct Quickstart<'a> {
    arguments: &'a QuickstartArgs,
    /// Device and precision of all stages.
    device: DeviceArgs,
    /// Number of runs that train at the same time.
    lanes: usize,
    /// Current seed, and its folder: the output folder for the first seed.
    seed: u64,
    folder: PathBuf,
    /// How this program is called in a shell.
    program: String,
    summary: QuickstartSummary,
}

impl Quickstart<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn steps(&self, stage: &Stage) -> u64 {
        ((stage.steps as f64 * self.arguments.scale).round() as u64).max(2)
    }

    /// Number of pairs of a split. A run of few steps reads few of them.
    fn rows(&self, [whole, least]: [usize; 2]) -> usize {
        ((whole as f64 * self.arguments.scale.min(1.0)).round() as usize).max(least)
    }

    fn is_first_seed(&self) -> bool {
        self.seed == self.arguments.seed
    }

    /// Trains and evaluates every run with a seed.
    fn one_seed(&mut self, seed: u64) -> Result<()> {
        self.seed = seed;
        if !self.is_first_seed() {
            self.folder = self.arguments.output_dir.join(seed_folder(seed));
            std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
            // A quick start with this seed does the same in a folder of its own.
            let caption = format!("The same with seed {seed}, in {}", self.folder.display());
            let mut words = words!["quickstart", "--seed", seed, "--output-dir", self.folder.display()];
            words.extend(words!["--scale", self.arguments.scale]);
            let equal = clap::ValueEnum::to_possible_value(&self.arguments.equal_compute);
            words.extend(equal.iter().flat_map(|value| words!["--equal-compute", value.get_name()]));
            words.extend(self.device.flags());
            let words: Vec<std::ffi::OsString> =
                std::iter::once("mapl".into()).chain(words.iter().map(Into::into)).collect();
            self.summary.commands.push(NamedText { caption: caption.clone(), text: args::shown(&words) });
            say(&format!("\n{caption}"));
        }
        self.language()?;
        let test = self.path("test-mapl.jsonl");
        for (stage, trained) in self.train_all(&test)? {
            let begun = Instant::now();
            let evaluation = self.evaluate(&stage, &test)?;
            self.record(&stage, trained, &evaluation, begun.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Trains the start model and then all runs; returns the runs in the order of the table.
    fn train_all(&mut self, test: &Path) -> Result<Vec<(Stage, Trained)>> {
        let signals = Signals::listen()?;
        // The processes of the runs save their state first.
        let deferred = signals.defer(|_| ());
        let mut trained = self.train(&SFT, self.steps(&SFT), (None, None), || signals.stop().is_some())?;
        self.remember(&mut trained);
        let equal = |method| self.arguments.equal_compute.includes(method);
        let jobs: Vec<Stage> =
            STARTED.iter().chain(EQUAL.iter().filter(|stage| equal(stage.method))).copied().collect();
        let place = |name: &str| jobs.iter().position(|stage| stage.name == name);
        let after: Vec<Vec<usize>> =
            jobs.iter().map(|stage| stage.as_long_as.iter().filter_map(|name| place(name)).collect()).collect();
        let threads = (self.lanes > 1).then(|| (rayon::current_num_threads() / self.lanes).max(1));
        let results = run_all(&after, self.lanes, |job, before: Vec<Arc<Trained>>, has_failed| {
            let stage = &jobs[job];
            let steps = match &before[..] {
                [mapl, base] => equal_steps(mapl.steps, mapl.tokens, base.tokens),
                _ => self.steps(stage),
            };
            self.train(stage, steps, (Some(test), threads), || has_failed() || signals.stop().is_some()).map(Arc::new)
        })?;
        drop(deferred);
        let mut runs: Vec<(Stage, Trained)> =
            jobs.into_iter().zip(results.into_iter().map(Arc::unwrap_or_clone)).collect();
        runs.sort_by_key(|(stage, _)| stage.row());
        runs.iter_mut().for_each(|(_, trained)| self.remember(trained));
        Ok(runs)
    }

    /// Adds the command of a run to the page.
    fn remember(&mut self, trained: &mut Trained) {
        if self.is_first_seed() {
            self.summary.commands.push(std::mem::take(&mut trained.command));
        }
    }

    /// Creates an empty folder. A folder that no quick start has written is not touched.
    fn prepare(&self) -> Result<()> {
        let dir = &self.arguments.output_dir;
        if dir.exists() && dir.read_dir().map_err(Error::io("list", dir))?.next().is_some() {
            if !dir.join(MARK).exists() {
                return Err(Error::Usage(format!(
                    "--output-dir {} is not empty and was not written by a quick start; name another folder",
                    dir.display()
                )));
            }
            // A quick start reads no files but its own program; its folder is removed as a whole.
            Inputs::default()
                .with("this program", std::env::current_exe())
                .with("the current folder", std::env::current_dir())
                .spare(("--output-dir", dir), std::slice::from_ref(dir))?;
            std::fs::remove_dir_all(dir).map_err(Error::io("replace", dir))?;
        }
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        write_text(&dir.join(MARK), "")
    }

    /// Parses a command line of this program and records it for the report.
    fn command(&mut self, caption: &str, words: &[String]) -> Result<Command> {
        let all: Vec<std::ffi::OsString> = std::iter::once("mapl".into()).chain(words.iter().map(Into::into)).collect();
        let text = self.typed(words);
        say(&format!("\n$ {text}"));
        if self.is_first_seed() {
            self.summary.commands.push(NamedText { caption: caption.into(), text });
        }
        let cli = Cli::try_parse_from(&all).map_err(|e| Error::Runtime(format!("quick start command: {e}")))?;
        Ok(cli.command)
    }

    /// A command line of this program as a user types it.
    fn typed(&self, words: &[String]) -> String {
        let words: Vec<String> = words.iter().map(|word| args::quoted(word.as_ref())).collect();
        format!("{} {}", self.program, words.join(" "))
    }

    /// Trains one stage in a process of its own, with `threads` if other stages run at the same time.
    fn train(
        &self,
        stage: &Stage,
        steps: u64,
        (test, threads): (Option<&Path>, Option<usize>),
        is_stopped: impl Fn() -> bool,
    ) -> Result<Trained> {
        // An evaluation of a short run takes longer than its steps.
        let cadence = (steps / 4).max(5).min(steps);
        let mut words = words![
            stage.method.name(),
            "--model",
            self.shown(stage.start),
            "--train-file",
            self.shown(if stage.is_mapl() { "train-mapl.jsonl" } else { "train.jsonl" }),
            "--output-dir",
            self.shown(stage.name),
            "--max-steps",
            steps,
            "--logging-steps",
            cadence,
            "--lr-scheduler-type",
            "linear",
            "--save-strategy",
            "no",
            "--seed",
            self.seed,
        ];
        words.extend(stage.flags.iter().map(ToString::to_string));
        if stage.method != Method::Sft {
            words.extend(words!["--objective", if stage.is_mapl() { "rows" } else { "base" }]);
        }
        if let Some(test) = test {
            words.extend(words!["--eval-file", test.display(), "--eval-steps", cadence]);
        }
        words.extend(self.device.flags());
        let text = self.typed(&words);
        say(&format!("\n$ {text}"));
        let begun = Instant::now();
        Process { name: stage.name, words: &words, threads }.run(&is_stopped)?;
        let log = RunLog::read(&self.path(stage.name))?;
        // A stop signal while the stage wrote its final model stops the quick start, not the stage.
        if let Some(signal) = Signals::listen()?.stop() {
            return Err(Error::Ended(128 + signal));
        }
        let command = NamedText { caption: format!("Train {}", stage.name), text };
        Ok(Trained::new(command, &log, begun.elapsed().as_secs_f64()))
    }

    /// Evaluates a trained stage on held-out groups.
    fn evaluate(&mut self, stage: &Stage, test: &Path) -> Result<Evaluation> {
        let output = self.shown(&format!("{}-eval.json", stage.name));
        let mut words =
            words!["eval", "--model", self.shown(stage.name), "--input", test.display(), "--output", output];
        if stage.method == Method::Dpo {
            words.extend(words!["--ref-model", self.shown(stage.start)]);
        }
        words.extend(self.device.flags());
        match self.command(&format!("Evaluate {}", stage.name), &words)? {
            Command::Eval(args) => {
                let (text, evaluation) = evaluate::measure(&args)?;
                say(&text);
                Ok(evaluation)
            }
            _ => Err(Error::Runtime(format!("quick start stage {} is not evaluated", stage.name))),
        }
    }

    fn record(&mut self, stage: &Stage, trained: Trained, evaluation: &Evaluation, seconds: f64) {
        let [semantic, intra, inter] = evaluation.tallies().map(count);
        self.summary.runs.push(RunSummary {
            name: stage.name.into(),
            semantic,
            intra,
            inter,
            steps: trained.steps,
            tokens: trained.tokens,
            seconds: trained.seconds + seconds,
            seed: self.seed,
            folder: match self.is_first_seed() {
                true => stage.name.into(),
                false => format!("{}/{}", seed_folder(self.seed), stage.name),
            },
            loss: trained.loss,
            accuracy: trained.accuracy,
        });
    }

    /// `run.json` of a stage.
    fn manifest(&self, stage: &Stage) -> Result<Value> {
        let path = self.path(stage.name).join(manifest::FILE);
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        serde_json::from_slice(&text).map_err(|e| Error::Runtime(format!("{} is not JSON: {e}", path.display())))
    }

    /// Commands to repeat with other data. They run as printed, from the current folder.
    fn next_commands(&self) -> Vec<String> {
        let (pairs, groups) = (self.shown("train.jsonl"), self.shown("own-groups.jsonl"));
        let train = |method: &str| {
            let output = self.shown(&format!("own-{method}"));
            let model = self.shown(SFT.name);
            let words =
                [method, "--model", &model, "--train-file", &groups, "--output-dir", &output, "--max-steps", "50"];
            let mut words = words.map(str::to_owned).to_vec();
            words.extend(self.device.flags());
            self.typed(&words)
        };
        let build = self.typed(&["data", "build", "--input", &pairs, "--output", &groups].map(str::to_owned));
        vec![build, train("reward"), train("dpo")]
    }

    /// Writes summary and report, prints the table and the next commands.
    fn finish(mut self) -> Result<()> {
        let fact = |name: &str, value: String| Fact { name: name.into(), value };
        self.summary.environment = vec![
            fact("version", env!("CARGO_PKG_VERSION").into()),
            fact("commit", COMMIT.into()),
            fact("system", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            fact("threads", rayon::current_num_threads().to_string()),
            fact("runs at a time", self.lanes.to_string()),
            fact("device", device_of(&self.manifest(&SFT)?)),
        ];
        if self.arguments.scale < 1.0 {
            let warning = format!("--scale {}: too few steps and pairs to compare the runs", self.arguments.scale);
            self.summary.warnings.push(warning);
        }
        let own = self.next_commands();
        let caption = format!(
            "The same by hand; for your own pairs, replace {} by a file with one {{\"prompt\", \"chosen\", \"rejected\"}} \
             per line, and leave out --max-steps",
            self.shown("train.jsonl")
        );
        self.summary.commands.push(NamedText { caption: caption.clone(), text: own.join("\n") });
        let value = self.summary.to_json()?;
        write_json(&self.path("summary.json"), &value)?;
        write_text(&self.path("report.html"), &quickstart_report(&self.summary))?;
        say(&format!("\n{}", quickstart_table(&self.summary)));
        say(&format!(
            "{:.0} s in total with mapl {}, commit {COMMIT}; wrote {} and {}",
            self.summary.seconds,
            env!("CARGO_PKG_VERSION"),
            self.shown("summary.json"),
            self.shown("report.html")
        ));
        say(&format!("\n{caption}:\n  {}", own.join("\n  ")));
        Ok(())
    }
}

/// Device and precision of a run, from its manifest.
fn device_of(run: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    format!("{}, {}", text(&run["environment"]["device"]), text(&run["config"]["dtype"]))
}

fn count(tally: KindTally) -> Count {
    Count { correct: tally.correct as u64, ties: tally.ties as u64, total: tally.count as u64 }
}

/// Steps of a base run with as many tokens as a MAPL run of `steps` steps, given the tokens of a
/// base run of as many steps.
fn equal_steps(steps: u64, mapl_tokens: u64, base_tokens: u64) -> u64 {
    (steps as f64 * mapl_tokens as f64 / base_tokens.max(1) as f64).round() as u64
}

/// Folder of a seed after the first.
fn seed_folder(seed: u64) -> String {
    format!("seed-{seed}")
}
