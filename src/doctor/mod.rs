//! The data doctor: looks at preference data before anything is trained on them and says what would make a run
//! meaningless, what would make its figures misleading, and where.
//!
//! - `corpus`: rows with every text as a number; `finding`: what checks say; `interval`: shares with intervals
//! - `duplicates`, `sides`: copies; equal and empty sides; labels that contradict each other
//! - `length`, `bag_of_words`, `giveaway`: what tells chosen from rejected without reading the answer, judged on
//!   held-out prompts by `holdout`, with `words` and `linear` beneath
//! - `overlap`: what training and test files share
//! - `instructions`, `cue`: flags, labels and balance of added instructions
//! - `tokens`: what a tokenizer and its template make of the rows
//! - `report`: all results, as text and as JSON
//!
//! Every check is linear in the data but for sorting, and none depends on the number of threads. Rates give rise to a
//! finding only where their whole 95 % interval is beyond a limit that is named and reasoned beside the check, and
//! where at least [`interval::MIN_CLUSTERS`] prompts stand behind it.

mod bag_of_words;
mod corpus;
mod cue;
mod duplicates;
mod finding;
mod giveaway;
mod holdout;
mod instructions;
pub mod interval;
mod length;
mod linear;
mod overlap;
mod report;
mod sides;
mod tokens;
mod words;

pub use finding::{Finding, Level, Place};
pub use report::CheckReport;

use crate::Result;
use crate::data::source::{FileReport, Refused, SourceRow};
use crate::data::tokenizer::Tokenizer;
use corpus::{Corpus, Interner};
use finding::percent;

/// What [`crate::data::source::read_files_leniently`] read.
pub struct Input {
    pub rows: Vec<SourceRow>,
    pub files: Vec<FileReport>,
    pub refused: Refused,
}

/// A tokenizer with its chat template, and the longest sequence in tokens that training keeps.
pub struct WithTokenizer<'a> {
    pub tokenizer: &'a Tokenizer,
    pub max_length: usize,
}

/// Checks training data, and what they share with test data where these are given.
///
/// # Errors
/// A tokenizer that can encode no row: no chat template, no end token. Defects of the data are findings.
pub fn check(train: Input, test: Option<Input>, with: Option<&WithTokenizer<'_>>) -> Result<CheckReport> {
    let mut findings = Vec::new();
    let mut interner = Interner::default();
    refused(&train, "training", &mut findings);
    repeated_prompts(&train, &mut findings);
    let files = train.files;
    let refused_rows = train.refused.count;
    let train = Corpus::new(train.rows, &mut interner);
    let test_files = test.as_ref().map(|test| test.files.clone()).unwrap_or_default();
    let test = test.map(|test| {
        refused(&test, "test", &mut findings);
        Corpus::new(test.rows, &mut interner)
    });
    let test = test.as_ref();

    let duplicates = duplicates::check(&train, &mut findings);
    let sides = sides::check(&train, &mut findings);
    let (mut tokens, mut test_tokens) = (None, None);
    if let Some(WithTokenizer { tokenizer, max_length }) = with {
        tokens = Some(tokens::check(&train, "training", tokenizer, *max_length, &mut findings)?);
        if let Some(test) = test {
            test_tokens = Some(tokens::check(test, "test", tokenizer, *max_length, &mut findings)?);
        }
    }
    let overlap = test.map(|test| overlap::check(&train, test, &mut findings));
    let lengths = tokens.as_ref().map(|t| (t.lengths.clone(), test_tokens.as_ref().map(|t| t.lengths.clone())));
    let length = length::check(&train, test, lengths, &mut findings);
    let bag_of_words = bag_of_words::check(&train, test, &mut findings);
    let mut positions = giveaway::positions(&train, test);
    positions.extend(tokens.iter().flat_map(|tokens| tokens::positions(tokens, test_tokens.as_ref())));
    let giveaways = giveaway::check(&train, test, positions, &mut findings);
    let instructions = instructions::check(&train, &mut findings);

    // Errors first; within a level the order of the checks.
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

/// Rows the readers refuse, and files without any row left.
fn refused(input: &Input, side: &str, findings: &mut Vec<Finding>) {
    let (count, rows) = (input.refused.count, input.rows.len());
    if count > 0 {
        let of = count + rows;
        let what = format!("{count} of {of} {side} rows ({}) cannot be read", percent(count, of));
        let finding = Finding::new(Level::Error, "refused-rows", (count, of), what)
            .why("training stops at the first of them; behind damage of a whole file its further rows are not counted")
            .advice("correct or remove these rows; see --column-map for other names of the keys")
            .places(input.refused.first.iter().map(Place::of_error));
        findings.push(finding);
    }
    if rows == 0 {
        let what = format!("the {side} files have no row that can be read");
        let finding = Finding::new(Level::Error, "no-rows", (0, count), what)
            .why("there is nothing to train on or to test with")
            .advice("see the accepted formats in docs/data.md");
        findings.push(finding);
    }
}

/// Files in most of whose rows both sides begin with the whole prompt.
fn repeated_prompts(input: &Input, findings: &mut Vec<Finding>) {
    for file in &input.files {
        let (count, of) = (file.prompt_repeated, file.rows());
        if count as f64 >= sides::MOST * of as f64 && count > 0 {
            let what =
                format!("in {count} of {of} rows ({}) both sides begin with the whole prompt", percent(count, of));
            let place = Place { file: file.file.display().to_string(), line: 0, id: None, note: None };
            let finding = Finding::new(Level::Warning, "repeated-prompts", (count, of), what)
                .why("the model would see the prompt twice, once of it as a part of the answer")
                .advice("remove the prompt from the sides, or leave \"prompt\" out: it is then found from the sides")
                .places([place]);
            findings.push(finding);
        }
    }
}
