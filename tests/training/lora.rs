//! Training of low-rank adapters: gradients against finite differences, agreement of backends, frozen
//! weights, DPO's reference.

use common::fixtures::{groups, random_model, tiny_config};
use half::bf16;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Element;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, View, ViewMut};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, Method};
use mapl::model::config::ModelConfig;
use mapl::model::decoder::Model;
use mapl::model::family::FAMILIES;
use mapl::model::lora::{LoraSpec, draw};
use mapl::optim::adamw::AdamWSettings;
use mapl::rng::Rng;
use mapl::train::metrics::Tally;
use mapl::train::step::Trainer;

fn spec(config: &ModelConfig, rank: usize, names: &[&str]) -> LoraSpec {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    LoraSpec::new(config, rank, 10, false, &names).unwrap()
}

/// A model with adapters whose B is not zero.
fn adapted<B: Backend>(backend: &B, config: &ModelConfig, spec: LoraSpec) -> Model<B> {
    let mut model = random_model(backend, config, 1);
    draw(backend, &mut model, spec, 4).unwrap();
    let mut rng = Rng::keyed(5, &["adapters"]);
    let slots: Vec<_> = model.trained().slots.iter().map(|slot| slot.range()).collect();
    for range in slots {
        let values: Vec<f64> = range.clone().map(|_| bf16::from_f64(0.2 * rng.normal()).to_f64()).collect();
        backend.write_act(ViewMut::new(model.trained_weights_mut(), range.start, range.len()), &values).unwrap();
    }
    model
}

fn loss_of(method: Method) -> Loss {
    match method {
        Method::Sft => Loss::sft(),
        Method::Dpo | Method::Kto => {
            LossOptions { beta: Some(0.3), ..LossOptions::default() }.resolve(method, [1.0, 0.7, 0.4], false).unwrap()
        }
        Method::Reward => LossOptions::default().resolve(method, [1.0, 0.7, 0.4], false).unwrap(),
    }
}

/// A trainer of adapters; DPO's reference is the base.
fn trainer<'b, B: Backend>(backend: &'b B, model: Model<B>, method: Method) -> Trainer<'b, B> {
    let mut trainer = Trainer::new(backend, model, None, loss_of(method), AdamWSettings::default()).unwrap();
    if method == Method::Dpo {
        trainer.use_base_as_frozen().unwrap();
    }
    trainer
}

/// Computes the loss over all groups and leaves its gradient in `trainer.grads`.
fn loss(trainer: &mut Trainer<'_, Reference>, micro_batches: &[Vec<&TokenizedGroup>]) -> f64 {
    let mut tally = Tally::default();
    trainer.accumulate(micro_batches, &mut tally, &mut Vec::new()).unwrap();
    tally.loss(&trainer.loss)
}

/// Compares the gradient of every adapter tensor with finite differences, as `grads.rs` does.
fn check(family: &str, method: Method, rank: usize, names: &[&str], groups: &[TokenizedGroup]) {
    let config = tiny_config(family, method == Method::Reward);
    let model = adapted(&Reference, &config, spec(&config, rank, names));
    let mut trainer = trainer(&Reference, model, method);
    let micro_batches: Vec<Vec<&TokenizedGroup>> = vec![groups.iter().collect()];
    loss(&mut trainer, &micro_batches);
    let gradient = trainer.grads.clone();
    let slots = trainer.policy.trained().slots.to_vec();
    assert!(!slots.is_empty());
    let mut compare = |what: &str, first: usize, direction: &[f64]| {
        let values = trainer.policy.trained_weights()[first..first + direction.len()].to_vec();
        let h = 1e-4;
        let mut at = |steps: f64| {
            let weights = trainer.policy.trained_weights_mut();
            for (i, (value, part)) in values.iter().zip(direction).enumerate() {
                weights[first + i] = value + steps * h * part;
            }
            loss(&mut trainer, &micro_batches)
        };
        let difference = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
        trainer.policy.trained_weights_mut()[first..first + direction.len()].copy_from_slice(&values);
        let slope: f64 = gradient[first..].iter().zip(direction).map(|(g, part)| g * part).sum();
        let error = (slope - difference).abs();
        assert!(error < 1e-9 * (1.0 + slope.abs()), "{family} {names:?} {what}: {slope} against {difference}");
    };
    let mut rng = Rng::keyed(3, &["direction"]);
    for slot in &slots {
        let range = slot.range();
        let length = (range.len() as f64).sqrt();
        let direction: Vec<f64> = range.clone().map(|_| if rng.flip() { 1.0 } else { -1.0 } / length).collect();
        compare(&slot.spec.name, range.start, &direction);
        for i in [range.start, range.start + range.len() / 2, range.end - 1] {
            compare(&format!("{} at {i}", slot.spec.name), i, &[1.0]);
        }
        assert!(gradient[range].iter().any(|g| g.abs() > 1e-9), "{} has no gradient", slot.spec.name);
    }
}

#[test]
fn gradients_of_adapters_of_every_family_are_correct() {
    for family in FAMILIES {
        check(family.model_type, Method::Reward, 3, &[], &groups()[1..]);
    }
}

#[test]
fn gradients_of_dpo_against_the_base_are_correct() {
    check("qwen2", Method::Dpo, 2, &[], &groups());
    check("qwen3", Method::Dpo, 2, &[], &groups()[1..]);
    check("llama", Method::Sft, 2, &[], &groups()[1..]);
}

#[test]
fn gradients_of_some_targets_are_correct() {
    for names in [&["q_proj", "v_proj"][..], &["k_proj"], &["o_proj"], &["up_proj"], &["gate_proj", "down_proj"]] {
        check("llama", Method::Dpo, 2, names, &groups()[1..]);
    }
    for names in [&["qkv_proj"][..], &["gate_up_proj", "o_proj"]] {
        check("phi3", Method::Dpo, 2, names, &groups()[1..]);
    }
}

/// Results of two steps.
#[derive(Clone, Debug, PartialEq)]
struct Steps {
    losses: Vec<f64>,
    /// Gradient of the last step.
    gradient: Vec<f64>,
    /// Weights of the adapters after the steps.
    weights: Vec<f64>,
    /// Weights of the base after the steps.
    base: Vec<f64>,
}

fn read<B: Backend>(backend: &B, buffer: &B::Act, len: usize) -> Vec<f64> {
    let mut values = vec![0.0; len];
    backend.read_act(View::first(buffer, len), &mut values).unwrap();
    values
}

fn steps<B: Backend>(backend: &B, model: Model<B>, method: Method, recompute: bool) -> Steps {
    let mut trainer = trainer(backend, model, method);
    if recompute {
        trainer.recompute_activations().unwrap();
    }
    let groups = groups();
    let micro_batches: Vec<Vec<&TokenizedGroup>> = vec![groups[..2].iter().collect(), groups[2..].iter().collect()];
    let mut losses = Vec::new();
    let mut norm = 0.0;
    for _ in 0..2 {
        let report = trainer.step(&micro_batches, 1e-3).unwrap();
        losses.push(report.tally.loss(&trainer.loss));
        norm = report.update.grad_norm;
    }
    let len = trainer.policy.trained().len;
    let mut gradient = vec![0.0; len];
    backend.read_acc(View::first(&trainer.grads, len), &mut gradient).unwrap();
    let of_gradient = gradient.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((norm / of_gradient - 1.0).abs() < 1e-6, "the norm covers the adapters only: {norm}, {of_gradient}");
    Steps {
        losses,
        gradient,
        weights: read(backend, trainer.policy.trained_weights(), len),
        base: read(backend, &trainer.policy.weights, trainer.policy.layout.len),
    }
}

/// Norm of the difference, relative to the norm of `b`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = b.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(a.len() == b.len() && norm > 1e-6, "a zero vector makes the comparison vacuous");
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt() / norm
}

#[test]
fn the_cpu_agrees_with_the_reference() {
    for (family, method, rank) in
        [("qwen2", Method::Dpo, 8), ("phi3", Method::Dpo, 3), ("qwen3", Method::Reward, 4), ("llama", Method::Sft, 16)]
    {
        let config = tiny_config(family, method == Method::Reward);
        let cpu = Cpu::new();
        let got = steps(&cpu, adapted(&cpu, &config, spec(&config, rank, &[])), method, false);
        let expected = steps(&Reference, adapted(&Reference, &config, spec(&config, rank, &[])), method, false);
        assert!(distance(&got.losses, &expected.losses) < 1e-5, "{family}: {:?}", got.losses);
        assert!(distance(&got.gradient, &expected.gradient) < 1e-4, "{family}");
        assert!(distance(&got.weights, &expected.weights) < 1e-4, "{family}");
    }
}

#[test]
fn frozen_weights_keep_their_bits_and_adapters_move() {
    for method in [Method::Sft, Method::Reward, Method::Dpo] {
        let config = tiny_config("seed_oss", method == Method::Reward);
        let (cpu, spec) = (Cpu::new(), spec(&config, 4, &[]));
        let start = adapted(&cpu, &config, spec.clone());
        let (base, adapters) = (start.weights.clone(), start.trained_weights().clone());
        let got = steps(&cpu, start, method, false);
        assert!(got.base.iter().zip(&base).all(|(a, b)| *a == f64::from(*b)), "{method:?}");
        assert!(got.weights.iter().zip(&adapters).any(|(a, b)| *a != f64::from(*b)), "{method:?}");
    }
}

#[test]
fn optimiser_state_and_gradients_have_the_size_of_the_adapters() {
    let config = tiny_config("llama", true);
    let cpu = Cpu::new();
    let trainer = trainer(&cpu, adapted(&cpu, &config, spec(&config, 2, &["q_proj"])), Method::Reward);
    // Two layers of A (2, 16) and B (24, 2), each in units of 64 elements, and the score head.
    let len = 2 * (64 + 64) + 64;
    assert_eq!(trainer.policy.trained().len, len);
    for buffer in [&trainer.optimizer.m, &trainer.optimizer.v, &trainer.grads] {
        assert_eq!(buffer.len(), len);
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    for (family, method) in [("qwen3", Method::Dpo), ("phi3", Method::Reward)] {
        let mut config = tiny_config(family, method == Method::Reward);
        config.layers = 3;
        let cpu = Cpu::new();
        let run = |recompute| steps(&cpu, adapted(&cpu, &config, spec(&config, 3, &[])), method, recompute);
        assert!(run(true) == run(false), "{family}");
    }
}

/// Scores of policy and reference of the first batch.
fn scores_of<B: Backend>(backend: &B, trainer: &mut Trainer<'_, B>) -> [Vec<f64>; 2] {
    let _ = backend;
    let mut evaluator = trainer.evaluator().unwrap();
    let (scores, _) = trainer.evaluate(&mut evaluator, &groups()).unwrap();
    let reference = scores.iter().filter_map(|s| s.reference.clone()).flatten().collect();
    [scores.into_iter().flat_map(|s| s.policy).collect(), reference]
}

/// Before the first update, policy and reference are the model without adapters, bit for bit; after it,
/// the reference still is.
fn starts_as_the_base<B: Backend>(backend: &B, config: &ModelConfig) {
    let base = random_model(backend, config, 1);
    let plain = Trainer::new(backend, base, None, loss_of(Method::Dpo), AdamWSettings::default());
    let [expected, none] = scores_of(backend, &mut plain.unwrap());
    assert!(none.is_empty());
    let mut model = random_model(backend, config, 1);
    draw(backend, &mut model, spec(config, 8, &[]), 9).unwrap();
    let mut trainer = trainer(backend, model, Method::Dpo);
    let start = scores_of(backend, &mut trainer);
    assert_eq!(start, [expected.clone(), expected.clone()], "{}", B::NAME);
    let groups = groups();
    trainer.step(&[groups.iter().collect()], 1e-2).unwrap();
    let [policy, reference] = scores_of(backend, &mut trainer);
    assert_eq!(reference, expected);
    assert_ne!(policy, expected);
}

#[test]
fn dpo_starts_as_the_base_and_its_reference_stays_there() {
    for family in ["qwen2", "qwen3", "phi3"] {
        let config = tiny_config(family, false);
        starts_as_the_base(&Reference, &config);
        starts_as_the_base(&Cpu::new(), &config);
        if let Some(emulator) = common::emulator(Schedule::Random(3), 3) {
            starts_as_the_base(&Kernels::<_, f32>::new(emulator), &config);
        }
        if let Some(emulator) = common::emulator(Schedule::Random(3), 3) {
            starts_as_the_base(&Kernels::<_, bf16>::new(emulator), &config);
        }
    }
}

/// Hidden size 64, so that every row suits the widest loads, and weights of the size of
/// `kernels_model.rs`, so that rounding errors do not grow from layer to layer.
fn aligned_config(family: &str, reward: bool) -> ModelConfig {
    let mut config = tiny_config(family, reward);
    (config.hidden, config.intermediate, config.head_dim) = (64, 96, 16);
    config.initializer_range = 0.1;
    config
}

/// Two steps on the emulator, with equal bits in every schedule.
fn on_emulator<A: Element>(config: &ModelConfig, method: Method, rank: usize, rslora: bool) -> Option<Steps> {
    let mut first: Option<Steps> = None;
    for (schedule, processors, _) in common::emulated() {
        let backend = Kernels::<_, A>::new(common::emulator(schedule, processors)?);
        let spec = LoraSpec { rslora, ..spec(config, rank, &[]) };
        let got = steps(&backend, rounded(&backend, config, spec), method, false);
        if let Some(first) = &first {
            assert!(&got == first, "{schedule:?}, {processors} processors");
        }
        first = Some(got);
    }
    first
}

/// A model with adapters and weights rounded to bf16, so that every backend starts from the same values.
fn rounded<B: Backend>(backend: &B, config: &ModelConfig, spec: LoraSpec) -> Model<B> {
    let mut model = adapted(backend, config, spec);
    let slots: Vec<_> = model.trained().slots.iter().map(|slot| slot.range()).collect();
    for range in slots {
        let smaller: Vec<f64> = read(backend, model.trained_weights(), model.trained().len)[range.clone()]
            .iter()
            .map(|w| w / 4.0)
            .collect();
        backend.write_act(ViewMut::new(model.trained_weights_mut(), range.start, range.len()), &smaller).unwrap();
    }
    let len = model.layout.len;
    let weights: Vec<f64> = read(backend, &model.weights, len).iter().map(|w| bf16::from_f64(*w).to_f64()).collect();
    backend.write_act(ViewMut::first(&mut model.weights, len), &weights).unwrap();
    model
}

/// The ranks give GEMMs with 8, 16 and 5 columns, and stacked ones with two or three times as many.
#[test]
fn the_kernels_agree_with_the_reference() {
    for (family, method, rank, rslora) in [
        ("qwen2", Method::Dpo, 8, false),
        ("qwen3", Method::Reward, 16, true),
        ("phi3", Method::Dpo, 5, true),
        ("llama", Method::Sft, 8, true),
    ] {
        let config = aligned_config(family, method == Method::Reward);
        let spec = LoraSpec { rslora, ..spec(&config, rank, &[]) };
        let expected = steps(&Reference, rounded(&Reference, &config, spec), method, false);
        let Some(got) = on_emulator::<f32>(&config, method, rank, rslora) else { return };
        let (loss, gradient) = (distance(&got.losses, &expected.losses), distance(&got.gradient, &expected.gradient));
        println!("{family} f32: loss {loss:.1e}, gradient {gradient:.1e}");
        assert!(loss < 1e-5 && gradient < 1e-4, "{family}: loss {loss:e}, gradient {gradient:e}");
        let got = on_emulator::<bf16>(&config, method, rank, rslora).unwrap();
        let (loss, gradient) = (distance(&got.losses, &expected.losses), distance(&got.gradient, &expected.gradient));
        println!("{family} bf16: loss {loss:.1e}, gradient {gradient:.1e}");
        // The tolerances are those of bf16 in `kernels_model.rs`.
        assert!(loss < 4e-2 && gradient < 5e-2, "{family}: loss {loss:e}, gradient {gradient:e}");
    }
}
