//! One optimiser step: the calls of the whole program, in order.

use super::evaluate::{Evaluator, GroupScores};
use super::metrics::Tally;
use super::reference::{Completed, Frozen, ReferenceCache};
use super::score::{Scorer, grow, read, reserve};
use super::upload::DeviceBatch;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::data::group::Kind;
use crate::data::pack::{Batch, BatchLimits, ComparisonOptions, GroupSizes, PackOptions, pack_into};
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{Loss, Method};
use crate::model::activations::Mode;
use crate::model::decoder::Model;
use crate::optim::adamw::{AdamWSettings, AdamWState, UpdateReport};
use crate::{Error, Result};

/// A model under training: policy, frozen reference, optimiser, and every buffer of a step.
pub struct Trainer<'b, B: Backend> {
    pub backend: &'b B,
    pub loss: Loss,
    pub policy: Model<B>,
    reference: Option<Frozen<B>>,
    pub optimizer: AdamWState<B>,
    scorer: Scorer<B>,
    /// (layout.len)
    pub grads: B::Acc,
    packed: Batch,
    batch: DeviceBatch<B>,
    direct: B::Acc,
    dscore: B::Acc,
    comparison_loss: B::Acc,
    comparison_logit: B::Acc,
    kind_sums: B::Acc,
    pack_options: PackOptions,
    comparison_options: ComparisonOptions,
}

/// What one step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub tally: Tally,
    pub update: UpdateReport,
    /// Ids of groups with a comparison whose argument was not finite.
    pub not_finite: Vec<String>,
}

impl<'b, B: Backend> Trainer<'b, B> {
    /// Prepares training of `policy`; `reference` is the frozen model of DPO.
    pub fn new(
        backend: &'b B,
        policy: Model<B>,
        reference: Option<Model<B>>,
        loss: Loss,
        settings: AdamWSettings,
    ) -> Result<Self> {
        let pack_options = super::pack_options(&loss, policy.config.vocab);
        let comparison_options = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
        let empty = || backend.zeros_acc(0);
        Ok(Self {
            optimizer: AdamWState::new(backend, &policy, settings)?,
            scorer: Scorer::new(backend, &policy, Mode::Train)?,
            grads: backend.zeros_acc(policy.layout.len)?,
            packed: Batch::default(),
            batch: DeviceBatch::new(backend)?,
            direct: empty()?,
            dscore: empty()?,
            comparison_loss: empty()?,
            comparison_logit: empty()?,
            kind_sums: backend.zeros_acc(KINDS * SUM_FIELDS)?,
            backend,
            loss,
            policy,
            reference: reference.map(|model| Frozen::online(backend, model)).transpose()?,
            pack_options,
            comparison_options,
        })
    }

    /// Stores every sequence whole instead of sharing prompt tokens: the baseline of studies and the oracle of tests.
    pub fn share_prefixes(&mut self, share: bool) {
        self.pack_options.share_prefixes = share;
    }

    /// Takes log-probs of the reference that were computed before in place of a model.
    pub fn use_stored_reference(&mut self, cache: ReferenceCache) -> Result<()> {
        self.reference = Some(Frozen::stored(self.backend, cache)?);
        Ok(())
    }

    /// Computes the stored reference log-probs that `groups` lack; nothing where the reference runs online.
    pub fn complete_reference(&mut self, groups: &[TokenizedGroup]) -> Result<Option<Completed>> {
        match &mut self.reference {
            Some(Frozen::Stored { cache, .. }) => cache.complete(self.backend, &[groups]).map(Some),
            Some(Frozen::Online { .. }) | None => Ok(None),
        }
    }

    /// Bounds on the batches of `micro_batch` of these groups.
    pub fn limits(&self, groups: &[TokenizedGroup], micro_batch: usize) -> Result<BatchLimits> {
        Ok(GroupSizes::of(groups, &self.pack_options, &self.comparison_options)?.limits(micro_batch))
    }

    /// Makes room for every batch within `limits`: no step over such batches allocates in this type or below it.
    pub fn reserve(&mut self, limits: &BatchLimits) -> Result<()> {
        let backend = self.backend;
        self.policy.reserve_positions(backend, limits.longest_path)?;
        if let Some(reference) = &mut self.reference {
            reference.reserve(backend, limits)?;
        }
        self.scorer.reserve(backend, &self.policy, Mode::Train, limits)?;
        self.batch.reserve(backend, limits)?;
        let direct = if self.loss.nll_weight == 0.0 { 0 } else { limits.seqs };
        for (buffer, len) in [
            (&mut self.dscore, limits.seqs),
            (&mut self.direct, direct),
            (&mut self.comparison_loss, limits.comparisons),
            (&mut self.comparison_logit, limits.comparisons),
        ] {
            reserve(backend, buffer, len)?;
        }
        Ok(())
    }

    /// One update from the micro-batches of a global batch. Losses and gradients are means over the global batch:
    /// the counts are known before the first forward, so the split does not matter.
    pub fn step(&mut self, micro_batches: &[Vec<&TokenizedGroup>], learning_rate: f64) -> Result<StepReport> {
        let (mut tally, mut not_finite) = (Tally::default(), Vec::new());
        self.accumulate(micro_batches, &mut tally, &mut not_finite)?;
        self.optimizer.update(self.backend, &mut self.policy.weights, &self.grads, learning_rate)?;
        Ok(StepReport { tally, update: self.optimizer.report(self.backend)?, not_finite })
    }

    /// Loss and gradient of a global batch, without an update.
    pub fn accumulate(
        &mut self,
        micro_batches: &[Vec<&TokenizedGroup>],
        tally: &mut Tally,
        not_finite: &mut Vec<String>,
    ) -> Result<()> {
        let totals = Totals::of(micro_batches);
        let kind_scale = self.loss.kind_scale(totals.comparisons);
        for (i, groups) in micro_batches.iter().enumerate() {
            let write = if i == 0 { Write::Overwrite } else { Write::Add };
            self.load(groups, kind_scale)?;
            self.forward()?;
            let part = match self.loss.method {
                Method::Sft => self.likelihood(&totals)?,
                Method::Reward | Method::Dpo => self.compare(&totals, groups, not_finite)?,
            };
            tally.merge(&part);
            let dscore = View::first(&self.dscore, self.batch.sizes.seqs);
            let (reduce, target) = (self.loss.reduce, (&mut self.grads, write));
            self.scorer.backward(self.backend, &self.policy, &self.batch, reduce, dscore, target)?;
        }
        Ok(())
    }

    /// Packs groups and puts them on the device.
    fn load(&mut self, groups: &[&TokenizedGroup], kind_scale: [f64; KINDS]) -> Result<()> {
        pack_into(&mut self.packed, groups, &self.pack_options, &self.comparison_options)?;
        self.policy.reserve_positions(self.backend, self.packed.longest_path)?;
        if let Some(reference) = &mut self.reference {
            reference.load(self.backend, groups, self.packed.longest_path)?;
        }
        self.batch.upload(self.backend, &self.packed, kind_scale)
    }

    /// Scores of policy and reference.
    fn forward(&mut self) -> Result<()> {
        if let Some(reference) = &mut self.reference {
            reference.forward(self.backend, &self.batch, self.loss.reduce)?;
        }
        self.scorer.forward(self.backend, &self.policy, &self.batch, self.loss.reduce)
    }

    /// Next-token likelihood: the same gradient on every response token.
    fn likelihood(&mut self, totals: &Totals) -> Result<Tally> {
        let seqs = self.batch.sizes.seqs;
        grow(self.backend, &mut self.dscore, seqs)?;
        let slope = vec![-1.0 / totals.response_tokens.max(1) as f64; seqs];
        self.backend.write_acc(ViewMut::first(&mut self.dscore, seqs), &slope)?;
        let mut tally = self.counted();
        tally.logp = self.scorer.read_score(self.backend, seqs)?.iter().sum();
        Ok(tally)
    }

    /// Comparison losses and the gradient of every score.
    fn compare(&mut self, totals: &Totals, groups: &[&TokenizedGroup], not_finite: &mut Vec<String>) -> Result<Tally> {
        let (backend, s) = (self.backend, self.batch.sizes);
        for (buffer, len) in [
            (&mut self.dscore, s.seqs),
            (&mut self.direct, s.seqs),
            (&mut self.comparison_loss, s.comparisons),
            (&mut self.comparison_logit, s.comparisons),
        ] {
            grow(backend, buffer, len)?;
        }
        let likelihood = self.likelihood_slopes(totals);
        if let Some(slopes) = &likelihood {
            backend.write_acc(ViewMut::first(&mut self.direct, s.seqs), slopes)?;
        }
        backend.preference_fwd(PreferenceFwd {
            seqs: s.seqs,
            comparisons: s.comparisons,
            curve: self.loss.curve,
            center: self.loss.center,
            score: View::first(&self.scorer.score, s.seqs),
            reference: self.reference.as_ref().map(|r| r.scores(s.seqs)),
            table: self.batch.comparisons(),
            direct: likelihood.is_some().then(|| View::first(&self.direct, s.seqs)),
            loss: ViewMut::first(&mut self.comparison_loss, s.comparisons),
            logit: ViewMut::first(&mut self.comparison_logit, s.comparisons),
            dscore: ViewMut::first(&mut self.dscore, s.seqs),
            sums: ViewMut::first(&mut self.kind_sums, KINDS * SUM_FIELDS),
        })?;
        let mut tally = self.counted();
        let losses = read(backend, &self.comparison_loss, s.comparisons)?;
        let logits = read(backend, &self.comparison_logit, s.comparisons)?;
        for (c, (&loss, &logit)) in losses.iter().zip(&logits).enumerate() {
            tally.kinds[self.packed.comparisons.kind[c] as usize].add(loss, logit);
            let id = &groups[self.packed.comparisons.refs[c].group].group.id;
            if !loss.is_finite() && not_finite.last() != Some(id) {
                not_finite.push(id.clone());
            }
        }
        let score = self.scorer.read_score(backend, s.seqs)?;
        let reference = match &self.reference {
            Some(reference) => reference.read(backend, s.seqs)?,
            None => vec![0.0; s.seqs],
        };
        if let Some(slopes) = likelihood {
            tally.nll = slopes.iter().zip(&score).map(|(d, score)| d * score).sum();
        }
        super::metrics::tally_scores(&mut tally, &self.packed, &score, &reference);
        Ok(tally)
    }

    /// Gradient of the likelihood term for each score: `-weight / tokens` for preferred sequences of base and intra
    /// comparisons, times the length where a score is a mean.
    fn likelihood_slopes(&self, totals: &Totals) -> Option<Vec<f64>> {
        if self.loss.nll_weight == 0.0 {
            return None;
        }
        let per_token = -self.loss.nll_weight / totals.preferred_tokens.max(1) as f64;
        let mut slopes = vec![0.0; self.packed.sequences.len()];
        let table = &self.packed.comparisons;
        for c in 0..table.kind.len() {
            if table.kind[c] as usize == Kind::Inter.index() {
                continue;
            }
            for slot in c * TERMS..(c + 1) * TERMS {
                if table.term_sequence[slot] >= 0 && table.term_sign[slot] > 0 {
                    let s = table.term_sequence[slot] as usize;
                    let length = self.packed.sequences[s].response_tokens as f64;
                    slopes[s] += per_token * if self.loss.reduce == Reduce::Mean { length } else { 1.0 };
                }
            }
        }
        Some(slopes)
    }

    /// Scores of policy and reference over groups that are not trained on, and the sums over them.
    pub fn evaluate(
        &mut self,
        evaluator: &mut Evaluator<B>,
        groups: &[TokenizedGroup],
    ) -> Result<(Vec<GroupScores>, Tally)> {
        let models = (&mut self.policy, self.reference.as_mut());
        evaluator.run_beside(self.backend, models, &self.loss, groups, |_| ())
    }

    /// An evaluator for this trainer's policy; the reference is the trainer's own.
    pub fn evaluator(&self) -> Result<Evaluator<B>> {
        Evaluator::new(self.backend, &self.policy, None)
    }

    /// Token counts of the current batch.
    fn counted(&self) -> Tally {
        Tally {
            tokens: self.batch.sizes.tokens,
            response_tokens: self.packed.sequences.iter().map(|s| s.response_tokens).sum(),
            ..Tally::default()
        }
    }

    /// DPO's start-up check: when policy and reference hold the same weights, every score difference is exactly 0 and
    /// every logistic comparison without a margin costs exactly ln 2. Anything else means that the two passes differ.
    pub fn identity_check(&mut self, groups: &[&TokenizedGroup]) -> Result<()> {
        self.load(groups, [0.0; KINDS])?;
        self.forward()?;
        let seqs = self.batch.sizes.seqs;
        let Some(reference) = &self.reference else {
            return Err(Error::Runtime("the identity check needs a reference model".into()));
        };
        let from = reference.file().map_or(String::new(), |path| {
            format!("; the reference's log-probs came from {}, delete it to have them computed again", path.display())
        });
        let (policy, reference) = (self.scorer.read_score(self.backend, seqs)?, reference.read(self.backend, seqs)?);
        if let Some(i) = policy.iter().chain(&reference).position(|score| !score.is_finite()) {
            return Err(Error::Diverged(format!(
                "the start model scores sequence {} of the first batch as {}: its weights overflow; start from a model \
                 that did not diverge",
                i % seqs.max(1),
                policy.iter().chain(&reference).nth(i).copied().unwrap_or(f64::NAN)
            )));
        }
        match policy.iter().zip(&reference).position(|(p, r)| p != r) {
            None => Ok(()),
            Some(i) => Err(Error::Runtime(format!(
                "identity check failed: policy and reference hold the same weights but score sequence {i} as {} and \
                 {}; the first loss would not be ln 2{from}",
                policy[i], reference[i]
            ))),
        }
    }
}

/// Counts over a global batch.
struct Totals {
    comparisons: [usize; KINDS],
    response_tokens: usize,
    /// Tokens of preferred sequences in base and intra comparisons, a sequence counted once per use.
    preferred_tokens: usize,
}

impl Totals {
    fn of(micro_batches: &[Vec<&TokenizedGroup>]) -> Self {
        let mut totals = Self { comparisons: [0; KINDS], response_tokens: 0, preferred_tokens: 0 };
        for group in micro_batches.iter().flatten() {
            totals.response_tokens += group.response_tokens();
            for comparison in &group.comparisons {
                totals.comparisons[comparison.kind.index()] += 1;
                if comparison.kind != Kind::Inter {
                    let preferred = comparison.terms.iter().filter(|t| t.sign > 0);
                    totals.preferred_tokens +=
                        preferred.map(|t| group.sequences[t.sequence].response_ids.len()).sum::<usize>();
                }
            }
        }
        totals
    }
}
