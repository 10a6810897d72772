//! Scalar reward head and its gradient.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::rows::scale_into;
use super::simd::{dot, vectorised};
use crate::backend::Write;
use crate::backend::contract::*;

pub(super) fn reward_head_fwd<A: Element>(cpu: &Cpu<A>, a: RewardHeadFwd<'_, Cpu<A>>) {
    let (h, hidden, weight) = (a.dims.hidden, a.hidden.slice(), &cpu.load(a.weight.slice())[..]);
    for (score, &row) in a.score.into_slice().iter_mut().zip(a.rows.slice()) {
        *score = inner(&cpu.load(&hidden[row as usize * h..][..h]), weight);
    }
}

vectorised! {
    /// Dot product.
    fn inner(a: &[f32], b: &[f32]) -> f32 {
        dot::<FMA>(a, b)
    }
}

pub(super) fn reward_head_bwd<A: Element>(cpu: &Cpu<A>, a: RewardHeadBwd<'_, Cpu<A>>) {
    let (h, hidden, weight) = (a.dims.hidden, a.hidden.slice(), &cpu.load(a.weight.slice())[..]);
    let (dhidden, dweight) = (a.dhidden.into_slice(), a.dweight.into_slice());
    dhidden.par_chunks_mut(1 << 16).for_each(|x| x.fill(A::zeroed()));
    if a.dweight_write == Write::Overwrite {
        dweight.fill(0.0);
    }
    for (&row, &dscore) in a.rows.slice().iter().zip(a.dscore.slice()) {
        let row = row as usize * h..(row as usize + 1) * h;
        scale_into(&mut cpu.store(&mut dhidden[row.clone()]), weight, dscore);
        add_scaled(dweight, &cpu.load(&hidden[row]), dscore);
    }
}

vectorised! {
    /// `to += factor * from`; no-op if `factor` is 0.
    fn add_scaled(to: &mut [f32], from: &[f32], factor: f32) {
        if factor == 0.0 {
            return;
        }
        for (to, x) in to.iter_mut().zip(from) {
            *to += factor * x;
        }
    }
}
