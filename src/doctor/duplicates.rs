//! Duplicates: comparisons that occur more than once, exactly or up to case and white space;
//! repeated ids; and responses that answer many prompts.
//!
//! Two comparisons are equal if they have the same kind and the same texts on the same sides. Ids,
//! margins and the order of texts within a row do not matter.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Serialize;

use super::corpus::{Corpus, Form, Side};
use super::finding::{Finding, Level, MAX_PLACES, Place, percent};
use crate::data::group::Kind;

/// Counts of duplicates.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Duplicates {
    /// Comparisons that repeat an earlier one exactly, by kind in the order base, intra, inter.
    pub exact: [usize; 3],
    /// Comparisons that repeat an earlier one up to case and white space, but not exactly.
    pub near: [usize; 3],
    /// Rows with the id of an earlier row.
    pub ids: usize,
    /// Responses that occur under at least `MANY_PROMPTS` prompts.
    pub responses: usize,
}

/// Minimum length in characters at which equal responses count as repeated across prompts or files.
/// Short responses ("Yes.") repeat naturally.
pub(super) const MIN_CHARACTERS: usize = 60;

/// A response is reported if it occurs under at least this number of prompts. Such a response answers none of
/// them.
const MANY_PROMPTS: usize = 10;

/// Number of duplicates by kind, and (row, row of the earlier comparison) of the first duplicates.
#[derive(Default)]
struct Copies {
    counts: [usize; 3],
    places: Vec<(usize, usize)>,
}

impl Copies {
    fn add(&mut self, kind: Kind, row: usize, first: usize) {
        self.counts[kind.index()] += 1;
        if self.places.len() < MAX_PLACES && self.places.last() != Some(&(row, first)) {
            self.places.push((row, first));
        }
    }

    fn places(&self, corpus: &Corpus) -> Vec<Place> {
        let place = |&(row, first)| {
            Place::row(corpus, row).with(match row == first {
                true => "repeats a comparison of the same row".to_owned(),
                false => format!("repeats {}", Place::row(corpus, first).short()),
            })
        };
        self.places.iter().map(place).collect()
    }
}

/// Finds duplicates.
pub(super) fn check(corpus: &Corpus, findings: &mut Vec<Finding>) -> Duplicates {
    // For each form, the first row in which a comparison occurs.
    let mut seen: [HashMap<(Kind, [Side; 2]), usize>; 2] = Default::default();
    let (mut exact, mut near) = (Copies::default(), Copies::default());
    for (row, comparison) in corpus.comparisons() {
        let kind = corpus.kind(row, comparison);
        let mut first = |form: Form| match seen[form as usize].entry((kind, corpus.sides(row, comparison, form))) {
            Entry::Occupied(entry) => Some(*entry.get()),
            Entry::Vacant(entry) => {
                entry.insert(row);
                None
            }
        };
        match [first(Form::Exact), first(Form::Normal)] {
            [Some(first), _] => exact.add(kind, row, first),
            [None, Some(first)] => near.add(kind, row, first),
            [None, None] => {}
        }
    }
    let all = corpus.counts().iter().sum();
    for (copies, check, how) in [
        (&exact, "duplicates", "repeat an earlier one exactly"),
        (&near, "near-duplicates", "repeat an earlier one except for case or white space"),
    ] {
        let count = copies.counts.iter().sum();
        if count > 0 {
            let [base, intra, inter] = copies.counts;
            let what = format!(
                "{count} of {all} comparisons ({}) {how} (base {base}, intra {intra}, inter {inter})",
                percent(count, all)
            );
            let finding = Finding::new(Level::Warning, check, (count, all), what)
                .why(
                    "a repeated comparison has more weight than the others; copies in both training and test data \
                     inflate the test accuracy",
                )
                .advice("keep one copy of each row")
                .places(copies.places(corpus));
            findings.push(finding);
        }
    }
    let ids = check_ids(corpus, findings);
    let responses = check_responses(corpus, findings);
    Duplicates { exact: exact.counts, near: near.counts, ids, responses }
}

/// Finds responses that occur under many prompts. A constant response that wins can be recognised
/// without its prompt.
fn check_responses(corpus: &Corpus, findings: &mut Vec<Finding>) -> usize {
    // (response, prompt, pair, side)
    let mut uses: Vec<(u32, u32, usize, usize)> = Vec::new();
    for (i, pair) in corpus.pairs.iter().enumerate() {
        for side in 0..2 {
            if corpus.response(pair, side).chars().count() >= MIN_CHARACTERS {
                uses.push((pair.response_ids[side].normal, pair.cluster(), i, side));
            }
        }
    }
    uses.sort_unstable();
    let of_responses = uses.chunk_by(|a, b| a.0 == b.0);
    let many = of_responses.filter(|uses| uses.chunk_by(|a, b| a.1 == b.1).count() >= MANY_PROMPTS);
    let mut many: Vec<_> = many.collect();
    many.sort_by_key(|uses| std::cmp::Reverse(uses.len()));
    if let Some(&most) = many.first() {
        let (count, pairs) = (many.iter().map(|uses| uses.len()).sum(), corpus.pairs.len());
        let chosen = most.iter().filter(|used| used.3 == 0).count();
        let text = corpus.response(&corpus.pairs[most[0].2], most[0].3);
        let what = format!(
            "responses that occur under {MANY_PROMPTS} or more prompts: {}; the most frequent one, {:?}..., occurs under \
             {} prompts and is the chosen one in {chosen} of {} pairs",
            many.len(),
            text.chars().take(32).collect::<String>(),
            most.chunk_by(|a, b| a.1 == b.1).count(),
            most.len()
        );
        let mut rows: Vec<usize> = most.iter().map(|used| corpus.pairs[used.2].row).collect();
        rows.sort_unstable();
        let finding = Finding::new(Level::Warning, "repeated-responses", (count, pairs), what)
            .why("a model learns to recognise such a text instead of reading the prompt")
            .advice("remove these rows, unless the response is an intended refusal")
            .places(rows.into_iter().map(|row| Place::row(corpus, row)));
        findings.push(finding);
    }
    many.len()
}

fn check_ids(corpus: &Corpus, findings: &mut Vec<Finding>) -> usize {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut repeated = Vec::new();
    for (row, source) in corpus.rows.iter().enumerate() {
        match seen.entry(&source.group.id) {
            Entry::Occupied(entry) => repeated.push((row, *entry.get())),
            Entry::Vacant(entry) => {
                entry.insert(row);
            }
        }
    }
    if !repeated.is_empty() {
        let rows = corpus.rows.len();
        let what = format!("{} of {rows} rows have the id of an earlier row", repeated.len());
        let finding = Finding::new(Level::Warning, "equal-ids", (repeated.len(), rows), what)
            .why("scores and messages name rows by id, and group rows with equal ids are refused")
            .advice("give every row a unique id, or remove \"id\" and give the files different names")
            .places(repeated.iter().map(|&(row, first)| {
                Place::row(corpus, row).with(format!("same id as {}", Place::row(corpus, first).short()))
            }));
        findings.push(finding);
    }
    repeated.len()
}
