//! The training loop. `stepping` begins and finishes steps; `saving` writes and restores checkpoints;
//! `divergence` ends a run whose values are not finite; `requests` collects the requests of signals and the
//! clock.
//! ```text
//! reserve memory for the largest batch
//! restore the checkpoint; or run the identity check (DPO) and evaluate the initial weights
//! while step < total:
//!     begin steps until 2 are in flight (1 on a synchronous device, or if ops are timed);
//!         stop early if an evaluation, checkpoint or signal needs the weights of the last one
//!     finish the oldest step: log it, compare memory with the plan, check for divergence
//!     if no step is in flight: evaluate, save, or stop on a signal, as due
//! load the best checkpoint if asked to; write the final model
//! ```

mod divergence;
mod requests;
mod saving;
mod stepping;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::batch::prefetch::Prefetch;
use super::best::BestModel;
use super::checkpoint::{self, Best};
use super::console::{Console, eval_line, step_line};
use super::evaluate::Evaluator;
use super::logs::{Logs, ReportTo};
use super::manifest::now;
use super::metrics::{Tally, number};
use super::signals::{Deferred, Signals};
use super::step::{StepReport, Trainer};
use crate::backend::{Backend, contract::Precision, cpu::Units};
use crate::data::loader::{Loader, LoaderOptions, Position};
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::model::config::StoredDtype;
use crate::model::decoder::Model;
use crate::optim::schedule::{Schedule, Scheduler, Shape};
use crate::perf::ceilings::Ceilings;
use crate::perf::observe::RunObserver;
use crate::perf::profile::Profile;
use crate::terminal::follows;
use crate::{Error, Result};

use saving::with_checkpoint_hint;

pub use super::memory::PlannedMemory;

/// Length, cadence and batch size of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    /// `--output-dir`.
    pub output_dir: PathBuf,
    /// Groups per micro-batch.
    pub micro_batch: usize,
    /// Micro-batches per update (gradient accumulation).
    pub accumulation: usize,
    /// Number of updates; overrides `epochs`.
    pub max_steps: Option<u64>,
    /// Passes over the data.
    pub epochs: f64,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Learning-rate schedule.
    pub scheduler: Scheduler,
    /// The schedule with its parameters.
    pub schedule: Shape,
    /// Updates of the warm-up.
    pub warmup_steps: u64,
    /// Seed of the data order; `None` keeps the file order.
    pub shuffle: Option<u64>,
    /// Updates between log lines.
    pub logging_steps: Option<u64>,
    /// Log after every epoch.
    pub logging_epochs: bool,
    /// Updates between evaluations; `u64::MAX` evaluates at the start and the end only, `None`
    /// never.
    pub eval_steps: Option<u64>,
    /// Evaluate after every epoch.
    pub eval_epochs: bool,
    /// Updates between checkpoints.
    pub save_steps: Option<u64>,
    /// Save after every epoch.
    pub save_epochs: bool,
    /// Minutes since the last checkpoint, or since the start, after which one is written.
    pub save_minutes: Option<u64>,
    /// Save after the last step too.
    pub save_at_end: bool,
    /// Maximum number of checkpoints that are kept.
    pub save_total_limit: Option<usize>,
    /// Checkpoints at multiples of this step are never pruned.
    pub keep_every: Option<u64>,
    /// Selection of the best checkpoint.
    pub best: Option<BestModel>,
    /// Consecutive skipped updates after which the run counts as diverged.
    pub max_skipped_steps: u64,
    /// Whether only warnings and the result are printed.
    pub quiet: bool,
    /// Data type of the final model's weights.
    pub save_dtype: StoredDtype,
    /// Logs in addition to the console.
    pub report_to: ReportTo,
    /// Collector of step and op times for a study.
    #[serde(skip)]
    pub observed: Option<RunObserver>,
}

impl RunSettings {
    /// Number of updates of a run over `groups` training groups.
    pub fn total_steps(&self, groups: usize) -> u64 {
        let per_epoch = groups.div_ceil(self.micro_batch * self.accumulation);
        self.max_steps.unwrap_or(((self.epochs * per_epoch as f64).ceil() as u64).max(1))
    }
}

/// Computes metrics of text that the policy generates at an evaluation, by name without the prefix `eval_`.
/// Returns `None` if a stop signal interrupted the generation.
pub type PolicyFigures<'a, B> = &'a dyn Fn(&B, &mut Model<B>) -> Result<Option<Map<String, Value>>>;

/// Data and starting point of a run.
pub struct RunData<'a, B: Backend> {
    /// Groups to train on.
    pub train: Vec<TokenizedGroup>,
    /// Groups to evaluate on.
    pub eval: Vec<TokenizedGroup>,
    /// Further metrics of every evaluation.
    pub figures: Option<PolicyFigures<'a, B>>,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Draws the training groups of a later epoch (`--redraw epoch`).
    pub redraw: Option<&'a dyn Fn(u64) -> Result<Vec<TokenizedGroup>>>,
    /// Whether policy and frozen reference were loaded from the same weights; if so, the identity
    /// check runs.
    pub same_weights: bool,
    /// Planned and initially free device memory; `None` if other programs share that memory.
    pub memory: Option<PlannedMemory>,
    /// Makes sure that the output folder still belongs to the run; returns a warning if the folder was
    /// recreated.
    pub keep_folder: Option<&'a dyn Fn() -> Result<Option<String>>>,
    /// Checkpoint to resume from.
    pub resume: Option<PathBuf>,
    /// Settings and inputs that a resumed run must not change; see [`checkpoint::RunState`].
    pub fingerprint: Vec<(String, String)>,
}

/// Results of a finished run.
#[derive(Clone, Debug, Default)]
pub struct RunSummary {
    /// Number of steps.
    pub steps: u64,
    /// Tokens that the policy has processed; shared prompt tokens count once.
    pub tokens: u64,
    /// Seconds of the run.
    pub seconds: f64,
    /// (step, loss) of every step.
    pub losses: Vec<(u64, f64)>,
    /// (step, tally) of every evaluation.
    pub evals: Vec<(u64, Tally)>,
}

/// Trains until the last step, a signal, or divergence. Writes the final model directly into `output_dir`.
pub fn train<B: Backend>(
    trainer: Trainer<'_, B>,
    mut data: RunData<'_, B>,
    settings: &RunSettings,
) -> Result<RunSummary> {
    let mut evaluator = trainer.evaluator()?;
    if data.train.is_empty() {
        return Err(Error::Usage(
            "no training group is left, so nothing can be trained; check --train-file and --max-length".into(),
        ));
    }
    let total = settings.total_steps(data.train.len());
    let signals = Signals::listen()?;
    evaluator.stop_on(signals.clone());
    if !follows() {
        checkpoint::clean(&settings.output_dir)?;
    }
    let resumed = data.resume.as_deref().map(|folder| checkpoint::read_state(folder).map(|s| (folder, s.step)));
    let metrics = Logs::open(&settings.output_dir, settings.report_to, resumed.transpose()?)?;
    let mut run = Run {
        schedule: Schedule {
            shape: settings.schedule,
            peak: settings.learning_rate,
            warmup_steps: settings.warmup_steps,
            total_steps: total,
        },
        loader: loader(settings, data.train.len(), Position::default())?,
        groups: Arc::new(std::mem::take(&mut data.train)),
        prefetch: Prefetch::start()?,
        packing: None,
        in_flight: VecDeque::new(),
        begun: 0,
        progress: Progress::default(),
        finished_at: Instant::now(),
        metrics,
        console: Console::new(total, 0, settings.quiet),
        signals,
        history: Vec::new(),
        summary: RunSummary::default(),
        drawn_epoch: 0,
        num_tokens: 0,
        step: 0,
        total,
        skipped_in_a_row: 0,
        odd_ranks: Vec::new(),
        evaluation_due: false,
        best: None,
        saved: None,
        saved_at: Instant::now(),
        seconds_before: 0.0,
        began: Instant::now(),
        profile: Profile::default(),
        trainer,
        evaluator,
        data,
        settings,
    };
    let output_dir = &settings.output_dir;
    run.reserve().and_then(|()| run.start()).map_err(|e| with_checkpoint_hint(output_dir, e))?;
    // Before this line, a signal may end the process at once, because no training would be lost.
    let deferred = run.defer_signals();
    run.steps().and_then(|()| run.finish(deferred)).map_err(|e| with_checkpoint_hint(output_dir, e))
}

/// Outcome of an evaluation.
#[derive(Debug, PartialEq)]
enum Evaluated {
    /// The evaluation is complete. Holds the sums over the evaluation groups, if there are any.
    Done(Option<Box<Tally>>),
    /// A stop signal interrupted the evaluation.
    Interrupted,
}

/// Position in the data after a batch.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    position: Position,
    epochs: f64,
    /// Number of groups in the batch.
    groups: usize,
}

impl Progress {
    fn of(loader: &Loader) -> Self {
        Self { position: loader.position(), epochs: loader.epochs(), groups: 0 }
    }
}

struct Run<'a, 'b, B: Backend> {
    trainer: Trainer<'b, B>,
    evaluator: Evaluator<B>,
    data: RunData<'a, B>,
    settings: &'a RunSettings,
    schedule: Schedule,
    /// Data loader, positioned after the last batch that was requested.
    loader: Loader,
    /// Training groups of the current draw.
    groups: Arc<Vec<TokenizedGroup>>,
    prefetch: Prefetch,
    /// Data position after the batch that is being packed.
    packing: Option<Progress>,
    /// Steps begun and not finished, oldest first.
    in_flight: VecDeque<stepping::StepInFlight<B>>,
    /// Number of steps begun.
    begun: u64,
    /// Data position after the last finished step.
    progress: Progress,
    /// Time at which the last step finished.
    finished_at: Instant,
    metrics: Logs,
    console: Console,
    signals: Signals,
    /// Logged events in the `log_history` format of transformers.
    history: Vec<Value>,
    summary: RunSummary,
    drawn_epoch: u64,
    num_tokens: u64,
    step: u64,
    total: u64,
    skipped_in_a_row: u64,
    /// Ranks whose loss or gradient was not finite at the last skipped update.
    odd_ranks: Vec<usize>,
    /// Whether a signal interrupted the evaluation of this step.
    evaluation_due: bool,
    /// Best evaluation that has a checkpoint.
    best: Option<Best>,
    /// Last checkpoint in the output folder, either written or resumed from.
    saved: Option<(u64, PathBuf)>,
    /// Time of the last checkpoint, or of the start.
    saved_at: Instant,
    seconds_before: f64,
    began: Instant,
    profile: Profile,
}

impl<B: Backend> Run<'_, '_, B> {
    /// Restores the checkpoint of a resumed run. A new run performs the identity check and evaluates the
    /// initial weights.
    fn start(&mut self) -> Result<()> {
        if let Some(folder) = self.data.resume.clone() {
            return self.restore(&folder);
        }
        if self.data.same_weights && self.trainer.loss.method.has_policy() {
            let first: Vec<&TokenizedGroup> = self.groups.iter().take(self.settings.micro_batch).collect();
            self.trainer.identity_check(&first)?;
            self.console.line("identity check passed: policy and reference give every sequence the same score");
        }
        if self.evaluates() { self.evaluate().map(|_| ()) } else { Ok(()) }
    }

    /// Reserves memory for the largest batch of the training groups, so that no step allocates.
    fn reserve(&mut self) -> Result<()> {
        let limits = self.trainer.limits(&self.groups, self.settings.micro_batch)?;
        self.trainer.reserve(&limits, self.settings.accumulation)
    }

    fn evaluates(&self) -> bool {
        self.settings.eval_steps.is_some() || self.settings.eval_epochs
    }

    /// Draws the training groups of `epoch` if groups are drawn per epoch.
    fn redraw(&mut self, epoch: u64) -> Result<()> {
        if let Some(redraw) = self.data.redraw
            && epoch != self.drawn_epoch
        {
            self.groups = Arc::new(redraw(epoch)?);
            self.drawn_epoch = epoch;
            self.reserve()?;
            if let Some(report) = self.trainer.complete_frozen_cache(&self.groups)? {
                self.console.line(&format!("frozen reference, epoch {epoch}: {report}"));
                report.warning().iter().for_each(|text| self.console.warn(text));
            }
        }
        Ok(())
    }

    /// Work after an update: evaluation and checkpoint if they are due, and the stop on a signal. A
    /// resumed run with an interrupted evaluation starts here.
    fn after_step(&mut self) -> Result<()> {
        let s = self.settings;
        let (last, epoch_ends) = (self.step == self.total, self.progress.position.offset == 0);
        let evaluate = self.due(self.step, epoch_ends, (s.eval_steps, s.eval_epochs)) || (last && self.evaluates());
        let evaluated = if evaluate { self.evaluate()? } else { Evaluated::Done(None) };
        let requests = self.requests()?;
        let due = self.due(self.step, epoch_ends, (s.save_steps, s.save_epochs)) || requests.overdue;
        // The final model is written after the last step, so a checkpoint of that step is optional.
        let save = if last { s.save_at_end } else { due };
        self.evaluation_due = evaluated == Evaluated::Interrupted;
        if save && let Evaluated::Done(Some(tally)) = evaluated {
            self.compare_with_best(&tally);
        }
        if save || requests.save {
            self.save()?;
        }
        if let Some(signal) = requests.stop {
            let path = self.save()?;
            self.console.finish();
            return Err(Error::Stopped { signal, step: self.step, path });
        }
        Ok(())
    }

    /// Whether an action that is due every `steps` steps, or after every epoch, is due after `step`.
    fn due(&self, step: u64, epoch_ends: bool, (steps, epochs): (Option<u64>, bool)) -> bool {
        steps.is_some_and(|n| step.is_multiple_of(n)) || (epochs && epoch_ends)
    }

    /// Compares the used memory with the plan, once, after the first step, when all buffers exist.
    pub(super) fn compare_memory(&mut self) -> Result<()> {
        let Some(PlannedMemory { planned_bytes, free_bytes }) = self.data.memory.take() else { return Ok(()) };
        let Some(free) = self.trainer.backend.memory_free() else { return Ok(()) };
        let taken = free_bytes.saturating_sub(free);
        self.settings.observed.iter().for_each(|observed| observed.taken(taken));
        self.console.line(&format!("memory used: {} MiB, planned: {} MiB", taken >> 20, planned_bytes >> 20));
        let event = json!({ "event": "memory", "planned_bytes": planned_bytes, "taken_bytes": taken, "time": now() });
        self.metrics.write("event", self.step, object(event))
    }

    /// Writes metrics of a step and, at the logging cadence, the step line.
    fn record(&mut self, report: &StepReport, learning_rate: f64, elapsed: Duration) -> Result<()> {
        let (loss, total) = (&self.trainer.loss, self.total);
        let mut values = Map::new();
        values.insert("time".into(), number(now()));
        values.insert("step_seconds".into(), number(elapsed.as_secs_f64()));
        values.insert("epoch".into(), number(self.progress.epochs));
        values.extend(report.tally.named(loss, ""));
        values.insert("learning_rate".into(), number(learning_rate));
        values.insert("grad_norm".into(), number(report.update.grad_norm));
        values.insert("num_tokens".into(), json!(self.num_tokens));
        values.insert("skipped_steps".into(), json!(report.update.skipped));
        self.metrics.write("train", self.step, values.clone())?;
        self.summary.losses.push((self.step, report.tally.loss(loss)));
        let s = self.settings;
        let epoch_ends = self.progress.position.offset == 0;
        // The first and the last update are logged too, unless logging is off.
        let edge = (self.step == 1 || self.step == total) && (s.logging_steps.is_some() || s.logging_epochs);
        if edge || self.due(self.step, epoch_ends, (s.logging_steps, s.logging_epochs)) {
            self.console.line(&step_line((self.step, total), report, loss, learning_rate, elapsed));
            self.metrics.scalars(self.step, &values)?;
            values.insert("step".into(), json!(self.step));
            self.history.push(Value::Object(values));
        }
        self.console.advance(self.step);
        Ok(())
    }

    /// Evaluates and logs.
    fn evaluate(&mut self) -> Result<Evaluated> {
        let scored = match self.data.eval.is_empty() {
            true => None,
            false => Some(self.trainer.evaluate(&mut self.evaluator, &self.data.eval)?),
        };
        if self.evaluator.interrupted() {
            return Ok(Evaluated::Interrupted);
        }
        let figures = match self.data.figures.map(|of| of(self.trainer.backend, &mut self.trainer.policy)) {
            None => Map::new(),
            Some(figures) => match figures? {
                Some(figures) => figures,
                None => return Ok(Evaluated::Interrupted),
            },
        };
        // Discards the op times of the evaluation, which are not part of a step.
        self.trainer.backend.op_times()?;
        if scored.is_none() && figures.is_empty() {
            return Ok(Evaluated::Done(None));
        }
        self.keep_folder()?;
        let (loss, tally) = (&self.trainer.loss, scored.as_ref().map(|(_, tally)| tally));
        let mut values = Map::new();
        values.insert("time".into(), number(now()));
        values.extend(tally.into_iter().flat_map(|tally| tally.named(loss, "eval_")));
        values.extend(figures.iter().map(|(name, value)| (format!("eval_{name}"), value.clone())));
        self.metrics.write("eval", self.step, values.clone())?;
        self.metrics.scalars(self.step, &values)?;
        self.console.line(&eval_line(self.step, tally.map(|tally| (tally, loss)), &figures));
        if let Some((scores, tally)) = &scored {
            self.metrics.eval_scores(self.step, loss, &self.data.eval, scores)?;
            self.summary.evals.push((self.step, tally.clone()));
        }
        values.insert("step".into(), json!(self.step));
        self.history.push(Value::Object(values));
        Ok(Evaluated::Done(scored.map(|(_, tally)| Box::new(tally))))
    }

    /// Prints and writes the times by op if ops were timed. A study writes a separate table.
    pub(super) fn report_profile(&self) -> Result<()> {
        if self.trainer.backend.probe().is_none() || self.settings.observed.is_some() {
            return Ok(());
        }
        let bf16 = (B::PRECISION == Precision::Bf16).then(Units::chosen).transpose()?;
        let Some(table) = self.profile.table(Ceilings::measure(bf16)) else {
            self.console
                .warn("--profile leaves out the first two steps, and this run has no others; raise --max-steps");
            return Ok(());
        };
        self.console.line(table.text().trim_end());
        let path = self.settings.output_dir.join("profile.json");
        crate::files::write_atomic(&path, crate::files::json_text(&json!(table)).as_bytes())
    }
}

/// Loader with one batch per update, positioned at `position`.
fn loader(settings: &RunSettings, groups: usize, position: Position) -> Result<Loader> {
    let options = LoaderOptions {
        batch_groups: settings.micro_batch * settings.accumulation,
        shuffle: settings.shuffle.is_some(),
        seed: settings.shuffle.unwrap_or(0),
        drop_last: false,
    };
    let mut loader = Loader::new(groups, options)?;
    loader.seek(position)?;
    Ok(loader)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
