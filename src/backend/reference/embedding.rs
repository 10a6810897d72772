//! Token embedding and its gradient.

use super::{Reference, at};
use crate::backend::Write;
use crate::backend::contract::*;

type R = Reference;

pub fn embedding_fwd(a: EmbeddingFwd<'_, R>) {
    let (hidden, ids, table) = (a.dims.hidden, a.ids.slice(), a.table.slice());
    for (t, x) in a.x.into_slice().chunks_exact_mut(hidden).enumerate() {
        x.copy_from_slice(&table[at(ids, t) * hidden..][..hidden]);
    }
}

pub fn embedding_bwd(a: EmbeddingBwd<'_, R>) {
    let (hidden, dx, dtable) = (a.dims.hidden, a.dx.slice(), a.dtable.into_slice());
    let (order, offsets, keys) = (a.runs.order.slice(), a.runs.offsets.slice(), a.runs.keys.slice());
    if a.write == Write::Overwrite {
        dtable.fill(0.0);
    }
    for k in (0..keys.len()).filter(|&k| keys[k] >= 0) {
        for i in at(offsets, k)..at(offsets, k + 1) {
            for h in 0..hidden {
                dtable[at(keys, k) * hidden + h] += dx[at(order, i) * hidden + h];
            }
        }
    }
}
