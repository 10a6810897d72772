//! Rewards of the latest evaluation: their distribution, and their relation to response length.

use super::super::axis::Axis;
use super::super::distribution::{Bins, correlation, mean};
use super::super::page::{Block, Figure, Section, Table};
use super::super::plots::{Histogram, Scatter};
use super::super::svg::Series;
use super::super::{NO_VALUE, decimal, significant};
use super::log::{EvalScores, RunLog, ScoredResponse};

/// Maximum number of points for the chosen responses, and for the rejected ones. If there are more, every
/// n-th point is drawn.
const MAX_POINTS: usize = 600;

/// Statistics of the scored pairs of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairStatistics {
    pub pairs: usize,
    pub mean_chosen: f64,
    pub mean_rejected: f64,
    /// Share of pairs with a negative chosen reward. With a frozen reference, the chosen response
    /// of such a pair has become less likely.
    pub falling_chosen: f64,
    /// Share of the pairs with different lengths in which the longer response is the chosen one
    /// (`longer_is_chosen`), or has the higher reward (`longer_wins`).
    pub longer_is_chosen: f64,
    pub longer_wins: f64,
    /// Number of pairs with different lengths.
    pub unequal_lengths: usize,
    /// Pearson correlation of length and reward over all responses, chosen and rejected.
    pub correlation: Option<f64>,
}

impl PairStatistics {
    /// Computes the statistics of an evaluation.
    pub fn of(scores: &EvalScores) -> Self {
        let pairs = &scores.pairs;
        let share = |part: usize, whole: usize| part as f64 / whole as f64;
        let unequal_lengths: Vec<_> = pairs.iter().filter(|(c, r)| c.tokens != r.tokens).collect();
        let longer_is_chosen = unequal_lengths.iter().filter(|(c, r)| c.tokens > r.tokens).count();
        let longer_wins =
            unequal_lengths.iter().filter(|(c, r)| (c.tokens - r.tokens) * (c.reward - r.reward) > 0.0).count();
        let points: Vec<_> = pairs.iter().flat_map(|(c, r)| [*c, *r]).map(|s| (s.tokens, s.reward)).collect();
        Self {
            pairs: pairs.len(),
            mean_chosen: mean(pairs.iter().map(|(c, _)| c.reward)),
            mean_rejected: mean(pairs.iter().map(|(_, r)| r.reward)),
            falling_chosen: share(pairs.iter().filter(|(c, _)| c.reward < 0.0).count(), pairs.len()),
            longer_is_chosen: share(longer_is_chosen, unequal_lengths.len()),
            longer_wins: share(longer_wins, unequal_lengths.len()),
            unequal_lengths: unequal_lengths.len(),
            correlation: correlation(&points),
        }
    }
}

/// Whether rewards are differences to a frozen reference, so that their sign has a meaning.
pub(super) fn has_reference(run: &RunLog) -> bool {
    ["dpo", "kto"].contains(&run.method()) && !run.manifest["config"]["ref_model"].is_null()
}

/// Histograms, scatter charts and statistics, or a note if no run has scores; `None` if all runs are SFT.
pub(super) fn section(runs: &[RunLog]) -> Option<Section> {
    if runs.iter().all(|run| run.method() == "sft") {
        return None;
    }
    let heading = "Rewards and lengths on the evaluation data".to_owned();
    let scored: Vec<(&RunLog, &EvalScores)> = runs.iter().filter_map(|r| Some((r, r.scores.as_ref()?))).collect();
    if scored.is_empty() {
        let text =
            "The run has no scores of single responses. An evaluation of base pairs writes them; pass --eval-file.";
        return Some(Section { heading, blocks: vec![Block::Paragraph(text.into())] });
    }
    let mut figures = Vec::new();
    for (run, scores) in &scored {
        let title = |what: &str| if runs.len() == 1 { what.to_owned() } else { format!("{what}, {}", run.name) };
        figures.push(histogram(title("Rewards"), scores));
        figures.push(scatter(title("Length against reward"), scores));
    }
    let blocks = vec![Block::Figures(figures), Block::Table(table(&scored))];
    Some(Section { heading, blocks })
}

fn sides(scores: &EvalScores) -> [(&'static str, Vec<ScoredResponse>); 2] {
    [("chosen", scores.pairs.iter().map(|p| p.0).collect()), ("rejected", scores.pairs.iter().map(|p| p.1).collect())]
}

fn histogram(title: String, scores: &EvalScores) -> Figure {
    let sides = sides(scores);
    let sets = sides.each_ref().map(|(_, side)| side.iter().map(|s| s.reward).collect::<Vec<f64>>());
    let bins = Bins::of(&sets);
    let chart = Histogram {
        title: title.clone(),
        x: Axis::new("reward", ""),
        series: sides.iter().enumerate().map(|(style, (name, _))| ((*name).to_owned(), style)).collect(),
        bins: bins.clone(),
    };
    let row = |bins: &Bins, bin: usize| {
        let range = format!("{} to {}", significant(bins.edge(bin)), significant(bins.edge(bin + 1)));
        std::iter::once(range).chain(bins.counts.iter().map(|c| c[bin].to_string())).collect()
    };
    let number = bins.as_ref().map_or(0, |b| b.counts[0].len());
    let left_out = bins.as_ref().map_or(0, |b| b.left_out);
    let note =
        if left_out > 0 { format!(" {left_out} rewards are not finite and are left out.") } else { String::new() };
    Figure {
        svg: chart.to_svg(),
        caption: format!(
            "Rewards of {} pairs after step {}. The less the outlines overlap, the better the model separates \
             chosen from rejected responses.{note}",
            scores.pairs.len(),
            scores.step
        ),
        table: Table {
            caption: format!("{title}: responses in each range"),
            header: ["reward", "chosen", "rejected"].map(str::to_owned).to_vec(),
            rows: bins.iter().flat_map(|b| (0..number).map(|bin| row(b, bin))).collect(),
            numeric: (0..3).collect(),
        },
    }
}

fn scatter(title: String, scores: &EvalScores) -> Figure {
    let sides = sides(scores);
    let every = scores.pairs.len().div_ceil(MAX_POINTS).max(1);
    let points = |side: &[ScoredResponse]| side.iter().step_by(every).map(|s| (s.tokens, s.reward)).collect::<Vec<_>>();
    let chart = Scatter {
        title: title.clone(),
        x: Axis::new("response length", "tokens"),
        y: Axis::new("reward", ""),
        series: sides
            .iter()
            .enumerate()
            .map(|(style, (name, side))| Series { name: (*name).into(), style, points: points(side) })
            .collect(),
    };
    let r = PairStatistics::of(scores).correlation;
    let shown = if every > 1 { format!(" Every {every}th pair is drawn.") } else { String::new() };
    let row = |(name, side): &(&str, Vec<ScoredResponse>)| {
        let pairs: Vec<_> = side.iter().map(|s| (s.tokens, s.reward)).collect();
        vec![
            (*name).to_owned(),
            side.len().to_string(),
            decimal(mean(pairs.iter().map(|p| p.0)), 1),
            significant(mean(pairs.iter().map(|p| p.1))),
            signed(correlation(&pairs)),
        ]
    };
    Figure {
        svg: chart.to_svg(),
        caption: format!(
            "Correlation of length and reward: {}. If it is far from 0, length explains part of the reward.{shown}",
            signed(r)
        ),
        table: Table {
            caption: format!("{title}, by side"),
            header: ["side", "responses", "mean length", "mean reward", "correlation"].map(str::to_owned).to_vec(),
            rows: sides.iter().map(row).collect(),
            numeric: (1..5).collect(),
        },
    }
}

fn signed(r: Option<f64>) -> String {
    match r.map(|r| decimal(r, 3)) {
        None => NO_VALUE.to_owned(),
        Some(text) if text.starts_with('-') => text,
        Some(text) => format!("+{text}"),
    }
}

fn table(scored: &[(&RunLog, &EvalScores)]) -> Table {
    let percent =
        |share: f64| if share.is_finite() { format!("{} %", decimal(100.0 * share, 1)) } else { NO_VALUE.into() };
    let all: Vec<(&RunLog, u64, PairStatistics)> =
        scored.iter().map(|(r, s)| (*r, s.step, PairStatistics::of(s))).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: &dyn Fn(&(&RunLog, u64, PairStatistics)) -> String| {
        rows.push(std::iter::once(name.to_owned()).chain(all.iter().map(value)).collect());
    };
    row("evaluated after step", &|a| a.1.to_string());
    row("pairs", &|a| a.2.pairs.to_string());
    row("mean reward, chosen", &|a| significant(a.2.mean_chosen));
    row("mean reward, rejected", &|a| significant(a.2.mean_rejected));
    row("pairs with a falling chosen response", &|a| match has_reference(a.0) {
        true => percent(a.2.falling_chosen),
        false => "no reference".into(),
    });
    row("longer response is the chosen one", &|a| percent(a.2.longer_is_chosen));
    row("longer response has the higher reward", &|a| percent(a.2.longer_wins));
    row("correlation of length and reward", &|a| signed(a.2.correlation));
    Table {
        caption: "Chosen and rejected responses; rows about length cover pairs of different lengths".into(),
        header: std::iter::once(String::new()).chain(all.iter().map(|a| a.0.name.clone())).collect(),
        rows,
        numeric: (1..=all.len()).collect(),
    }
}
