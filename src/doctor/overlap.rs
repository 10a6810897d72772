//! What training and test files share: prompts, whole pairs, responses. A model that has seen the test rows is tested
//! on its memory.

use std::collections::HashSet;

use serde::Serialize;

use super::corpus::{Corpus, Form, Side, TextId};
use super::duplicates::MIN_CHARACTERS;
use super::finding::{Finding, Level, Place, percent};
use super::sides::MOST;

/// What the test files share with the training files.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overlap {
    /// Test rows, and those with a prompt that stands in the training files exactly, or in normal form.
    pub rows: usize,
    pub prompts_exact: usize,
    pub prompts_normal: usize,
    /// Test comparisons, and those that stand in the training files with the same texts, either way round.
    pub comparisons: usize,
    pub comparisons_seen: usize,
    /// Test rows with a response of `MIN_CHARACTERS` or more, and those with one that stands in the training files.
    pub long_rows: usize,
    pub responses: usize,
}

/// Holds the test files against the training files.
pub fn check(train: &Corpus, test: &Corpus, findings: &mut Vec<Finding>) -> Overlap {
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
        let level = Level::error_if(count as f64 >= MOST * of as f64);
        let what = format!("{count} of {of} test comparisons ({}) stand in the training files too", percent(count, of));
        let finding = Finding::new(level, "test-comparisons-in-training", (count, of), what)
            .why("on these the test measures memory, and every figure of it is too good")
            .advice("remove them from one of the two; split by prompt, not by row")
            .places(comparisons);
        findings.push(finding);
    }
    let (count, of) = (overlap.prompts_normal, overlap.rows);
    if count > 0 {
        let what = format!(
            "{count} of {of} test rows ({}) have a prompt that stands in the training files, {} of them exactly",
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
            "{count} of {of} test rows with longer responses ({}) have one that stands in the training files",
            percent(count, of)
        );
        let finding = Finding::new(Level::Warning, "test-responses-in-training", (count, of), what)
            .why("a response seen in training on one side is recognised on the same side in the test")
            .advice("remove these rows from one of the two")
            .places(responses);
        findings.push(finding);
    }
}
