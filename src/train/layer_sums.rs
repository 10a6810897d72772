//! Gradient sums that overlap with the backward, for a device with native collectives. When the gradient of a
//! unit is final in the last micro-batch, its sum over the ranks starts while the backward continues.
//!
//! ```text
//! backward   head | layer n | layer n-1 | ... | layer 0 | embedding
//! sums              head      layer n     ...   layer 1   layer 0     embedding
//! ```
//!
//! Every range of the gradient buffer is summed once, in the same order on all ranks. A rank without a batch
//! adds zeros. Ranks on CPUs sum after the backward (`step`), because a thread that waits for other ranks
//! would take a core from the ops.

use std::ops::Range;

use super::shard;
use crate::Result;
use crate::backend::Backend;
use crate::model::decoder_grad::UnitGradients;
use crate::model::layout::Layout;
use crate::model::units::{Unit, Units};
use crate::ranks::buffers::{Begun, all_reduce, reduce_scatter};
use crate::ranks::collective::Collective;

/// Ranges of the gradient buffer by unit.
pub(super) struct LayerSums {
    units: Units,
    ranks: &'static dyn Collective,
    /// Slices of the parameters by rank, if each rank updates only its slice.
    slices: Option<Vec<Range<usize>>>,
}

/// Sums of one backward.
pub(super) struct Summing<'a> {
    of: &'a LayerSums,
    contributes: bool,
    begun: &'a mut Vec<Begun>,
}

impl LayerSums {
    /// Creates the sums for the gradients of all weights.
    pub fn new(layout: &Layout, ranks: &'static dyn Collective, shard: bool) -> Self {
        let slices = shard.then(|| shard::slices(layout.len, ranks.size()));
        Self { units: Units::new(layout, 1), ranks, slices }
    }

    /// Returns the sums of one backward, which are appended to `begun`. `contributes` says whether this rank
    /// has gradients.
    pub fn of_backward<'a>(&'a self, contributes: bool, begun: &'a mut Vec<Begun>) -> Summing<'a> {
        Summing { of: self, contributes, begun }
    }
}

impl<B: Backend> UnitGradients<B> for Summing<'_> {
    fn place(&self, range: &Range<usize>) -> usize {
        range.start
    }

    fn prepare(&mut self, _: &B, _: &mut B::Acc, _: Unit) -> Result<()> {
        Ok(())
    }

    fn complete(&mut self, backend: &B, grads: &mut B::Acc, unit: Unit) -> Result<()> {
        let LayerSums { units, ranks, slices } = self.of;
        for span in units.spans(unit) {
            let range = &span.range;
            let begun = match slices {
                None => all_reduce((*ranks, backend), grads, range.clone(), self.contributes)?,
                Some(slices) => {
                    let within = |at: usize| at.clamp(range.start, range.end);
                    let parts: Vec<Range<usize>> =
                        slices.iter().map(|slice| within(slice.start)..within(slice.end)).collect();
                    reduce_scatter((*ranks, backend), grads, &parts, self.contributes)?
                }
            };
            self.begun.push(begun);
        }
        Ok(())
    }
}
