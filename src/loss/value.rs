//! Losses of a comparison on the host, in f64 from the scores of its sequences: for evaluation, and
//! for the log of each of several losses.

use super::objective::Loss;
use super::signed_sum::signed_sum;
use crate::backend::contract::curve::{Arguments, linked, value_and_slopes};

/// A term of a comparison with the scores of its sequence.
#[derive(Clone, Copy, Debug)]
pub struct ScoredTerm {
    /// Index of the sequence's prompt.
    pub prompt: usize,
    /// +1 or -1.
    pub sign: f64,
    pub detached: bool,
    /// Score minus the score of the frozen reference.
    pub ratio: f64,
    /// Tokens that are scored.
    pub rows: usize,
}

/// Losses of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparisonValues {
    /// Logit of the first curve.
    pub logit: f64,
    /// Value of each curve, without any weight.
    pub values: Vec<f64>,
}

impl Loss {
    /// Losses of a comparison of the given kind. `margins` are subtracted from the logit one by one;
    /// `clip` bounds the sum of the detached terms.
    pub fn values_of(
        &self,
        kind: usize,
        margins: [f64; 2],
        clip: Option<(f64, f64)>,
        terms: &[ScoredTerm],
    ) -> ComparisonValues {
        let beta = self.scale[kind];
        let mut logit = 0.0;
        let mut values = Vec::with_capacity(self.curves.len());
        for (number, part) in self.curves.iter().enumerate() {
            let rho = |t: &ScoredTerm| {
                let rho = beta * linked(self.link, t.ratio).0;
                if part.per_token { rho / t.rows.max(1) as f64 } else { rho }
            };
            let signed = |detached: bool| {
                let terms = terms.iter().filter(|t| t.detached == detached);
                signed_sum(terms.map(|t| (t.prompt, t.sign * rho(t))))
            };
            let constant = match clip {
                Some((low, high)) => signed(true).max(low).min(high),
                None => signed(true),
            };
            let total = signed(false) + constant;
            let of_sign = |sign: f64| terms.iter().filter(|t| !t.detached && t.sign == sign).map(rho).sum::<f64>();
            let arguments =
                Arguments { z: total - margins[0] - margins[1], terms: [of_sign(1.0), of_sign(-1.0)], beta };
            values.push(value_and_slopes(part.curve, arguments).value);
            if number == 0 {
                logit = total;
            }
        }
        ComparisonValues { logit, values }
    }

    /// The weighted sum of a comparison's values.
    pub fn sum_of(&self, values: &[f64]) -> f64 {
        self.curves
            .iter()
            .zip(values)
            .map(|(part, value)| if part.weight == 0.0 { 0.0 } else { part.weight * value })
            .sum()
    }
}
