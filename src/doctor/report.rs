//! All results of a check. The serialised keys are the keys of `mapl data check --json`. The text
//! form lists figures by section, then the findings, errors first.

use std::fmt;

use serde::Serialize;

use super::bag_of_words::BagOfWords;
use super::duplicates::Duplicates;
use super::finding::{Finding, escape_control};
use super::giveaway::Giveaways;
use super::instructions::InstructionReport;
use super::interval::Share;
use super::length::Lengths;
use super::overlap::Overlap;
use super::sides::Sides;
use super::tokens::TokenReport;
use crate::data::mapl::RelationCounts;
use crate::data::source::FileReport;
use crate::terminal::counted;

/// Results of all checks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckReport {
    pub files: Vec<FileReport>,
    pub test_files: Vec<FileReport>,
    /// Rows read, and rows that the readers rejected.
    pub rows: usize,
    pub refused_rows: usize,
    /// Comparisons by kind, in the order base, intra, inter.
    pub comparisons: [usize; 3],
    /// Distinct prompts.
    pub prompts: usize,
    /// Data on which held-out accuracies were measured.
    pub held_out: &'static str,
    pub duplicates: Duplicates,
    pub sides: Sides,
    /// Present with test files.
    pub overlap: Option<Overlap>,
    pub length: Vec<Lengths>,
    pub bag_of_words: BagOfWords,
    pub giveaways: Giveaways,
    /// Present with intra or inter comparisons.
    pub instructions: Option<InstructionReport>,
    /// Present with a tokenizer.
    pub tokens: Option<TokenReport>,
    pub test_tokens: Option<TokenReport>,
    /// Number of findings of each level.
    pub errors: usize,
    pub warnings: usize,
    pub findings: Vec<Finding>,
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "data")?;
        for file in self.files.iter().chain(&self.test_files) {
            writeln!(f, "  {}", escape_control(&file.to_string()))?;
        }
        let [base, intra, inter] = self.comparisons;
        writeln!(
            f,
            "  {}, {} refused; comparisons: base {base}, intra {intra}, inter {inter}; {}",
            counted(self.rows, "row"),
            self.refused_rows,
            counted(self.prompts, "distinct prompt")
        )?;
        self.rows_section(f)?;
        self.shortcut_section(f)?;
        if let Some(instructions) = &self.instructions {
            instruction_section(f, instructions)?;
        }
        for (side, tokens) in [("", &self.tokens), (" of the test files", &self.test_tokens)] {
            if let Some(tokens) = tokens {
                token_section(f, side, tokens)?;
            }
        }
        writeln!(f, "\nfindings: {} errors, {} warnings", self.errors, self.warnings)?;
        for finding in &self.findings {
            write!(f, "\n{finding}")?;
        }
        Ok(())
    }
}

impl CheckReport {
    fn rows_section(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |counts: [usize; 3]| counts.iter().sum::<usize>();
        let (duplicates, sides) = (&self.duplicates, &self.sides);
        writeln!(f, "\nrows")?;
        writeln!(
            f,
            "  duplicates       {} exact, {} more ignoring case and white space, {} ids",
            sum(duplicates.exact),
            sum(duplicates.near),
            duplicates.ids
        )?;
        writeln!(f, "  repeated         {} responses under many prompts", duplicates.responses)?;
        writeln!(
            f,
            "  equal sides      {} exact, {} more ignoring case and white space",
            sum(sides.identical),
            sum(sides.nearly_identical)
        )?;
        let conflicts = &sides.conflicts;
        writeln!(f, "  label conflicts  {} cases, {} comparisons cancel", conflicts.cases, conflicts.cancelled)?;
        writeln!(f, "  empty            {} responses, {} prompts", sides.empty_responses, sides.empty_prompts)?;
        let Some(overlap) = &self.overlap else { return Ok(()) };
        writeln!(f, "\ntest rows that training has seen")?;
        writeln!(
            f,
            "  prompts          {} of {} rows exactly, {} ignoring case and white space",
            overlap.prompts_exact, overlap.rows, overlap.prompts_normal
        )?;
        writeln!(f, "  comparisons      {} of {}", overlap.comparisons_seen, overlap.comparisons)?;
        writeln!(f, "  responses        {} of {} rows with long responses", overlap.responses, overlap.long_rows)
    }

    fn shortcut_section(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.length.first().map_or(0, |l| l.chosen_longer + l.rejected_longer + l.ties);
        if pairs == 0 {
            return Ok(());
        }
        writeln!(f, "\nlength, chosen against rejected (95 % intervals)")?;
        for length in &self.length {
            writeln!(
                f,
                "  {:<16} chosen longer {}, shorter {}, equal {}: {}; means {:.1} and {:.1}, difference {}",
                length.unit,
                length.chosen_longer,
                length.rejected_longer,
                length.ties,
                shown(length.longer_share),
                length.mean_chosen,
                length.mean_rejected,
                length.difference.map_or("-".into(), |mean| mean.to_string())
            )?;
        }
        writeln!(
            f,
            "\nseparating chosen from rejected without the prompt: accuracy by {}, chance 50 %",
            self.held_out
        )?;
        for length in &self.length {
            writeln!(f, "  {:<16} {}", format!("length, {}", length.unit), shown(length.accuracy))?;
        }
        let bag = &self.bag_of_words;
        writeln!(
            f,
            "  {:<16} {} of {} pairs, {} words",
            "bag of words",
            shown(bag.accuracy),
            bag.accuracy.map_or(0, |a| a.of),
            bag.words
        )?;
        for position in &self.giveaways.positions {
            writeln!(f, "  {:<16} {}", position.position, shown(position.accuracy))?;
        }
        if self.giveaways.offenders.is_empty() {
            return writeln!(
                f,
                "  none of the {} tested starts and ends of responses indicates a side",
                self.giveaways.tested
            );
        }
        writeln!(f, "  starts and ends of responses that indicate a side ({} tested):", self.giveaways.tested)?;
        for o in &self.giveaways.offenders {
            writeln!(
                f,
                "    {:<15} {:<26} chosen {}, rejected {}; by prompt {} to {}, p {}",
                o.position,
                format!("{:?}", o.text),
                o.chosen,
                o.rejected,
                o.prompts_chosen,
                o.prompts_rejected,
                if o.p_value < 1e-300 { "below 1e-300".into() } else { format!("{:.1e}", o.p_value) }
            )?;
        }
        Ok(())
    }
}

fn shown(share: Option<Share>) -> String {
    share.map_or("-".into(), |share| share.to_string())
}

fn instruction_section(f: &mut fmt::Formatter<'_>, report: &InstructionReport) -> fmt::Result {
    writeln!(f, "\ninstructions")?;
    if !report.functions.is_empty() {
        writeln!(f, "  {:<44} {:>7} {:>7} {:>7} {:>7}", "function", "intra", "changed", "up", "down")?;
    }
    for (id, c) in &report.functions {
        writeln!(f, "  {:<44} {:>7} {:>7} {:>7} {:>7}", escape_control(id), c.intra, c.changed, c.up, c.down)?;
    }
    let sides: Vec<String> = report.per_side.iter().map(|(k, [a, b])| format!("{k}: {a} and {b}")).collect();
    if !sides.is_empty() {
        writeln!(f, "  intra prompts by number of instructions, better and worse: {}", sides.join(", "))?;
    }
    let relation = |counts: RelationCounts| {
        let share = counts.share().map_or("-".into(), super::finding::share_percent);
        format!("{share} of {}", counts.at_least + counts.less_than)
    };
    let ([better, worse], [up, down]) = (report.intra_relations, report.inter_relations);
    writeln!(f, "  \"at least\": better {}, worse {}", relation(better), relation(worse))?;
    writeln!(f, "  \"at least\": inter up {}, down {}", relation(up), relation(down))?;
    let (flags, labels) = (report.flags, report.labels);
    writeln!(
        f,
        "  flags: {} checked, {} wrong, {} undecided; {} instructions unknown",
        flags.checked, flags.wrong, flags.undecided, flags.unknown
    )?;
    writeln!(
        f,
        "  labels: {} checked, {} contradict the flags, {} undecided",
        labels.checked, labels.contradicted, labels.undecided
    )?;
    if !report.cues.is_empty() {
        writeln!(f, "  predicting the preferred prompt without the response, 5-fold by prompt, chance 50 %:")?;
    }
    for cue in &report.cues {
        writeln!(f, "    {:<32} {}", cue.cue, shown(cue.accuracy))?;
    }
    Ok(())
}

fn token_section(f: &mut fmt::Formatter<'_>, side: &str, tokens: &TokenReport) -> fmt::Result {
    let lengths = tokens.lengths;
    writeln!(f, "\ntokens{side}")?;
    writeln!(
        f,
        "  {} sequences: p50 {}, p90 {}, p99 {}, longest {}; {} rows refused",
        tokens.sequences, lengths.p50, lengths.p90, lengths.p99, lengths.max, tokens.refused
    )?;
    writeln!(
        f,
        "  longer than {} tokens: {} sequences, {} of {} comparisons",
        tokens.max_length, tokens.too_long, tokens.comparisons_too_long, tokens.comparisons
    )?;
    writeln!(f, "  end with an EOS token: {} of {}", tokens.ended, tokens.sequences)?;
    writeln!(
        f,
        "  tokens merge across the end of the prompt: {} of {} plain-text sequences",
        tokens.merged, tokens.plain
    )
}
