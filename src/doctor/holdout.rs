//! Accuracy of simple rules on held-out data: on the test files if given, otherwise by
//! cross-validation. The examples of one prompt are a cluster. A cluster is never split between folds;
//! otherwise a rule could memorise the answers.

use rayon::prelude::*;

use super::interval::{Share, share};
use crate::rng::Rng;

/// Number of cross-validation folds.
pub(super) const FOLDS: usize = 5;

/// A value from which a rule predicts a side, with the cluster of its prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Example<T> {
    pub cluster: u32,
    pub value: T,
}

/// A number that indicates one side of an example if positive, and the other side if negative.
pub(super) type SignedValue = Example<f64>;

/// Examples that a rule is fitted to and evaluated on.
#[derive(Clone, Copy)]
pub(super) struct Examples<'a, T> {
    pub train: &'a [Example<T>],
    /// `None` selects cross-validation on the training examples.
    pub test: Option<&'a [Example<T>]>,
}

/// Returns the share of held-out examples that a fitted rule gets right. `right` returns 1, 0, or
/// one half if the rule is undecided. `None` without examples to fit or to evaluate.
pub(super) fn held_out<T: Sync, M>(
    examples: Examples<'_, T>,
    fit: impl Fn(&[&Example<T>]) -> M + Sync,
    right: impl Fn(&M, &Example<T>) -> f64 + Sync,
) -> Option<Share> {
    let Examples { train, test } = examples;
    let judge = |fitted: &[&Example<T>], judged: &[&Example<T>]| -> Vec<(u32, f64)> {
        let model = fit(fitted);
        judged.iter().map(|example| (example.cluster, right(&model, example))).collect()
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
            let of = |held: bool| -> Vec<&Example<T>> {
                let side = train.iter().zip(&folds).filter(|&(_, &f)| (f == fold) == held);
                side.map(|(example, _)| example).collect()
            };
            judge(&of(false), &of(true))
        })
        .collect();
    share(outcomes.into_iter().flatten())
}

/// Returns the fold of each example. The clusters, in seeded random order, are divided evenly among the folds.
fn folds<T>(examples: &[Example<T>]) -> Vec<usize> {
    let mut clusters: Vec<u32> = examples.iter().map(|e| e.cluster).collect();
    clusters.sort_unstable();
    clusters.dedup();
    let mut deal: Vec<usize> = (0..clusters.len()).map(|i| i % FOLDS).collect();
    Rng::keyed(0, &["data-check", "folds"]).shuffle(&mut deal);
    examples.iter().map(|e| clusters.binary_search(&e.cluster).map_or(0, |at| deal[at])).collect()
}

/// Accuracy of "the larger number wins" or "the smaller number wins", whichever rule is
/// right in more of the fitted examples.
pub(super) fn sign_rule(examples: Examples<'_, f64>) -> Option<Share> {
    let fit = |fitted: &[&SignedValue]| {
        let count = |test: fn(&f64) -> bool| fitted.iter().filter(|example| test(&example.value)).count();
        if count(|v| *v > 0.0) >= count(|v| *v < 0.0) { 1.0 } else { -1.0 }
    };
    held_out(examples, fit, |direction, example| correctness(direction * example.value))
}

/// Returns 1 for a positive score, 0 for a negative one, and one half for 0.
pub(super) fn correctness(score: f64) -> f64 {
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

    fn signed_values(values: impl Iterator<Item = (u32, f64)>) -> Vec<SignedValue> {
        values.map(|(cluster, value)| SignedValue { cluster, value }).collect()
    }

    #[test]
    fn a_rule_that_memorises_prompts_is_no_better_than_chance() {
        // All examples of a prompt have the same sign, and the sign alternates from prompt to prompt. A rule that
        // memorises the signs of some prompts therefore predicts nothing about the others.
        let examples = signed_values((0..400).map(|i| (i / 4, f64::from(i / 4 % 2) - 0.5)));
        let memorised = held_out(
            Examples { train: &examples, test: None },
            |fitted| fitted.iter().map(|l| (l.cluster, l.value)).collect::<std::collections::BTreeMap<_, _>>(),
            |known, example| correctness(known.get(&example.cluster).copied().unwrap_or(0.0) * example.value),
        );
        assert_eq!(memorised.unwrap().share, 0.5);
    }

    #[test]
    fn the_sign_rule_finds_its_direction_and_uses_the_test_side() {
        let train = signed_values((0..100).map(|i| (i, if i % 10 == 0 { 1.0 } else { -1.0 })));
        let rule = sign_rule(Examples { train: &train, test: None }).unwrap();
        assert_eq!((rule.share, rule.of, rule.prompts), (0.9, 100, 100));
        let test = signed_values((0..8).map(|i| (i, if i < 2 { 0.0 } else { 1.0 })));
        let rule = sign_rule(Examples { train: &train, test: Some(&test) }).unwrap();
        assert_eq!((rule.share, rule.of), (0.125, 8));
        assert!(sign_rule(Examples { train: &train[..1], test: None }).is_none());
    }
}
