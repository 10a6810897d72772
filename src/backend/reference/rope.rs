//! Rotary position embeddings and their gradient.

use super::{Reference, at};
use crate::backend::contract::*;

type R = Reference;

/// Rotates forwards for a `direction` of 1, backwards for -1. The gradient of a rotation is its
/// transpose, which is the inverse rotation.
pub fn rope(a: Rope<'_, R>, direction: f64) {
    let (d, positions, cos, sin) = (a.dims, a.positions.slice(), a.cos.slice(), a.sin.slice());
    let half = d.rotated / 2;
    let stride = (d.heads + d.unrotated_heads) * d.head_dim;
    let qkv = a.qkv_in_place.into_slice();
    for t in 0..d.tokens {
        for head in 0..d.heads {
            for i in 0..half {
                let (c, s) = (cos[at(positions, t) * half + i], direction * sin[at(positions, t) * half + i]);
                let first = t * stride + head * d.head_dim + i;
                let (x, y) = (qkv[first], qkv[first + half]);
                qkv[first] = x * c - y * s;
                qkv[first + half] = y * c + x * s;
            }
        }
    }
}
