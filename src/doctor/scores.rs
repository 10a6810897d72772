//! Scores of a row that contradict its label: the chosen response has a lower score than the
//! rejected one, or the same. Rows without two scores are not counted.

use super::corpus::Corpus;
use super::finding::{Finding, Level, Place, percent};
use super::sides::MAJORITY;

/// Compares the label of every scored row with its scores.
pub(super) fn check(corpus: &Corpus, findings: &mut Vec<Finding>) {
    let scored = corpus.rows.iter().enumerate().filter_map(|(row, source)| Some((row, source.scores?)));
    let scored: Vec<(usize, [f64; 2])> = scored.collect();
    let contrary: Vec<_> = scored.iter().filter(|(_, [chosen, rejected])| chosen <= rejected).collect();
    if contrary.is_empty() {
        return;
    }
    let (count, of) = (contrary.len(), scored.len());
    let equal = contrary.iter().filter(|(_, [chosen, rejected])| chosen == rejected).count();
    let what = format!(
        "in {count} of {of} rows with scores ({}) the scores contradict the label: {} have a lower score for the \
         chosen response, {equal} have equal scores",
        percent(count, of),
        count - equal
    );
    let most = (count - equal) as f64 >= MAJORITY * of as f64;
    let finding = Finding::new(Level::error_if(most), "contrary-scores", (count, of), what)
        .why("the label says that the chosen response is better, and the scores say that it is not")
        .advice(
            "remove these rows, or choose by the scores; if there are many, check whether chosen and rejected are \
             swapped (--column-map)",
        )
        .places(contrary.iter().map(|&&(row, [chosen, rejected])| {
            Place::row(corpus, row).with(format!("chosen {chosen}, rejected {rejected}"))
        }));
    findings.push(finding);
}
