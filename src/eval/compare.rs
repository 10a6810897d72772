//! Paired comparison of two models on the same data. Both models score every comparison, so the
//! statistic is the difference per comparison: its mean with a bootstrap interval by group, and
//! exact tests of the discordant comparisons.
//!
//! McNemar's test assumes independent comparisons, but several comparisons of one group are dependent. If
//! groups have more than one comparison, use the sign test over groups, which counts the groups in which A or B
//! orders more comparisons correctly. With one comparison per group both tests are the same. P-values are not
//! corrected for the number of tests (table lines).
//!
//! Evaluations of different data are an error, and so are observations that do not match one to one, except
//! those of probes.

use rayon::prelude::*;

use super::measure::{Measure, Observation, Quantity, Split, clusters, credit};
use super::statistics::{Estimate, Resampling, estimates, exact_test};
use super::{Evaluation, Line, Place};
use crate::{Error, Result};

/// Result of comparing two models on one set of comparisons.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Number of comparisons.
    pub count: usize,
    /// Number of groups.
    pub groups: usize,
    /// Accuracy of A; a tie counts as wrong.
    pub a: f64,
    /// Accuracy of B; a tie counts as wrong.
    pub b: f64,
    /// Accuracy of B minus accuracy of A.
    pub difference: Estimate,
    /// The same difference with a tie counted as one half.
    pub difference_half: Estimate,
    /// Comparisons that only A orders correctly.
    pub only_a: usize,
    /// Comparisons that only B orders correctly.
    pub only_b: usize,
    /// P-value of the exact McNemar test of `only_a` and `only_b`.
    pub mcnemar: f64,
    /// Groups in which A orders more comparisons correctly.
    pub groups_a: usize,
    /// Groups in which B orders more comparisons correctly.
    pub groups_b: usize,
    /// P-value of the exact sign test of `groups_a` and `groups_b`.
    pub sign_test: f64,
}

/// Lines that both evaluations have.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// One line for each quantity and for each of its splits.
    pub lines: Vec<Line<Paired>>,
    /// Quantities that only one evaluation has, and probes that left out different pairs.
    pub unmatched: Vec<Quantity>,
    /// Number of scores of A and of B that are NaN or infinite.
    pub non_finite: [usize; 2],
}

/// Compares two evaluations. The names are used in messages.
pub fn compare(
    (name_a, a): (&str, &Evaluation),
    (name_b, b): (&str, &Evaluation),
    resampling: Resampling,
) -> Result<Comparison> {
    if a.data != b.data || a.groups != b.groups {
        return Err(Error::Usage(format!(
            "{name_a} and {name_b} are evaluations of different data ({} groups, hash {}; {} groups, hash {}); evaluate \
             both on the same files",
            a.groups,
            hash_prefix(&a.data),
            b.groups,
            hash_prefix(&b.data)
        )));
    }
    let non_finite = [a, b].map(|evaluation| evaluation.rewards.non_finite);
    let (mut jobs, mut unmatched): (Vec<Job<'_>>, Vec<Quantity>) = Default::default();
    for quantity in Quantity::ALL {
        match (a.measure(quantity), b.measure(quantity)) {
            // This quantity depends only on the data, so it is equal for both models.
            _ if quantity == Quantity::LengthOnly => {}
            (Some(a), Some(b)) if !aligned(a, b) && is_probe(quantity) => unmatched.push(quantity),
            (Some(a), Some(b)) if !aligned(a, b) => {
                return Err(Error::Usage(format!(
                    "{name_a} and {name_b} do not have the same comparisons of {}; evaluate both with the same version \
                     and flags",
                    quantity.name()
                )));
            }
            (Some(a), Some(b)) => {
                jobs.push((a, b, None));
                // Splits that depend on the flags of one evaluation, such as held-out functions,
                // have no counterpart.
                jobs.extend(a.splits.iter().filter(|split| b.splits.contains(split)).map(|split| (a, b, Some(split))));
            }
            (None, None) => {}
            _ => unmatched.push(quantity),
        }
    }
    let lines = jobs
        .into_par_iter()
        .map(|(a, b, split)| {
            let place = Place::of(a.quantity, split);
            let summary = Paired::of(&a.members(split), &b.members(split), resampling, &place.labels());
            Line { place, summary }
        })
        .collect();
    Ok(Comparison { lines, unmatched, non_finite })
}

type Job<'a> = (&'a Measure, &'a Measure, Option<&'a Split>);

/// True if a quantity can leave out pairs that are too long for only one of the models.
fn is_probe(quantity: Quantity) -> bool {
    use Quantity::{IntraEmptyPrompt, SemanticEmptyPrompt, SemanticShuffledPrompt};
    matches!(quantity, SemanticEmptyPrompt | SemanticShuffledPrompt | IntraEmptyPrompt)
}

/// Returns the prefix of a hash, for messages.
fn hash_prefix(hash: &str) -> String {
    hash.chars().take(8).collect()
}

fn aligned(a: &Measure, b: &Measure) -> bool {
    let groups = |m: &Measure| m.observations.iter().map(|o| o.group).collect::<Vec<_>>();
    groups(a) == groups(b)
}

impl Paired {
    /// Compares observations that match one to one. `labels` name the random stream of the bootstrap.
    pub fn of(a: &[Observation], b: &[Observation], resampling: Resampling, labels: &[&str]) -> Self {
        let pairs: Vec<(&Observation, &Observation)> = a.iter().zip(b).collect();
        let difference = |(a, b): &(&Observation, &Observation), tie| credit(b.logit, tie) - credit(a.logit, tie);
        let clusters = clusters(&pairs, |(a, _)| a.group, |pair| [difference(pair, 0.0), difference(pair, 0.5)]);
        let labels: Vec<&str> = std::iter::once("paired").chain(labels.iter().copied()).collect();
        let [accuracy, half] = estimates(&clusters, resampling, &labels);
        let count = |sign: f64| pairs.iter().filter(|pair| difference(pair, 0.0) == sign).count();
        let (only_a, only_b) = (count(-1.0), count(1.0));
        let groups_a = clusters.iter().filter(|c| c.sums[0] < 0.0).count();
        let groups_b = clusters.iter().filter(|c| c.sums[0] > 0.0).count();
        let share = |all: &[Observation]| {
            let right = all.iter().filter(|o| o.logit > 0.0).count();
            if all.is_empty() { 0.0 } else { right as f64 / all.len() as f64 }
        };
        Self {
            count: pairs.len(),
            groups: clusters.len(),
            a: share(a),
            b: share(b),
            difference: accuracy,
            difference_half: half,
            only_a,
            only_b,
            mcnemar: exact_test(only_a, only_b),
            groups_a,
            groups_b,
            sign_test: exact_test(groups_a, groups_b),
        }
    }
}
