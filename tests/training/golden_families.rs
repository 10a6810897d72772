//! Three DPO steps of every family, with tied and untied embeddings, on every backend against values of
//! PyTorch, transformers and TRL (`tests/golden/README.md`).

use std::collections::{BTreeMap, BTreeSet};

use common::golden::{self, FamilySteps, LANGUAGE_CASES, REWARD_CASES, TRAINED_CASES, family_steps, tensors};
use mapl::backend::Backend;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::loss::objective::{LossOptions, Method};
use mapl::model::config::ModelConfig;
use mapl::model::family::FAMILIES;
use mapl::optim::adamw::AdamWSettings;
use mapl::train::metrics::Tally;

use super::golden::{close, for_each_backend, named, pairs, resolve, trainer};

/// The stored elements of each tensor of a model, by the parameter's name.
fn of_model(file: &str, model: &str) -> BTreeMap<String, Vec<f64>> {
    let prefix = format!("{}/", model.trim_start_matches("models/"));
    let values = |t: golden::Tensor| t.values.iter().map(|x| f64::from(*x)).collect();
    let of = |(name, t): (String, golden::Tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), values(t)));
    tensors(file).into_iter().filter_map(of).collect()
}

fn settings(table: &FamilySteps) -> AdamWSettings {
    AdamWSettings {
        beta1: table.beta1,
        beta2: table.beta2,
        eps: table.epsilon,
        weight_decay: table.weight_decay,
        max_grad_norm: table.max_grad_norm,
    }
}

/// Models that the emulator trains, from the families that differ most from those in `golden.rs`. With
/// `MAPL_TEST_FULL=1` it trains all models.
const EMULATED: [&str; 5] =
    ["models/gemma-untied", "models/gpt2-untied", "models/gpt_neox-tied", "models/olmo3-tied", "models/phi3-tied"];

/// Tolerances are those of the first families in `golden.rs`.
fn dpo_steps<B: Backend>(backend: &B) {
    let table = family_steps();
    let groups = pairs(&table.pairs);
    let micro_batches = vec![groups.iter().collect::<Vec<_>>()];
    let mut worst = 0.0f64;
    let all = B::NAME != "emulator" || common::full();
    let chosen = |model: &str| all || EMULATED.contains(&model);
    let cases: Vec<_> = table.cases.iter().filter(|case| chosen(&case.model)).collect();
    assert_eq!(cases.len(), if all { table.cases.len() } else { EMULATED.len() });
    for case in &cases {
        let name = &case.model;
        let loss = resolve(Method::Dpo, LossOptions { beta: Some(table.beta), ..LossOptions::default() });
        let mut trainer = trainer(backend, name, Some(&case.reference), loss, settings(&table));
        let mut tally = Tally::default();
        trainer.accumulate(&micro_batches, &mut tally, &mut Vec::new()).unwrap();
        close(&format!("{name} loss of TRL"), tally.loss(&trainer.loss), case.trl_loss, 1e-5, 0.0);
        close(&format!("{name} loss"), tally.loss(&trainer.loss), case.losses[0], 1e-5, 0.0);

        let got = named(backend, &trainer, true);
        let expected = of_model(&table.gradients, name);
        assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        let largest = |values: &[f64]| values.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let overall = expected.values().map(|values| largest(values)).fold(0.0, f64::max);
        for (tensor, expected) in &expected {
            let sample: Vec<f64> = got[tensor].iter().step_by(table.stride).copied().collect();
            assert_eq!(sample.len(), expected.len(), "{name} {tensor}");
            let allowed = 1e-4 * largest(expected) + 2e-6 * overall;
            for (i, (got, expected)) in sample.iter().zip(expected).enumerate() {
                close(&format!("{name} {tensor}, sample {i}"), *got, *expected, 0.0, allowed);
            }
        }

        let start = named(backend, &trainer, false);
        for (i, expected) in case.losses.iter().enumerate() {
            let report = trainer.step(&micro_batches, table.learning_rate).unwrap();
            close(&format!("{name} loss of step {i}"), report.tally.loss(&trainer.loss), *expected, 5e-4, 0.0);
            close(&format!("{name} norm of step {i}"), report.update.grad_norm, case.grad_norms[i], 5e-4, 0.0);
        }
        let mut tally = Tally::default();
        trainer.accumulate(&micro_batches, &mut tally, &mut Vec::new()).unwrap();
        close(&format!("{name} last loss"), tally.loss(&trainer.loss), case.loss_after, 5e-4, 0.0);
        let (mut difference, mut update) = (0.0, 0.0);
        let got = named(backend, &trainer, false);
        for (tensor, expected) in &of_model(&table.updates, name) {
            let sample = got[tensor].iter().zip(&start[tensor]).step_by(table.stride).map(|(now, then)| now - then);
            for (got, expected) in sample.zip(expected) {
                difference += (got - expected).powi(2);
                update += expected.powi(2);
            }
        }
        let share = (difference / update).sqrt();
        assert!(share < 0.02, "{name}: the update differs by {share} of it");
        worst = worst.max(share);
    }
    println!("{}: updates of {} models differ by at most {worst:e} of the update", B::NAME, cases.len());
}

/// Every family has scores, rewards and DPO steps, with tied and untied embeddings.
#[test]
fn every_family_has_every_value_with_both_tyings() {
    let of = |name: &str| ModelConfig::read(&golden::model_folder(name)).unwrap();
    let table = family_steps();
    let stepped: BTreeSet<&str> = table.cases.iter().map(|case| case.model.trim_start_matches("models/")).collect();
    let trained: BTreeSet<&str> = stepped.iter().copied().chain(TRAINED_CASES).collect();
    assert_eq!(trained, LANGUAGE_CASES.into_iter().collect());
    for family in FAMILIES {
        let tyings: BTreeSet<bool> =
            LANGUAGE_CASES.into_iter().map(of).filter(|c| c.family == family).map(|c| c.tied).collect();
        assert_eq!(tyings.len(), 2, "{}", family.model_type);
        assert!(REWARD_CASES.into_iter().map(of).any(|c| c.family == family), "{}", family.model_type);
    }
    for case in &table.cases {
        let (policy, reference) =
            (case.model.trim_start_matches("models/"), case.reference.trim_start_matches("models/"));
        assert_eq!((of(policy).family, policy == reference), (of(reference).family, false));
        let (policy, mut decayed) = (of(policy), case.decayed.clone());
        let mut ours: Vec<String> = policy.tensors().into_iter().filter(|t| t.role.decays()).map(|t| t.name).collect();
        ours.sort();
        decayed.sort();
        assert_eq!(ours, decayed, "{}", case.model);
        assert!(case.losses.windows(2).all(|w| w[1] < w[0]) && case.loss_after < case.losses[2], "{}", case.model);
        assert!((case.trl_loss - case.losses[0]).abs() < 3e-6 * case.losses[0].max(1.0), "{}", case.model);
    }
}

for_each_backend!(dpo_steps);
