//! Adapters against PEFT and torch (`tests/golden/lora.py`): scores of saved adapters, and three AdamW
//! steps from them.

use std::collections::BTreeMap;

use common::fixtures::group;
use common::golden::{self, LORA_CASES, LoraCase, lora_case, tensors};
use half::bf16;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, View};
use mapl::data::group::Kind;
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, Method};
use mapl::model::adapter::{AdapterConfig, Targets};
use mapl::model::config::{Head, ModelConfig};
use mapl::model::decoder::Model;
use mapl::model::lora::{LoraSpec, draw};
use mapl::model::store::{load, reload};
use mapl::model::weights::LoadAs;
use mapl::optim::adamw::AdamWSettings;
use mapl::train::evaluate::Evaluator;
use mapl::train::step::Trainer;

/// Loads the base with the unmerged adapter of a case.
fn model<B: Backend>(backend: &B, case: &LoraCase) -> Model<B> {
    let (base, adapter) = (golden::path(&case.model), golden::path(&case.adapter));
    let config = ModelConfig::read(&base).unwrap();
    let saved = AdapterConfig::read(&adapter).unwrap();
    let Targets::Names(names) = &saved.target_modules else { panic!("{:?}", saved.target_modules) };
    // PEFT writes all-linear as the full names of all layers.
    let names: Vec<String> = names.iter().map(|name| name.rsplit('.').next().unwrap().to_owned()).collect();
    let spec = LoraSpec::new(&config, saved.r, saved.lora_alpha as u32, saved.use_rslora, &names).unwrap();
    let mut model = load(backend, &base, config, LoadAs::Exact, 0).unwrap().model;
    draw(backend, &mut model, spec, 0).unwrap();
    reload(backend, &mut model, &adapter).unwrap();
    model
}

fn pair(prompt: &[u32], responses: [&[u32]; 2]) -> TokenizedGroup {
    group("pair", &[prompt], &responses, &[(Kind::Base, &[(0, 0, 1), (0, 1, -1)])])
}

fn loss_of(model: &ModelConfig, beta: f64) -> Loss {
    let method = if model.head == Head::Reward { Method::Reward } else { Method::Dpo };
    let beta = (method == Method::Dpo).then_some(beta);
    LossOptions { beta, ..LossOptions::default() }.resolve(method, [1.0; 3], false).unwrap()
}

#[track_caller]
fn close(what: &str, got: f64, expected: f64, relative: f64) {
    let allowed = relative * expected.abs().max(1.0);
    assert!((got - expected).abs() <= allowed, "{what}: {got} against {expected}");
}

/// Scores of the saved adapter, unmerged and merged by the loader.
fn scores<B: Backend>(backend: &B) {
    for name in LORA_CASES {
        let case = lora_case(name);
        let groups: Vec<TokenizedGroup> =
            case.sequences.iter().map(|s| pair(&s.prompt, [&s.response, &s.response])).collect();
        let folder = golden::path(&case.adapter);
        let merged = ModelConfig::read(&folder).unwrap();
        let merged = load(backend, &folder, merged, LoadAs::Exact, 0).unwrap().model;
        for (how, mut model) in [("apart", model(backend, &case)), ("merged", merged)] {
            let loss = loss_of(&model.config, case.beta);
            let mut evaluator = Evaluator::new(backend, &model, None).unwrap();
            let (scores, _) = evaluator.run(backend, (&mut model, None), &loss, &groups, |_| ()).unwrap();
            for (i, (got, expected)) in scores.iter().zip(&case.sequences).enumerate() {
                close(&format!("{name} {how} sequence {i}"), got.policy[0], expected.score, 3e-5);
            }
        }
    }
}

/// Largest relative differences of the losses and of the gradient norms of all steps, and the difference
/// of the whole update.
fn steps<B: Backend>(backend: &B, name: &str) -> [f64; 3] {
    let case = lora_case(name);
    let model = model(backend, &case);
    let settings = AdamWSettings {
        weight_decay: case.weight_decay,
        max_grad_norm: case.max_grad_norm,
        ..AdamWSettings::default()
    };
    let loss = loss_of(&model.config, case.beta);
    let mut trainer = Trainer::new(backend, model, None, loss, settings).unwrap();
    if trainer.loss.method == Method::Dpo {
        trainer.use_base_as_frozen().unwrap();
    }
    let groups: Vec<TokenizedGroup> =
        case.pairs.iter().map(|p| pair(&p.prompt_ids, [&p.chosen_ids, &p.rejected_ids])).collect();
    let batch = vec![groups.iter().collect::<Vec<_>>()];
    let named = |trainer: &Trainer<'_, B>| -> BTreeMap<String, Vec<f64>> {
        let read = |range: std::ops::Range<usize>| {
            let mut values = vec![0.0; range.len()];
            let weights = trainer.policy.trained_weights();
            backend.read_act(View::new(weights, range.start, range.len()), &mut values).unwrap();
            values
        };
        trainer.policy.trained().slots.iter().map(|slot| (slot.spec.name.clone(), read(slot.range()))).collect()
    };
    let start = named(&trainer);
    let (mut of_losses, mut of_norms) = (0.0, 0.0);
    let compare = |worst: &mut f64, got: f64, expected: f64| *worst = worst.max((got / expected - 1.0).abs());
    for (i, expected) in case.losses.iter().enumerate() {
        let report = trainer.step(&batch, case.learning_rate).unwrap();
        compare(&mut of_losses, report.tally.loss(&trainer.loss), *expected);
        compare(&mut of_norms, report.update.grad_norm, case.grad_norms[i]);
    }
    let mut tally = Default::default();
    trainer.accumulate(&batch, &mut tally, &mut Vec::new()).unwrap();
    compare(&mut of_losses, tally.loss(&trainer.loss), case.loss_after);
    let (got, expected) = (named(&trainer), tensors(&case.weights));
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    let (mut difference, mut update) = (0.0, 0.0);
    for (tensor, expected) in &expected {
        for (i, expected) in expected.values.iter().enumerate() {
            difference += (got[tensor][i] - f64::from(*expected)).powi(2);
            update += (start[tensor][i] - f64::from(*expected)).powi(2);
        }
    }
    [of_losses, of_norms, (difference / update).sqrt()]
}

fn three_steps<B: Backend>(backend: &B) {
    for name in LORA_CASES {
        let [losses, norms, update] = steps(backend, name);
        println!("{} {name}: losses differ by {losses:.1e}, norms by {norms:.1e}, the update by {update:.1e}", B::NAME);
        assert!(losses < 5e-4 && norms < 5e-4 && update < 0.02, "{name}: {losses:e}, {norms:e}, {update:e}");
    }
}

#[test]
fn adapters_of_peft_have_the_scores_of_peft_on_the_reference() {
    scores(&Reference);
}

#[test]
fn adapters_of_peft_have_the_scores_of_peft_on_the_cpu() {
    scores(&Cpu::new());
}

#[test]
fn three_steps_equal_those_of_peft_on_the_reference() {
    three_steps(&Reference);
}

#[test]
fn three_steps_equal_those_of_peft_on_the_cpu() {
    three_steps(&Cpu::new());
}

#[test]
fn three_steps_equal_those_of_peft_on_the_kernels() {
    let Some(emulator) = common::emulator(Schedule::Random(3), 3) else { return };
    three_steps(&Kernels::<_, f32>::new(emulator));
}

/// Losses have the tolerance of `kernels_model.rs`, 4 %. Gradient norms have 7 % instead of its 5 % for
/// gradients. The gradient norm of lora-qwen2 is 3.9 % off on the CPU and 5.2 % on the emulator, which round
/// at different places; those of the other adapters are within 2 %.
#[test]
fn three_steps_in_bf16_are_near_those_of_peft() {
    let near = |on: &str, name: &str, [losses, norms, _]: [f64; 3]| {
        println!("bf16 {name} on the {on}: losses differ by {losses:.1e}, norms by {norms:.1e}");
        assert!(losses < 4e-2 && norms < 7e-2, "{name} on the {on}: {losses:e}, {norms:e}");
    };
    for name in LORA_CASES {
        near("cpu", name, steps(&Cpu::<bf16>::default(), name));
        if let Some(emulator) = common::emulator(Schedule::Rising, 3) {
            near("emulator", name, steps(&Kernels::<_, bf16>::new(emulator), name));
        }
    }
}
