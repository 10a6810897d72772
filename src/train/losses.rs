//! Losses of a batch as op arguments, and their result buffers. Buffers grow to the largest batch
//! seen and are reused.

use super::batch::upload::DeviceBatch;
use super::score::{grow, read, reserve};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::data::pack::BatchLimits;
use crate::loss::objective::{Loss, Method};

/// Result buffers of a batch's losses.
pub struct LossBuffers<B: Backend> {
    /// (seqs) gradient of each score
    dscore: B::Acc,
    /// (comparisons)
    loss: B::Acc,
    /// (comparisons)
    logit: B::Acc,
    /// (KINDS, SUM_FIELDS)
    sums: B::Acc,
    /// (seqs) mean log-prob under doubled logits, and under the logits themselves; empty unless pairs are
    /// weighted
    weights: [B::Acc; 2],
}

/// Op arguments of a batch's losses: the stage between scores and score gradients.
pub struct Losses<'a, B: Backend> {
    /// `None` for SFT, which has the gradient `direct` only.
    pub comparison: Option<ComparisonLoss<'a, B>>,
    /// (seqs)
    pub direct: Option<View<'a, B::Acc>>,
    /// (seqs)
    pub dscore: ViewMut<'a, B::Acc>,
}

impl<B: Backend> LossBuffers<B> {
    /// Empty buffers.
    pub fn new(backend: &B) -> Result<Self> {
        let empty = || backend.zeros_acc(0);
        Ok(Self {
            dscore: empty()?,
            loss: empty()?,
            logit: empty()?,
            sums: backend.zeros_acc(KINDS * SUM_FIELDS)?,
            weights: [empty()?, empty()?],
        })
    }

    /// Reserves buffers for every batch within `limits`, so that no later call allocates.
    pub fn reserve(&mut self, backend: &B, loss: &Loss, limits: &BatchLimits) -> Result<()> {
        if loss.use_weighting {
            self.weights.iter_mut().try_for_each(|buffer| reserve(backend, buffer, limits.seqs))?;
        }
        reserve(backend, &mut self.dscore, limits.seqs)?;
        reserve(backend, &mut self.loss, limits.comparisons)?;
        reserve(backend, &mut self.logit, limits.comparisons)
    }

    /// Buffers for the numbers from which pair weights are computed, for `seqs` sequences; `None` if pairs
    /// are not weighted.
    pub fn weights(&mut self, backend: &B, loss: &Loss, seqs: usize) -> Result<Option<[ViewMut<'_, B::Acc>; 2]>> {
        if !loss.use_weighting {
            return Ok(None);
        }
        self.weights.iter_mut().try_for_each(|buffer| grow(backend, buffer, seqs))?;
        Ok(Some(self.weights.each_mut().map(|buffer| ViewMut::first(buffer, seqs))))
    }

    /// Returns, per sequence of the last batch, the log of the sequence's factor in the weights of its
    /// comparisons.
    pub fn read_log_weights(&self, backend: &B, seqs: usize) -> Result<Vec<f64>> {
        let [doubled, plain] = &self.weights;
        let [doubled, plain] = [read(backend, doubled, seqs)?, read(backend, plain, seqs)?];
        Ok(doubled.iter().zip(&plain).map(|(doubled, plain)| doubled - plain).collect())
    }

    /// Op arguments for the losses of `batch`. `frozen` is (seqs), the scores of the frozen
    /// reference if the loss has one.
    pub fn of_batch<'a>(
        &'a mut self,
        backend: &B,
        loss: &'a Loss,
        batch: &'a DeviceBatch<B>,
        frozen: Option<View<'a, B::Acc>>,
    ) -> Result<Losses<'a, B>> {
        let s = batch.sizes;
        grow(backend, &mut self.dscore, s.seqs)?;
        grow(backend, &mut self.loss, s.comparisons)?;
        grow(backend, &mut self.logit, s.comparisons)?;
        let Self { dscore, loss: losses, logit, sums, weights } = self;
        let [doubled, plain] = weights;
        let comparison = (loss.method != Method::Sft).then(|| ComparisonLoss {
            comparisons: s.comparisons,
            curves: &loss.curves,
            link: loss.link,
            center: loss.center,
            reference: frozen,
            inverse_rows: loss.needs_rows().then(|| batch.inverse_rows()),
            pair_weights: loss
                .use_weighting
                .then(|| PairWeights { doubled: View::first(doubled, s.seqs), plain: View::first(plain, s.seqs) }),
            table: batch.comparisons(),
            loss: ViewMut::first(losses, s.comparisons),
            logit: ViewMut::first(logit, s.comparisons),
            sums: ViewMut::first(sums, KINDS * SUM_FIELDS),
        });
        Ok(Losses { comparison, direct: batch.direct(), dscore: ViewMut::first(dscore, s.seqs) })
    }

    /// Losses and logits of the last batch, the first `comparisons` elements of each.
    pub fn results(&self, comparisons: usize) -> [View<'_, B::Acc>; 2] {
        [View::first(&self.loss, comparisons), View::first(&self.logit, comparisons)]
    }
}
