//! Empty batches on every backend, and inputs at the limits of the number range.

use half::bf16;
use mapl::backend::Backend;
use mapl::backend::Write::{self, Add, Overwrite};
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;
use mapl::backend::reference::Reference;

use common::head_preference::Case;
use common::runs::{self, Adam, CURVES, Preference};
use common::trees::HostTree;
use common::{On, Outputs, bf16_units, normal};

/// Initial content of a weight gradient before an op on an empty batch.
const BEFORE: [f64; 6] = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0];

fn only(outputs: &Outputs, name: &str) -> Vec<f64> {
    outputs.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no output {name}")).1.clone()
}

/// Asserts the value of an empty sum: 0 with `Overwrite`, the initial content with `Add`.
fn assert_empty_sum(name: &str, outputs: &Outputs, write: Write) {
    for (output, values) in outputs {
        let expected: Vec<f64> = match write {
            Overwrite => vec![0.0; values.len()],
            Add => BEFORE[..values.len()].to_vec(),
        };
        assert_eq!(*values, expected, "{name}.{output} of an empty batch, {write:?}");
    }
}

/// Runs every op that allows an empty input with no token, row, sequence, comparison or element.
fn nothing<B: Backend>(on: &On<B>) {
    let weight = normal("weight", 6, 1.0);
    let embedding = EmbeddingDims { tokens: 0, vocab: 3, hidden: 2 };
    assert!(runs::embedding_fwd(on, embedding, &[], &weight)[0].1.is_empty());
    let norm = NormDims { tokens: 0, hidden: 6, eps: 1e-6, offset: 0.0 };
    runs::norm_fwd(on, norm, &[], None, &weight);
    runs::norm_fwd(on, norm, &[], Some(&[]), &weight);
    let linear = LinearDims { tokens: 0, inputs: 2, outputs: 3 };
    runs::linear_fwd(on, linear, &[], &weight, None);
    runs::linear_fwd(on, linear, &[], &weight, Some(&BEFORE[..3]));
    let rope = RopeDims { tokens: 0, heads: 2, unrotated_heads: 1, head_dim: 4, rotated: 4, positions: 0 };
    for back in [false, true] {
        runs::rope(on, rope, &[], (&[], &[]), &[], back);
    }
    let gelu = GeluDims { tokens: 0, intermediate: 3, form: Gelu::Erf };
    runs::gelu_fwd(on, gelu, &[]);
    runs::gelu_bwd(on, gelu, &[], &[]);
    runs::scale(on, ScaleDims { tokens: 0, hidden: 3, factor: 2.0 }, &[], None);
    let layer_norm = LayerNormDims { tokens: 0, hidden: 3, eps: 1e-6 };
    runs::layer_norm_fwd(on, layer_norm, &[], &weight);
    let glu = GluDims { tokens: 0, intermediate: 3, gelu: None };
    runs::glu_fwd(on, glu, &[]);
    runs::glu_bwd(on, glu, &[], &[]);
    let gated = LinearGluDims { tokens: 0, hidden: 1, intermediate: 3 };
    runs::linear_glu_fwd(on, gated, &[], &weight, true);
    runs::linear_glu_bwd(on, gated, &[], &weight[..3], &[]);
    let tree = HostTree::new();
    let attention = tree.dims(2, 1, 4);
    let forward = runs::attention_fwd(on, attention, &tree, &[]);
    runs::attention_bwd(on, attention, &tree, &[], &[], &forward);
    runs::logprob(on, 4, &[], &[], &[]);

    for write in [Overwrite, Add] {
        let dtable = runs::embedding_bwd(on, embedding, &[], &[], &BEFORE, write);
        assert_empty_sum("embedding_bwd", &dtable, write);
        let inputs =
            runs::NormBwdInputs { dy: &[], sum: &[], rstd: &[], weight: &weight, dsum: &[], dweight: &BEFORE, write };
        assert_empty_sum("norm_bwd", &runs::norm_bwd(on, norm, &inputs), write);
        let inputs = [&[][..], &[], &[], &weight, &[], &BEFORE];
        assert_empty_sum("layer_norm_bwd", &runs::layer_norm_bwd(on, layer_norm, inputs, write), write);
        runs::linear_bwd_input(on, linear, &[], &weight, &[], write);
        assert_empty_sum("linear_bwd_weight", &runs::linear_bwd_weight(on, linear, &[], &[], &BEFORE, write), write);
        assert_empty_sum("bias_bwd", &runs::bias_bwd(on, linear, &[], &BEFORE[..3], write), write);

        // Tokens but no head rows: dhidden is 0 everywhere. Then no tokens.
        for tokens in [4, 0] {
            let d = HeadDims { tokens, hidden: 2, vocab: 3, rows: 0, softcap: None };
            let hidden = normal("hidden", 2 * tokens, 1.0);
            runs::head_logprob_fwd(on, d, &hidden, &weight, &[], &[]);
            let inputs = runs::HeadBwdInputs {
                hidden: &hidden,
                head: &weight,
                source: &[],
                target: &[],
                lse: &[],
                dlogp: &[],
                dhead: &BEFORE,
                write,
            };
            let outputs = runs::head_logprob_bwd(on, d, &inputs);
            assert_eq!(only(&outputs, "dhidden"), vec![0.0; 2 * tokens], "head without rows");
            assert_empty_sum("head_logprob_bwd", &outputs[1..].to_vec(), write);

            let d = RewardDims { tokens, hidden: 6, seqs: 0 };
            let hidden = normal("hidden", 6 * tokens, 1.0);
            let outputs = runs::reward_head(on, d, [&hidden, &weight, &[], &BEFORE], &[], write);
            assert_eq!(only(&outputs, "dhidden"), vec![0.0; 6 * tokens], "reward head without sequences");
            assert_empty_sum("reward_head_bwd", &outputs[2..].to_vec(), write);
        }
        let case = Case { write, dhead: BEFORE.to_vec(), ..Case::new("nothing", &[], (2, 3)) };
        let outputs = case.run(on).0;
        assert!(only(&outputs, "dhidden").is_empty() && only(&outputs, "sums") == [0.0; KINDS * SUM_FIELDS]);
        assert_empty_sum("head_preference", &vec![("dhead", only(&outputs, "dhead"))], write);
    }
    for reduce in [Reduce::Sum, Reduce::Mean] {
        runs::segment_sum(on, reduce, &[], &[0], &[]);
        assert_eq!(only(&runs::segment_sum(on, reduce, &[], &[0, 0], &[2.0]), "sums"), [0.0]);
    }
    for curve in CURVES {
        let mut p = comparisons(curve, &[], vec![]);
        assert_eq!(only(&runs::preference(on, &p), "sums"), [0.0; KINDS * SUM_FIELDS]);
        (p.score, p.direct) = (vec![1.0, 2.0], Some(vec![0.5, -0.25]));
        assert_eq!(only(&runs::preference(on, &p), "dscore"), [0.5, -0.25]);
    }
    let control = only(&runs::grad_norm(on, 1.0, &[], &[0.0; CONTROL]), "control");
    assert_eq!((control[CONTROL_NORM], control[CONTROL_APPLY]), (0.0, 1.0));
    let adam = Adam { decayed: 0, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
    runs::adamw(on, adam, &control, &[], [&[]; 3]);
}

#[test]
fn empty_batches_give_empty_or_zero_results() {
    nothing(&On { backend: &Reference, inputs: Precision::F64, before: 5 });
    nothing(&On { backend: &Cpu::new(), inputs: Precision::F32, before: 5 });
    for units in bf16_units() {
        nothing(&On { backend: &Cpu::<bf16>::on(units), inputs: Precision::Bf16, before: 5 });
    }
}

/// Comparisons of the base pairs (2c, 2c + 1) with the given weights.
fn comparisons(curve: Curve, weights: &[f64], score: Vec<f64>) -> Preference {
    let n = weights.len();
    Preference {
        curves: vec![curve.into()],
        link: Link::Identity,
        center: 0.0,
        score,
        reference: None,
        rows: None,
        pair_weights: None,
        direct: None,
        terms: (0..n as i32).map(|c| vec![(2 * c, 1), (2 * c + 1, -1)]).collect(),
        kind: vec![0; n],
        scale: vec![1.0; n],
        margin: vec![0.0; n],
        weight: weights.to_vec(),
        clip: vec![0.0; 2 * n],
        kind_scale: vec![1.0; KINDS],
    }
}

fn far_logits<B: Backend>(on: &On<B>) {
    for curve in CURVES {
        let outputs = runs::preference(on, &comparisons(curve, &[1.0, 1.0], vec![1e4, 0.0, 0.0, 1e4]));
        assert_eq!(only(&outputs, "logit"), [1e4, -1e4]);
        assert!(outputs.iter().flat_map(|o| &o.1).all(|x| x.is_finite()), "{curve:?}: {outputs:?}");
        let (loss, dscore) = (only(&outputs, "loss"), only(&outputs, "dscore"));
        if curve == (Curve::Sigmoid { smoothing: 0.0 }) {
            assert_eq!((loss, dscore), (vec![0.0, 1e4], vec![0.0, 0.0, -1.0, 1.0]));
        }
    }
}

#[test]
fn losses_of_extreme_logits_are_finite() {
    far_logits(&On { backend: &Reference, inputs: Precision::F64, before: 5 });
    far_logits(&On { backend: &Cpu::new(), inputs: Precision::F32, before: 5 });
}

fn weight_zero<B: Backend>(on: &On<B>) {
    for curve in CURVES {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut p = comparisons(curve, &[0.0, 1.0], vec![bad, 1.0, 0.5, 0.25]);
            p.center = 0.5;
            let outputs = runs::preference(on, &p);
            let (loss, dscore) = (only(&outputs, "loss"), only(&outputs, "dscore"));
            assert!(loss[0] == 0.0 && dscore[..2] == [0.0, 0.0], "{curve:?}, {bad}: {outputs:?}");
            assert!(loss[1].is_finite() && dscore[2].is_finite() && dscore[2] != 0.0, "{curve:?}, {bad}");
            assert_eq!(only(&outputs, "sums")[SUM_LOSS], loss[1]);
            // With a nonzero weight the gradient of the same comparison is NaN, so the step is
            // skipped.
            p.weight[0] = 1.0;
            let dscore = only(&runs::preference(on, &p), "dscore");
            assert!(dscore[..2].iter().all(|g| g.is_nan()), "{curve:?}, {bad}: {dscore:?}");
        }
    }
}

#[test]
fn comparison_of_weight_zero_ignores_non_finite_scores() {
    weight_zero(&On { backend: &Reference, inputs: Precision::F64, before: 5 });
    weight_zero(&On { backend: &Cpu::new(), inputs: Precision::F32, before: 5 });
}

/// A logit of -inf gives a token of probability 0: it changes no other value and gets no gradient.
fn masked_logits<B: Backend>(on: &On<B>, bound: f64) {
    let masked = [f64::NEG_INFINITY, 0.5, f64::NEG_INFINITY, -1.0, 2.0];
    let (got, expected) =
        (runs::logprob(on, 5, &masked, &[3], &[0.7]), runs::logprob(on, 3, &[0.5, -1.0, 2.0], &[1], &[0.7]));
    for name in ["logp", "lse"] {
        assert!((only(&got, name)[0] - only(&expected, name)[0]).abs() < bound, "{got:?} {expected:?}");
    }
    let (dlogits, compact) = (only(&got, "dlogits"), only(&expected, "dlogits"));
    assert_eq!([dlogits[0], dlogits[2]], [0.0; 2]);
    for (i, k) in [(1, 0), (3, 1), (4, 2)] {
        assert!((dlogits[i] - compact[k]).abs() < bound, "{got:?} {expected:?}");
    }
    // A target of probability 0, and a row without a finite logit.
    let got = runs::logprob(on, 2, &[f64::NEG_INFINITY, 1.0], &[0], &[0.0]);
    assert_eq!((only(&got, "logp")[0], only(&got, "lse")[0]), (f64::NEG_INFINITY, 1.0));
    let got = runs::logprob(on, 2, &[f64::NEG_INFINITY; 2], &[0], &[0.0]);
    assert_eq!(only(&got, "lse")[0], f64::NEG_INFINITY);
    // Logits outside the range of exp.
    let got = runs::logprob(on, 2, &[8192.0, -8192.0], &[1], &[1.0]);
    assert_eq!((only(&got, "logp")[0], only(&got, "lse")[0]), (-16_384.0, 8192.0));
    assert_eq!(only(&got, "dlogits"), [-1.0, 1.0]);
}

#[test]
fn logits_of_minus_infinity_have_probability_zero() {
    masked_logits(&On { backend: &Reference, inputs: Precision::F64, before: 5 }, 1e-15);
    masked_logits(&On { backend: &Cpu::new(), inputs: Precision::F32, before: 5 }, 1e-6);
    masked_logits(&On { backend: &Cpu::<bf16>::default(), inputs: Precision::Bf16, before: 5 }, 4e-3);
}
