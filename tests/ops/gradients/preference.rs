//! Gradient of the comparison loss: `dscore` is the gradient of
//! `sum of kind_scale * loss + <direct, score>`.

use mapl::backend::contract::*;

use super::difference::{ORACLE, agree, differences};
use common::normal;
use common::runs::{CURVES, LINKS, Preference, preference};

/// Eight sequences: 0 is used five times, 7 never, 6 only in detached terms. The detached sum of
/// the fourth comparison is inside its bounds, of the fifth above them, of the sixth below them.
/// The last comparison has weight 0.
fn batch(curve: Curve) -> Preference {
    Preference {
        curves: vec![curve.into()],
        link: Link::Identity,
        center: 0.0,
        score: vec![0.8, -0.5, 1.3, 0.2, -1.1, 0.6, 0.9, 2.0],
        reference: None,
        rows: None,
        pair_weights: None,
        direct: None,
        terms: vec![
            vec![(0, 1), (1, -1)],
            vec![(2, -1), (0, 1)],
            vec![(3, 1), (1, 1), (4, -1), (0, -1)],
            vec![(5, 1), (4, -1), (0, 2), (6, -2)],
            vec![(5, -1), (2, 1), (0, 2), (4, -2)],
            vec![(3, 1), (2, -1), (4, 2), (6, -2)],
            vec![(4, 1), (0, -1)],
        ],
        kind: vec![0, 1, 2, 2, 2, 2, 0],
        scale: vec![1.0, 0.5, 0.8, 0.25, 2.0, 0.7, 1.0],
        margin: vec![0.1, 0.5, 0.0, -0.25, 0.3, 0.2, 1.0],
        weight: vec![1.0, 2.0, 0.5, 1.5, 1.0, 0.8, 0.0],
        clip: [(0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (-5.0, 5.0), (-0.5, 0.5), (-0.3, 0.3), (0.0, 0.0)]
            .into_iter()
            .flat_map(|(low, high)| [low, high])
            .collect(),
        kind_scale: vec![0.5, 1.25, 0.3],
    }
}

/// Every combination of curve, reference, centering and direct gradient.
fn batches() -> Vec<(String, Preference)> {
    let mut all = Vec::new();
    for curve in CURVES {
        for (with_reference, center, with_direct) in
            [(false, 0.0, false), (true, 0.0, false), (false, 0.3, false), (false, 0.0, true), (true, 0.3, true)]
        {
            let mut p = batch(curve);
            p.rows = Some((1..9).map(f64::from).collect());
            p.reference = with_reference.then(|| normal("reference", 8, 0.1));
            p.center = center;
            p.direct = with_direct.then(|| normal("direct", 8, 1.0));
            all.push((format!("{curve:?}, {with_reference}, {center}, {with_direct}"), p));
        }
    }
    // Batches with each link, and with several curves that are added.
    for link in LINKS {
        let mut p = batch(CURVES[0]);
        p.curves = vec![
            WeightedCurve { weight: 0.7, ..Curve::Sigmoid { smoothing: 0.2 }.into() },
            WeightedCurve { weight: 2.0, per_token: true, ..Curve::Sigmoid { smoothing: 0.0 }.into() },
        ];
        p.link = link;
        p.rows = Some((1..9).map(|rows| f64::from(rows) / 4.0).collect());
        match link {
            Link::Odds => p.score.iter_mut().for_each(|score| *score = -0.05 - score.abs()),
            _ => p.reference = Some(normal("reference", 8, 0.1)),
        }
        all.push((format!("{link:?} of two curves"), p));
    }
    all
}

fn outputs(p: &Preference) -> [Vec<f64>; 4] {
    let outputs: Vec<Vec<f64>> = preference(&ORACLE, p).into_iter().map(|(_, values)| values).collect();
    outputs.try_into().unwrap()
}

fn objective(p: &Preference) -> f64 {
    let losses: f64 = outputs(p)[0].iter().zip(&p.kind).map(|(loss, &kind)| p.kind_scale[kind as usize] * loss).sum();
    let direct = p.direct.as_ref().map_or(0.0, |d| d.iter().zip(&p.score).map(|(d, s)| d * s).sum());
    losses + direct
}

/// Returns the clamped sum of a comparison's detached terms.
fn detached(p: &Preference, c: usize) -> f64 {
    let rho = |s: i32| p.scale[c] * (p.score[s as usize] - p.reference.as_ref().map_or(0.0, |r| r[s as usize]));
    let terms = p.terms[c].iter().filter(|(_, sign)| sign.abs() == 2);
    let sum: f64 = terms.map(|&(s, sign)| f64::from(sign.signum()) * rho(s)).sum();
    sum.max(p.clip[2 * c]).min(p.clip[2 * c + 1])
}

/// Returns the same losses with detached terms as constants in the margin, since
/// `z = logit - margin`.
fn frozen(p: &Preference) -> Preference {
    let mut frozen = p.clone();
    for c in 0..p.terms.len() {
        frozen.margin[c] -= detached(p, c);
        frozen.terms[c].retain(|(_, sign)| sign.abs() == 1);
    }
    frozen
}

fn difference_of(p: &Preference) -> Vec<f64> {
    differences(std::slice::from_ref(&p.score), 0, |i| objective(&Preference { score: i[0].clone(), ..p.clone() }))
}

/// Asserts that no comparison is near the hinge's kink at z = 1, and that some are on each side of it.
fn assert_off_the_kink(p: &Preference) {
    let z: Vec<f64> = outputs(p)[1].iter().zip(&p.margin).map(|(logit, margin)| logit - margin).collect();
    assert!(z.iter().all(|z| (z - 1.0).abs() > 0.01), "{z:?}");
    assert!(z.iter().any(|&z| z > 1.0) && z.iter().any(|&z| z < 1.0), "{z:?}");
}

pub fn curves() {
    for (label, mut p) in batches() {
        // Keeps only the comparisons without detached terms.
        p.terms.drain(3..6);
        for column in [&mut p.scale, &mut p.margin, &mut p.weight] {
            column.drain(3..6);
        }
        p.kind.drain(3..6);
        p.clip.drain(6..12);
        if p.curves == [Curve::Hinge.into()] {
            assert_off_the_kink(&p);
        }
        let dscore = &outputs(&p)[2];
        agree(&label, dscore, &difference_of(&p));
        let direct = p.direct.as_ref().map_or(0.0, |d| d[7]);
        assert_eq!(dscore[7], direct, "{label}: a sequence in no comparison has only its direct gradient");
        // Sequences 0, 1 and 2 occur in comparisons of several kinds.
        assert!(dscore[..3].iter().all(|g| g.abs() > 1e-3), "{label}: {dscore:?}");
    }
}

pub fn detached_terms_are_constants() {
    // The check below moves detached terms into the margin, so it uses only single curves with the identity
    // link. Curves of separate terms are left out because they support no detached terms.
    let plain = |p: &Preference| p.link == Link::Identity && p.curves.len() == 1 && !p.is_of_terms();
    for (label, p) in batches().into_iter().filter(|(_, p)| plain(p)) {
        if p.curves == [Curve::Hinge.into()] {
            assert_off_the_kink(&p);
        }
        let sums: Vec<f64> = (3..6).map(|c| detached(&p, c)).collect();
        assert!(sums[0].abs() < 5.0 && sums[0] != 0.0 && sums[1] == 0.5 && sums[2] == -0.3, "{label}: {sums:?}");

        let (whole, constant) = (outputs(&p), frozen(&p));
        agree(&format!("{label}, losses"), &whole[0], &outputs(&constant)[0]);
        agree(&label, &whole[2], &difference_of(&constant));
        let direct = p.direct.as_ref().map_or(0.0, |d| d[6]);
        assert_eq!(whole[2][6], direct, "{label}: a sequence only in detached terms has only its direct gradient");
        // The loss value depends on the detached terms: its full gradient differs wherever the
        // curve has a nonzero slope.
        let full = difference_of(&p);
        assert!((full[6] - direct).abs() > 1e-3, "{label}: {full:?}");
    }
}

/// Tests seven pairs of two kinds. The two numbers of a pair, which are sorted separately, have different
/// ranks.
pub fn sorted_pairs() {
    let with_sigmoid = |curve: Curve| vec![curve.into(), WeightedCurve { weight: 0.5, ..CURVES[0].into() }];
    for curve in [Curve::Aot { smoothing: 0.0 }, Curve::Aot { smoothing: 0.2 }, Curve::AotUnpaired { smoothing: 0.1 }] {
        for curves in [vec![curve.into()], with_sigmoid(curve)] {
            let p = Preference { curves, ..Preference::sorted(curve, 7) };
            agree(&format!("{:?}", p.curves), &outputs(&p)[2], &difference_of(&p));
            let own = Preference { curves: vec![CURVES[0].into()], ..p.clone() };
            assert!(outputs(&own)[0].iter().zip(&outputs(&p)[0]).any(|(a, b)| (a - b).abs() > 0.1), "ranks differ");
        }
    }
}

/// The divergence of the batch, and the sequences from which it is estimated, are constants for the gradient.
pub fn unpaired_rows() {
    for curve in [Curve::Kto, Curve::ApoZeroUnpaired] {
        let mut p = Preference::unpaired(curve, 7);
        // Mismatched sequences above their reference, so that the divergence is above 0.
        for c in 0..7 {
            p.score[2 * c + 1] = p.reference.as_ref().unwrap()[2 * c + 1] + 1.0 + 0.25 * c as f64;
        }
        let [_, logit, dscore, _] = outputs(&p);
        let full = difference_of(&p);
        for c in 0..7 {
            assert_eq!(dscore[2 * c + 1], 0.0, "{curve:?}");
            assert_eq!(full[2 * c + 1] != 0.0, curve == Curve::Kto, "{curve:?}: {full:?}");
            let sign = f64::from(p.terms[c][0].1);
            let rho = p.scale[c] * (p.score[2 * c] - p.reference.as_ref().unwrap()[2 * c]);
            assert_eq!(logit[c], sign * rho);
            let shift = if curve == Curve::Kto { p.scale[c] * 1.75 } else { 0.0 };
            let by_hand = p.weight[c] / (1.0 + (sign * (rho - shift)).exp());
            assert!((outputs(&p)[0][c] - by_hand).abs() < 1e-14, "{curve:?}: {by_hand}");
        }
        let trained = |values: &[f64]| values.iter().step_by(2).copied().collect::<Vec<_>>();
        agree(&format!("{curve:?}"), &trained(&dscore), &trained(&full));
        // Mismatched sequences below their reference on average, so that the divergence is 0.
        p.score.iter_mut().skip(1).step_by(2).for_each(|score| *score -= 40.0);
        let apo = Preference { curves: vec![Curve::ApoZeroUnpaired.into()], ..p.clone() };
        assert_eq!(outputs(&p)[0], outputs(&apo)[0]);
    }
}

/// Weights of pairs are constants, and scale losses and slopes.
pub fn pair_weights() {
    for curve in [CURVES[0], Curve::BcoPair] {
        let mut p = batch(curve);
        p.center = if curve.is_of_terms() { 0.0 } else { 0.3 };
        let plain = outputs(&p);
        p.pair_weights = Some([normal("doubled", 8, 0.5), normal("plain", 8, 0.5)]);
        let weighted = outputs(&p);
        let [doubled, single] = p.pair_weights.clone().unwrap();
        let factor =
            |c: usize| p.terms[c].iter().map(|&(s, _)| doubled[s as usize] - single[s as usize]).sum::<f64>().exp();
        for c in 0..p.terms.len() {
            assert!((weighted[0][c] - factor(c) * plain[0][c]).abs() < 1e-12 * (1.0 + plain[0][c]), "{curve:?} {c}");
        }
        assert_eq!(weighted[1], plain[1], "logits have no weight");
        p.retain(|p, c| p.terms[c].iter().all(|(_, sign)| sign.abs() == 1));
        agree(&format!("{curve:?} with weights"), &outputs(&p)[2], &difference_of(&p));
    }
}

pub fn sums() {
    let mut p = batch(CURVES[0]);
    // Comparison 1 becomes a tie.
    p.score[2] = p.score[0];
    let [loss, logit, _, sums] = outputs(&p);
    for kind in 0..KINDS {
        let of_kind = || (0..p.kind.len()).filter(|&c| p.kind[c] as usize == kind);
        let row = &sums[kind * SUM_FIELDS..][..SUM_FIELDS];
        assert!((row[SUM_LOSS] - of_kind().map(|c| loss[c]).sum::<f64>()).abs() < 1e-14, "{row:?}");
        assert!((row[SUM_LOGIT] - of_kind().map(|c| logit[c]).sum::<f64>()).abs() < 1e-14, "{row:?}");
        assert_eq!(row[SUM_COUNT] as usize, of_kind().count());
        assert_eq!(row[SUM_CORRECT] as usize, of_kind().filter(|&c| logit[c] > 0.0).count());
        assert_eq!(row[SUM_TIES] as usize, of_kind().filter(|&c| logit[c] == 0.0).count());
    }
    assert_eq!(sums[SUM_FIELDS + SUM_TIES], 1.0);
    // First comparison computed by hand: logit 0.8 + 0.5, margin 0.1.
    assert!((loss[0] - (1.0 + (-1.2f64).exp()).ln()).abs() < 1e-15, "{}", loss[0]);
    assert_eq!(loss[6], 0.0);
}
