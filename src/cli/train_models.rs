//! Models of a training run: the policy, its adapters, the frozen reference, and their planned memory.

use std::path::Path;

use super::output::same_file;
use super::train::TrainSetup;
use crate::backend::Backend;
use crate::backend::contract::HeadDims;
use crate::data::pack::{ComparisonOptions, GroupSizes};
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::Method;
use crate::model::config::{Head, ModelConfig};
use crate::model::decoder::Model;
use crate::model::lora;
use crate::model::store::{self, Loaded};
use crate::model::weights::LoadAs;
use crate::ranks::world;
use crate::terminal::{complain, shown};
use crate::train::frozen::FrozenCache;
use crate::train::memory::{MemoryInputs, MemoryPlan, PlannedGeneration, PlannedReference};
use crate::train::pack_for;
use crate::{Error, Result};

/// Models that a run trains with.
pub(super) struct RunModels<B: Backend> {
    pub policy: Model<B>,
    /// Reference with separate weights; `None` if its log-probs are precomputed, if it is the base of the
    /// adapters, or if the run has no reference.
    pub reference: Option<Model<B>>,
    /// Whether policy and reference start with the same weights.
    pub same_weights: bool,
}

impl TrainSetup<'_> {
    /// Plans the memory of the run; `None` for f64, which has no plan.
    pub(super) fn memory<B: Backend>(
        &self,
        backend: &B,
        config: &ModelConfig,
        groups: &[TokenizedGroup],
        generation: Option<PlannedGeneration>,
    ) -> Result<Option<MemoryPlan>> {
        self.check_loss(config)?;
        let reference = match self.precompute {
            Some(_) => None,
            None => self.reference_config(config)?.map(|(_, config)| config),
        };
        let subject = MemoryInputs {
            config,
            lora: self.lora.as_ref(),
            reference: match &reference {
                None => PlannedReference::None,
                Some(_) if self.base_is_reference() => PlannedReference::Base,
                Some(reference) => PlannedReference::Model(reference),
            },
            loss: &self.loss,
            precision: B::PRECISION,
            accumulation: self.settings.accumulation,
            recompute: self.args.gradient_checkpointing,
            replays: self.replays(backend)?,
            kernels: backend.kernel_properties(),
            generation,
            head_rows: 0,
            ranks: world::collective().size(),
            sharded: self.sharded(),
        };
        let loss = ComparisonOptions { scale: self.loss.scale, margin_add: self.loss.margin };
        let sizes = GroupSizes::measure(groups, &pack_for(&self.loss, config), &loss)?;
        let choices = self.head_rows(backend, config)?;
        // Ranks on CPUs share the memory of their host.
        let sharers = if B::ASYNCHRONOUS { 1 } else { world::ranks_on_this_host() as u64 };
        let free = backend.memory_free().map(|free| free / sharers);
        let plan = MemoryPlan::with_fitting_head_rows(&subject, &choices, &sizes, self.settings.micro_batch, free)?;
        // No plan exists for f64, whose head has no chunks.
        backend.set_max_head_rows(plan.as_ref().map_or(0, |plan| plan.head_rows));
        Ok(plan)
    }

    /// Rejects a loss that is not defined for the model. WPO computes the sum of squared probabilities from
    /// doubled logits, and doubling does not commute with the soft cap of logits.
    fn check_loss(&self, config: &ModelConfig) -> Result<()> {
        match self.loss.use_weighting && config.softcaps.logits.is_some() {
            true => Err(Error::Usage(
                "--use-weighting: the sum of squared probabilities cannot be computed for a model with \
                 final_logit_softcapping; leave the flag out"
                    .into(),
            )),
            false => Ok(()),
        }
    }

    /// Returns the numbers of rows per chunk of the head among which the memory plan chooses; empty if the
    /// head does not work in chunks.
    fn head_rows<B: Backend>(&self, backend: &B, config: &ModelConfig) -> Result<Vec<usize>> {
        let softcap = config.softcaps.logits;
        let dims = HeadDims { tokens: 0, hidden: config.hidden, vocab: config.vocab, rows: 0, softcap };
        let choices = match config.head {
            Head::LanguageModel => backend.head_row_choices(dims),
            Head::Reward => Vec::new(),
        };
        match self.args.head_rows {
            None => Ok(choices),
            Some(rows) if !choices.is_empty() => Ok(vec![rows]),
            Some(rows) => Err(Error::Usage(format!(
                "--head-rows {rows}: only the kernels for Hopper GPUs work on some rows of a vocabulary head at a time, \
                 in bf16; leave it out"
            ))),
        }
    }

    /// Loads the policy, and the reference unless its log-probs are precomputed or it is the policy's base.
    /// With adapters, the base is always loaded from `--model`; a different `start` is then the adapter of a
    /// checkpoint.
    pub(super) fn models<B: Backend>(&self, backend: &B, start: &Path, config: ModelConfig) -> Result<RunModels<B>> {
        let seed = self.args.optimiser.seed;
        let load_as = if self.method == Method::Reward { LoadAs::RewardStart } else { LoadAs::Exact };
        let whole = if self.lora.is_some() { &self.args.model } else { start };
        let Loaded { model: mut policy, drawn_score, ignored, notes, .. } =
            store::load_on(backend, whole, config, (load_as, self.sharding()), seed)?;
        notes.iter().for_each(|note| self.print(&format!("{:<13} {note}", "note")));
        if drawn_score {
            self.print("reward head: drawn from normal(0, 1/sqrt(hidden + 1)), because the start model has none");
        }
        if !ignored.is_empty() {
            let names: Vec<String> = ignored.iter().map(|name| shown(name)).collect();
            self.print(&format!("not used from {}: {}", whole.display(), names.join(", ")));
        }
        if let Some(spec) = &self.lora {
            let base = std::path::absolute(&self.args.model).map_err(Error::io("find", &self.args.model))?;
            lora::draw(backend, &mut policy, spec.clone(), seed)?;
            policy.lora.iter_mut().for_each(|lora| lora.base = Some(base.clone()));
            if start != self.args.model {
                store::reload(backend, &mut policy, start)?;
            }
        }
        let Some((folder, config)) = self.reference_config(&policy.config)? else {
            return Ok(RunModels { policy, reference: None, same_weights: false });
        };
        let same_weights = same_file(folder, start);
        if self.precompute.is_some() || self.base_is_reference() {
            return Ok(RunModels { policy, reference: None, same_weights });
        }
        let load_as = (LoadAs::Exact, self.sharding());
        let reference = store::load_on(backend, folder, config, load_as, seed)?.model;
        Ok(RunModels { policy, reference: Some(reference), same_weights })
    }

    /// Rejects a data type of the final weights that cannot represent the start weights.
    pub(super) fn check_save_dtype<B: Backend>(&self, backend: &B, policy: &Model<B>) -> Result<()> {
        let dtype = self.settings.save_dtype;
        match store::beyond(backend, policy, dtype)? {
            None => Ok(()),
            Some((name, weight)) => Err(Error::Usage(format!(
                "--save-dtype: tensor {name:?} of the start model holds {weight:e}, which {} cannot hold; use f32 or bf16",
                dtype.name()
            ))),
        }
    }

    /// Whether the reference is the base of the adapters, so that no second model is needed.
    pub(super) fn base_is_reference(&self) -> bool {
        self.lora.is_some() && self.reference().is_some_and(|folder| same_file(folder, &self.args.model))
    }

    /// Returns the folder and configuration of the reference. A reference that cannot score the policy's
    /// sequences is an error.
    fn reference_config(&self, policy: &ModelConfig) -> Result<Option<(&Path, ModelConfig)>> {
        let Some(folder) = self.reference() else { return Ok(None) };
        let config = ModelConfig::read_on(folder, self.args.base.base())?;
        if config.vocab != policy.vocab || config.head != Head::LanguageModel {
            let why = format!(
                "cannot be the reference: it is a {} with {} token ids, the policy a {} with {}",
                config.architecture(),
                config.vocab,
                policy.architecture(),
                policy.vocab
            );
            return Err(Error::model(folder, why));
        }
        Ok(Some((folder, config)))
    }

    /// Returns the reference's log-probs of all groups; `None` if they are not precomputed.
    pub(super) fn reference_cache<B: Backend>(
        &self,
        backend: &B,
        policy: &mut Model<B>,
        [train, eval]: [&[TokenizedGroup]; 2],
    ) -> Result<Option<FrozenCache>> {
        let (Some(options), Some((folder, config))) = (&self.precompute, self.reference_config(&policy.config)?) else {
            return Ok(None);
        };
        let mut cache = FrozenCache::open(backend, folder, config, &self.loss, options.clone())?
            .with_shards(self.args.shard_weights);
        if self.base_is_reference() {
            cache = cache.of_base();
        }
        if let Some(message) = cache.refusal() {
            complain(&format!("warning: {message}"));
        }
        let done = cache.complete_by(backend, Some(policy), &[train, eval])?;
        self.print(&format!("{:<13} {done}; {}", "log-probs", cache.path().display()));
        done.warning().iter().for_each(|text| complain(&format!("warning: {text}")));
        Ok(Some(cache))
    }
}
