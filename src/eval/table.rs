//! Evaluations as text: one aligned line per measure and split.

use super::compare::{Comparison, Paired};
use super::measure::{By, Quantity, Summary};
use super::statistics::{Estimate, Moments};
use super::{Line, Place, Rewards};

/// Lines that a table shows; files contain all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Every measure, and its splits by length and by held-out functions.
    Summary,
    /// Splits by instructions, rule, direction and function too.
    ByFunction,
}

impl Detail {
    /// True if tables show the line. Splits of `sensitivity_flip`, and splits of `conflict` by function, are
    /// left out, because they mostly repeat other lines.
    fn shows(self, place: &Place) -> bool {
        match (&place.split, place.quantity) {
            (Some(_), Quantity::SensitivityFlip) => false,
            (Some((By::Function, _)), Quantity::Conflict) => false,
            (Some((by, _)), _) => self == Detail::ByFunction || matches!(by, By::Length | By::Holdout),
            (None, _) => true,
        }
    }
}

/// Explanation of the intervals, printed below a table that has intervals.
const ABOUT_INTERVALS: &str = "The 95 % interval reflects the choice of rows for this one model, not the\n\
                               training seed. An untrained model can be biased, so its interval can exclude\n\
                               0.5.";

/// Formats summaries as a table, without the column of intervals if no line has one. Remarks on
/// intervals, sensitivity and conflict and the distribution of the scores follow.
pub fn summary_table(lines: &[Line<Summary>], rewards: &Rewards, detail: Detail) -> String {
    let intervals = lines.iter().any(|line| line.summary.accuracy.interval.is_some());
    let interval = |e: Option<&Estimate>| match (intervals, e) {
        (false, _) => String::new(),
        (true, None) => format!(" {:^16}", "95 % interval"),
        (true, Some(e)) => format!(" {:>16}", span(e)),
    };
    let width = label_width(lines, detail);
    let header = format!("{:>8}{} {:>8} {:>7} {:>6}", "accuracy", interval(None), "half", "count", "ties");
    let mut out = vec![format!("{:<width$} {header}", "")];
    for Line { place, summary: s } in lines.iter().filter(|line| detail.shows(&line.place)) {
        let (accuracy, half) = (s.accuracy.value, s.accuracy_half.value);
        let counts = format!("{half:>8.4} {:>7} {:>6}", s.count, s.ties);
        let broken = if s.non_finite == 0 { String::new() } else { format!("  {} not finite", s.non_finite) };
        out.push(format!("{:<width$} {accuracy:>8.4}{} {counts}{broken}", place.title(), interval(Some(&s.accuracy))));
    }
    if lines.iter().any(|line| !detail.shows(&line.place) && Detail::ByFunction.shows(&line.place)) {
        out.push("--by-function also shows each number of instructions, rule, direction, function".into());
    }
    if intervals {
        out.push(ABOUT_INTERVALS.into());
    }
    let whole = |quantity| lines.iter().find(|l| l.place.quantity == quantity && l.place.split.is_none());
    if let Some(Line { summary, .. }) = whole(Quantity::Sensitivity) {
        let mean = &summary.mean_logit;
        let interval = mean.interval.map_or(String::new(), |[low, high]| format!(" ({low:+.4} to {high:+.4})"));
        out.push(format!("mean change of the gap from x_down to x_up: {:+.4}{interval}", mean.value));
    }
    if whole(Quantity::Conflict).is_some() {
        out.push(
            "conflict: share of pairs in which the rejected response wins under a prompt\nthat only it satisfies"
                .into(),
        );
    }
    for (name, moments) in [("all", rewards.all), ("chosen", rewards.chosen), ("rejected", rewards.rejected)] {
        if let Some(Moments { count, mean, std, min, max }) = moments {
            let range = format!("min {min:.4}  max {max:.4}");
            out.push(format!("score, {name:<8} mean {mean:+.4}  std {std:.4}  {range}  count {count}"));
        }
    }
    if rewards.non_finite > 0 {
        out.push(format!("score, NaN or infinite: {}", rewards.non_finite));
    }
    out.join("\n")
}

/// Width of the longest title that is shown.
fn label_width<T>(lines: &[Line<T>], detail: Detail) -> usize {
    let shown = lines.iter().filter(|line| detail.shows(&line.place));
    shown.map(|line| line.place.title().chars().count()).max().unwrap_or(0)
}

/// Formats the interval that follows a value, in brackets; empty if there is none.
pub(crate) fn interval(estimate: &Estimate) -> String {
    estimate.interval.map_or(String::new(), |[low, high]| format!(" (95 % interval {low:.4} to {high:.4})"))
}

fn span(estimate: &Estimate) -> String {
    estimate.interval.map_or("-".into(), |[low, high]| format!("{low:.4} - {high:.4}"))
}

/// Formats a comparison of A and B as a table.
pub fn comparison_table(comparison: &Comparison, names: [&str; 2], detail: Detail) -> String {
    let mut out = vec![format!("A = {}\nB = {}", names[0], names[1])];
    let width = label_width(&comparison.lines, detail);
    out.push(format!(
        "{:<width$} {:>7} {:>7} {:>8} {:^18} {:>6} {:>7} {:>7} {:>9} {:>9}",
        "", "A", "B", "B - A", "95 % interval", "count", "only A", "only B", "McNemar p", "groups p"
    ));
    for Line { place, summary: Paired { count, a, b, difference, only_a, only_b, mcnemar, sign_test, .. } } in
        comparison.lines.iter().filter(|line| detail.shows(&line.place))
    {
        let span = difference.interval.map_or("-".into(), |[low, high]| format!("{low:+.4} to {high:+.4}"));
        out.push(format!(
            "{:<width$} {a:>7.4} {b:>7.4} {:>+8.4} {span:>18} {count:>6} {only_a:>7} {only_b:>7} {:>9} {:>9}",
            place.title(),
            difference.value,
            probability(*mcnemar),
            probability(*sign_test)
        ));
    }
    if comparison.non_finite != [0; 2] {
        let [a, b] = comparison.non_finite;
        out.push(format!("scores that are NaN or infinite: A {a}, B {b}"));
    }
    if !comparison.unmatched.is_empty() {
        let names: Vec<&str> = comparison.unmatched.iter().map(|q| q.name()).collect();
        out.push(format!("not compared, because the two evaluations have different pairs: {}", names.join(", ")));
    }
    out.join("\n")
}

pub(crate) fn probability(p: f64) -> String {
    if p < 1e-4 { format!("{p:.1e}") } else { format!("{p:.4}") }
}
