//! Prefix sharing: a batch with shared prompt tokens has the same values and gradients as an
//! unshared batch. A sequence's score does not depend on the other sequences of its batch.

use common::fixtures::{groups, random_model, tiny_config};
use mapl::backend::cpu::Cpu;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, View};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, Method, ScopeName};
use mapl::model::decoder::Model;
use mapl::optim::adamw::AdamWSettings;
use mapl::train::evaluate::{Evaluator, GroupScores};
use mapl::train::metrics::Tally;
use mapl::train::step::Trainer;

fn resolve(method: Method) -> Loss {
    LossOptions::default().resolve(method, [1.0, 0.7, 0.4], false).unwrap()
}

/// Loss and gradient of all groups as micro-batches of `size`.
fn gradient<B: Backend>(backend: &B, loss: Loss, share: bool, size: usize) -> (f64, Vec<f64>) {
    let reward = loss.method == Method::Reward;
    let config = tiny_config("qwen2", reward);
    let reference = (loss.method == Method::Dpo).then(|| random_model(backend, &config, 2));
    let policy = random_model(backend, &config, 1);
    let mut trainer = Trainer::new(backend, policy, reference, loss, AdamWSettings::default()).unwrap();
    trainer.share_prefixes(share);
    let groups = groups();
    let micro_batches: Vec<Vec<&TokenizedGroup>> = groups.chunks(size).map(|c| c.iter().collect()).collect();
    let mut tally = Tally::default();
    trainer.accumulate(&micro_batches, &mut tally, &mut Vec::new()).unwrap();
    let mut values = vec![0.0; trainer.policy.layout.len];
    backend.read_acc(View::first(&trainer.grads, values.len()), &mut values).unwrap();
    (tally.loss(&trainer.loss), values)
}

/// Largest difference of two gradients, relative to the largest element.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    assert!(largest > 1e-3, "a zero gradient makes the comparison vacuous");
    a.iter().zip(b).fold(0.0, |m: f64, (x, y)| m.max((x - y).abs())) / largest
}

fn losses() -> Vec<Loss> {
    let whole = LossOptions { logp_scope: Some(ScopeName::PromptAndResponse), ..LossOptions::default() };
    vec![
        resolve(Method::Dpo),
        resolve(Method::Reward),
        whole.resolve(Method::Dpo, [1.0; 3], false).unwrap(),
        Loss::sft(),
    ]
}

/// Tolerances. f64: 1e-10. f32: through 2 layers the gradient sums 40 to 80 token rows in a different order.
/// 2e-5 of the largest element is about 50 roundings of 2^-24 times the length of the sums' random walk.
#[test]
fn shared_and_unshared_batches_agree() {
    for loss in losses() {
        let name = loss.formula(true);
        let (shared, apart) =
            (gradient(&Reference, loss.clone(), true, 3), gradient(&Reference, loss.clone(), false, 3));
        assert!((shared.0 - apart.0).abs() < 1e-10, "{name}: {} {}", shared.0, apart.0);
        assert!(distance(&shared.1, &apart.1) < 1e-10, "{name}: {}", distance(&shared.1, &apart.1));
        let cpu = Cpu::new();
        let (shared, apart) = (gradient(&cpu, loss.clone(), true, 3), gradient(&cpu, loss, false, 3));
        assert!((shared.0 - apart.0).abs() < 1e-6, "{name}: {} {}", shared.0, apart.0);
        assert!(distance(&shared.1, &apart.1) < 2e-5, "{name}: {}", distance(&shared.1, &apart.1));
    }
}

#[test]
fn any_split_into_micro_batches_gives_the_same_loss_and_gradient() {
    for loss in losses() {
        let name = loss.formula(true);
        let whole = gradient(&Reference, loss.clone(), true, 3);
        for size in [1, 2] {
            let parts = gradient(&Reference, loss.clone(), true, size);
            assert!((whole.0 - parts.0).abs() < 1e-12, "{name}: {} {}", whole.0, parts.0);
            assert!(distance(&whole.1, &parts.1) < 1e-12, "{name}");
        }
    }
}

fn scores<B: Backend>(backend: &B, model: &mut Model<B>, loss: &Loss, groups: &[TokenizedGroup]) -> Vec<GroupScores> {
    let mut evaluator = Evaluator::new(backend, model, None).unwrap();
    evaluator.run(backend, (model, None), loss, groups, |_| ()).unwrap().0
}

/// On the CPU backend a score is bitwise equal in reversed order, in a batch of one group, and as the only
/// sequence of its group.
#[test]
fn a_score_does_not_depend_on_other_sequences_of_the_batch() {
    let cpu = Cpu::new();
    for (family, method) in [("qwen2", Method::Dpo), ("qwen2", Method::Reward), ("qwen3", Method::Dpo)] {
        let config = tiny_config(family, method == Method::Reward);
        let mut model = random_model(&cpu, &config, 1);
        let loss = resolve(method);
        let groups = groups();
        let together = scores(&cpu, &mut model, &loss, &groups);
        let mut reversed: Vec<_> = groups.clone();
        reversed.reverse();
        let mut back = scores(&cpu, &mut model, &loss, &reversed);
        back.reverse();
        assert_eq!(together, back);
        for (group, expected) in groups.iter().zip(&together) {
            assert_eq!(scores(&cpu, &mut model, &loss, std::slice::from_ref(group))[0], *expected);
            for (s, sequence) in group.sequences.iter().enumerate() {
                let mut single = group.clone();
                single.sequences = vec![sequence.clone()];
                single.comparisons.clear();
                let alone = scores(&cpu, &mut model, &loss, &[single]);
                assert_eq!(alone[0].policy[0], expected.policy[s], "sequence {s} of {}", group.group.id);
            }
        }
    }
}
