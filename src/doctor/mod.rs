//! Data checks: inspects preference data before training and reports problems that make a run
//! meaningless or its figures misleading, with the affected rows.
//!
//! - `corpus`: rows with interned texts; `finding`: findings; `interval`: shares with intervals
//! - `duplicates`, `sides`, `scores`: duplicates; equal and empty sides; contradicting labels; scores
//!   that contradict the label
//! - `length`, `bag_of_words`, `giveaway`: features that separate chosen from rejected without
//!   reading the answer, evaluated on held-out prompts by `holdout`, with `words` and `linear`
//! - `overlap`: overlap of training and test files
//! - `instructions`, `cue`: flags, labels and balance of added instructions
//! - `tokens`: the rows after tokenisation with the chat template
//! - `report`: all results, as text and as JSON
//!
//! The time of every check is linear in the data except for sorting, and no result depends on the number of
//! threads. A rate causes a finding only if its whole 95 % interval is beyond a limit and it comes from at
//! least `MIN_CLUSTERS` prompts. Each check documents its limit.

mod bag_of_words;
mod corpus;
mod cue;
mod duplicates;
mod finding;
mod giveaway;
mod holdout;
mod instructions;
pub(crate) mod interval;
mod length;
mod linear;
mod overlap;
mod report;
mod scores;
mod sides;
mod tokens;
mod words;

pub use finding::{Finding, Level, Place};
pub use report::CheckReport;

use crate::Result;
use crate::data::source::{FileReport, Refused, SourceRow};
use crate::data::tokenize::LengthLimit;
use crate::data::tokenizer::Tokenizer;
use corpus::{Corpus, Interner};
use finding::percent;

/// Result of [`crate::data::source::read_files_leniently`].
pub struct Input {
    pub rows: Vec<SourceRow>,
    pub files: Vec<FileReport>,
    pub refused: Refused,
}

/// A tokenizer with its chat template, and the limit on the length of a training sequence.
#[derive(Clone, Copy)]
pub struct WithTokenizer<'a> {
    pub tokenizer: &'a Tokenizer,
    pub limit: LengthLimit,
    /// The rows are for a reward model, which needs no boundary between prompt and response.
    pub reward: bool,
}

/// Checks training data, and its overlap with test data if given.
///
/// # Errors
/// An error if the tokenizer cannot encode any row, because it has no chat template or no EOS token. Problems
/// of the data are findings, not errors.
pub fn check(train: Input, test: Option<Input>, with: Option<&WithTokenizer<'_>>) -> Result<CheckReport> {
    let mut findings = Vec::new();
    let mut interner = Interner::default();
    refused(&train, "training", &mut findings);
    repeated_prompts(&train, &mut findings);
    overlooked(&train, &mut findings);
    let files = train.files;
    let refused_rows = train.refused.count;
    let train = Corpus::new(train.rows, &mut interner);
    let test_files = test.as_ref().map(|test| test.files.clone()).unwrap_or_default();
    let test = test.map(|test| {
        refused(&test, "test", &mut findings);
        overlooked(&test, &mut findings);
        Corpus::new(test.rows, &mut interner)
    });
    let test = test.as_ref();

    let duplicates = duplicates::check(&train, &mut findings);
    let sides = sides::check(&train, &mut findings);
    scores::check(&train, &mut findings);
    let (mut tokens, mut test_tokens) = (None, None);
    if let Some(with) = with {
        let checked = tokens::check(&train, "training", with, &mut findings)?;
        if let Some(test) = test {
            // Evaluation data use the limit of the training data.
            let limit = LengthLimit { given: Some(checked.report.max_length), ..with.limit };
            test_tokens = Some(tokens::check(test, "test", &WithTokenizer { limit, ..*with }, &mut findings)?);
        }
        tokens = Some(checked);
    }
    let overlap = test.map(|test| overlap::check(&train, test, &mut findings));
    let lengths = tokens.as_ref().map(|t| (t.lengths.clone(), test_tokens.as_ref().map(|t| t.lengths.clone())));
    let length = length::check(&train, test, lengths, &mut findings);
    let bag_of_words = bag_of_words::check(&train, test, &mut findings);
    let mut positions = giveaway::positions(&train, test);
    positions.extend(tokens.iter().flat_map(|tokens| tokens::positions(tokens, test_tokens.as_ref())));
    let giveaways = giveaway::check(&train, test, positions, &mut findings);
    let instructions = instructions::check(&train, &mut findings);

    // Errors first; within a level in the order of the checks.
    findings.sort_by_key(|finding| finding.level != Level::Error);
    let mut prompts: Vec<u32> = train.texts.iter().flat_map(|t| t.prompts.iter().map(|id| id.exact)).collect();
    prompts.sort_unstable();
    prompts.dedup();
    let count = |level| findings.iter().filter(|f: &&Finding| f.level == level).count();
    Ok(CheckReport {
        files,
        test_files,
        rows: train.rows.len(),
        refused_rows,
        comparisons: train.counts(),
        prompts: prompts.len(),
        held_out: if test.is_some() { "test files" } else { "5-fold cross-validation by prompt" },
        duplicates,
        sides,
        overlap,
        length,
        bag_of_words,
        giveaways,
        instructions,
        tokens: tokens.map(|t| t.report),
        test_tokens: test_tokens.map(|t| t.report),
        errors: count(Level::Error),
        warnings: count(Level::Warning),
        findings,
    })
}

/// Reports rows that the readers reject, and files without readable rows.
fn refused(input: &Input, side: &str, findings: &mut Vec<Finding>) {
    let (count, rows) = (input.refused.count, input.rows.len());
    if count > 0 {
        let of = count + rows;
        let what = format!("{count} of {of} {side} rows ({}) cannot be read", percent(count, of));
        let finding = Finding::new(Level::Error, "refused-rows", (count, of), what)
            .why("training stops at the first of them; the rest of a damaged file is skipped, so its rows are not counted")
            .advice("correct or remove these rows; use --column-map if the keys have other names")
            .places(input.refused.first.iter().map(Place::of_error));
        findings.push(finding);
    }
    if rows == 0 {
        let what = format!("the {side} files contain no readable row");
        let finding = Finding::new(Level::Error, "no-rows", (0, count), what)
            .why("there is nothing to train on or test with")
            .advice("see the accepted formats in docs/data.md");
        findings.push(finding);
    }
}

/// Reports files in which both sides of most rows start with the whole prompt.
fn repeated_prompts(input: &Input, findings: &mut Vec<Finding>) {
    for file in &input.files {
        let (count, of) = (file.prompt_repeated, file.rows());
        if count as f64 >= sides::MAJORITY * of as f64 && count > 0 {
            let what =
                format!("in {count} of {of} rows ({}) both sides start with the whole prompt", percent(count, of));
            let place = Place { file: file.file.display().to_string(), line: 0, id: None, note: None };
            let finding = Finding::new(Level::Warning, "repeated-prompts", (count, of), what)
                .why("the model would see the prompt twice, the second time as part of the answer")
                .advice("remove the prompt from both sides, or omit \"prompt\": it is then derived from the two sides")
                .places([place]);
            findings.push(finding);
        }
    }
}

/// Reports columns with lists of messages that are stored as text and therefore read as plain text.
fn overlooked(input: &Input, findings: &mut Vec<Finding>) {
    for file in &input.files {
        for problem in file.overlooked() {
            let (count, of) = (problem.found.rows, file.rows());
            let what = format!("in {count} of {of} rows ({}) {}", percent(count, of), problem.what);
            let (file, line) = (file.file.display().to_string(), problem.found.first_line);
            let finding = Finding::new(Level::Warning, problem.check, (count, of), what)
                .why(problem.why)
                .advice(problem.advice)
                .places([Place { file, line, id: None, note: None }]);
            findings.push(finding);
        }
    }
}
