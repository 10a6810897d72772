//! Measures of comparisons. A measure has one signed number per comparison, and a positive number counts as
//! right. It keeps these observations, so splits, intervals and the comparison of two models use the same
//! numbers.

use std::collections::BTreeMap;

use super::statistics::{Cluster, Estimate, Resampling, estimates, unanimous_interval};
use crate::train::metrics::KindTally;

/// Measured quantity. Module [`crate::eval`] has the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// Base comparisons.
    Semantic,
    /// Base comparisons scored by length, so that the longer response wins.
    LengthOnly,
    /// Base comparisons with an empty prompt.
    SemanticEmptyPrompt,
    /// Base comparisons with the prompt of another group.
    SemanticShuffledPrompt,
    /// Intra comparisons.
    Intra,
    /// Intra comparisons with an empty prompt.
    IntraEmptyPrompt,
    /// Inter comparisons.
    Inter,
    /// Difference of the score gap between two prompts whose instructions favour opposite responses.
    Sensitivity,
    /// Pairs in which the preferred response follows the instructions under both prompts of
    /// [`Quantity::Sensitivity`].
    SensitivityFlip,
    /// Comparisons whose instruction contradicts the base preference.
    Conflict,
}

impl Quantity {
    /// All quantities, in the order of every table and file.
    pub const ALL: [Quantity; 10] = [
        Quantity::Semantic,
        Quantity::LengthOnly,
        Quantity::SemanticEmptyPrompt,
        Quantity::SemanticShuffledPrompt,
        Quantity::Intra,
        Quantity::IntraEmptyPrompt,
        Quantity::Inter,
        Quantity::Sensitivity,
        Quantity::SensitivityFlip,
        Quantity::Conflict,
    ];

    /// Key in files and label in tables.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Semantic => "semantic",
            Quantity::LengthOnly => "length_only",
            Quantity::SemanticEmptyPrompt => "semantic_empty_prompt",
            Quantity::SemanticShuffledPrompt => "semantic_shuffled_prompt",
            Quantity::Intra => "intra",
            Quantity::IntraEmptyPrompt => "intra_empty_prompt",
            Quantity::Inter => "inter",
            Quantity::Sensitivity => "sensitivity",
            Quantity::SensitivityFlip => "sensitivity_flip",
            Quantity::Conflict => "conflict",
        }
    }

    /// Returns the quantity with this name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quantity| quantity.name() == name)
    }
}

/// Criterion that splits the comparisons of a measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Longer of the two responses, in characters.
    Length,
    /// Number of added instructions, for the prompt with the most.
    Instructions,
    /// Rule of an intra comparison.
    Rule,
    /// Direction of an inter comparison.
    Direction,
    /// Number of instructions that a response fails under the worse prompt, minus the number it
    /// fails under the better prompt.
    Violations,
    /// Whether the instruction functions were held out of training.
    Holdout,
    /// Id of an instruction function; a comparison counts under each of its functions.
    Function,
}

impl By {
    /// All criteria, in the order of tables and files.
    pub const ALL: [By; 7] =
        [By::Length, By::Instructions, By::Rule, By::Direction, By::Violations, By::Holdout, By::Function];

    /// Key in files.
    pub fn name(self) -> &'static str {
        match self {
            By::Length => "by_length",
            By::Instructions => "by_instructions",
            By::Rule => "by_rule",
            By::Direction => "by_direction",
            By::Violations => "by_violations",
            By::Holdout => "by_holdout",
            By::Function => "by_function",
        }
    }

    /// Returns the criterion with this name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.name() == name)
    }

    /// Formats a label as the title of a table line.
    pub fn title(self, label: &str) -> String {
        match self {
            By::Instructions => format!("{label} instruction{}", if label == "1" { "" } else { "s" }),
            By::Rule => format!("rule {label}"),
            By::Violations => format!("{label} violated"),
            By::Holdout => format!("functions {label}"),
            By::Length | By::Direction | By::Function => label.to_owned(),
        }
    }
}

/// Result of one comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observation {
    /// Index of the group in the data.
    pub group: usize,
    /// Positive if right; zero for a tie.
    pub logit: f64,
}

/// Subset of a measure's observations.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Criterion of the split.
    pub by: By,
    /// Value of the criterion.
    pub label: String,
    /// Indices into [`Measure::observations`], ascending.
    pub members: Vec<usize>,
}

/// All observations of one quantity, in ascending order of group.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// Measured quantity.
    pub quantity: Quantity,
    /// Observations, one per comparison.
    pub observations: Vec<Observation>,
    /// Sorted by criterion, then by label; integer labels by value.
    pub splits: Vec<Split>,
}

impl Measure {
    /// Creates a measure without observations.
    pub fn new(quantity: Quantity) -> Self {
        Self { quantity, observations: Vec::new(), splits: Vec::new() }
    }

    /// Adds an observation under its labels.
    pub fn add(&mut self, group: usize, logit: f64, labels: Vec<(By, String)>) {
        let index = self.observations.len();
        self.observations.push(Observation { group, logit });
        for (by, label) in labels {
            match self.splits.iter_mut().find(|split| split.by == by && split.label == label) {
                Some(split) => split.members.push(index),
                None => self.splits.push(Split { by, label, members: vec![index] }),
            }
        }
    }

    /// Sorts the splits.
    pub fn sort_splits(&mut self) {
        let number = |label: &str| label.parse::<i64>().unwrap_or(i64::MAX);
        self.splits.sort_by(|a, b| (a.by, number(&a.label), &a.label).cmp(&(b.by, number(&b.label), &b.label)));
    }

    /// Returns the observations of a split, or all observations.
    pub fn members(&self, split: Option<&Split>) -> Vec<Observation> {
        match split {
            Some(split) => split.members.iter().map(|&index| self.observations[index]).collect(),
            None => self.observations.clone(),
        }
    }

    /// Returns the counts without intervals.
    pub fn tally(&self) -> KindTally {
        let mut tally = KindTally::default();
        self.observations.iter().for_each(|o| tally.add(0.0, o.logit));
        tally
    }
}

/// Counts and shares of a set of observations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of observations.
    pub count: usize,
    /// Number of groups of the observations.
    pub groups: usize,
    /// Correctly ordered comparisons.
    pub correct: usize,
    /// Number of logits of exactly 0.
    pub ties: usize,
    /// Number of non-finite logits. NaN is neither right nor a tie.
    pub non_finite: usize,
    /// Share of positive logits.
    pub accuracy: Estimate,
    /// Accuracy with a tie counted as one half.
    pub accuracy_half: Estimate,
    /// Mean of the logits.
    pub mean_logit: Estimate,
}

/// Returns 1 for right, 0 for wrong, and `tie` for a tie.
pub(super) fn credit(logit: f64, tie: f64) -> f64 {
    if logit > 0.0 {
        1.0
    } else if logit == 0.0 {
        tie
    } else {
        0.0
    }
}

/// Returns the sums per group, in order of the groups.
pub(super) fn clusters<T, const N: usize>(
    items: &[T],
    group: impl Fn(&T) -> usize,
    terms: impl Fn(&T) -> [f64; N],
) -> Vec<Cluster<N>> {
    let mut clusters: BTreeMap<usize, Cluster<N>> = BTreeMap::new();
    for item in items {
        let cluster = clusters.entry(group(item)).or_default();
        cluster.weight += 1.0;
        for (sum, term) in cluster.sums.iter_mut().zip(terms(item)) {
            *sum += term;
        }
    }
    clusters.into_values().collect()
}

impl Summary {
    /// Summarises observations. `labels` name the random stream of the bootstrap.
    pub fn of(observations: &[Observation], resampling: Resampling, labels: &[&str]) -> Self {
        let clusters = clusters(observations, |o| o.group, |o| [credit(o.logit, 0.0), credit(o.logit, 0.5), o.logit]);
        let [mut accuracy, mut accuracy_half, mean_logit] = estimates(&clusters, resampling, labels);
        for estimate in [&mut accuracy, &mut accuracy_half] {
            let unanimous = estimate.value == 0.0 || estimate.value == 1.0;
            if unanimous && clusters.len() > 1 && resampling.resamples > 0 {
                estimate.interval = Some(unanimous_interval(clusters.len(), estimate.value == 1.0));
            }
        }
        let count = |keep: fn(f64) -> bool| observations.iter().filter(|o| keep(o.logit)).count();
        Self {
            count: observations.len(),
            groups: clusters.len(),
            correct: count(|logit| logit > 0.0),
            ties: count(|logit| logit == 0.0),
            non_finite: count(|logit| !logit.is_finite()),
            accuracy,
            accuracy_half,
            mean_logit,
        }
    }
}
