//! Scores and accuracies over a data set: `mapl score`, `mapl eval`, and evaluation during training.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::metrics::{KindTally, Tally, tally_scores};
use super::reference::Frozen;
use super::score::Scorer;
use super::upload::DeviceBatch;
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::KINDS;
use crate::data::group::{Comparison, Direction, Instruction, Kind, PreferenceGroup, Rule};
use crate::data::loader::split_by_tokens;
use crate::data::pack::{Batch, ComparisonOptions, pack_into};
use crate::data::tokenized::{SequenceComparison, TokenizedGroup};
use crate::data::tree::token_counts;
use crate::loss::curve::value_and_slope;
use crate::loss::objective::{Loss, Method};
use crate::model::activations::Mode;
use crate::model::decoder::Model;

/// Tokens of one evaluation batch.
const TOKEN_BUDGET: usize = 4096;

/// Scores of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupScores {
    /// Per sequence: summed (or mean) log-prob, or reward.
    pub policy: Vec<f64>,
    /// Per sequence, when there is a reference.
    pub reference: Option<Vec<f64>>,
    /// Per comparison: signed sum of `scale * (policy - reference)`.
    pub logits: Vec<f64>,
}

impl GroupScores {
    /// Logit of a comparison under other signs than its own group's order.
    fn logit(&self, comparison: &SequenceComparison, scale: f64) -> f64 {
        let rho = |s: usize| scale * (self.policy[s] - self.reference.as_ref().map_or(0.0, |r| r[s]));
        comparison.terms.iter().map(|t| f64::from(t.sign) * rho(t.sequence)).sum()
    }
}

/// Runs models over groups. Buffers live as long as the evaluator.
pub struct Evaluator<B: Backend> {
    scorer: Scorer<B>,
    reference_scorer: Option<Scorer<B>>,
    batch: DeviceBatch<B>,
    packed: Batch,
}

impl<B: Backend> Evaluator<B> {
    /// An evaluator for a model and, with DPO, its reference.
    pub fn new(backend: &B, model: &Model<B>, reference: Option<&Model<B>>) -> Result<Self> {
        Ok(Self {
            scorer: Scorer::new(backend, model, Mode::Infer)?,
            reference_scorer: reference.map(|r| Scorer::new(backend, r, Mode::Infer)).transpose()?,
            batch: DeviceBatch::new(backend)?,
            packed: Batch::default(),
        })
    }

    /// Scores of every group, in order, and the sums over all of them. `progress` hears how many groups are done.
    pub fn run(
        &mut self,
        backend: &B,
        (model, mut reference): (&mut Model<B>, Option<&mut Model<B>>),
        loss: &Loss,
        groups: &[TokenizedGroup],
        progress: impl FnMut(usize),
    ) -> Result<(Vec<GroupScores>, Tally)> {
        let mut scorer = self.reference_scorer.take();
        let result = self.each_batch(backend, model, loss, groups, progress, |batch, longest, _| {
            let (Some(model), Some(scorer)) = (reference.as_deref_mut(), &mut scorer) else { return Ok(None) };
            model.reserve_positions(backend, longest)?;
            scorer.forward(backend, model, batch, loss.reduce)?;
            scorer.read_score(backend, batch.sizes.seqs).map(Some)
        });
        self.reference_scorer = scorer;
        result
    }

    /// As [`Evaluator::run`], with the reference of a trainer.
    pub(super) fn run_beside(
        &mut self,
        backend: &B,
        (model, mut reference): (&mut Model<B>, Option<&mut Frozen<B>>),
        loss: &Loss,
        groups: &[TokenizedGroup],
        progress: impl FnMut(usize),
    ) -> Result<(Vec<GroupScores>, Tally)> {
        self.each_batch(backend, model, loss, groups, progress, |batch, longest, members| {
            let Some(reference) = reference.as_deref_mut() else { return Ok(None) };
            reference.load(backend, members, longest)?;
            reference.forward(backend, batch, loss.reduce)?;
            reference.read(backend, batch.sizes.seqs).map(Some)
        })
    }

    /// Scores batch by batch; `reference_scores` gives those of the reference for a batch, its longest sequence and
    /// its groups.
    fn each_batch(
        &mut self,
        backend: &B,
        model: &mut Model<B>,
        loss: &Loss,
        groups: &[TokenizedGroup],
        mut progress: impl FnMut(usize),
        mut reference_scores: impl FnMut(&DeviceBatch<B>, usize, &[&TokenizedGroup]) -> Result<Option<Vec<f64>>>,
    ) -> Result<(Vec<GroupScores>, Tally)> {
        let pack_options = super::pack_options(loss, model.config.vocab);
        let comparison_options = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
        let (mut scores, mut tally) = (Vec::with_capacity(groups.len()), Tally::default());
        let sizes: Vec<usize> = groups.iter().map(|g| token_counts(g).tree).collect();
        for range in split_by_tokens(&sizes, TOKEN_BUDGET) {
            let members: Vec<&TokenizedGroup> = groups[range].iter().collect();
            pack_into(&mut self.packed, &members, &pack_options, &comparison_options)?;
            self.batch.upload(backend, &self.packed, [0.0; KINDS])?;
            model.reserve_positions(backend, self.packed.longest_path)?;
            self.scorer.forward(backend, model, &self.batch, loss.reduce)?;
            let seqs = self.packed.sequences.len();
            let policy = self.scorer.read_score(backend, seqs)?;
            let base = reference_scores(&self.batch, self.packed.longest_path, &members)?;
            tally.tokens += self.packed.ids.len();
            let zeros = vec![0.0; seqs];
            tally_scores(&mut tally, &self.packed, &policy, base.as_deref().unwrap_or(&zeros));
            self.distribute(&members, loss, &policy, base.as_deref(), &mut scores, &mut tally);
            progress(scores.len());
        }
        Ok((scores, tally))
    }

    /// Splits a batch's scores by group and forms the logits.
    fn distribute(
        &self,
        members: &[&TokenizedGroup],
        loss: &Loss,
        policy: &[f64],
        reference: Option<&[f64]>,
        scores: &mut Vec<GroupScores>,
        tally: &mut Tally,
    ) {
        let mut start = 0;
        for group in members {
            let range = start..start + group.sequences.len();
            start = range.end;
            let mut result = GroupScores {
                policy: policy[range.clone()].to_vec(),
                reference: reference.map(|r| r[range].to_vec()),
                logits: Vec::new(),
            };
            for comparison in &group.comparisons {
                let scale = loss.scale[comparison.kind.index()];
                let logit = result.logit(comparison, scale);
                result.logits.push(logit);
                let (f, _) = value_and_slope(loss.curve, logit - comparison.margin - loss.margin, scale);
                tally.kinds[comparison.kind.index()].add(comparison.weight * f, logit);
            }
            if loss.method == Method::Sft {
                tally.logp += result.policy.iter().sum::<f64>();
            }
            tally.response_tokens += group.response_tokens();
            scores.push(result);
        }
    }
}

/// Accuracies by kind and by what the comparisons are about.
#[derive(Clone, Debug, Default)]
pub struct Breakdown {
    pub kinds: [KindTally; KINDS],
    /// By instruction function that differs between the sides (intra) or was added (inter).
    pub functions: BTreeMap<(Kind, String), KindTally>,
    /// By number of added instructions.
    pub instructions: BTreeMap<(Kind, usize), KindTally>,
    /// By rule of intra comparisons.
    pub rules: BTreeMap<Rule, KindTally>,
    /// By direction of inter comparisons.
    pub directions: BTreeMap<Direction, KindTally>,
}

impl Breakdown {
    /// Tallies the comparisons of evaluated groups.
    pub fn of(groups: &[TokenizedGroup], scores: &[GroupScores]) -> Self {
        let mut breakdown = Self::default();
        for (group, scores) in groups.iter().zip(scores) {
            for (comparison, &logit) in group.group.comparisons.iter().zip(&scores.logits) {
                breakdown.add(&group.group, comparison, logit);
            }
        }
        breakdown
    }

    fn add(&mut self, group: &PreferenceGroup, comparison: &Comparison, logit: f64) {
        let kind = comparison.kind;
        self.kinds[kind.index()].add(0.0, logit);
        if let Some(rule) = comparison.rule {
            self.rules.entry(rule).or_default().add(0.0, logit);
        }
        if let Some(direction) = comparison.direction {
            self.directions.entry(direction).or_default().add(0.0, logit);
        }
        let of_prompt = |prompt: usize| group.instructions.iter().filter(move |i| i.prompt == prompt);
        let prompts: Vec<usize> = {
            let mut prompts: Vec<usize> = comparison.terms.iter().map(|t| t.prompt).collect();
            prompts.sort_unstable();
            prompts.dedup();
            prompts
        };
        let most = prompts.iter().map(|&p| of_prompt(p).count()).max().unwrap_or(0);
        if most == 0 {
            return;
        }
        self.instructions.entry((kind, most)).or_default().add(0.0, logit);
        let same = |a: &Instruction, b: &Instruction| a.id == b.id && a.kwargs == b.kwargs;
        let everywhere = |i: &Instruction| prompts.iter().all(|&p| of_prompt(p).any(|j| same(i, j)));
        let mut ids: Vec<&str> =
            prompts.iter().flat_map(|&p| of_prompt(p)).filter(|i| !everywhere(i)).map(|i| i.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            self.functions.entry((kind, id.to_owned())).or_default().add(0.0, logit);
        }
    }

    /// `{"semantic": {...}, "intra": {...}, "inter": {...}, "by_function": ..., ...}`; kinds without comparisons are
    /// absent.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for kind in Kind::ALL {
            if self.kinds[kind.index()].count > 0 {
                map.insert(public_name(kind).into(), tally_json(&self.kinds[kind.index()]));
            }
        }
        let nested = |entries: Vec<(Kind, String, &KindTally)>| {
            let mut outer = Map::new();
            for (kind, name, tally) in entries {
                let inner = outer.entry(public_name(kind)).or_insert_with(|| json!({}));
                inner[name] = tally_json(tally);
            }
            Value::Object(outer)
        };
        map.insert(
            "by_function".into(),
            nested(self.functions.iter().map(|((k, id), t)| (*k, id.clone(), t)).collect()),
        );
        map.insert(
            "by_instructions".into(),
            nested(self.instructions.iter().map(|((k, n), t)| (*k, n.to_string(), t)).collect()),
        );
        let rules: Map<String, Value> = self.rules.iter().map(|(r, t)| (format!("{r:?}"), tally_json(t))).collect();
        map.insert("by_rule".into(), Value::Object(rules));
        let directions: Map<String, Value> =
            self.directions.iter().map(|(d, t)| (format!("{d:?}").to_lowercase(), tally_json(t))).collect();
        map.insert("by_direction".into(), Value::Object(directions));
        map
    }

    /// One aligned table: a line per kind, function and number of instructions.
    pub fn table(&self) -> String {
        let mut lines = vec![format!("{:<48} {:>9} {:>9} {:>6} {:>6}", "", "accuracy", "half", "count", "ties")];
        let mut line = |name: String, t: &KindTally| {
            let (a, h) = (t.accuracy(), t.accuracy_half());
            lines.push(format!("{name:<48} {a:>9.4} {h:>9.4} {:>6} {:>6}", t.count, t.ties));
        };
        for kind in Kind::ALL {
            if self.kinds[kind.index()].count > 0 {
                line(public_name(kind).into(), &self.kinds[kind.index()]);
            }
            for ((_, n), tally) in self.instructions.iter().filter(|((k, _), _)| *k == kind) {
                line(format!("  {n} instruction{}", if *n == 1 { "" } else { "s" }), tally);
            }
            for ((_, id), tally) in self.functions.iter().filter(|((k, _), _)| *k == kind) {
                line(format!("  {id}"), tally);
            }
        }
        for (rule, tally) in &self.rules {
            line(format!("intra, rule {rule:?}"), tally);
        }
        for (direction, tally) in &self.directions {
            line(format!("inter, {direction:?}").to_lowercase(), tally);
        }
        lines.join("\n")
    }
}

/// Name of a kind's accuracy in reports: base pairs measure semantic preference.
pub fn public_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Base => "semantic",
        Kind::Intra => "intra",
        Kind::Inter => "inter",
    }
}

fn tally_json(tally: &KindTally) -> Value {
    json!({
        "accuracy": tally.accuracy(),
        "accuracy_half": tally.accuracy_half(),
        "count": tally.count,
        "correct": tally.correct,
        "ties": tally.ties,
        "mean_logit": if tally.count == 0 { 0.0 } else { tally.logit / tally.count as f64 },
    })
}
