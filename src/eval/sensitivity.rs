//! Behaviour of a model on one pair of responses when only the prompt changes: the conflict measure and the
//! two measures of constraint sensitivity. They need no separate comparison rows; prompts are recognised by
//! their instructions.

use super::breakdown::{added, instruction_labels, pair};
use super::measure::{Measure, Quantity};
use super::{Scored, Settings};
use crate::data::group::{Kind, PreferenceGroup};

/// An original pair, and the prompts whose added instructions only one of its responses satisfies.
struct Opposed {
    chosen: usize,
    rejected: usize,
    /// The original prompt.
    base: usize,
    /// Prompts with added instructions: the chosen response satisfies all of them, the rejected one none.
    /// Indices are ascending.
    up: Vec<usize>,
    /// Prompts with added instructions: the rejected response satisfies all of them, the chosen one none.
    /// Indices are ascending.
    down: Vec<usize>,
}

/// Returns the measures sensitivity, sensitivity flip and conflict of all groups.
pub(super) fn measures(scored: &[Scored<'_>], settings: &Settings) -> [Measure; 3] {
    let mut sensitivity = Measure::new(Quantity::Sensitivity);
    let mut flip = Measure::new(Quantity::SensitivityFlip);
    let mut conflict = Measure::new(Quantity::Conflict);
    for (g, scored) in scored.iter().enumerate() {
        let group = scored.group;
        for pair in opposed(group) {
            let gap = |prompt: usize| -> Option<f64> {
                Some(scored.score(prompt, pair.chosen)? - scored.score(prompt, pair.rejected)?)
            };
            let labels = |prompts: &[usize]| {
                let prompts: Vec<usize> = prompts.iter().copied().chain([pair.base]).collect();
                instruction_labels(group, &prompts, &settings.holdout_functions)
            };
            for &down in &pair.down {
                if let Some(gap) = gap(down) {
                    conflict.add(g, -gap, labels(&[down]));
                }
            }
            // Prompts are in the order in which their instructions were drawn, so the `up` and the `down`
            // prompt of one draw have the same index.
            for (&up, &down) in pair.up.iter().zip(&pair.down) {
                if let (Some(above), Some(below)) = (gap(up), gap(down)) {
                    sensitivity.add(g, above - below, labels(&[up, down]));
                    flip.add(g, nan_min(above, -below), labels(&[up, down]));
                }
            }
        }
    }
    [sensitivity, flip, conflict]
}

/// Returns the minimum of two numbers; NaN if either is NaN.
fn nan_min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// Finds the pairs of a group, each with the prompts under which comparisons use both of its
/// responses.
fn opposed(group: &PreferenceGroup) -> Vec<Opposed> {
    let sequences = group.sequences();
    let mut pairs: Vec<(usize, usize, usize)> = group.comparisons.iter().filter_map(pair).collect();
    pairs.sort_unstable();
    pairs.dedup();
    let several = pairs.iter().any(|p| p.0 != pairs[0].0);
    let found = pairs.iter().map(|&(base, chosen, rejected)| {
        let both = |p: usize| [chosen, rejected].iter().all(|&r| sequences.binary_search(&(p, r)).is_ok());
        let candidates: Vec<usize> = (0..group.prompts.len())
            .filter(|&p| p != base && both(p) && (!several || linked(group, p, base)))
            .collect();
        let splits = |prompt: usize, winner: usize, loser: usize| {
            let added = added(group, prompt, base);
            let flag = |response: usize, met: bool| {
                added.iter().all(|i| i.satisfied.get(response).copied().flatten() == Some(met))
            };
            !added.is_empty() && flag(winner, true) && flag(loser, false)
        };
        let up = candidates.iter().copied().filter(|&p| splits(p, chosen, rejected)).collect();
        let down = candidates.iter().copied().filter(|&p| splits(p, rejected, chosen)).collect();
        Opposed { chosen, rejected, base, up, down }
    });
    found.collect()
}

/// Whether an inter comparison has terms under both `prompt` and `base`. In a group whose pairs have different
/// base prompts, only such a comparison shows that `prompt` was derived from `base`; instructions do not.
fn linked(group: &PreferenceGroup, prompt: usize, base: usize) -> bool {
    group
        .comparisons
        .iter()
        .filter(|c| c.kind == Kind::Inter)
        .any(|c| [prompt, base].iter().all(|wanted| c.terms.iter().any(|t| t.prompt == *wanted)))
}
