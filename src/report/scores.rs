//! Accuracies of a quick start's runs over its seeds, and the gain of MAPL.
//!
//! With one seed, an accuracy has the Wilson interval over its comparisons. With several seeds, it is the
//! mean over seeds with its t interval, which also covers the variation between languages, initial weights
//! and data orders.

use serde::Serialize;
use serde_json::Value;

use super::summary::{Count, QuickstartSummary, RunSummary};
use crate::statistics::t_interval;
use crate::{Error, Result};

/// Suffixes of run names: trained on base pairs, on base pairs with as many tokens as the MAPL run, and with
/// MAPL.
pub const BASE: &str = "-base";
pub const BASE_EQUAL: &str = "-base-equal";
pub const MAPL: &str = "-mapl";

/// Names of the accuracies, in the order of [`RunScores::accuracies`].
pub const MEASURES: [&str; 3] = ["semantic", "intra", "inter"];

/// Mean over seeds, and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
}

/// Scores of the runs with one name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunScores {
    pub name: String,
    pub seeds: Vec<u64>,
    /// Semantic, intra and inter accuracy; `None` without comparisons.
    pub accuracies: [Option<Score>; 3],
    /// Means of steps, tokens and seconds over seeds.
    pub steps: f64,
    pub tokens: f64,
    pub seconds: f64,
}

/// Difference of accuracies: a run with MAPL minus a run without.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gain {
    pub method: String,
    /// Whether both runs process the same number of tokens; otherwise they have the same number of steps.
    pub equal_tokens: bool,
    /// Mean difference of semantic, intra and inter accuracy; `None` without comparisons.
    pub differences: [Option<f64>; 3],
    /// 95 % t intervals of the differences per seed; `None` with one seed.
    pub intervals: [Option<[f64; 2]>; 3],
}

impl RunSummary {
    /// Counts in the order of [`MEASURES`].
    pub fn counts(&self) -> [Count; 3] {
        [self.semantic, self.intra, self.inter]
    }

    fn accuracies(&self) -> [Option<f64>; 3] {
        self.counts().map(|count| (count.total > 0).then(|| count.accuracy()))
    }

    /// Method of the run, for example `reward` for `reward-mapl`.
    pub fn method(&self) -> &str {
        method_of(&self.name)
    }
}

/// Method of a run name, for example `reward` for `reward-mapl`.
pub(super) fn method_of(name: &str) -> &str {
    name.split('-').next().unwrap_or(name)
}

impl QuickstartSummary {
    /// Returns the content of `summary.json`: the summary, plus `scores` and `gains`, which are computed from
    /// its runs.
    ///
    /// # Errors
    /// [`Error::Runtime`] if a value cannot be written as JSON.
    pub fn to_json(&self) -> Result<Value> {
        let failed = |e| Error::Runtime(format!("cannot write the summary: {e}"));
        let mut value = serde_json::to_value(self).map_err(failed)?;
        value["scores"] = serde_json::to_value(self.scores()).map_err(failed)?;
        value["gains"] = serde_json::to_value(self.gains()).map_err(failed)?;
        Ok(value)
    }

    /// Runs of the first seed.
    pub fn first_runs(&self) -> Vec<&RunSummary> {
        let first = self.runs.first().map(|run| run.seed);
        self.runs.iter().filter(|run| Some(run.seed) == first).collect()
    }

    /// Number of different seeds.
    pub fn seeds(&self) -> usize {
        let mut seeds: Vec<u64> = self.runs.iter().map(|run| run.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        seeds.len()
    }

    fn named(&self, name: &str) -> Vec<&RunSummary> {
        self.runs.iter().filter(|run| run.name == name).collect()
    }

    /// Scores of each name, in the order of the first seed's runs.
    pub fn scores(&self) -> Vec<RunScores> {
        self.first_runs().into_iter().map(|first| scores(&self.named(&first.name))).collect()
    }

    /// Gains of each method that has runs with and without MAPL, at equal steps and equal tokens.
    pub fn gains(&self) -> Vec<Gain> {
        let mut gains = Vec::new();
        for mapl in self.first_runs() {
            let Some(method) = mapl.name.strip_suffix(MAPL) else { continue };
            for (suffix, equal_tokens) in [(BASE, false), (BASE_EQUAL, true)] {
                let (from, to) = (self.named(&format!("{method}{suffix}")), self.named(&mapl.name));
                if !from.is_empty() {
                    gains.push(gain(method, equal_tokens, &from, &to));
                }
            }
        }
        gains
    }
}

fn scores(runs: &[&RunSummary]) -> RunScores {
    let mean = |of: &dyn Fn(&RunSummary) -> f64| runs.iter().map(|run| of(run)).sum::<f64>() / runs.len() as f64;
    let score = |measure: usize| -> Option<Score> {
        if let [run] = runs {
            let count = run.counts()[measure];
            let (low, high) = count.interval()?;
            return Some(Score { mean: count.accuracy(), low, high });
        }
        let values = runs.iter().map(|run| run.accuracies()[measure]).collect::<Option<Vec<f64>>>()?;
        let [low, high] = t_interval(&values)?;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Score { mean, low: low.max(0.0), high: high.min(1.0) })
    };
    RunScores {
        name: runs[0].name.clone(),
        seeds: runs.iter().map(|run| run.seed).collect(),
        accuracies: [0, 1, 2].map(score),
        steps: mean(&|run| run.steps as f64),
        tokens: mean(&|run| run.tokens as f64),
        seconds: mean(&|run| run.seconds),
    }
}

fn gain(method: &str, equal_tokens: bool, from: &[&RunSummary], to: &[&RunSummary]) -> Gain {
    // Runs of one seed share language, groups and start model, so differences are formed seed by seed.
    let differences = |measure: usize| -> Option<Vec<f64>> {
        let pairs = from.iter().filter_map(|base| Some((base, to.iter().find(|run| run.seed == base.seed)?)));
        let all = pairs.map(|(base, run)| Some(run.accuracies()[measure]? - base.accuracies()[measure]?));
        all.collect::<Option<Vec<f64>>>().filter(|all| !all.is_empty())
    };
    Gain {
        method: method.to_owned(),
        equal_tokens,
        differences: [0, 1, 2].map(|m| differences(m).map(|all| all.iter().sum::<f64>() / all.len() as f64)),
        intervals: [0, 1, 2].map(|m| differences(m).and_then(|all| t_interval(&all))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, seed: u64, correct: u64) -> RunSummary {
        let count = Count { correct, ties: 0, total: 10 };
        RunSummary { name: name.into(), seed, semantic: count, intra: count, ..Default::default() }
    }

    #[test]
    fn several_seeds_have_a_mean_with_a_t_interval_and_paired_gains() {
        let runs = [(1, 4, 7), (2, 5, 9), (3, 6, 8)].map(|(seed, base, mapl)| {
            [run("dpo-base", seed, base), run("dpo-mapl", seed, mapl), run("dpo-base-equal", seed, base + 1)]
        });
        let summary = QuickstartSummary { runs: runs.concat(), ..Default::default() };
        let scores = summary.scores();
        let names: Vec<&str> = scores.iter().map(|score| score.name.as_str()).collect();
        assert_eq!((names, summary.seeds()), (vec!["dpo-base", "dpo-mapl", "dpo-base-equal"], 3));
        let Some(Score { mean, low, high }) = scores[0].accuracies[0] else { panic!("{scores:?}") };
        // The accuracies 0.4, 0.5 and 0.6 have mean 0.5 and half-width 4.303 * 0.1 / sqrt(3) = 0.2484.
        assert!((mean - 0.5).abs() < 1e-12 && (low - 0.2516).abs() < 1e-4 && (high - 0.7484).abs() < 1e-4);
        assert_eq!(scores[0].accuracies[2], None, "no inter comparison");
        let gains = summary.gains();
        assert_eq!(gains.iter().map(|gain| gain.equal_tokens).collect::<Vec<_>>(), [false, true]);
        // The differences are 0.3, 0.4 and 0.2; `dpo-base-equal` is 0.1 better than `dpo-base`.
        assert!((gains[0].differences[0].unwrap() - 0.3).abs() < 1e-12);
        assert!((gains[1].differences[0].unwrap() - 0.2).abs() < 1e-12);
        let [low, high] = gains[0].intervals[0].unwrap();
        assert!((low - 0.0516).abs() < 1e-4 && (high - 0.5484).abs() < 1e-4, "{low} {high}");
        // With one seed, the interval is the Wilson interval over the comparisons.
        let one = QuickstartSummary { runs: vec![run("dpo-base", 1, 8)], ..Default::default() };
        let Some(Score { low, high, .. }) = one.scores()[0].accuracies[1] else { panic!() };
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4);
        assert!(one.gains().is_empty());
    }
}
