//! Curves of a run by step. For one run, a chart shows both training and evaluation. For several
//! runs, training and evaluation have separate charts with one line per run.

use super::super::axis::Axis;
use super::super::distribution::smoothed;
use super::super::page::{Block, Figure, Section, Table};
use super::super::significant;
use super::super::svg::{LineChart, ReferenceLine, Series};
use super::log::{Columns, RunLog};
use crate::train::metrics::tie_names;

/// Training curves are running means over 1/50 of the run, which shows the trend through the noise.
pub(super) const SMOOTHED_SHARE: usize = 50;
/// Number of rows per series in the table of a chart.
const TABLE_ROWS: usize = 10;

/// Definition of a chart: title, columns with legend names, and caption.
struct Curve {
    title: &'static str,
    /// Legend name (empty for a single line) and column of each line.
    lines: &'static [(&'static str, &'static str)],
    axis: (&'static str, &'static str),
    is_share: bool,
    caption: &'static str,
}

const fn curve(title: &'static str, lines: &'static [(&'static str, &'static str)], caption: &'static str) -> Curve {
    Curve { title, lines, axis: ("", ""), is_share: false, caption }
}

/// Chart at the top of the page.
const LEAD: Curve = curve(
    "Loss",
    &[("", "loss")],
    "The minimised loss. A rising evaluation loss with a falling training loss means overfitting.",
);

const LOSS: [Curve; 4] = [
    curve(
        "Loss, base",
        &[("", "loss/base")],
        "Mean loss of base pairs: chosen and rejected response to the same prompt.",
    ),
    curve("Loss, intra", &[("", "loss/intra")], "Mean loss of intra comparisons: one response under two prompts."),
    curve(
        "Loss, inter",
        &[("", "loss/inter")],
        "Mean loss of inter comparisons: the reward gap of a pair with and without added instructions.",
    ),
    curve(
        "Likelihood term",
        &[("", "nll_loss")],
        "Weighted negative log-likelihood of preferred responses, a term of the loss.",
    ),
];

const ACCURACY: [Curve; 6] = [
    Curve {
        title: "Accuracy, base",
        lines: &[("", "rewards/accuracies/base")],
        axis: ("accuracy", ""),
        is_share: true,
        caption: "Share of pairs in which the chosen response scores higher; ties count as wrong.",
    },
    Curve {
        title: "Accuracy, intra",
        lines: &[("", "rewards/accuracies/intra")],
        axis: ("accuracy", ""),
        is_share: true,
        caption: "Share of responses that score higher under the prompt they follow better.",
    },
    Curve {
        title: "Accuracy, inter",
        lines: &[("", "rewards/accuracies/inter")],
        axis: ("accuracy", ""),
        is_share: true,
        caption: "Share of pairs in which added instructions move the reward gap in the right direction.",
    },
    curve(
        "Margin, base",
        &[("", "rewards/margins/base")],
        "Mean of chosen minus rejected reward; it should rise above 0.",
    ),
    curve(
        "Margin, intra",
        &[("", "rewards/margins/intra")],
        "Mean reward under the better prompt minus the reward under the other prompt.",
    ),
    curve(
        "Margin, inter",
        &[("", "rewards/margins/inter")],
        "Mean signed change of the reward gap caused by added instructions.",
    ),
];

const REWARDS: [Curve; 7] = [
    curve(
        "Reward, both sides",
        &[("chosen", "rewards/chosen"), ("rejected", "rewards/rejected")],
        "Mean of beta times the log-ratio to the reference. If both fall, the margin grows only because rejected falls \
         faster.",
    ),
    curve(
        "Log-probability, both sides",
        &[("chosen", "logps/chosen"), ("rejected", "logps/rejected")],
        "Mean log-probability of whole responses. A falling chosen curve means that the policy unlearns good answers.",
    ),
    curve(
        "Reward, range",
        &[("min", "min_reward"), ("mean", "mean_reward"), ("max", "max_reward")],
        "Smallest, mean and largest reward. Only differences matter, so a common drift is harmless unless it is large.",
    ),
    curve(
        "Log-probability per token",
        &[("", "mean_token_logp")],
        "Mean over response tokens; it should rise towards 0.",
    ),
    curve(
        "Entropy",
        &[("", "entropy")],
        "Mean entropy of the predicted distributions over response tokens, in nats. A fall towards 0 means that the \
         policy becomes certain of every token.",
    ),
    Curve {
        title: "Token accuracy",
        lines: &[("", "mean_token_accuracy")],
        axis: ("accuracy", ""),
        is_share: true,
        caption: "Share of chosen tokens that are the most likely ones.",
    },
    curve(
        "Logits, both sides",
        &[("chosen", "logits/chosen"), ("rejected", "logits/rejected")],
        "Mean logit over the vocabulary. A common drift changes no probability.",
    ),
];

const IFEVAL: [Curve; 3] = [
    Curve {
        title: "Prompts followed",
        lines: &[("strict", "ifeval/prompt_strict"), ("loose", "ifeval/prompt_loose")],
        axis: ("share of prompts", ""),
        is_share: false,
        caption: "Share of IFEval's prompts of which the policy's answer follows every instruction.",
    },
    Curve {
        title: "Instructions followed",
        lines: &[("strict", "ifeval/instruction_strict"), ("loose", "ifeval/instruction_loose")],
        axis: ("share of instructions", ""),
        is_share: false,
        caption: "Share of instructions that the policy's answers follow.",
    },
    Curve {
        title: "Length of answers",
        lines: &[("", "ifeval/mean_tokens")],
        axis: ("new tokens", ""),
        is_share: false,
        caption: "Mean number of tokens that the policy generates for an answer.",
    },
];

const OPTIMISER: [Curve; 4] = [
    curve("Learning rate", &[("", "learning_rate")], "Learning rate of the schedule, including warm-up."),
    curve(
        "Gradient norm",
        &[("", "grad_norm")],
        "Norm before clipping. Spikes come from unusual batches; steady growth precedes divergence.",
    ),
    Curve {
        title: "Throughput",
        lines: &[("", THROUGHPUT)],
        axis: ("tokens per second", ""),
        is_share: false,
        caption: "Tokens processed by the policy divided by the step time; shared prompt tokens count once.",
    },
    Curve {
        title: "Step time",
        lines: &[("", "step_seconds")],
        axis: ("time", "s"),
        is_share: false,
        caption: "Wall-clock time of a step; it depends on the lengths of the sequences.",
    },
];

/// Column computed from `num_tokens` and `step_seconds`.
pub(super) const THROUGHPUT: &str = "tokens_per_second";

/// First section: the loss across the page.
pub(super) fn lead(runs: &[RunLog]) -> Section {
    let mut drawn = drawings(&LEAD, runs).into_iter();
    let Some(first) = drawn.next() else {
        let text = "No step has been logged yet.".to_owned();
        return Section { heading: "Curves".into(), blocks: vec![Block::Paragraph(text)] };
    };
    let mut blocks = vec![Block::LeadFigure(first.figure(first.chart.to_wide_svg()))];
    let others: Vec<Figure> = drawn.map(|drawing| drawing.figure(drawing.chart.to_svg())).collect();
    if !others.is_empty() {
        blocks.push(Block::Figures(others));
    }
    let longest = runs.iter().filter_map(|r| r.train.get("loss")).map(Vec::len).max().unwrap_or(0);
    let window = window(longest);
    if window > 1 {
        blocks.push(Block::Paragraph(format!(
            "Training curves are running means over up to {window} steps; evaluation curves are not smoothed."
        )));
    }
    Section { heading: "Loss".into(), blocks }
}

/// Sections of the other charts; charts without values are omitted.
pub(super) fn sections(runs: &[RunLog]) -> Vec<Section> {
    let mut found = Vec::new();
    for (heading, curves) in [
        ("Loss by kind", &LOSS[..]),
        ("Accuracy and margin", &ACCURACY),
        ("Rewards", &REWARDS),
        ("Instruction following", &IFEVAL),
        ("Optimiser and speed", &OPTIMISER),
    ] {
        let drawings = curves.iter().flat_map(|curve| drawings(curve, runs));
        let figures: Vec<Figure> = drawings.map(|drawing| drawing.figure(drawing.chart.to_svg())).collect();
        if !figures.is_empty() {
            found.push(Section { heading: heading.into(), blocks: vec![Block::Figures(figures)] });
        }
    }
    found
}

/// Window of the running mean, in steps.
fn window(steps: usize) -> usize {
    steps.div_ceil(SMOOTHED_SHARE)
}

/// Chart with its caption.
struct Drawing {
    chart: LineChart,
    caption: &'static str,
}

impl Drawing {
    fn figure(&self, svg: String) -> Figure {
        Figure { svg, caption: self.caption.into(), table: table(&self.chart.title, &self.chart.series) }
    }
}

/// Charts of a curve.
fn drawings(curve: &Curve, runs: &[RunLog]) -> Vec<Drawing> {
    let present = |column: &str| {
        let given = |r: &RunLog| r.train.contains_key(column) || r.eval.contains_key(column);
        runs.iter().any(|r| given(r) || (column == THROUGHPUT && r.train.contains_key("num_tokens")))
    };
    if !curve.lines.iter().any(|(_, column)| present(column)) || is_total_loss(curve, runs) {
        return Vec::new();
    }
    if let [run] = runs {
        let mut series = Vec::new();
        for (split, columns) in [("train", &run.train), ("eval", &run.eval)] {
            for (line, column) in curve.lines {
                let name = if line.is_empty() { split.to_owned() } else { format!("{line}, {split}") };
                push(&mut series, name, points(columns, column, split == "train"), None);
            }
        }
        return vec![drawing(curve, curve.title.to_owned(), series)];
    }
    let mut found = Vec::new();
    for split in ["train", "eval"] {
        for (line, column) in curve.lines {
            let mut series = Vec::new();
            for (style, run) in runs.iter().enumerate() {
                let columns = if split == "train" { &run.train } else { &run.eval };
                push(&mut series, run.name.clone(), points(columns, column, split == "train"), Some(style));
            }
            if !series.is_empty() {
                let title = match line.is_empty() {
                    true => format!("{}, {split}", curve.title),
                    false => format!("{}, {line}, {split}", subject(curve)),
                };
                found.push(drawing(curve, title, series));
            }
        }
    }
    found
}

/// Quantity on the y axis: the title up to its first comma.
fn subject(curve: &Curve) -> &'static str {
    curve.title.split(',').next().unwrap_or_default()
}

/// Whether the base loss equals the total loss: base comparisons only, with weight 1 and no further
/// term. Its chart would be a duplicate.
fn is_total_loss(curve: &Curve, runs: &[RunLog]) -> bool {
    let same = |columns: &Columns| columns.get("loss") == columns.get("loss/base");
    curve.lines[0].1 == "loss/base" && runs.iter().all(|r| same(&r.train) && same(&r.eval))
}

fn push(series: &mut Vec<Series>, name: String, points: Vec<(f64, f64)>, style: Option<usize>) {
    if !points.is_empty() {
        series.push(Series { name, style: style.unwrap_or(series.len()), points });
    }
}

/// Points of a column; training values are running means.
fn points(columns: &Columns, column: &str, smooth: bool) -> Vec<(f64, f64)> {
    let float = |points: &[(u64, f64)]| points.iter().map(|&(step, value)| (step as f64, value)).collect::<Vec<_>>();
    let found = match column {
        THROUGHPUT => throughput(columns),
        _ => columns.get(column).map_or(Vec::new(), |points| without_undecided(columns, column, float(points))),
    };
    // The learning rate is exact; a mean would hide the corners of its schedule.
    if smooth && column != "learning_rate" { smoothed(&found, window(found.len())) } else { found }
}

/// Accuracies without the steps at which every comparison ties, as before the first step of DPO:
/// there the policy equals the reference, and an accuracy of 0 would look like a failure.
fn without_undecided(columns: &Columns, column: &str, mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let Some([ties, comparisons]) = tie_names(column) else { return points };
    let (Some(ties), Some(comparisons)) = (columns.get(&ties), columns.get(&comparisons)) else { return points };
    // Both columns have the same steps, because they come from the same rows.
    let undecided: Vec<f64> = ties
        .iter()
        .zip(comparisons)
        .filter(|(ties, all)| *ties == *all && all.1 > 0.0)
        .map(|(at, _)| at.0 as f64)
        .collect();
    for (step, value) in &mut points {
        if undecided.binary_search_by(|at| at.total_cmp(step)).is_ok() {
            *value = f64::NAN;
        }
    }
    points
}

/// Tokens per second of each step whose previous step is logged.
pub(super) fn throughput(columns: &Columns) -> Vec<(f64, f64)> {
    let (Some(tokens), Some(seconds)) = (columns.get("num_tokens"), columns.get("step_seconds")) else {
        return Vec::new();
    };
    let mut before = (0, 0.0);
    let mut found = Vec::with_capacity(tokens.len());
    for (&(step, total), &(_, seconds)) in tokens.iter().zip(seconds) {
        if step == before.0 + 1 && seconds > 0.0 {
            found.push((step as f64, (total - before.1) / seconds));
        }
        before = (step, total);
    }
    found
}

fn drawing(curve: &Curve, title: String, series: Vec<Series>) -> Drawing {
    let (label, unit) = curve.axis;
    let label = if label.is_empty() { subject(curve).to_lowercase() } else { label.into() };
    let y = Axis::new(label, unit);
    let chart = LineChart {
        title,
        x: Axis::new("step", ""),
        y: if curve.is_share { y.within(0.0, 1.0) } else { y },
        reference: curve.is_share.then(|| ReferenceLine { value: 0.5, label: "chance".into() }),
        series,
    };
    Drawing { chart, caption: curve.caption }
}

/// Table of evenly spaced steps of every series, including the first and the last.
fn table(title: &str, series: &[Series]) -> Table {
    let mut steps: Vec<u64> = Vec::new();
    for one in series {
        let last = one.points.len().saturating_sub(1);
        let rows = TABLE_ROWS.min(one.points.len());
        steps.extend((0..rows).map(|i| one.points[last * i / rows.max(2).saturating_sub(1)].0 as u64));
    }
    steps.sort_unstable();
    steps.dedup();
    let cell = |one: &Series, step: u64| {
        let at = one.points.binary_search_by(|p| (p.0 as u64).cmp(&step));
        at.map_or(String::new(), |i| significant(one.points[i].1))
    };
    Table {
        caption: format!("{title}: values drawn"),
        header: std::iter::once("step".to_owned()).chain(series.iter().map(|s| s.name.clone())).collect(),
        rows: steps
            .iter()
            .map(|&step| std::iter::once(step.to_string()).chain(series.iter().map(|s| cell(s, step))).collect())
            .collect(),
        numeric: (0..=series.len()).collect(),
    }
}
