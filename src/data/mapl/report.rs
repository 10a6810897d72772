//! Counts of a construction: what was built, what was dropped and why, and the balance between better and worse
//! prompts and between the two responses. Reports of groups can be added in any order; `table` prints them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::DropReason;
use crate::data::group::{Comparison, Direction, Instruction, Kind, PreferenceGroup, Rule, Term};
use crate::data::instructions::Relation;
use crate::terminal::counted;

/// Counts of one instruction function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionCounts {
    /// Intra comparisons that use it.
    pub intra: u64,
    /// Intra comparisons with different arguments of it in their two prompts.
    pub changed: u64,
    /// Inter comparisons with direction up that use it.
    pub up: u64,
    /// Inter comparisons with direction down that use it.
    pub down: u64,
    /// Draws that found no arguments with the required flags and without a contradiction to other instructions.
    pub infeasible: u64,
    /// Rows with a prompt that already mentions its subject.
    pub mentioned: u64,
}

/// Two-sided instructions, counted by relation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RelationCounts {
    /// Number of relations `at least`.
    pub at_least: u64,
    /// Number of relations `less than`.
    pub less_than: u64,
}

impl RelationCounts {
    /// Share of "at least"; `None` if there are no instructions.
    pub fn share(self) -> Option<f64> {
        let all = self.at_least + self.less_than;
        (all > 0).then(|| self.at_least as f64 / all as f64)
    }

    fn add(&mut self, instructions: &[&Instruction]) {
        for instruction in instructions {
            match Relation::of(&instruction.kwargs) {
                Some(Relation::AtLeast) => self.at_least += 1,
                Some(Relation::LessThan) => self.less_than += 1,
                None => {}
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.at_least += other.at_least;
        self.less_than += other.less_than;
    }
}

/// Number of added instructions, and the number that a response meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SatisfiedCounts {
    pub satisfied: u64,
    pub of: u64,
}

impl SatisfiedCounts {
    /// Share of satisfied instructions; `None` if there are none.
    pub fn share(self) -> Option<f64> {
        (self.of > 0).then(|| self.satisfied as f64 / self.of as f64)
    }
}

/// Comparisons with a given number of instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SizeCounts {
    /// Intra comparisons.
    pub intra: u64,
    /// Inter comparisons upward.
    pub up: u64,
    /// Inter comparisons downward.
    pub down: u64,
}

/// Counts over any number of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Rows read.
    pub rows: u64,
    /// Groups with at least one comparison.
    pub groups: u64,
    /// Groups with an intra or inter comparison.
    pub extended: u64,
    /// Prompts of the built groups.
    pub prompts: u64,
    /// Distinct (prompt, response) pairs that comparisons use.
    pub sequences: u64,
    /// Comparisons by kind, in the order base, intra, inter.
    pub comparisons: [u64; 3],
    /// Intra comparisons by rule: A, B, bare.
    pub rules: [u64; 3],
    /// Inter comparisons up and down.
    pub directions: [u64; 2],
    /// Counts by function id.
    pub functions: BTreeMap<String, FunctionCounts>,
    /// Dropped comparisons and rows, by kind or "row", then by reason.
    pub dropped: BTreeMap<String, BTreeMap<String, u64>>,
    /// Comparisons by number of instructions k.
    pub sizes: BTreeMap<usize, SizeCounts>,
    /// Intra comparisons, by the number of instructions with different arguments in the two
    /// prompts.
    pub changed: BTreeMap<usize, u64>,
    /// Relations in the better and in the worse prompts of intra comparisons.
    pub intra_relations: [RelationCounts; 2],
    /// Relations in the prompts of inter comparisons up and down.
    pub inter_relations: [RelationCounts; 2],
    /// Added instructions met by the chosen and by the rejected response of the row.
    pub satisfied: [SatisfiedCounts; 2],
}

impl Report {
    /// The counts on one line.
    pub fn summary(&self) -> String {
        let [base, intra, inter] = self.comparisons;
        let dropped: u64 = self.dropped.values().flat_map(BTreeMap::values).sum();
        let more = if dropped > 0 { format!("; {dropped} not built") } else { String::new() };
        format!(
            "{} from {}, with {base} base, {intra} intra and {inter} inter comparisons{more}; `mapl data \
             build` prints the counts by function",
            counted(self.groups, "group"),
            counted(self.rows, "row")
        )
    }

    /// Adds the counts of another report.
    pub fn merge(&mut self, other: &Report) {
        self.rows += other.rows;
        self.groups += other.groups;
        self.extended += other.extended;
        self.prompts += other.prompts;
        self.sequences += other.sequences;
        let sums = self.comparisons.iter_mut().chain(&mut self.rules).chain(&mut self.directions);
        for (sum, more) in sums.zip(other.comparisons.iter().chain(&other.rules).chain(&other.directions)) {
            *sum += more;
        }
        for (id, more) in &other.functions {
            let counts = self.function(id);
            counts.intra += more.intra;
            counts.changed += more.changed;
            counts.up += more.up;
            counts.down += more.down;
            counts.infeasible += more.infeasible;
            counts.mentioned += more.mentioned;
        }
        for (what, reasons) in &other.dropped {
            for (reason, count) in reasons {
                *self.dropped.entry(what.clone()).or_default().entry(reason.clone()).or_default() += count;
            }
        }
        for (&k, more) in &other.sizes {
            let counts = self.sizes.entry(k).or_default();
            counts.intra += more.intra;
            counts.up += more.up;
            counts.down += more.down;
        }
        for (&changed, more) in &other.changed {
            *self.changed.entry(changed).or_default() += more;
        }
        for side in 0..2 {
            self.intra_relations[side].merge(other.intra_relations[side]);
            self.inter_relations[side].merge(other.inter_relations[side]);
            self.satisfied[side].satisfied += other.satisfied[side].satisfied;
            self.satisfied[side].of += other.satisfied[side].of;
        }
    }

    pub(super) fn count_infeasible(&mut self, id: &str) {
        self.function(id).infeasible += 1;
    }

    pub(super) fn count_mentioned(&mut self, id: &str) {
        self.function(id).mentioned += 1;
    }

    pub(super) fn drop(&mut self, kind: Kind, reason: DropReason) {
        self.drop_named(kind.name(), reason);
    }

    pub(super) fn drop_row(&mut self, reason: DropReason) {
        self.drop_named("row", reason);
    }

    fn drop_named(&mut self, what: &str, reason: DropReason) {
        let reasons = self.dropped.entry(what.to_owned()).or_default();
        *reasons.entry(reason.reason().to_owned()).or_default() += 1;
    }

    fn function(&mut self, id: &str) -> &mut FunctionCounts {
        self.functions.entry(id.to_owned()).or_default()
    }

    /// Adds the counts of a finished group.
    pub fn count_group(&mut self, group: &PreferenceGroup) {
        self.groups += u64::from(!group.comparisons.is_empty());
        self.extended += u64::from(group.comparisons.iter().any(|c| c.kind != Kind::Base));
        self.prompts += group.prompts.len() as u64;
        self.sequences += group.sequences().len() as u64;
        for comparison in &group.comparisons {
            self.comparisons[comparison.kind.index()] += 1;
            match comparison.kind {
                Kind::Base => {}
                Kind::Intra => self.count_intra(group, comparison),
                Kind::Inter => self.count_inter(group, comparison),
            }
        }
        self.count_satisfied(group);
    }

    fn count_intra(&mut self, group: &PreferenceGroup, comparison: &Comparison) {
        match comparison.rule {
            Some(Rule::A) => self.rules[0] += 1,
            Some(Rule::B) => self.rules[1] += 1,
            Some(Rule::Bare) => self.rules[2] += 1,
            None => {}
        }
        let of = |positive: bool| {
            let term = comparison.terms.iter().find(|t| (t.sign > 0) == positive);
            term.map_or_else(Vec::new, |t| instructions_of(group, t.prompt))
        };
        let (better, worse) = (of(true), of(false));
        for (side, instructions) in [&better, &worse].into_iter().enumerate() {
            self.intra_relations[side].add(instructions);
        }
        self.sizes.entry(better.len().max(worse.len())).or_default().intra += 1;
        // The bare prompt has no instructions; every instruction of the other prompt counts as
        // changed.
        let (longer, shorter) = if better.len() >= worse.len() { (better, worse) } else { (worse, better) };
        let mut changed = 0;
        for (i, instruction) in longer.iter().enumerate() {
            let differs = shorter.get(i).is_none_or(|other| other.kwargs != instruction.kwargs);
            let counts = self.function(&instruction.id);
            counts.intra += 1;
            counts.changed += u64::from(differs);
            changed += usize::from(differs);
        }
        *self.changed.entry(changed).or_default() += 1;
    }

    fn count_inter(&mut self, group: &PreferenceGroup, comparison: &Comparison) {
        // The first term has the instructed prompt; see the order of terms in `compare`.
        let Some(&Term { prompt, .. }) = comparison.terms.first() else { return };
        let instructions = instructions_of(group, prompt);
        let (side, up) = match comparison.direction {
            Some(Direction::Up) => (0, true),
            Some(Direction::Down) => (1, false),
            None => return,
        };
        self.directions[side] += 1;
        self.inter_relations[side].add(&instructions);
        let size = self.sizes.entry(instructions.len()).or_default();
        *(if up { &mut size.up } else { &mut size.down }) += 1;
        for instruction in instructions {
            let counts = self.function(&instruction.id);
            *(if up { &mut counts.up } else { &mut counts.down }) += 1;
        }
    }

    fn count_satisfied(&mut self, group: &PreferenceGroup) {
        let Some(base) = group.comparisons.iter().find(|c| c.kind == Kind::Base && c.terms.len() == 2) else { return };
        for term in &base.terms {
            let side = usize::from(term.sign < 0);
            for flag in group.instructions.iter().filter_map(|i| i.satisfied.get(term.response).copied().flatten()) {
                self.satisfied[side].of += 1;
                self.satisfied[side].satisfied += u64::from(flag);
            }
        }
    }
}

fn instructions_of(group: &PreferenceGroup, prompt: usize) -> Vec<&Instruction> {
    group.instructions.iter().filter(|i| i.prompt == prompt).collect()
}
