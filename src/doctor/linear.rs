//! Logistic regression on differences of sparse features. `sigmoid(w . x)` is the probability that
//! the preferred side of an example wins. Vector `x` holds the features of the preferred side minus
//! the features of the other side. The model has no bias term, so swapping the sides of an example only
//! flips the prediction.
//!
//! Minimises `|w|^2 / 2 + sum log(1 + exp(-w . x))` over `w`, for unit vectors `x`, by dual coordinate ascent
//! (Yu, Huang and Lin 2011). Every step solves one example exactly, so no learning rate is needed:
//!
//! ```text
//! a[i] = 1/2;  w = sum of a[i] x[i]
//! repeat PASSES times, for each i in random order:
//!     solve logit(b) + w . x[i] + b - a[i] = 0 for b, by Newton steps on logit(b)
//!     w += (b - a[i]) x[i];  a[i] = b
//! ```

use crate::rng::Rng;

/// Feature differences by index, in ascending order, scaled to unit length.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Features(Vec<(u32, f32)>);

/// Passes over the examples. The objective is strongly convex and the vectors have unit length, so
/// the error falls by a constant factor per pass.
const PASSES: usize = 30;
/// Newton steps per example. Few are needed, because the derivative of the solved equation is between 1 and
/// 1.25.
const NEWTON_STEPS: usize = 6;

impl Features {
    /// Builds features from (index, value) pairs in any order; values of one index are summed.
    pub fn new(mut values: Vec<(u32, f64)>) -> Self {
        values.sort_by_key(|&(index, _)| index);
        let mut sums: Vec<(u32, f64)> = Vec::with_capacity(values.len());
        for (index, value) in values {
            match sums.last_mut() {
                Some((last, sum)) if *last == index => *sum += value,
                _ => sums.push((index, value)),
            }
        }
        let length = sums.iter().map(|(_, v)| v * v).sum::<f64>().sqrt();
        let kept = sums.into_iter().filter(|&(_, v)| v != 0.0);
        Self(kept.map(|(index, v)| (index, (v / length) as f32)).collect())
    }

    /// Returns `weights . x`; features without a weight are ignored.
    pub fn dot(&self, weights: &[f64]) -> f64 {
        self.0.iter().map(|&(i, v)| weights.get(i as usize).copied().unwrap_or(0.0) * f64::from(v)).sum()
    }
}

/// Fits the weights of `width` features.
pub(super) fn fit<'a>(examples: impl IntoIterator<Item = &'a Features>, width: usize) -> Vec<f64> {
    let examples: Vec<&Features> = examples.into_iter().filter(|x| !x.0.is_empty()).collect();
    let mut weights = vec![0.0; width];
    // The weights are the sum of a * x with a between 0 and 1; `logits` holds logit(a).
    let mut logits = vec![0.0f64; examples.len()];
    for x in &examples {
        add(&mut weights, x, 0.5);
    }
    let mut rng = Rng::keyed(0, &["data-check", "linear"]);
    let mut order: Vec<usize> = (0..examples.len()).collect();
    for _ in 0..PASSES {
        rng.shuffle(&mut order);
        for &i in &order {
            let (x, old) = (examples[i], sigmoid(logits[i]));
            let score = x.dot(&weights);
            // Root of logit + score + (a - old), where a = sigmoid(logit) and x has length 1.
            let mut logit = logits[i];
            for _ in 0..NEWTON_STEPS {
                let a = sigmoid(logit);
                logit -= (logit + score + a - old) / (1.0 + a * (1.0 - a));
            }
            logits[i] = logit;
            add(&mut weights, x, sigmoid(logit) - old);
        }
    }
    weights
}

fn add(weights: &mut [f64], x: &Features, factor: f64) {
    for &(i, v) in &x.0 {
        weights[i as usize] += factor * f64::from(v);
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_zero_at_the_solution() {
        let mut rng = Rng::keyed(1, &["linear"]);
        let examples: Vec<Features> = (0..200)
            .map(|_| Features::new((0..6).map(|_| (rng.below(12) as u32, rng.normal() + 0.3)).collect()))
            .collect();
        let weights = fit(&examples, 12);
        let mut gradient = weights.clone();
        for x in &examples {
            add(&mut gradient, x, -sigmoid(-x.dot(&weights)));
        }
        assert!(gradient.iter().all(|g| g.abs() < 1e-5), "{gradient:?}");
        assert!(weights.iter().any(|w| w.abs() > 0.5), "{weights:?}");
    }

    #[test]
    fn features_add_up_and_have_length_one() {
        let x = Features::new(vec![(4, 1.0), (2, 3.0), (4, 3.0), (7, 1.0), (7, -1.0)]);
        assert_eq!(x, Features(vec![(2, 0.6), (4, 0.8)]));
        assert_eq!(x.dot(&[0.0, 0.0, 1.0]), f64::from(0.6f32));
        assert_eq!(Features::new(vec![(1, 1.0), (1, -1.0)]), Features::default());
    }
}
