//! Sharded optimiser state: every rank keeps moments, and master weights where the device has them,
//! for its slice of the trained parameters only.
//!
//! ```text
//! reduce-scatter   every rank gets its slice of the gradient's sum, in the order of the ranks
//! norm             of every slice; the norms of all ranks give the global norm on every rank
//! update           of the own slice of the weights
//! all-gather       of the slices, so every rank has all weights again
//! ```
//!
//! The sums are those of [`sum_gradients`](super::share::sum_gradients), bit for bit. The global norm
//! adds the squares in another order, so clipped updates differ by rounding. The gradient buffer itself
//! is whole on every rank, because the backward writes to all of it.

use std::ops::Range;

use super::share::wire;
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::optim::adamw::AdamWState;
use crate::ranks::collective::{Collective, slice_of};

/// Elements of all slices in one exchange.
const BUCKET: usize = 1 << 22;

/// Pieces of the slices of all ranks: the same piece of each, from its start on.
fn pieces(len: usize, size: usize) -> impl Iterator<Item = Vec<Range<usize>>> {
    let slices: Vec<Range<usize>> = (0..size).map(|rank| slice_of(len, rank, size)).collect();
    let longest = slices.iter().map(Range::len).max().unwrap_or(0);
    let step = (BUCKET / size).max(1);
    (0..longest).step_by(step).map(move |start| {
        let piece =
            |slice: &Range<usize>| (slice.start + start).min(slice.end)..(slice.start + start + step).min(slice.end);
        slices.iter().map(piece).collect()
    })
}

/// Replaces this rank's slice of `grads` by its sum over the ranks. Returns whether this rank's own
/// gradient is finite.
pub(super) fn scatter_gradients<B: Backend>(
    (ranks, backend): (&dyn Collective, &B),
    grads: &mut B::Acc,
    len: usize,
    has_groups: bool,
) -> Result<bool> {
    let mut finite = true;
    for pieces in pieces(len, ranks.size()) {
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let mut values = vec![0.0; piece.len()];
            if has_groups {
                backend.read_acc(View::new(grads, piece.start, piece.len()), &mut values)?;
            }
            finite &= values.iter().all(|x| x.is_finite());
            parts.push(wire::<B>().encode(&values));
        }
        let own = &pieces[ranks.rank()];
        let sum = ranks.sum_of_parts(&parts, own.len(), wire::<B>())?;
        backend.write_acc(ViewMut::new(grads, own.start, own.len()), &sum)?;
    }
    Ok(finite)
}

/// Norms of the slices of all ranks, on the device: (ranks).
pub(super) fn slice_norms<B: Backend>(
    (ranks, backend): (&dyn Collective, &B),
    grads: &B::Acc,
    own: &Range<usize>,
) -> Result<B::Acc> {
    let mut control = backend.zeros_acc(CONTROL)?;
    backend.grad_norm(GradNorm {
        len: own.len(),
        max_norm: f64::INFINITY,
        grads: View::new(grads, own.start, own.len()),
        known: None,
        control: ViewMut::first(&mut control, CONTROL),
    })?;
    let mut values = vec![0.0; CONTROL];
    backend.read_acc(View::first(&control, CONTROL), &mut values)?;
    let norms = super::share::gathered_numbers(ranks, &values[CONTROL_NORM..=CONTROL_NORM])?.concat();
    let mut on_device = backend.zeros_acc(norms.len())?;
    backend.write_acc(ViewMut::first(&mut on_device, norms.len()), &norms)?;
    Ok(on_device)
}

/// Updates this rank's slice and gathers the slices of all ranks.
pub(super) fn update<B: Backend>(
    (ranks, backend): (&dyn Collective, &B),
    optimizer: &mut AdamWState<B>,
    weights: &mut B::Act,
    grads: &B::Acc,
    learning_rate: f64,
) -> Result<()> {
    let own = optimizer.slice();
    let norms = slice_norms((ranks, backend), grads, &own)?;
    let known = KnownNorms { range: 0..own.len(), norms: View::first(&norms, ranks.size()) };
    optimizer.update(backend, weights, (grads, Some(known)), learning_rate)?;
    for pieces in pieces(optimizer.parameters(), ranks.size()) {
        let own = &pieces[ranks.rank()];
        let mut values = vec![0.0; own.len()];
        backend.read_act(View::new(weights, own.start, own.len()), &mut values)?;
        let gathered = ranks.all_gather(&wire::<B>().encode(&values))?;
        for (piece, bytes) in pieces.iter().zip(&gathered).filter(|(piece, _)| *piece != own) {
            backend.write_act(ViewMut::new(weights, piece.start, piece.len()), &wire::<B>().decode(bytes))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::reference::Reference;
    use crate::ranks::collective::Wire;
    use crate::ranks::rehearsal::Rehearsal;
    use crate::train::share::sum_gradients;

    #[test]
    fn pieces_cover_every_element_once() {
        for (len, size) in [(0, 2), (5, 3), (3 * BUCKET + 7, 2)] {
            let mut next: Vec<usize> = (0..size).map(|rank| slice_of(len, rank, size).start).collect();
            for pieces in pieces(len, size) {
                assert!(pieces.iter().map(Range::len).sum::<usize>() <= BUCKET.max(size));
                for (next, piece) in next.iter_mut().zip(pieces) {
                    assert_eq!(*next, piece.start);
                    *next = piece.end;
                }
            }
            let ends: Vec<usize> = (0..size).map(|rank| slice_of(len, rank, size).end).collect();
            assert_eq!(next, ends);
        }
    }

    #[test]
    fn scattered_sums_are_those_of_whole_gradients_and_norms_are_global() {
        const LEN: usize = 300;
        let results = Rehearsal::run(3, |rank| {
            let has_groups = rank.rank() != 1;
            let gradient = || (0..LEN).map(|i| (i as f64 + 0.3) * [1.0, 9.0, -0.7][rank.rank()]).collect::<Vec<f64>>();
            let (mut whole, mut part) = (gradient(), gradient());
            assert!(sum_gradients((rank, &Reference), &mut whole, LEN, has_groups).unwrap());
            assert!(scatter_gradients((rank, &Reference), &mut part, LEN, has_groups).unwrap());
            let own = slice_of(LEN, rank.rank(), 3);
            assert_eq!(whole[own.clone()], part[own.clone()]);
            let norms = slice_norms((rank, &Reference), &part, &own).unwrap();
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((norm(&norms) - norm(&whole)).abs() < 1e-9 * norm(&whole));
            whole
        });
        assert!(results[0] == results[1] && results[1] == results[2]);
        assert_eq!(wire::<Reference>(), Wire::F64);
        assert!((results[0][4] - 4.3 * 0.3).abs() < 1e-12, "rank 1 has no groups");
    }
}
