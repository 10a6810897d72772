//! The comparison loss against the reference: every curve; two, four and detached terms;
//! references, margins, weights, centering, shared sequences; equal policies; weight 0 with NaN
//! scores.

use common::runs::{CURVES, LINKS, Preference, preference};
use common::{On, check, each_backend, normal, stored_as_acc};
use mapl::backend::Backend;
use mapl::backend::contract::*;
use mapl::backend::cpu::Cpu;
use mapl::backend::reference::Reference;

/// Eight sequences and comparisons of all kinds. No comparison uses sequence 7.
fn batch(curve: Curve, deviation: f64) -> Preference {
    Preference {
        curves: vec![curve.into()],
        link: Link::Identity,
        center: 0.0,
        score: normal("score", 8, deviation),
        reference: None,
        rows: None,
        pair_weights: None,
        direct: None,
        terms: vec![
            vec![(0, 1), (1, -1)],
            vec![(2, 1), (0, -1)],
            vec![(3, 1), (1, 1), (4, -1), (0, -1)],
            vec![(5, 1), (6, -1), (0, 2), (1, -2)],
            vec![(5, -1), (6, 1), (2, -2), (1, 2)],
            vec![(1, 1), (0, -1)],
            // A base comparison of four terms. Centering (`center`) applies to base comparisons of two terms only.
            vec![(2, 1), (4, 1), (5, -1), (6, -1)],
        ],
        kind: vec![0, 1, 2, 2, 2, 0, 0],
        scale: vec![1.0, 0.5, 1.0, 0.25, 2.0, 1.0, 1.0],
        margin: vec![0.0, 0.5, 0.0, -0.25, 0.0, 1.0, 0.0],
        weight: vec![1.0, 2.0, 0.5, 1.0, 1.0, 0.0, 1.0],
        clip: vec![0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0, -5.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        kind_scale: vec![0.5, 1.0, 0.25],
    }
}

fn compare(label: &str, p: &Preference) {
    let scores = p.score.iter().fold(1.0f64, |a, b| a.max(b.abs()));
    let of_curve = |part: &WeightedCurve| match part.curve {
        // These curves square their argument, and their slopes divide by the scale twice.
        Curve::Ipo | Curve::SppoHard => 64.0 * scores,
        // The temperature divides the argument.
        Curve::DiscoPop { temperature } => 8.0 / temperature,
        Curve::Exo { .. } => 8.0,
        _ => 2.0,
    };
    // The slopes of the links in these tests are at most about 20.
    let of_link = if p.link == Link::Identity { 1.0 } else { 64.0 };
    let power =
        of_link * p.curves.iter().map(of_curve).fold(if p.center == 0.0 { 0.0 } else { 64.0 * scores }, f64::max);
    let tolerance = |precision, _: &str| {
        let t = PreferenceFwd::<Cpu>::tolerance(stored_as_acc(precision), scores);
        t.scaled(power)
    };
    check!(label, |on: &_| preference(on, p), tolerance);
}

/// `softplus(1/2 - z)`, and a curve whose slope is wrong.
static SHIFTED: OwnCurve = OwnCurve {
    name: "shifted",
    at: |z| {
        let x = 0.5 - z;
        (x.max(0.0) + (-x.abs()).exp().ln_1p(), -1.0 / (1.0 + (-x).exp()))
    },
};
static WRONG: OwnCurve = OwnCurve { name: "wrong", at: |z| (z * z, 3.0 * z) };

/// Kernel backends compute a custom curve on the host. With scale 1, this curve is the logistic loss with a
/// margin of 1/2.
#[test]
fn a_curve_of_ones_own_matches_the_reference_on_every_backend() {
    let mut p = batch(Curve::Own(&SHIFTED), 1.0);
    compare("a custom curve", &p);
    p.reference = Some(normal("reference", 8, 1.0));
    p.direct = Some(normal("direct", 8, 1.0));
    compare("with a reference and a direct gradient", &p);
    let mut logistic = batch(Curve::Sigmoid { smoothing: 0.0 }, 1.0);
    (logistic.reference, logistic.direct) = (p.reference.clone(), p.direct.clone());
    logistic.margin.iter_mut().for_each(|margin| *margin += 0.5);
    let loss = |p: &Preference| preference(&On::new(&Reference, Precision::F64), p);
    let (own, plain) = (loss(&p), loss(&logistic));
    common::compare::outputs("own curve", &own, &plain, |_| Tolerance { atol: 1e-12, rtol: 1e-12 });
    SHIFTED.check().unwrap();
    let error = WRONG.check().unwrap_err().to_string();
    assert!(error.contains("curve wrong: the slope at z = -19.983 is -59.949, but finite differences"), "{error}");
}

#[test]
fn every_curve_and_option_matches_the_reference() {
    for curve in CURVES {
        for deviation in [0.3, 4.0, 60.0] {
            let mut p = batch(curve, deviation);
            compare(&format!("{curve:?}, scores of {deviation}"), &p);
            p.reference = Some(normal("reference", 8, deviation));
            compare("with a reference", &p);
            p.direct = Some(normal("direct", 8, 1.0));
            compare("with a direct gradient", &p);
            p.center = 0.125;
            compare("centred", &p);
        }
    }
}

/// Scores below 0, so that they have odds.
fn negative(p: &mut Preference) {
    p.score.iter_mut().for_each(|score| *score = -0.05 - score.abs());
}

#[test]
fn every_link_matches_the_reference() {
    for link in LINKS {
        for curve in CURVES.into_iter().filter(|curve| !curve.is_of_batch()) {
            let mut p = batch(curve, 1.0);
            p.link = link;
            negative(&mut p);
            compare(&format!("{curve:?} of {link:?}"), &p);
            if link != Link::Odds {
                p.reference = Some(normal("reference", 8, 0.5));
                compare("with a reference", &p);
            }
        }
    }
}

/// Weighted curves, some of them on means over tokens, are added. The direct gradient and the centring are
/// applied once.
#[test]
fn several_curves_match_the_reference_and_their_sum() {
    let part = |curve: Curve, weight: f64, per_token: bool| WeightedCurve { curve, weight, per_token };
    let lists = [
        vec![part(Curve::Sigmoid { smoothing: 0.0 }, 0.8, false), part(Curve::BcoPair, 0.2, false)],
        vec![part(Curve::Hinge, 0.5, false), part(Curve::Ipo, 2.0, true), part(Curve::ApoDown, 0.25, false)],
        vec![part(Curve::Sigmoid { smoothing: 0.0 }, 1.0, true)],
        vec![part(Curve::Sigmoid { smoothing: 0.0 }, 0.0, false)],
    ];
    for curves in lists {
        for link in [Link::Identity, Link::JensenShannon] {
            let mut p = batch(curves[0].curve, 2.0);
            (p.curves, p.link) = (curves.clone(), link);
            p.reference = Some(normal("reference", 8, 2.0));
            p.direct = Some(normal("direct", 8, 1.0));
            p.rows = Some((1..9).map(f64::from).collect());
            compare(&format!("{curves:?} of {link:?}"), &p);
            p.center = 0.125;
            compare("centred", &p);
        }
    }
}

/// Tests more pairs than a block has threads, ties, and NaN, which sorts last.
#[test]
fn sorted_pairs_match_the_reference() {
    for curve in [Curve::Aot { smoothing: 0.1 }, Curve::AotUnpaired { smoothing: 0.0 }] {
        for pairs in [1, 7, 300] {
            let mut p = Preference::sorted(curve, pairs);
            // The `sums` of a kind are over up to 200 comparisons.
            let tolerance =
                |precision, _: &str| PreferenceFwd::<Cpu>::tolerance(stored_as_acc(precision), 8.0).scaled(64.0);
            check!(format!("{curve:?} of {pairs}"), |on: &_| preference(on, &p), tolerance);
            let mut spoilt = p.clone();
            spoilt.score.iter_mut().step_by(12).for_each(|score| *score = f64::NAN);
            check!(format!("{curve:?} of {pairs}, NaN"), |on: &_| preference(on, &spoilt), tolerance);
            p.score.fill(1.5);
            check!(format!("{curve:?} of {pairs}, ties"), |on: &_| preference(on, &p), tolerance);
        }
    }
}

/// Tests more rows than a block has threads, a divergence of at least 0, and a NaN, which makes the
/// divergence NaN for all rows.
#[test]
fn unpaired_rows_match_the_reference() {
    for (curve, rows) in [(Curve::Kto, 1), (Curve::Kto, 7), (Curve::Kto, 300), (Curve::ApoZeroUnpaired, 7)] {
        let mut p = Preference::unpaired(curve, rows);
        let tolerance =
            |precision, _: &str| PreferenceFwd::<Cpu>::tolerance(stored_as_acc(precision), 8.0).scaled(64.0);
        check!(format!("{curve:?} of {rows}"), |on: &_| preference(on, &p), tolerance);
        p.direct = Some(normal("direct", 2 * rows, 1.0));
        p.score.iter_mut().skip(1).step_by(2).for_each(|score| *score += 5.0);
        check!(format!("{curve:?} of {rows}, far"), |on: &_| preference(on, &p), tolerance);
        p.score[1] = f64::NAN;
        check!(format!("{curve:?} of {rows}, NaN"), |on: &_| preference(on, &p), tolerance);
    }
}

#[test]
fn weights_of_pairs_match_the_reference() {
    for curve in [Curve::Sigmoid { smoothing: 0.0 }, Curve::SppoHard, Curve::Aot { smoothing: 0.0 }] {
        let mut p = batch(curve, 1.0);
        p.reference = Some(normal("reference", 8, 1.0));
        p.pair_weights = Some([normal("doubled", 8, 0.5), normal("plain", 8, 0.5)]);
        compare(&format!("{curve:?}"), &p);
        p.center = 0.125;
        compare("centred", &p);
    }
}

fn sort_with_nan<B: Backend>(on: &On<B>) {
    for curve in [Curve::Aot { smoothing: 0.1 }, Curve::AotUnpaired { smoothing: 0.0 }] {
        let mut p = Preference::sorted(curve, 6);
        p.score[0] = f64::NAN;
        let outputs = preference(on, &p);
        assert!(outputs[0].1[0].is_nan() && outputs[2].1[..2].iter().all(|slope| slope.is_nan()), "{outputs:?}");
        // Only comparisons of the same kind are sorted together.
        assert!(outputs[0].1[1].is_finite() && outputs[2].1[2..4].iter().all(|slope| slope.is_finite()), "{outputs:?}");
    }
}

#[test]
fn a_score_that_is_nan_spoils_only_its_kind() {
    each_backend!(sort_with_nan);
}

fn sum_of_curves<B: Backend>(on: &On<B>) {
    let mut p = batch(Curve::Sigmoid { smoothing: 0.0 }, 1.0);
    p.rows = Some(vec![4.0; 8]);
    let weighted = |curve: Curve, weight: f64, per_token: bool| WeightedCurve { curve, weight, per_token };
    let list = vec![weighted(Curve::NcaPair, 0.5, false), weighted(Curve::Ipo, 2.0, true)];
    let separate: Vec<_> =
        list.iter().map(|part| preference(on, &Preference { curves: vec![*part], ..p.clone() })).collect();
    let both = preference(on, &Preference { curves: list, ..p });
    // Outputs are loss, logit, dscore and sums.
    for output in [0, 2] {
        for (i, sum) in both[output].1.iter().enumerate() {
            let expected = separate[0][output].1[i] + separate[1][output].1[i];
            assert!((sum - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{output} {i}: {sum} {expected}");
        }
    }
    assert_eq!(both[1].1, separate[0][1].1, "the logit is that of the first curve");
    assert!(both[0].1.iter().zip(&separate[0][0].1).any(|(sum, first)| sum != first));
}

#[test]
fn several_curves_are_the_sum_of_single_ones() {
    each_backend!(sum_of_curves);
}

#[test]
fn without_comparisons_dscore_is_the_direct_gradient() {
    let mut p = batch(CURVES[0], 1.0);
    let empty = vec![];
    (p.terms, p.kind, p.scale) = (vec![], vec![], empty.clone());
    (p.margin, p.weight, p.clip) = (empty.clone(), empty.clone(), empty);
    p.direct = Some(normal("direct", 8, 1.0));
    compare("no comparisons", &p);
    (p.score, p.direct) = (vec![], None);
    compare("nothing", &p);
}

fn equal_policies<B: Backend>(on: &On<B>) {
    let mut p = batch(CURVES[0], 60.0);
    // Scores look like sums of f32 log-probs: many digits, equal for policy and reference.
    p.score = p.score.iter().map(|&x| f64::from((x * 3.137) as f32)).collect();
    p.reference = Some(p.score.clone());
    p.margin.fill(0.0);
    p.weight.fill(1.0);
    p.scale.fill(0.1);
    let outputs = preference(on, &p);
    assert!(outputs[1].1.iter().all(|&logit| logit == 0.0), "{outputs:?}");
    assert!(outputs[0].1.iter().all(|&loss| loss == f64::from(std::f32::consts::LN_2)), "{outputs:?}");
    let sums = &outputs[3].1;
    for kind in 0..KINDS {
        let row = &sums[kind * SUM_FIELDS..][..SUM_FIELDS];
        assert_eq!(row[SUM_TIES], row[SUM_COUNT]);
        assert_eq!(row[SUM_CORRECT], 0.0);
    }
}

#[test]
fn equal_policies_give_logit_zero_and_ln_2() {
    each_backend!(equal_policies);
}

fn weight_zero_with_nan<B: Backend>(on: &On<B>) {
    for curve in CURVES {
        let mut p = batch(curve, 1.0);
        p.center = 0.5;
        p.terms = vec![vec![(0, 1), (1, -1)], vec![(2, 1), (3, -1)]];
        (p.kind, p.scale, p.margin) = (vec![0, 0], vec![1.0; 2], vec![0.0; 2]);
        (p.weight, p.clip) = (vec![0.0, 1.0], vec![0.0; 4]);
        p.score[0] = f64::NAN;
        p.score[1] = f64::INFINITY;
        let outputs = preference(on, &p);
        assert_eq!(outputs[0].1[0], 0.0);
        assert_eq!(outputs[2].1[..2], [0.0, 0.0]);
        assert!(outputs[3].1[SUM_LOSS].is_finite());
        // With a nonzero weight the same comparison gives NaN.
        p.weight[0] = 1.0;
        let outputs = preference(on, &p);
        assert!(outputs[0].1[0].is_nan() && outputs[2].1[0].is_nan(), "{curve:?}: {outputs:?}");
        // Bounded losses, and losses without a margin, cannot exceed the f32 range.
        let is_bounded = matches!(curve, Curve::Exo { .. } | Curve::Kto | Curve::ApoZeroUnpaired);
        if p.is_of_terms() || is_bounded {
            continue;
        }
        // A loss that exceeds the f32 range also gives NaN slopes, although its logit and exact
        // slope are finite.
        (p.score[0], p.score[1]) = (1.0, -1.0);
        (p.weight[0], p.margin[0]) = (1e3, 1e38);
        let outputs = preference(on, &p);
        assert!(outputs[0].1[0].is_infinite() && outputs[1].1[0].is_finite(), "{curve:?}: {outputs:?}");
        assert!(outputs[2].1[..2].iter().all(|slope| slope.is_nan()), "{curve:?}: {outputs:?}");
    }
}

#[test]
fn comparison_of_weight_zero_ignores_nan_scores() {
    each_backend!(weight_zero_with_nan);
}

/// More comparisons and sequences than a block has threads, with shared sequences.
#[test]
fn batch_larger_than_a_block_matches_the_reference() {
    let (seqs, comparisons) = (701, 600);
    let count = comparisons as i32;
    let p = Preference {
        curves: vec![CURVES[1].into()],
        link: Link::Identity,
        center: 0.25,
        score: normal("score", seqs, 2.0),
        reference: Some(normal("reference", seqs, 2.0)),
        rows: None,
        pair_weights: None,
        direct: None,
        terms: (0..count).map(|c| vec![(c, 1), ((c * 7 + 1) % 701, -1)]).collect(),
        kind: (0..count).map(|c| c % 3).collect(),
        scale: normal("scale", comparisons, 1.0).iter().map(|x| x.abs() + 0.1).collect(),
        margin: normal("margin", comparisons, 0.5),
        weight: (0..comparisons).map(|c| (c % 4) as f64).collect(),
        clip: vec![0.0; 2 * comparisons],
        kind_scale: vec![0.5, 1.0, 0.25],
    };
    // The `sums` of a kind are over 200 comparisons, each with the f32 error of one.
    let tolerance = |precision, _: &str| PreferenceFwd::<Cpu>::tolerance(stored_as_acc(precision), 8.0).scaled(64.0);
    check!("many", |on: &_| preference(on, &p), tolerance);
}
