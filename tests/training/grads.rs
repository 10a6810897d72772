//! Gradient of the whole model in f64 against central differences, for every method, family and
//! layout.

use common::fixtures::{groups, random_model, tiny_config};
use mapl::backend::reference::Reference;
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, LossType, Method, ReduceName, ScopeName};
use mapl::model::family::FAMILIES;
use mapl::optim::adamw::AdamWSettings;
use mapl::rng::Rng;
use mapl::train::metrics::Tally;
use mapl::train::step::Trainer;

/// Computes the loss over all groups and leaves its gradient in `trainer.grads`.
fn loss(trainer: &mut Trainer<'_, Reference>, micro_batches: &[Vec<&TokenizedGroup>]) -> f64 {
    let mut tally = Tally::default();
    trainer.accumulate(micro_batches, &mut tally, &mut Vec::new()).unwrap();
    tally.loss(&trainer.loss)
}

/// Compares the gradient with finite differences. Each tensor is moved along a random direction that
/// changes all its parameters; then single parameters are moved, every third with
/// `MAPL_TEST_FULL=1`. The four-point formula with step 1e-4 has a truncation error of h⁴ f⁽⁵⁾ / 30.
/// That is about 1e-12 even if an embedding of small norm makes the fifth derivative 1e5. The
/// rounding error is about 1e-12 too, so the bound leaves a factor of 1000.
fn check(family: &str, loss_of_run: Loss, groups: &[TokenizedGroup]) {
    let reward = loss_of_run.method == Method::Reward;
    let config = tiny_config(family, reward);
    let policy = random_model(&Reference, &config, 1);
    let reference = (loss_of_run.method == Method::Dpo).then(|| random_model(&Reference, &config, 2));
    let settings = AdamWSettings::default();
    let mut trainer = Trainer::new(&Reference, policy, reference, loss_of_run, settings).unwrap();
    let micro_batches: Vec<Vec<&TokenizedGroup>> = vec![groups.iter().collect()];
    loss(&mut trainer, &micro_batches);
    let gradient = trainer.grads.clone();
    let slots: Vec<_> = trainer.policy.layout.slots.iter().map(|slot| slot.range()).collect();
    let mut compare = |what: &str, first: usize, direction: &[f64]| {
        let values = trainer.policy.weights[first..first + direction.len()].to_vec();
        let h = 1e-4;
        let mut at = |steps: f64| {
            for (i, (value, part)) in values.iter().zip(direction).enumerate() {
                trainer.policy.weights[first + i] = value + steps * h * part;
            }
            loss(&mut trainer, &micro_batches)
        };
        let difference = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * h);
        trainer.policy.weights[first..first + direction.len()].copy_from_slice(&values);
        let slope: f64 = gradient[first..].iter().zip(direction).map(|(g, part)| g * part).sum();
        let error = (slope - difference).abs();
        assert!(error < 1e-9 * (1.0 + slope.abs()), "{family} {what}: {slope} against {difference}");
    };
    let mut rng = Rng::keyed(3, &["direction"]);
    for slot in &slots {
        let length = (slot.len() as f64).sqrt();
        let direction: Vec<f64> = slot.clone().map(|_| if rng.below(2) == 0 { 1.0 } else { -1.0 } / length).collect();
        compare(&format!("parameters {slot:?}"), slot.start, &direction);
    }
    let stride = if common::full() { 3 } else { 41 };
    for i in slots.iter().cloned().flatten().step_by(stride) {
        compare(&format!("parameter {i}"), i, &[1.0]);
    }
    // A gradient that is zero nearly everywhere would pass vacuously.
    let parameters: Vec<usize> = slots.into_iter().flatten().collect();
    let moved = parameters.iter().filter(|&&i| gradient[i].abs() > 1e-6).count();
    assert!(moved * 2 > parameters.len(), "only {moved} of {} parameters have a gradient", parameters.len());
}

fn resolve(method: Method, options: LossOptions) -> Loss {
    options.resolve(method, [1.0, 0.7, 0.4], false).unwrap()
}

#[test]
fn dpo_gradient_of_qwen2_with_tied_embeddings_is_correct() {
    check("qwen2", resolve(Method::Dpo, LossOptions::default()), &groups());
}

#[test]
fn dpo_gradient_of_llama_with_nll_term_over_prompt_and_response_is_correct() {
    let options = LossOptions {
        nll_weight: Some(0.3),
        beta_intra: Some(0.2),
        label_smoothing: Some(0.1),
        logp_scope: Some(ScopeName::PromptAndResponse),
        ..LossOptions::default()
    };
    check("llama", resolve(Method::Dpo, options), &groups());
}

#[test]
fn ipo_gradient_with_mean_log_probs_is_correct() {
    let options =
        LossOptions { loss_type: vec![LossType::Ipo], logp_reduce: Some(ReduceName::Mean), ..LossOptions::default() };
    check("llama", resolve(Method::Dpo, options), &groups()[1..]);
}

#[test]
fn reward_gradient_with_centring_is_correct() {
    let options = LossOptions { center_rewards_coefficient: Some(0.05), margin: Some(0.1), ..LossOptions::default() };
    check("qwen2", resolve(Method::Reward, options), &groups());
    check("llama", resolve(Method::Reward, LossOptions::default()), &groups());
}

#[test]
fn sft_gradient_is_correct() {
    check("qwen2", Loss::sft(), &groups());
}

#[test]
fn dpo_gradient_of_qwen3_with_norms_of_heads_is_correct() {
    check("qwen3", resolve(Method::Dpo, LossOptions::default()), &groups()[1..]);
}

/// Gemma 2 has soft caps in attention and in the head, four norms per layer, GeGLU, and scaled embeddings
/// that are tied to the head.
#[test]
fn dpo_gradient_of_gemma_2_is_correct() {
    check("gemma2", resolve(Method::Dpo, LossOptions::default()), &groups()[1..]);
}

#[test]
fn reward_gradient_of_every_family_is_correct() {
    for family in FAMILIES {
        check(family.model_type, resolve(Method::Reward, LossOptions::default()), &groups()[1..]);
    }
}
