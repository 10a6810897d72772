//! Device calls of a step: no allocation and no synchronisation, one wait for the results at its
//! end, and the launches of its layers. A captured and replayed step equals a direct step.

use std::collections::BTreeMap;

use common::fixtures::{groups, random_model, tiny_config};
use common::observed::{Calls, Observed};
use half::bf16;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Element;
use mapl::backend::kernels::emulator::{Emulator, Schedule};
use mapl::backend::{Backend, View};
use mapl::data::pack::{ComparisonOptions, GroupSizes};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{LossOptions, Method};
use mapl::model::config::ModelConfig;
use mapl::model::lora::{LoraSpec, draw};
use mapl::optim::adamw::AdamWSettings;
use mapl::train::batch::packing::PackedStep;
use mapl::train::memory::{MemoryInputs, MemoryPlan, PlannedReference, Sharded};
use mapl::train::pack_options;
use mapl::train::step::Trainer;

type Device<A> = Kernels<Observed, A>;

fn device() -> Option<Device<f32>> {
    observed(true)
}

/// A device that counts calls; its kernels run only if `runs`.
fn observed(runs: bool) -> Option<Device<f32>> {
    match Emulator::new() {
        Ok(emulator) => Some(Kernels::new(Observed::new(emulator, runs))),
        Err(why) => {
            assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
            println!("SKIPPED: {why}");
            None
        }
    }
}

fn with_layers(family: &str, method: Method, layers: usize) -> ModelConfig {
    let mut config = tiny_config(family, method == Method::Reward);
    config.layers = layers;
    config
}

/// A Hopper GPU, which runs linear layers and the head with the Hopper kernels. Kernels do not run.
fn hopper() -> Option<Device<bf16>> {
    observed(false).map(|_| Kernels::new(Observed::new(Emulator::with(Schedule::Rising, 4).unwrap(), false)))
}

fn trainer<'b, A: Element>(
    backend: &'b Device<A>,
    family: &str,
    method: Method,
    layers: usize,
) -> Trainer<'b, Device<A>> {
    let config = with_layers(family, method, layers);
    let beta = (method == Method::Dpo).then_some(0.3);
    let nll_weight = (method == Method::Dpo).then_some(0.1);
    let options = LossOptions { beta, nll_weight, ..LossOptions::default() };
    let loss = options.resolve(method, [1.0, 0.7, 0.4], false).unwrap();
    let policy = random_model(backend, &config, 1);
    let reference = (method == Method::Dpo).then(|| random_model(backend, &config, 2));
    Trainer::new(backend, policy, reference, loss, AdamWSettings::default()).unwrap()
}

/// A trainer of adapters of rank 4 on all linear layers; DPO's reference is the base.
fn adapted<'b, A: Element>(backend: &'b Device<A>, family: &str, method: Method) -> Trainer<'b, Device<A>> {
    let config = with_layers(family, method, 2);
    let loss = LossOptions::default().resolve(method, [1.0, 0.7, 0.4], false).unwrap();
    let mut policy = random_model(backend, &config, 1);
    let spec = LoraSpec::new(&config, 4, 10, false, &[]).unwrap();
    draw(backend, &mut policy, spec, 1).unwrap();
    let mut trainer = Trainer::new(backend, policy, None, loss, AdamWSettings::default()).unwrap();
    if method == Method::Dpo {
        trainer.use_base_as_frozen().unwrap();
    }
    trainer
}

/// Micro-batches of different shapes, two per step.
fn steps(groups: &[TokenizedGroup]) -> Vec<Vec<Vec<&TokenizedGroup>>> {
    let [a, b, c] = [&groups[0], &groups[1], &groups[2]];
    vec![vec![vec![a, b], vec![c]], vec![vec![b, c], vec![a]], vec![vec![c, a], vec![b]], vec![vec![a], vec![b, c]]]
}

fn pack<A: Element>(trainer: &mut Trainer<'_, Device<A>>, micro_batches: &[Vec<&TokenizedGroup>]) -> PackedStep {
    let mut packed = trainer.spare_step();
    trainer.packer().pack(micro_batches, &mut packed).unwrap();
    packed
}

/// Memory plan of a run with two micro-batches of two groups per step.
fn plan<A: Element>(
    backend: &Device<A>,
    trainer: &Trainer<'_, Device<A>>,
    groups: &[TokenizedGroup],
    replays: bool,
) -> MemoryPlan {
    let (config, loss) = (&trainer.policy.config, &trainer.loss);
    let subject = MemoryInputs {
        ranks: 1,
        sharded: Sharded::Nothing,
        head_rows: 0,
        generation: None,
        config,
        lora: trainer.policy.lora.as_ref().map(|lora| &lora.layout.spec),
        reference: match loss.method {
            Method::Dpo | Method::Kto if trainer.policy.lora.is_some() => PlannedReference::Base,
            Method::Dpo | Method::Kto => PlannedReference::Model(config),
            Method::Sft | Method::Reward => PlannedReference::None,
        },
        loss,
        precision: A::PRECISION,
        kernels: backend.kernel_properties(),
        accumulation: 2,
        recompute: false,
        replays,
    };
    let comparison = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
    let sizes = GroupSizes::measure(groups, &pack_options(loss, config.vocab, config.pad), &comparison).unwrap();
    MemoryPlan::new(&subject, &sizes, 2, None).unwrap().unwrap()
}

/// Runs nine steps, two in flight at a time, and checks their allocations and waits. Kernels need
/// not run: no call depends on their results.
fn check_steps_do_not_allocate_or_wait<A: Element>(
    backend: &Device<A>,
    mut trainer: Trainer<'_, Device<A>>,
    replays: bool,
) {
    let (groups, method) = (groups(), trainer.loss.method);
    let limits = trainer.limits(&groups, 2).unwrap();
    trainer.replay_steps(replays);
    trainer.reserve(&limits, 2).unwrap();
    let plan = plan(backend, &trainer, &groups, replays);
    backend.reserve_workspace(plan.workspace()).unwrap();
    // All memory is allocated at this point: the trainer allocated the models.
    let (taken, planned) = (backend.device().take().bytes as f64, plan.total() as f64);
    println!("{method:?}: {taken} bytes taken, {planned} planned");
    assert!((0.95..1.05).contains(&(taken / planned)), "{method:?}: {taken} bytes taken, {planned} planned");
    let mut under_way = None;
    backend.device().take();
    for micro_batches in steps(&groups).iter().cycle().take(9) {
        let packed = pack(&mut trainer, micro_batches);
        let next = trainer.begin(packed, 1e-3).unwrap();
        let begun = backend.device().take();
        assert_eq!(begun.allocations, BTreeMap::new(), "{method:?}");
        assert_eq!(begun.synchronisations, BTreeMap::new(), "{method:?}");
        assert_eq!((begun.of("open"), begun.of("send")), (0, 2), "{method:?}: {begun:?}");
        if let Some(pending) = under_way.replace(next) {
            trainer.finish(pending).unwrap();
            let finished = backend.device().take();
            assert_eq!(finished.by_name, BTreeMap::from([("open", 1)]), "{method:?}");
            assert_eq!(finished.synchronisations, BTreeMap::new(), "{method:?}");
        }
    }
}

#[test]
fn a_step_allocates_nothing_and_waits_only_for_its_results() {
    for (family, method, replays) in [
        ("qwen2", Method::Dpo, false),
        ("qwen2", Method::Reward, false),
        ("qwen2", Method::Sft, false),
        ("qwen2", Method::Dpo, true),
        ("qwen2", Method::Reward, true),
        ("qwen3", Method::Dpo, true),
        ("seed_oss", Method::Reward, false),
    ] {
        let Some(backend) = observed(false) else { return };
        check_steps_do_not_allocate_or_wait(&backend, trainer(&backend, family, method, 2), replays);
    }
}

#[test]
fn a_step_with_hopper_kernels_allocates_nothing_and_waits_only_for_its_results() {
    for (method, replays) in [(Method::Dpo, false), (Method::Reward, true)] {
        let Some(backend) = hopper() else { return };
        check_steps_do_not_allocate_or_wait(&backend, trainer(&backend, "qwen2", method, 2), replays);
    }
}

#[test]
fn a_step_of_adapters_allocates_nothing_and_waits_only_for_its_results() {
    for (family, method, replays) in
        [("qwen2", Method::Dpo, true), ("phi3", Method::Reward, false), ("qwen3", Method::Sft, true)]
    {
        let Some(backend) = observed(false) else { return };
        check_steps_do_not_allocate_or_wait(&backend, adapted(&backend, family, method), replays);
        let backend = hopper().unwrap();
        check_steps_do_not_allocate_or_wait(&backend, adapted(&backend, family, method), replays);
    }
}

/// Shows that the tests above can fail. The device counts waits if a step has fewer than two upload
/// buffers per micro-batch, or if results are read inside a step.
#[test]
fn waits_inside_a_step_are_detected() {
    let Some(backend) = device() else { return };
    let groups = groups();
    let mut trainer = trainer(&backend, "qwen2", Method::Dpo, 1);
    let packed = pack(&mut trainer, &steps(&groups)[0]);
    // Nothing is reserved, so there is a single upload buffer: it grows, and the second micro-batch
    // must wait for it.
    let pending = trainer.begin(packed, 1e-3).unwrap();
    let calls = backend.device().take();
    assert!(calls.allocations["allocate"] > 0 && calls.allocations["upload_buffer"] > 0, "{calls:?}");
    let packed = pack(&mut trainer, &steps(&groups)[1]);
    let second = trainer.begin(packed, 1e-3).unwrap();
    assert!(backend.device().take().synchronisations["fill"] > 0);
    trainer.finish(pending).unwrap();
    trainer.finish(second).unwrap();
    let mut weights = vec![0.0; 4];
    backend.read_act(View::first(&trainer.policy.weights, 4), &mut weights).unwrap();
    assert_eq!(backend.device().take().synchronisations, BTreeMap::from([("download", 1)]));
}

/// Losses and norms, final weights and device calls of steps over batches of many shapes.
fn trained(method: Method, replays: bool, adapters: bool) -> Option<(Vec<f64>, Vec<f64>, Calls)> {
    let backend = device()?;
    let groups = groups();
    let mut trainer = match adapters {
        true => adapted(&backend, "qwen2", method),
        false => trainer(&backend, "qwen2", method, 1),
    };
    trainer.replay_steps(replays);
    let limits = trainer.limits(&groups, 2).unwrap();
    trainer.reserve(&limits, 2).unwrap();
    backend.device().take();
    let mut numbers = Vec::new();
    for micro_batches in steps(&groups).iter().cycle().take(12) {
        let report = trainer.step(micro_batches, 1e-2).unwrap();
        assert!(report.update.applied);
        numbers.extend([report.tally.loss(&trainer.loss), report.update.grad_norm]);
    }
    let calls = backend.device().take();
    let mut weights = vec![0.0; trainer.policy.trained().len];
    backend.read_act(View::first(trainer.policy.trained_weights(), weights.len()), &mut weights).unwrap();
    Some((numbers, weights, calls))
}

#[test]
fn replayed_steps_equal_direct_steps_bit_for_bit() {
    for (method, adapters) in [(Method::Dpo, false), (Method::Reward, false), (Method::Sft, false), (Method::Dpo, true)]
    {
        let Some((numbers, weights, calls)) = trained(method, false, adapters) else { return };
        let (replayed, of_replayed, calls_of_replayed) = trained(method, true, adapters).unwrap();
        assert_eq!((calls.of("record"), calls.of("replay")), (0, 0));
        // Every shape is captured once as first and once as later micro-batch of a step, after a
        // first direct run.
        let (recorded, replays) = (calls_of_replayed.of("record"), calls_of_replayed.of("replay"));
        println!("{method:?}: {recorded} captured, {replays} replayed of 24");
        assert!(recorded <= 8 && replays + recorded == 24 && replays > 12, "{method:?}: {recorded}, {replays}");
        assert_eq!(replayed, numbers, "{method:?}");
        assert!(weights == of_replayed, "{method:?}");
        assert!(numbers[0] != numbers[2]);
    }
}

/// Device calls of one micro-batch of a model with `layers` layers.
fn launches(family: &str, method: Method, layers: usize) -> Option<Calls> {
    let backend = device()?;
    let groups = groups();
    let mut trainer = trainer(&backend, family, method, layers);
    let packed = pack(&mut trainer, &[groups.iter().collect()]);
    let pending = trainer.begin(packed, 1e-3).unwrap();
    let calls = backend.device().take();
    trainer.finish(pending).unwrap();
    Some(calls)
}

/// Launches of one layer of a reward model, and the calls of a model with three.
fn launches_of_a_layer(family: &str) -> Option<(BTreeMap<&'static str, usize>, Calls)> {
    let (two, three) = (launches(family, Method::Reward, 2)?, launches(family, Method::Reward, 3)?);
    let mut layer = three.launches.clone();
    layer.iter_mut().for_each(|(name, count)| *count -= two.launches.get(name).unwrap_or(&0));
    layer.retain(|_, count| *count > 0);
    Some((layer, three))
}

/// Compared with a Qwen2 layer, a layer of another family launches more or fewer kernels only for the biases
/// and norms in its row of the family table.
#[test]
fn launches_of_other_families_differ_by_their_rows() {
    let Some((layer, _)) = launches_of_a_layer("qwen2") else { return };
    let changed = |changes: &[(&'static str, usize)]| {
        let mut changed = layer.clone();
        changed.extend(changes.iter().copied());
        changed.retain(|_, count| *count > 0);
        changed
    };
    for (family, changes) in [
        ("llama", &[("bias_bwd_f32", 0), ("sum_slices", 2)][..]),
        ("phi3", &[("bias_bwd_f32", 0), ("sum_slices", 2)]),
        ("seed_oss", &[("bias_bwd_f32", 2), ("sum_slices", 4)]),
        ("qwen3", &[("bias_bwd_f32", 0), ("qk_norm_fwd_f32", 1), ("qk_norm_bwd_f32", 1)]),
    ] {
        assert_eq!(launches_of_a_layer(family).unwrap().0, changed(changes), "{family}");
    }
}

#[test]
fn launches_of_a_layer_match_the_design() {
    let Some((layer, three)) = launches_of_a_layer("qwen2") else { return };
    let expected = [
        // Forward: norm, QKV, RoPE, plan and attention, output with residual, norm, gate and up
        // with activation, down with residual. RoPE and the plan run once more in the backward
        // pass.
        ("norm_fwd_32_f32", 2),
        ("linear_fwd_f32", 3),
        ("rope_f32", 2),
        ("attention_plan", 2),
        ("attention_fwd_32_f32", 1),
        ("linear_glu_fwd_f32", 1),
        // Backward: four weight gradients, three input gradients and the gated one, attention in
        // three passes, norms. Sums over token slices give the gradients of two norms and a bias.
        ("linear_bwd_weight_f32", 4),
        ("linear_bwd_input_f32", 3),
        ("linear_glu_bwd_f32", 1),
        ("attention_bwd_delta_f32", 1),
        ("attention_bwd_q_32_f32", 1),
        ("attention_bwd_kv_32_f32", 1),
        ("bias_bwd_f32", 1),
        ("norm_bwd_32_f32", 2),
        ("sum_slices", 3),
    ];
    assert_eq!(layer, BTreeMap::from(expected));
    // Outside the layers: embedding, final norm, head, loss, and the update.
    assert_eq!(three.launched() - 3 * layer.values().sum::<usize>(), 12);
}
