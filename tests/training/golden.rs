//! Models, losses, gradients and AdamW steps on every backend against values of PyTorch,
//! transformers and TRL (`tests/golden/README.md`).

use std::collections::{BTreeMap, BTreeSet};

use common::fixtures::group;
use common::golden::{
    self, BOS, LANGUAGE_CASES, Pair, REWARD_CASES, TRAINED_CASES, Tensor, language_case, loss_rows, loss_steps,
    reward_case, tensors,
};
use mapl::backend::contract::{Comparisons, Curve, KINDS, Precision, PreferenceFwd, Reduce, SUM_FIELDS, TERMS, capped};
use mapl::backend::cpu::Cpu;
use mapl::backend::kernels::Kernels;
use mapl::backend::kernels::emulator::Schedule;
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, View, ViewMut};
use mapl::data::group::Kind;
use mapl::data::pack::{Batch, ComparisonOptions, LogpScope, PackOptions, Scoring, pack_into};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Divergence, Loss, LossOptions, LossType, Method};
use mapl::model::activations::Mode;
use mapl::model::config::ModelConfig;
use mapl::model::decoder::Model;
use mapl::model::store::load;
use mapl::model::tensors::TensorSpec;
use mapl::model::weights::LoadAs;
use mapl::optim::adamw::AdamWSettings;
use mapl::train::batch::upload::DeviceBatch;
use mapl::train::metrics::Tally;
use mapl::train::score::Scorer;
use mapl::train::step::Trainer;

const PLAIN: ComparisonOptions = ComparisonOptions { scale: [1.0; KINDS], margin_add: 0.0 };

fn model<B: Backend>(backend: &B, name: &str) -> Model<B> {
    let folder = golden::path(name);
    load(backend, &folder, ModelConfig::read(&folder).unwrap(), LoadAs::Exact, 0).unwrap().model
}

/// Returns a group that compares one sequence with a copy of itself under a different response index.
pub(crate) fn single(prompt: &[u32], response: &[u32]) -> TokenizedGroup {
    group("single", &[prompt], &[response, response], &[(Kind::Base, &[(0, 0, 1), (0, 1, -1)])])
}

pub(crate) fn pairs(pairs: &[Pair]) -> Vec<TokenizedGroup> {
    let one = |p: &Pair| {
        let responses: [&[u32]; 2] = [&p.chosen_ids, &p.rejected_ids];
        group("pair", &[&p.prompt_ids], &responses, &[(Kind::Base, &[(0, 0, 1), (0, 1, -1)])])
    };
    pairs.iter().map(one).collect()
}

/// Result of a forward pass: per-token log-probs, scores, hidden rows.
pub(crate) struct Forward {
    pub logp: Vec<f64>,
    pub score: Vec<f64>,
    hidden: Vec<f64>,
}

pub(crate) fn forward<B: Backend>(
    backend: &B,
    model: &mut Model<B>,
    groups: &[&TokenizedGroup],
    scoring: Scoring,
) -> Forward {
    let mut batch = Batch::default();
    let options = PackOptions {
        share_prefixes: true,
        scoring,
        vocab: model.config.vocab,
        pad: model.config.pad,
        position_runs: false,
    };
    pack_into(&mut batch, groups, &options, &PLAIN).unwrap();
    let mut device = DeviceBatch::new(backend).unwrap();
    device.upload(backend, &batch, [0.0; KINDS]).unwrap();
    let mut scorer = Scorer::new(backend, model, Mode::Infer).unwrap();
    let mut hidden = vec![0.0; batch.tokens() * model.config.hidden];
    if model.layout.score.is_none() && scoring == Scoring::Reward {
        // A language model over whole sequences, without its head: the test computes logits from
        // hidden rows.
        model.forward(backend, &device.inputs(), &mut scorer.acts).unwrap();
        backend.read_act(View::first(&scorer.acts.hidden, hidden.len()), &mut hidden).unwrap();
        return Forward { logp: Vec::new(), score: Vec::new(), hidden };
    }
    scorer.forward(backend, model, &device, Reduce::Sum).unwrap();
    let logp =
        if scoring == Scoring::Reward { Vec::new() } else { scorer.read_logp(backend, batch.head_rows()).unwrap() };
    Forward { logp, score: scorer.read_score(backend, batch.seqs()).unwrap(), hidden }
}

pub(crate) const LOGP: Scoring = Scoring::LogProb { scope: LogpScope::Response };

#[track_caller]
pub(crate) fn close(what: &str, got: f64, expected: f64, relative: f64, absolute: f64) {
    let allowed = absolute + relative * expected.abs();
    assert!((got - expected).abs() <= allowed, "{what}: {got} against {expected}, allowed {allowed:e}");
}

/// Relative tolerance 2e-5: the fixtures are f32 results of PyTorch.
fn log_probs<B: Backend>(backend: &B) {
    for name in LANGUAGE_CASES {
        let case = language_case(name);
        let mut model = model(backend, &case.model);
        for (i, sequence) in case.sequences.iter().enumerate() {
            let group = single(&sequence.prompt, &sequence.response);
            let got = forward(backend, &mut model, &[&group], LOGP);
            assert_eq!(got.logp.len(), 2 * sequence.logps.len());
            for (t, expected) in sequence.logps.iter().enumerate() {
                close(&format!("{name} sequence {i} token {t}"), got.logp[t], *expected, 2e-5, 0.0);
            }
            close(&format!("{name} sequence {i}"), got.score[0], sequence.logp, 2e-5, 0.0);
            assert_eq!(got.score[0], got.score[1], "equal responses must have equal scores");
        }
        // Logits of one sequence are adjacent in the list, so its hidden rows are computed once.
        let mut last: Option<(usize, Vec<f64>)> = None;
        for logits in &case.logits {
            let hidden = match last.take() {
                Some((sequence, hidden)) if sequence == logits.sequence => hidden,
                _ => {
                    let sequence = &case.sequences[logits.sequence];
                    let group = single(&sequence.prompt, &sequence.response);
                    forward(backend, &mut model, &[&group], Scoring::Reward).hidden
                }
            };
            let row = &hidden[logits.position * model.config.hidden..][..model.config.hidden];
            let range = model.layout.lm_head.clone().unwrap();
            let mut head = vec![0.0; range.len()];
            backend.read_act(View::new(&model.weights, range.start, range.len()), &mut head).unwrap();
            for (v, expected) in logits.values.iter().enumerate() {
                let got: f64 = row.iter().zip(&head[v * row.len()..]).map(|(a, b)| a * b).sum();
                let got = capped(model.config.softcaps.logits, got).0;
                close(&format!("{name} logit {v}"), got, *expected, 2e-5, 2e-5);
            }
            last = Some((logits.sequence, hidden));
        }
    }
}

fn rewards<B: Backend>(backend: &B) {
    for name in REWARD_CASES {
        let case = reward_case(name);
        let mut model = model(backend, &case.model);
        for (i, sequence) in case.sequences.iter().enumerate() {
            let group = single(&sequence.prompt, &sequence.response);
            let got = forward(backend, &mut model, &[&group], Scoring::Reward);
            close(&format!("{name} sequence {i}"), got.score[0], sequence.reward, 0.0, 2e-4);
        }
    }
}

/// Gradients by tensor name, or weights if `grads` is false.
pub(crate) fn named<B: Backend>(backend: &B, trainer: &Trainer<'_, B>, grads: bool) -> BTreeMap<String, Vec<f64>> {
    let read = |range: std::ops::Range<usize>| {
        let mut values = vec![0.0; range.len()];
        if grads {
            backend.read_acc(View::new(&trainer.grads, range.start, range.len()), &mut values).unwrap();
        } else {
            backend.read_act(View::new(&trainer.policy.weights, range.start, range.len()), &mut values).unwrap();
        }
        values
    };
    // Values are returned in the element order of weight files, which may differ from the order in memory.
    let stored = |spec: &TensorSpec, values: Vec<f64>| (0..values.len()).map(|i| values[spec.place(i)]).collect();
    trainer.policy.layout.slots.iter().map(|s| (s.spec.name.clone(), stored(&s.spec, read(s.range())))).collect()
}

/// Checks every gradient element to 1e-4 of its tensor's largest element plus 2e-6 of the model's
/// largest: PyTorch summed in f32.
fn compare_gradients(name: &str, got: &BTreeMap<String, Vec<f64>>, expected: &BTreeMap<String, Tensor>) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    let largest = |values: &[f32]| values.iter().fold(0.0, |m: f64, x| m.max(f64::from(x.abs())));
    let overall = expected.values().map(|t| largest(&t.values)).fold(0.0, f64::max);
    for (tensor, expected) in expected {
        let allowed = 1e-4 * largest(&expected.values) + 2e-6 * overall;
        for (i, (got, expected)) in got[tensor].iter().zip(&expected.values).enumerate() {
            close(&format!("{name} {tensor}[{i}]"), *got, f64::from(*expected), 0.0, allowed);
        }
    }
}

pub(crate) fn trainer<'b, B: Backend>(
    backend: &'b B,
    policy: &str,
    reference: Option<&str>,
    loss: Loss,
    settings: AdamWSettings,
) -> Trainer<'b, B> {
    let reference = reference.map(|name| model(backend, name));
    Trainer::new(backend, model(backend, policy), reference, loss, settings).unwrap()
}

pub(crate) fn resolve(method: Method, options: LossOptions) -> Loss {
    // A pure likelihood loss has no beta.
    let beta = options.beta.filter(|_| options.loss_type != [LossType::Sft]);
    LossOptions { beta, ..options }.resolve(method, [1.0; KINDS], false).unwrap()
}

fn dpo<B: Backend>(backend: &B) {
    for name in TRAINED_CASES {
        let case = language_case(name);
        let (dpo, steps) = (case.dpo.as_ref().unwrap(), case.steps.as_ref().unwrap());
        let settings = AdamWSettings {
            beta1: steps.beta1,
            beta2: steps.beta2,
            eps: steps.epsilon,
            weight_decay: steps.weight_decay,
            max_grad_norm: steps.max_grad_norm,
        };
        let loss = resolve(Method::Dpo, LossOptions { beta: Some(dpo.beta), ..LossOptions::default() });
        let mut trainer = trainer(backend, &case.model, case.reference.as_deref(), loss, settings);
        let groups = pairs(&case.pairs);
        let micro_batches = vec![groups.iter().collect::<Vec<_>>()];
        let mut tally = Tally::default();
        trainer.accumulate(&micro_batches, &mut tally, &mut Vec::new()).unwrap();
        close(&format!("{name} loss"), tally.loss(&trainer.loss), dpo.loss, 1e-5, 0.0);
        close(&format!("{name} loss of TRL"), tally.loss(&trainer.loss), dpo.trl_loss, 1e-5, 0.0);
        compare_gradients(name, &named(backend, &trainer, true), &tensors(&dpo.gradients));

        let start = named(backend, &trainer, false);
        for (i, expected) in steps.losses.iter().enumerate() {
            let report = trainer.step(&micro_batches, steps.learning_rate).unwrap();
            close(&format!("{name} loss of step {i}"), report.tally.loss(&trainer.loss), *expected, 5e-4, 0.0);
            close(&format!("{name} norm of step {i}"), report.update.grad_norm, steps.grad_norms[i], 5e-4, 0.0);
        }
        let mut tally = Tally::default();
        trainer.accumulate(&micro_batches, &mut tally, &mut Vec::new()).unwrap();
        close(&format!("{name} last loss"), tally.loss(&trainer.loss), steps.loss_after, 5e-4, 0.0);
        // Adam divides by the square root of tiny second moments, so single elements differ; the
        // whole update agrees.
        let (mut difference, mut update) = (0.0, 0.0);
        let got = named(backend, &trainer, false);
        for (tensor, expected) in &tensors(&steps.weights) {
            for (i, expected) in expected.values.iter().enumerate() {
                difference += (got[tensor][i] - f64::from(*expected)).powi(2);
                update += (start[tensor][i] - f64::from(*expected)).powi(2);
            }
        }
        let share = (difference / update).sqrt();
        println!("{} {name}: weights after {} steps differ by {share:e} of the update", B::NAME, steps.losses.len());
        assert!(share < 0.02, "{name}: {share}");
    }
}

fn bradley_terry<B: Backend>(backend: &B) {
    for name in REWARD_CASES {
        let case = reward_case(name);
        let loss = resolve(Method::Reward, LossOptions::default());
        let mut trainer = trainer(backend, &case.model, None, loss, AdamWSettings::default());
        let groups = pairs(&case.pairs);
        let mut tally = Tally::default();
        trainer.accumulate(&[groups.iter().collect()], &mut tally, &mut Vec::new()).unwrap();
        close(&format!("{name} loss"), tally.loss(&trainer.loss), case.bradley_terry.loss, 1e-5, 0.0);
        close(&format!("{name} loss of TRL"), tally.loss(&trainer.loss), case.bradley_terry.trl_loss, 1e-5, 0.0);
        compare_gradients(name, &named(backend, &trainer, true), &tensors(&case.bradley_terry.gradients));
    }
}

/// Runs `preference_fwd` on one comparison for each loss and row of the table. Checks the loss and its
/// derivatives by the two summed log-probabilities.
fn curves<B: Backend>(backend: &B) {
    let acc = |values: &[f64]| {
        let mut buffer = backend.zeros_acc(values.len()).unwrap();
        backend.write_acc(ViewMut::first(&mut buffer, values.len()), values).unwrap();
        buffer
    };
    let idx = |values: &[i32]| {
        let mut buffer = backend.zeros_idx(values.len()).unwrap();
        backend.write_idx(ViewMut::first(&mut buffer, values.len()), values).unwrap();
        buffer
    };
    let mut names = BTreeSet::new();
    for (r, row) in loss_rows().iter().enumerate() {
        let tokens = [row.chosen_tokens, row.rejected_tokens].map(f64::from);
        for stored in &row.losses {
            let what = format!("row {r} {:?} {:?}", stored.options.loss_type, stored.options);
            // Skips rows for which the exponential of the forward KL divergence exceeds the f32 range.
            let least = (row.chosen - row.reference_chosen).min(row.rejected - row.reference_rejected);
            let forward = stored.options.f_divergence_type == Some(Divergence::ForwardKl);
            if forward && least < -80.0 && B::PRECISION != Precision::F64 {
                continue;
            }
            names.extend(stored.options.loss_type.iter().map(|of| of.name()));
            let loss_of = resolve(Method::Dpo, stored.options.clone());
            let reduced = |sum: f64, i: usize| if loss_of.reduce == Reduce::Mean { sum / tokens[i] } else { sum };
            let score = acc(&[reduced(row.chosen, 0), reduced(row.rejected, 1)]);
            let reference = acc(&[reduced(row.reference_chosen, 0), reduced(row.reference_rejected, 1)]);
            let inverse_rows = acc(&tokens.map(|tokens| 1.0 / tokens));
            let (sequence, sign) = (idx(&[0, 1, -1, -1]), idx(&[1, -1, 0, 0]));
            let (kind, offsets, uses) = (idx(&[0]), idx(&[0, 1, 2]), idx(&[0, 1]));
            let (scale, margin, weight) = (acc(&[loss_of.scale[0]]), acc(&[loss_of.margin]), acc(&[1.0]));
            let (clip, kind_scale) = (acc(&[f64::NEG_INFINITY, f64::INFINITY]), acc(&[1.0, 1.0, 1.0]));
            let (mut loss, mut logit, mut dscore) = (acc(&[0.0]), acc(&[0.0]), acc(&[0.0, 0.0]));
            let mut sums = acc(&[0.0; KINDS * SUM_FIELDS]);
            backend
                .preference_fwd(PreferenceFwd {
                    seqs: 2,
                    comparisons: 1,
                    curves: &loss_of.curves,
                    link: loss_of.link,
                    center: 0.0,
                    score: View::first(&score, 2),
                    reference: (!loss_of.is_reference_free()).then(|| View::first(&reference, 2)),
                    inverse_rows: loss_of.needs_rows().then(|| View::first(&inverse_rows, 2)),
                    table: Comparisons {
                        term_sequence: View::first(&sequence, TERMS),
                        term_sign: View::first(&sign, TERMS),
                        kind: View::first(&kind, 1),
                        scale: View::first(&scale, 1),
                        margin: View::first(&margin, 1),
                        weight: View::first(&weight, 1),
                        detached_clip: View::first(&clip, 2),
                        kind_scale: View::first(&kind_scale, KINDS),
                        use_offsets: View::first(&offsets, 3),
                        uses: View::first(&uses, 2),
                    },
                    pair_weights: None,
                    direct: None,
                    loss: ViewMut::first(&mut loss, 1),
                    logit: ViewMut::first(&mut logit, 1),
                    dscore: ViewMut::first(&mut dscore, 2),
                    sums: ViewMut::first(&mut sums, KINDS * SUM_FIELDS),
                })
                .unwrap();
            let (mut got, mut slopes) = ([0.0], [0.0; 2]);
            backend.read_acc(View::first(&loss, 1), &mut got).unwrap();
            backend.read_acc(View::first(&dscore, 2), &mut slopes).unwrap();
            let nll = loss_of.nll_weight;
            // Scores of magnitude 100 have an f32 rounding error of 4e-6 each. IPO and SPPO multiply
            // the error by their slope, DiscoPOP by 1 / temperature, a divergence by its exponential.
            let steep = matches!(stored.options.loss_type[0], LossType::Discopop | LossType::SppoHard)
                || stored.options.f_divergence_type.is_some();
            let relative = if steep { 2e-4 } else { 2e-5 };
            close(&what, got[0] - nll * row.chosen / tokens[0], stored.loss, relative, 1e-5);
            let direct = [-nll / tokens[0], 0.0];
            for i in 0..2 {
                let slope = slopes[i] / if loss_of.reduce == Reduce::Mean { tokens[i] } else { 1.0 } + direct[i];
                close(&format!("{what}: slope {i}"), slope, stored.slopes[i], relative, 1e-6);
            }
        }
    }
    assert_eq!(names.len(), 17, "{names:?}");
}

/// Four steps of every loss against TRL, in one micro-batch and in two.
fn steps_of_every_loss<B: Backend>(backend: &B) {
    let table = loss_steps();
    let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 };
    let mut names = BTreeSet::new();
    // The emulator runs only every fourth loss; `tests/ops/backends/preference.rs` compares every loss there
    // with the reference.
    let sampled = B::NAME == "emulator" && !common::full();
    for case in table.losses.iter().step_by(if sampled { 4 } else { 1 }) {
        names.extend(case.options.loss_type.iter().map(|of| of.name()));
        let mut of_pairs = table.pairs.clone();
        if case.prompts == "one token" {
            of_pairs.iter_mut().for_each(|pair| pair.prompt_ids = vec![BOS]);
        }
        let groups = pairs(&of_pairs);
        let whole: Vec<&TokenizedGroup> = groups.iter().collect();
        let halves = whole.chunks(2).map(<[_]>::to_vec).collect();
        let loss = resolve(Method::Dpo, case.options.clone());
        // The split into micro-batches matters only if the loss depends on counts of the batch: a mean over
        // tokens, and several losses.
        let splits = loss.nll_weight > 0.0 || loss.curves.len() > 1 || matches!(loss.curves[0].curve, Curve::ApoZero);
        let mut all = vec![vec![whole.clone()]];
        if splits && !loss.sorts() {
            all.push(halves);
        }
        for micro_batches in all {
            let loss = resolve(Method::Dpo, case.options.clone());
            assert_eq!(loss.is_reference_free(), case.reference.is_none());
            let mut trainer = trainer(backend, &table.model, case.reference.as_deref(), loss, settings);
            for (i, expected) in case.losses.iter().enumerate() {
                let report = trainer.step(&micro_batches, table.learning_rate).unwrap();
                let what = format!("{:?} step {i} of {}", case.options, micro_batches.len());
                close(&what, report.tally.loss(&trainer.loss), *expected, 1e-5, 1e-6);
                close(&format!("norm, {what}"), report.update.grad_norm, case.grad_norms[i], 1e-4, 0.0);
            }
        }
    }
    assert!(names.len() == 17 || sampled, "{names:?}");
}

macro_rules! for_each_backend {
    ($($check:ident),*) => { $(
        mod $check {
            #[test]
            fn reference() {
                super::$check(&super::Reference);
            }
            #[test]
            fn cpu() {
                super::$check(&super::Cpu::new());
            }
            #[test]
            fn kernels() {
                let Some(emulator) = common::emulator(super::Schedule::Random(3), 3) else { return };
                super::$check(&super::Kernels::<_, f32>::new(emulator));
            }
        }
    )* };
}
pub(crate) use for_each_backend;
for_each_backend!(log_probs, rewards, dpo, bradley_terry, curves, steps_of_every_loss);
