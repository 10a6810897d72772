//! Gradient norm and AdamW (`kernels/optim.cu`).

use super::device::{Device, Element};
use super::launchers::{self as launch, Control};
use super::{Kernels, int, read, read_option, write, write_option};
use crate::backend::contract::*;
use crate::{Error, Result};

const _: () = {
    assert!(CONTROL == Control::ALL.len());
    assert!(CONTROL_LEARNING_RATE == Control::LearningRate as usize && CONTROL_STEP == Control::Step as usize);
    assert!(CONTROL_NORM == Control::Norm as usize && CONTROL_CLIP == Control::Clip as usize);
    assert!(CONTROL_APPLY == Control::Apply as usize && CONTROL_SKIPPED == Control::Skipped as usize);
};

/// Maximum number of slices of the sum of squares, and minimum number of elements per slice.
const MAX_SLICES: usize = 4096;
const MIN_SLICE: usize = 1 << 14;
/// Elements per thread of `adamw` in one iteration.
const ADAMW_ELEMENTS: usize = 4;

pub(super) fn grad_norm<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GradNorm<'_, Kernels<D, A>>) -> Result<()> {
    let [before, after] = a.read();
    let known = a.norms();
    let runs = [before.len(), after.len(), known];
    // Slices start at multiples of 16 bytes.
    let slice = runs.iter().sum::<usize>().div_ceil(MAX_SLICES).next_multiple_of(4).max(MIN_SLICE);
    let slices = runs.iter().map(|len| len.div_ceil(slice)).sum();
    let mut scratch = k.scratch()?;
    let sums = scratch.request::<f64>(slices);
    scratch.take()?;
    launch::GradSquares {
        grads: read(a.grads),
        norms: read_option(a.known.map(|known| known.norms)),
        sums: scratch.write(sums),
        first: before.len() as i64,
        rest: after.start as i64,
        len: a.len as i64,
        known: known as i64,
        slice: slice as i64,
    }
    .launch(&k.device, k.row_blocks(slices, 1), 0)?;
    launch::GradNorm {
        sums: scratch.read(sums),
        control: write(&mut a.control),
        slices: int(slices)?,
        max_norm: a.max_norm,
    }
    .launch(&k.device, 1, 0)
}

pub(super) fn adamw<D: Device, A: Element>(k: &Kernels<D, A>, mut a: AdamW<'_, Kernels<D, A>>) -> Result<()> {
    if a.master.is_some() && A::PRECISION == Precision::F32 {
        return Err(Error::Contract {
            op: "adamw",
            what: "master",
            expected: "none, because parameters are f32".into(),
            got: "a full-precision copy".into(),
        });
    }
    launch::Adamw::<A> {
        control: read(a.control),
        grads: read(a.grads),
        m: write(&mut a.m),
        v: write(&mut a.v),
        master: write_option(&mut a.master),
        params: write(&mut a.params),
        len: a.len as i64,
        decayed: a.decayed as i64,
        beta1: a.beta1,
        beta2: a.beta2,
        eps: a.eps as f32,
        weight_decay: a.weight_decay,
    }
    .launch(&k.device, k.row_blocks(a.len, launch::Adamw::<A>::THREADS * ADAMW_ELEMENTS), 0)
}
