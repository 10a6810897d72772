//! Golden fixtures: consistent with each other and with the configuration and weight readers, so
//! that models can be compared with them. All values are recomputed in f64 from the stored inputs.

use common::golden::{self, LANGUAGE_CASES, REWARD_CASES};
use mapl::loss::objective::LossType;
use mapl::model::config::{Head, ModelConfig};
use mapl::model::tensors::Role;
use mapl::model::weights::{LoadAs, WeightFiles};

/// Asserts `|a - b| <= tolerance * max(1, |b|)`.
fn assert_close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{what}: {a} against {b}");
}

/// Computes -log sigmoid(z) without overflow.
fn logistic(z: f64) -> f64 {
    (-z).max(0.0) + (-z.abs()).exp().ln_1p()
}

fn log_softmax_at(logits: &[f64], index: usize) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits[index] - max - logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

#[test]
fn every_parameter_of_every_model_is_random() {
    for name in golden::models() {
        let folder = golden::model_folder(name);
        let config = ModelConfig::read(&folder).unwrap();
        let files = WeightFiles::open(&folder, &config, LoadAs::Exact).unwrap();
        for tensor in config.tensors() {
            let values = files.read_all(&tensor.name).unwrap();
            assert_eq!(values.len(), tensor.elements(), "{name} {}", tensor.name);
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt();
            assert!(deviation > 0.1, "{name} {} is nearly constant: {deviation}", tensor.name);
        }
    }
}

#[test]
fn inverse_frequencies_match_transformers() {
    let language = LANGUAGE_CASES.map(|n| (n, golden::language_case(n).inv_freq));
    let reward = REWARD_CASES.map(|n| (n, golden::reward_case(n).inv_freq));
    for (name, expected) in language.into_iter().chain(reward) {
        let got = ModelConfig::read(&golden::model_folder(name)).unwrap().inv_freq();
        assert_eq!(got.len(), expected.len(), "{name}");
        for (a, b) in got.iter().zip(&expected) {
            // One ulp: torch's vectorised pow is not correctly rounded.
            assert!((f64::from(*a) - b).abs() <= 1.2e-7 * b, "{name}: {a} against {b}");
        }
    }
}

#[test]
fn stored_log_probs_match_the_logits() {
    for name in LANGUAGE_CASES {
        let case = golden::language_case(name);
        let vocab = ModelConfig::read(&golden::model_folder(name)).unwrap().vocab;
        let mut checked = 0;
        for row in &case.logits {
            let sequence = &case.sequences[row.sequence];
            assert_eq!(row.values.len(), vocab);
            let ids: Vec<u32> = sequence.prompt.iter().chain(&sequence.response).copied().collect();
            assert!(row.position < ids.len());
            // The last prompt token's logits give the first response token.
            if let Some(step) = (row.position + 1).checked_sub(sequence.prompt.len())
                && step < sequence.response.len()
            {
                let logp = log_softmax_at(&row.values, ids[row.position + 1] as usize);
                assert_close(logp, sequence.logps[step], 1e-6, name);
                checked += 1;
            }
        }
        assert!(checked >= 3, "{name}: only {checked} rows");
        for sequence in &case.sequences {
            assert_eq!(sequence.logps.len(), sequence.response.len());
            assert_close(sequence.logps.iter().sum(), sequence.logp, 1e-6, name);
            if let (Some(logps), Some(logp)) = (&sequence.reference_logps, sequence.reference_logp) {
                assert_eq!(logps.len(), sequence.response.len());
                assert_close(logps.iter().sum(), logp, 1e-6, name);
            }
        }
    }
}

#[test]
fn sequences_match_the_pairs_and_never_contain_the_pad_token() {
    for name in LANGUAGE_CASES {
        let case = golden::language_case(name);
        let pad = ModelConfig::read(&golden::model_folder(name)).unwrap().pad.unwrap();
        for (i, pair) in case.pairs.iter().enumerate() {
            let (chosen, rejected) = (&case.sequences[2 * i], &case.sequences[2 * i + 1]);
            assert_eq!((&chosen.prompt, &chosen.response), (&pair.prompt_ids, &pair.chosen_ids));
            assert_eq!((&rejected.prompt, &rejected.response), (&pair.prompt_ids, &pair.rejected_ids));
        }
        assert_eq!(case.sequences.len(), 2 * case.pairs.len() + 2);
        assert!(
            case.pairs.iter().any(|p| p.prompt_ids.len() == 1) && case.pairs.iter().any(|p| p.chosen_ids.len() == 1)
        );
        assert!(!case.sequences.iter().any(|s| s.prompt.contains(&pad) || s.response.contains(&pad)));
    }
}

#[test]
fn stored_dpo_losses_match_the_log_probs_and_trl() {
    for name in ["llama", "qwen2"] {
        let case = golden::language_case(name);
        let dpo = case.dpo.unwrap();
        let score = |s: usize| {
            let sequence = &case.sequences[s];
            dpo.beta * (sequence.logp - sequence.reference_logp.unwrap())
        };
        let mut sum = 0.0;
        for (i, stored) in dpo.losses.iter().enumerate() {
            let loss = logistic(score(2 * i) - score(2 * i + 1));
            assert_close(loss, *stored, 3e-6, name);
            sum += loss;
        }
        assert_eq!(dpo.losses.len(), case.pairs.len());
        assert_close(sum / case.pairs.len() as f64, dpo.loss, 3e-6, name);
        assert_close(dpo.trl_loss, dpo.loss, 3e-6, name);
        assert_eq!(case.steps.unwrap().losses[0], dpo.loss);
        assert!(
            case.comparisons.iter().any(|c| c.kind == "intra") && case.comparisons.iter().any(|c| c.kind == "inter")
        );
        for c in &case.comparisons {
            let z: f64 = c.terms.iter().map(|(s, sign)| f64::from(*sign) * score(*s)).sum();
            assert_close(logistic(z), c.loss, 1e-6, &c.kind);
        }
    }
}

#[test]
fn stored_bradley_terry_losses_match_the_rewards_and_trl() {
    for name in REWARD_CASES {
        let case = golden::reward_case(name);
        for c in &case.comparisons {
            let z: f64 = c.terms.iter().map(|(s, sign)| f64::from(*sign) * case.sequences[*s].reward).sum();
            assert_close(logistic(z), c.loss, 1e-6, &c.kind);
        }
        let bt = &case.bradley_terry;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        assert_eq!(bt.losses.len(), case.pairs.len());
        assert_close(mean(&bt.losses), bt.loss, 1e-6, name);
        assert_close(bt.trl_loss, bt.loss, 1e-6, name);
    }
}

#[test]
fn gradients_cover_every_parameter() {
    let language = ["llama", "qwen2"].map(|n| {
        let case = golden::language_case(n);
        (n, case.dpo.unwrap().gradients, Some(case.steps.unwrap().grad_norms[0]))
    });
    let reward = REWARD_CASES.map(|n| (n, golden::reward_case(n).bradley_terry.gradients, None));
    for (name, file, norm) in language.into_iter().chain(reward) {
        let config = ModelConfig::read(&golden::model_folder(name)).unwrap();
        let gradients = golden::tensors(&file);
        assert_eq!(gradients.len(), config.tensors().len(), "{name}");
        let mut squares = 0.0;
        for tensor in config.tensors() {
            let gradient = &gradients[&tensor.name];
            assert_eq!(gradient.shape, tensor.shape, "{name} {}", tensor.name);
            let sum: f64 = gradient.values.iter().map(|x| f64::from(*x).powi(2)).sum();
            // The bias of the last norm adds the same to every reward.
            assert!(sum > 0.0 || tensor.role == Role::FinalNormBias, "{name} {} has no gradient", tensor.name);
            squares += sum;
        }
        if let Some(norm) = norm {
            assert_close(squares.sqrt(), norm, 1e-6, name);
            assert!(norm > 1.0, "{name}: the first step must clip");
        }
    }
}

#[test]
fn weight_decay_matches_transformers_and_steps_move_every_parameter() {
    for name in ["llama", "qwen2"] {
        let folder = golden::model_folder(name);
        let config = ModelConfig::read(&folder).unwrap();
        let files = WeightFiles::open(&folder, &config, LoadAs::Exact).unwrap();
        let steps = golden::language_case(name).steps.unwrap();
        let mut decayed: Vec<String> =
            config.tensors().into_iter().filter(|t| t.role.decays()).map(|t| t.name).collect();
        decayed.sort();
        assert_eq!(decayed, steps.decayed, "{name}");

        let after = golden::tensors(&steps.weights);
        assert_eq!(after.len(), config.tensors().len());
        for tensor in config.tensors() {
            let before = files.read_all(&tensor.name).unwrap();
            let after = &after[&tensor.name];
            assert_eq!(after.shape, tensor.shape);
            let largest = before.iter().zip(&after.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Adam moves an element by about the learning rate per step; the gradient's sign may
            // change once.
            assert!(largest > 1e-3 && largest < 5e-3, "{name} {}: {largest}", tensor.name);
        }
        assert!(steps.losses.windows(2).all(|w| w[1] < w[0]) && steps.loss_after < steps.losses[2]);
        if config.tied || config.head == Head::Reward {
            continue;
        }
        // No text contains the pad token, so weight decay is the only change of its row in an
        // untied table.
        let pad = config.pad.unwrap() as usize * config.hidden;
        let factor = (1.0 - steps.learning_rate * steps.weight_decay).powi(3);
        let (before, after) =
            (files.read_all("model.embed_tokens.weight").unwrap(), &after["model.embed_tokens.weight"]);
        let row = pad..pad + config.hidden;
        for (before, after) in before[row.clone()].iter().zip(&after.values[row]) {
            assert_close(f64::from(*after), f64::from(*before) * factor, 2e-7, "pad row");
        }
    }
}

#[test]
fn the_loss_table_matches_the_formulas() {
    let rows = golden::loss_rows();
    assert!(rows.len() >= 12);
    let mut found = 0;
    for row in rows {
        let chosen = row.chosen - row.reference_chosen;
        let rejected = row.rejected - row.reference_rejected;
        let ipo = chosen / f64::from(row.chosen_tokens) - rejected / f64::from(row.rejected_tokens);
        for stored in row.losses {
            let o = &stored.options;
            let (beta, e) = (o.beta.unwrap(), o.label_smoothing.unwrap_or(0.0));
            let (a, b) = (beta * chosen, beta * rejected);
            let z = a - b;
            if o.f_divergence_type.is_some() || o.loss_type.len() > 1 {
                continue;
            }
            let formula = match o.loss_type[0] {
                LossType::Sigmoid => (1.0 - e) * logistic(z) + e * logistic(-z),
                LossType::Robust => ((1.0 - e) * logistic(z) - e * logistic(-z)) / (1.0 - 2.0 * e),
                LossType::Hinge => (1.0 - z).max(0.0),
                LossType::Ipo => (ipo - 1.0 / (2.0 * beta)).powi(2),
                LossType::BcoPair => logistic(a) + logistic(-b),
                LossType::SigmoidNorm => logistic(beta * ipo),
                LossType::Sft => -row.chosen / f64::from(row.chosen_tokens),
                _ => continue,
            };
            found += 1;
            assert_close(formula, stored.loss, 1e-12, &format!("{o:?}"));
        }
    }
    assert!(found >= 12 * 8, "{found}");
}
