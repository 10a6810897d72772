//! Measures of a scored data set: shares with intervals, divided by what the comparisons are about, and the paired
//! comparison of two models. Nothing here runs a model; [`crate::train::evaluate`] does.
//!
//! With rho(x, y) the score of response y under prompt x (a reward, or beta times the log-ratio), y+ and y- the chosen
//! and the rejected response, and gap(x) = rho(x, y+) - rho(x, y-), each measure is a set of signed numbers z:
//!
//! | measure | z |
//! |---|---|
//! | semantic | gap(x) of an original pair; the signed sum of a base comparison of another form |
//! | length_only | characters of y+ less those of y-: what a scorer reaches that prefers the longer response |
//! | semantic_empty_prompt | gap of an original pair without a prompt |
//! | semantic_shuffled_prompt | gap of an original pair under the prompt of another row |
//! | intra | rho(x_better, y) - rho(x_worse, y) |
//! | intra_empty_prompt | the same without prompts: ties, because nothing is left to differ |
//! | inter | gap(x_up) - gap(x), and gap(x) - gap(x_down) |
//! | sensitivity | gap(x_up) - gap(x_down) |
//! | sensitivity_flip | min(gap(x_up), -gap(x_down)) |
//! | conflict | -gap(x_down) |
//!
//! `accuracy` is the share of z > 0, `accuracy_half` adds half the share of z = 0, `mean_logit` is the mean of z. x_up
//! is a prompt whose added instructions y+ meets, all, and y- meets, none; x_down is the mirror image. Sensitivity is
//! the share of pairs for which the model moves with the instructions when only they change; its flip is the share
//! for which it moves so far that the preferred response changes with them. Conflict is the share of pairs for
//! which following the instructions beats the original preference. It has no right direction: it tells a trade-off.
//!
//! - [`measure`]: quantities, observations, counts; [`statistics`]: bootstrap by group, exact tests
//! - [`breakdown`]: what comparisons are divided by; `sensitivity`: one pair under several prompts
//! - [`blindness`]: prompts taken away or exchanged
//! - [`compare`]: two models on the same data; [`record`]: JSON in and out; [`table`]: text

pub mod blindness;
pub mod breakdown;
pub mod compare;
pub mod measure;
pub mod record;
mod sensitivity;
pub mod statistics;
pub mod table;

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::backend::contract::KINDS;
use crate::data::group::{Kind, PreferenceGroup, Term};
use crate::loss::signed_sum::signed_sum;
use crate::train::metrics::KindTally;
use breakdown::{characters, comparison_labels, pair};
use measure::{By, Measure, Quantity, Split, Summary};
use statistics::{Moments, Resampling};

/// A group and the scores of its sequences.
#[derive(Clone, Debug)]
pub struct Scored<'a> {
    pub group: &'a PreferenceGroup,
    scores: BTreeMap<(usize, usize), f64>,
}

impl<'a> Scored<'a> {
    /// `scores` are of the (prompt, response) pairs of [`PreferenceGroup::sequences`], in order.
    pub fn new(group: &'a PreferenceGroup, scores: &[f64]) -> Self {
        Self { group, scores: group.sequences().into_iter().zip(scores.iter().copied()).collect() }
    }

    /// Score of a response under a prompt; `None` when no comparison uses the two together.
    pub fn score(&self, prompt: usize, response: usize) -> Option<f64> {
        self.scores.get(&(prompt, response)).copied()
    }
}

/// What measures depend on besides scores.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Full ids of the instruction functions that training did not see.
    pub holdout_functions: Vec<String>,
}

/// Everything measured on one data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Those with observations, in the order of [`Quantity::ALL`].
    pub measures: Vec<Measure>,
    /// Groups of the data.
    pub groups: usize,
    /// [`data_hash`] of the groups.
    pub data: String,
    pub rewards: Rewards,
}

/// Spread of the scores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rewards {
    /// All distinct sequences.
    pub all: Option<Moments>,
    /// Chosen and rejected responses of original pairs under their prompts.
    pub chosen: Option<Moments>,
    pub rejected: Option<Moments>,
}

impl Evaluation {
    /// Measures scored groups. `probes` are measures made elsewhere, such as those of [`blindness`].
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

    /// The measure of a quantity, when it has observations.
    pub fn measure(&self, quantity: Quantity) -> Option<&Measure> {
        self.measures.iter().find(|m| m.quantity == quantity)
    }

    /// Counts of semantic, intra and inter comparisons.
    pub fn tallies(&self) -> [KindTally; KINDS] {
        Kind::ALL.map(|kind| self.measure(quantity_of(kind)).map_or(KindTally::default(), Measure::tally))
    }

    /// Summaries of all measures and their splits.
    pub fn summaries(&self, resampling: Resampling) -> Vec<Line<Summary>> {
        let jobs: Vec<(&Measure, Option<&Split>)> = self
            .measures
            .iter()
            .flat_map(|m| std::iter::once((m, None)).chain(m.splits.iter().map(move |s| (m, Some(s)))))
            .collect();
        // Each line has random numbers of its own, so the order of work does not matter.
        jobs.into_par_iter()
            .map(|(measure, split)| {
                let place = Place::of(measure.quantity, split);
                let summary = Summary::of(&measure.members(split), resampling, &place.labels());
                Line { place, summary }
            })
            .collect()
    }
}

/// Which observations a line of a report is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub quantity: Quantity,
    pub split: Option<(By, String)>,
}

impl Place {
    fn of(quantity: Quantity, split: Option<&Split>) -> Self {
        Self { quantity, split: split.map(|s| (s.by, s.label.clone())) }
    }

    /// Name of the stream of random numbers.
    fn labels(&self) -> Vec<&str> {
        let split = self.split.iter().flat_map(|(by, label)| [by.name(), label.as_str()]);
        std::iter::once(self.quantity.name()).chain(split).collect()
    }

    /// The line's name in a table; splits are indented.
    pub fn title(&self) -> String {
        match &self.split {
            None => self.quantity.name().to_owned(),
            Some((by, label)) => format!("  {}", by.title(label)),
        }
    }
}

/// A line of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<T> {
    pub place: Place,
    pub summary: T,
}

impl Rewards {
    fn of(scored: &[Scored<'_>]) -> Self {
        let all: Vec<f64> = scored.iter().flat_map(|s| s.scores.values().copied()).collect();
        let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
        for scored in scored {
            for (prompt, better, worse) in scored.group.comparisons.iter().filter_map(pair) {
                chosen.extend(scored.score(prompt, better));
                rejected.extend(scored.score(prompt, worse));
            }
        }
        Self { all: Moments::of(&all), chosen: Moments::of(&chosen), rejected: Moments::of(&rejected) }
    }
}

/// The quantity that comparisons of a kind measure.
pub fn quantity_of(kind: Kind) -> Quantity {
    match kind {
        Kind::Base => Quantity::Semantic,
        Kind::Intra => Quantity::Intra,
        Kind::Inter => Quantity::Inter,
    }
}

/// The comparisons that the rows carry.
fn kinds(scored: &[Scored<'_>], settings: &Settings) -> Vec<Measure> {
    let mut measures = Kind::ALL.map(|kind| Measure::new(quantity_of(kind)));
    for (g, scored) in scored.iter().enumerate() {
        for comparison in &scored.group.comparisons {
            // Every term of a comparison is a sequence of its group; a missing score shows as NaN, never as a win.
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

/// Hash of groups in order: text, comparisons and instructions, whatever the file and the rows were called.
pub fn data_hash<'a>(groups: impl IntoIterator<Item = &'a PreferenceGroup>) -> String {
    let mut hash = blake3::Hasher::new();
    for group in groups {
        let PreferenceGroup { id: _, prompts, responses, comparisons, instructions, tools, chat_template_kwargs } =
            group;
        let content = (prompts, responses, comparisons, instructions, tools, chat_template_kwargs);
        // A group came from JSON and always goes back to it.
        let text = serde_json::to_string(&content).unwrap_or_default();
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().to_hex().to_string()
}
