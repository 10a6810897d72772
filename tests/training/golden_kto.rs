//! Four steps of TRL's KTO trainer, and evaluations of losses that weigh tokens, pairs or rows, on every
//! backend (`tests/golden/README.md`).

use common::fixtures::group;
use common::golden::{KtoRow, kto_steps, loss_steps};
use mapl::backend::Backend;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::data::group::Kind;
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{LossType, Method};
use mapl::optim::adamw::AdamWSettings;

use super::golden::{close, for_each_backend, pairs, resolve, trainer};

const SETTINGS: AdamWSettings =
    AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };

fn row(of: &KtoRow) -> TokenizedGroup {
    let sign = if of.label { 1 } else { -1 };
    group("row", &[&of.prompt_ids], &[&of.completion_ids], &[(Kind::Base, &[(0, 0, sign)])])
}

fn steps<B: Backend>(backend: &B) {
    let table = kto_steps();
    for case in &table.cases {
        let loss = resolve(Method::Kto, case.options.clone());
        let mut groups: Vec<TokenizedGroup> = table.rows.iter().map(row).collect();
        loss.prepare_unpaired(&mut groups, table.block, usize::MAX);
        let estimates = case.options.loss_type == [LossType::Kto];
        assert!(groups.iter().all(|group| group.sequences.len() == if estimates { 2 } else { 1 }));
        let micro_batches: Vec<Vec<&TokenizedGroup>> =
            groups.chunks(table.block).map(|of| of.iter().collect()).collect();
        let mut trainer = trainer(backend, &table.model, Some(&table.reference), loss, SETTINGS);
        for (i, expected) in case.losses.iter().enumerate() {
            let report = trainer.step(&micro_batches, table.learning_rate).unwrap();
            let what = format!("{:?} step {i}", case.options.loss_type);
            close(&what, report.tally.loss(&trainer.loss), *expected, 1e-5, 1e-6);
            close(&format!("norm, {what}"), report.update.grad_norm, case.grad_norms[i], 1e-4, 0.0);
            let named = report.tally.named(&trainer.loss, "");
            let divergence = named.get("kl").and_then(|kl| kl.as_f64()).unwrap_or(0.0);
            close(&format!("kl, {what}"), divergence, case.divergences[i], 1e-4, 1e-5);
            let [chosen, rejected, margin] =
                ["chosen", "rejected", "margins"].map(|name| named[&format!("rewards/{name}")].as_f64().unwrap());
            assert!((chosen - rejected - margin).abs() < 1e-12 && margin != 0.0, "{named:?}");
        }
    }
}

/// The loss of an evaluation equals that of the first training step, with the same tails and weights.
fn evaluations<B: Backend>(backend: &B) {
    let table = loss_steps();
    let groups = pairs(&table.pairs);
    let mut found = 0;
    for case in table.losses.iter().filter(|case| case.options.ld_alpha.is_some() || case.options.use_weighting) {
        found += 1;
        let loss = resolve(Method::Dpo, case.options.clone());
        let mut trainer = trainer(backend, &table.model, case.reference.as_deref(), loss, SETTINGS);
        let mut evaluator = trainer.evaluator().unwrap();
        // Evaluates in batches of one group, and in one batch of all groups.
        for budget in [1, 4096] {
            evaluator.set_token_budget(budget);
            let (_, tally) = trainer.evaluate(&mut evaluator, &groups).unwrap();
            close(&format!("{:?}", case.options), tally.loss(&trainer.loss), case.losses[0], 1e-5, 1e-6);
        }
    }
    assert_eq!(found, 5);
}

for_each_backend!(steps, evaluations);
