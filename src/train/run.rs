//! The training loop: batches, steps, evaluation, checkpoints, and what stops a run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::checkpoint::{self, RunState};
use super::console::{Console, eval_line, step_line};
use super::evaluate::Evaluator;
use super::logs::{Logs, ReportTo};
use super::manifest::now;
use super::metrics::{Tally, number};
use super::signals::Signals;
use super::step::{StepReport, Trainer};
use crate::backend::contract::CONTROL;
use crate::backend::{Backend, View};
use crate::data::loader::{Loader, LoaderOptions, Position};
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::loss::objective::Method;
use crate::model::store;
use crate::optim::schedule::{Schedule, Scheduler};
use crate::{Error, Result};

/// Groups that a warning lists by id.
const NAMED_GROUPS: usize = 5;

/// Length, cadence and batch of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSettings {
    pub output_dir: PathBuf,
    /// Groups of one forward and backward.
    pub micro_batch: usize,
    /// Micro-batches of one update.
    pub accumulation: usize,
    /// Updates; wins over `epochs`.
    pub max_steps: Option<u64>,
    pub epochs: f64,
    pub learning_rate: f64,
    pub scheduler: Scheduler,
    pub warmup_steps: u64,
    /// Seed of the data order; `None` for file order.
    pub shuffle: Option<u64>,
    pub logging_steps: u64,
    pub eval_steps: Option<u64>,
    pub save_steps: Option<u64>,
    pub save_total_limit: Option<usize>,
    /// Skipped updates in a row after which the run counts as diverged.
    pub max_skipped_steps: u64,
    pub quiet: bool,
    /// Logs beside the console.
    pub report_to: ReportTo,
}

impl RunSettings {
    /// Updates of a run over `groups` training groups.
    pub fn total_steps(&self, groups: usize) -> u64 {
        let per_epoch = groups.div_ceil(self.micro_batch * self.accumulation);
        self.max_steps.unwrap_or(((self.epochs * per_epoch as f64).ceil() as u64).max(1))
    }
}

/// Groups of a run.
pub struct RunData<'a> {
    pub train: Vec<TokenizedGroup>,
    pub eval: Vec<TokenizedGroup>,
    pub tokenizer: &'a Tokenizer,
    /// Draws the training groups of a later epoch anew (`--redraw epoch`).
    pub redraw: Option<&'a dyn Fn(u64) -> Result<Vec<TokenizedGroup>>>,
    /// Policy and reference were loaded from the same weights: the identity check applies.
    pub same_start: bool,
    /// Where to continue, and what must not have changed since.
    pub resume: Option<PathBuf>,
    pub fingerprint: Vec<(String, String)>,
}

/// What a finished run hands back.
#[derive(Clone, Debug, Default)]
pub struct RunSummary {
    pub steps: u64,
    pub seconds: f64,
    /// (step, loss) of every step.
    pub losses: Vec<(u64, f64)>,
    /// (step, tally) of every evaluation.
    pub evals: Vec<(u64, Tally)>,
}

/// Trains until the last step, a signal, or divergence. The final model lies in `output_dir` itself.
pub fn train<B: Backend>(trainer: Trainer<'_, B>, data: RunData<'_>, settings: &RunSettings) -> Result<RunSummary> {
    let evaluator = trainer.evaluator()?;
    if data.train.is_empty() {
        return Err(Error::Usage("no training group is left; nothing can be trained".into()));
    }
    let total = settings.total_steps(data.train.len());
    let mut run = Run {
        schedule: Schedule {
            scheduler: settings.scheduler,
            peak: settings.learning_rate,
            warmup_steps: settings.warmup_steps,
            total_steps: total,
        },
        loader: loader(settings, data.train.len(), Position::default())?,
        metrics: Logs::open(&settings.output_dir, settings.report_to, resumed_step(&data)?)?,
        console: Console::new(total, 0, settings.quiet),
        signals: Signals::listen()?,
        history: Vec::new(),
        summary: RunSummary::default(),
        drawn_epoch: 0,
        num_tokens: 0,
        step: 0,
        skipped_in_a_row: 0,
        seconds_before: 0.0,
        began: Instant::now(),
        trainer,
        evaluator,
        data,
        settings,
    };
    run.start()?;
    run.steps(total)?;
    run.finish()
}

fn resumed_step(data: &RunData<'_>) -> Result<Option<u64>> {
    data.resume.as_deref().map(|folder| checkpoint::read_state(folder).map(|s| s.step)).transpose()
}

struct Run<'a, 'b, B: Backend> {
    trainer: Trainer<'b, B>,
    evaluator: Evaluator<B>,
    data: RunData<'a>,
    settings: &'a RunSettings,
    schedule: Schedule,
    loader: Loader,
    metrics: Logs,
    console: Console,
    signals: Signals,
    /// Logged events in Hugging Face's `log_history` form.
    history: Vec<Value>,
    summary: RunSummary,
    drawn_epoch: u64,
    num_tokens: u64,
    step: u64,
    skipped_in_a_row: u64,
    seconds_before: f64,
    began: Instant,
}

impl<B: Backend> Run<'_, '_, B> {
    /// Restores a checkpoint, or checks and evaluates the start.
    fn start(&mut self) -> Result<()> {
        if let Some(folder) = self.data.resume.clone() {
            return self.restore(&folder);
        }
        if self.data.same_start && self.trainer.loss.method == Method::Dpo {
            let first: Vec<&TokenizedGroup> = self.data.train.iter().take(self.settings.micro_batch).collect();
            self.trainer.identity_check(&first)?;
            self.console.line("identity check passed: policy and reference score every sequence alike");
        }
        if self.settings.eval_steps.is_some() { self.evaluate() } else { Ok(()) }
    }

    fn restore(&mut self, folder: &Path) -> Result<()> {
        let state = checkpoint::read_state(folder)?;
        state.check(folder, &self.data.fingerprint)?;
        checkpoint::restore(&mut self.trainer, folder, &state)?;
        self.redraw(state.position.epoch)?;
        self.loader = loader(self.settings, self.data.train.len(), state.position)?;
        self.history = checkpoint::read_history(folder)?;
        (self.step, self.num_tokens, self.seconds_before) = (state.step, state.num_tokens, state.seconds);
        self.console.line(&format!("resumed after step {} from {}", state.step, folder.display()));
        let event = json!({ "event": "resumed", "time": now() });
        self.metrics.write("event", state.step, object(event))
    }

    /// Replaces the training groups by those of `epoch` where they are drawn anew.
    fn redraw(&mut self, epoch: u64) -> Result<()> {
        if let Some(redraw) = self.data.redraw
            && epoch != self.drawn_epoch
        {
            self.data.train = redraw(epoch)?;
            self.drawn_epoch = epoch;
        }
        Ok(())
    }

    fn steps(&mut self, total: u64) -> Result<()> {
        while self.step < total {
            let began = Instant::now();
            let indices = self.next_batch()?;
            let learning_rate = self.schedule.rate(self.step);
            let groups: Vec<&TokenizedGroup> = indices.iter().map(|&i| &self.data.train[i]).collect();
            let micro_batches: Vec<Vec<&TokenizedGroup>> =
                groups.chunks(self.settings.micro_batch).map(<[_]>::to_vec).collect();
            let report = self.trainer.step(&micro_batches, learning_rate)?;
            self.step += 1;
            self.num_tokens += report.tally.tokens as u64;
            self.record(&report, learning_rate, total, began.elapsed())?;
            self.guard(&report)?;
            let every = |n: Option<u64>| n.is_some_and(|n| self.step.is_multiple_of(n));
            let (evaluate, save) = (every(self.settings.eval_steps), every(self.settings.save_steps));
            if evaluate || (self.settings.eval_steps.is_some() && self.step == total) {
                self.evaluate()?;
            }
            if save || self.signals.take_save() {
                self.save()?;
            }
            if let Some(signal) = self.signals.stop() {
                let path = self.save()?;
                self.console.finish();
                return Err(Error::Stopped { signal, step: self.step, path });
            }
        }
        Ok(())
    }

    fn next_batch(&mut self) -> Result<Vec<usize>> {
        let epoch = self.loader.position().epoch;
        if self.data.redraw.is_some() && epoch != self.drawn_epoch {
            // A new epoch's groups may differ in number, so its order is drawn for the new list.
            self.redraw(epoch)?;
            self.loader = loader(self.settings, self.data.train.len(), Position { epoch, offset: 0 })?;
        }
        Ok(self.loader.next_batch())
    }

    /// Writes metrics and, at the logging cadence, the step line.
    fn record(&mut self, report: &StepReport, learning_rate: f64, total: u64, elapsed: Duration) -> Result<()> {
        let loss = &self.trainer.loss;
        let mut values = Map::new();
        values.insert("time".into(), number(now()));
        values.insert("step_seconds".into(), number(elapsed.as_secs_f64()));
        values.insert("epoch".into(), number(self.loader.epochs()));
        values.extend(report.tally.named(loss, ""));
        values.insert("learning_rate".into(), number(learning_rate));
        values.insert("grad_norm".into(), number(report.update.grad_norm));
        values.insert("num_tokens".into(), json!(self.num_tokens));
        values.insert("skipped_steps".into(), json!(report.update.skipped));
        self.metrics.write("train", self.step, values.clone())?;
        self.summary.losses.push((self.step, report.tally.loss(loss)));
        if self.step.is_multiple_of(self.settings.logging_steps) || self.step == 1 || self.step == total {
            self.console.line(&step_line((self.step, total), report, loss, learning_rate, elapsed));
            self.metrics.scalars(self.step, &values)?;
            values.insert("step".into(), json!(self.step));
            self.history.push(Value::Object(values));
        }
        self.console.advance(self.step);
        Ok(())
    }

    /// Reports skipped updates and gives up after too many in a row.
    fn guard(&mut self, report: &StepReport) -> Result<()> {
        if report.update.applied {
            self.skipped_in_a_row = 0;
            return Ok(());
        }
        self.skipped_in_a_row += 1;
        let ids = &report.not_finite;
        let more =
            if ids.len() > NAMED_GROUPS { format!(" and {} more", ids.len() - NAMED_GROUPS) } else { String::new() };
        let groups = match ids.is_empty() {
            true => String::new(),
            false => format!(" (groups {}{more})", ids[..ids.len().min(NAMED_GROUPS)].join(", ")),
        };
        self.console.warn(&format!("step {}: loss or gradient is not finite{groups}; nothing was updated", self.step));
        if self.skipped_in_a_row < self.settings.max_skipped_steps {
            return Ok(());
        }
        let last = checkpoint::list(&self.settings.output_dir).pop();
        let good = last.map_or("there is no checkpoint".into(), |(_, p)| format!("last checkpoint: {}", p.display()));
        self.console.finish();
        Err(Error::Diverged(format!(
            "{} updates in a row were not finite, the last at step {}; {good}; lower --learning-rate",
            self.skipped_in_a_row, self.step
        )))
    }

    fn evaluate(&mut self) -> Result<()> {
        if self.data.eval.is_empty() {
            return Ok(());
        }
        let (scores, tally) = self.trainer.evaluate(&mut self.evaluator, &self.data.eval)?;
        let mut values = Map::new();
        values.insert("time".into(), number(now()));
        values.extend(tally.named(&self.trainer.loss, "eval_"));
        self.metrics.write("eval", self.step, values.clone())?;
        self.metrics.scalars(self.step, &values)?;
        self.metrics.eval_scores(self.step, &self.trainer.loss, &self.data.eval, &scores)?;
        self.console.line(&eval_line(self.step, &tally, &self.trainer.loss));
        values.insert("step".into(), json!(self.step));
        self.history.push(Value::Object(values));
        self.summary.evals.push((self.step, tally));
        Ok(())
    }

    fn save(&mut self) -> Result<PathBuf> {
        let mut control = vec![0.0; CONTROL];
        self.trainer.backend.read_acc(View::first(&self.trainer.optimizer.control, CONTROL), &mut control)?;
        let seconds = self.seconds_before + self.began.elapsed().as_secs_f64();
        let mut state = RunState::new(self.step, self.loader.position(), self.num_tokens, seconds, control);
        state.fingerprint = self.data.fingerprint.clone();
        let dir = &self.settings.output_dir;
        let history = checkpoint::history(self.step, self.loader.epochs(), &self.history);
        let folder = checkpoint::save(&self.trainer, self.data.tokenizer, dir, &state, &history)?;
        if let Some(limit) = self.settings.save_total_limit {
            checkpoint::prune(dir, limit)?;
        }
        Ok(folder)
    }

    /// Writes the final model and hands back the summary.
    fn finish(mut self) -> Result<RunSummary> {
        let dir = &self.settings.output_dir;
        store::save(self.trainer.backend, &self.trainer.policy, dir)?;
        self.data.tokenizer.copy_to(dir)?;
        let history = checkpoint::history(self.step, self.loader.epochs(), &self.history);
        checkpoint::write_json(&dir.join(checkpoint::HISTORY_FILE), &history)?;
        self.summary.steps = self.step;
        self.summary.seconds = self.seconds_before + self.began.elapsed().as_secs_f64();
        self.console.finish();
        self.console.line(&format!(
            "done: {} step{} in {:.1} s; model in {}",
            self.summary.steps,
            if self.summary.steps == 1 { "" } else { "s" },
            self.summary.seconds,
            dir.display()
        ));
        Ok(self.summary)
    }
}

/// Batches of an update, from `position` on.
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
