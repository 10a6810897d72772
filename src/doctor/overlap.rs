//! Overlap of training and test files: prompts, whole comparisons, responses. A test on rows seen in training
//! measures memorisation.

use std::collections::HashSet;

use serde::Serialize;

use super::corpus::{Corpus, Form, Side, TextId};
use super::duplicates::MIN_CHARACTERS;
use super::finding::{Finding, Level, Place, percent};
use super::sides::MAJORITY;

/// Overlap counts of the test files with the training files.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overlap {
    /// Number of test rows, and of test rows with a prompt that occurs in the training files: exactly, and in
    /// normal form.
    pub rows: usize,
    pub prompts_exact: usize,
    pub prompts_normal: usize,
    /// Number of test comparisons, and of those that the training files contain with the same texts, whichever
    /// side is preferred.
    pub comparisons: usize,
    pub comparisons_seen: usize,
    /// Number of test rows with a response of at least `MIN_CHARACTERS` characters, and of those with such a
    /// response that also occurs in the training files.
    pub long_rows: usize,
    pub responses: usize,
}

/// Compares the test files with the training files.
pub(super) fn check(train: &Corpus, test: &Corpus, findings: &mut Vec<Finding>) -> Overlap {
    let numbers = |of: fn(&super::corpus::RowTexts) -> &Vec<TextId>, form: Form| -> HashSet<u32> {
        train.texts.iter().flat_map(|texts| of(texts).iter().map(|id| id.of(form)).collect::<Vec<_>>()).collect()
    };
    let exact = numbers(|t| &t.prompts, Form::Exact);
    let normal = numbers(|t| &t.prompts, Form::Normal);
    let responses = numbers(|t| &t.responses, Form::Normal);
    let unordered = |corpus: &Corpus, (row, comparison): (usize, usize)| -> [Side; 2] {
        let mut sides = corpus.sides(row, comparison, Form::Normal);
        sides.sort();
        sides
    };
    let seen: HashSet<[Side; 2]> = train.comparisons().map(|at| unordered(train, at)).collect();

    let mut overlap = Overlap { rows: test.rows.len(), ..Overlap::default() };
    let mut places: [Vec<Place>; 3] = Default::default();
    for (row, (source, texts)) in test.rows.iter().zip(&test.texts).enumerate() {
        let shared = texts.prompts.iter().any(|id| normal.contains(&id.normal));
        overlap.prompts_exact += usize::from(texts.prompts.iter().any(|id| exact.contains(&id.exact)));
        overlap.prompts_normal += usize::from(shared);
        let mut same = 0;
        for comparison in 0..source.group.comparisons.len() {
            same += usize::from(seen.contains(&unordered(test, (row, comparison))));
        }
        overlap.comparisons += source.group.comparisons.len();
        overlap.comparisons_seen += same;
        let long = |i: &usize| source.group.responses[*i].text().chars().count() >= MIN_CHARACTERS;
        let long: Vec<usize> = (0..texts.responses.len()).filter(long).collect();
        let known = long.iter().any(|&i| responses.contains(&texts.responses[i].normal));
        overlap.long_rows += usize::from(!long.is_empty());
        overlap.responses += usize::from(known);
        for (kind, found) in [shared, same > 0, known].into_iter().enumerate() {
            if found {
                places[kind].push(Place::row(test, row));
            }
        }
    }
    add_findings(&overlap, places, findings);
    overlap
}

fn add_findings(overlap: &Overlap, [prompts, comparisons, responses]: [Vec<Place>; 3], findings: &mut Vec<Finding>) {
    let (count, of) = (overlap.comparisons_seen, overlap.comparisons);
    if count > 0 {
        let level = Level::error_if(count as f64 >= MAJORITY * of as f64);
        let what = format!("{count} of {of} test comparisons ({}) are also in the training files", percent(count, of));
        let finding = Finding::new(level, "test-comparisons-in-training", (count, of), what)
            .why("the test measures memory on these comparisons, so its figures are too high")
            .advice("remove them from one of the two sets; split by prompt, not by row")
            .places(comparisons);
        findings.push(finding);
    }
    let (count, of) = (overlap.prompts_normal, overlap.rows);
    if count > 0 {
        let what = format!(
            "{count} of {of} test rows ({}) have a prompt of the training files, {} of them exactly",
            percent(count, of),
            overlap.prompts_exact
        );
        let finding = Finding::new(Level::Warning, "test-prompts-in-training", (count, of), what)
            .why("the test says little about prompts the model has not seen")
            .advice("split by prompt, not by row")
            .places(prompts);
        findings.push(finding);
    }
    let (count, of) = (overlap.responses, overlap.long_rows);
    if count > 0 {
        let what = format!(
            "{count} of {of} test rows with long responses ({}) have one that is also in the training files",
            percent(count, of)
        );
        let finding = Finding::new(Level::Warning, "test-responses-in-training", (count, of), what)
            .why("a model can recognise a response from training and prefer the same side in the test")
            .advice("remove these rows from one of the two sets")
            .places(responses);
        findings.push(finding);
    }
}
