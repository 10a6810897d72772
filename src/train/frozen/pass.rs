//! Forward-only pass of a frozen model, without adapters, and its buffers.

use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::{KINDS, Reduce};
use crate::data::pack::{Batch, ComparisonOptions, PackOptions, pack_into};
use crate::data::tokenized::TokenizedGroup;
use crate::model::decoder::Model;
use crate::train::batch::upload::DeviceBatch;
use crate::train::score::Scorer;

/// Model that scores sequences.
pub struct ForwardPass<'m, B: Backend> {
    model: &'m mut Model<B>,
    scorer: Scorer<B>,
    batch: DeviceBatch<B>,
    packed: Batch,
}

impl<'m, B: Backend> ForwardPass<'m, B> {
    /// Forward pass with empty buffers, which grow with the batches.
    pub fn new(backend: &B, model: &'m mut Model<B>) -> Result<Self> {
        let scorer = Scorer::of_base(backend, model)?;
        Ok(Self { model, scorer, batch: DeviceBatch::new(backend)?, packed: Batch::default() })
    }

    /// Scores of all sequences of `groups`, in order; comparisons are ignored.
    pub fn scores(
        &mut self,
        backend: &B,
        groups: &[&TokenizedGroup],
        pack: &PackOptions,
        reduce: Reduce,
    ) -> Result<Vec<f64>> {
        let comparisons = ComparisonOptions { scale: [0.0; KINDS], margin_add: 0.0 };
        pack_into(&mut self.packed, groups, pack, &comparisons)?;
        self.model.reserve_positions(backend, self.packed.longest_path)?;
        self.batch.upload(backend, &self.packed, [0.0; KINDS])?;
        self.scorer.forward(backend, self.model, &self.batch, reduce)?;
        self.scorer.read_score(backend, self.packed.sequences.len())
    }

    /// Takes part in the weight gathers of [`ForwardPass::scores`] on the other ranks, without scoring a
    /// batch.
    pub fn idle(&mut self, backend: &B) -> Result<()> {
        self.model.forward_idle(backend)
    }
}
