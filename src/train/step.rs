//! One optimiser step. [`Trainer::begin`] enqueues a step without waiting; [`Trainer::finish`] waits for its
//! results. Another step may begin in between.
//!
//! ```text
//! pack    micro-batches -> host batches, padded to a shape    (packing.rs, prefetch thread)
//! begin   for each micro-batch:
//!             upload it through the next upload slot
//!             run these ops, or replay their CUDA graph for this shape and phase:
//!                 frozen forward                               (DPO with an online reference)
//!                 policy forward -> scores -> losses -> gradients of the head
//!                 model backward                               (accumulates gradients)
//!             enqueue the readback of scores, losses and logits
//!         with several ranks: sum the gradients; on GPUs overlapped     (train/share.rs, train/layer_sums.rs)
//!             with the last backward, which is then not a CUDA graph
//!         AdamW update; with sharded optimiser state gather the weights; enqueue the readback of the
//!             control vector
//! finish  wait for the readback; sum the results over the global batch
//! ```
//!
//! A single rank that has joined NCCL uses the code path of several ranks. Its sums equal its local
//! gradients, so the norms from its backward are also those of the sums. The update has the same bits as in a
//! single-process run.

mod compute;
#[cfg(test)]
mod device_ranks;
mod identity;
#[cfg(test)]
mod one_rank;
mod replay;
mod results;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use super::batch::packing::{PackedMicroBatch, PackedStep, Packer};
use super::batch::padding::Shapes;
use super::batch::upload::{DeviceBatch, UploadSlot};
use super::evaluate::{Evaluator, GroupScores};
use super::frozen::{CacheReport, Frozen, FrozenCache};
use super::layer_sums::LayerSums;
use super::losses::LossBuffers;
use super::metrics::Tally;
use super::score::Scorer;
use super::shard::{self, SliceNorms};
use super::share;
use super::unit_sums::UnitSums;
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, View};
use crate::data::pack::{BatchLimits, ComparisonOptions, GroupSizes};
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::Loss;
use crate::model::activations::Mode;
use crate::model::decoder::Model;
use crate::optim::adamw::{AdamWSettings, AdamWState, UpdateReport};
use crate::ranks::buffers;
use crate::ranks::collective::{Collective, shard_of};
use crate::ranks::world;
use replay::{GraphState, Phase};

/// Model under training: policy, frozen reference, optimiser, and all buffers of a step.
pub struct Trainer<'b, B: Backend> {
    /// The backend.
    pub backend: &'b B,
    /// Ranks that share every step.
    ranks: &'static dyn Collective,
    /// The loss.
    pub loss: Loss,
    /// The trained model.
    pub policy: Model<B>,
    frozen: Option<Frozen<B>>,
    /// State of AdamW.
    pub optimizer: AdamWState<B>,
    scorer: Scorer<B>,
    /// Whether the backward recomputes activations.
    mode: Mode,
    /// Gradients of the trained parameters ([`Model::trained`]), or of this rank's slices of them if the weights
    /// are sharded.
    pub grads: B::Acc,
    /// Gradients of units that are being summed into `grads`, if the weights are sharded.
    unit_sums: Option<UnitSums<B>>,
    /// Gradient sums that overlap with the last backward of a step, on a device with native collectives.
    layer_sums: Option<LayerSums>,
    /// Norms of the layers' GEMM weight gradients, by patch; valid after the last micro-batch of a step.
    /// Empty with adapters.
    norms: B::Acc,
    /// Norms of the slices of all ranks, if the optimiser state covers only some of the parameters.
    slice_norms: Option<SliceNorms<B>>,
    /// Whether each rank updates only its slice of the trained parameters, which are then gathered.
    gathers_weights: bool,
    packer: Packer,
    /// Staging buffers of micro-batches in flight to the device, used round-robin.
    upload_slots: Vec<UploadSlot<B>>,
    next_slot: usize,
    batch: DeviceBatch<B>,
    losses: LossBuffers<B>,
    /// Readback buffers with their capacities, and host batches, reused from finished steps.
    spare_readback_buffers: Vec<(B::ReadbackBuffer, usize)>,
    spare_steps: Vec<PackedStep>,
    /// CUDA graphs of micro-batches, by shape level and phase.
    graphs: HashMap<(usize, Phase), GraphState<B>>,
    replay_graphs: bool,
    /// Maximum number of head rows that the head processes at once. Steps of shapes with more are not
    /// captured.
    captured_rows: usize,
}

/// Results of one step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Sums over the step.
    pub tally: Tally,
    /// Report of the optimiser's update.
    pub update: UpdateReport,
    /// Ids of groups with a comparison that has a non-finite loss.
    pub not_finite: Vec<String>,
    /// Ranks whose local loss or gradient is not finite; empty in a single-process run.
    pub(super) odd_ranks: Vec<usize>,
}

/// A step that has begun and not finished.
pub struct Pending<B: Backend> {
    packed: PackedStep,
    results: B::ReadbackBuffer,
    capacity: usize,
    /// Whether this rank's local gradient is finite; true in a single-process run.
    finite: bool,
}

/// Limit on steps in flight: one runs while the next is sent.
pub(super) const STEPS_IN_FLIGHT: usize = 2;

impl<'b, B: Backend> Trainer<'b, B> {
    /// Prepares training of `policy`; `frozen` is DPO's frozen reference.
    pub fn new(
        backend: &'b B,
        policy: Model<B>,
        frozen: Option<Model<B>>,
        loss: Loss,
        settings: AdamWSettings,
    ) -> Result<Self> {
        Self::sharded(backend, (policy, frozen), loss, settings, false)
    }

    /// Like [`Trainer::new`]. With `shard`, the optimiser state covers only this rank's slice of the
    /// parameters.
    pub(crate) fn sharded(
        backend: &'b B,
        models: (Model<B>, Option<Model<B>>),
        loss: Loss,
        settings: AdamWSettings,
        shard: bool,
    ) -> Result<Self> {
        Self::on_ranks(world::collective(), backend, models, loss, (settings, shard))
    }

    /// Like [`Trainer::sharded`], with the ranks that share every step. Models with sharded weights must be
    /// sharded over the same ranks.
    pub(super) fn on_ranks(
        ranks: &'static dyn Collective,
        backend: &'b B,
        (policy, frozen): (Model<B>, Option<Model<B>>),
        loss: Loss,
        (settings, shard): (AdamWSettings, bool),
    ) -> Result<Self> {
        let len = policy.trained().len;
        let gathers_weights = shard && !policy.trains_shards();
        let optimizer = match gathers_weights {
            true => AdamWState::of_slice(backend, &policy, settings, shard_of(len, ranks.rank(), ranks.size()))?,
            false => AdamWState::new(backend, &policy, settings)?,
        };
        let is_part = !optimizer.part().is_whole(len);
        let sums_of_layers =
            !ranks.is_alone() && backend.device_collective().is_some() && policy.lora.is_none() && !policy.is_sharded();
        let packer = Packer {
            pack: super::pack_for(&loss, &policy.config),
            comparison: ComparisonOptions { scale: loss.scale, margin_add: loss.margin },
            loss: loss.clone(),
            frozen_cache: None,
            shapes: None,
        };
        Ok(Self {
            optimizer,
            scorer: Scorer::new(backend, &policy, Mode::Train)?.measuring(backend, &loss)?,
            mode: Mode::Train,
            grads: backend.zeros_acc(policy.trained_part().len())?,
            unit_sums: UnitSums::new(backend, &policy)?,
            layer_sums: sums_of_layers.then(|| LayerSums::new(&policy.layout, ranks, shard)),
            norms: backend.zeros_acc(if policy.trains_shards() { 0 } else { policy.trained().norms })?,
            slice_norms: if is_part { Some(SliceNorms::new(backend, ranks.size())?) } else { None },
            gathers_weights,
            upload_slots: Vec::new(),
            next_slot: 0,
            batch: DeviceBatch::new(backend)?,
            losses: LossBuffers::new(backend)?,
            spare_readback_buffers: Vec::new(),
            spare_steps: Vec::new(),
            graphs: HashMap::new(),
            replay_graphs: false,
            captured_rows: usize::MAX,
            frozen: frozen.map(|model| Frozen::online(backend, model)).transpose()?,
            backend,
            ranks,
            loss,
            policy,
            packer,
        })
    }

    /// The ranks that share every step.
    pub(super) fn ranks(&self) -> &'static dyn Collective {
        self.ranks
    }

    /// Whether the optimiser state covers only some of the parameters.
    pub(super) fn is_sharded(&self) -> bool {
        !self.optimizer.part().is_whole(self.policy.trained().len)
    }

    /// Whether the norms from the last backward of a step are those of the applied gradient. With several
    /// ranks, they are only those of the rank's local gradient.
    fn keeps_norms(&self) -> bool {
        self.ranks.size() == 1 && !self.is_sharded()
    }

    /// Turns prefix sharing on or off. Without it, every sequence is stored whole, which tests use as the
    /// oracle.
    pub fn share_prefixes(&mut self, share: bool) {
        self.packer.pack.share_prefixes = share;
    }

    /// Uses the base of the policy, without its adapters, as frozen reference, so that no second model is in
    /// memory.
    pub fn use_base_as_frozen(&mut self) -> Result<()> {
        self.frozen = Some(Frozen::base(self.backend, &self.policy)?);
        Ok(())
    }

    /// Uses cached log-probs of the frozen reference instead of a model.
    pub fn use_frozen_cache(&mut self, cache: FrozenCache) {
        let cache = Arc::new(RwLock::new(cache));
        self.packer.frozen_cache = Some(cache.clone());
        self.frozen = Some(Frozen::Cached { cache });
    }

    /// Computes the log-probs that the frozen reference's cache lacks for `groups`; `None` without
    /// a cache.
    pub(super) fn complete_frozen_cache(&mut self, groups: &[TokenizedGroup]) -> Result<Option<CacheReport>> {
        match &mut self.frozen {
            Some(Frozen::Cached { cache }) => {
                let mut cache = cache.write().unwrap_or_else(|e| e.into_inner());
                cache.complete_by(self.backend, Some(&mut self.policy), &[groups]).map(Some)
            }
            Some(Frozen::Online { .. } | Frozen::Base { .. }) | None => Ok(None),
        }
    }

    /// Bounds on every batch of `micro_batch` groups from `groups`.
    pub fn limits(&self, groups: &[TokenizedGroup], micro_batch: usize) -> Result<BatchLimits> {
        Ok(GroupSizes::measure(groups, &self.packer.pack, &self.packer.comparison)?.limits(micro_batch))
    }

    /// Captures the ops of a micro-batch as a CUDA graph, one per shape, and replays it for every batch that
    /// fits the shape. The setting applies from the next [`Trainer::reserve`]; results keep their bits. It
    /// has no effect with a custom loss curve, whose steps wait for the host, or with sharded weights, which
    /// are gathered between the ops.
    pub fn replay_steps(&mut self, replay: bool) {
        self.replay_graphs = replay && !self.loss.has_own_curve() && !self.policy.is_sharded();
    }

    /// Turns on activation recomputation: keeps one activation per layer and recomputes the others in the
    /// backward. Results keep their bits.
    pub fn recompute_activations(&mut self) -> Result<()> {
        self.mode = Mode::Recompute;
        self.scorer = Scorer::new(self.backend, &self.policy, self.mode)?.measuring(self.backend, &self.loss)?;
        Ok(())
    }

    /// Reserves buffers for every batch within `limits`, at `accumulation` batches per step. Steps
    /// over such batches do not allocate on the device.
    pub fn reserve(&mut self, limits: &BatchLimits, accumulation: usize) -> Result<()> {
        let backend = self.backend;
        // Padding depends on the default number of head rows at once, not on the number from this run's
        // memory plan. Results therefore do not depend on the memory plan.
        self.captured_rows = self.policy.max_head_rows(backend);
        let padded_rows = self.policy.default_head_rows(backend);
        self.packer.shapes = self.replay_graphs.then(|| Shapes::of(*limits, padded_rows));
        let limits = &self.packer.shapes.map_or(*limits, |shapes| shapes.limits());
        self.graphs.clear();
        self.policy.reserve_positions(backend, limits.longest_path)?;
        self.policy.reserve_windows(backend)?;
        if let Some(frozen) = &mut self.frozen {
            frozen.reserve(backend, &mut self.policy, limits)?;
        }
        self.scorer.reserve(backend, &self.policy, self.mode, limits)?;
        self.batch.reserve(backend, limits)?;
        self.losses.reserve(backend, &self.loss, limits)?;
        for slot in &mut self.upload_slots {
            slot.reserve(backend, limits)?;
        }
        while self.upload_slots.len() < if B::ASYNCHRONOUS { upload_slots(accumulation) } else { 1 } {
            self.upload_slots.push(UploadSlot::new(backend, limits)?);
        }
        let capacity = CONTROL + accumulation * self.results(limits.seqs, limits.comparisons);
        self.spare_readback_buffers.retain(|(_, len)| *len >= capacity);
        while self.spare_readback_buffers.len() < STEPS_IN_FLIGHT {
            self.spare_readback_buffers.push((backend.readback_buffer(capacity)?, capacity));
        }
        Ok(())
    }

    /// Number of result values of a micro-batch, at most.
    fn results(&self, seqs: usize, comparisons: usize) -> usize {
        let stats = if self.loss.measures_tokens() { ROW_STATS } else { 0 };
        (2 + stats) * seqs + 2 * comparisons
    }

    /// Packer with this trainer's loss and shapes.
    pub fn packer(&self) -> &Packer {
        &self.packer
    }

    /// Host batch to fill, reused from a finished step if there is one.
    pub fn spare_step(&mut self) -> PackedStep {
        self.spare_steps.pop().unwrap_or_default()
    }

    /// Packs a global batch, begins a step and finishes it. Losses and gradients are means over the
    /// global batch. The counts are known before the first forward, so the split into micro-batches
    /// does not matter.
    pub fn step(&mut self, micro_batches: &[Vec<&TokenizedGroup>], learning_rate: f64) -> Result<StepReport> {
        let mut packed = self.spare_step();
        self.packer.pack(micro_batches, &mut packed)?;
        let pending = self.begin(packed, learning_rate)?;
        self.finish(pending)
    }

    /// Enqueues a step with its update; does not wait for running work.
    pub fn begin(&mut self, packed: PackedStep, learning_rate: f64) -> Result<Pending<B>> {
        let has_groups = !packed.micro_batches().is_empty();
        let mut pending = self.enqueue(packed)?;
        let on = (self.ranks, self.backend);
        if !self.ranks.is_alone() && self.unit_sums.is_none() && self.layer_sums.is_none() {
            let len = self.policy.trained().len;
            let begun = match self.gathers_weights {
                true => shard::scatter_gradients(on, &mut self.grads, len, has_groups)?,
                false => buffers::all_reduce(on, &mut self.grads, 0..len, has_groups)?,
            };
            pending.finite = begun.settle(self.backend)?.unwrap_or(true);
        }
        let known = if self.keeps_norms() { self.policy.known_norms(&self.norms) } else { None };
        let weights = self.policy.trained_weights_mut();
        match &mut self.slice_norms {
            Some(norms) => shard::update(on, (&mut self.optimizer, norms), weights, &self.grads, learning_rate)?,
            None => self.optimizer.update(self.backend, weights, (&self.grads, known), learning_rate)?,
        }
        if self.gathers_weights {
            shard::gather_weights(on, weights, self.optimizer.parameters())?;
        } else if self.policy.trains_shards() {
            self.policy.forget_gathered();
        }
        self.backend.fetch(View::first(&self.optimizer.control, CONTROL), &mut pending.results, 0)?;
        Ok(pending)
    }

    /// Waits for a step and returns its results. Steps finish in the order in which they began.
    pub fn finish(&mut self, pending: Pending<B>) -> Result<StepReport> {
        let mut report = StepReport {
            tally: Tally::default(),
            update: UpdateReport { grad_norm: 0.0, applied: false, skipped: 0 },
            not_finite: Vec::new(),
            odd_ranks: Vec::new(),
        };
        let finite = pending.finite;
        let control = self.collect(pending, &mut report.tally, &mut report.not_finite)?;
        report.update = UpdateReport::of(&control);
        if !self.ranks.is_alone() {
            let not_finite = std::mem::take(&mut report.not_finite);
            let whole = share::merge(self.ranks, &report.tally, not_finite, (finite, report.update.grad_norm))?;
            report =
                StepReport { tally: whole.tally, not_finite: whole.not_finite, odd_ranks: whole.odd_ranks, ..report };
        }
        Ok(report)
    }

    /// Computes loss and gradient of a global batch without an update.
    pub fn accumulate(
        &mut self,
        micro_batches: &[Vec<&TokenizedGroup>],
        tally: &mut Tally,
        not_finite: &mut Vec<String>,
    ) -> Result<()> {
        let mut packed = self.spare_step();
        self.packer.pack(micro_batches, &mut packed)?;
        let pending = self.enqueue(packed)?;
        self.collect(pending, tally, not_finite).map(|_| ())
    }

    /// Enqueues the copy of a micro-batch to the device.
    fn upload(&mut self, packed: &PackedMicroBatch) -> Result<()> {
        let (backend, longest) = (self.backend, packed.batch.longest_path);
        self.policy.reserve_positions(backend, longest)?;
        if let Some(frozen) = &mut self.frozen {
            frozen.reserve_positions(backend, longest)?;
        }
        if self.upload_slots.is_empty() {
            self.upload_slots.push(UploadSlot::new(backend, &BatchLimits::default())?);
        }
        self.next_slot %= self.upload_slots.len();
        let slot = &mut self.upload_slots[self.next_slot];
        self.next_slot += 1;
        slot.send(backend, &packed.host)?;
        self.batch.receive(backend, slot, &packed.host)
    }

    /// Scores `groups` with policy and frozen reference, without training; returns the scores and
    /// the sums over them.
    pub fn evaluate(
        &mut self,
        evaluator: &mut Evaluator<B>,
        groups: &[TokenizedGroup],
    ) -> Result<(Vec<GroupScores>, Tally)> {
        let models = (&mut self.policy, self.frozen.as_mut());
        evaluator.run_with_frozen(self.backend, models, &self.loss, groups, |_| ())
    }

    /// Evaluator for this trainer's policy. [`Trainer::evaluate`] adds the frozen reference.
    pub fn evaluator(&self) -> Result<Evaluator<B>> {
        Ok(Evaluator::new(self.backend, &self.policy, None)?.measuring(self.backend, &self.loss)?.on_ranks(self.ranks))
    }
}

/// Number of upload slots for an asynchronous device: one for each micro-batch in flight, so that
/// none waits for another.
pub(super) fn upload_slots(accumulation: usize) -> usize {
    STEPS_IN_FLIGHT * accumulation
}
