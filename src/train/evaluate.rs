//! Scores of a data set, for `mapl score`, `mapl eval` and evaluation during training.
//! [`crate::eval`] derives measures from them.
//!
//! Several ranks score the batches round-robin and exchange the scores. A score does not depend on its batch,
//! and the sums are formed from all scores in group order. Every rank therefore has the same bits as a
//! single-process run.

use super::batch::upload::{DeviceBatch, SequenceNumbers};
use super::frozen::Frozen;
use super::losses::LossBuffers;
use super::metrics::{Tally, tally_responses, tally_scores};
use super::score::Scorer;
use super::share;
use super::signals::Signals;
use crate::backend::Backend;
use crate::backend::contract::{KINDS, Reduce};
use crate::data::group::Kind;
use crate::data::loader::split_by_tokens;
use crate::data::pack::{Batch, ComparisonOptions, pack_into};
use crate::data::tokenized::{SequenceComparison, SequenceTerm, TokenizedGroup};
use crate::data::tree::token_counts;
use crate::loss::objective::{Loss, Method};
use crate::loss::signed_sum::signed_sum;
use crate::loss::value::{ScoredComparison, ScoredTerm, batch_divergence};
use crate::model::activations::Mode;
use crate::model::decoder::Model;
use crate::ranks::collective::Collective;
use crate::ranks::world;
use crate::{Error, Result};

/// Default number of tokens in an evaluation batch.
pub const TOKEN_BUDGET: usize = 4096;

/// Scores of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupScores {
    /// Per sequence: summed or mean log-prob, or reward.
    pub policy: Vec<f64>,
    /// Per sequence: score of the frozen reference, if there is one.
    pub reference: Option<Vec<f64>>,
    /// Per sequence: log of the sequence's factor in the weights of its comparisons, if pairs are weighted.
    pub log_weights: Option<Vec<f64>>,
    /// Per comparison: signed sum of the scores of its terms, as used by the loss.
    pub logits: Vec<f64>,
}

impl GroupScores {
    /// Log-prob or reward of a sequence, minus that of the frozen reference if there is one.
    pub fn difference(&self, sequence: usize) -> f64 {
        self.policy[sequence] - self.reference.as_ref().map_or(0.0, |r| r[sequence])
    }

    /// Score of a sequence of `group` in comparisons of `kind`: see [`Loss::rho`].
    pub(super) fn rho_of(&self, loss: &Loss, group: &TokenizedGroup, sequence: usize, kind: Kind) -> f64 {
        loss.rho(kind.index(), self.difference(sequence), group.scored_tokens(sequence, loss.scope))
    }

    /// Per sequence of `group`: its score in base comparisons.
    pub fn rho(&self, loss: &Loss, group: &TokenizedGroup) -> Vec<f64> {
        (0..self.policy.len()).map(|s| self.rho_of(loss, group, s, Kind::Base)).collect()
    }

    /// Logit of a comparison of `group`.
    fn logit(&self, loss: &Loss, group: &TokenizedGroup, comparison: &SequenceComparison) -> f64 {
        // For KTO, the logit of a labelled row leaves out its mismatched sequence.
        let terms = comparison.terms.iter().filter(|t| loss.method != Method::Kto || !t.detached);
        signed_sum(terms.map(|t| {
            let prompt = group.sequences[t.sequence].prompt;
            (prompt, f64::from(t.sign) * self.rho_of(loss, group, t.sequence, comparison.kind))
        }))
    }

    /// Returns the factor from the policy's probabilities that multiplies the weight of a comparison.
    fn weight_of(&self, comparison: &SequenceComparison) -> f64 {
        let log = |of: &Vec<f64>| comparison.terms.iter().map(|t| of[t.sequence]).sum::<f64>();
        self.log_weights.as_ref().map_or(1.0, |of| log(of).exp())
    }

    /// A comparison of `group` with its scores.
    fn scored(&self, loss: &Loss, group: &TokenizedGroup, comparison: &SequenceComparison) -> ScoredComparison {
        let term = |t: &SequenceTerm| ScoredTerm {
            prompt: group.sequences[t.sequence].prompt,
            sign: f64::from(t.sign),
            detached: t.detached,
            score: self.policy[t.sequence],
            reference: self.reference.as_ref().map_or(0.0, |r| r[t.sequence]),
            rows: group.scored_tokens(t.sequence, loss.scope),
        };
        ScoredComparison {
            kind: comparison.kind.index(),
            weight: comparison.weight * self.weight_of(comparison),
            margins: [comparison.margin, loss.margin],
            clip: comparison.detached_clip.filter(|_| loss.method == Method::Kto),
            terms: comparison.terms.iter().map(term).collect(),
        }
    }
}

/// Adds the comparisons of the scored groups to `tally`. A loss curve that depends on the whole batch treats
/// all these comparisons as one batch.
fn tally_comparisons(tally: &mut Tally, loss: &Loss, groups: &[TokenizedGroup], scores: &[GroupScores]) {
    let of_group = |(group, scores): (&TokenizedGroup, &GroupScores)| -> Vec<ScoredComparison> {
        group.comparisons.iter().map(|c| scores.scored(loss, group, c)).collect()
    };
    let comparisons: Vec<ScoredComparison> = groups.iter().zip(scores).flat_map(of_group).collect();
    if loss.estimates_divergence() && comparisons.iter().any(|c| c.terms.iter().any(|t| t.detached)) {
        tally.add_divergence(batch_divergence(&comparisons));
    }
    for (c, of) in comparisons.iter().zip(loss.values_of(&comparisons)) {
        tally.kinds[c.kind].add(c.weight * loss.sum_of(&of.values), of.logit);
        if of.values.len() > 1 {
            tally.add_losses(c.kind, c.weight, &of.values);
        }
    }
}

/// Weighted mean negative log-likelihood of the preferred sequences of base and intra comparisons whose kind
/// has a non-zero weight, as in training.
fn likelihood(loss: &Loss, groups: &[TokenizedGroup], scores: &[GroupScores]) -> f64 {
    if loss.nll_weight == 0.0 {
        return 0.0;
    }
    let (mut sum, mut tokens) = (0.0, 0);
    for (group, scores) in groups.iter().zip(scores) {
        let trained = |c: &&SequenceComparison| c.kind != Kind::Inter && loss.weights[c.kind.index()] != 0.0;
        let terms = group.comparisons.iter().filter(trained).flat_map(|c| &c.terms);
        for sequence in terms.filter(|t| t.sign > 0).map(|t| t.sequence) {
            let length = group.scored_tokens(sequence, loss.scope);
            sum += scores.policy[sequence] * if loss.reduce == Reduce::Mean { length as f64 } else { 1.0 };
            tokens += length;
        }
    }
    -loss.nll_weight * sum / tokens.max(1) as f64
}

/// Runs models over groups, with buffers reused from batch to batch.
pub struct Evaluator<B: Backend> {
    scorer: Scorer<B>,
    frozen_scorer: Option<Scorer<B>>,
    batch: DeviceBatch<B>,
    packed: Batch,
    tail_starts: Vec<f64>,
    losses: LossBuffers<B>,
    token_budget: usize,
    /// Ranks that share an evaluation.
    ranks: &'static dyn Collective,
    /// Signals that interrupt an evaluation.
    signals: Option<Signals>,
    interrupted: bool,
}

impl<B: Backend> Evaluator<B> {
    /// Evaluator for a model and, for DPO, its frozen reference.
    pub fn new(backend: &B, model: &Model<B>, reference: Option<&Model<B>>) -> Result<Self> {
        Ok(Self {
            scorer: Scorer::new(backend, model, Mode::Infer)?,
            frozen_scorer: reference.map(|r| Scorer::new(backend, r, Mode::Infer)).transpose()?,
            batch: DeviceBatch::new(backend)?,
            packed: Batch::default(),
            tail_starts: Vec::new(),
            losses: LossBuffers::new(backend)?,
            token_budget: TOKEN_BUDGET,
            ranks: world::collective(),
            signals: None,
            interrupted: false,
        })
    }

    /// Enables statistics of the policy's tokens if the loss requires them.
    pub(super) fn measuring(mut self, backend: &B, loss: &Loss) -> Result<Self> {
        self.scorer = self.scorer.measuring(backend, loss)?;
        Ok(self)
    }

    /// Shares evaluations with these ranks.
    pub(super) fn on_ranks(mut self, ranks: &'static dyn Collective) -> Self {
        self.ranks = ranks;
        self
    }

    /// Sets the number of tokens per batch. It affects memory and speed, not scores.
    pub fn set_token_budget(&mut self, tokens: usize) {
        self.token_budget = tokens;
    }

    /// Makes a stop signal end an evaluation after the current batch.
    pub(super) fn stop_on(&mut self, signals: Signals) {
        self.signals = Some(signals);
    }

    /// Whether a signal ended the evaluation, so that its result covers only some of the groups.
    pub(super) fn interrupted(&self) -> bool {
        self.interrupted
    }

    /// Scores every group, in order; returns the scores and the sums over them. Calls `progress`
    /// with the number of scored groups after each batch.
    pub fn run(
        &mut self,
        backend: &B,
        (model, mut reference): (&mut Model<B>, Option<&mut Model<B>>),
        loss: &Loss,
        groups: &[TokenizedGroup],
        progress: impl FnMut(usize),
    ) -> Result<(Vec<GroupScores>, Tally)> {
        let mut scorer = self.frozen_scorer.take();
        let result = self.each_batch(backend, model, loss, groups, progress, |_, scored| {
            let (Some(model), Some(scorer), Some(of)) = (reference.as_deref_mut(), &mut scorer, scored) else {
                return Ok(None);
            };
            model.reserve_positions(backend, of.longest)?;
            scorer.forward(backend, model, of.batch, loss.reduce)?;
            scorer.read_score(backend, of.batch.sizes.seqs).map(Some)
        });
        self.frozen_scorer = scorer;
        result
    }

    /// Like [`Evaluator::run`], with the frozen reference of a trainer.
    pub(super) fn run_with_frozen(
        &mut self,
        backend: &B,
        (model, mut frozen): (&mut Model<B>, Option<&mut Frozen<B>>),
        loss: &Loss,
        groups: &[TokenizedGroup],
        progress: impl FnMut(usize),
    ) -> Result<(Vec<GroupScores>, Tally)> {
        self.each_batch(backend, model, loss, groups, progress, |policy, scored| {
            let Some(frozen) = frozen.as_deref_mut() else { return Ok(None) };
            let Some(of) = scored else { return frozen.forward_idle(backend, policy).map(|()| None) };
            frozen.score(backend, policy, (of.members, of.longest), of.batch, loss.reduce).map(Some)
        })
    }

    /// Scores groups batch by batch. `frozen_scores` computes the frozen-reference scores of a batch. Called
    /// with `None`, it only takes part in the weight gathers of the other ranks.
    ///
    /// With sharded weights, all ranks run the same number of rounds, and a signal to one rank ends the
    /// evaluation on all.
    fn each_batch(
        &mut self,
        backend: &B,
        model: &mut Model<B>,
        loss: &Loss,
        groups: &[TokenizedGroup],
        mut progress: impl FnMut(usize),
        mut frozen_scores: impl FnMut(&mut Model<B>, Option<OnDevice<'_, B>>) -> Result<Option<Vec<f64>>>,
    ) -> Result<(Vec<GroupScores>, Tally)> {
        let pack_options = super::pack_for(loss, &model.config);
        let comparison_options = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
        let (mut scores, mut tally) = (Vec::with_capacity(groups.len()), Tally::default());
        let sizes: Vec<usize> = groups.iter().map(|g| token_counts(g).tree).collect();
        let batches = split_by_tokens(&sizes, self.token_budget);
        let ranks = self.ranks;
        let mut own: Vec<BatchScores> = Vec::new();
        for round in (0..batches.len()).step_by(ranks.size()) {
            let Some(range) = batches.get(round + ranks.rank()) else {
                if model.is_sharded() {
                    model.forward_idle(backend)?;
                    frozen_scores(model, None)?;
                }
                continue;
            };
            let end = range.end;
            let members: Vec<&TokenizedGroup> = groups[range.clone()].iter().collect();
            pack_into(&mut self.packed, &members, &pack_options, &comparison_options)?;
            loss.tail_starts(&members, &mut self.tail_starts);
            let of_seqs = SequenceNumbers {
                tail_starts: &self.tail_starts,
                tail_alpha: loss.ld_alpha,
                ..SequenceNumbers::default()
            };
            self.batch.upload_with(backend, &self.packed, [0.0; KINDS], of_seqs)?;
            model.reserve_positions(backend, self.packed.longest_path)?;
            self.scorer.forward(backend, model, &self.batch, loss.reduce)?;
            let seqs = self.packed.sequences.len();
            let policy = self.scorer.read_score(backend, seqs)?;
            let stats = self.scorer.read_stats(backend, seqs)?;
            let log_weights = self.log_weights(backend, model, loss)?;
            let on_device = OnDevice { batch: &self.batch, longest: self.packed.longest_path, members: &members };
            let frozen = frozen_scores(model, Some(on_device))?;
            let of_batch = BatchScores { policy, frozen, log_weights, stats };
            match ranks.is_alone() {
                true => of_batch.add_to((&mut scores, &mut tally), loss, &self.packed, &members),
                false => own.push(of_batch),
            }
            progress(end);
            let stops = self.signals.as_ref().is_some_and(|signals| signals.stop().is_some());
            let stops = match model.is_sharded() {
                false => stops && end < groups.len(),
                true if round + ranks.size() >= batches.len() => false,
                true => share::gathered_numbers(ranks, &[f64::from(u8::from(stops))])?.concat().contains(&1.0),
            };
            if stops {
                self.interrupted = true;
                break;
            }
        }
        if !ranks.is_alone() {
            let of_ranks = share::gathered_numbers(ranks, &BatchScores::encode(&own, self.interrupted))?;
            // A signal that reached one rank interrupts the evaluation of all.
            self.interrupted = of_ranks.iter().any(|numbers| numbers[0] != 0.0);
            let mut of_ranks: Vec<_> = of_ranks.iter().map(|numbers| BatchScores::decode(numbers)).collect();
            for (at, range) in batches.into_iter().enumerate().take_while(|_| !self.interrupted) {
                let Some(of_batch) = of_ranks[at % ranks.size()].next() else {
                    return Err(Error::Runtime(format!("rank {} has not scored all its rows", at % ranks.size())));
                };
                let members: Vec<&TokenizedGroup> = groups[range].iter().collect();
                pack_into(&mut self.packed, &members, &pack_options, &comparison_options)?;
                of_batch.add_to((&mut scores, &mut tally), loss, &self.packed, &members);
            }
        }
        tally_comparisons(&mut tally, loss, groups, &scores);
        tally.nll = likelihood(loss, groups, &scores);
        Ok((scores, tally))
    }

    /// Returns, per sequence, the log of the sequence's factor in the weights of its comparisons; `None` if
    /// pairs are not weighted.
    fn log_weights(&mut self, backend: &B, model: &Model<B>, loss: &Loss) -> Result<Option<Vec<f64>>> {
        let seqs = self.batch.sizes.seqs;
        let Some(weights) = self.losses.weights(backend, loss, seqs)? else { return Ok(None) };
        self.scorer.pair_weights(backend, model, &self.batch, weights)?;
        self.losses.read_log_weights(backend, seqs).map(Some)
    }
}

/// A batch on the device, for the frozen reference.
struct OnDevice<'a, B: Backend> {
    batch: &'a DeviceBatch<B>,
    /// Length of its longest sequence.
    longest: usize,
    members: &'a [&'a TokenizedGroup],
}

/// Scores of the sequences of a batch.
struct BatchScores {
    policy: Vec<f64>,
    frozen: Option<Vec<f64>>,
    log_weights: Option<Vec<f64>>,
    /// (ROW_STATS, seqs) statistics of tokens; empty unless measured.
    stats: Vec<f64>,
}

impl BatchScores {
    /// Appends the scores of a batch to `scores`, and adds them to the sums in `tally`.
    fn add_to(
        self,
        (scores, tally): (&mut Vec<GroupScores>, &mut Tally),
        loss: &Loss,
        packed: &Batch,
        members: &[&TokenizedGroup],
    ) {
        tally.tokens += packed.ids.len();
        let zeros = vec![0.0; packed.sequences.len()];
        tally_scores(tally, packed, &self.policy, self.frozen.as_ref().unwrap_or(&zeros), &self.stats);
        if loss.method == Method::Sft {
            tally_responses(tally, packed, &self.stats);
        }
        distribute(members, loss, &self, scores, tally);
    }

    /// Encodes a rank's batches for the other ranks. The first number says whether a signal interrupted the
    /// rank. Then follow, for each batch, the number of sequences, flags for the optional scores, the number of
    /// statistics, and all values.
    fn encode(batches: &[Self], interrupted: bool) -> Vec<f64> {
        let mut numbers = vec![f64::from(u8::from(interrupted))];
        for batch in batches {
            let optional = [&batch.frozen, &batch.log_weights];
            numbers.push(batch.policy.len() as f64);
            numbers.extend(optional.map(|values| f64::from(u8::from(values.is_some()))));
            numbers.push(batch.stats.len() as f64);
            numbers.extend(&batch.policy);
            optional.into_iter().flatten().for_each(|values| numbers.extend(values));
            numbers.extend(&batch.stats);
        }
        numbers
    }

    /// Decodes the batches from [`BatchScores::encode`].
    fn decode(numbers: &[f64]) -> impl Iterator<Item = Self> {
        let mut rest = numbers.get(1..).unwrap_or_default();
        std::iter::from_fn(move || {
            let [seqs, frozen, log_weights, of_stats, after @ ..] = rest else { return None };
            let mut after = after;
            let mut next = |len: f64| {
                let (values, behind) = after.split_at(len as usize);
                after = behind;
                values.to_vec()
            };
            let policy = next(*seqs);
            let [frozen, log_weights] = [frozen, log_weights].map(|&present| (present != 0.0).then(|| next(*seqs)));
            let stats = next(*of_stats);
            rest = after;
            Some(Self { policy, frozen, log_weights, stats })
        })
    }
}

/// Splits the scores of a batch by group and computes the logits.
fn distribute(
    members: &[&TokenizedGroup],
    loss: &Loss,
    of: &BatchScores,
    scores: &mut Vec<GroupScores>,
    tally: &mut Tally,
) {
    let mut start = 0;
    for group in members {
        let range = start..start + group.sequences.len();
        start = range.end;
        let mut result = GroupScores {
            policy: of.policy[range.clone()].to_vec(),
            reference: of.frozen.as_ref().map(|r| r[range.clone()].to_vec()),
            log_weights: of.log_weights.as_ref().map(|logs| logs[range].to_vec()),
            logits: Vec::new(),
        };
        for comparison in &group.comparisons {
            let logit = result.logit(loss, group, comparison);
            result.logits.push(logit);
        }
        if loss.method == Method::Sft {
            tally.logp += result.policy.iter().sum::<f64>();
        }
        tally.response_tokens += group.response_tokens();
        scores.push(result);
    }
}
