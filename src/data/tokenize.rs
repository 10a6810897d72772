//! Tokenises groups and applies the length limit. Reading order:
//!
//! - `encode`: token ids of prompts and responses, and the boundary between them
//! - `lost`: text of a row that is missing from its ids
//! - `remote`: rows that worker processes encode
//! - `limit`: the length limit; `fit`: handling of sequences above it
//! - `prompt`: prompts for generation
//! - `preview`: rows for display, including those that would be dropped
//! - `report`: counts of what was read, kept and dropped
//!
//! Every response has at least one token; every sequence has at most `max_length`; all sequences of one
//! prompt share that prompt's ids exactly. Rows are processed in parallel and returned in order; the result
//! does not depend on the number of threads. A comparison with sides that differ in text but not in ids is
//! dropped.
//!
//! Errors are empty prompts and responses, two BOS tokens at the start, dropping more comparisons than
//! `max_drop_fraction`, and a prompt that is not a prefix of its sequence. In plain text, such prompts are an
//! error only if the share of sequences with one exceeds `max_boundary_mismatch`. In conversations for a
//! reward model, they are never an error.

mod encode;
mod fit;
mod limit;
mod lost;
mod preview;
mod prompt;
mod remote;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::ValueEnum;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::group::PreferenceGroup;
use super::source::{SourceRow, sft_pairs};
use super::tokenized::{SequenceComparison, SequenceTerm, TokenizedGroup};
use super::tokenizer::{Remote, Tokenizer};
use crate::memory::Growth;
use crate::{Error, Result};
pub(super) use encode::Rules;
pub(crate) use encode::{common_prefix, text_of};
pub use limit::LengthLimit;
pub(super) use lost::Lost;
pub use preview::{Preview, preview_rows};
pub use prompt::{EncodedPrompts, encode_prompts, response_text};
pub use report::{Example, Lengths, TokenizeReport};

/// Action for a sequence longer than the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTooLong {
    /// Drop the comparisons that use the sequence
    #[default]
    Drop,
    /// Cut the start of the prompts, by the same number of tokens in all prompts of a row
    TruncatePromptLeft,
    /// Cut the end of the responses, which then have no EOS token
    TruncateCompletionRight,
    /// Stop with an error
    Error,
}

/// Settings of [`tokenize_rows`].
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizeOptions {
    /// Maximum length of a sequence (prompt plus response) in tokens [default: 1024, or the 99th
    /// percentile of longer data, up to 4096 and the model's limit]
    #[arg(long, alias = "max_length", value_name = "TOKENS", value_parser = parse_length)]
    pub max_length: Option<usize>,
    /// Position limit of the model, which bounds every maximum length; `None` for no bound.
    #[arg(skip)]
    #[serde(skip)]
    pub positions: Option<usize>,
    /// Action for longer sequences
    #[arg(long, alias = "on_too_long", value_enum, default_value_t)]
    pub on_too_long: OnTooLong,
    /// Maximum share of comparisons that may be dropped
    #[arg(long, alias = "max_drop_fraction", default_value_t = 0.2, value_name = "SHARE", value_parser = parse_share)]
    pub max_drop_fraction: f64,
    /// Maximum share of plain-text sequences in which tokens merge across the end of the prompt. In
    /// such a sequence, prompt and response are tokenised separately, as in generation. A share
    /// above one half means that prompts usually end inside words. Conversations with such a merge
    /// are an error
    #[arg(long, alias = "max_boundary_mismatch", default_value_t = 0.5, value_name = "SHARE", value_parser = parse_share)]
    pub max_boundary_mismatch: f64,
    /// Accept sequences that start with two BOS tokens
    #[arg(long, alias = "allow_double_bos")]
    pub allow_double_bos: bool,
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        Self {
            max_length: None,
            positions: None,
            on_too_long: OnTooLong::Drop,
            max_drop_fraction: 0.2,
            max_boundary_mismatch: 0.5,
            allow_double_bos: false,
        }
    }
}

impl TokenizeOptions {
    /// The length limit.
    pub fn limit(&self) -> LengthLimit {
        LengthLimit { given: self.max_length, positions: self.positions }
    }

    /// Checks values that were not parsed from the command line.
    pub fn validate(&self) -> Result<()> {
        let named = |flag: &str, why: Result<(), String>| why.map_err(|why| Error::Usage(format!("{flag}: {why}")));
        named("--max-length", self.max_length.map_or(Ok(()), check_length))?;
        named("--max-drop-fraction", check_share(self.max_drop_fraction))?;
        named("--max-boundary-mismatch", check_share(self.max_boundary_mismatch))
    }
}

fn check_length(length: usize) -> Result<(), String> {
    if length < 2 {
        Err(format!("{length} is too short; a prompt and a response need at least 2 tokens"))
    } else {
        Ok(())
    }
}

fn check_share(share: f64) -> Result<(), String> {
    if (0.0..=1.0).contains(&share) { Ok(()) } else { Err(format!("{share} is not between 0 and 1")) }
}

fn parse_length(text: &str) -> Result<usize, String> {
    let length = text.parse().map_err(|_| format!("\"{text}\" is not a whole number"))?;
    check_length(length).map(|()| length)
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| format!("\"{text}\" is not a number"))?;
    check_share(share).map(|()| share)
}

/// Purpose for which rows are tokenised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purpose {
    /// The ids are for a reward model. A reward is read at the last token, so conversations need no boundary
    /// between prompt and response.
    pub reward: bool,
    /// Keeps comparisons whose two sides have equal ids, because every row is scored or shown.
    pub keep_equal_ids: bool,
}

/// Calls [`tokenize_rows_for`] for the training of a policy.
pub fn tokenize_rows(
    rows: Vec<SourceRow>,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<(Vec<TokenizedGroup>, TokenizeReport)> {
    tokenize_rows_for(Purpose::default(), rows, tokenizer, options)
}

/// Tokenises rows. Groups without comparisons are rows for supervised fine-tuning: each response
/// answers the prompt with the same index. A group keeps the comparisons that fit, and is dropped
/// if none fits. In the result, the comparisons of the source group and of the [`TokenizedGroup`]
/// correspond one to one.
pub fn tokenize_rows_for(
    purpose: Purpose,
    rows: Vec<SourceRow>,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<(Vec<TokenizedGroup>, TokenizeReport)> {
    options.validate()?;
    let growth = Growth::default();
    // The smallest index of a row with an error. Rows after it are skipped, because each may run until its
    // time limit, and the error is reported anyway.
    let failed = AtomicUsize::new(usize::MAX);
    let encode = |row: &SourceRow| {
        encode_row(row, tokenizer, options, purpose).and_then(|encoded| {
            let bytes = encoded.lengths().sum::<usize>() * size_of::<u32>();
            growth.add(bytes as u64, || ["token ids".into(), "use fewer rows, or a lower --max-length".into()])?;
            Ok(encoded)
        })
    };
    let encode_in_turn = |(i, row): (usize, &SourceRow)| {
        if i > failed.load(Ordering::Relaxed) {
            return None;
        }
        let outcome = encode(row);
        if outcome.is_err() {
            failed.fetch_min(i, Ordering::Relaxed);
        }
        Some(outcome)
    };
    let before = tokenizer.remote().map(Remote::deaths);
    let mut encoded: Vec<Option<Result<EncodedRow>>> = rows.par_iter().enumerate().map(encode_in_turn).collect();
    // Later rows on other threads may have exhausted the limit of worker deaths before the first bad row was
    // encoded. Rows without a result are encoded again in order, up to the first error, so that the error is
    // the same as on one thread.
    if let (Some(remote), Some((deaths, false))) = (tokenizer.remote(), before)
        && remote.deaths().1
    {
        for (row, outcome) in rows.iter().zip(&mut encoded).filter(|(_, outcome)| !matches!(outcome, Some(Ok(_)))) {
            remote.forget_deaths(deaths);
            let again = encode(row);
            let failed = again.is_err();
            *outcome = Some(again);
            if failed {
                break;
            }
        }
    }
    // Returns the first error in row order, regardless of which thread found an error first. Skipped rows
    // come after it.
    let encoded = encoded.into_iter().flatten().collect::<Result<Vec<_>>>()?;
    let lengths = Lengths::new(encoded.iter().flat_map(EncodedRow::lengths).collect());
    let max = options.limit().of(&lengths);
    let fit = |(row, encoded)| fit_row(row, encoded, tokenizer, options, purpose, max);
    let outcomes: Vec<Result<Outcome>> = rows.par_iter().zip(encoded).map(fit).collect();
    let has_template = tokenizer.template().is_some();
    let mut report = TokenizeReport { lengths, max_length: max, has_template, ..TokenizeReport::default() };
    let mut groups = Vec::with_capacity(outcomes.len());
    let (mut first_dropped, mut first_mismatch) = (None, None);
    for (row, outcome) in rows.into_iter().zip(outcomes) {
        let outcome = outcome?;
        if outcome.report.dropped() > 0 {
            first_dropped.get_or_insert_with(|| place_of(&row));
        }
        if outcome.report.boundary_mismatches > 0 {
            first_mismatch.get_or_insert_with(|| place_of(&row));
        }
        report.add(&outcome.report);
        groups.extend(outcome.fitted.map(|fitted| attach_ids(row.group, fitted)));
    }
    if let Some(row) = first_mismatch
        && report.boundary_mismatches as f64 > options.max_boundary_mismatch * report.plain_sequences as f64
    {
        return Err(row.error(report.boundary_message(options.max_boundary_mismatch)));
    }
    if let (Some(row), Some(why)) = (first_dropped, report.too_many_dropped(options)) {
        return Err(row.error(format!("{why}; this is the first such row")));
    }
    Ok((groups, report))
}

/// A copy of the row without its text, for messages.
fn place_of(row: &SourceRow) -> SourceRow {
    let group = PreferenceGroup::new(row.group.id.clone(), Vec::new(), Vec::new(), Vec::new());
    SourceRow { group, file: row.file.clone(), line: row.line, scores: row.scores }
}

/// Result of one row.
struct Outcome {
    /// `None` if no part of the row fits.
    fitted: Option<fit::Fitted>,
    /// Counts of this row, except its lengths.
    report: TokenizeReport,
}

/// A row as token ids, before the length limit is applied.
struct EncodedRow {
    encoded: encode::Encoded,
    /// Indices (prompt, response) of every sequence.
    pairs: Vec<(usize, usize)>,
}

impl EncodedRow {
    /// Length of each sequence in tokens.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.encoded.sequences.iter().map(|s| self.encoded.length(s))
    }
}

fn encode_row(
    row: &SourceRow,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
    purpose: Purpose,
) -> Result<EncodedRow> {
    let group = &row.group;
    let pairs = if group.comparisons.is_empty() { sft_pairs(group) } else { group.sequences() };
    if pairs.is_empty() {
        return Err(row.error("the row has neither a comparison nor a prompt with a response"));
    }
    let rules = encode::Rules { allow_double_bos: options.allow_double_bos, reward: purpose.reward };
    let encoded = match tokenizer.remote() {
        Some(remote) => remote::encode_row(row, &pairs, tokenizer, remote, rules)?,
        None => encode_here(row, &pairs, tokenizer, rules)?,
    };
    Ok(EncodedRow { encoded, pairs })
}

/// Applies the length limit of `max` tokens to a row.
fn fit_row(
    row: &SourceRow,
    EncodedRow { encoded, pairs }: EncodedRow,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
    purpose: Purpose,
    max: usize,
) -> Result<Outcome> {
    let group = &row.group;
    let is_sft = group.comparisons.is_empty();
    let mut report = TokenizeReport {
        rows_read: 1,
        sequences: pairs.len(),
        plain_sequences: encoded.plain,
        boundary_mismatches: encoded.mismatches,
        messages: encoded.lost.messages,
        lost_messages: encoded.lost.missing,
        first_lost_message: encoded.lost.first.as_ref().map(|what| Example::new(row, what)),
        ..TokenizeReport::default()
    };
    let mut units = if is_sft { fit::single_units(pairs.len()) } else { fit::comparison_units(group, &pairs) };
    report.read = units.len();
    let differs = |(i, unit): (usize, &fit::Unit)| {
        is_sft || !fit::sides_equal(&encoded, unit) || !lost::texts_differ(group, &group.comparisons[i])
    };
    let differs: Vec<bool> = units.iter().enumerate().map(differs).collect();
    report.equal_ids = differs.iter().filter(|&&differs| !differs).count();
    if let Some(first) = differs.iter().position(|&differs| !differs) {
        let kind = group.comparisons[first].kind.name();
        report.first_equal_ids = Some(Example::new(row, format!("comparison {first} ({kind})")));
    }
    if !purpose.keep_equal_ids {
        report.dropped_equal_ids = report.equal_ids;
        let mut differs = differs.iter();
        units.retain(|_| differs.next().copied().unwrap_or(true));
    }
    let mut fitted = fit::fit(encoded, &units, (max, options.on_too_long), tokenizer.bos_id(), &mut report)
        .map_err(|why| row.error(why))?;
    if !purpose.keep_equal_ids {
        let mut kept = fitted.kept.into_iter();
        fitted.kept = differs.iter().map(|&differs| differs && kept.next().unwrap_or(false)).collect();
    }
    report.kept = fitted.kept.iter().filter(|&&kept| kept).count();
    for (comparison, &kept) in group.comparisons.iter().zip(&fitted.kept) {
        report.read_by_kind[comparison.kind.index()] += 1;
        report.kept_by_kind[comparison.kind.index()] += usize::from(kept);
    }
    if report.kept == 0 {
        return Ok(Outcome { fitted: None, report });
    }
    report.rows_kept = 1;
    for sequence in &fitted.sequences {
        report.kept_sequences += 1;
        report.response_tokens += sequence.response_ids.len();
        report.ended += usize::from(encode::ends(&sequence.response_ids, tokenizer)?);
    }
    Ok(Outcome { fitted: Some(fitted), report })
}

/// Encodes the (prompt, response) pairs of a row in this process.
pub(super) fn encode_here(
    row: &SourceRow,
    pairs: &[(usize, usize)],
    tokenizer: &Tokenizer,
    rules: Rules,
) -> Result<encode::Encoded> {
    encode::encode(row, pairs, tokenizer, rules).map_err(|error| match error {
        // The tokenizer file has been loaded, so this error is caused by the text of the row.
        Error::Model { path, why } if path == tokenizer.file() => row.error(format!("{}: {why}", path.display())),
        other => other,
    })
}

/// Attaches token ids to a group and removes its dropped comparisons.
fn attach_ids(mut group: PreferenceGroup, fitted: fit::Fitted) -> TokenizedGroup {
    let mut kept = fitted.kept.iter();
    group.comparisons.retain(|_| kept.next().copied().unwrap_or(false));
    let index = |prompt, response| {
        // All sequences of a kept comparison are kept, so the search cannot fail.
        fitted.sequences.iter().position(|s| (s.prompt, s.response) == (prompt, response)).unwrap_or_default()
    };
    let comparisons = group
        .comparisons
        .iter()
        .map(|c| SequenceComparison {
            kind: c.kind,
            terms: c
                .terms
                .iter()
                .map(|t| SequenceTerm { sequence: index(t.prompt, t.response), sign: t.sign, detached: false })
                .collect(),
            margin: c.margin,
            weight: c.weight,
            detached_clip: None,
        })
        .collect();
    let (prompt_ids, sequences) = (fitted.prompt_ids, fitted.sequences);
    TokenizedGroup { group: Arc::new(group), prompt_ids, sequences, comparisons }
}

#[cfg(test)]
mod tests {
    use super::super::group::{Message, Prompt, Response};
    use super::super::tokenizer::train_bpe;
    use super::*;

    #[test]
    fn every_answer_of_a_conversation_is_trained_and_dropped_separately() {
        let tokenizer = train_bpe(std::iter::repeat_n("Name a bird. A wren.".to_owned(), 9), 270).unwrap();
        let turn = |role: &str, content: &str| Message::new(role, content);
        let first = vec![turn("user", "Name a bird.")];
        let second = [first.clone(), vec![turn("assistant", "A wren."), turn("user", "Name a bird.")]].concat();
        let prompts = vec![Prompt::Messages(first), Prompt::Messages(second)];
        let responses = vec![Response::Message(turn("assistant", "A wren.")); 2];
        let group = PreferenceGroup::new("talk".into(), prompts, responses, Vec::new());
        let row =
            || SourceRow { group: group.clone(), file: Arc::from(std::path::Path::new("t")), line: 1, scores: None };
        let run = |max_length| {
            let options =
                TokenizeOptions { max_length: Some(max_length), max_drop_fraction: 0.5, ..TokenizeOptions::default() };
            tokenize_rows(vec![row()], &tokenizer, &options).unwrap()
        };
        let (groups, report) = run(1024);
        assert_eq!((groups[0].sequences.len(), report.read, report.kept, report.ended), (2, 2, 2, 2));
        assert_eq!(groups[0].sequences[0].response_ids, groups[0].sequences[1].response_ids);
        // The second prompt continues the first answer, so its ids start with the first sequence.
        let opening = [&groups[0].prompt_ids[0][..], &groups[0].sequences[0].response_ids].concat();
        assert!(groups[0].prompt_ids[1].starts_with(&opening));
        let (groups, report) = run(opening.len());
        assert_eq!((groups[0].sequences.len(), report.kept, report.dropped_too_long), (1, 1, 1));
    }
}
