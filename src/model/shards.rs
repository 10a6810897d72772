//! Weights that are sharded over ranks: each rank keeps its slices of every unit (`units`), and a unit is
//! gathered into its window before it is used.
//!
//! ```text
//! forward    enter First; embed; for each layer: enter, run; enter Last; final norm, head
//! backward   head, final norm; for each layer in reverse: enter, run backward; embedding
//! enter      wait until the unit is in its window, and begin to gather the next one
//! ```
//!
//! A gather is a collective: every rank enters the same units in the same order. A rank without a batch
//! does so with [`Model::forward_idle`] and [`Model::backward_idle`]. A unit that is in its window already
//! is not gathered again, on any rank. After an update the windows are out of date
//! ([`Model::forget_gathered`]).

use std::ops::Range;

use super::config::ModelConfig;
use super::decoder::Model;
use super::decoder_grad::GradientsOut;
use super::layout::Layout;
use super::part::{Overlap, Part, assemble};
use super::units::{Unit, Units, WINDOWS};
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::ranks::buffers::{Begun, all_gather_act, wire};
use crate::ranks::collective::{Collective, Wire};
use crate::{Error, Result};

/// The ranks over which weights are sharded.
#[derive(Clone, Copy)]
pub(crate) struct Sharding {
    rank: usize,
    size: usize,
    /// `None` in a plan, which sends nothing.
    ranks: Option<&'static dyn Collective>,
}

impl Sharding {
    /// This rank among `ranks`.
    pub fn over(ranks: &'static dyn Collective) -> Self {
        Self { rank: ranks.rank(), size: ranks.size(), ranks: Some(ranks) }
    }

    /// The last rank of a planned run, which has the most elements.
    pub fn planned(size: usize) -> Self {
        Self { rank: size - 1, size, ranks: None }
    }
}

/// Units and windows of a sharded model.
pub(crate) struct Shards<B: Backend> {
    units: Units,
    sharding: Sharding,
    /// (units.windows()), or empty until the first gather
    windows: B::Act,
    /// Unit in each window, and its gathers that are in flight.
    gathered: [Option<(Unit, Vec<Begun>)>; WINDOWS],
}

impl<B: Backend> Shards<B> {
    fn new(backend: &B, units: Units, sharding: Sharding) -> Result<Self> {
        Ok(Self { units, sharding, windows: backend.zeros_act(0)?, gathered: [const { None }; WINDOWS] })
    }

    /// The ranks; `None` in a plan.
    pub fn ranks(&self) -> Option<&'static dyn Collective> {
        self.sharding.ranks
    }

    /// Elements of the layout that this rank keeps.
    pub fn part(&self) -> &Part {
        &self.units.parts()[self.sharding.rank]
    }

    /// View of a gathered range. Panics if its unit is not in its window, which is a bug.
    pub fn view(&self, range: &Range<usize>) -> View<'_, B::Act> {
        let (unit, start) = self.units.place(range);
        let gathered = self.gathered[self.units.window_of(unit)].as_ref();
        let there = gathered.is_some_and(|(now, coming)| *now == unit && coming.is_empty());
        assert!(there, "the weights {range:?} of {unit:?} are not gathered");
        View::new(&self.windows, start, range.len())
    }

    fn grow(&mut self, backend: &B) -> Result<()> {
        if self.windows.len() < self.units.windows() {
            self.windows = backend.zeros_act(self.units.windows())?;
        }
        Ok(())
    }

    /// Begins to gather a unit into its window, unless the unit is already in the window or its gather is in
    /// flight.
    fn begin(&mut self, backend: &B, weights: &B::Act, unit: Unit) -> Result<()> {
        let window = self.units.window_of(unit);
        if self.gathered[window].as_ref().is_some_and(|(now, _)| *now == unit) {
            return Ok(());
        }
        self.grow(backend)?;
        let mut coming = Vec::new();
        if let Some(ranks) = self.sharding.ranks {
            for span in self.units.spans(unit) {
                let slices = self.units.slices(span);
                let own = &slices[ranks.rank()];
                let from = View::new(weights, self.units.own_start(span, ranks.rank()), own.len());
                backend.copy_act(from, ViewMut::new(&mut self.windows, own.start, own.len()))?;
                coming.push(all_gather_act((ranks, backend), &mut self.windows, &slices)?);
            }
        }
        self.gathered[window] = Some((unit, coming));
        Ok(())
    }

    /// Completes the gathers of a unit that have begun, so that later ops read the gathered weights.
    fn settle(&mut self, backend: &B, unit: Unit) -> Result<()> {
        let Some((_, coming)) = &mut self.gathered[self.units.window_of(unit)] else { return Ok(()) };
        coming.drain(..).try_for_each(|begun| begun.settle(backend).map(|_| ()))
    }
}

impl<B: Backend> Model<B> {
    /// Like [`Model::zeros`]; with a sharding, keeps only this rank's slices of the weights.
    pub(crate) fn zeros_on(
        backend: &B,
        config: ModelConfig,
        positions: usize,
        sharding: Option<Sharding>,
    ) -> Result<Self> {
        let layout = Layout::new(&config);
        let Some(sharding) = sharding else { return Self::with_weights(backend, config, positions, layout, None) };
        let units = Units::new(&layout, sharding.size);
        let shards = Shards::new(backend, units, sharding)?;
        Self::with_weights(backend, config, positions, layout, Some(shards))
    }

    /// Whether each rank keeps only slices of the weights.
    pub(crate) fn is_sharded(&self) -> bool {
        self.shards.is_some()
    }

    /// Whether each rank keeps only slices of the trained parameters; adapters are whole on every rank.
    pub(crate) fn trains_shards(&self) -> bool {
        self.is_sharded() && self.lora.is_none()
    }

    /// Units of the trained parameters, index of this rank, and the ranks; `None` if every rank has all trained
    /// parameters.
    pub(crate) fn trained_units(&self) -> Option<(&Units, usize, Option<&'static dyn Collective>)> {
        let shards = self.shards.as_ref().filter(|_| self.lora.is_none())?;
        Some((&shards.units, shards.sharding.rank, shards.sharding.ranks))
    }

    /// Allocates the windows.
    pub(crate) fn reserve_windows(&mut self, backend: &B) -> Result<()> {
        self.shards.as_mut().map_or(Ok(()), |shards| shards.grow(backend))
    }

    /// Completes the gather of a unit and begins that of the next one. No-op if every rank has all weights.
    pub(super) fn enter(&mut self, backend: &B, unit: Unit, next: Option<Unit>) -> Result<()> {
        let Self { weights, shards: Some(shards), .. } = self else { return Ok(()) };
        shards.begin(backend, weights, unit)?;
        shards.settle(backend, unit)?;
        next.map_or(Ok(()), |next| shards.begin(backend, weights, next))
    }

    /// Calls [`Model::enter`] for layer i of a forward.
    pub(super) fn enter_layer(&mut self, backend: &B, i: usize) -> Result<()> {
        let next = if i + 1 < self.config.layers { Unit::Layer(i + 1) } else { Unit::Last };
        self.enter(backend, Unit::Layer(i), Some(next))
    }

    /// Calls [`Model::enter`] for layer i of a backward.
    pub(super) fn enter_layer_back(&mut self, backend: &B, i: usize) -> Result<()> {
        self.enter(backend, Unit::Layer(i), i.checked_sub(1).map(Unit::Layer))
    }

    /// Marks the windows as out of date, after an update of the weights.
    pub(crate) fn forget_gathered(&mut self) {
        self.shards.iter_mut().for_each(|shards| shards.gathered = [const { None }; WINDOWS]);
    }

    /// Exchanges the windows of two sharded models, so that both can use the same ones, one at a time.
    pub(crate) fn swap_windows(&mut self, other: &mut Self) {
        if let (Some(own), Some(others)) = (&mut self.shards, &mut other.shards) {
            std::mem::swap(&mut own.windows, &mut others.windows);
        }
        self.forget_gathered();
        other.forget_gathered();
    }

    /// Joins the gathers of a forward on a rank without a batch.
    pub(crate) fn forward_idle(&mut self, backend: &B) -> Result<()> {
        self.enter(backend, Unit::First, Some(Unit::Layer(0)))?;
        (0..self.config.layers).try_for_each(|i| self.enter_layer(backend, i))?;
        self.enter(backend, Unit::Last, None)
    }

    /// Joins the gathers and sums of a backward on a rank without a batch.
    pub(crate) fn backward_idle(&mut self, backend: &B, out: &mut GradientsOut<'_, B>) -> Result<()> {
        self.prepare_head(backend, out)?;
        out.complete(backend, Unit::Last)?;
        for i in (0..self.config.layers).rev() {
            self.enter_layer_back(backend, i)?;
            out.prepare(backend, Unit::Layer(i))?;
            out.complete(backend, Unit::Layer(i))?;
        }
        if self.lora.is_some() {
            return Ok(());
        }
        if !self.layout.tied() {
            out.prepare(backend, Unit::First)?;
        }
        out.complete(backend, Unit::First)
    }

    /// Prepares the gradients of the units that the head writes to.
    pub(crate) fn prepare_head(&self, backend: &B, out: &mut GradientsOut<'_, B>) -> Result<()> {
        out.prepare(backend, Unit::Last)?;
        if self.layout.tied() { out.prepare(backend, Unit::First) } else { Ok(()) }
    }

    /// Trained parameters that this rank's buffer holds.
    pub(crate) fn trained_part(&self) -> Part {
        match (&self.lora, &self.shards) {
            (None, Some(shards)) => shards.part().clone(),
            _ => Part::slice(0..self.trained().len),
        }
    }

    /// Writes those of the layout's elements `start..start + values.len()` that this rank has.
    pub(super) fn write_weights(&mut self, backend: &B, start: usize, values: &[f64]) -> Result<()> {
        self.forget_gathered();
        match &self.shards {
            None => backend.write_act(ViewMut::new(&mut self.weights, start, values.len()), values),
            Some(shards) => {
                shards.part().within(&(start..start + values.len())).try_for_each(|Overlap { at, offsets }| {
                    backend.write_act(ViewMut::new(&mut self.weights, at, offsets.len()), &values[offsets])
                })
            }
        }
    }

    /// Like [`Model::write_weights`], for the trained parameters.
    pub(crate) fn write_trained(&mut self, backend: &B, start: usize, values: &[f64]) -> Result<()> {
        match &mut self.lora {
            Some(lora) => backend.write_act(ViewMut::new(&mut lora.weights, start, values.len()), values),
            None => self.write_weights(backend, start, values),
        }
    }

    /// Reads a range of the weights. If the model is sharded, every rank must call this function with the same
    /// range.
    pub(crate) fn read_weights(&self, backend: &B, range: &Range<usize>, to: &mut [f64]) -> Result<()> {
        let Some(shards) = &self.shards else {
            return backend.read_act(View::new(&self.weights, range.start, range.len()), to);
        };
        let ranks = shards.ranks().ok_or_else(planned)?;
        let wanted = vec![range.clone(); ranks.size()];
        let whole = self.assemble(backend, (ranks, shards), &wanted)?;
        to.copy_from_slice(&whole);
        Ok(())
    }

    /// Reads trained parameters on rank 0, while the other ranks are in [`Model::serve_trained`].
    pub(super) fn read_trained(&self, backend: &B, start: usize, to: &mut [f64]) -> Result<()> {
        let Some(shards) = self.shards.as_ref().filter(|_| self.lora.is_none()) else {
            return backend.read_act(View::new(self.trained_weights(), start, to.len()), to);
        };
        let ranks = shards.ranks().ok_or_else(planned)?;
        ranks.broadcast(request(start..start + to.len()))?;
        let mut wanted = vec![0..0; ranks.size()];
        wanted[0] = start..start + to.len();
        let whole = self.assemble(backend, (ranks, shards), &wanted)?;
        to.copy_from_slice(&whole);
        Ok(())
    }

    /// Ends [`Model::serve_trained`] on the other ranks.
    pub(super) fn end_serving(&self) -> Result<()> {
        let shards = self.shards.as_ref().filter(|_| self.lora.is_none());
        let ranks = shards.and_then(|shards| shards.ranks());
        ranks.map_or(Ok(()), |ranks| ranks.broadcast(request(0..0)).map(|_| ()))
    }

    /// Sends rank 0 the ranges that it reads with [`Model::read_trained`], until it calls
    /// [`Model::end_serving`].
    pub(crate) fn serve_trained(&self, backend: &B) -> Result<()> {
        let Some(shards) = self.shards.as_ref().filter(|_| self.lora.is_none()) else { return Ok(()) };
        let ranks = shards.ranks().ok_or_else(planned)?;
        loop {
            let asked = ranks.broadcast(Vec::new())?;
            let mut numbers = asked.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b) as usize);
            let (start, end) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            if end == start {
                return Ok(());
            }
            let mut wanted = vec![0..0; ranks.size()];
            wanted[0] = start..end;
            self.assemble(backend, (ranks, shards), &wanted)?;
        }
    }

    /// Sums numbers over the ranks if the trained weights are sharded. Every rank receives the sums.
    pub(super) fn sum_over_shards(&self, mut numbers: Vec<f64>) -> Result<Vec<f64>> {
        let shards = self.shards.as_ref().filter(|_| self.lora.is_none());
        if let Some(ranks) = shards.and_then(Shards::ranks) {
            ranks.all_reduce(&mut numbers, Wire::F64)?;
        }
        Ok(numbers)
    }

    /// Gathers the numbers of all ranks, in the order of the ranks, if the trained weights are sharded. Every
    /// rank receives all of them.
    pub(super) fn gather_over_shards(&self, numbers: &[f64]) -> Result<Vec<f64>> {
        let shards = self.shards.as_ref().filter(|_| self.lora.is_none());
        let Some(ranks) = shards.and_then(Shards::ranks) else { return Ok(numbers.to_vec()) };
        let gathered = ranks.all_gather(&Wire::F64.encode(numbers))?;
        Ok(gathered.iter().flat_map(|bytes| Wire::F64.decode(bytes)).collect())
    }

    fn assemble(
        &self,
        backend: &B,
        (ranks, shards): (&dyn Collective, &Shards<B>),
        wanted: &[Range<usize>],
    ) -> Result<Vec<f64>> {
        assemble(ranks, (shards.units.parts(), wire::<B>()), wanted, |at, to| {
            backend.read_act(View::new(&self.weights, at, to.len()), to)
        })
    }
}

/// Encodes the range that rank 0 reads from the other ranks: index of its first element, and its end.
fn request(range: Range<usize>) -> Vec<u8> {
    [range.start, range.end].iter().flat_map(|x| (*x as u64).to_le_bytes()).collect()
}

fn planned() -> Error {
    Error::Runtime("the model of a plan has no weights".into())
}
