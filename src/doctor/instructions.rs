//! Added instructions in group rows: which functions, relations and numbers stand on which side of intra and inter
//! comparisons, whether the recorded flags are what the checkers say, and whether every comparison prefers the side
//! that meets more.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use super::corpus::Corpus;
use super::cue::{self, Cue};
use super::finding::{Finding, Level, PLACES, Place, percent};
use crate::data::group::{Comparison, Kind, PreferenceGroup};
use crate::data::instructions::{self, Analysis};
use crate::data::mapl::{FunctionCounts, RelationCounts, Report, SizeCounts};

/// Share of wrong flags, or of comparisons against the flags, that makes training on them meaningless. A checker that
/// differs from another's in corner cases stays well below.
const WRONG: f64 = 0.05;

/// Counts over all rows with intra or inter comparisons.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct InstructionReport {
    /// By function id: intra comparisons that carry it, those in which its arguments differ, inter comparisons up and
    /// down.
    pub functions: BTreeMap<String, FunctionCounts>,
    /// Comparisons by number of instructions of a prompt.
    pub sizes: BTreeMap<usize, SizeCounts>,
    /// Intra comparisons by number of instructions in the better and in the worse prompt.
    pub per_side: BTreeMap<usize, [usize; 2]>,
    /// "At least" against "less than" in the better and in the worse prompts of intra comparisons.
    pub intra_relations: [RelationCounts; 2],
    /// The same in the prompts of inter comparisons up and down.
    pub inter_relations: [RelationCounts; 2],
    pub flags: FlagCounts,
    pub labels: LabelCounts,
    /// Held-out accuracy of rules that see the two prompts of an intra comparison and no response.
    pub cues: Vec<Cue>,
}

/// Recorded flags against the checkers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlagCounts {
    /// Flags of known functions that the checker can decide.
    pub checked: usize,
    pub wrong: usize,
    /// Recorded, but the checker cannot decide: an argument is missing or malformed, or the language unknown.
    pub undecided: usize,
    /// Instructions of functions that do not exist.
    pub unknown: usize,
}

/// Preferred sides against the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LabelCounts {
    /// Intra and inter comparisons with instructions.
    pub checked: usize,
    /// Those that prefer the side meeting less.
    pub contradicted: usize,
    /// Those whose sides meet equally much.
    pub undecided: usize,
}

/// What one row adds.
#[derive(Default)]
struct RowResult {
    flags: FlagCounts,
    labels: LabelCounts,
    wrong: Vec<String>,
    unknown: Vec<String>,
    contradicted: Vec<String>,
}

/// Checks the instructions; `None` if no row has intra or inter comparisons.
pub fn check(corpus: &Corpus, findings: &mut Vec<Finding>) -> Option<InstructionReport> {
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
            let free = PLACES - places.len();
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
    // What is taken for true: the checker's word where it has one, otherwise the record.
    let mut met: Vec<Vec<Option<bool>>> = Vec::with_capacity(group.instructions.len());
    for (i, instruction) in group.instructions.iter().enumerate() {
        let Some(function) = instructions::by_id(&instruction.id) else {
            result.flags.unknown += 1;
            result.unknown.push(format!("instructions[{i}]: {:?}", instruction.id));
            met.push(instruction.satisfied.clone());
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
                            "instructions[{i}] ({}) is recorded as {recorded} for response {response} and checked as \
                             {found}",
                            instruction.id
                        ));
                    }
                }
                (Some(_), None) => result.flags.undecided += 1,
                (None, _) => {}
            }
            flags.push(found.or(recorded));
        }
        met.push(flags);
    }
    for (c, comparison) in group.comparisons.iter().enumerate().filter(|(_, c)| c.kind != Kind::Base) {
        let Some(lead) = lead(group, comparison, &met) else { continue };
        result.labels.checked += 1;
        if lead < 0 {
            result.labels.contradicted += 1;
            result.contradicted.push(format!("comparisons[{c}] ({})", comparison.kind.name()));
        }
        result.labels.undecided += usize::from(lead == 0);
    }
    result
}

/// Instructions met less those failed, summed over the terms with their signs: positive if the preferred side meets
/// more. `None` if no prompt of the comparison carries an instruction with a flag.
fn lead(group: &PreferenceGroup, comparison: &Comparison, met: &[Vec<Option<bool>>]) -> Option<i64> {
    let mut lead = None;
    for term in &comparison.terms {
        for (instruction, flags) in group.instructions.iter().zip(met) {
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
        let level = Level::error_if(count as f64 > WRONG * checked as f64);
        let what = format!(
            "{count} of {checked} recorded flags ({}) are not what the checker finds in the response",
            percent(count, checked)
        );
        let finding = Finding::new(level, "instruction-flags", (count, checked), what)
            .why("comparisons built on wrong flags reward what the prompt did not ask for")
            .advice("build the groups again with `mapl data build`, after the last change of the responses")
            .places(wrong);
        findings.push(finding);
    }
    if unknown_count > 0 {
        let what = format!("{unknown_count} instructions name a function that does not exist here");
        let finding = Finding::new(Level::Warning, "unknown-instructions", (unknown_count, unknown_count), what)
            .why("their flags cannot be checked and are taken as recorded")
            .advice("see the ids of `mapl data build --functions`")
            .places(unknown);
        findings.push(finding);
    }
    let LabelCounts { checked, contradicted: count, .. } = report.labels;
    if count > 0 {
        let level = Level::error_if(count as f64 > WRONG * checked as f64);
        let what = format!(
            "{count} of {checked} intra and inter comparisons ({}) prefer the side that meets fewer instructions",
            percent(count, checked)
        );
        let finding = Finding::new(level, "instruction-labels", (count, checked), what)
            .why("they train the opposite of what the prompts ask for")
            .advice("build the groups again with `mapl data build`, or exchange the signs of these comparisons")
            .places(contradicted);
        findings.push(finding);
    }
}
