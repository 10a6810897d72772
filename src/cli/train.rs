//! `mapl sft`, `reward`, `dpo` and `kto`: a training run from its arguments to its end.

use std::cell::RefCell;
use std::path::Path;

use super::config_record;
use super::device::Job;
use super::fingerprint::{Fingerprint, weights_hash};
use super::lora::LoraChoice;
use super::manifest::{ManifestFacts, recorded_length};
use super::model_folder::start_model;
use super::output::{RunFolder, check_ids, warn};
use super::startup::Startup;
use super::train_args::{Switch, TrainArgs};
use super::train_ifeval::PolicyPrompts;
use super::train_models::RunModels;
use super::train_ranks;
use crate::backend::Backend;
use crate::backend::kernels::own;
use crate::data::construct::build_rows;
use crate::data::options::{BuildOptions, InterLoss, Objective, Redraw};
use crate::data::source::SourceRow;
use crate::data::tokenize::{Purpose, TokenizeOptions, TokenizeReport, tokenize_rows_for};
use crate::data::tokenized::TokenizedGroup;
use crate::data::tokenizer::Tokenizer;
use crate::data::tokenizer::pad::PadChoice;
use crate::files::write_atomic;
use crate::loss::objective::{Loss, Method};
use crate::model::config::{Head, ModelConfig};
use crate::model::decoder::Model;
use crate::model::lora::LoraSpec;
use crate::model::store;
use crate::optim::adamw::AdamWSettings;
use crate::perf::observe::RunObserver;
use crate::ranks::{end, world};
use crate::report::run::write_own_report;
use crate::terminal::{complain, follows, say, say_styled};
use crate::train::checkpoint;
use crate::train::frozen::CacheOptions;
use crate::train::manifest::Manifest;
use crate::train::run::{PlannedMemory, RunData, RunSettings, RunSummary, train};
use crate::train::signals::Signals;
use crate::train::step::Trainer;
use crate::{Error, Result};

/// Options and settings of a training run, most of them determined before a backend is selected.
pub(super) struct TrainSetup<'a> {
    pub(super) method: Method,
    pub(super) args: &'a TrainArgs,
    pub(super) command_line: &'a str,
    pub(super) build: BuildOptions,
    /// Tokenisation options as given; the maximum length is set when the first groups are tokenised.
    pub(super) tokenize: TokenizeOptions,
    pub(super) loss: Loss,
    pub(super) adamw: AdamWSettings,
    pub(super) settings: RunSettings,
    /// Settings of precomputed reference log-probs, if they are used.
    pub(super) precompute: Option<CacheOptions>,
    /// Requested adapter options; `lora` applies them to the layers of the model, once the model is known.
    pub(super) adapters: Option<LoraChoice>,
    pub(super) lora: Option<LoraSpec>,
    /// Number of rows per chunk of the vocabulary head in the memory plan; `None` if the head does not work in
    /// chunks.
    pub(super) head_rows: Option<usize>,
}

/// Runs a training command.
pub fn run(method: Method, args: &TrainArgs, command_line: &str) -> Result<RunSummary> {
    run_observed(method, args, command_line, None)
}

/// Runs a training command; for a study, reports every step and its time by op to `observed`.
pub fn run_observed(
    method: Method,
    args: &TrainArgs,
    command_line: &str,
    observed: Option<RunObserver>,
) -> Result<RunSummary> {
    let weights = [args.loss.base_weight, args.loss.intra_weight, args.loss.inter_weight];
    let build = args.build.resolve(Objective::Rows, weights)?;
    if method == Method::Sft && build.objective != Objective::Rows {
        return Err(Error::Usage(
            "--objective has no effect in this sft run, which trains on responses as they are; leave it out".into(),
        ));
    }
    let pop_detached = method != Method::Sft && build.inter_loss == InterLoss::PopDetached;
    let mut loss = match method {
        Method::Sft => {
            args.loss.resolve(method, [1.0; 3], false)?;
            Loss::sft()
        }
        Method::Reward | Method::Dpo | Method::Kto => {
            args.loss.resolve(method, build.objective.kind_weights(), pop_detached)?
        }
    };
    loss.share_prefixes = args.prefix_sharing == Switch::On;
    loss.token_stats = args.token_stats == Switch::On;
    let has_reference = loss.has_reference(args.ref_model.as_deref())?;
    let mut settings = args.run_settings(method, build.objective, None)?;
    let study = observed.is_some();
    settings.observed = observed;
    loss.check_split(settings.accumulation)?;
    if loss.estimates_divergence() {
        if settings.micro_batch == 1 {
            return Err(Error::Usage(
                "--per-device-train-batch-size 1: --loss-type kto estimates the divergence from mismatched rows of a \
                 micro-batch, so at least 2 are needed"
                    .into(),
            ));
        }
        // The kto loss pairs each prompt with the response of a neighbouring row, so the order of the file is kept.
        settings.shuffle = None;
    }
    loss.check_likelihood()?;
    let precompute = args.reference.resolve(method, has_reference, settings.micro_batch, settings.quiet)?;
    if precompute.is_some() && !loss.share_prefixes {
        return Err(Error::Usage(
            "--prefix-sharing off: precomputed reference log-probs are computed with shared prefixes; leave out \
             --precompute-ref-log-probs"
                .into(),
        ));
    }
    if let (Some(alpha), true) = (loss.ld_alpha, precompute.is_some()) {
        return Err(Error::Usage(format!(
            "--ld-alpha {alpha}: precomputed reference log-probs cover whole responses, but --ld-alpha weights tokens \
             by the length of the other response of the pair; leave out --precompute-ref-log-probs"
        )));
    }
    let adamw = args.adamw()?;
    let tokenize = args.tokenize.clone();
    let adapters = args.lora.resolve(method)?;
    train_ranks::check(args, &loss)?;
    let setup = TrainSetup {
        method,
        args,
        command_line,
        build,
        tokenize,
        loss,
        adamw,
        settings,
        precompute,
        adapters,
        lora: None,
        head_rows: None,
    };
    match study {
        true => args.device.run_observed(TrainJob(setup)),
        false => args.device.run_probed(TrainJob(setup), args.profile),
    }
}

struct TrainJob<'a>(TrainSetup<'a>);

impl Job for TrainJob<'_> {
    type Output = RunSummary;

    fn run<B: Backend>(self, backend: &B) -> Result<RunSummary> {
        let mut setup = self.0;
        let signals = Signals::listen()?;
        setup.args.spare_inputs()?;
        let resume = setup.resume()?;
        let folder = setup.folder(resume.as_deref());
        let lock = folder.check()?;
        let start = resume.clone().unwrap_or_else(|| setup.args.model.clone());
        // A resumed run reads configuration and tokenizer from `--model` too, so that a change of that folder is
        // detected. Weights and training state come from the checkpoint.
        let (config, mut tokenizer) = start_model(setup.args)?;
        setup.lora = match &setup.adapters {
            Some(_) if config.adapter.is_some() => {
                return Err(Error::Usage(format!(
                    "--use-peft: {} holds an adapter already; merge it into a whole model first (`mapl export --merge`)",
                    setup.args.model.display()
                )));
            }
            Some(choice) => Some(choice.spec(&config)?),
            None => None,
        };
        setup.tokenize.positions = Some(config.max_positions);
        if setup.tokenize.max_length.is_none() {
            setup.tokenize.max_length = resume.as_deref().and_then(recorded_length);
        }
        let limit = setup.tokenize.limit();
        let (rows, eval_rows) = setup.read()?;
        if setup.loss.estimates_divergence() {
            setup.print(
                "training uses the rows in the order of the file: --loss-type kto matches each with the row before it",
            );
        }
        let redraws = setup.build.objective.builds() && setup.build.redraw == Redraw::Epoch;
        let kept_rows = if redraws { rows.clone() } else { Vec::new() };
        let (train_groups, report) = setup.tokenize(rows, &tokenizer, 0)?;
        // Later epochs and evaluation data use the length limit of these groups.
        setup.tokenize.max_length = Some(report.max_length);
        let (eval_groups, eval_report) = setup.tokenize_eval(eval_rows, &tokenizer)?;
        warn(report.warnings().into_iter().chain(eval_report.warnings()));
        if let Some(note) = report.bare_text().or_else(|| eval_report.bare_text()) {
            setup.print(&format!("note: {note}"));
        }
        if train_groups.is_empty() {
            return Err(Error::Usage(
                "no comparisons are left to train on (kinds with weight 0 do not count); look at the rows with `mapl data \
                 show`, or change --objective or the weights"
                    .into(),
            ));
        }
        setup.settle(train_groups.len())?;
        check_ids(&train_groups, &setup.args.model, config.vocab)?;
        check_ids(&eval_groups, &setup.args.model, config.vocab)?;
        if let Some(best) = &setup.settings.best {
            best.check(&eval_groups)?;
        }

        let mut fingerprint = setup.fingerprint([&train_groups, &eval_groups], &tokenizer, &config)?;
        let reward = setup.reward_pad(&config, &mut tokenizer, [&train_groups, &eval_groups])?;
        fingerprint.extend(reward.and_then(PadChoice::fingerprint));
        fingerprint.extend(own::used_on(B::NAME).map(|own| (own::VARIABLE.to_owned(), own.identity())));
        let mut resumed = None;
        if let Some(folder) = &resume {
            // The state is checked before anything is written, so that a rejected run leaves the earlier run
            // untouched.
            let state = checkpoint::read_state(folder)?;
            state.check(folder, &fingerprint)?;
            let total = setup.settings.total_steps(train_groups.len());
            if state.step > total {
                let why = format!("is after step {}, but the run ends after step {total}", state.step);
                return Err(Error::model(folder, why));
            }
            resumed = Some((folder.clone(), state.step));
        }
        let config = setup.policy_config(&start, config, reward)?;
        let asked = PolicyPrompts::read(&setup, &config, &tokenizer)?;
        let memory =
            setup.memory(backend, &config, &train_groups, asked.as_ref().map(|asked| asked.planned(&config)))?;
        if let Some(memory) = &memory {
            memory.check()?;
            setup.head_rows = Some(memory.head_rows).filter(|&rows| rows > 0);
            setup.settings.observed.iter().for_each(|observed| observed.plan(memory.named_parts()));
            backend.reserve_workspace(memory.workspace())?;
        }
        // Ranks compare their options, data and models before they exchange parts of a model.
        setup.agree(backend, &start, &fingerprint)?;
        let RunModels { mut policy, reference, same_weights } = setup.models(backend, &start, config)?;
        setup.check_save_dtype(backend, &policy)?;
        let trained = policy.trained().slots.iter().map(|slot| slot.spec.elements()).sum();
        if !setup.settings.quiet {
            let startup = Startup {
                setup: &setup,
                start: &start,
                config: &policy.config,
                trained,
                device: B::NAME,
                dtype: B::PRECISION.name(),
                groups: &train_groups,
                report: &report,
                limit,
                eval_report: &eval_report,
                memory: memory.as_ref(),
                tokenizer: &tokenizer,
            };
            say_styled(&startup.text()?);
        }
        setup.print_ranks();
        if setup.args.dry_run {
            setup.print("dry run: no step was taken and nothing was written; leave out --dry-run to train");
            return Ok(RunSummary::default());
        }
        let cache = setup.reference_cache(backend, &mut policy, [&train_groups, &eval_groups])?;
        let lock = RefCell::new(folder.prepare(lock)?);
        // All ranks wait here until rank 0 has prepared the folder.
        world::collective().barrier()?;
        let keep_folder = || lock.borrow_mut().keep(folder.dir);
        let facts = ManifestFacts {
            setup: &setup,
            device: B::NAME,
            dtype: B::PRECISION.name(),
            tokenizer: &tokenizer,
            train: (&train_groups, &report),
            eval: (&eval_groups, &eval_report),
            fingerprint: &fingerprint,
            reward,
            trained,
        };
        let manifest = Manifest::begin(&setup.settings.output_dir, facts.to_map()?, resumed)?;
        signals.record_end(manifest.recorder());
        end::set_recorder(manifest.failure_recorder());
        let record = config_record::text(&setup, B::NAME, B::PRECISION.name())?;
        write_atomic(&folder.dir.join(config_record::CONFIG_FILE), record.as_bytes())?;
        let redraw = |epoch: u64| setup.tokenize(kept_rows.clone(), &tokenizer, epoch).map(|(groups, _)| groups);
        let figures = |backend: &B, policy: &mut Model<B>| match &asked {
            Some(asked) => asked.figures(backend, policy, &tokenizer, &signals),
            None => Ok(None),
        };
        let data = RunData {
            train: train_groups,
            eval: eval_groups,
            figures: asked.is_some().then_some(&figures),
            tokenizer: &tokenizer,
            redraw: redraws.then_some(&redraw),
            memory: memory.as_ref().filter(|_| B::ASYNCHRONOUS).and_then(|memory| {
                Some(PlannedMemory { planned_bytes: memory.total(), free_bytes: memory.available? })
            }),
            same_weights,
            keep_folder: Some(&keep_folder),
            resume,
            fingerprint,
        };
        let outcome =
            Trainer::sharded(backend, (policy, reference), setup.loss.clone(), setup.adamw, setup.shards_optimizer())
                .and_then(|mut trainer| {
                    trainer.replay_steps(setup.replays(backend)?);
                    if setup.args.gradient_checkpointing {
                        trainer.recompute_activations()?;
                    }
                    match cache {
                        Some(cache) => trainer.use_frozen_cache(cache),
                        None if setup.base_is_reference() => trainer.use_base_as_frozen()?,
                        None => {}
                    }
                    train(trainer, data, &setup.settings)
                });
        finish(&manifest, &setup.settings, &outcome);
        outcome
    }
}

/// Records the end of a run and writes its report. Errors here are printed as warnings, so that they do not
/// hide the outcome of the run.
fn finish(manifest: &Manifest, settings: &RunSettings, outcome: &Result<RunSummary>) {
    let mut written = manifest.end(outcome);
    if settings.report_to.jsonl && !follows() {
        written = written.and_then(|()| write_own_report(&settings.output_dir));
    }
    if let Err(e) = written {
        complain(&format!("warning: {e}"));
    }
}

impl<'a> TrainSetup<'a> {
    pub(super) fn print(&self, text: &str) {
        if !self.settings.quiet {
            say(text);
        }
    }

    /// Output folder of the run.
    fn folder(&self, resume: Option<&Path>) -> RunFolder<'a> {
        RunFolder {
            dir: &self.args.output_dir,
            resuming: resume.is_some_and(|folder| self.args.continues(folder)),
            overwrite: self.args.overwrite_output_dir,
        }
    }

    /// Objective of the run.
    pub(super) fn objective(&self) -> Objective {
        self.build.objective
    }

    /// Folder of the reference model of a DPO or KTO run, if it has one.
    pub(super) fn reference(&self) -> Option<&Path> {
        match (&self.method, &self.args.ref_model) {
            (Method::Sft | Method::Reward, _) => None,
            _ if self.loss.is_reference_free() => None,
            (Method::Dpo | Method::Kto, Some(path)) if path.as_os_str() == "none" => None,
            (Method::Dpo | Method::Kto, Some(path)) => Some(path),
            (Method::Dpo | Method::Kto, None) => Some(&self.args.model),
        }
    }

    /// Returns the groups of an epoch, prepared for the loss, and the report of their tokenization.
    fn tokenize(
        &self,
        rows: Vec<SourceRow>,
        tokenizer: &Tokenizer,
        epoch: u64,
    ) -> Result<(Vec<TokenizedGroup>, TokenizeReport)> {
        let rows = self.construct(rows, epoch)?;
        let (groups, report) = tokenize_rows_for(self.purpose(), rows, tokenizer, &self.tokenize)?;
        let mut groups = if self.method == Method::Sft { groups } else { self.loss.prepare(groups) };
        self.check_groups(&mut groups, report.max_length).map(|()| (groups, report))
    }

    /// Returns the evaluation groups and the report of their tokenization. The groups keep the comparison kinds
    /// that the run does not train on.
    fn tokenize_eval(
        &self,
        rows: Vec<SourceRow>,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<TokenizedGroup>, TokenizeReport)> {
        if rows.is_empty() {
            return Ok((Vec::new(), TokenizeReport::default()));
        }
        let rows = if self.build.objective == Objective::Base { rows } else { self.construct(rows, 0)? };
        let mut data = tokenize_rows_for(self.purpose(), rows, tokenizer, &self.tokenize)?;
        self.check_groups(&mut data.0, data.1.max_length).map(|()| data)
    }

    /// Adds weights and mismatched sequences to labelled rows, and checks that the loss is defined for the groups.
    fn check_groups(&self, groups: &mut [TokenizedGroup], max_length: usize) -> Result<()> {
        self.loss.prepare_unpaired(groups, self.settings.micro_batch, max_length);
        self.loss.check_tails(groups)?;
        self.loss.check_comparisons(groups)
    }

    fn purpose(&self) -> Purpose {
        Purpose { reward: self.method == Method::Reward, keep_equal_ids: false }
    }

    /// Adds or removes comparisons according to the objective.
    fn construct(&self, rows: Vec<SourceRow>, epoch: u64) -> Result<Vec<SourceRow>> {
        if self.build.objective == Objective::Rows {
            return Ok(rows);
        }
        let (rows, report) = build_rows(rows, &self.build, epoch);
        if epoch == 0 && self.build.objective.builds() {
            self.print(&format!("{:<13} {}", "built", report.summary()));
        }
        Ok(rows)
    }

    /// Returns the configuration of the model that is trained from the folder `start`.
    fn policy_config(&self, start: &Path, config: ModelConfig, reward: Option<PadChoice>) -> Result<ModelConfig> {
        match self.method {
            Method::Reward => store::reward_config(config, reward.map(|pad| pad.id)),
            Method::Sft | Method::Dpo | Method::Kto if config.head == Head::LanguageModel => Ok(config),
            Method::Sft | Method::Dpo | Method::Kto => {
                let why = format!("holds a reward model; {} needs a language model", self.method.name());
                Err(Error::model(start, why))
            }
        }
    }

    /// Whether steps are captured as CUDA graphs and replayed.
    pub(super) fn replays<B: Backend>(&self, backend: &B) -> Result<bool> {
        match (self.args.cuda_graph, backend.kernel_properties()) {
            (Some(Switch::On), None) => Err(Error::Usage(format!(
                "--cuda-graph on: the {} device cannot capture steps as graphs; leave it out, or use --device cuda",
                B::NAME
            ))),
            // Ops in a captured graph cannot be timed one by one.
            (None, _) if self.settings.observed.is_some() => Ok(false),
            (choice, kernels) => Ok(choice != Some(Switch::Off) && kernels.is_some()),
        }
    }

    /// Fingerprint that a resumed run must share with the run it continues.
    fn fingerprint(
        &self,
        groups: [&[TokenizedGroup]; 2],
        tokenizer: &Tokenizer,
        config: &ModelConfig,
    ) -> Result<Vec<(String, String)>> {
        let reference = match self.reference() {
            None => "none".to_owned(),
            Some(folder) => weights_hash(folder, self.args.base.base())?,
        };
        // A checkpoint of adapters lacks the frozen base weights, so their hash is part of the fingerprint.
        let base = self.lora.as_ref().map(|_| weights_hash(&self.args.model, None)).transpose()?;
        Ok(Fingerprint { setup: self, groups, tokenizer, config, reference, base }.entries())
    }
}
