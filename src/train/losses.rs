//! Losses of a batch as op arguments, and their result buffers. Buffers grow to the largest batch
//! seen and are reused.

use super::batch::upload::DeviceBatch;
use super::score::{grow, reserve};
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
        Ok(Self { dscore: empty()?, loss: empty()?, logit: empty()?, sums: backend.zeros_acc(KINDS * SUM_FIELDS)? })
    }

    /// Reserves buffers for every batch within `limits`, so that no later call allocates.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        reserve(backend, &mut self.dscore, limits.seqs)?;
        reserve(backend, &mut self.loss, limits.comparisons)?;
        reserve(backend, &mut self.logit, limits.comparisons)
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
        let Self { dscore, loss: losses, logit, sums } = self;
        let comparison = (loss.method != Method::Sft).then(|| ComparisonLoss {
            comparisons: s.comparisons,
            curves: &loss.curves,
            link: loss.link,
            center: loss.center,
            reference: frozen,
            inverse_rows: loss.needs_rows().then(|| batch.inverse_rows()),
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
