//! Measures of a scored data set: shares with intervals, split by properties of the comparisons,
//! and the paired comparison of two models. This module does not run models;
//! [`crate::train::evaluate`] does.
//!
//! Let rho(x, y) be the score of response y under prompt x: a reward, or beta times the log-ratio.
//! Let y+ and y- be the chosen and the rejected response, and gap(x) = rho(x, y+) - rho(x, y-).
//! Each measure is a set of signed numbers z:
//!
//! | measure | z |
//! |---|---|
//! | semantic | gap(x) of an original pair; the signed sum of any other base comparison |
//! | length_only | characters of y+ minus characters of y-: the accuracy of a scorer that prefers longer responses |
//! | semantic_empty_prompt | gap of an original pair without a prompt |
//! | semantic_shuffled_prompt | gap of an original pair under the prompt of another row |
//! | intra | rho(x_better, y) - rho(x_worse, y) |
//! | intra_empty_prompt | the same without prompts: always a tie, because the two sequences are equal |
//! | inter | gap(x_up) - gap(x), and gap(x) - gap(x_down) |
//! | sensitivity | gap(x_up) - gap(x_down) |
//! | sensitivity_flip | min(gap(x_up), -gap(x_down)) |
//! | conflict | -gap(x_down) |
//!
//! `accuracy` is the share of z > 0, `accuracy_half` adds half the share of z = 0, and `mean_logit` is the mean
//! of z. Prompt x_up adds instructions: y+ satisfies all of them and y- none. Prompt x_down is the mirror
//! image. Sensitivity is the share of pairs with a gap that moves with the instructions when only the
//! instructions change. Sensitivity flip is the share of pairs with a gap that changes sign, so that the
//! preferred response follows the instructions. Conflict is the share of pairs in which following the
//! instructions beats the original preference. Conflict has no right direction: it shows a trade-off.
//!
//! - [`measure`]: quantities, observations, counts; [`statistics`]: bootstrap by group, exact tests
//! - `breakdown`: labels that split comparisons; `sensitivity`: one pair under several prompts
//! - [`blindness`]: emptied and exchanged prompts; [`benchmark`]: published benchmarks of reward models
//! - [`labelled`]: rows with one response and a label
//! - [`compare`]: two models on the same data; [`record`]: reading and writing of JSON; `table`: text

pub mod benchmark;
pub mod blindness;
mod breakdown;
pub mod compare;
pub mod labelled;
pub mod measure;
pub mod record;
mod sensitivity;
pub mod statistics;
pub(crate) mod table;

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::backend::contract::KINDS;
use crate::data::group::{Kind, PreferenceGroup, Term};
use crate::loss::signed_sum::signed_sum;
use crate::train::metrics::KindTally;
use breakdown::{characters, comparison_labels, pair};
use measure::{By, Measure, Quantity, Split, Summary};
use statistics::{Moments, Resampling};

/// A group with the scores of its sequences.
#[derive(Clone, Debug)]
pub struct Scored<'a> {
    /// The group.
    pub group: &'a PreferenceGroup,
    scores: BTreeMap<(usize, usize), f64>,
}

impl<'a> Scored<'a> {
    /// Pairs `scores` with the (prompt, response) pairs of [`PreferenceGroup::sequences`], in
    /// order.
    pub fn new(group: &'a PreferenceGroup, scores: &[f64]) -> Self {
        Self { group, scores: group.sequences().into_iter().zip(scores.iter().copied()).collect() }
    }

    /// Returns the score of a response under a prompt; `None` if no comparison uses this sequence.
    pub fn score(&self, prompt: usize, response: usize) -> Option<f64> {
        self.scores.get(&(prompt, response)).copied()
    }
}

/// Settings of the measures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Full ids of the instruction functions held out of training.
    pub holdout_functions: Vec<String>,
}

/// All measures of one data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Measures with observations, in the order of [`Quantity::ALL`].
    pub measures: Vec<Measure>,
    /// Number of groups in the data.
    pub groups: usize,
    /// Hash of the groups, see [`data_hash`].
    pub data: String,
    /// Moments of the rewards.
    pub rewards: Rewards,
}

/// Distribution of the scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rewards {
    /// All distinct sequences.
    pub all: Option<Moments>,
    /// Chosen responses of original pairs under their prompts.
    pub chosen: Option<Moments>,
    /// Rejected responses of original pairs under their prompts.
    pub rejected: Option<Moments>,
    /// Number of scores that are NaN or infinite.
    pub non_finite: usize,
}

impl Evaluation {
    /// Measures scored groups. `probes` are measures computed elsewhere, such as by [`blindness`].
    pub fn of(scored: &[Scored<'_>], settings: &Settings, probes: Vec<Measure>) -> Self {
        let mut measures = kinds(scored, settings);
        measures.push(length_only(scored));
        measures.extend(sensitivity::measures(scored, settings));
        measures.extend(probes);
        measures.retain(|m| !m.observations.is_empty());
        measures.iter_mut().for_each(Measure::sort_splits);
        measures.sort_by_key(|m| m.quantity);
        let data = data_hash(scored.iter().map(|s| s.group));
        Self { measures, groups: scored.len(), data, rewards: Rewards::of(scored) }
    }

    /// Returns the measure of a quantity, if it has observations.
    pub fn measure(&self, quantity: Quantity) -> Option<&Measure> {
        self.measures.iter().find(|m| m.quantity == quantity)
    }

    /// Returns the counts of semantic, intra and inter comparisons.
    pub fn tallies(&self) -> [KindTally; KINDS] {
        Kind::ALL.map(|kind| self.measure(quantity_of(kind)).map_or(KindTally::default(), Measure::tally))
    }

    /// Summarises all measures and their splits.
    pub fn summaries(&self, resampling: Resampling) -> Vec<Line<Summary>> {
        let jobs: Vec<(&Measure, Option<&Split>)> = self
            .measures
            .iter()
            .flat_map(|m| std::iter::once((m, None)).chain(m.splits.iter().map(move |s| (m, Some(s)))))
            .collect();
        // Each line has a separate random stream, so the order of execution does not matter.
        jobs.into_par_iter()
            .map(|(measure, split)| {
                let place = Place::of(measure.quantity, split);
                let summary = Summary::of(&measure.members(split), resampling, &place.labels());
                Line { place, summary }
            })
            .collect()
    }
}

/// Quantity and split of a report line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Measured quantity.
    pub quantity: Quantity,
    /// Criterion and label of the split; `None` for the whole measure.
    pub split: Option<(By, String)>,
}

impl Place {
    fn of(quantity: Quantity, split: Option<&Split>) -> Self {
        Self { quantity, split: split.map(|s| (s.by, s.label.clone())) }
    }

    /// Labels that name the random stream of the bootstrap.
    fn labels(&self) -> Vec<&str> {
        let split = self.split.iter().flat_map(|(by, label)| [by.name(), label.as_str()]);
        std::iter::once(self.quantity.name()).chain(split).collect()
    }

    /// Title of the line in a table; splits are indented.
    pub fn title(&self) -> String {
        match &self.split {
            None => self.quantity.name().to_owned(),
            Some((by, label)) => format!("  {}", by.title(label)),
        }
    }
}

/// Line of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<T> {
    /// Quantity and split that the line summarises.
    pub place: Place,
    /// The summary.
    pub summary: T,
}

impl Rewards {
    /// Warning about scores of a model that are not finite.
    pub fn warning(&self, model: &str) -> Option<String> {
        (self.non_finite > 0).then(|| non_finite_warning(model, self.non_finite, self.all.map(|all| all.count)))
    }

    fn of(scored: &[Scored<'_>]) -> Self {
        let all: Vec<f64> = scored.iter().flat_map(|s| s.scores.values().copied()).collect();
        let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
        for scored in scored {
            for (prompt, better, worse) in scored.group.comparisons.iter().filter_map(pair) {
                chosen.extend(scored.score(prompt, better));
                rejected.extend(scored.score(prompt, worse));
            }
        }
        Self {
            all: Moments::of(&all),
            chosen: Moments::of(&chosen),
            rejected: Moments::of(&rejected),
            non_finite: all.iter().filter(|score| !score.is_finite()).count(),
        }
    }
}

/// Warning that `count` scores of a model are not finite, of `total` if that is known.
pub fn non_finite_warning(model: &str, count: usize, total: Option<usize>) -> String {
    let of = total.map_or(String::new(), |total| format!(" of {total}"));
    format!(
        "{model}: {count}{of} scores are NaN or infinite, so the measures are meaningless; the model diverged or \
         overflows, use an earlier checkpoint"
    )
}

/// Returns the quantity that comparisons of a kind measure.
fn quantity_of(kind: Kind) -> Quantity {
    match kind {
        Kind::Base => Quantity::Semantic,
        Kind::Intra => Quantity::Intra,
        Kind::Inter => Quantity::Inter,
    }
}

/// Returns one measure for each kind of comparison.
fn kinds(scored: &[Scored<'_>], settings: &Settings) -> Vec<Measure> {
    let mut measures = Kind::ALL.map(|kind| Measure::new(quantity_of(kind)));
    for (g, scored) in scored.iter().enumerate() {
        for comparison in &scored.group.comparisons {
            // Every term of a comparison is a sequence of its group. A missing score becomes NaN,
            // never a win.
            let term = |t: &Term| {
                let score = scored.score(t.prompt, t.response).unwrap_or(f64::NAN);
                (t.prompt, f64::from(t.sign) * score)
            };
            let logit = signed_sum(comparison.terms.iter().map(term));
            let labels = comparison_labels(scored.group, comparison, &settings.holdout_functions);
            measures[comparison.kind.index()].add(g, logit, labels);
        }
    }
    measures.into()
}

fn length_only(scored: &[Scored<'_>]) -> Measure {
    let mut measure = Measure::new(Quantity::LengthOnly);
    for (g, scored) in scored.iter().enumerate() {
        for (_, better, worse) in scored.group.comparisons.iter().filter_map(pair) {
            let length = |response| characters(scored.group, response) as f64;
            measure.add(g, length(better) - length(worse), Vec::new());
        }
    }
    measure
}

/// Hash of groups in order: text, comparisons and instructions, independent of file names and row
/// ids.
pub fn data_hash<'a>(groups: impl IntoIterator<Item = &'a PreferenceGroup>) -> String {
    let mut hash = blake3::Hasher::new();
    for group in groups {
        let PreferenceGroup { id: _, prompts, responses, comparisons, instructions, tools, chat_template_kwargs } =
            group;
        let content = (prompts, responses, comparisons, instructions, tools, chat_template_kwargs);
        // A group is read from JSON, so it can always be serialised to JSON.
        let text = serde_json::to_string(&content).unwrap_or_default();
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().to_hex().to_string()
}
