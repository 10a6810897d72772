//! Defects in the two sides of a comparison: equal sides, an empty side, or another comparison with
//! the opposite label.

use std::collections::HashMap;

use serde::Serialize;

use super::corpus::{Corpus, Form, Side, prompt_text};
use super::finding::{Finding, Level, MAX_PLACES, Place, percent};

/// Minimum share of defective rows or comparisons at which the data counts as defective as a whole.
pub(super) const MAJORITY: f64 = 0.5;

/// Counts of defective sides.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sides {
    /// Comparisons with equal sides, by kind in the order base, intra, inter.
    pub identical: [usize; 3],
    /// Comparisons with sides that differ only in case and white space.
    pub nearly_identical: [usize; 3],
    /// Pairs with a response of only white space.
    pub empty_responses: usize,
    /// Prompts of only white space, counted per row.
    pub empty_prompts: usize,
    pub conflicts: Conflicts,
}

/// Contradicting comparisons.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Conflicts {
    /// Number of pairs of sides (A, B) that occur both with A and with B as the preferred side.
    pub cases: usize,
    /// Number of comparisons of these sides that cancel one another.
    pub cancelled: usize,
}

/// Checks the sides of every comparison.
pub(super) fn check(corpus: &Corpus, findings: &mut Vec<Finding>) -> Sides {
    let mut sides = Sides::default();
    identical(corpus, &mut sides, findings);
    empty(corpus, &mut sides, findings);
    conflicts(corpus, &mut sides.conflicts, findings);
    sides
}

fn identical(corpus: &Corpus, sides: &mut Sides, findings: &mut Vec<Finding>) {
    let mut places: [Vec<usize>; 2] = Default::default();
    for (row, comparison) in corpus.comparisons() {
        let equal = |form| {
            let [plus, minus] = corpus.sides(row, comparison, form);
            plus == minus
        };
        let kind = corpus.kind(row, comparison).index();
        if equal(Form::Exact) {
            sides.identical[kind] += 1;
            places[0].push(row);
        } else if equal(Form::Normal) {
            sides.nearly_identical[kind] += 1;
            places[1].push(row);
        }
    }
    let all = corpus.counts().iter().sum();
    for (form, places) in places.iter().enumerate().filter(|(_, places)| !places.is_empty()) {
        let count = places.len();
        let (check, how) = match form {
            0 => ("identical-sides", "have equal sides"),
            _ => ("nearly-identical-sides", "have sides that differ only in case and white space"),
        };
        let mut rows = places.clone();
        rows.dedup();
        let most = form == 0 && count as f64 >= MAJORITY * all as f64;
        let what = format!("{count} of {all} comparisons ({}) {how}", percent(count, all));
        let finding = Finding::new(Level::error_if(most), check, (count, all), what)
            .why(match form {
                0 => "their gradient is zero for every model: nothing can be learned from them",
                _ => "a model can learn only spelling from them",
            })
            .advice("remove these rows; if there are many, check whether one column is read twice (--column-map)")
            .places(rows.into_iter().map(|row| Place::row(corpus, row)));
        findings.push(finding);
    }
}

fn empty(corpus: &Corpus, sides: &mut Sides, findings: &mut Vec<Finding>) {
    let blank = |text: &str| text.trim().is_empty();
    let pairs = corpus.pairs.len();
    let side = |row, side| Place::row(corpus, row).with(["the chosen side", "the rejected side"][side]);
    let mut places = Vec::new();
    for pair in &corpus.pairs {
        let empty = [0, 1].map(|side| blank(&corpus.response(pair, side)));
        sides.empty_responses += usize::from(empty[0] || empty[1]);
        if places.len() < MAX_PLACES {
            places.extend((0..2).filter(|&i| empty[i]).map(|i| side(pair.row, i)));
        }
    }
    if sides.empty_responses > 0 {
        let count = sides.empty_responses;
        let what = format!("{count} of {pairs} pairs ({}) have a response of only white space", percent(count, pairs));
        let level = Level::error_if(count as f64 >= MAJORITY * pairs as f64);
        let finding = Finding::new(level, "empty-responses", (count, pairs), what)
            .why("such a pair teaches only that an empty answer is better or worse than any other")
            .advice("remove these rows, or find out where their text was lost")
            .places(places);
        findings.push(finding);
    }
    let mut rows = Vec::new();
    let mut prompts = 0;
    for (row, source) in corpus.rows.iter().enumerate() {
        prompts += source.group.prompts.len();
        let empty = source.group.prompts.iter().filter(|prompt| blank(&prompt_text(prompt))).count();
        sides.empty_prompts += empty;
        if empty > 0 {
            rows.push(row);
        }
    }
    if sides.empty_prompts > 0 {
        let count = sides.empty_prompts;
        let what = format!("{count} of {prompts} prompts ({}) are empty", percent(count, prompts));
        let finding = Finding::new(Level::Warning, "empty-prompts", (count, prompts), what)
            .why(
                "without a prompt there is no question to answer; with a tokenizer without BOS the first token of \
                 the response has no context, and such a row stops training",
            )
            .advice("put the prompt into \"prompt\", or use --column-map if the key has another name")
            .places(rows.into_iter().map(|row| Place::row(corpus, row)));
        findings.push(finding);
    }
}

/// For two sides, the number of comparisons in each order and the first row with each order.
struct Opposed {
    counts: [usize; 2],
    first: [usize; 2],
}

fn conflicts(corpus: &Corpus, conflicts: &mut Conflicts, findings: &mut Vec<Finding>) {
    let mut index: HashMap<[Side; 2], usize> = HashMap::new();
    let mut all: Vec<Opposed> = Vec::new();
    let mut comparisons = 0;
    for (row, comparison) in corpus.comparisons() {
        comparisons += 1;
        let [plus, minus] = corpus.sides(row, comparison, Form::Normal);
        if plus == minus {
            continue;
        }
        let way = usize::from(plus > minus);
        let key = if way == 0 { [plus, minus] } else { [minus, plus] };
        let at = *index.entry(key).or_insert_with(|| {
            all.push(Opposed { counts: [0; 2], first: [row; 2] });
            all.len() - 1
        });
        if all[at].counts[way] == 0 {
            all[at].first[way] = row;
        }
        all[at].counts[way] += 1;
    }
    let opposed: Vec<&Opposed> = all.iter().filter(|o| o.counts[0] > 0 && o.counts[1] > 0).collect();
    conflicts.cases = opposed.len();
    conflicts.cancelled = opposed.iter().map(|o| 2 * o.counts[0].min(o.counts[1])).sum();
    if opposed.is_empty() {
        return;
    }
    let most = conflicts.cancelled as f64 >= MAJORITY * comparisons as f64;
    let what = format!(
        "{} pairs of sides occur with both labels; {} of {comparisons} comparisons ({}) cancel one another",
        conflicts.cases,
        conflicts.cancelled,
        percent(conflicts.cancelled, comparisons)
    );
    let finding = Finding::new(Level::error_if(most), "label-conflicts", (conflicts.cancelled, comparisons), what)
        .why("no model can satisfy both A over B and B over A under one prompt; their gradients cancel")
        .advice(
            "keep the label you trust, or neither; if there are many, check whether the columns of one file are \
             swapped",
        )
        .places(opposed.iter().map(|o| {
            let (one, other) = (o.first[0].min(o.first[1]), o.first[0].max(o.first[1]));
            Place::row(corpus, other).with(format!("the opposite of {}", Place::row(corpus, one).short()))
        }));
    findings.push(finding);
}
