//! Warnings that a report shows before the curves: an abnormal end of the run, and signs of misleading
//! numbers.

use serde_json::Value;

use super::super::distribution::mean;
use super::super::{decimal, significant};
use super::log::{Columns, RunLog};
use super::rewards::{PairStatistics, has_reference};

/// The start value of a column is the mean of its first 1/10 of points, and the end value that of its last
/// 1/10; each has at least one point.
const END_SHARE: usize = 10;
/// A loss whose end value is below this share of its start value is saturated: almost no comparison has a
/// gradient left.
const SATURATED: f64 = 0.01;
/// Correlation of length and reward that triggers a warning.
const LENGTH_CORRELATION: f64 = 0.5;
/// Excess of "longer wins" over "longer is chosen" that triggers a warning.
const LENGTH_EXCESS: f64 = 0.1;
/// Minimum number of pairs for a warning about length.
const MIN_PAIRS: usize = 20;
/// Shares of pairs with a falling chosen response, and of dropped or truncated data, that trigger
/// warnings.
const FALLING: f64 = 0.5;
const DROPPED: f64 = 0.05;
/// Ratio of final to lowest evaluation loss that triggers a warning.
const OVERFIT: f64 = 1.1;

/// Warnings about a run, most severe first.
pub fn warnings(run: &RunLog) -> Vec<String> {
    let mut found: Vec<String> = ending(run).into_iter().collect();
    found.extend(skipped(run));
    found.extend(saturation(run));
    found.extend(overfitting(run));
    found.extend(falling(run));
    found.extend(length(run));
    found.extend(data(run));
    found
}

fn ending(run: &RunLog) -> Option<String> {
    let message = run.manifest["message"].as_str().unwrap_or("no message");
    match run.status() {
        "finished" => None,
        "running" if run.killed => Some(format!(
            "Process {} no longer exists and left no exit status: it was killed, or the machine went down. Resume \
             the run from its last checkpoint.",
            run.manifest["pid"]
        )),
        "running" => Some("The run is still running; this report covers what it has written so far.".into()),
        status => Some(format!("The run {status}: {message}")),
    }
}

/// Last value of a column.
pub(super) fn last(columns: &Columns, column: &str) -> Option<f64> {
    columns.get(column).and_then(|points| points.last()).map(|p| p.1)
}

/// Returns the start value and the end value of a column (see [`END_SHARE`]).
fn ends(columns: &Columns, column: &str) -> Option<(f64, f64)> {
    let points = columns.get(column)?;
    let n = points.len().div_ceil(END_SHARE);
    let over = |points: &[(u64, f64)]| mean(points.iter().map(|p| p.1));
    Some((over(&points[..n]), over(&points[points.len() - n..])))
}

fn skipped(run: &RunLog) -> Option<String> {
    let skipped = last(&run.train, "skipped_steps").filter(|&n| n > 0.0)?;
    let of = run.last_step().unwrap_or(0);
    Some(format!(
        "{} of {of} updates were skipped because the loss or the gradient was not finite; lower --learning-rate, or check \
         the groups that the run's warnings name.",
        decimal(skipped, 0)
    ))
}

fn saturation(run: &RunLog) -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["base", "intra", "inter"] {
        if let Some((start, end)) = ends(&run.train, &format!("loss/{kind}"))
            && end >= 0.0
            && end < SATURATED * start
        {
            found.push(format!(
                "Saturation: the loss of {kind} comparisons fell from {} to {}, so almost none of them has a \
                 gradient left; train for fewer steps, or on more data.",
                significant(start),
                significant(end)
            ));
        }
    }
    found
}

fn overfitting(run: &RunLog) -> Option<String> {
    let points = run.eval.get("loss")?;
    let &(step, lowest) = points.iter().filter(|p| p.1.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1))?;
    let &(end, final_loss) = points.last()?;
    (lowest > 0.0 && final_loss > OVERFIT * lowest && step < end).then(|| {
        format!(
            "Overfitting: the evaluation loss was lowest after step {step} ({}) and is {} after step {end}.",
            significant(lowest),
            significant(final_loss)
        )
    })
}

fn falling(run: &RunLog) -> Option<String> {
    if !has_reference(run) {
        return None;
    }
    let cure = "the policy also makes good answers less likely; lower --learning-rate or set --nll-weight.";
    if let Some(scores) = &run.scores {
        let figures = PairStatistics::of(scores);
        return (figures.falling_chosen > FALLING).then(|| {
            format!(
                "Falling chosen: in {} % of the evaluation pairs the chosen response is less likely than under the \
                 reference; {cure}",
                decimal(100.0 * figures.falling_chosen, 0)
            )
        });
    }
    let (_, end) = ends(&run.train, "rewards/chosen")?;
    let chosen = significant(end);
    (end < 0.0).then(|| format!("Falling chosen: the mean reward of chosen responses ended at {chosen}; {cure}"))
}

fn length(run: &RunLog) -> Option<String> {
    let figures = PairStatistics::of(run.scores.as_ref()?);
    if figures.pairs < MIN_PAIRS {
        return None;
    }
    let percent = |share: f64| decimal(100.0 * share, 0);
    let excess = figures.longer_wins - figures.longer_is_chosen;
    if figures.unequal_lengths >= MIN_PAIRS && excess > LENGTH_EXCESS {
        return Some(format!(
            "Length bias: the longer response has the higher reward in {} % of the evaluation pairs, but is the chosen \
             one in only {} %.",
            percent(figures.longer_wins),
            percent(figures.longer_is_chosen)
        ));
    }
    let r = figures.correlation.filter(|r| r.abs() >= LENGTH_CORRELATION)?;
    Some(format!("Length bias: length and reward have a correlation of {r:+.2} over the evaluation responses."))
}

fn data(run: &RunLog) -> Vec<String> {
    let mut found = Vec::new();
    for split in ["train", "eval"] {
        let report = &run.manifest["data"][split];
        let number = |key: &str| report[key].as_f64().unwrap_or(0.0);
        let dropped = number("read") - number("kept");
        if dropped > DROPPED * number("read") {
            let share = decimal(100.0 * dropped / number("read"), 1);
            found.push(format!(
                "{} comparisons ({share} %) of the {split} data were dropped; see Data.",
                decimal(dropped, 0)
            ));
        }
        let cut = number("truncated_prompts") + number("truncated_responses");
        if cut > DROPPED * number("sequences") {
            found.push(format!(
                "{} prompts or responses of the {split} data were truncated; see Data.",
                decimal(cut, 0)
            ));
        }
    }
    if run.manifest["data"] == Value::Null {
        found.push("The manifest has no facts about the data.".into());
    }
    found
}
