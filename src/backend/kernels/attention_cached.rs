//! Attention over a KV cache (`kernels/attention_cached.cu`). New keys and values are stored first. Then keys
//! are processed in splits (split-KV), and the results of the splits are joined.

use super::attention::{softcap, window};
use super::device::{Device, Element};
use super::launchers as launch;
use super::{Kernels, int, read, write};
use crate::backend::contract::*;
use crate::{Error, Result};

/// Maximum bytes of a launch's partial results. More tokens need several launches, which do not change the
/// bits of the results.
const PART_BYTES: usize = 256 << 20;

pub(super) fn attention_cached_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: AttentionCachedFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let d = a.dims;
    let columns = launch::AttentionCachedPart::<A>::HEAD;
    let head = columns.into_iter().find(|&head| d.head_dim <= head).ok_or_else(|| {
        Error::Usage(format!(
            "head_dim {} is larger than {}, the limit of the attention kernels; run this model with --device cpu",
            d.head_dim,
            columns.last().copied().unwrap_or(0)
        ))
    })?;
    if d.tokens == 0 {
        return Ok(());
    }
    let (tokens, heads, kv_heads, head_dim) = (int(d.tokens)?, int(d.heads)?, int(d.kv_heads)?, int(d.head_dim)?);
    let window = window(d.window)?;
    launch::AttentionCachedStore::<A> {
        qkv: read(a.qkv),
        slots: read(a.paths.slots),
        cache: write(&mut a.cache),
        tokens,
        query: heads * head_dim,
        width: int(d.cache_width())?,
    }
    .launch(&k.device, k.row_blocks(d.tokens, launch::AttentionCachedStore::<A>::WARPS), 0)?;
    let splits = d.longest_path.div_ceil(launch::CACHED_SPLIT).max(1);
    let of_token = d.heads * splits * (d.head_dim + 2);
    let most = (PART_BYTES / size_of::<f32>() / of_token).clamp(1, d.tokens);
    let mut scratch = k.scratch()?;
    let parts = scratch.request::<f32>(most * of_token);
    scratch.take()?;
    let chunks = (d.heads / d.kv_heads).div_ceil(launch::CACHED_QUERIES);
    for first in (0..d.tokens).step_by(most) {
        let count = most.min(d.tokens - first);
        let items = count * d.kv_heads * chunks * splits;
        launch::AttentionCachedPart::<A> {
            qkv: read(a.qkv),
            cache: read(a.cache.as_view()),
            starts: read(a.paths.starts),
            span_offsets: read(a.paths.span_offsets),
            spans: read(a.paths.spans),
            parts: scratch.write(parts),
            sequences: int(d.sequences)?,
            first: int(first)?,
            tokens: int(count)?,
            heads,
            kv_heads,
            head_dim,
            splits: int(splits)?,
            scale: d.scale as f32,
            softcap: softcap(d.softcap)[0],
            inverse_softcap: softcap(d.softcap)[1],
            window,
        }
        .launch(&k.device, head, k.row_blocks(items, launch::AttentionCachedPart::<A>::WARPS), 0)?;
        launch::AttentionCachedJoin::<A> {
            parts: scratch.read(parts),
            starts: read(a.paths.starts),
            span_offsets: read(a.paths.span_offsets),
            spans: read(a.paths.spans),
            o: write(&mut a.o),
            sequences: int(d.sequences)?,
            first: int(first)?,
            tokens: int(count)?,
            heads,
            head_dim,
            splits: int(splits)?,
            window,
        }
        .launch(&k.device, k.row_blocks(count * d.heads, launch::AttentionCachedJoin::<A>::WARPS), 0)?;
    }
    Ok(())
}
