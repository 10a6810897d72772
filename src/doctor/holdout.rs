//! Accuracy of simple rules on data they were not fitted to: on the test files where there are some, and by
//! cross-validation otherwise. Examples of one prompt never stand on both sides of a fold, or a rule could know the
//! answers by heart.

use rayon::prelude::*;

use super::interval::{Share, share};
use crate::rng::Rng;

/// Folds of the cross-validation.
pub const FOLDS: usize = 5;

/// Examples a rule is judged on.
#[derive(Clone, Copy)]
pub struct Examples<'a, E> {
    pub train: &'a [E],
    /// `None`: cross-validation on the training examples.
    pub test: Option<&'a [E]>,
}

/// What belongs to a cluster: one prompt and all that shares it.
pub trait Clustered: Sync {
    fn cluster(&self) -> u32;
}

/// Share of held-out examples that a fitted rule gets right. `right` gives 1, 0, or one half where the rule does not
/// decide. `None` without examples to fit and to judge.
pub fn held_out<E: Clustered, M>(
    examples: Examples<'_, E>,
    fit: impl Fn(&[&E]) -> M + Sync,
    right: impl Fn(&M, &E) -> f64 + Sync,
) -> Option<Share> {
    let Examples { train, test } = examples;
    let judge = |fitted: &[&E], judged: &[&E]| -> Vec<(u32, f64)> {
        let model = fit(fitted);
        judged.iter().map(|example| (example.cluster(), right(&model, example))).collect()
    };
    if let Some(test) = test {
        if train.is_empty() {
            return None;
        }
        return share(judge(&train.iter().collect::<Vec<_>>(), &test.iter().collect::<Vec<_>>()));
    }
    let folds = folds(train);
    let count = folds.iter().max()? + 1;
    if count < 2 {
        return None;
    }
    let outcomes: Vec<Vec<(u32, f64)>> = (0..count)
        .into_par_iter()
        .map(|fold| {
            let of = |held: bool| -> Vec<&E> {
                let side = train.iter().zip(&folds).filter(|&(_, &f)| (f == fold) == held);
                side.map(|(example, _)| example).collect()
            };
            judge(&of(false), &of(true))
        })
        .collect();
    share(outcomes.into_iter().flatten())
}

/// Fold of each example: clusters in seeded order, dealt out in turn.
fn folds<E: Clustered>(examples: &[E]) -> Vec<usize> {
    let mut clusters: Vec<u32> = examples.iter().map(Clustered::cluster).collect();
    clusters.sort_unstable();
    clusters.dedup();
    let mut deal: Vec<usize> = (0..clusters.len()).map(|i| i % FOLDS).collect();
    Rng::keyed(0, &["data-check", "folds"]).shuffle(&mut deal);
    examples.iter().map(|e| clusters.binary_search(&e.cluster()).map_or(0, |at| deal[at])).collect()
}

/// A number that speaks for one side of an example if positive, and for the other if negative.
#[derive(Clone, Copy, Debug)]
pub struct Lean {
    pub cluster: u32,
    pub value: f64,
}

impl Clustered for Lean {
    fn cluster(&self) -> u32 {
        self.cluster
    }
}

/// Accuracy of "the larger number wins" or "the smaller number wins", whichever held more often where it was fitted.
pub fn sign_rule(examples: Examples<'_, Lean>) -> Option<Share> {
    let fit = |fitted: &[&Lean]| {
        let count = |test: fn(&f64) -> bool| fitted.iter().filter(|lean| test(&lean.value)).count();
        if count(|v| *v > 0.0) >= count(|v| *v < 0.0) { 1.0 } else { -1.0 }
    };
    held_out(examples, fit, |direction, lean| decided(direction * lean.value))
}

/// 1 for a positive score, 0 for a negative one, one half for none.
pub fn decided(score: f64) -> f64 {
    if score > 0.0 {
        1.0
    } else if score < 0.0 {
        0.0
    } else {
        0.5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leans(values: impl Iterator<Item = (u32, f64)>) -> Vec<Lean> {
        values.map(|(cluster, value)| Lean { cluster, value }).collect()
    }

    #[test]
    fn a_rule_that_learns_prompts_by_heart_is_no_better_than_chance() {
        // Every prompt has its own direction; fitted on some prompts, a rule knows nothing of the others.
        let examples = leans((0..400).map(|i| (i / 4, f64::from(i / 4 % 2) - 0.5)));
        let heart = held_out(
            Examples { train: &examples, test: None },
            |fitted| fitted.iter().map(|l| (l.cluster, l.value)).collect::<std::collections::BTreeMap<_, _>>(),
            |known, lean| decided(known.get(&lean.cluster).copied().unwrap_or(0.0) * lean.value),
        );
        assert_eq!(heart.unwrap().share, 0.5);
    }

    #[test]
    fn the_sign_rule_finds_its_direction_and_uses_the_test_side() {
        let train = leans((0..100).map(|i| (i, if i % 10 == 0 { 1.0 } else { -1.0 })));
        let rule = sign_rule(Examples { train: &train, test: None }).unwrap();
        assert_eq!((rule.share, rule.of, rule.prompts), (0.9, 100, 100));
        let test = leans((0..8).map(|i| (i, if i < 2 { 0.0 } else { 1.0 })));
        let rule = sign_rule(Examples { train: &train, test: Some(&test) }).unwrap();
        assert_eq!((rule.share, rule.of), (0.125, 8));
        assert!(sign_rule(Examples { train: &train[..1], test: None }).is_none());
    }
}
