//! Recomputed activations: the same bits of gradients and updates on every backend, with less
//! memory.

use common::fixtures::{groups, random_model, tiny_config};
use half::bf16;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, View};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, Method};
use mapl::model::activations::{Activations, Mode};
use mapl::model::config::ModelConfig;
use mapl::model::family::FAMILIES;
use mapl::optim::adamw::AdamWSettings;
use mapl::train::step::Trainer;

fn three_layers(family: &str, reward: bool) -> ModelConfig {
    let mut config = tiny_config(family, reward);
    config.layers = 3;
    config
}

/// Losses of two steps, gradients of the last step, and weights after it.
fn trained<B: Backend>(backend: &B, family: &str, method: Method, recompute: bool) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let config = three_layers(family, method == Method::Reward);
    let loss = match method {
        Method::Sft => Loss::sft(),
        _ => LossOptions::default().resolve(method, [1.0, 0.7, 0.4], false).unwrap(),
    };
    let reference = (method == Method::Dpo).then(|| random_model(backend, &config, 2));
    let policy = random_model(backend, &config, 1);
    let mut trainer = Trainer::new(backend, policy, reference, loss, AdamWSettings::default()).unwrap();
    if recompute {
        trainer.recompute_activations().unwrap();
    }
    let groups = groups();
    let micro_batches: Vec<Vec<&TokenizedGroup>> = vec![groups[..2].iter().collect(), groups[2..].iter().collect()];
    let losses = (0..2).map(|_| trainer.step(&micro_batches, 1e-2).unwrap().tally.loss(&trainer.loss)).collect();
    let len = trainer.policy.layout.len;
    let (mut gradients, mut weights) = (vec![0.0; len], vec![0.0; len]);
    backend.read_acc(View::first(&trainer.grads, len), &mut gradients).unwrap();
    backend.read_act(View::first(&trainer.policy.weights, len), &mut weights).unwrap();
    (losses, gradients, weights)
}

fn same_bits<B: Backend>(backend: &B, families: &[&str]) {
    let more = families.iter().map(|family| (*family, Method::Sft));
    for (family, method) in [("qwen2", Method::Dpo), ("qwen2", Method::Reward)].into_iter().chain(more) {
        let kept = trained(backend, family, method, false);
        assert!(kept.0[0] != kept.0[1] && kept.1.iter().any(|g| *g != 0.0));
        assert!(kept == trained(backend, family, method, true), "{} {family} {method:?}", B::NAME);
    }
}

#[test]
fn recomputed_steps_equal_direct_steps_bit_for_bit() {
    let every = FAMILIES.map(|family| family.model_type);
    same_bits(&Reference, &every);
    same_bits(&Cpu::new(), &every);
    same_bits(&Cpu::<bf16>::default(), &every);
    let Some(emulator) = common::emulator(Schedule::Random(5), 3) else { return };
    same_bits(&Kernels::<_, bf16>::new(emulator), &["qwen3", "olmo3", "gemma2"]);
}

/// Total number of activation elements.
fn size(mode: Mode, layers: usize) -> usize {
    let mut config = three_layers("qwen2", false);
    config.layers = layers;
    let acts = Activations::new(&Cpu::new(), &config, mode, 10).unwrap();
    acts.buffers().iter().map(|buffer| buffer.len()).sum()
}

#[test]
fn with_recomputation_a_layer_keeps_only_its_input() {
    let hidden = three_layers("qwen2", false).hidden;
    for layers in [1, 3, 8] {
        let kept = size(Mode::Recompute, layers + 1) - size(Mode::Recompute, layers);
        assert_eq!(kept, 10 * hidden);
        assert!(size(Mode::Train, layers + 1) - size(Mode::Train, layers) > 8 * kept);
    }
}
