//! Named objectives, from the flags to the loss of a batch. The tests cover comparisons that
//! `prepare` drops, splits and detaches, presets against their formulas in f64, and the logged
//! formula.

use std::path::Path;

use common::fixtures::group;
use mapl::backend::contract::{Curve, KINDS, Link, PreferenceFwd, Reduce, SUM_FIELDS};
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, View, ViewMut};
use mapl::data::group::Kind;
use mapl::data::pack::{Batch, ComparisonOptions, pack_into};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Divergence, Loss, LossOptions, LossType, Method, Mix, ReduceName, ScopeName};
use mapl::train::batch::upload::DeviceBatch;
use mapl::train::pack_options;

/// Number of sequences: (x,c) (x,r) (up,c) (up,r) (down,c) (down,r), with prompts x, x_up, x_down
/// and responses chosen, rejected.
const SEQUENCES: usize = 6;
const BASE: [(usize, usize, i8); 2] = [(0, 0, 1), (0, 1, -1)];
const INTRA: [(usize, usize, i8); 2] = [(1, 0, 1), (2, 0, -1)];
const UP: [(usize, usize, i8); 4] = [(1, 0, 1), (0, 1, 1), (1, 1, -1), (0, 0, -1)];
const DOWN: [(usize, usize, i8); 4] = [(2, 1, 1), (0, 0, 1), (2, 0, -1), (0, 1, -1)];

fn full() -> TokenizedGroup {
    group(
        "full",
        &[&[1, 2], &[1, 2, 3], &[1, 2, 4]],
        &[&[5, 6], &[7]],
        &[(Kind::Base, &BASE), (Kind::Intra, &INTRA), (Kind::Inter, &UP), (Kind::Inter, &DOWN)],
    )
}

fn dpo(options: LossOptions, weights: [f64; KINDS], pop_detached: bool) -> Loss {
    let beta = (options.loss_type != [LossType::Sft]).then_some(1.0);
    LossOptions { beta, ..options }.resolve(Method::Dpo, weights, pop_detached).unwrap()
}

/// Prompt, response, sign and detached flag of every term.
fn terms(group: &TokenizedGroup, comparison: usize) -> Vec<(usize, usize, i8, bool)> {
    let place = |t: &mapl::data::tokenized::SequenceTerm| {
        let s = &group.sequences[t.sequence];
        (s.prompt, s.response, t.sign, t.detached)
    };
    group.comparisons[comparison].terms.iter().map(place).collect()
}

/// A (prompt, response) pair and the gradient of its score.
type Slope = ((usize, usize), f64);

/// Returns the total loss and the gradient of each score; `score` maps (prompt, response) to a score.
fn value(loss: &Loss, score: &dyn Fn(usize, usize) -> f64) -> (f64, Vec<Slope>) {
    let backend = &Reference;
    let groups = loss.prepare(vec![full()]);
    let list: Vec<&TokenizedGroup> = groups.iter().collect();
    let mut packed = Batch::default();
    let options = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
    pack_into(&mut packed, &list, &pack_options(loss, 8, None), &options).unwrap();
    let mut counts = [0; KINDS];
    groups.iter().flat_map(|g| &g.comparisons).for_each(|c| counts[c.kind.index()] += 1);
    let scale = loss.kind_scale(counts);
    let mut batch = DeviceBatch::<Reference>::new(backend).unwrap();
    batch.upload(backend, &packed, scale).unwrap();
    let places: Vec<(usize, usize)> =
        groups.iter().flat_map(|g| &g.sequences).map(|s| (s.prompt, s.response)).collect();
    let (seqs, comparisons) = (places.len(), packed.comparisons.kind.len());
    let mut scores = backend.zeros_acc(seqs).unwrap();
    let values: Vec<f64> = places.iter().map(|&(p, r)| score(p, r)).collect();
    backend.write_acc(ViewMut::first(&mut scores, seqs), &values).unwrap();
    let room = |len| backend.zeros_acc(len).unwrap();
    let (mut out, mut logit, mut dscore, mut sums) =
        (room(comparisons), room(comparisons), room(seqs), room(KINDS * SUM_FIELDS));
    backend
        .preference_fwd(PreferenceFwd {
            seqs,
            comparisons,
            curves: &loss.curves,
            link: loss.link,
            center: loss.center,
            score: View::first(&scores, seqs),
            reference: None,
            inverse_rows: None,
            table: batch.comparisons(),
            pair_weights: None,
            direct: None,
            loss: ViewMut::first(&mut out, comparisons),
            logit: ViewMut::first(&mut logit, comparisons),
            dscore: ViewMut::first(&mut dscore, seqs),
            sums: ViewMut::first(&mut sums, KINDS * SUM_FIELDS),
        })
        .unwrap();
    let (mut losses, mut slopes) = (vec![0.0; comparisons], vec![0.0; seqs]);
    backend.read_acc(View::first(&out, comparisons), &mut losses).unwrap();
    backend.read_acc(View::first(&dscore, seqs), &mut slopes).unwrap();
    let total = losses.iter().zip(&packed.comparisons.kind).map(|(l, &k)| l * scale[k as usize]).sum();
    (total, places.into_iter().zip(slopes).collect())
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Scores without symmetry between prompts and responses.
fn score(p: usize, r: usize) -> f64 {
    [[0.3, -0.9], [1.1, 0.25], [-0.4, 0.65]][p][r]
}

fn gap(p: usize) -> f64 {
    score(p, 0) - score(p, 1)
}

#[test]
fn presets_equal_their_formulas() {
    let up = softplus(-(gap(1) - gap(0)));
    let down = softplus(-(gap(0) - gap(2)));
    let intra = softplus(-(score(1, 0) - score(2, 0)));
    let base = softplus(-gap(0));
    for (weights, expected) in [
        ([1.0, 1.0, 1.0], base + intra + (up + down) / 2.0),
        ([1.0, 2.0, 0.0], base + 2.0 * intra),
        ([0.0, 0.0, 1.0], (up + down) / 2.0),
        ([1.0, 0.0, 0.0], base),
    ] {
        let (total, _) = value(&dpo(LossOptions::default(), weights, false), &score);
        assert!((total - expected).abs() < 1e-14, "{weights:?}: {total} {expected}");
    }
    let union = LossOptions { mix: Some(Mix::Union), ..LossOptions::default() };
    let (total, _) = value(&dpo(union, [1.0; 3], false), &score);
    assert!((total - (base + intra + up + down) / 4.0).abs() < 1e-14);
}

/// The gap under the bare prompt is clipped and constant, so only sequences of the added prompts
/// get a gradient.
#[test]
fn detached_gaps_are_clipped_constants() {
    for clip in [5.0, 0.7, 0.0] {
        let options = LossOptions { pop_clip: Some(clip), ..LossOptions::default() };
        let loss = dpo(options, [0.0, 0.0, 1.0], true);
        for sign in [1.0, -1.0] {
            let at = |p: usize, r: usize| if p == 0 { sign * score(p, r) } else { score(p, r) };
            // up: gap(x_up) must exceed clip(gap(x)) in [0, clip]; down: -gap(x_down) must exceed
            // clip(-gap(x)).
            let bare = (sign * gap(0)).clamp(0.0, clip);
            let (up, down) = (softplus(-(gap(1) - bare)), softplus(-(bare - gap(2))));
            let (total, slopes) = value(&loss, &at);
            assert!((total - (up + down) / 2.0).abs() < 1e-14, "clip {clip} sign {sign}: {total} {up} {down}");
            for ((p, _), slope) in slopes {
                assert_eq!(p == 0, slope == 0.0, "prompt {p}: {slope}");
            }
        }
    }
}

#[test]
fn detached_terms_have_their_clip_bounds() {
    let options = LossOptions { pop_clip: Some(2.5), ..LossOptions::default() };
    let prepared = dpo(options, [1.0; 3], true).prepare(vec![full()]).remove(0);
    let bounds: Vec<_> = prepared.comparisons.iter().map(|c| c.detached_clip).collect();
    assert_eq!(bounds, [None, None, Some((-2.5, 0.0)), Some((0.0, 2.5))]);
    for (c, added) in [(2, UP), (3, DOWN)] {
        let expected: Vec<_> = added.iter().map(|&(p, r, s)| (p, r, s, p == 0)).collect();
        assert_eq!(terms(&prepared, c), expected);
    }
    assert!(prepared.comparisons[..2].iter().flat_map(|c| &c.terms).all(|t| !t.detached));
    let plain = dpo(LossOptions::default(), [1.0; 3], false).prepare(vec![full()]).remove(0);
    assert!(plain.comparisons.iter().all(|c| c.detached_clip.is_none() && c.terms.iter().all(|t| !t.detached)));
}

/// The detached gap is found through the base comparison even if base comparisons have weight 0.
#[test]
fn a_kind_of_weight_zero_is_dropped_with_its_sequences() {
    let base = dpo(LossOptions::default(), [1.0, 0.0, 0.0], false).prepare(vec![full()]).remove(0);
    assert_eq!((base.comparisons.len(), base.sequences.len()), (1, 2));
    assert_eq!(terms(&base, 0), BASE.map(|(p, r, s)| (p, r, s, false)));
    assert_eq!(base.prompt_ids.iter().map(Vec::len).collect::<Vec<_>>(), [2, 0, 0]);

    let intra = dpo(LossOptions::default(), [0.0, 1.0, 0.0], false).prepare(vec![full()]).remove(0);
    assert_eq!(terms(&intra, 0), INTRA.map(|(p, r, s)| (p, r, s, false)));
    assert_eq!(intra.sequences.len(), 2);
    assert_eq!(intra.prompt_ids.iter().map(Vec::len).collect::<Vec<_>>(), [0, 3, 3]);

    let inter = dpo(LossOptions::default(), [0.0, 0.0, 1.0], true).prepare(vec![full()]).remove(0);
    assert_eq!((inter.comparisons.len(), inter.sequences.len()), (2, SEQUENCES));
    assert_eq!(inter.comparisons[0].detached_clip, Some((-5.0, 0.0)));

    let pair = group("pair", &[&[1, 2]], &[&[5], &[6]], &[(Kind::Base, &BASE)]);
    assert!(dpo(LossOptions::default(), [0.0, 1.0, 1.0], false).prepare(vec![pair]).is_empty());
}

#[test]
fn union_makes_one_record_per_comparison() {
    let loss = dpo(LossOptions { mix: Some(Mix::Union), ..LossOptions::default() }, [1.0; 3], false);
    let records = loss.prepare(vec![full()]);
    let sizes: Vec<_> = records.iter().map(|g| (g.comparisons.len(), g.sequences.len())).collect();
    assert_eq!(sizes, [(1, 2), (1, 2), (1, 4), (1, 4)]);
    assert_eq!(terms(&records[2], 0), UP.map(|(p, r, s)| (p, r, s, false)));
    assert_eq!(loss.kind_scale([3, 5, 2]), [0.1; 3]);
    assert_eq!(loss.kind_scale([3, 0, 1]), [0.25, 0.0, 0.25]);
    let sum = dpo(LossOptions::default(), [1.0, 2.0, 3.0], false);
    assert_eq!(sum.kind_scale([4, 0, 2]), [0.25, 0.0, 1.5]);
}

#[test]
fn the_logged_formula_shows_the_active_options() {
    let plain = dpo(LossOptions::default(), [1.0, 0.0, 0.0], false);
    assert_eq!(plain.formula(true), "[1 mean_base] of softplus(-z), z = sum sign * 1 (log pi - log ref) - margin");
    assert_eq!(plain.formula(false), "[1 mean_base] of softplus(-z), z = sum sign * 1 log pi - margin");
    let betas = dpo(LossOptions { beta_inter: Some(0.5), ..LossOptions::default() }, [1.0; 3], false);
    assert!(betas.formula(true).ends_with("beta = 1 in base, 1 in intra, 0.5 in inter"), "{}", betas.formula(true));
    let pop = dpo(LossOptions { pop_clip: Some(3.0), ..LossOptions::default() }, [1.0; 3], true);
    assert!(pop.formula(true).contains("detached and clipped to [0, 3]"));
    let whole = LossOptions { logp_scope: Some(ScopeName::PromptAndResponse), ..LossOptions::default() };
    assert!(dpo(whole, [1.0; 3], false).formula(true).contains("prompt tokens are scored too"));
    assert!(!plain.formula(true).contains("prompt tokens"));
    let margin = dpo(LossOptions { margin: Some(0.5), ..LossOptions::default() }, [1.0; 3], false);
    assert!(margin.formula(true).contains("margin = the row's + 0.5"));
}

fn of(types: &[LossType]) -> LossOptions {
    LossOptions { loss_type: types.to_vec(), ..LossOptions::default() }
}

/// Every loss, with the smoothing that it needs.
fn every_loss() -> Vec<LossOptions> {
    use LossType::*;
    let plain = [
        Sigmoid,
        SigmoidNorm,
        Robust,
        Hinge,
        Ipo,
        Discopop,
        ApoZero,
        ApoDown,
        NcaPair,
        BcoPair,
        SppoHard,
        Sft,
        Simpo,
        Orpo,
        Aot,
        AotUnpaired,
    ];
    let mut all: Vec<LossOptions> = plain.iter().map(|one| of(&[*one])).collect();
    all.push(LossOptions { label_smoothing: Some(0.1), ..of(&[ExoPair]) });
    all
}

/// The value of each loss equals its formula, for base, intra and inter comparisons.
#[test]
fn every_loss_equals_its_formula_in_base_and_intra_and_inter() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let pair = |f: &dyn Fn(f64, f64) -> f64| (f(score(0, 0), score(0, 1)), f(score(1, 0), score(2, 0)));
    let down = LossOptions { beta: Some(1.0), ..LossOptions::default() };
    type Formula<'a> = &'a dyn Fn(f64, f64) -> f64;
    let cases: [(LossType, Formula<'_>); 5] = [
        (LossType::ApoZero, &|a, b| sigmoid(-a) + sigmoid(b)),
        (LossType::ApoDown, &|a, b| sigmoid(a) + sigmoid(b - a)),
        (LossType::NcaPair, &|a, b| softplus(-a) + 0.5 * softplus(a) + 0.5 * softplus(b)),
        (LossType::BcoPair, &|a, b| softplus(-a) + softplus(b)),
        (LossType::SppoHard, &|a, b| (a - 0.5).powi(2) + (b + 0.5).powi(2)),
    ];
    for (one, formula) in cases {
        let loss = dpo(LossOptions { loss_type: vec![one], ..down.clone() }, [1.0, 2.0, 0.0], false);
        loss.check_comparisons(&loss.prepare(vec![full()])).unwrap();
        let (base, intra) = pair(formula);
        let (total, _) = value(&loss, &score);
        assert!((total - (base + 2.0 * intra)).abs() < 1e-14, "{one:?}: {total}");
    }
    let exo = LossOptions { loss_type: vec![LossType::ExoPair], label_smoothing: Some(0.1), ..down };
    let of_z = |z: f64| {
        let q = sigmoid(z);
        q * (q / 0.9).ln() + (1.0 - q) * ((1.0 - q) / 0.1).ln()
    };
    let (total, _) = value(&dpo(exo, [1.0; KINDS], false), &score);
    let inter = (of_z(gap(1) - gap(0)) + of_z(gap(0) - gap(2))) / 2.0;
    assert!((total - (of_z(gap(0)) + of_z(score(1, 0) - score(2, 0)) + inter)).abs() < 1e-14, "{total}");
}

#[test]
fn losses_of_two_terms_are_refused_with_four_terms_margins_and_detached_gaps() {
    let refused = |options: LossOptions, weights: [f64; KINDS], pop: bool, change: &dyn Fn(&mut TokenizedGroup)| {
        let loss = dpo(options, weights, pop);
        let mut group = full();
        change(&mut group);
        loss.check_comparisons(&loss.prepare(vec![group])).map_err(|e| e.to_string())
    };
    let apo = || of(&[LossType::Sigmoid, LossType::ApoZero]);
    let text = refused(apo(), [1.0; KINDS], false, &|_| ()).unwrap_err();
    for part in
        ["apo_zero", "inter comparison of group full has 4 terms", "--inter-weight 0", "--inter-loss pair", "sigmoid"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    refused(apo(), [1.0, 1.0, 0.0], false, &|_| ()).unwrap();
    refused(of(&[LossType::Sigmoid]), [1.0; KINDS], true, &|_| ()).unwrap();
    let text = refused(apo(), [1.0, 1.0, 0.0], false, &|group| group.comparisons[1].margin = 0.25).unwrap_err();
    assert!(text.contains("intra comparison of group full has the margin 0.25"), "{text}");
    // Groups for evaluation keep the comparison kinds of weight 0, which the check accepts.
    let loss = dpo(apo(), [1.0, 0.0, 0.0], false);
    loss.check_comparisons(&[full()]).unwrap();
}

/// A list may mix losses of mean and of summed log-probs. Scores are then sums, and losses of means divide
/// them by the number of tokens.
#[test]
fn the_reduction_follows_the_losses() {
    let reduced = |options: LossOptions| {
        let loss = dpo(options, [1.0; KINDS], false);
        (loss.reduce, loss.curves.iter().map(|part| part.per_token).collect::<Vec<_>>())
    };
    use LossType::*;
    assert_eq!(reduced(of(&[Sigmoid])), (Reduce::Sum, vec![false]));
    for one in [Ipo, SigmoidNorm, Simpo, Orpo] {
        assert_eq!(reduced(of(&[one])), (Reduce::Mean, vec![false]), "{one:?}");
    }
    assert_eq!(reduced(of(&[Ipo, Sft, SigmoidNorm])), (Reduce::Mean, vec![false; 2]));
    assert_eq!(reduced(of(&[Sft, Ipo, Sigmoid])), (Reduce::Sum, vec![true, false]));
    let forward = Some(Divergence::ForwardKl);
    assert_eq!(reduced(LossOptions { f_divergence_type: forward, ..of(&[Ipo]) }), (Reduce::Sum, vec![true]));
    let sum = LossOptions { logp_reduce: Some(ReduceName::Sum), ..of(&[Ipo]) };
    assert_eq!(reduced(sum), (Reduce::Sum, vec![false]));
    let mean = LossOptions { logp_reduce: Some(ReduceName::Mean), ..of(&[Sigmoid, Ipo]) };
    assert_eq!(reduced(mean), (Reduce::Mean, vec![false; 2]));
}

#[test]
fn lists_and_parameters_become_curves_with_weights() {
    let listed =
        LossOptions { loss_weights: vec![0.8, 0.2, 1.5], ..of(&[LossType::Sigmoid, LossType::BcoPair, LossType::Sft]) };
    let loss = dpo(listed, [1.0; KINDS], false);
    assert_eq!(
        loss.curves.iter().map(|part| (part.curve, part.weight)).collect::<Vec<_>>(),
        [(Curve::Sigmoid { smoothing: 0.0 }, 0.8), (Curve::BcoPair, 0.2)]
    );
    assert_eq!(loss.nll_weight, 1.5);
    let orpo = LossOptions { beta: Some(0.3), ..of(&[LossType::Orpo]) }.resolve(Method::Dpo, [1.0; 3], false).unwrap();
    assert_eq!((orpo.link, orpo.scale, orpo.curves[0].weight, orpo.nll_weight), (Link::Odds, [1.0; 3], 0.3, 1.0));
    let simpo =
        LossOptions { margin: Some(0.1), simpo_gamma: Some(1.5), nll_weight: Some(0.0), ..of(&[LossType::Simpo]) };
    let simpo = dpo(simpo, [1.0; KINDS], false);
    assert_eq!((simpo.margin, simpo.nll_weight, simpo.is_reference_free()), (1.6, 0.0, true));
    assert!((dpo(of(&[LossType::Simpo]), [1.0; KINDS], false).margin - 0.5).abs() < 1e-15);
    let near_one = LossOptions {
        f_divergence_type: Some(Divergence::AlphaDivergence),
        f_alpha_divergence_coef: Some(1.0 + 1e-7),
        ..LossOptions::default()
    };
    assert_eq!(dpo(near_one, [1.0; KINDS], false).link, Link::Identity);
}

/// The formulas of all losses differ. A formula lists the curves in the order of `--loss-type`.
#[test]
fn every_loss_logs_its_formula() {
    let mut seen = std::collections::BTreeSet::new();
    for options in every_loss() {
        let text = dpo(options.clone(), [1.0; KINDS], false).formula(true);
        assert!(text.starts_with("[1 mean_base + 1 mean_intra + 1 mean_inter] of "), "{text}");
        seen.insert(text);
    }
    assert_eq!(seen.len(), every_loss().len(), "{seen:#?}");
    let listed =
        LossOptions { loss_weights: vec![0.8, 0.25, 1.5], ..of(&[LossType::Ipo, LossType::ApoZero, LossType::Sft]) };
    assert_eq!(
        dpo(listed, [1.0, 0.0, 0.0], false).formula(true),
        "[1 mean_base] of 0.8 (((z - 1/2) / beta)^2) + 0.25 (sigmoid(-a) + sigmoid(b)), z = sum sign * \
         1 (log pi - log ref) - margin, a and b = 1 (log pi - log ref) of the positive and of the negative term, beta = 1, \
         ipo with every score divided by its number of tokens, + 1.5 mean nll of preferred tokens"
    );
    let js = LossOptions { f_divergence_type: Some(Divergence::JsDivergence), ..LossOptions::default() };
    assert!(dpo(js, [1.0; 3], false).formula(true).contains("z = sum sign * 1 s - margin, s = log 2 - softplus(-u)"));
}

#[test]
fn losses_without_a_meaning_are_refused_by_name() {
    use LossType::*;
    let refused = |options: LossOptions, parts: &[&str]| {
        let text = options.resolve(Method::Dpo, [1.0; KINDS], false).unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
    };
    refused(of(&[ExoPair]), &["exo_pair", "--label-smoothing above 0"]);
    refused(of(&[Sigmoid, Hinge, Sigmoid]), &["sigmoid is given twice"]);
    refused(of(&[Simpo, Sigmoid]), &["simpo", "give only this one"]);
    refused(of(&[Sigmoid, Orpo]), &["orpo", "give only this one"]);
    for one in [Kto, ApoZeroUnpaired] {
        refused(of(&[one]), &["rows with one response and a label", &format!("`mapl kto --loss-type {}`", one.name())]);
    }
    for weights in [vec![1.0], vec![1.0, 2.0, 3.0], vec![0.0, 0.0], vec![1.0, -1.0], vec![f64::NAN, 1.0]] {
        refused(LossOptions { loss_weights: weights, ..of(&[Sigmoid, Hinge]) }, &["--loss-weights"]);
    }
    let smoothed = |one| LossOptions { label_smoothing: Some(0.1), ..of(&[one]) };
    for one in [Hinge, Ipo, ApoZero, ApoDown, NcaPair, BcoPair, SppoHard, Discopop, Sft, Orpo] {
        refused(smoothed(one), &["--label-smoothing has no effect", &one.name()]);
    }
    let divergent = |one| LossOptions { f_divergence_type: Some(Divergence::ForwardKl), ..of(&[one]) };
    for one in [ApoZero, ApoDown, NcaPair, BcoPair, SppoHard, Simpo, Orpo, Aot, AotUnpaired] {
        refused(divergent(one), &["--f-divergence-type", &one.name()]);
    }
    for one in [SigmoidNorm, Simpo, Orpo] {
        refused(LossOptions { logp_reduce: Some(ReduceName::Sum), ..of(&[one]) }, &["--logp-reduce sum", &one.name()]);
    }
    for one in [ApoZero, ApoDown, NcaPair, BcoPair, SppoHard, Aot] {
        refused(LossOptions { margin: Some(0.5), ..of(&[one]) }, &["--margin has no effect", &one.name()]);
    }
    refused(LossOptions { discopop_tau: Some(0.1), ..LossOptions::default() }, &["--discopop-tau has no effect"]);
    refused(LossOptions { discopop_tau: Some(0.0), ..of(&[Discopop]) }, &["--discopop-tau 0"]);
    refused(LossOptions { simpo_gamma: Some(0.1), ..LossOptions::default() }, &["--simpo-gamma has no effect"]);
    refused(LossOptions { simpo_gamma: Some(-0.1), ..of(&[Simpo]) }, &["--simpo-gamma -0.1"]);
    let alpha = LossOptions { f_alpha_divergence_coef: Some(0.2), ..LossOptions::default() };
    refused(alpha, &["--f-alpha-divergence-coef has no effect"]);
    refused(LossOptions { beta_intra: Some(0.2), ..of(&[Orpo]) }, &["--beta-intra", "orpo"]);
    // The reward command supports only functions of the difference of two rewards.
    for types in [&[BcoPair][..], &[Ipo], &[Sigmoid, Hinge], &[Simpo]] {
        let text = of(types).resolve(Method::Reward, [1.0; KINDS], false).unwrap_err().to_string();
        assert!(text.contains("has no effect in this reward run"), "{text}");
    }
    let has = |options: LossOptions, given: Option<&str>| {
        let loss = options.resolve(Method::Dpo, [1.0; KINDS], false).unwrap();
        loss.has_reference(given.map(Path::new)).map_err(|e| e.to_string())
    };
    assert_eq!([has(of(&[Orpo]), None), has(of(&[Orpo]), Some("none"))], [Ok(false), Ok(false)]);
    assert_eq!([has(of(&[Hinge]), None), has(of(&[Hinge]), Some("none"))], [Ok(true), Ok(false)]);
    assert_eq!(has(divergent(Sigmoid), Some("other")), Ok(true));
    assert!(
        has(of(&[Simpo]), Some("other")).is_err_and(|e| e.contains("--ref-model has no effect with --loss-type simpo"))
    );
    assert!(has(divergent(Sigmoid), Some("none")).is_err_and(|e| e.contains("leave out --ref-model none")));
}

#[test]
fn a_likelihood_term_needs_base_or_intra_comparisons() {
    let nll = LossOptions { nll_weight: Some(1.0), ..LossOptions::default() };
    for options in [of(&[LossType::Simpo]), of(&[LossType::Orpo]), of(&[LossType::Sft]), nll] {
        let text = dpo(options.clone(), [0.0, 0.0, 1.0], false).check_likelihood().unwrap_err().to_string();
        assert!(text.contains("neither kind is trained"), "{text}");
        dpo(options.clone(), [1.0, 0.0, 0.0], false).check_likelihood().unwrap();
        dpo(options, [0.0, 1.0, 1.0], false).check_likelihood().unwrap();
    }
    dpo(LossOptions::default(), [0.0, 0.0, 1.0], false).check_likelihood().unwrap();
}

/// A sort needs all pairs of a step in one micro-batch, each with the same weight.
#[test]
fn sorting_losses_refuse_several_micro_batches_and_weights() {
    for one in [LossType::Aot, LossType::AotUnpaired] {
        let loss = dpo(of(&[LossType::Sigmoid, one]), [1.0, 1.0, 0.0], false);
        loss.check_split(1).unwrap();
        let text = loss.check_split(2).unwrap_err().to_string();
        for part in [one.name().as_str(), "one micro-batch", "--gradient-accumulation-steps 1"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let mut group = full();
        group.comparisons[1].weight = 0.5;
        let text = loss.check_comparisons(&loss.prepare(vec![group])).unwrap_err().to_string();
        assert!(text.contains("has the weight 0.5"), "{text}");
        loss.check_comparisons(&loss.prepare(vec![full()])).unwrap();
    }
    dpo(LossOptions::default(), [1.0; 3], false).check_split(8).unwrap();
}
