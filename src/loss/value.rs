//! Computes the losses of comparisons on the host in f64, from the scores of their sequences. Evaluation uses
//! them, and so does the log of a run with several losses.

use super::objective::Loss;
use super::signed_sum::signed_sum;
use crate::backend::contract::Curve;
use crate::backend::contract::curve::{self, Arguments, SortKeys, linked, matched, value_and_slopes};

/// A term of a comparison with the scores of its sequence.
#[derive(Clone, Copy, Debug)]
pub struct ScoredTerm {
    /// Index of the sequence's prompt.
    pub prompt: usize,
    /// +1 or -1.
    pub sign: f64,
    pub detached: bool,
    pub score: f64,
    /// Score of the frozen reference, or 0.
    pub reference: f64,
    /// Number of scored tokens.
    pub rows: usize,
}

/// A comparison with the scores of its sequences.
#[derive(Clone, Debug)]
pub struct ScoredComparison {
    /// Index of the comparison's kind.
    pub kind: usize,
    pub weight: f64,
    /// Margins, which are subtracted from the logit one after the other.
    pub margins: [f64; 2],
    /// Lower and upper bound of the sum of the detached terms.
    pub clip: Option<(f64, f64)>,
    pub terms: Vec<ScoredTerm>,
}

/// Losses of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparisonValues {
    /// Logit of the first curve.
    pub logit: f64,
    /// Value of each curve, without any weight.
    pub values: Vec<f64>,
}

/// Divergence term of [`Curve::Kto`], computed from the detached terms of comparisons.
pub fn batch_divergence(comparisons: &[ScoredComparison]) -> f64 {
    let detached = comparisons.iter().flat_map(|c| &c.terms).filter(|t| t.detached);
    curve::divergence(detached.map(|t| t.score - t.reference))
}

impl Loss {
    /// Returns the score of a sequence as the first curve uses it: scaled, and divided by `rows` if the curve is
    /// per token. `difference` is the log-prob or reward of the sequence minus that of the frozen reference, and
    /// `rows` is the number of scored tokens.
    pub fn rho(&self, kind: usize, difference: f64, rows: usize) -> f64 {
        let rho = self.scale[kind] * linked(self.link, difference).0;
        if self.curves[0].per_token { rho / rows.max(1) as f64 } else { rho }
    }

    /// Losses of the comparisons of a batch.
    pub fn values_of(&self, comparisons: &[ScoredComparison]) -> Vec<ComparisonValues> {
        let mut all: Vec<ComparisonValues> = comparisons.iter().map(|c| self.values_of_one(c)).collect();
        for (number, part) in self.curves.iter().enumerate().filter(|(_, part)| part.curve.is_of_batch()) {
            let members: Vec<usize> = (0..comparisons.len()).filter(|&c| comparisons[c].weight != 0.0).collect();
            let keys: Vec<SortKeys> = members.iter().map(|&c| self.sort_keys(&comparisons[c], part.curve)).collect();
            if part.curve == Curve::Kto {
                self.unpaired_values(comparisons, &mut all, number);
                continue;
            }
            for (&c, [z, _]) in members.iter().zip(matched(&keys)) {
                let arguments = Arguments { z, terms: [0.0; 2], beta: self.scale[comparisons[c].kind] };
                all[c].values[number] = value_and_slopes(part.curve, arguments).value;
            }
        }
        all
    }

    /// Computes the values of [`Curve::Kto`] with the divergence that all comparisons share.
    fn unpaired_values(&self, comparisons: &[ScoredComparison], all: &mut [ComparisonValues], number: usize) {
        let divergence = batch_divergence(comparisons);
        for (c, of) in comparisons.iter().zip(all) {
            let sign: f64 = c.terms.iter().filter(|t| !t.detached).map(|t| t.sign).sum();
            let z = of.logit - c.margins[0] - c.margins[1] - sign * self.scale[c.kind] * divergence;
            let arguments = Arguments { z, terms: [0.0; 2], beta: self.scale[c.kind] };
            of.values[number] = value_and_slopes(Curve::Kto, arguments).value;
        }
    }

    /// Sort keys of a comparison for a batch-level curve.
    fn sort_keys(&self, c: &ScoredComparison, curve: Curve) -> SortKeys {
        let beta = self.scale[c.kind];
        let sum = |of: &dyn Fn(&ScoredTerm) -> f64| c.terms.iter().map(|t| beta * of(t)).sum::<f64>();
        let side = |sign: f64| sum(&|t| if t.sign == sign { t.score - t.reference } else { 0.0 });
        let [x, y] = match curve {
            Curve::AotUnpaired { .. } => [side(1.0), side(-1.0)],
            _ => [sum(&|t| t.sign * t.score), sum(&|t| t.sign * t.reference)],
        };
        SortKeys { kind: c.kind, x, y }
    }

    /// Losses of one comparison. [`Loss::values_of`] then replaces the values of batch-level curves.
    fn values_of_one(&self, c: &ScoredComparison) -> ComparisonValues {
        let beta = self.scale[c.kind];
        let mut logit = 0.0;
        let mut values = Vec::with_capacity(self.curves.len());
        for (number, part) in self.curves.iter().enumerate() {
            let rho = |t: &ScoredTerm| {
                let rho = beta * linked(self.link, t.score - t.reference).0;
                if part.per_token { rho / t.rows.max(1) as f64 } else { rho }
            };
            let signed = |detached: bool| {
                let terms = c.terms.iter().filter(|t| t.detached == detached);
                signed_sum(terms.map(|t| (t.prompt, t.sign * rho(t))))
            };
            let constant = match c.clip {
                Some((low, high)) => signed(true).max(low).min(high),
                None => signed(true),
            };
            let total = signed(false) + constant;
            let of_sign = |sign: f64| c.terms.iter().filter(|t| !t.detached && t.sign == sign).map(rho).sum::<f64>();
            let arguments =
                Arguments { z: total - c.margins[0] - c.margins[1], terms: [of_sign(1.0), of_sign(-1.0)], beta };
            values.push(value_and_slopes(part.curve, arguments).value);
            if number == 0 {
                logit = total;
            }
        }
        ComparisonValues { logit, values }
    }

    /// The weighted sum of a comparison's values.
    pub fn sum_of(&self, values: &[f64]) -> f64 {
        let weighted = self.curves.iter().zip(values).filter(|(part, _)| part.weight != 0.0);
        weighted.map(|(part, value)| part.weight * value).sum()
    }
}
