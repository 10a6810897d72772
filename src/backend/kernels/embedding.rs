//! Token embedding (`kernels/embedding.cu`).

use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, adds, int, read, warp_vectors, write};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{ViewMut, Write};

pub(super) fn embedding_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: EmbeddingFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    launch::EmbeddingFwd::<A> {
        ids: read(a.ids),
        table: read(a.table),
        x: write(&mut a.x),
        tokens: int(a.dims.tokens)?,
        hidden: int(a.dims.hidden)?,
    }
    .launch(&k.device, k.row_blocks(a.dims.tokens, launch::EmbeddingFwd::<A>::WARPS), 0)
}

pub(super) fn embedding_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: EmbeddingBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let distinct = a.runs.keys.len;
    if a.write == Write::Overwrite {
        k.clear(ViewMut { buffer: &mut *a.dtable.buffer, ..a.dtable })?;
    }
    launch::EmbeddingBwd::<A> {
        dx: read(a.dx),
        order: read(a.runs.order),
        offsets: read(a.runs.offsets),
        keys: read(a.runs.keys),
        dtable: write(&mut a.dtable),
        distinct: int(distinct)?,
        hidden: int(a.dims.hidden)?,
        add: adds(a.write),
    }
    .launch(
        &k.device,
        k.row_blocks(distinct * warp_vectors::<A>(a.dims.hidden), launch::EmbeddingBwd::<A>::WARPS),
        0,
    )
}
