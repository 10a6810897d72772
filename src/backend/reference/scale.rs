//! Scaling of rows by a factor, with an optional addend.

use super::Reference;
use crate::backend::contract::*;

pub fn scale(a: Scale<'_, Reference>) {
    let (factor, addend) = (a.dims.factor, a.addend.map(|a| a.slice()));
    for (i, x) in a.x_in_place.into_slice().iter_mut().enumerate() {
        *x = factor * *x + addend.map_or(0.0, |a| a[i]);
    }
}
