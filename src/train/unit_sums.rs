//! Gradients of sharded weights: the backward writes the gradient of a unit to a window, and each rank
//! keeps its slices of the sum over the ranks.
//!
//! ```text
//! prepare    wait for the sum that last used the window; in later micro-batches: zero the window, and copy
//!            this rank's slices of the sums so far to their place
//! backward   writes to the window, or adds
//! complete   begin to reduce-scatter the window
//! ```
//!
//! The sum of a unit runs while the backward computes the next unit. Each micro-batch of a step is summed
//! over the ranks, so every rank takes part in as many sums as the rank with the most micro-batches. A rank
//! without a batch adds its sums so far, or zeros.
//!
//! With one micro-batch, the sums are those of an unsharded gradient buffer, bit for bit.

use std::ops::Range;

use crate::Result;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::model::decoder::Model;
use crate::model::decoder_grad::UnitGradients;
use crate::model::units::{Unit, Units, WINDOWS};
use crate::ranks::buffers::{Begun, reduce_scatter};
use crate::ranks::collective::Collective;

/// Windows of gradients, and the sums in progress.
pub(super) struct UnitSums<B: Backend> {
    units: Units,
    rank: usize,
    /// `None` in a memory plan, which sends nothing.
    ranks: Option<&'static dyn Collective>,
    /// (units.windows())
    windows: B::Acc,
    /// Unit whose sums are in progress in each window, and these sums.
    pending: [Option<(Unit, Vec<Begun>)>; WINDOWS],
    /// Whether this rank's local gradients were finite since [`UnitSums::finish`].
    finite: bool,
}

/// A micro-batch whose gradients are summed.
pub(super) struct Summing<'a, B: Backend> {
    units: &'a Units,
    rank: usize,
    ranks: Option<&'static dyn Collective>,
    pending: &'a mut [Option<(Unit, Vec<Begun>)>; WINDOWS],
    finite: &'a mut bool,
    /// This rank's slices of the sums.
    sums: &'a mut B::Acc,
    write: Write,
    /// Whether this rank contributes values other than zeros.
    contributes: bool,
}

impl<B: Backend> UnitSums<B> {
    /// Windows for the gradients of a model with sharded weights.
    pub fn new(backend: &B, model: &Model<B>) -> Result<Option<Self>> {
        let Some((units, rank, ranks)) = model.trained_units() else { return Ok(None) };
        let windows = backend.zeros_acc(units.windows())?;
        let units = units.clone();
        Ok(Some(Self { units, rank, ranks, windows, pending: [const { None }; WINDOWS], finite: true }))
    }

    /// Returns the windows that receive a micro-batch's gradients, and the object that sums them over the
    /// ranks. The results are added to `sums` or replace them. `idle` means that this rank has no batch.
    pub fn of_micro_batch<'a>(
        &'a mut self,
        (sums, write): (&'a mut B::Acc, Write),
        idle: bool,
    ) -> (&'a mut B::Acc, Summing<'a, B>) {
        let Self { units, rank, ranks, windows, pending, finite } = self;
        let contributes = !idle || write == Write::Add;
        (windows, Summing { units, rank: *rank, ranks: *ranks, pending, finite, sums, write, contributes })
    }

    /// Completes all sums, so that later ops see them. Returns whether this rank's local gradients of the
    /// step are finite.
    pub fn finish(&mut self, backend: &B, sums: &mut B::Acc) -> Result<bool> {
        let (windows, mut summing) = self.of_micro_batch((sums, Write::Overwrite), true);
        (0..WINDOWS).try_for_each(|window| summing.settle(backend, windows, window))?;
        Ok(std::mem::replace(&mut self.finite, true))
    }
}

impl<B: Backend> Summing<'_, B> {
    /// Returns this rank's slice of each span of a unit, as its range in the windows and its start in the
    /// sums.
    fn own(&self, unit: Unit) -> Vec<(Range<usize>, usize)> {
        let of = |span| (self.units.slices(span).swap_remove(self.rank), self.units.own_start(span, self.rank));
        self.units.spans(unit).map(of).collect()
    }

    /// Completes the sum in progress in a window and copies this rank's slices of it to `sums`.
    fn settle(&mut self, backend: &B, windows: &B::Acc, window: usize) -> Result<()> {
        let Some((unit, begun)) = self.pending[window].take() else { return Ok(()) };
        for begun in begun {
            *self.finite &= begun.settle(backend)?.unwrap_or(true);
        }
        for (own, at) in self.own(unit) {
            let from = View::new(windows, own.start, own.len());
            backend.copy_acc(from, ViewMut::new(self.sums, at, own.len()))?;
        }
        Ok(())
    }
}

impl<B: Backend> UnitGradients<B> for Summing<'_, B> {
    fn place(&self, range: &Range<usize>) -> usize {
        self.units.place(range).1
    }

    fn prepare(&mut self, backend: &B, windows: &mut B::Acc, unit: Unit) -> Result<()> {
        self.settle(backend, windows, self.units.window_of(unit))?;
        if self.write == Write::Overwrite {
            // The gaps between the unit's spans may hold gradients of another unit, so they are zeroed.
            return self
                .units
                .gaps(unit)
                .try_for_each(|gap| backend.clear_acc(ViewMut::new(windows, gap.start, gap.len())));
        }
        for span in self.units.spans(unit) {
            backend.clear_acc(ViewMut::new(windows, span.window, span.range.len()))?;
        }
        for (own, at) in self.own(unit) {
            let from = View::new(&*self.sums, at, own.len());
            backend.copy_acc(from, ViewMut::new(windows, own.start, own.len()))?;
        }
        Ok(())
    }

    fn complete(&mut self, backend: &B, windows: &mut B::Acc, unit: Unit) -> Result<()> {
        let mut begun = Vec::new();
        if let Some(ranks) = self.ranks {
            for span in self.units.spans(unit) {
                let slices = self.units.slices(span);
                begun.push(reduce_scatter((ranks, backend), windows, &slices, self.contributes)?);
            }
        }
        self.pending[self.units.window_of(unit)] = Some((unit, begun));
        Ok(())
    }
}
