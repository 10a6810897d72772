//! Counts of tokenisation; `Display` gives the table of the start-up log.

use std::fmt;

use serde::Serialize;

use super::super::group::Kind;
use super::super::source::SourceRow;
use super::TokenizeOptions;
use crate::terminal::counted;

/// Percentiles of the sequence lengths before the limit, in tokens, prompt included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// Median.
    pub p50: usize,
    /// 90 % quantile.
    pub p90: usize,
    /// 99 % quantile.
    pub p99: usize,
    /// Longest.
    pub max: usize,
}

impl Lengths {
    /// Percentiles by nearest rank; all 0 for an empty list.
    pub fn new(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let rank = |percent: usize| {
            let rank = (lengths.len() * percent).div_ceil(100).max(1);
            lengths.get(rank - 1).copied().unwrap_or(0)
        };
        Self { p50: rank(50), p90: rank(90), p99: rank(99), max: rank(100) }
    }
}

/// A row and a finding in it, for a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// File, line and id of the row.
    pub row: String,
    /// What the example shows.
    pub what: String,
}

impl Example {
    pub(super) fn new(row: &SourceRow, what: impl Into<String>) -> Self {
        Self { row: format!("{}:{} (id {})", row.file.display(), row.line, row.group.id), what: what.into() }
    }
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.row, self.what)
    }
}

/// Counts of one call of [`super::tokenize_rows`]. In supervised fine-tuning, "comparisons" are
/// single responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenizeReport {
    /// Rows that were read.
    pub rows_read: usize,
    /// Rows with at least one kept comparison.
    pub rows_kept: usize,
    /// Comparisons read.
    pub read: usize,
    /// Comparisons kept.
    pub kept: usize,
    /// Comparisons read of each kind, in the order of [`Kind::ALL`].
    pub read_by_kind: [usize; 3],
    /// Comparisons kept of each kind.
    pub kept_by_kind: [usize; 3],
    /// Comparisons dropped because a sequence is above the limit.
    pub dropped_too_long: usize,
    /// Comparisons dropped because they would not fit even with the maximum cut.
    pub dropped_no_room: usize,
    /// Comparisons dropped because cutting made their sides equal.
    pub dropped_sides_equal: usize,
    /// Comparisons with sides that differ in text but not in ids.
    pub equal_ids: usize,
    /// Comparisons dropped because of equal ids; 0 if the rows are only scored or shown.
    pub dropped_equal_ids: usize,
    /// The first comparison with equal ids.
    pub first_equal_ids: Option<Example>,
    /// Texts of messages, and tools, that rendered conversations should contain.
    pub messages: usize,
    /// Those of `messages` that the rendered conversation lacks.
    pub lost_messages: usize,
    /// The first text that a rendered conversation lacks, with its role.
    pub first_lost_message: Option<Example>,
    /// Prompts cut on the left.
    pub truncated_prompts: usize,
    /// Responses cut on the right; they have no EOS token.
    pub truncated_responses: usize,
    /// Distinct sequences read.
    pub sequences: usize,
    /// Distinct plain-text sequences read.
    pub plain_sequences: usize,
    /// Whether the model folder has a chat template, which plain text does not use.
    #[serde(skip)]
    pub has_template: bool,
    /// Plain-text sequences with tokens that merge across the end of the prompt.
    pub boundary_mismatches: usize,
    /// Distinct sequences kept.
    pub kept_sequences: usize,
    /// Response tokens of the kept sequences.
    pub response_tokens: usize,
    /// Kept sequences with a response that ends with an EOS token.
    pub ended: usize,
    /// Length percentiles of all sequences read.
    pub lengths: Lengths,
    /// Maximum length in use, in tokens; the report of an empty list has 0.
    pub max_length: usize,
}

/// Advice for comparisons whose sides have equal ids.
const EQUAL_IDS: &str = "pass a template that keeps this text with --chat-template-path, or correct the rows";

impl TokenizeReport {
    /// Comparisons that were not kept.
    pub fn dropped(&self) -> usize {
        self.read - self.kept
    }

    /// Adds the counts of another report; `lengths` and `max_length` are unchanged.
    pub(super) fn add(&mut self, other: &Self) {
        self.rows_read += other.rows_read;
        self.rows_kept += other.rows_kept;
        self.read += other.read;
        self.kept += other.kept;
        for kind in Kind::ALL {
            self.read_by_kind[kind.index()] += other.read_by_kind[kind.index()];
            self.kept_by_kind[kind.index()] += other.kept_by_kind[kind.index()];
        }
        self.dropped_too_long += other.dropped_too_long;
        self.dropped_no_room += other.dropped_no_room;
        self.dropped_sides_equal += other.dropped_sides_equal;
        self.equal_ids += other.equal_ids;
        self.dropped_equal_ids += other.dropped_equal_ids;
        self.messages += other.messages;
        self.lost_messages += other.lost_messages;
        for (first, other) in [
            (&mut self.first_equal_ids, &other.first_equal_ids),
            (&mut self.first_lost_message, &other.first_lost_message),
        ] {
            *first = first.take().or_else(|| other.clone());
        }
        self.truncated_prompts += other.truncated_prompts;
        self.truncated_responses += other.truncated_responses;
        self.sequences += other.sequences;
        self.plain_sequences += other.plain_sequences;
        self.boundary_mismatches += other.boundary_mismatches;
        self.kept_sequences += other.kept_sequences;
        self.response_tokens += other.response_tokens;
        self.ended += other.ended;
    }

    /// Noun for the items counted by `read` and `kept`.
    fn noun(&self) -> &'static str {
        if self.read_by_kind == [0; 3] { "responses" } else { "comparisons" }
    }

    /// Lists the drop reasons that occurred, with their counts.
    fn reasons(&self) -> String {
        let all = [
            (self.dropped_too_long, "too long"),
            (self.dropped_no_room, "too long even after cutting"),
            (self.dropped_sides_equal, "sides equal after cutting"),
            (self.dropped_equal_ids, "sides with equal ids"),
        ];
        let met: Vec<String> =
            all.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
        met.join(", ")
    }

    pub(super) fn boundary_message(&self, limit: f64) -> String {
        format!(
            "tokens merge across the end of the prompt in {} of {} plain-text sequences ({} %), above \
             --max-boundary-mismatch {limit}; this is the first such row; start responses with the white space that \
             separates them from the prompt, or raise the limit",
            self.boundary_mismatches,
            self.plain_sequences,
            percent_above(self.boundary_mismatches, self.plain_sequences, limit)
        )
    }

    /// Returns the error message if too many comparisons are dropped for training.
    pub fn too_many_dropped(&self, options: &TokenizeOptions) -> Option<String> {
        let all = self.kept == 0 && self.read > 0;
        let many = self.dropped() as f64 > options.max_drop_fraction * self.read as f64;
        (all || many).then(|| self.drop_message(options))
    }

    pub(super) fn drop_message(&self, options: &TokenizeOptions) -> String {
        let (dropped, read, noun, reasons) = (self.dropped(), self.read, self.noun(), self.reasons());
        let what = if self.kept == 0 {
            format!("all {read} {noun} were dropped ({reasons}), so nothing is left")
        } else {
            let limit = options.max_drop_fraction;
            let share = percent_above(dropped, read, limit);
            format!(
                "{dropped} of {read} {noun} ({share} %) were dropped ({reasons}), above --max-drop-fraction {limit}"
            )
        };
        let mut advice = Vec::new();
        if self.dropped_equal_ids < dropped {
            advice.push(format!(
                "raise --max-length {} (the longest sequence has {} tokens) or choose another --on-too-long",
                self.max_length, self.lengths.max
            ));
        }
        if self.dropped_equal_ids > 0 {
            advice.push(format!(
                "the ids lack the text in which the sides differ: look at them with `mapl data show`, and {EQUAL_IDS}"
            ));
        }
        format!("{what}; {}", advice.join("; "))
    }

    /// Note on plain text for a model with a chat template.
    pub fn bare_text(&self) -> Option<String> {
        (self.has_template && self.plain_sequences > 0).then(|| {
            format!(
                "{} of {} sequences are plain text, which is tokenised without the chat template of the model folder; \
                 to format it as conversations, pass --apply-chat-template",
                self.plain_sequences, self.sequences
            )
        })
    }

    /// Warnings about text of the rows that is missing from their ids.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(first) = &self.first_lost_message {
            warnings.push(format!(
                "the chat template leaves out or changes the text of {} of {} messages ({:.1} %), so the model never \
                 reads it; first: {first}; look at the rows with `mapl data show`, or pass another template with \
                 --chat-template-path",
                self.lost_messages,
                self.messages,
                percent(self.lost_messages, self.messages)
            ));
        }
        if let Some(first) = &self.first_equal_ids {
            let fate = if self.dropped_equal_ids > 0 { "they are dropped" } else { "their scores are equal" };
            warnings.push(format!(
                "the sides of {} of {} comparisons ({:.1} %) differ in text but have equal ids; {fate}; first: \
                 {first}; {EQUAL_IDS}",
                self.equal_ids,
                self.read,
                percent(self.equal_ids, self.read)
            ));
        }
        warnings
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// Formats a share above `limit` as a percentage, with enough decimals to differ from the limit.
fn percent_above(part: usize, whole: usize, limit: f64) -> String {
    let (share, limit) = (percent(part, whole), 100.0 * limit);
    let with = |digits: usize| format!("{share:.digits$}");
    (1..=12).map(with).find(|text| text.parse::<f64>().is_ok_and(|shown| shown > limit)).unwrap_or_else(|| with(15))
}

impl fmt::Display for TokenizeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rows          {} read, {} kept", self.rows_read, self.rows_kept)?;
        write!(f, "{:<13} {} read, {} kept", self.noun(), self.read, self.kept)?;
        let kinds: Vec<String> = Kind::ALL
            .iter()
            .filter(|kind| self.read_by_kind[kind.index()] > 0)
            .map(|kind| format!("{} {}", kind.name(), self.kept_by_kind[kind.index()]))
            .collect();
        if !kinds.is_empty() {
            write!(f, " ({})", kinds.join(", "))?;
        }
        if self.dropped() > 0 {
            write!(f, "; dropped: {}", self.reasons())?;
        }
        writeln!(f)?;
        if self.truncated_prompts + self.truncated_responses > 0 {
            let (prompts, responses) = (self.truncated_prompts, self.truncated_responses);
            writeln!(
                f,
                "cut           {} on the left, {} on the right (no EOS token)",
                counted(prompts, "prompt"),
                counted(responses, "response")
            )?;
        }
        let Lengths { p50, p90, p99, max } = self.lengths;
        writeln!(f, "tokens        per sequence, before the limit: p50 {p50}, p90 {p90}, p99 {p99}, longest {max}")?;
        writeln!(
            f,
            "in the loss   {} in {}; {:.1} % end with an EOS token",
            counted(self.response_tokens, "response token"),
            counted(self.kept_sequences, "sequence"),
            percent(self.ended, self.kept_sequences)
        )?;
        if self.boundary_mismatches > 0 {
            let (merged, plain) = (self.boundary_mismatches, self.plain_sequences);
            writeln!(
                f,
                "boundary      tokens merge across the end of the prompt in {merged} of {plain} plain-text sequences; \
                 prompt and response are tokenised separately there"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Lengths, TokenizeOptions, TokenizeReport, percent_above};

    #[test]
    fn a_share_above_a_limit_is_printed_above_it() {
        assert_eq!(percent_above(2004, 10_000, 0.2), "20.04");
        assert_eq!(percent_above(200_001, 1_000_000, 0.2), "20.0001");
        assert_eq!(percent_above(1, 2, 0.2), "50.0");
        let report = TokenizeReport { read: 3, dropped_too_long: 3, ..TokenizeReport::default() };
        let text = report.drop_message(&TokenizeOptions { max_drop_fraction: 1.0, ..TokenizeOptions::default() });
        assert!(text.starts_with("all 3 ") && text.contains("3 too long") && !text.contains("above"), "{text}");
        let report = TokenizeReport { read: 10_000, kept: 7_996, dropped_too_long: 2004, ..TokenizeReport::default() };
        let text = report.drop_message(&TokenizeOptions::default());
        assert!(text.contains("(20.04 %) were dropped (2004 too long), above --max-drop-fraction 0.2"), "{text}");
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        assert_eq!(Lengths::new((1..=200).rev().collect()), Lengths { p50: 100, p90: 180, p99: 198, max: 200 });
        assert_eq!(Lengths::new(vec![7]), Lengths { p50: 7, p90: 7, p99: 7, max: 7 });
        assert_eq!(Lengths::new(Vec::new()), Lengths::default());
    }
}
