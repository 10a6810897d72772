//! Entropy, token accuracy and mean logits of a step and of an evaluation, against those that TRL's trainers
//! log (`tests/golden/token_stats.py`), with and without a soft cap of the logits. The step has the same bits
//! without these statistics.

use common::fixtures::group;
use common::golden::{Pair, token_stats};
use mapl::backend::Backend;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::data::group::Kind;
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, LossType, Method};
use mapl::optim::adamw::AdamWSettings;

use super::golden::{close, for_each_backend, pairs, resolve, trainer};

const SETTINGS: AdamWSettings =
    AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };

/// A group with only the chosen response of a pair.
fn chosen(pair: &Pair) -> TokenizedGroup {
    group("row", &[&pair.prompt_ids], &[&pair.chosen_ids], &[(Kind::Base, &[(0, 0, 1)])])
}

/// Compares the statistics of two losses with TRL's values, for every case.
fn statistics<B: Backend>(backend: &B) {
    for case in &token_stats() {
        let plain = LossOptions { loss_type: vec![LossType::Sigmoid], ..LossOptions::default() };
        let rows: Vec<TokenizedGroup> = case.pairs.iter().map(chosen).collect();
        for (loss, groups, reference, expected) in [
            (resolve(Method::Dpo, plain), pairs(&case.pairs), Some(case.reference.as_str()), &case.dpo),
            (Loss::sft(), rows, None, &case.sft),
        ] {
            let step = |token_stats: bool, pad: bool| {
                let loss = Loss { token_stats, ..loss.clone() };
                let mut trainer = trainer(backend, &case.model, reference, loss, SETTINGS);
                // Pads the batches, which changes no bit.
                trainer.replay_steps(pad);
                let limits = trainer.limits(&groups, groups.len() - 1).unwrap();
                trainer.reserve(&limits, 2).unwrap();
                let mut evaluator = trainer.evaluator().unwrap();
                let (_, evaluated) = trainer.evaluate(&mut evaluator, &groups).unwrap();
                // Each statistic is one mean over two micro-batches of unequal size.
                let (first, second) = groups.split_at(1);
                let micro_batches: Vec<Vec<&TokenizedGroup>> = vec![first.iter().collect(), second.iter().collect()];
                let report = trainer.step(&micro_batches, 1e-3).unwrap();
                let named = [evaluated.named(&trainer.loss, ""), report.tally.named(&trainer.loss, "")];
                (named, report.update.grad_norm.to_bits(), report.tally.loss(&trainer.loss).to_bits())
            };
            let (with, norm, value) = step(true, false);
            for named in &with {
                for (name, expected) in expected {
                    let found = named.get(name).and_then(|found| found.as_f64());
                    let what = format!("{} {:?} {name}", case.model, loss.method);
                    close(&what, found.unwrap_or(f64::NAN), *expected, 1e-5, 1e-6);
                }
            }
            let (padded, ..) = step(true, true);
            assert_eq!(padded, with);
            let (without, same_norm, same_value) = step(false, true);
            assert!(without.iter().all(|named| expected.keys().all(|name| !named.contains_key(name))));
            assert_eq!((norm, value), (same_norm, same_value), "{}", case.model);
        }
    }
}

for_each_backend!(statistics);
