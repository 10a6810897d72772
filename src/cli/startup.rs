//! Output before the first step of a run: an aligned table of settings, data and model, and a decoded example
//! of every comparison kind, in which the tokens that contribute to the loss are marked.

use std::fmt::Write as _;
use std::path::Path;

use clap::ValueEnum;

use super::lora::{LoraChoice, described};
use super::train::TrainSetup;
use crate::Result;
use crate::backend::contract::Curve;
use crate::backend::cpu::Units;
use crate::backend::kernels::own;
use crate::data::options::Objective;
use crate::data::pack::LogpScope;
use crate::data::show::{ShowOptions, render, render_examples};
use crate::data::tokenize::{LengthLimit, TokenizeReport};
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::data::tree::token_counts;
use crate::loss::objective::LossType;
use crate::model::config::ModelConfig;
use crate::terminal::{color, columns, counted, plain, wrapped};
use crate::train::memory::MemoryPlan;

/// Column at which the values of the table start.
const VALUES: usize = 14;
/// Minimum line width for wrapping, in columns.
const MIN_COLUMNS: usize = 60;

/// The run to describe.
pub(super) struct Startup<'a> {
    pub setup: &'a TrainSetup<'a>,
    /// Folder of the initial weights.
    pub start: &'a Path,
    pub config: &'a ModelConfig,
    /// Number of trained parameters.
    pub trained: usize,
    pub device: &'static str,
    pub dtype: &'static str,
    pub groups: &'a [TokenizedGroup],
    pub report: &'a TokenizeReport,
    /// Length limit as given by flags, before it is resolved from the data.
    pub limit: LengthLimit,
    /// Report on the evaluation rows; its `rows_read` is 0 if there are none.
    pub eval_report: &'a TokenizeReport,
    /// Planned memory of the run; `None` if it was not planned.
    pub memory: Option<&'a MemoryPlan>,
    pub tokenizer: &'a Tokenizer,
}

impl Startup<'_> {
    /// Returns the table and the examples as plain text; only the examples may be coloured.
    pub fn text(&self) -> Result<String> {
        let mut out = String::new();
        for (name, value) in self.settings() {
            line(&mut out, name, &value);
        }
        out += &self.report.to_string();
        line(&mut out, "sharing", &self.sharing());
        line(&mut out, "loss", &self.setup.loss.formula(self.setup.reference().is_some()));
        if let Some(memory) = self.memory {
            line(&mut out, "memory", &memory.summary());
        }
        for note in self.config.notes.iter().chain(self.tokenizer.notes()) {
            line(&mut out, "note", note);
        }
        let mut out = plain(&out).into_owned();
        if let Some(columns) = columns() {
            out = wrapped(&out, columns.max(MIN_COLUMNS), VALUES);
        }
        let options = ShowOptions { color: color(), ids: false };
        match self.setup.args.examples {
            None => {
                let examples = render_examples(self.groups, self.tokenizer, options)?;
                let _ = writeln!(
                    out,
                    "\nexamples, with the tokens of the loss marked; --examples N prints N groups in full"
                );
                out += &examples;
            }
            Some(count) => {
                for group in self.groups.iter().take(count) {
                    let _ = write!(out, "\n{}", render(group, self.tokenizer, options)?);
                }
            }
        }
        Ok(out.trim_end().to_owned())
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let (setup, s, c) = (self.setup, &self.setup.settings, self.config);
        let precision = if self.device == "reference" { "f64, one core" } else { self.dtype };
        let threads = match rayon::current_num_threads() {
            _ if self.device != "cpu" => String::new(),
            1 => ", 1 thread".to_owned(),
            n => format!(", {n} threads"),
        };
        let seed = setup.args.optimiser.seed;
        let objective = match setup.objective() {
            Objective::Rows => String::new(),
            other => format!(", objective {},", value_name(&other)),
        };
        let mut lines = vec![
            (
                "run",
                format!("{}{objective} on {} ({precision}{threads}), seed {seed}", setup.method.name(), self.device),
            ),
            ("output", s.output_dir.display().to_string()),
            (
                "model",
                format!(
                    "{} with {} parameters: {} layers of width {}, {} attention heads ({} KV heads), vocabulary {}; \
                     from {}",
                    c.architecture(),
                    c.parameters().unwrap_or(0),
                    c.layers,
                    c.hidden,
                    c.heads,
                    c.kv_heads,
                    c.vocab,
                    self.start.display()
                ),
            ),
        ];
        let units = if self.device == "cpu" && self.dtype == "f32" { Units::chosen().ok() } else { None };
        if let Some(units) = units.filter(|units| units.slow().is_none()) {
            lines.push(("note", format!("--dtype bf16 is faster on this processor, which has {units}")));
        }
        if let Some(own) = own::used_on(self.device) {
            lines.push(("kernels", format!("of {}: {}", own::VARIABLE, own.label())));
        }
        if let Some(lora) = &setup.lora {
            lines.push(("adapter", described(lora, c, self.trained, c.parameters().unwrap_or(0))));
        }
        if let Some(reference) = setup.reference() {
            let how = if setup.base_is_reference() { "the model without its adapter" } else { "frozen" };
            lines.push(("reference", format!("{}, {how}", reference.display())));
        }
        let batch = s.micro_batch * s.accumulation;
        let (micro, times, per_epoch) = (s.micro_batch, s.accumulation, self.groups.len().div_ceil(batch));
        let total = s.total_steps(self.groups.len());
        let updates = |n: u64| counted(n, "update");
        lines.push((
            "batch",
            format!(
                "{} x {times} = {batch} per update, {} per epoch, {} in total",
                counted(micro, "group"),
                updates(per_epoch as u64),
                updates(total)
            ),
        ));
        let parameters = setup.args.optimiser.lr_scheduler_kwargs.as_ref().and_then(|p| serde_json::to_string(p).ok());
        let schedule = [value_name(&s.scheduler)].into_iter().chain(parameters).collect::<Vec<_>>().join(" ");
        let clip = match setup.adamw.max_grad_norm {
            0.0 => "no clipping".to_owned(),
            norm => format!("gradient norm at most {norm}"),
        };
        lines.push((
            "optimiser",
            format!(
                "AdamW, learning rate {:e}, {schedule}, {}, weight decay {}, {clip}",
                s.learning_rate,
                counted(s.warmup_steps, "warm-up step"),
                setup.adamw.weight_decay
            ),
        ));
        if let (Some(_), Some(epochs)) = (s.max_steps, setup.args.optimiser.num_train_epochs) {
            let note = format!("--max-steps sets the number of updates, so --num-train-epochs {epochs} has no effect");
            lines.push(("note", note));
        }
        lines.extend(self.differences_to_trl().into_iter().map(|note| ("note", note)));
        if s.warmup_steps >= total {
            lines.push(("note", "no update is left after the warm-up; lower --warmup-steps".to_owned()));
        }
        if let Some(end) = s.schedule.cut_decay(s.warmup_steps, total) {
            let note = format!("the learning rate would decay until update {end}, but the run ends earlier");
            lines.push(("note", note));
        }
        let when = match (s.eval_steps, s.eval_epochs) {
            (Some(u64::MAX), _) => Some("at start and end".to_owned()),
            (Some(every), _) => Some(every_updates(every)),
            (None, true) => Some("at the end of every epoch".to_owned()),
            (None, false) => None,
        };
        if let Some(when) = when {
            let (kept, read) = (self.eval_report.rows_kept, self.eval_report.rows_read);
            lines.push(("evaluation", format!("{kept} of {}, {when}", counted(read, "row"))));
        }
        lines.push(("checkpoints", self.checkpoints()));
        lines.push(("max length", self.limit.described(&self.report.lengths)));
        lines
    }

    /// Notes on options in use that have a different meaning or default in TRL.
    fn differences_to_trl(&self) -> Vec<String> {
        let of_adapters = self.setup.adapters.iter().flat_map(LoraChoice::notes);
        let mut notes: Vec<String> = of_adapters.map(|note| (*note).to_owned()).collect();
        let loss = &self.setup.loss;
        for (of, part) in loss.curve_types().zip(&loss.curves) {
            if let (LossType::Sigmoid | LossType::SigmoidNorm, Curve::Sigmoid { smoothing }) = (of, part.curve)
                && smoothing > 0.0
            {
                notes.push(format!(
                    "--label-smoothing {smoothing} with the {} loss is conservative DPO (cDPO) here; TRL ignores it with \
                     this loss",
                    of.name()
                ));
            }
            if of == LossType::Simpo && loss.nll_weight != 0.0 {
                notes.push(format!(
                    "simpo has a likelihood term of weight {}, as TRL's default of cpo_alpha does; --nll-weight 0 is the \
                     SimPO of its paper",
                    loss.nll_weight
                ));
            }
            if of == LossType::Orpo {
                let note = match loss.scope {
                    LogpScope::Response => "the likelihood term of orpo covers responses; in TRL it covers prompts too",
                    LogpScope::PromptAndResponse => {
                        "--logp-scope prompt-and-response: the odds ratio of orpo covers prompts too; in TRL only its \
                         likelihood term does"
                    }
                };
                notes.push(note.to_owned());
            }
        }
        let dropout = self.config.dropout();
        if !dropout.is_empty() {
            let rates: Vec<String> = dropout.iter().map(|(key, rate)| format!("{key} {rate}")).collect();
            notes.push(format!(
                "config.json has {}, which is not applied: this program trains without dropout, as TRL's DPO, KTO and reward \
                 trainers do unless --disable_dropout is false",
                rates.join(", ")
            ));
        }
        if let Some(seed) = self.setup.args.build.data_seed {
            notes.push(format!(
                "--data-seed {seed} seeds the construction of groups here; in TRL it seeds the order of rows, which is \
                 --seed here"
            ));
        }
        notes
    }

    /// Describes when checkpoints are written or, if none are, what a crash loses.
    fn checkpoints(&self) -> String {
        let s = &self.setup.settings;
        let mut when = Vec::new();
        let minutes = s.save_minutes.map_or(String::new(), |n| format!(" or {}", counted(n, "minute")));
        when.extend(s.save_steps.map(|n| match n {
            1 => every_updates(1),
            n => format!("{}{minutes}", every_updates(n)),
        }));
        when.extend(s.save_epochs.then(|| "after every epoch".to_owned()));
        when.extend(s.save_at_end.then(|| "at the end".to_owned()));
        if when.is_empty() {
            return "none, so a crash loses the run (set --save-steps to write checkpoints)".to_owned();
        }
        let kept = s.save_total_limit.map_or(String::new(), |n| format!("; the newest {n} are kept"));
        format!("{}{kept}", when.join(" and "))
    }

    /// Tokens saved by prefix sharing.
    fn sharing(&self) -> String {
        let (mut alone, mut shared) = (0, 0);
        for counts in self.groups.iter().map(token_counts) {
            alone += counts.per_sequence;
            shared += counts.tree;
        }
        let saved = if alone == 0 { 0.0 } else { 100.0 * (alone - shared) as f64 / alone as f64 };
        format!("{shared} tokens per epoch in prefix trees, {alone} without: {saved:.0} % saved")
    }
}

/// Formats a cadence in updates.
fn every_updates(n: u64) -> String {
    if n == 1 { "every update".to_owned() } else { format!("every {n} updates") }
}

/// Returns a value as it is written on the command line.
fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:<13} {value}");
}
