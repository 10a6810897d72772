//! Labels that split the comparisons of a measure, derived from the group only: lengths,
//! instructions, rule, direction.

use super::measure::By;
use crate::data::group::{Comparison, Direction, Instruction, Kind, PreferenceGroup, Rule, Term};

/// Number of characters of a response. This length is independent of the tokenizer, so two models
/// share it.
pub(super) fn characters(group: &PreferenceGroup, response: usize) -> usize {
    group.responses[response].text().chars().count()
}

/// Returns the length label of a better and a worse response.
pub(super) fn length_label(group: &PreferenceGroup, better: usize, worse: usize) -> (By, String) {
    let label = match characters(group, better).cmp(&characters(group, worse)) {
        std::cmp::Ordering::Greater => "chosen longer",
        std::cmp::Ordering::Less => "rejected longer",
        std::cmp::Ordering::Equal => "equal length",
    };
    (By::Length, label.into())
}

/// Returns the two terms of a two-sequence comparison, the preferred one first.
fn two_terms(comparison: &Comparison) -> Option<(Term, Term)> {
    match comparison.terms[..] {
        [a, b] if a.sign > 0 => Some((a, b)),
        [a, b] => Some((b, a)),
        _ => None,
    }
}

/// Returns (prompt, preferred response, other response) of an original pair.
pub(super) fn pair(comparison: &Comparison) -> Option<(usize, usize, usize)> {
    let (better, worse) = two_terms(comparison).filter(|_| comparison.kind == Kind::Base)?;
    (better.prompt == worse.prompt).then_some((better.prompt, better.response, worse.response))
}

/// True if two instructions have the same function and the same arguments.
fn same(a: &Instruction, b: &Instruction) -> bool {
    a.id == b.id && a.kwargs == b.kwargs
}

/// Iterates over the instructions of a prompt.
fn instructions(group: &PreferenceGroup, prompt: usize) -> impl Iterator<Item = &Instruction> {
    group.instructions.iter().filter(move |i| i.prompt == prompt)
}

/// Returns the instructions of `prompt` that `base` lacks.
pub(super) fn added(group: &PreferenceGroup, prompt: usize, base: usize) -> Vec<&Instruction> {
    instructions(group, prompt).filter(|i| !instructions(group, base).any(|j| same(i, j))).collect()
}

/// Returns labels for the instructions in which `prompts` differ; empty if no prompt has an
/// instruction.
pub(super) fn instruction_labels(group: &PreferenceGroup, prompts: &[usize], holdout: &[String]) -> Vec<(By, String)> {
    let most = prompts.iter().map(|&p| instructions(group, p).count()).max().unwrap_or(0);
    if most == 0 {
        return Vec::new();
    }
    let mut labels = vec![(By::Instructions, most.to_string())];
    let everywhere = |i: &Instruction| prompts.iter().all(|&p| instructions(group, p).any(|j| same(i, j)));
    let mut ids: Vec<&str> = prompts
        .iter()
        .flat_map(|&p| instructions(group, p))
        .filter(|i| !everywhere(i))
        .map(|i| i.id.as_str())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let held = ids.iter().filter(|id| holdout.iter().any(|h| h == *id)).count();
    if !holdout.is_empty() && !ids.is_empty() {
        let label = match held {
            0 => "trained",
            n if n == ids.len() => "held out",
            _ => "mixed",
        };
        labels.push((By::Holdout, label.into()));
    }
    labels.extend(ids.into_iter().map(|id| (By::Function, id.to_owned())));
    labels
}

/// Returns all labels of a comparison.
pub(super) fn comparison_labels(
    group: &PreferenceGroup,
    comparison: &Comparison,
    holdout: &[String],
) -> Vec<(By, String)> {
    let mut labels = Vec::new();
    if let Some((_, better, worse)) = pair(comparison) {
        labels.push(length_label(group, better, worse));
    }
    if let Some(rule) = comparison.rule {
        let label = match rule {
            Rule::A => "A",
            Rule::B => "B",
            Rule::Bare => "bare",
        };
        labels.push((By::Rule, label.into()));
    }
    if let Some(direction) = comparison.direction {
        let label = match direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        labels.push((By::Direction, label.into()));
    }
    if let Some(violations) = violations(group, comparison) {
        labels.push((By::Violations, violations.to_string()));
    }
    let mut prompts: Vec<usize> = comparison.terms.iter().map(|t| t.prompt).collect();
    prompts.sort_unstable();
    prompts.dedup();
    labels.extend(instruction_labels(group, &prompts, holdout));
    labels
}

/// Number of instructions that the response of an intra comparison fails under the worse prompt, minus the
/// number it fails under the better prompt. Under rule A this is the number of instructions of the worse prompt
/// that it fails; under rule B, the number of the better prompt that it meets. `None` if there are no
/// instructions, or if one of them is unchecked.
fn violations(group: &PreferenceGroup, comparison: &Comparison) -> Option<i64> {
    let (better, worse) = two_terms(comparison).filter(|_| comparison.kind == Kind::Intra)?;
    if better.response != worse.response {
        return None;
    }
    let failed = |term: Term| -> Option<i64> {
        let flags: Option<Vec<bool>> =
            instructions(group, term.prompt).map(|i| i.satisfied.get(term.response).copied().flatten()).collect();
        flags.map(|flags| flags.iter().filter(|met| !**met).count() as i64)
    };
    let carried = instructions(group, better.prompt).chain(instructions(group, worse.prompt)).count();
    if carried == 0 { None } else { Some(failed(worse)? - failed(better)?) }
}
