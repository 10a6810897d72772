//! A rehearsal of the largest step of a run: the run's own buffers and op calls, on a device that only counts
//! bytes. With several ranks, it rehearses the rank that needs the most memory.

use crate::Result;
use crate::backend::contract::*;
use crate::backend::cpu::{StepSizes, Units, workspace_bytes};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Element, Properties};
use crate::backend::kernels::rehearsal::Rehearsal;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::data::pack::BatchLimits;
use crate::model::activations::{Activations, Mode};
use crate::model::config::{Head, ModelConfig};
use crate::model::decoder::Model;
use crate::model::decoder_cached::{KvCache, LastLogits};
use crate::model::decoder_grad::GradientsOut;
use crate::model::lora::Lora;
use crate::model::shards::Sharding;
use crate::ranks::collective::shard_of;
use crate::train::batch::upload::{DeviceBatch, UploadSlot};
use crate::train::frozen::Frozen;
use crate::train::losses::LossBuffers;
use crate::train::score::Scorer;
use crate::train::step::upload_slots;
use crate::train::unit_sums::UnitSums;

use super::{MemoryInputs, Parts, PlannedGeneration, PlannedReference, Sharded, WORKSPACE};

/// KV cache, activations and logits of generation, as `model::decoder_cached` uses them.
fn generation_buffers<B: Backend>(
    backend: &B,
    policy: &Model<B>,
    planned: PlannedGeneration,
) -> Result<(KvCache<B>, Activations<B>, LastLogits<B>)> {
    let cache = KvCache::new(backend, &policy.config, planned.slots)?;
    let adapters = policy.lora.as_ref().map(|lora| lora.layout.clone());
    let mut acts = Activations::with_adapters(backend, &policy.config, adapters, Mode::Infer, 0)?;
    acts.grow(backend, &policy.config, planned.tokens)?;
    let mut logits = LastLogits::new(backend)?;
    logits.grow(backend, &policy.config, planned.rows)?;
    Ok((cache, acts, logits))
}

/// Workspace of the CPU's ops for the largest step.
fn cpu_workspace(subject: &MemoryInputs<'_>, limits: &BatchLimits) -> u64 {
    let of = |config: &ModelConfig, infers: bool| {
        let rows = if config.head == Head::LanguageModel { limits.rows } else { 0 };
        let (queries, fused) = (config.heads * config.head_dim, config.heads + 2 * config.kv_heads);
        let sizes = StepSizes {
            tokens: limits.tokens,
            rows,
            hidden: config.hidden,
            queries,
            fused: fused * config.head_dim,
            intermediate: config.intermediate,
            mlp: config.mlp_width(),
            infers,
        };
        workspace_bytes(subject.precision, Units::chosen_or_f32(), &sizes)
    };
    let reference = match subject.reference {
        PlannedReference::None => 0,
        PlannedReference::Base => of(subject.config, true),
        PlannedReference::Model(config) => of(config, true),
    };
    of(subject.config, false).max(reference)
}

/// Returns the bytes by part. Allocates the run's buffers on a device that only counts bytes.
pub(super) fn rehearse<A: Element>(subject: &MemoryInputs<'_>, limits: &BatchLimits) -> Result<Parts> {
    let none = Properties { name: String::new(), processors: 1, shared_bytes: 0, compute_capability: (0, 0) };
    let backend = Kernels::<_, A>::new(Rehearsal::of(subject.kernels.unwrap_or(&none)));
    backend.set_max_head_rows(subject.head_rows);
    let mut parts = Vec::new();
    let mut seen = 0;
    let mut part = |name: &'static str, backend: &Kernels<Rehearsal, A>| {
        let now = backend.device().bytes();
        parts.push((name, now - seen));
        seen = now;
    };
    let positions = limits.longest_path.max(subject.generation.map_or(0, |planned| planned.longest)).max(1);
    let sharding = (subject.sharded == Sharded::Weights).then(|| Sharding::planned(subject.ranks));
    let mut policy = Model::zeros_on(&backend, subject.config.clone(), positions, sharding)?;
    part("weights", &backend);
    policy.lora = subject.lora.map(|spec| Lora::zeros(&backend, subject.config, spec.clone())).transpose()?;
    part("adapter weights", &backend);
    policy.reserve_windows(&backend)?;
    part("gathered weights", &backend);
    let len = policy.trained_part().len();
    let state = match subject.sharded == Sharded::Nothing || policy.trains_shards() {
        true => len,
        false => (0..subject.ranks).map(|rank| shard_of(len, rank, subject.ranks).len()).max().unwrap_or(len),
    };
    let _master = match A::PRECISION {
        Precision::Bf16 => Some(backend.zeros_acc(state)?),
        Precision::F32 | Precision::F64 => None,
    };
    part("weights in full precision", &backend);
    let mut grads = backend.zeros_acc(len)?;
    let mut norms = backend.zeros_acc(if policy.trains_shards() { 0 } else { policy.trained().norms })?;
    part("gradients", &backend);
    let mut unit_sums = UnitSums::new(&backend, &policy)?;
    part("gradients of units", &backend);
    let _moments = (backend.zeros_acc(state)?, backend.zeros_acc(state)?);
    part("AdamW moments", &backend);
    let reference = match subject.reference {
        PlannedReference::Model(config) => Some(Model::zeros_on(&backend, config.clone(), positions, sharding)?),
        PlannedReference::None | PlannedReference::Base => None,
    };
    part("reference weights", &backend);
    let mode = if subject.recompute { Mode::Recompute } else { Mode::Train };
    let mut scorer = Scorer::new(&backend, &policy, mode)?.measuring(&backend, subject.loss)?;
    scorer.reserve(&backend, &policy, mode, limits)?;
    part("activations", &backend);
    let mut frozen = match (subject.reference, reference) {
        (PlannedReference::Base, _) => Some(Frozen::base(&backend, &policy)?),
        (_, Some(model)) => Some(Frozen::online(&backend, model)?),
        (_, None) => None,
    };
    if let Some(frozen) = &mut frozen {
        frozen.reserve(&backend, &mut policy, limits)?;
    }
    part("reference activations", &backend);
    let batch = DeviceBatch::of_limits(&backend, limits, policy.max_head_rows(&backend))?;
    let slots = if subject.kernels.is_some() { upload_slots(subject.accumulation) } else { 0 };
    let _slots = (0..slots).map(|_| UploadSlot::new(&backend, limits)).collect::<Result<Vec<_>>>()?;
    let mut scores = backend.zeros_acc(2 * limits.seqs + 2 * limits.comparisons + CONTROL)?;
    backend.reserve_turns()?;
    part("batch", &backend);
    let _generation = subject.generation.map(|planned| generation_buffers(&backend, &policy, planned)).transpose()?;
    part("generation", &backend);
    if subject.kernels.is_some() {
        let reduce = subject.loss.reduce;
        if let Some(frozen) = &mut frozen {
            frozen.forward(&backend, &mut policy, &batch, reduce)?;
        }
        scorer.run_model(&backend, &mut policy, &batch)?;
        let frozen = frozen.as_ref().map(|frozen| frozen.scores(&batch));
        let mut buffers = LossBuffers::new(&backend)?;
        if let Some(weights) = buffers.weights(&backend, subject.loss, limits.seqs)? {
            scorer.pair_weights(&backend, &policy, &batch, weights)?;
        }
        let losses = buffers.of_batch(&backend, subject.loss, &batch, frozen)?;
        let (mut summing, write) = (None, Write::Overwrite);
        let mut out = match &mut unit_sums {
            Some(sums) => {
                let (windows, of_units) = sums.of_micro_batch((&mut grads, write), false);
                let units = summing.insert(of_units);
                GradientsOut { grads: windows, write, norms: None, units: Some(units) }
            }
            None => GradientsOut { grads: &mut grads, write, norms: Some(&mut norms), units: None },
        };
        scorer.head_and_losses(&backend, &policy, &batch, reduce, losses, &mut out)?;
        scorer.model_backward(&backend, &mut policy, &batch, out)?;
        backend.grad_norm(GradNorm {
            len,
            max_norm: 1.0,
            grads: View::first(&grads, len),
            known: if policy.trains_shards() { None } else { policy.known_norms(&norms) },
            control: ViewMut::first(&mut scores, CONTROL),
        })?;
        parts.push((WORKSPACE, backend.scratch_bytes() as u64));
    } else {
        parts.push((WORKSPACE, cpu_workspace(subject, limits)));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::pack::{ComparisonOptions, GroupSizes};
    use crate::data::tokenized::TokenizedGroup;
    use crate::loss::objective::{LossOptions, Method};
    use crate::model::{presets, store};
    use crate::optim::adamw::AdamWSettings;
    use crate::ranks::rehearsal::Rehearsal as Ranks;
    use crate::train::batch::packing::PackedStep;
    use crate::train::memory::MemoryPlan;
    use crate::train::pack_for;
    use crate::train::sharded_steps::pair;
    use crate::train::step::Trainer;

    /// Returns the bytes that a step on 4 ranks allocates on the counting device, for the rank that needs the
    /// most.
    fn taken(subject: &MemoryInputs<'_>, sizes: &GroupSizes, groups: &[TokenizedGroup]) -> u64 {
        let ranks: &'static [Ranks] = Ranks::ranks(4).leak();
        let work = |ranks: &'static Ranks| {
            let backend = Kernels::<_, f32>::new(Rehearsal::of(subject.kernels.unwrap()));
            let sharding = (subject.sharded == Sharded::Weights).then(|| Sharding::over(ranks));
            let model = |seed| store::random_on(&backend, subject.config.clone(), seed, sharding).unwrap();
            let shard = (AdamWSettings::default(), subject.sharded != Sharded::Nothing);
            let models = (model(1), Some(model(2)));
            let mut trainer = Trainer::on_ranks(ranks, &backend, models, subject.loss.clone(), shard).unwrap();
            trainer.reserve(&sizes.limits(groups.len()), 1).unwrap();
            let mut packed = PackedStep::default();
            trainer.packer().pack_part(groups.iter(), &[groups.iter().collect()], &mut packed).unwrap();
            let pending = trainer.begin(packed, 0.01).unwrap();
            trainer.finish(pending).unwrap();
            backend.device().bytes()
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(move || work(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).max().unwrap()
        })
    }

    #[test]
    fn each_of_several_ranks_takes_what_is_planned() {
        let mut config = presets::config("llama-tiny").unwrap();
        (config.layers, config.vocab, config.tied) = (6, 600, false);
        let loss = LossOptions { beta: Some(0.1), ..LossOptions::default() };
        let loss = loss.resolve(Method::Dpo, [1.0; KINDS], false).unwrap();
        let groups: Vec<TokenizedGroup> = (0..4).map(pair).collect();
        let comparison = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
        let sizes = GroupSizes::measure(&groups, &pack_for(&loss, &config), &comparison).unwrap();
        let card =
            Properties { name: "card".into(), processors: 16, shared_bytes: 232_448, compute_capability: (9, 0) };
        let mut totals = Vec::new();
        for sharded in [Sharded::Nothing, Sharded::Optimizer, Sharded::Weights] {
            let subject = MemoryInputs {
                config: &config,
                lora: None,
                reference: PlannedReference::Model(&config),
                loss: &loss,
                precision: Precision::F32,
                recompute: false,
                replays: false,
                accumulation: 1,
                kernels: Some(&card),
                generation: None,
                head_rows: 0,
                ranks: 4,
                sharded,
            };
            let planned = MemoryPlan::new(&subject, &sizes, groups.len(), None).unwrap().unwrap().total();
            let taken = taken(&subject, &sizes, &groups);
            let share = planned as f64 / taken as f64;
            assert!((0.95..1.05).contains(&share), "{sharded:?}: {planned} bytes planned, {taken} taken");
            totals.push(taken);
        }
        assert!(totals[0] > totals[1] && totals[1] > totals[2], "{totals:?}");
    }
}
