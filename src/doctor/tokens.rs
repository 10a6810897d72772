//! The rows after tokenisation with the chat template: rows that training would reject, sequences that are
//! too long, comparisons with sides of equal ids, messages that the template leaves out, and responses
//! without an EOS token. Without EOS tokens a policy does not learn to stop, and a reward model is trained at
//! a different position from the one that it scores later.

use rayon::prelude::*;
use serde::Serialize;

use super::WithTokenizer;
use super::corpus::Corpus;
use super::finding::{Finding, Level, MAX_PLACES, Place, percent};
use super::giveaway::Position;
use super::length::PairLengths;
use crate::data::tokenize::{Lengths, OnTooLong, Purpose, TokenizeOptions, TokenizeReport, tokenize_rows_for};
use crate::{Error, Result};

/// Minimum share of responses that end with an EOS token. Only responses cut at a length limit should lack
/// one.
const MIN_ENDED: f64 = 0.99;

/// Tokenisation results of one data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TokenReport {
    /// Distinct sequences (prompt and response), and their lengths in tokens.
    pub sequences: usize,
    pub lengths: Lengths,
    /// Sequences with a response that ends with an EOS token.
    pub ended: usize,
    pub max_length: usize,
    /// Number of sequences longer than `max_length`, of all comparisons, and of comparisons with such a
    /// sequence.
    pub too_long: usize,
    pub comparisons: usize,
    pub comparisons_too_long: usize,
    /// Number of plain-text sequences, and of those in which tokens merge across the end of the prompt.
    pub plain: usize,
    pub merged: usize,
    /// Comparisons with sides that differ in text but not in ids.
    pub equal_ids: usize,
    /// Number of messages of conversations, and of those whose text the chat template leaves out or changes.
    pub messages: usize,
    pub lost_messages: usize,
    /// Rows that cannot be tokenised.
    pub refused: usize,
}

/// Report, and token data for other checks.
pub(super) struct Tokens {
    pub report: TokenReport,
    pub lengths: PairLengths,
    /// First tokens of the chosen and the rejected response of every pair, and their last tokens before the EOS
    /// token.
    pub first: Vec<[String; 2]>,
    pub last: Vec<[String; 2]>,
}

/// First rows of each finding.
struct Places {
    refused: Vec<Place>,
    open: Vec<Place>,
    long: Vec<Place>,
    equal: Vec<Place>,
    lost: Vec<Place>,
}

/// Tokenised row.
struct RowTokens {
    /// Sequences in the order of the tokenised group.
    sequences: Vec<SequenceTokens>,
    counts: TokenizeReport,
}

struct SequenceTokens {
    at: (usize, usize),
    /// Number of tokens of prompt and response together, and of the response.
    lengths: [usize; 2],
    ends: [String; 2],
}

/// Tokenises every row. `side` names the rows in findings: `training` or `test`.
///
/// # Errors
/// Problems that affect every row: no chat template or no EOS token.
pub(super) fn check(
    corpus: &Corpus,
    side: &str,
    with: &WithTokenizer<'_>,
    findings: &mut Vec<Finding>,
) -> Result<Tokens> {
    let rows: Vec<Result<RowTokens>> =
        (0..corpus.rows.len()).into_par_iter().map(|row| row_tokens(corpus, row, with)).collect();
    let found = rows.iter().flatten().flat_map(|row| row.sequences.iter().map(|s| s.lengths[0]));
    let lengths = Lengths::new(found.collect());
    let max_length = with.limit.of(&lengths);
    let pairs = corpus.pairs.len();
    let mut tokens = Tokens {
        report: TokenReport { max_length, lengths, ..TokenReport::default() },
        lengths: vec![None; pairs],
        first: vec![Default::default(); pairs],
        last: vec![Default::default(); pairs],
    };
    let report = &mut tokens.report;
    let (mut refused, mut long, mut open) = (Vec::new(), Vec::new(), Vec::new());
    let (mut equal, mut lost) = (Vec::new(), Vec::new());
    let mut known: Vec<Option<RowTokens>> = Vec::with_capacity(rows.len());
    for (row, outcome) in rows.into_iter().enumerate() {
        let outcome = match outcome {
            Ok(tokens) => tokens,
            Err(error @ Error::Data { .. }) => {
                report.refused += 1;
                if refused.len() < MAX_PLACES {
                    refused.push(Place::of_error(&error));
                }
                known.push(None);
                continue;
            }
            Err(other) => return Err(other),
        };
        report.sequences += outcome.sequences.len();
        let counts = &outcome.counts;
        report.ended += counts.ended;
        report.plain += counts.plain_sequences;
        report.merged += counts.boundary_mismatches;
        report.equal_ids += counts.equal_ids;
        report.messages += counts.messages;
        report.lost_messages += counts.lost_messages;
        for (first, places) in [(&counts.first_equal_ids, &mut equal), (&counts.first_lost_message, &mut lost)] {
            places.extend(first.as_ref().map(|first| Place::row(corpus, row).with(&*first.what)));
        }
        let too_long = |s: &&SequenceTokens| s.lengths[0] > max_length;
        report.too_long += outcome.sequences.iter().filter(too_long).count();
        if counts.ended < outcome.sequences.len() {
            open.push(Place::row(corpus, row));
        }
        for comparison in &corpus.rows[row].group.comparisons {
            report.comparisons += 1;
            let uses = |s: &&SequenceTokens| comparison.terms.iter().any(|t| (t.prompt, t.response) == s.at);
            if let Some(longest) = outcome.sequences.iter().filter(uses).filter(too_long).map(|s| s.lengths[0]).max() {
                report.comparisons_too_long += 1;
                if long.len() < MAX_PLACES {
                    long.push(Place::row(corpus, row).with(format!("{longest} tokens")));
                }
            }
        }
        known.push(Some(outcome));
    }
    for (i, pair) in corpus.pairs.iter().enumerate() {
        let Some(row) = &known[pair.row] else { continue };
        let of = |side: usize| row.sequences.iter().find(|s| s.at == (pair.prompts[side], pair.responses[side]));
        let [Some(chosen), Some(rejected)] = [0, 1].map(of) else { continue };
        tokens.lengths[i] = Some([chosen.lengths[1], rejected.lengths[1]]);
        tokens.first[i] = [chosen, rejected].map(|s| s.ends[0].clone());
        tokens.last[i] = [chosen, rejected].map(|s| s.ends[1].clone());
    }
    let places = Places { refused, open, long, equal, lost };
    add_findings(&tokens.report, side, corpus.rows.len(), places, with.reward, findings);
    Ok(tokens)
}

/// Returns the positions of a response that exist only with a tokenizer.
pub(super) fn positions(train: &Tokens, test: Option<&Tokens>) -> [Position; 2] {
    [
        Position { name: "first token", train: train.first.clone(), test: test.map(|t| t.first.clone()) },
        Position { name: "last token", train: train.last.clone(), test: test.map(|t| t.last.clone()) },
    ]
}

fn row_tokens(corpus: &Corpus, row: usize, with: &WithTokenizer<'_>) -> Result<RowTokens> {
    let tokenizer = with.tokenizer;
    // Limits are checked here over all rows, so tokenising a single row must never drop it.
    let options = TokenizeOptions {
        max_length: Some(usize::MAX),
        positions: None,
        on_too_long: OnTooLong::Drop,
        max_drop_fraction: 1.0,
        max_boundary_mismatch: 1.0,
        allow_double_bos: false,
    };
    let purpose = Purpose { reward: with.reward, keep_equal_ids: true };
    let (groups, report) = tokenize_rows_for(purpose, vec![corpus.rows[row].clone()], tokenizer, &options)?;
    let mut sequences = Vec::with_capacity(report.sequences);
    for group in &groups {
        for sequence in &group.sequences {
            let prompt = group.prompt_ids[sequence.prompt].len();
            let response = &sequence.response_ids;
            let name = |id: Option<&u32>| id.and_then(|&id| tokenizer.token(id)).unwrap_or_default();
            let mut words = &response[..];
            while let Some((last, before)) = words.split_last()
                && (tokenizer.end_ids().contains(last) || tokenizer.decode(&[*last])?.trim().is_empty())
            {
                words = before;
            }
            sequences.push(SequenceTokens {
                at: (sequence.prompt, sequence.response),
                lengths: [prompt + response.len(), response.len()],
                ends: [name(response.first()), name(words.last())],
            });
        }
    }
    Ok(RowTokens { sequences, counts: report })
}

fn add_findings(
    report: &TokenReport,
    side: &str,
    rows: usize,
    places: Places,
    reward: bool,
    findings: &mut Vec<Finding>,
) {
    let Places { refused, open, long, equal, lost } = places;
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let count = report.refused;
    if count > 0 {
        let what = format!("{count} of {rows} {side} rows ({}) cannot be tokenised", percent(count, rows));
        let finding = Finding::new(Level::Error, "refused-by-tokenizer", (count, rows), what)
            .why("training stops at the first of them")
            .advice(match reward {
                true => "correct or remove these rows, or set --chat-template-path",
                false => {
                    "correct or remove these rows, or set --chat-template-path; with --reward they are checked for a \
                     reward model, which needs no boundary between prompt and response"
                }
            })
            .places(refused);
        findings.push(finding);
    }
    let (open_count, of) = (report.sequences - report.ended, report.sequences);
    if of > 0 && share(report.ended, of) < MIN_ENDED {
        let what =
            format!("{open_count} of {of} {side} responses ({}) do not end with an EOS token", percent(open_count, of));
        let finding = Finding::new(Level::Warning, "no-end-of-turn", (open_count, of), what)
            .why(
                "a policy does not learn to stop from them, and a reward model is trained at a different position from \
                 the one that it scores later",
            )
            .advice(
                "make the chat template close the assistant's turn with the EOS token, and declare the token as \
                 eos_token or in generation_config.json",
            )
            .places(open);
        findings.push(finding);
    }
    let (count, of) = (report.comparisons_too_long, report.comparisons);
    if count > 0 {
        let what = format!(
            "{count} of {of} {side} comparisons ({}) have a sequence of more than {} tokens; the longest has {}",
            percent(count, of),
            report.max_length,
            report.lengths.max
        );
        let finding = Finding::new(Level::error_if(count == of), "too-long", (count, of), what)
            .why("training drops them, and stops if it would drop more than --max-drop-fraction of all comparisons")
            .advice("raise --max-length, or choose another --on-too-long")
            .places(long);
        findings.push(finding);
    }
    let (count, of) = (report.equal_ids, report.comparisons);
    if count > 0 {
        let limit = TokenizeOptions::default().max_drop_fraction;
        let what = format!(
            "{count} of {of} {side} comparisons ({}) have sides that differ in text but not in ids",
            percent(count, of)
        );
        let finding = Finding::new(Level::error_if(share(count, of) > limit), "equal-token-ids", (count, of), what)
            .why(
                "the chat template or the tokenizer removes the text in which the sides differ, so no model can tell \
                 them apart; training drops them, and stops if it would drop more than --max-drop-fraction",
            )
            .advice("set --chat-template-path to a template that keeps this text, or correct the rows")
            .places(equal);
        findings.push(finding);
    }
    let (count, of) = (report.lost_messages, report.messages);
    if count > 0 {
        let what = format!(
            "the chat template leaves out or changes the text of {count} of {of} {side} messages ({})",
            percent(count, of)
        );
        let finding = Finding::new(Level::Warning, "lost-messages", (count, of), what)
            .why("the model never reads this text; some templates delete reasoning on purpose")
            .advice(
                "look at the rows with `mapl data show`, or set --chat-template-path to a template that keeps the text",
            )
            .places(lost);
        findings.push(finding);
    }
    let limit = TokenizeOptions::default().max_boundary_mismatch;
    let (count, of) = (report.merged, report.plain);
    if share(count, of) > limit {
        let what = format!(
            "in {count} of {of} {side} sequences ({}) tokens merge across the end of the prompt",
            percent(count, of)
        );
        let finding = Finding::new(Level::Warning, "merged-boundary", (count, of), what)
            .why("the model is trained on different tokens than it generates; training stops above --max-boundary-mismatch")
            .advice("start responses with the white space that separates them from the prompt");
        findings.push(finding);
    }
}
