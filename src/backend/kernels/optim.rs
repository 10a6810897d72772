//! Gradient norm and AdamW.

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, int, read, read_option, write, write_option};
use crate::backend::contract::*;
use crate::{Error, Result};

/// Most slices of a norm, and fewest elements of one.
const NORM_SLICES: usize = 4096;
const NORM_SLICE: usize = 1 << 14;
/// Elements of a block of `adamw` at a time.
const ADAMW_BLOCK: usize = 256 * 8;

pub(super) fn grad_norm<D: Device, A: Element>(k: &Kernels<D, A>, mut a: GradNorm<'_, Kernels<D, A>>) -> Result<()> {
    let [before, after] = a.read();
    let told = a.norms();
    let runs = [before.len(), after.len(), told];
    // Slices begin at multiples of 16 bytes.
    let slice = runs.iter().sum::<usize>().div_ceil(NORM_SLICES).next_multiple_of(4).max(NORM_SLICE);
    let slices = runs.iter().map(|len| len.div_ceil(slice)).sum();
    let mut scratch = k.scratch()?;
    let sums = scratch.want::<f64>(slices);
    scratch.take()?;
    launch::GradSquares {
        grads: read(a.grads),
        norms: read_option(a.known.map(|known| known.norms)),
        sums: scratch.write(sums),
        first: before.len() as i64,
        rest: after.start as i64,
        len: a.len as i64,
        told: told as i64,
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
            expected: "none, since parameters are f32".into(),
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
    .launch(&k.device, k.row_blocks(a.len, ADAMW_BLOCK), 0)
}
