//! The preference loss with a user-defined curve. No kernel implements the curve, so the CPU backend computes
//! the loss on the host, on copies of the scores and comparisons. The op waits for the device, so a step with
//! it is not captured.

use super::device::{Device, Element};
use super::{Array, Kernels};
use crate::Result;
use crate::backend::contract::{Comparisons, PairWeights, PreferenceFwd};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, View, ViewMut};

/// Runs the op on copies. The results are bitwise those of the CPU backend.
pub(super) fn preference_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: PreferenceFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let numbers = |view: View<'_, Array<D, f32>>| copy::<D, f32>(k, view);
    let indices = |view: View<'_, Array<D, i32>>| copy::<D, i32>(k, view);
    let optional = |view: Option<View<'_, Array<D, f32>>>| view.map(numbers).transpose();
    let t = &a.table;
    let (term_sequence, term_sign, kind) = (indices(t.term_sequence)?, indices(t.term_sign)?, indices(t.kind)?);
    let (scale, margin, weight) = (numbers(t.scale)?, numbers(t.margin)?, numbers(t.weight)?);
    let (detached_clip, kind_scale) = (numbers(t.detached_clip)?, numbers(t.kind_scale)?);
    let (use_offsets, uses) = (indices(t.use_offsets)?, indices(t.uses)?);
    let (score, reference) = (numbers(a.score)?, optional(a.reference)?);
    let (inverse_rows, direct) = (optional(a.inverse_rows)?, optional(a.direct)?);
    let pair_weights = match a.pair_weights {
        Some(of) => Some((numbers(of.doubled)?, numbers(of.plain)?)),
        None => None,
    };
    let mut loss = vec![0.0f32; a.loss.len];
    let mut logit = vec![0.0f32; a.logit.len];
    let mut dscore = vec![0.0f32; a.dscore.len];
    let mut sums = vec![0.0f32; a.sums.len];
    Cpu::new().preference_fwd(PreferenceFwd {
        seqs: a.seqs,
        comparisons: a.comparisons,
        curves: a.curves,
        link: a.link,
        center: a.center,
        score: whole(&score),
        reference: reference.as_ref().map(whole),
        inverse_rows: inverse_rows.as_ref().map(whole),
        table: Comparisons {
            term_sequence: whole(&term_sequence),
            term_sign: whole(&term_sign),
            kind: whole(&kind),
            scale: whole(&scale),
            margin: whole(&margin),
            weight: whole(&weight),
            detached_clip: whole(&detached_clip),
            kind_scale: whole(&kind_scale),
            use_offsets: whole(&use_offsets),
            uses: whole(&uses),
        },
        pair_weights: pair_weights
            .as_ref()
            .map(|(doubled, plain)| PairWeights { doubled: whole(doubled), plain: whole(plain) }),
        direct: direct.as_ref().map(whole),
        loss: whole_mut(&mut loss),
        logit: whole_mut(&mut logit),
        dscore: whole_mut(&mut dscore),
        sums: whole_mut(&mut sums),
    })?;
    for (to, values) in [(a.loss, loss), (a.logit, logit), (a.dscore, dscore), (a.sums, sums)] {
        if to.len > 0 {
            k.device.upload(&mut to.buffer.memory, to.start * size_of::<f32>(), bytemuck::cast_slice(&values))?;
        }
    }
    Ok(())
}

fn copy<D: Device, T: bytemuck::Pod>(k: &Kernels<D, impl Element>, from: View<'_, Array<D, T>>) -> Result<Vec<T>> {
    let mut values = vec![T::zeroed(); from.len];
    if from.len > 0 {
        let bytes = bytemuck::cast_slice_mut(&mut values);
        k.device.download(&from.buffer.memory, from.start * size_of::<T>(), bytes)?;
    }
    Ok(values)
}

fn whole<T>(values: &Vec<T>) -> View<'_, Vec<T>> {
    View::new(values, 0, values.len())
}

fn whole_mut<T>(values: &mut Vec<T>) -> ViewMut<'_, Vec<T>> {
    let len = values.len();
    ViewMut::new(values, 0, len)
}
