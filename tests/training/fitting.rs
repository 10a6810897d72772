//! Training converges: reward modelling and DPO fit eight groups of random tokens with base, intra
//! and inter comparisons until every comparison is correct.

use common::fixtures::{group, random_model, tiny_config};
use mapl::backend::cpu::Cpu;
use mapl::data::group::Kind;
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{LossOptions, Method};
use mapl::optim::adamw::AdamWSettings;
use mapl::rng::Rng;
use mapl::train::step::Trainer;

/// Groups of two responses under a prompt and two continuations of the prompt. Labels are
/// arbitrary, so they can only be memorised.
fn random_groups() -> Vec<TokenizedGroup> {
    let mut rng = Rng::keyed(9, &["training"]);
    (0..8)
        .map(|g| {
            let mut ids = |n: usize| -> Vec<u32> { (0..n).map(|_| 3 + rng.below(20) as u32).collect() };
            let base = ids(4);
            let better: Vec<u32> = base.iter().copied().chain(ids(3)).collect();
            let worse: Vec<u32> = base.iter().copied().chain(ids(3)).collect();
            let responses = [ids(5), ids(4)];
            group(
                &g.to_string(),
                &[&base, &better, &worse],
                &[&responses[0], &responses[1]],
                &[
                    (Kind::Base, &[(0, 0, 1), (0, 1, -1)]),
                    (Kind::Intra, &[(1, 0, 1), (2, 0, -1)]),
                    (Kind::Inter, &[(1, 0, 1), (0, 1, 1), (1, 1, -1), (0, 0, -1)]),
                ],
            )
        })
        .collect()
}

#[test]
fn training_fits_eight_groups() {
    let cpu = Cpu::new();
    for (method, family, beta) in [(Method::Reward, "qwen2", None), (Method::Dpo, "llama", Some(0.5))] {
        let config = tiny_config(family, method == Method::Reward);
        let options = LossOptions { beta, ..LossOptions::default() };
        let loss = options.resolve(method, [1.0; 3], false).unwrap();
        let reference = (method == Method::Dpo).then(|| random_model(&cpu, &config, 1));
        let policy = random_model(&cpu, &config, 1);
        let mut trainer = Trainer::new(&cpu, policy, reference, loss, AdamWSettings::default()).unwrap();
        let groups = random_groups();
        let micro_batches = vec![groups.iter().collect::<Vec<_>>()];
        let first = trainer.step(&micro_batches, 3e-3).unwrap();
        let mut last = first.clone();
        for _ in 0..300 {
            last = trainer.step(&micro_batches, 3e-3).unwrap();
        }
        let (before, after) = (first.tally.loss(&trainer.loss), last.tally.loss(&trainer.loss));
        assert!(after < 0.05 && before > 1.0, "{method:?}: {before} to {after}");
        assert!(last.tally.kinds.iter().all(|k| k.count == 8 && k.correct == 8), "{method:?}: {:?}", last.tally.kinds);
    }
}

#[test]
fn a_non_finite_score_changes_nothing_and_names_its_group() {
    let cpu = Cpu::new();
    let config = tiny_config("qwen2", true);
    let loss = LossOptions::default().resolve(Method::Reward, [1.0; 3], false).unwrap();
    let mut policy = random_model(&cpu, &config, 1);
    // Only some groups contain token 3; its NaN embedding makes their scores NaN.
    let hidden = config.hidden;
    policy.weights[3 * hidden..4 * hidden].fill(f32::NAN);
    let groups = random_groups();
    let uses_it = |g: &&TokenizedGroup| {
        g.prompt_ids.iter().chain(g.sequences.iter().map(|s| &s.response_ids)).any(|ids| ids.contains(&3))
    };
    let expected: Vec<String> = groups.iter().filter(uses_it).map(|g| g.group.id.clone()).collect();
    assert!(!expected.is_empty() && expected.len() < groups.len());
    let mut trainer = Trainer::new(&cpu, policy, None, loss, AdamWSettings::default()).unwrap();
    let before: Vec<u32> = trainer.policy.weights.iter().map(|w| w.to_bits()).collect();
    let report = trainer.step(&[groups.iter().collect()], 1e-2).unwrap();
    assert!(!report.update.applied && report.update.skipped == 1);
    assert_eq!(report.not_finite, expected);
    assert_eq!(trainer.policy.weights.iter().map(|w| w.to_bits()).collect::<Vec<_>>(), before);
    assert!(trainer.optimizer.m.iter().chain(&trainer.optimizer.v).all(|&x| x == 0.0));
}
