//! Sharded optimiser state: every rank keeps moments, and master weights where the device has them,
//! for its slice of the trained parameters only.
//!
//! ```text
//! reduce-scatter   every rank gets its slice of the gradient's sum, in the order of the ranks
//! norm             of every slice; the norms of all ranks give the global norm on every rank
//! update           of this rank's slice of the weights
//! all-gather       of the slices, so every rank has all weights again
//! ```
//!
//! The sums are those of [`buffers::all_reduce`], bit for bit. The global norm adds the squares in a
//! different order, so clipped updates differ by rounding. The gradient buffer itself is not sharded, because
//! the backward writes to all of it. With native collectives of the device, the host waits for none of these
//! operations.

use std::ops::Range;

use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::optim::adamw::AdamWState;
use crate::ranks::buffers::{self, Begun, Shared};
use crate::ranks::collective::shard_of;

/// Returns the slice of every rank.
pub(super) fn slices(len: usize, size: usize) -> Vec<Range<usize>> {
    (0..size).map(|rank| shard_of(len, rank, size)).collect()
}

/// Begins to replace this rank's slice of `grads` by its sum over the ranks.
pub(super) fn scatter_gradients<B: Backend>(
    on: Shared<'_, B>,
    grads: &mut B::Acc,
    len: usize,
    has_groups: bool,
) -> Result<Begun> {
    buffers::reduce_scatter(on, grads, &slices(len, on.0.size()), has_groups)
}

/// Norms of the slices of all ranks, on the device. Each rank writes its control vector at offset `FIRST` +
/// rank, so that its norm is element `rank` of the norms. The other elements of the control vector overlap
/// the norms of other ranks, which the gather writes afterwards.
pub(super) struct SliceNorms<B: Backend>(B::Acc);

/// Offset of the first rank's control vector, chosen so that the norms start at a multiple of 16 bytes.
const FIRST: usize = CONTROL_NORM.next_multiple_of(4) - CONTROL_NORM;

impl<B: Backend> SliceNorms<B> {
    /// Allocates the norms of `size` ranks.
    pub fn new(backend: &B, size: usize) -> Result<Self> {
        backend.zeros_acc(FIRST + size + CONTROL).map(Self)
    }

    /// Computes the norm of this rank's slice of `grads` and returns the gathered norms of all ranks,
    /// (ranks).
    pub fn of<'s>(&'s mut self, on: Shared<'_, B>, grads: &B::Acc, own: &Range<usize>) -> Result<View<'s, B::Acc>> {
        let (ranks, backend) = on;
        backend.grad_norm(GradNorm {
            len: own.len(),
            max_norm: f64::INFINITY,
            grads: View::new(grads, own.start, own.len()),
            known: None,
            control: ViewMut::new(&mut self.0, FIRST + ranks.rank(), CONTROL),
        })?;
        let first = FIRST + CONTROL_NORM;
        let places: Vec<Range<usize>> = (0..ranks.size()).map(|rank| first + rank..first + rank + 1).collect();
        buffers::all_gather_acc(on, &mut self.0, &places)?.settle(backend)?;
        Ok(View::new(&self.0, first, ranks.size()))
    }
}

/// Updates this rank's slice, with the global norm.
pub(super) fn update<B: Backend>(
    on: Shared<'_, B>,
    (optimizer, norms): (&mut AdamWState<B>, &mut SliceNorms<B>),
    weights: &mut B::Act,
    grads: &B::Acc,
    learning_rate: f64,
) -> Result<()> {
    let own = optimizer.slice();
    let known = KnownNorms { range: 0..own.len(), norms: norms.of(on, grads, &own)? };
    optimizer.update(on.1, weights, (grads, Some(known)), learning_rate)
}

/// Gathers the slices of all ranks into the `len` weights.
pub(super) fn gather_weights<B: Backend>(on: Shared<'_, B>, weights: &mut B::Act, len: usize) -> Result<()> {
    buffers::all_gather_act(on, weights, &slices(len, on.0.size()))?.settle(on.1).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference::Reference;
    use crate::ranks::buffers::wire;
    use crate::ranks::collective::{Collective as _, Wire};
    use crate::ranks::rehearsal::Rehearsal;

    #[test]
    fn scattered_sums_are_those_of_whole_gradients_and_norms_are_global() {
        const LEN: usize = 300;
        let results = Rehearsal::run(3, |rank| {
            let has_groups = rank.rank() != 1;
            let gradient = || (0..LEN).map(|i| (i as f64 + 0.3) * [1.0, 9.0, -0.7][rank.rank()]).collect::<Vec<f64>>();
            let (mut whole, mut part) = (gradient(), gradient());
            let on: Shared<'_, Reference> = (rank, &Reference);
            let settled = |begun: Result<Begun>| begun.unwrap().settle(&Reference).unwrap();
            assert_eq!(settled(buffers::all_reduce(on, &mut whole, 0..LEN, has_groups)), Some(true));
            assert_eq!(settled(scatter_gradients(on, &mut part, LEN, has_groups)), Some(true));
            let own = shard_of(LEN, rank.rank(), 3);
            assert_eq!(whole[own.clone()], part[own.clone()]);
            let mut norms = SliceNorms::new(&Reference, 3).unwrap();
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            // The second iteration starts with the control vector that the first one left in the buffer.
            for _ in 0..2 {
                let norms = norms.of(on, &part, &own).unwrap();
                let norms = &norms.buffer[norms.start..norms.start + norms.len];
                assert!((norm(norms) - norm(&whole)).abs() < 1e-9 * norm(&whole));
            }
            whole
        });
        assert!(results[0] == results[1] && results[1] == results[2]);
        assert_eq!(wire::<Reference>(), Wire::F64);
        assert!((results[0][4] - 4.3 * 0.3).abs() < 1e-12, "rank 1 has no groups");
    }
}
