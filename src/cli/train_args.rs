//! Arguments of `sft`, `reward`, `dpo` and `kto`, and the resulting settings. Defaults equal the defaults of
//! TRL's trainers; the objectives `mapl` and `rc` use the settings of their papers.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::cadence::{CadenceArgs, Strategy};
use super::config_record::CONFIG_FILE;
use super::device::DeviceArgs;
use super::inputs::Inputs;
use super::lora::LoraArgs;
use super::meeting::MeetingArgs;
use super::model_folder::BaseArgs;
use super::output::{same_file, written_by_run};
use super::reference::ReferenceArgs;
use super::save_dtype::SaveDtype;
use super::step_count::StepCount;
use super::template::TemplateKwargs;
use super::train_ifeval::TrainIfevalArgs;
use crate::data::options::{BuildArgs, Objective};
use crate::data::source::ReadOptions;
use crate::data::tokenize::TokenizeOptions;
use crate::error::refuse_outside_f32;
use crate::loss::objective::{LossOptions, Method};
use crate::optim::adamw::AdamWSettings;
use crate::optim::schedule::Scheduler;
use crate::optim::schedule_options::ScheduleOptions;
use crate::train::logs::{LogName, ReportTo};
use crate::train::run::RunSettings;
use crate::{Error, Result};

/// Headings of the help.
const DATA: &str = "Data and tokens";
const SPEED: &str = "Speed and memory";

/// Maximum number of groups per update, far above any practical value and far below an overflow.
const MAX_BATCH: usize = 1 << 30;
/// Updates between log lines by default.
const LOGGING_STEPS: StepCount = StepCount::Steps(10);

/// Arguments of a training command. They are serialised as one flat object, for the options in `run.json`.
#[derive(Args, Clone, Debug, Serialize)]
pub struct TrainArgs {
    /// Environment variables that `--config` sets.
    #[arg(skip)]
    #[serde(skip)]
    pub env: Vec<(String, String)>,
    /// YAML or TOML file with options under the names of these flags, or a file for TRL; flags on the command
    /// line override the file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read and check everything, print the table of the run, its memory and its first rows, and
    /// stop before the first step; nothing is written
    #[arg(long)]
    pub dry_run: bool,
    /// Model folder to start from
    #[arg(long, alias = "model-name-or-path")]
    pub model: PathBuf,
    #[command(flatten)]
    #[serde(flatten)]
    pub base: BaseArgs,
    /// Frozen reference model of DPO and KTO: a folder, or `none` [default: the start model]
    #[arg(long, alias = "ref-model-name-or-path")]
    pub ref_model: Option<PathBuf>,
    /// Training files
    #[arg(long, num_args = 1.., required = true)]
    pub train_file: Vec<PathBuf>,
    /// Evaluation files
    #[arg(long, num_args = 1..)]
    pub eval_file: Vec<PathBuf>,
    /// Folder of the run: metrics, checkpoints, final model
    #[arg(long, default_value = "trainer_output")]
    pub output_dir: PathBuf,
    /// Data type of the final model's weights; checkpoints keep f32, from which a run continues bit
    /// for bit
    #[arg(long, value_enum, default_value_t = SaveDtype::F32)]
    pub save_dtype: SaveDtype,
    /// Replace a run that the output folder already holds
    #[arg(long)]
    pub overwrite_output_dir: bool,
    /// Checkpoint folder to continue from, or `true` (or nothing) for the newest intact checkpoint of
    /// the output folder
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub resume_from_checkpoint: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub meeting: MeetingArgs,
    /// Print only errors, warnings and the result
    #[arg(long)]
    pub quiet: bool,
    /// Number of groups to print in full before the first step [default: one comparison of every kind, with
    /// one line per sequence]
    #[arg(long, value_name = "GROUPS")]
    pub examples: Option<usize>,
    /// Logs to write into the output folder
    #[arg(long, value_enum, value_delimiter = ',', num_args = 1.., default_values = ["tensorboard", "jsonl"])]
    pub report_to: Vec<LogName>,
    #[command(flatten)]
    #[serde(flatten)]
    pub optimiser: OptimiserArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub cadence: CadenceArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub ifeval: TrainIfevalArgs,
    /// Chat template to use instead of the model folder's
    #[arg(long, help_heading = DATA)]
    pub chat_template_path: Option<PathBuf>,
    /// Pad token of the reward model, a token of the tokenizer [default: a token that is not the last token of
    /// any sequence; if there is none, the EOS token]
    #[arg(long, value_name = "TOKEN", help_heading = DATA)]
    pub pad_token: Option<String>,
    /// Variables of the chat template for all rows, as a JSON object; those of a row take precedence
    /// [default: those in the run.json of the model folder, else none]
    #[arg(long, alias = "chat_template_kwargs", value_name = "JSON", help_heading = DATA)]
    pub chat_template_kwargs: Option<TemplateKwargs>,
    #[command(flatten, next_help_heading = DATA)]
    #[serde(flatten)]
    pub read: ReadOptions,
    #[command(flatten, next_help_heading = DATA)]
    #[serde(flatten)]
    pub tokenize: TokenizeOptions,
    /// Keep only one activation per layer and recompute the others in the backward pass: less
    /// memory, more time, identical bits
    #[arg(long, alias = "activation-checkpointing", help_heading = SPEED)]
    pub gradient_checkpointing: bool,
    /// Capture the steps as CUDA graphs and replay them; batches are padded to one of a few shapes,
    /// and one graph is captured per shape. Only on devices that run kernels [default: on]
    #[arg(long, value_enum, help_heading = SPEED)]
    pub cuda_graph: Option<Switch>,
    /// Maximum number of rows that the vocabulary head processes at once, on Hopper GPUs; fewer rows need
    /// less memory and slightly more time, with bitwise identical results. A group with more rows is not
    /// split [default: the most that fit]
    #[arg(long, value_name = "ROWS", value_parser = super::generate::count, help_heading = SPEED)]
    pub head_rows: Option<usize>,
    /// With several ranks, keep the optimiser state of a slice of the parameters on each rank: less
    /// memory, and checkpoints with a file from every rank [default: on with several ranks]
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "on", help_heading = SPEED)]
    pub shard_optimizer: Option<Switch>,
    /// With several ranks, keep a slice of the weights, gradients and optimiser state on each rank, and
    /// gather the weights of one layer at a time: least memory, more traffic
    #[arg(long, help_heading = SPEED)]
    pub shard_weights: bool,
    /// Share prompt prefixes within a group (off, to measure what sharing saves); results differ only by rounding
    #[arg(long, value_enum, default_value_t = Switch::On, help_heading = SPEED)]
    pub prefix_sharing: Switch,
    /// Log entropy, accuracy and mean logits of the response tokens, as TRL does. Off saves a little time and
    /// memory. The trained weights are bitwise identical either way
    #[arg(long, value_enum, default_value_t = Switch::On, help_heading = SPEED)]
    pub token_stats: Switch,
    /// Time every op, print a table with the machine's measured ceilings at the end, and write
    /// profile.json
    #[arg(long, help_heading = SPEED)]
    pub profile: bool,
    #[command(flatten)]
    #[serde(flatten)]
    pub loss: LossOptions,
    #[command(flatten)]
    #[serde(flatten)]
    pub reference: ReferenceArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub build: BuildArgs,
}

impl TrainArgs {
    /// Returns the arguments that list data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        vec![&mut self.train_file, &mut self.eval_file, &mut self.ifeval.ifeval_file]
    }

    /// Files and folders that the run reads. A checkpoint in the output folder is not an input, because the
    /// run continues there.
    pub fn inputs(&self) -> Inputs {
        let named = |path: &&PathBuf| path.as_os_str() != "none";
        let models = [&self.model].into_iter().chain(self.ref_model.iter().filter(named));
        let other = |path: &&PathBuf| path.as_os_str() != "true" && !self.continues(path);
        let bases = self.base.inputs(Inputs::default(), models.map(PathBuf::as_path));
        bases
            .with("--model", [&self.model])
            .with("--ref-model", self.ref_model.iter().filter(named))
            .with("--train-file", &self.train_file)
            .with("--eval-file", &self.eval_file)
            .with("--ifeval-file", &self.ifeval.ifeval_file)
            .with("--config", self.config.iter().filter(|path| !self.is_own_record(path)))
            .with("--chat-template-path", &self.chat_template_path)
            .with("--resume-from-checkpoint", self.resume_from_checkpoint.iter().filter(other))
    }

    /// Whether a configuration file is the record of the run that this run continues or replaces. Such a record
    /// may be overwritten, because it has been read in full.
    fn is_own_record(&self, config: &Path) -> bool {
        same_file(config, &self.output_dir.join(CONFIG_FILE))
    }

    /// Whether a checkpoint is in the output folder. A checkpoint in a different folder starts a new run.
    pub fn continues(&self, checkpoint: &Path) -> bool {
        let real = checkpoint.canonicalize().ok();
        real.as_deref().and_then(Path::parent).is_some_and(|dir| same_file(dir, &self.output_dir))
    }

    /// Rejects an output folder in which the run would destroy one of its inputs.
    pub fn spare_inputs(&self) -> Result<()> {
        self.inputs().spare(("--output-dir", &self.output_dir), &written_by_run(&self.output_dir)?)
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    #[value(alias = "true", alias = "True")]
    On,
    #[value(alias = "false", alias = "False")]
    Off,
}

/// Options for the length, batches, optimiser and logging of a run.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Optimisation")]
pub struct OptimiserArgs {
    /// Groups per forward and backward pass
    #[arg(long, default_value_t = 8)]
    pub per_device_train_batch_size: usize,
    /// Forward and backward passes per update [default: 1]
    #[arg(long)]
    pub gradient_accumulation_steps: Option<usize>,
    /// Groups per update; sets the gradient accumulation
    #[arg(long, conflicts_with = "gradient_accumulation_steps")]
    pub total_batch_size: Option<usize>,
    /// Number of updates, which overrides --num-train-epochs [default: from --num-train-epochs]
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Epochs [default: 3; 5 with --objective mapl or rc]
    #[arg(long)]
    pub num_train_epochs: Option<f64>,
    /// Peak learning rate [default: sft 2e-5, reward 1e-4, dpo and kto 1e-6; reward 1e-5 with --objective
    /// mapl or rc]
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Learning rate schedule [default: linear; cosine with --objective mapl or rc]
    #[arg(long, value_enum)]
    pub lr_scheduler_type: Option<Scheduler>,
    /// Parameters of the schedule, such as {"min_lr_rate": 0.1} with cosine_with_min_lr
    #[arg(long, value_name = "JSON")]
    pub lr_scheduler_kwargs: Option<ScheduleOptions>,
    /// Updates of learning rate warm-up, or a fraction of all updates [default: 0; 10 with
    /// --objective mapl or rc]
    #[arg(long)]
    pub warmup_steps: Option<StepCount>,
    /// Share of all updates for learning rate warm-up, equivalent to a fraction for --warmup-steps
    #[arg(long, conflicts_with = "warmup_steps")]
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay of matrices
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub weight_decay: f64,
    /// Decay rate of the first moment
    #[arg(long, default_value_t = 0.9, allow_negative_numbers = true)]
    pub adam_beta1: f64,
    /// Decay rate of the second moment
    #[arg(long, default_value_t = 0.999, allow_negative_numbers = true)]
    pub adam_beta2: f64,
    /// Epsilon added to the square root of the second moment
    #[arg(long, default_value_t = 1e-8, allow_negative_numbers = true)]
    pub adam_epsilon: f64,
    /// Maximum gradient norm; 0 disables clipping
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub max_grad_norm: f64,
    /// Train in file order, without shuffling
    #[arg(long)]
    pub no_shuffle: bool,
    /// Seed of all randomness except the construction of groups
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// When to print log lines and write TensorBoard's numbers; metrics.jsonl has every update
    /// [default: steps]
    #[arg(long, value_enum)]
    pub logging_strategy: Option<Strategy>,
    /// Updates between log lines, or a fraction of all updates [default: 10]
    #[arg(long)]
    pub logging_steps: Option<StepCount>,
    /// Consecutive updates with a non-finite gradient after which the run stops
    #[arg(long, default_value_t = 10)]
    pub max_skipped_steps: u64,
}

impl OptimiserArgs {
    /// Returns the number of warm-up updates, if given.
    fn warmup(&self, total: Option<u64>) -> Result<Option<u64>> {
        match self.warmup_ratio {
            None => Ok(self.warmup_steps.map(|steps| steps.of(total))),
            Some(ratio) if (0.0..=1.0).contains(&ratio) => {
                Ok(Some(total.map_or(u64::from(ratio > 0.0), |total| (total as f64 * ratio).ceil() as u64)))
            }
            Some(ratio) => Err(Error::Usage(format!("--warmup-ratio {ratio}: a number from 0 to 1 is needed"))),
        }
    }
}

impl TrainArgs {
    /// Returns the settings of the training loop, and checks all numeric options before any file is read.
    /// `total` is the number of updates of the run, or `None` before the data are known. Without `total`,
    /// options that are fractions of it get placeholder values.
    pub fn run_settings(&self, method: Method, objective: Objective, total: Option<u64>) -> Result<RunSettings> {
        let o = &self.optimiser;
        let paper = method != Method::Sft && matches!(objective, Objective::Mapl | Objective::Rc);
        let refuse = |flag: &str, value: &dyn std::fmt::Display, need: &str| {
            Err(Error::Usage(format!("{flag} {value}: {need}")))
        };
        let learning_rate = o.learning_rate.unwrap_or(match (method, paper) {
            (Method::Sft, _) => 2e-5,
            (Method::Reward, false) => 1e-4,
            (Method::Reward, true) => 1e-5,
            (Method::Dpo | Method::Kto, _) => 1e-6,
        });
        if !(learning_rate.is_finite() && learning_rate > 0.0) {
            return refuse("--learning-rate", &learning_rate, "a finite number above 0 is needed");
        }
        refuse_outside_f32("--learning-rate", learning_rate)?;
        let epochs = o.num_train_epochs.unwrap_or(if paper { 5.0 } else { 3.0 });
        if !(epochs.is_finite() && epochs > 0.0) {
            return refuse("--num-train-epochs", &epochs, "a finite number above 0 is needed");
        }
        for (flag, value) in [
            ("--per-device-train-batch-size", Some(o.per_device_train_batch_size as u64)),
            ("--gradient-accumulation-steps", o.gradient_accumulation_steps.map(|n| n as u64)),
            ("--total-batch-size", o.total_batch_size.map(|n| n as u64)),
            ("--max-steps", o.max_steps),
            ("--logging-steps", o.logging_steps.map(|steps| steps.of(total))),
            ("--max-skipped-steps", Some(o.max_skipped_steps)),
        ] {
            if value == Some(0) {
                return refuse(flag, &0, "at least 1 is needed");
            }
        }
        let micro_batch = o.per_device_train_batch_size;
        let accumulation = match o.total_batch_size {
            None => o.gradient_accumulation_steps.unwrap_or(1),
            Some(total) if total.is_multiple_of(micro_batch) => total / micro_batch,
            Some(total) => {
                let need = format!("it must be a multiple of --per-device-train-batch-size {micro_batch}");
                return refuse("--total-batch-size", &total, &need);
            }
        };
        if micro_batch.checked_mul(accumulation).is_none_or(|groups| groups > MAX_BATCH) {
            return Err(Error::Usage(format!(
                "{micro_batch} groups x {accumulation} per update: at most {MAX_BATCH} are possible; lower \
                 --per-device-train-batch-size or --gradient-accumulation-steps"
            )));
        }
        let scheduler = o.lr_scheduler_type.unwrap_or(if paper { Scheduler::Cosine } else { Scheduler::Linear });
        let warmup = o.warmup(total)?;
        if scheduler == Scheduler::Constant && warmup.is_some_and(|n| n > 0) {
            return Err(Error::Usage(
                "--warmup-steps has no effect with --lr-scheduler-type constant; use constant_with_warmup".into(),
            ));
        }
        let schedule = o.lr_scheduler_kwargs.clone().unwrap_or_default().shape(scheduler, learning_rate)?;
        let warmup_steps = warmup.unwrap_or(if paper { 10 } else { 0 });
        if let Some(total) = total {
            schedule.check_length(warmup_steps, total)?;
        }
        let (logging_steps, logging_epochs) = match o.logging_strategy.unwrap_or(Strategy::Steps) {
            Strategy::Steps => (Some(o.logging_steps.unwrap_or(LOGGING_STEPS)), false),
            other if o.logging_steps.is_some() => {
                let other = if other == Strategy::No { "no" } else { "epoch" };
                return Err(Error::Usage(format!("--logging-strategy {other} contradicts --logging-steps")));
            }
            other => (None, other == Strategy::Epoch),
        };
        let every = logging_steps.unwrap_or(LOGGING_STEPS);
        self.ifeval.check()?;
        let evaluates = !self.eval_file.is_empty() || !self.ifeval.ifeval_file.is_empty();
        let cadence = self.cadence.resolve(method, evaluates, every, total)?;
        if cadence.best.is_some() && self.eval_file.is_empty() {
            return Err(Error::Usage(
                "the metric of the best model is one of --eval-file; give evaluation rows, or leave out \
                 --load-best-model-at-end and --metric-for-best-model"
                    .into(),
            ));
        }
        Ok(RunSettings {
            output_dir: self.output_dir.clone(),
            micro_batch,
            accumulation,
            max_steps: o.max_steps,
            epochs,
            learning_rate,
            scheduler,
            schedule,
            warmup_steps,
            shuffle: (!o.no_shuffle).then_some(o.seed),
            logging_steps: logging_steps.map(|steps| steps.of(total)),
            logging_epochs,
            eval_steps: cadence.eval_steps,
            eval_epochs: cadence.eval_epochs,
            save_steps: cadence.save_steps,
            save_epochs: cadence.save_epochs,
            save_minutes: cadence.save_minutes,
            save_at_end: cadence.save_at_end,
            save_total_limit: cadence.save_total_limit,
            keep_every: self.cadence.keep_every,
            best: cadence.best,
            max_skipped_steps: o.max_skipped_steps,
            quiet: self.quiet,
            save_dtype: self.save_dtype.stored(),
            report_to: ReportTo::of(&self.report_to)?,
            observed: None,
        })
    }

    /// Checked settings of AdamW.
    pub fn adamw(&self) -> Result<AdamWSettings> {
        let o = &self.optimiser;
        let settings = AdamWSettings {
            beta1: o.adam_beta1,
            beta2: o.adam_beta2,
            eps: o.adam_epsilon,
            weight_decay: o.weight_decay,
            max_grad_norm: o.max_grad_norm,
        };
        settings.check().map(|()| settings)
    }
}
