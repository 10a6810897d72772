//! A whole model on the kernels: scores, loss, gradient and update of a 2-layer model with hidden
//! size 64 agree with the CPU backend. The results have the same bits in every thread schedule.

use std::path::Path;

use common::fixtures::{groups, keys_of_family, random_model};
use half::bf16;
use mapl::backend::contract::Precision;
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::device::Element;
use mapl::backend::kernels::emulator::Emulator;
use mapl::backend::{Backend, View, ViewMut};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{LossOptions, Method};
use mapl::model::config::{Head, ModelConfig};
use mapl::model::decoder::Model;
use mapl::model::family::Family;
use mapl::optim::adamw::AdamWSettings;
use mapl::train::evaluate::Evaluator;
use mapl::train::step::Trainer;
use serde_json::json;

/// 2 layers, hidden size 64, 4 query heads and 2 key heads of dimension 16.
fn config(family: &str, reward: bool) -> ModelConfig {
    let head = if reward { Head::Reward } else { Head::LanguageModel };
    let class = Family::find(family).unwrap().class_of(head);
    let mut value = json!({
        "architectures": [class], "model_type": family, "vocab_size": 67, "hidden_size": 64, "head_dim": 16,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "initializer_range": 0.1, "tie_word_embeddings": !reward, "rope_theta": 10000.0,
        "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0,
    });
    if family == "olmo3" {
        value["sliding_window"] = json!(3);
        value["layer_types"] = json!(["sliding_attention", "full_attention"]);
    }
    if family.starts_with("gemma") {
        let more = json!({"sliding_window": 3, "sliding_window_pattern": 2, "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "rms_norm_eps": 1e-6});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    if reward {
        value["id2label"] = json!({"0": "LABEL_0"});
        value["label2id"] = json!({"LABEL_0": 0});
    }
    let value = keys_of_family(family, value);
    ModelConfig::from_json(value.as_object().unwrap().clone(), Path::new("config.json")).unwrap()
}

/// Results of one step.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    scores: Vec<f64>,
    loss: f64,
    gradient: Vec<f64>,
    /// Weights after an update.
    updated: Vec<f64>,
}

/// A model with weights rounded to bf16, so that every backend starts from the same values.
fn model<B: Backend>(backend: &B, config: &ModelConfig, seed: u64) -> Model<B> {
    let mut model = random_model(backend, config, seed);
    let mut weights = vec![0.0; model.layout.len];
    backend.read_act(View::first(&model.weights, weights.len()), &mut weights).unwrap();
    weights.iter_mut().for_each(|w| *w = bf16::from_f64(*w).to_f64());
    let len = weights.len();
    backend.write_act(ViewMut::first(&mut model.weights, len), &weights).unwrap();
    model
}

fn step<B: Backend>(backend: &B, family: &str, method: Method) -> Step {
    let config = config(family, method == Method::Reward);
    let options = LossOptions { beta: (method == Method::Dpo).then_some(0.3), ..LossOptions::default() };
    let loss = options.resolve(method, [1.0, 0.7, 0.4], false).unwrap();
    let reference = (method == Method::Dpo).then(|| model(backend, &config, 2));
    let mut policy = model(backend, &config, 1);
    let groups = groups();
    let mut evaluator = Evaluator::new(backend, &policy, None).unwrap();
    let scores = evaluator.run(backend, (&mut policy, None), &loss, &groups, |_| ()).unwrap().0;
    let mut trainer = Trainer::new(backend, policy, reference, loss, AdamWSettings::default()).unwrap();
    let micro_batches: Vec<Vec<&TokenizedGroup>> = vec![groups[..2].iter().collect(), groups[2..].iter().collect()];
    let report = trainer.step(&micro_batches, 1e-3).unwrap();
    let loss = report.tally.loss(&trainer.loss);
    let len = trainer.policy.layout.len;
    let mut gradient = vec![0.0; len];
    backend.read_acc(View::first(&trainer.grads, len), &mut gradient).unwrap();
    // The norm must cover the whole accumulated gradient, not only the first micro-batch or a part.
    // GEMMs supply the norms of their gradients, which are not read again.
    let norm = gradient.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!((report.update.grad_norm / norm - 1.0).abs() < 1e-6, "{} against {norm}", report.update.grad_norm);
    let mut updated = vec![0.0; len];
    backend.read_act(View::first(&trainer.policy.weights, len), &mut updated).unwrap();
    Step { scores: scores.into_iter().flat_map(|s| s.policy).collect(), loss, gradient, updated }
}

/// Norm of the difference, relative to the norm of `b`.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let norm = b.iter().map(|x| square(*x)).sum::<f64>().sqrt();
    assert!(a.len() == b.len() && norm > 1e-3, "a zero vector makes the comparison vacuous");
    a.iter().zip(b).map(|(x, y)| square(x - y)).sum::<f64>().sqrt() / norm
}

/// One step on the emulator, with equal bits in every schedule; `None` if the build has no
/// emulator.
fn on_emulator<A: Element>(family: &str, method: Method) -> Option<Step> {
    let mut first: Option<Step> = None;
    for (schedule, processors, _) in common::emulated() {
        let device = match Emulator::with(schedule, processors) {
            Ok(device) => device,
            Err(why) => {
                assert!(std::env::var_os("MAPL_REQUIRE_EMULATOR").is_none_or(|v| v != "1"), "{why}");
                println!("SKIPPED: {why}");
                return None;
            }
        };
        let got = step(&Kernels::<_, A>::new(device), family, method);
        if let Some(first) = &first {
            assert_eq!(&got, first, "{schedule:?}, {processors} processors");
        }
        first = Some(got);
    }
    first
}

fn agrees<A: Element>(family: &str, method: Method, forward: f64, backward: f64) {
    if let Some(got) = on_emulator::<A>(family, method) {
        near(A::PRECISION, &got, (family, method), forward, backward);
    }
}

/// Asserts that a step is near that of the CPU in f32.
fn near(precision: Precision, got: &Step, (family, method): (&str, Method), forward: f64, backward: f64) {
    let expected = step(&Cpu::new(), family, method);
    // A score may be small compared with the terms it sums, which are of order 1.
    let relative = |a: f64, b: f64| (a - b).abs() / b.abs().max(1.0);
    let scores = got.scores.iter().zip(&expected.scores).map(|(a, b)| relative(*a, *b)).fold(0.0, f64::max);
    let (loss, gradient) = (relative(got.loss, expected.loss), distance(&got.gradient, &expected.gradient));
    println!("{family} {method:?} {:?}: scores {scores:.2e}, loss {loss:.2e}, gradient {gradient:.2e}", precision);
    assert!(scores < forward && loss < forward, "scores {scores:e}, loss {loss:e}");
    assert!(gradient < backward, "gradient {gradient:e}");
    if precision == Precision::F32 {
        let updated = distance(&got.updated, &expected.updated);
        assert!(updated < 1e-5, "updated weights {updated:e}");
    } else {
        let changed = got.updated.iter().zip(&expected.updated).filter(|(a, b)| bf16::from_f64(**b).to_f64() == **a);
        assert!(changed.count() > got.updated.len() / 2, "most weights must equal the f32 update rounded to bf16");
    }
}

#[test]
fn f32_agrees_with_the_cpu() {
    for family in ["qwen2", "qwen3"] {
        agrees::<f32>(family, Method::Dpo, 1e-4, 1e-4);
        agrees::<f32>(family, Method::Reward, 1e-4, 1e-4);
    }
    // OLMo-3 has a window, norms after the blocks, and query and key norms over all heads.
    agrees::<f32>("olmo3", Method::Dpo, 1e-4, 1e-4);
    // Gemma 2 has soft caps, GeGLU, norm weights near 1 and scaled embeddings; Gemma 3 has norms of heads.
    agrees::<f32>("gemma2", Method::Dpo, 1e-4, 1e-4);
    agrees::<f32>("gemma3_text", Method::Reward, 1e-4, 1e-4);
}

/// Every activation has a relative rounding error of 2^-9. Over 2 layers of about 12 roundings
/// each, errors grow like a random walk to sqrt(24) 2^-9 = 1 % of a value of order 1. The largest
/// error of a dozen values is about three times that.
#[test]
fn bf16_agrees_with_the_cpu() {
    for family in ["qwen2", "qwen3"] {
        agrees::<bf16>(family, Method::Dpo, 4e-2, 5e-2);
        agrees::<bf16>(family, Method::Reward, 4e-2, 5e-2);
    }
    agrees::<bf16>("olmo3", Method::Dpo, 4e-2, 5e-2);
    agrees::<bf16>("gemma2", Method::Dpo, 4e-2, 5e-2);
}

/// The bounds are those of the bf16 kernels above, which are also compared with the CPU in f32.
#[test]
fn the_cpu_in_bf16_agrees_with_the_cpu_in_f32() {
    let families = ["qwen2", "qwen3", "olmo3", "gemma2", "gpt2", "granite"];
    for (units, family) in common::bf16_units().into_iter().flat_map(|units| families.map(|family| (units, family))) {
        for method in [Method::Dpo, Method::Reward] {
            let got = step(&Cpu::<bf16>::on(units), family, method);
            near(Precision::Bf16, &got, (family, method), 4e-2, 5e-2);
        }
    }
}
