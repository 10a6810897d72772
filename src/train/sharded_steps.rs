//! Compares steps of several ranks with sharded weights, in one process, with the same steps with unsharded
//! weights. Ranks have different numbers of micro-batches, and some have none.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::batch::packing::PackedStep;
use super::memory::Sharded;
use super::metrics::Tally;
use super::step::Trainer;
use crate::backend::contract::KINDS;
use crate::backend::cpu::Cpu;
use crate::backend::reference::Reference;
use crate::backend::{Backend, View};
use crate::data::group::{Kind, PreferenceGroup, Prompt, Response};
use crate::data::tokenized::{Sequence, SequenceComparison, SequenceTerm, TokenizedGroup};
use crate::loss::objective::{LossOptions, Method};
use crate::model::config::ModelConfig;
use crate::model::lora::{self, LoraSpec};
use crate::model::shards::Sharding;
use crate::model::store;
use crate::optim::adamw::AdamWSettings;
use crate::ranks::collective::{Alone, Collective};
use crate::ranks::rehearsal::Rehearsal;

const VOCAB: usize = 41;

/// Returns a model with gaps between its tensors, because no width is a multiple of the alignment.
fn config(tied: bool) -> ModelConfig {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": VOCAB, "hidden_size": 24,
        "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "initializer_range": 0.3,
        "tie_word_embeddings": tied, "rope_theta": 10000.0,
    });
    let serde_json::Value::Object(config) = config else { unreachable!() };
    ModelConfig::from_json(config, Path::new("tiny")).unwrap()
}

/// Pair with id `number`; its lengths differ from those of other pairs.
pub(super) fn pair(number: usize) -> TokenizedGroup {
    let ids = |from: usize, len: usize| (0..len).map(|i| ((from + i * 7) % VOCAB) as u32).collect::<Vec<u32>>();
    let text = || Response::Text(String::new());
    let source = PreferenceGroup::pair(number.to_string(), Prompt::Text(String::new()), text(), text(), 0.0);
    let response = |response: usize| Sequence {
        prompt: 0,
        response,
        response_ids: ids(3 * number + 11 * response + 1, 2 + (number + response) % 4),
    };
    let term = |sequence, sign| SequenceTerm { sequence, sign, detached: false };
    TokenizedGroup {
        group: Arc::new(source),
        prompt_ids: vec![ids(number, 3 + number % 3)],
        sequences: vec![response(0), response(1)],
        comparisons: vec![SequenceComparison {
            kind: Kind::Base,
            terms: vec![term(0, 1), term(1, -1)],
            margin: 0.0,
            weight: 1.0,
            detached_clip: None,
        }],
    }
}

/// A run of three steps and an evaluation.
#[derive(Clone, Copy)]
struct Steps {
    method: Method,
    tied: bool,
    lora: bool,
    recompute: bool,
    max_grad_norm: f64,
    /// Pairs of a step. Each pair is a micro-batch, and the ranks get them round-robin.
    pairs: usize,
}

const PLAIN: Steps =
    Steps { method: Method::Dpo, tied: true, lora: false, recompute: false, max_grad_norm: 0.0, pairs: 2 };

/// Results of a run on one rank.
#[derive(Debug, PartialEq)]
struct After {
    losses: Vec<f64>,
    norms: Vec<f64>,
    scores: Vec<f64>,
    /// All trained weights.
    weights: Vec<f64>,
}

impl Steps {
    fn run<B: Backend>(&self, backend: &B, ranks: &'static dyn Collective, sharded: Sharded) -> After {
        let options = LossOptions { beta: (self.method == Method::Dpo).then_some(0.5), ..LossOptions::default() };
        let loss = options.resolve(self.method, [1.0; KINDS], false).unwrap();
        let mut config = config(self.tied);
        if self.method == Method::Reward {
            config = config.into_reward(0).unwrap();
        }
        let sharding = (sharded == Sharded::Weights).then(|| Sharding::over(ranks));
        let model = |seed| store::random_on(backend, config.clone(), seed, sharding).unwrap();
        let mut policy = model(1);
        if self.lora {
            let spec = LoraSpec::new(&config, 2, 4, false, &[]).unwrap();
            lora::draw(backend, &mut policy, spec, 5).unwrap();
        }
        let frozen = (self.method == Method::Dpo && !self.lora).then(|| model(2));
        let settings =
            AdamWSettings { max_grad_norm: self.max_grad_norm, weight_decay: 0.1, ..AdamWSettings::default() };
        let shard = sharded != Sharded::Nothing;
        let mut trainer = Trainer::on_ranks(ranks, backend, (policy, frozen), loss, (settings, shard)).unwrap();
        if self.recompute {
            trainer.recompute_activations().unwrap();
        }
        if self.lora && self.method == Method::Dpo {
            trainer.use_base_as_frozen().unwrap();
        }
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for step in 0..3 {
            let all: Vec<TokenizedGroup> = (0..self.pairs).map(|i| pair(step * self.pairs + i)).collect();
            let own = all.iter().enumerate().filter(|(i, _)| i % ranks.size() == ranks.rank());
            let own: Vec<Vec<&TokenizedGroup>> = own.map(|(_, group)| vec![group]).collect();
            let mut packed = PackedStep::default();
            trainer.packer().pack_part(all.iter(), &own, &mut packed).unwrap();
            let pending = trainer.begin(packed, 0.01).unwrap();
            let report = trainer.finish(pending).unwrap();
            losses.push(report.tally.loss(&trainer.loss));
            norms.push(report.update.grad_norm);
        }
        let groups: Vec<TokenizedGroup> = (0..5).map(|i| pair(90 + i)).collect();
        let mut evaluator = trainer.evaluator().unwrap();
        evaluator.set_token_budget(30);
        let (scored, _): (_, Tally) = trainer.evaluate(&mut evaluator, &groups).unwrap();
        let scores =
            scored.iter().flat_map(|of| of.policy.iter().chain(of.reference.iter().flatten())).copied().collect();
        let len = trainer.policy.trained().len;
        let mut weights = vec![0.0; len];
        match trainer.policy.trains_shards() {
            true => trainer.policy.read_weights(backend, &(0..len), &mut weights).unwrap(),
            false => backend.read_act(View::first(trainer.policy.trained_weights(), len), &mut weights).unwrap(),
        }
        After { losses, norms, scores, weights }
    }

    /// Performs this run on `size` ranks and returns the results by rank.
    fn on<B: Backend>(&self, backend: impl Fn() -> B + Sync, size: usize, sharded: Sharded) -> Vec<After> {
        let ranks: &'static [Rehearsal] = Rehearsal::ranks(size).leak();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                ranks.iter().map(|rank| scope.spawn(|| self.run(&backend(), rank, sharded))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

/// Returns the largest relative difference between the results of two runs.
fn distance(a: &After, b: &After) -> f64 {
    let parts = |after: &After| [&after.losses, &after.norms, &after.scores, &after.weights].map(Clone::clone).concat();
    let (a, b) = (parts(a), parts(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / (1.0 + a.abs())).fold(0.0, f64::max)
}

#[test]
fn sharded_weights_give_the_steps_of_one_rank() {
    for steps in [
        PLAIN,
        Steps { tied: false, max_grad_norm: 0.01, ..PLAIN },
        Steps { method: Method::Reward, recompute: true, ..PLAIN },
        Steps { method: Method::Sft, tied: false, pairs: 5, ..PLAIN },
        Steps { recompute: true, pairs: 4, max_grad_norm: 0.01, ..PLAIN },
        Steps { lora: true, pairs: 3, ..PLAIN },
        Steps { lora: true, method: Method::Reward, tied: false, ..PLAIN },
    ] {
        let one = steps.run(&Reference, &Alone, Sharded::Nothing);
        assert!(one.losses.iter().all(|loss| loss.is_finite()) && one.norms.iter().all(|&norm| norm > 0.0));
        for size in [1, 2, 3] {
            let all = steps.on(|| Reference, size, Sharded::Weights);
            assert!(all.iter().all(|after| *after == all[0]), "ranks differ");
            let distance = distance(&all[0], &one);
            // The runs differ in the order of f64 sums. AdamW amplifies this, because it divides by roots of
            // second moments, which are small at the start.
            assert!(distance < 1e-9, "{distance:e} on {size} ranks");
        }
    }
}

/// With one micro-batch per rank, sharded weights and a sharded optimiser form the same gradient sums over
/// the ranks. Clipping is off, because the squares of the gradient norm would be added in a different order.
#[test]
fn sharded_weights_keep_every_bit_of_a_sharded_optimizer() {
    for tied in [true, false] {
        let steps = Steps { tied, pairs: 2, ..PLAIN };
        for size in [2, 3] {
            let [weights, optimizer] = [Sharded::Weights, Sharded::Optimizer].map(|sharded| {
                let mut all = steps.on(Cpu::<f32>::new, size, sharded);
                all.swap_remove(0)
            });
            assert_eq!(weights.losses, optimizer.losses);
            assert_eq!(weights.scores, optimizer.scores);
            assert_eq!(weights.weights, optimizer.weights);
        }
    }
}

#[test]
fn bf16_weights_are_sharded_with_their_master_weights() {
    let steps = Steps { pairs: 3, tied: false, ..PLAIN };
    let cpu = || Cpu::<half::bf16>::on(crate::backend::cpu::Units::best());
    let one = steps.run(&cpu(), &Alone, Sharded::Nothing);
    let all = steps.on(cpu, 2, Sharded::Weights);
    assert_eq!(all[0], all[1]);
    // The gradients are summed in a different order, and the weights are rounded to bf16.
    assert!(distance(&all[0], &one) < 2e-2, "{}", distance(&all[0], &one));
    assert_eq!(steps.on(cpu, 2, Sharded::Weights)[0], all[0], "two runs differ");
}

/// Sharded models are saved to the same bytes as unsharded ones.
#[test]
fn a_sharded_model_is_saved_loaded_and_checked_like_a_whole_one() {
    let folder = |name: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(name)).unwrap();
        folder
    };
    let config = config(false);
    let whole = folder("whole");
    let at = whole.path().join("whole");
    store::save(&Reference, &store::random(&Reference, config.clone(), 4).unwrap(), &at).unwrap();
    let bytes = std::fs::read(at.join("model.safetensors")).unwrap();
    let shared = folder("shared");
    let to = shared.path().join("shared");
    let ranks: &'static [Rehearsal] = Rehearsal::ranks(3).leak();
    std::thread::scope(|scope| {
        for rank in ranks {
            let (at, to, config) = (&at, &to, &config);
            scope.spawn(move || {
                let load_as = (crate::model::weights::LoadAs::Exact, Some(Sharding::over(rank)));
                let mut model = store::load_on(&Reference, at, config.clone(), load_as, 0).unwrap().model;
                assert!(model.weights.len() < model.layout.len / 2);
                match rank.rank() {
                    0 => store::save(&Reference, &model, to).unwrap(),
                    _ => model.serve_trained(&Reference).unwrap(),
                }
                assert_eq!(store::not_finite(&Reference, &model).unwrap(), None);
                let f16 = crate::model::config::StoredDtype::F16;
                assert_eq!(store::beyond(&Reference, &model, f16).unwrap(), None);
                // One element of one rank is out of range; all ranks must report it.
                let norm = model.layout.final_norm.clone();
                model.write_trained(&Reference, norm.start + 3, &[1e6]).unwrap();
                let found = store::beyond(&Reference, &model, f16).unwrap();
                assert_eq!(found, Some(("model.norm.weight".to_owned(), 1e6)));
                model.write_trained(&Reference, norm.start + 3, &[f64::NAN]).unwrap();
                let found = store::not_finite(&Reference, &model).unwrap();
                assert_eq!(found, Some(("model.norm.weight".to_owned(), 1)));
            });
        }
    });
    assert!(std::fs::read(to.join("model.safetensors")).unwrap() == bytes, "the saved weights differ");
}
