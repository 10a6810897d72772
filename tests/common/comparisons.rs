//! Runs the comparison losses on host data: builds the tables, runs the op and reads its outputs.

use mapl::backend::Backend;
use mapl::backend::contract::*;

use super::{On, Outputs, Slot, normal};

/// Every curve.
pub const CURVES: [Curve; 18] = [
    Curve::Sigmoid { smoothing: 0.0 },
    Curve::Sigmoid { smoothing: 0.2 },
    Curve::Robust { smoothing: 0.0 },
    Curve::Robust { smoothing: 0.3 },
    Curve::Hinge,
    Curve::Ipo,
    Curve::Exo { smoothing: 0.01 },
    Curve::DiscoPop { temperature: 0.05 },
    Curve::DiscoPop { temperature: 0.6 },
    Curve::ApoZero,
    Curve::ApoDown,
    Curve::NcaPair,
    Curve::BcoPair,
    Curve::SppoHard,
    Curve::Aot { smoothing: 0.0 },
    Curve::AotUnpaired { smoothing: 0.2 },
    Curve::Kto,
    Curve::ApoZeroUnpaired,
];

/// Every link.
pub const LINKS: [Link; 5] =
    [Link::Identity, Link::ForwardKl, Link::JensenShannon, Link::Alpha { alpha: 0.5 }, Link::Odds];

/// Arguments of `PreferenceFwd` as host data.
#[derive(Clone)]
pub struct Preference {
    pub curves: Vec<WeightedCurve>,
    pub link: Link,
    pub center: f64,
    pub score: Vec<f64>,
    pub reference: Option<Vec<f64>>,
    /// Number of head rows of each sequence, for curves per token.
    pub rows: Option<Vec<f64>>,
    /// Mean log-prob of each sequence under doubled logits, and under the logits themselves.
    pub pair_weights: Option<[Vec<f64>; 2]>,
    pub direct: Option<Vec<f64>>,
    /// (sequence, sign) of the terms of each comparison
    pub terms: Vec<Vec<(i32, i32)>>,
    pub kind: Vec<i32>,
    pub scale: Vec<f64>,
    pub margin: Vec<f64>,
    pub weight: Vec<f64>,
    pub clip: Vec<f64>,
    pub kind_scale: Vec<f64>,
}

impl Preference {
    /// Builds `pairs` comparisons of two terms each and of two kinds, for a curve that sorts the batch.
    /// Weights are 1, except that the third comparison has weight 0.
    pub fn sorted(curve: Curve, pairs: usize) -> Self {
        let reversed =
            |c: i32| if c % 4 == 0 { vec![(2 * c + 1, -1), (2 * c, 1)] } else { vec![(2 * c, 1), (2 * c + 1, -1)] };
        Self {
            curves: vec![curve.into()],
            link: Link::Identity,
            center: 0.0,
            score: normal("score", 2 * pairs, 2.0),
            reference: Some(normal("reference", 2 * pairs, 2.0)),
            rows: None,
            pair_weights: None,
            direct: None,
            terms: (0..pairs as i32).map(reversed).collect(),
            kind: (0..pairs as i32).map(|c| i32::from(c % 3 == 1)).collect(),
            scale: vec![0.5; pairs],
            margin: vec![0.0; pairs],
            // One comparison has weight 0, as padding has.
            weight: (0..pairs).map(|c| if c == 2 { 0.0 } else { 1.0 }).collect(),
            clip: vec![0.0; 2 * pairs],
            kind_scale: vec![0.5, 0.25, 1.0],
        }
    }

    /// Builds unpaired rows: one labelled response, and one detached response that is a constant for the
    /// gradient. The last comparison is padding.
    pub fn unpaired(curve: Curve, rows: usize) -> Self {
        let sign = |c: i32| if c % 3 == 1 { -1 } else { 1 };
        let terms = |c: i32| if c as usize == rows { vec![] } else { vec![(2 * c, sign(c)), (2 * c + 1, -2)] };
        Self {
            terms: (0..=rows as i32).map(terms).collect(),
            kind: vec![0; rows + 1],
            scale: vec![0.5; rows + 1],
            margin: vec![0.0; rows + 1],
            weight: (0..=rows).map(|c| if c == rows { 0.0 } else { [1.0, 0.75, 0.0][c % 3] }).collect(),
            clip: vec![0.0; 2 * (rows + 1)],
            kind_scale: vec![0.5, 0.25, 1.0],
            ..Self::sorted(curve, rows)
        }
    }

    /// Whether a curve uses its two terms separately, or sorts them.
    pub fn is_of_terms(&self) -> bool {
        self.curves.iter().any(|part| part.curve.is_of_terms())
    }

    /// Keeps the comparisons that `keep` chooses.
    pub fn retain(&mut self, keep: impl Fn(&Self, usize) -> bool) {
        let kept: Vec<usize> = (0..self.terms.len()).filter(|&c| keep(self, c)).collect();
        let pick = |values: &[f64]| kept.iter().map(|&c| values[c]).collect();
        (self.scale, self.margin, self.weight) = (pick(&self.scale), pick(&self.margin), pick(&self.weight));
        self.clip = kept.iter().flat_map(|&c| self.clip[2 * c..2 * c + 2].to_vec()).collect();
        self.kind = kept.iter().map(|&c| self.kind[c]).collect();
        self.terms = kept.iter().map(|&c| self.terms[c].clone()).collect();
    }
}

/// Comparison tables on a backend.
pub struct Table<B: Backend> {
    indices: [Slot<B::Idx>; 5],
    numbers: [Slot<B::Acc>; 5],
}

impl<B: Backend> Table<B> {
    /// Builds the tables of comparisons over `seqs` sequences.
    pub fn of(on: &On<B>, p: &Preference, seqs: usize) -> Self {
        let comparisons = p.terms.len();
        let (mut sequence, mut sign) = (vec![-1; comparisons * TERMS], vec![0; comparisons * TERMS]);
        let mut used = vec![Vec::new(); seqs];
        for (c, terms) in p.terms.iter().enumerate() {
            for (k, &(s, g)) in terms.iter().enumerate() {
                let slot = c * TERMS + k;
                (sequence[slot], sign[slot]) = (s, g);
                used[s as usize].push(slot as i32);
            }
        }
        let mut use_offsets = vec![0i32];
        use_offsets.extend(used.iter().scan(0, |at, u| {
            *at += u.len() as i32;
            Some(*at)
        }));
        Self {
            indices: [&sequence, &sign, &p.kind, &use_offsets, &used.concat()].map(|x| on.idx(x)),
            numbers: [&p.scale, &p.margin, &p.weight, &p.clip, &p.kind_scale].map(|x| on.acc(x)),
        }
    }

    pub fn view(&self) -> Comparisons<'_, B> {
        let [term_sequence, term_sign, kind, use_offsets, uses] = self.indices.each_ref().map(|x| x.view());
        let [scale, margin, weight, detached_clip, kind_scale] = self.numbers.each_ref().map(|x| x.view());
        Comparisons {
            term_sequence,
            term_sign,
            kind,
            scale,
            margin,
            weight,
            detached_clip,
            kind_scale,
            use_offsets,
            uses,
        }
    }
}

pub fn preference<B: Backend>(on: &On<B>, p: &Preference) -> Outputs {
    let (seqs, comparisons) = (p.score.len(), p.terms.len());
    let (table, score) = (Table::of(on, p, seqs), on.acc(&p.score));
    let (reference, direct) = (p.reference.as_ref().map(|x| on.acc(x)), p.direct.as_ref().map(|x| on.acc(x)));
    let inverse_rows = p.rows.as_ref().map(|rows| on.acc(&rows.iter().map(|rows| 1.0 / rows).collect::<Vec<_>>()));
    let weights = p.pair_weights.as_ref().map(|of| of.each_ref().map(|x| on.acc(x)));
    let (mut loss, mut logit) = (on.acc_out(comparisons), on.acc_out(comparisons));
    let (mut dscore, mut sums) = (on.acc_out(seqs), on.acc_out(KINDS * SUM_FIELDS));
    let args = PreferenceFwd {
        seqs,
        comparisons,
        curves: &p.curves,
        link: p.link,
        center: p.center,
        score: score.view(),
        reference: reference.as_ref().map(|x| x.view()),
        inverse_rows: inverse_rows.as_ref().map(|x| x.view()),
        table: table.view(),
        pair_weights: weights
            .as_ref()
            .map(|[doubled, plain]| PairWeights { doubled: doubled.view(), plain: plain.view() }),
        direct: direct.as_ref().map(|x| x.view()),
        loss: loss.view_mut(),
        logit: logit.view_mut(),
        dscore: dscore.view_mut(),
        sums: sums.view_mut(),
    };
    on.backend.preference_fwd(args).unwrap();
    vec![
        ("loss", on.read_acc(&loss)),
        ("logit", on.read_acc(&logit)),
        ("dscore", on.read_acc(&dscore)),
        ("sums", on.read_acc(&sums)),
    ]
}
