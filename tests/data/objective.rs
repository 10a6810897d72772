//! Named objectives, from the flags to the loss of a batch. The tests cover comparisons that
//! `prepare` drops, splits and detaches, presets against their formulas in f64, and the logged
//! formula.

use common::fixtures::group;
use mapl::backend::contract::{KINDS, PreferenceFwd, SUM_FIELDS};
use mapl::backend::reference::Reference;
use mapl::backend::{Backend, View, ViewMut};
use mapl::data::group::Kind;
use mapl::data::pack::{Batch, ComparisonOptions, pack_into};
use mapl::data::tokenized::TokenizedGroup;
use mapl::loss::objective::{Loss, LossOptions, Method, Mix, ScopeName};
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
    LossOptions { beta: Some(1.0), ..options }.resolve(Method::Dpo, weights, pop_detached).unwrap()
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

/// Total loss and the gradient of each score; `score` takes (prompt, response).
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
            curve: loss.curve,
            center: loss.center,
            score: View::first(&scores, seqs),
            reference: None,
            table: batch.comparisons(),
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

/// The detached gap is found through the base comparison even if base itself is not trained.
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
