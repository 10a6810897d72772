//! Multiplies rows by a factor, with an optional addend.

use rayon::prelude::*;

use super::Cpu;
use super::element::Element;
use super::rows::rows_of_task;
use super::simd::{fma, vectorised};
use crate::backend::contract::*;

pub(super) fn scale<A: Element>(cpu: &Cpu<A>, a: Scale<'_, Cpu<A>>) {
    let (factor, task) = (a.dims.factor as f32, rows_of_task(1));
    let tasks = a.x_in_place.into_slice().par_chunks_mut(task);
    match a.addend {
        Some(addend) => tasks
            .zip(addend.slice().par_chunks(task))
            .for_each(|(x, addend)| scale_add(&mut cpu.update(x), &cpu.load(addend), factor)),
        None => tasks.for_each(|x| scale_row(&mut cpu.update(x), factor)),
    }
}

vectorised! {
    fn scale_row(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

vectorised! {
    fn scale_add(x: &mut [f32], addend: &[f32], factor: f32) {
        for (x, addend) in x.iter_mut().zip(addend) {
            *x = fma::<FMA>(factor, *x, *addend);
        }
    }
}
