//! Added instructions in group rows. Counts functions, relations and numbers on each side of intra
//! and inter comparisons. Checks that recorded flags match the checkers and that every comparison
//! prefers the side that satisfies more instructions.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::corpus::Corpus;
use super::cue::{self, Cue};
use super::finding::{Finding, Level, MAX_PLACES, Place, percent};
use crate::data::group::{Comparison, Kind, PreferenceGroup};
use crate::data::instructions::{self, Analysis};
use crate::data::mapl::{FunctionCounts, RelationCounts, Report, SizeCounts};

/// Share of wrong flags, or of comparisons that contradict the flags, above which training is meaningless. Two
/// checkers that differ only in corner cases stay well below this share.
const MAX_WRONG: f64 = 0.05;

/// Counts over all rows with intra or inter comparisons.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct InstructionReport {
    /// By function id: numbers of intra comparisons with the function, of intra comparisons in which its
    /// arguments differ, and of inter comparisons in the directions up and down.
    pub functions: BTreeMap<String, FunctionCounts>,
    /// Comparisons by number of instructions per prompt.
    pub sizes: BTreeMap<usize, SizeCounts>,
    /// Intra comparisons by number of instructions in the better and in the worse prompt.
    pub per_side: BTreeMap<usize, [usize; 2]>,
    /// Counts of "at least" and "less than" in the better and in the worse prompts of intra
    /// comparisons.
    pub intra_relations: [RelationCounts; 2],
    /// The same counts in the prompts of inter comparisons in the directions up and down.
    pub inter_relations: [RelationCounts; 2],
    pub flags: FlagCounts,
    pub labels: LabelCounts,
    /// Held-out accuracy of rules that see the two prompts of an intra comparison but not the
    /// response.
    pub cues: Vec<Cue>,
}

/// Counts of recorded flags that agree or disagree with the checkers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlagCounts {
    /// Flags of known functions that the checker can decide.
    pub checked: usize,
    pub wrong: usize,
    /// Recorded flags that the checker cannot decide: an argument is missing or malformed, or the
    /// language is unknown.
    pub undecided: usize,
    /// Instructions with an unknown function.
    pub unknown: usize,
}

/// Counts of comparisons whose preferred side agrees or disagrees with the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LabelCounts {
    /// Intra and inter comparisons with instructions.
    pub checked: usize,
    /// Comparisons that prefer the side that satisfies fewer instructions.
    pub contradicted: usize,
    /// Comparisons with sides that satisfy equally many instructions.
    pub undecided: usize,
}

/// Results of one row.
#[derive(Default)]
struct RowResult {
    flags: FlagCounts,
    labels: LabelCounts,
    wrong: Vec<String>,
    unknown: Vec<String>,
    contradicted: Vec<String>,
}

/// Checks the instructions; `None` if no row has intra or inter comparisons.
pub(super) fn check(corpus: &Corpus, findings: &mut Vec<Finding>) -> Option<InstructionReport> {
    let extended = |group: &PreferenceGroup| group.comparisons.iter().any(|c| c.kind != Kind::Base);
    if !corpus.rows.iter().any(|row| extended(&row.group)) {
        return None;
    }
    let mut counts = Report::default();
    let mut report = InstructionReport::default();
    for row in &corpus.rows {
        counts.count_group(&row.group);
        let of = |prompt: usize| row.group.instructions.iter().filter(|i| i.prompt == prompt).count();
        for comparison in row.group.comparisons.iter().filter(|c| c.kind == Kind::Intra) {
            for term in &comparison.terms {
                report.per_side.entry(of(term.prompt)).or_default()[usize::from(term.sign < 0)] += 1;
            }
        }
    }
    report.functions = counts.functions;
    report.sizes = counts.sizes;
    report.intra_relations = counts.intra_relations;
    report.inter_relations = counts.inter_relations;

    let results: Vec<RowResult> = corpus.rows.par_iter().map(|row| check_row(&row.group)).collect();
    let mut places: [Vec<Place>; 3] = Default::default();
    for (row, result) in results.into_iter().enumerate() {
        report.flags.checked += result.flags.checked;
        report.flags.wrong += result.flags.wrong;
        report.flags.undecided += result.flags.undecided;
        report.flags.unknown += result.flags.unknown;
        report.labels.checked += result.labels.checked;
        report.labels.contradicted += result.labels.contradicted;
        report.labels.undecided += result.labels.undecided;
        for (places, notes) in places.iter_mut().zip([result.wrong, result.unknown, result.contradicted]) {
            let free = MAX_PLACES - places.len();
            places.extend(notes.into_iter().take(free).map(|note| Place::row(corpus, row).with(note)));
        }
    }
    add_findings(&report, places, findings);
    report.cues = cue::check(corpus, findings);
    Some(report)
}

fn check_row(group: &PreferenceGroup) -> RowResult {
    let mut result = RowResult::default();
    let analyses: Vec<Analysis> = group.responses.iter().map(|r| Analysis::new(r.text())).collect();
    // Flags that count as correct: the checker's result if it decides, otherwise the recorded flag.
    let mut satisfied: Vec<Vec<Option<bool>>> = Vec::with_capacity(group.instructions.len());
    for (i, instruction) in group.instructions.iter().enumerate() {
        let Some(function) = instructions::by_id(&instruction.id) else {
            result.flags.unknown += 1;
            result.unknown.push(format!("instructions[{i}]: {:?}", instruction.id));
            satisfied.push(instruction.satisfied.clone());
            continue;
        };
        let mut flags = Vec::with_capacity(analyses.len());
        for (response, (analysis, &recorded)) in analyses.iter().zip(&instruction.satisfied).enumerate() {
            let found = function.check(&instruction.kwargs, analysis);
            match (recorded, found) {
                (Some(recorded), Some(found)) => {
                    result.flags.checked += 1;
                    if recorded != found {
                        result.flags.wrong += 1;
                        result.wrong.push(format!(
                            "instructions[{i}] ({}) is recorded as {recorded} for response {response}, but the checker \
                             finds {found}",
                            instruction.id
                        ));
                    }
                }
                (Some(_), None) => result.flags.undecided += 1,
                (None, _) => {}
            }
            flags.push(found.or(recorded));
        }
        satisfied.push(flags);
    }
    for (c, comparison) in group.comparisons.iter().enumerate().filter(|(_, c)| c.kind != Kind::Base) {
        let Some(lead) = lead(group, comparison, &satisfied) else { continue };
        result.labels.checked += 1;
        if lead < 0 {
            result.labels.contradicted += 1;
            result.contradicted.push(format!("comparisons[{c}] ({})", comparison.kind.name()));
        }
        result.labels.undecided += usize::from(lead == 0);
    }
    result
}

/// Satisfied minus failed instructions, summed over the terms with their signs. Positive if the
/// preferred side satisfies more. `None` if no prompt of the comparison has an instruction with a
/// flag.
fn lead(group: &PreferenceGroup, comparison: &Comparison, satisfied: &[Vec<Option<bool>>]) -> Option<i64> {
    let mut lead = None;
    for term in &comparison.terms {
        for (instruction, flags) in group.instructions.iter().zip(satisfied) {
            if instruction.prompt == term.prompt
                && let Some(flag) = flags.get(term.response).copied().flatten()
            {
                *lead.get_or_insert(0) += i64::from(term.sign) * if flag { 1 } else { -1 };
            }
        }
    }
    lead
}

fn add_findings(
    report: &InstructionReport,
    [wrong, unknown, contradicted]: [Vec<Place>; 3],
    findings: &mut Vec<Finding>,
) {
    let FlagCounts { checked, wrong: count, unknown: unknown_count, .. } = report.flags;
    if count > 0 {
        let level = Level::error_if(count as f64 > MAX_WRONG * checked as f64);
        let what = format!(
            "{count} of {checked} recorded flags ({}) differ from the result of the checker",
            percent(count, checked)
        );
        let finding = Finding::new(level, "instruction-flags", (count, checked), what)
            .why("comparisons built on wrong flags reward responses that the prompt did not ask for")
            .advice("rebuild the groups with `mapl data build` after the last change of the responses")
            .places(wrong);
        findings.push(finding);
    }
    if unknown_count > 0 {
        let what = format!("{unknown_count} instructions name an unknown function");
        let finding = Finding::new(Level::Warning, "unknown-instructions", (unknown_count, unknown_count), what)
            .why("their flags cannot be checked and are used as recorded")
            .advice("use functions that `mapl data build --functions` accepts")
            .places(unknown);
        findings.push(finding);
    }
    let LabelCounts { checked, contradicted: count, .. } = report.labels;
    if count > 0 {
        let level = Level::error_if(count as f64 > MAX_WRONG * checked as f64);
        let what = format!(
            "{count} of {checked} intra and inter comparisons ({}) prefer the side that satisfies fewer instructions",
            percent(count, checked)
        );
        let finding = Finding::new(level, "instruction-labels", (count, checked), what)
            .why("they train the opposite of what the prompts ask for")
            .advice("rebuild the groups with `mapl data build`, or swap the signs of these comparisons")
            .places(contradicted);
        findings.push(finding);
    }
}
