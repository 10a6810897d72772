//! Attention over prefix trees on Hopper (`kernels/attention_sm90.cu`, `kernels/attention_bwd_sm90.cu`,
//! `kernels/attention_bwd_kv_sm90.cu`). The work lists are built on the device
//! (`kernels/attention_plan_sm90.cu`). The host computes only an upper bound on their length.

use super::{all_multiples, are_aligned, is_supported};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::kernels::device::{
    ConstPtr, Device, Element, MapElement, MapSwizzle, MutPtr, TensorMap, TensorMapSpec,
};
use crate::backend::kernels::launchers::{
    self as launch, ATTENTION_CLASSES as CLASSES, ATTENTION_HEADER as HEADER, ATTENTION_KEYS as KEYS,
    ATTENTION_ROWS as ROWS, ATTENTION_STEP_ROWS as STEP_ROWS, ATTENTION_WORDS as WORDS, AttentionTiles,
};
use crate::backend::kernels::{Array, Kernels, int, read, read_option, write};

/// Heads up to this size use the portable kernels, which have a tile of this width.
const NARROW_HEAD: usize = 32;
/// Bytes of a TMA box of 128 rows by 64 bf16 columns.
const BOX_BYTES: usize = 128 * 128;

/// Number of query heads per key-value head.
fn group(d: &AttentionDims) -> usize {
    d.heads / d.kv_heads
}

/// Upper bound on the number of tiles of `rows` tokens over all segments. Each segment has at most one
/// partial tile.
fn tiles(d: &AttentionDims, rows: usize) -> usize {
    d.segments + d.tokens / rows
}

/// Returns the padded head size of the kernels for a call; `None` if they do not support it. `most` is the
/// maximum number of query heads per key-value head.
fn padded_head<D: Device, A: Element>(k: &Kernels<D, A>, d: &AttentionDims, most: usize) -> Option<usize> {
    let fits = is_supported(k)
        && d.head_dim > NARROW_HEAD
        && all_multiples(8, &[d.head_dim])
        && group(d) <= most
        && d.window.is_none()
        && d.softcap.is_none()
        // The kernels keep the running maximum of unscaled scores, which needs a positive scale.
        && d.scale as f32 > 0.0;
    launch::AttentionFwdSm90::HEAD.into_iter().find(|&head| fits && d.head_dim <= head)
}

/// Shared memory in bytes, equal to `PathBuffers::SHARED_BYTES` of the kernels: `buffers` buffers of `sides`
/// query tiles each, stages of keys and values, row indices of a copied tile, and mbarriers.
fn path_bytes(head: usize, sides: usize, buffers: usize) -> usize {
    let boxes = head.div_ceil(64);
    let stages = if boxes == 1 { 4 } else { 2 };
    (buffers * sides + 2 * stages) * boxes * BOX_BYTES + 4 * KEYS + 8 * (4 * stages + 2 * buffers)
}

/// Shared memory in bytes, equal to `KeyBuffers::SHARED_BYTES` of the kernels: keys and values, stages with
/// the queries, output gradients, statistics and two integers of a step, and mbarriers.
fn key_bytes(head: usize) -> usize {
    const STAGES: usize = 4;
    let boxes = head.div_ceil(64);
    2 * boxes * BOX_BYTES + STAGES * (2 * boxes * STEP_ROWS * 128 + 2 * 4 * STEP_ROWS + 8) + 8 * (2 * STAGES + 2)
}

/// Tensor map of an array (tokens, `all` heads, head_dim). A box has `tokens` tokens, `heads` heads and 64
/// columns.
fn boxes<D: Device>(
    device: &D,
    address: u64,
    d: &AttentionDims,
    all: usize,
    (heads, tokens): (usize, usize),
) -> Result<TensorMap> {
    let width = d.head_dim;
    device.tensor_map(&TensorMapSpec {
        address,
        element: MapElement::Bf16,
        dims: vec![width as u64, all as u64, d.tokens as u64],
        strides: vec![2 * width as u64, 2 * (all * width) as u64],
        boxes: vec![64, heads as u32, tokens as u32],
        swizzle: MapSwizzle::Bytes128,
    })
}

/// Number of blocks of a persistent launch over the items of a work list.
fn blocks<D: Device, A: Element>(k: &Kernels<D, A>, d: &AttentionDims, rows: usize) -> usize {
    k.device.properties().processors.min(tiles(d, rows) * d.kv_heads)
}

/// Builds a work list of tiles of `rows` tokens.
fn plan<D: Device, A: Element>(
    k: &Kernels<D, A>,
    d: &AttentionDims,
    tree: &Tree<'_, Array<D, i32>>,
    kind: AttentionTiles,
    rows: usize,
    work: MutPtr<i32>,
) -> Result<()> {
    // The plan sorts tiles by cost into classes. The classes cover costs up to the longest path for query
    // tiles, and up to twice the mean tree length for key tiles. Costlier tiles share the last class.
    let longest = match kind {
        AttentionTiles::Queries => d.longest_path,
        AttentionTiles::Keys => 2 * d.tokens / d.trees.max(1),
    };
    launch::AttentionPlanSm90 {
        starts: read(tree.starts),
        ancestor_offsets: read(tree.ancestor_offsets),
        ancestors: read(tree.ancestors),
        trees: read(tree.trees),
        work,
        kind,
        segments: int(d.segments)?,
        tree_count: int(d.trees)?,
        rows: int(rows)?,
        span: int(KEYS * longest.div_ceil(KEYS * CLASSES).max(1))?,
    }
    .launch(&k.device, 1, 0)
}

/// Enqueues the forward. Returns false and does nothing if these kernels do not support the call.
pub(in super::super) fn attention_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut AttentionFwd<'_, Kernels<D, A>>,
) -> Result<bool> {
    let d = a.dims;
    let Some(head) = padded_head(k, &d, ROWS) else { return Ok(false) };
    let (qkv, o) = (read(a.qkv).address(), write(&mut a.o).address());
    if !are_aligned(&[qkv, o]) {
        return Ok(false);
    }
    let rows = ROWS / group(&d);
    let mut scratch = k.scratch()?;
    let work = scratch.request::<i32>(HEADER + WORDS * tiles(&d, rows));
    scratch.take()?;
    plan(k, &d, &a.tree, AttentionTiles::Queries, rows, scratch.write(work))?;
    launch::AttentionFwdSm90 {
        queries: boxes(&k.device, qkv, &d, d.fused_heads(), (group(&d), rows))?,
        keys: boxes(&k.device, qkv, &d, d.fused_heads(), (1, KEYS))?,
        qkv: ConstPtr::new(qkv, 0),
        starts: read(a.tree.starts),
        ancestor_offsets: read(a.tree.ancestor_offsets),
        ancestors: read(a.tree.ancestors),
        work: scratch.read(work),
        o: MutPtr::new(o, 0),
        lse: write(&mut a.lse),
        tokens: int(d.tokens)?,
        heads: int(d.heads)?,
        kv_heads: int(d.kv_heads)?,
        head_dim: int(d.head_dim)?,
        scale: d.scale as f32,
    }
    .launch(&k.device, head, blocks(k, &d, rows), path_bytes(head, 1, 2))?;
    Ok(true)
}

/// Padded head size of the backward; `None` if these kernels do not support the call.
pub(super) fn backward_head<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &AttentionBwd<'_, Kernels<D, A>>,
) -> Option<usize> {
    let addresses = [read(a.do_), read(a.qkv), read(a.o), read(a.dqkv.as_view())].map(|operand| operand.address());
    padded_head(k, &a.dims, STEP_ROWS).filter(|_| are_aligned(&addresses))
}

/// Enqueues the backward; with `rotation`, also the gradient of the rotation
/// ([`super::rope::fuses_attention`]). Returns false and does nothing if these kernels do not support the
/// call.
pub(in super::super) fn attention_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    a: &mut AttentionBwd<'_, Kernels<D, A>>,
    rotation: Option<&Rotation<'_, Kernels<D, A>>>,
) -> Result<bool> {
    let d = a.dims;
    let Some(head) = backward_head(k, a) else { return Ok(false) };
    let (dout, qkv, o) = (read(a.do_).address(), read(a.qkv).address(), read(a.o).address());
    let dqkv = write(&mut a.dqkv).address();
    let positions = rotation.map_or(ConstPtr::NONE, |rotation| read(rotation.positions));
    let [cos, sin] = [rotation.map(|r| r.cos), rotation.map(|r| r.sin)].map(read_option);
    let (rows, step) = (ROWS / group(&d), STEP_ROWS / group(&d));
    let mut scratch = k.scratch()?;
    let query_work = scratch.request::<i32>(HEADER + WORDS * tiles(&d, rows));
    let key_work = scratch.request::<i32>(HEADER + WORDS * tiles(&d, KEYS));
    let stats = scratch.request::<f32>(2 * d.heads * d.tokens);
    scratch.take()?;
    plan(k, &d, &a.tree, AttentionTiles::Queries, rows, scratch.write(query_work))?;
    plan(k, &d, &a.tree, AttentionTiles::Keys, KEYS, scratch.write(key_work))?;
    let (starts, ancestor_offsets) = (read(a.tree.starts), read(a.tree.ancestor_offsets));
    let ancestors = read(a.tree.ancestors);
    let (tokens, heads, kv_heads, head_dim) = (int(d.tokens)?, int(d.heads)?, int(d.kv_heads)?, int(d.head_dim)?);
    let (dout_pointer, qkv_pointer, scale) = (ConstPtr::new(dout, 0), ConstPtr::new(qkv, 0), d.scale as f32);
    let query_boxes = |tokens| boxes(&k.device, qkv, &d, d.fused_heads(), (group(&d), tokens));
    let dout_boxes = |tokens| boxes(&k.device, dout, &d, d.heads, (group(&d), tokens));
    let keys = boxes(&k.device, qkv, &d, d.fused_heads(), (1, KEYS))?;
    launch::AttentionBwdQSm90 {
        queries: query_boxes(rows)?,
        douts: dout_boxes(rows)?,
        keys,
        qkv: qkv_pointer,
        dout: dout_pointer,
        o: ConstPtr::new(o, 0),
        lse: read(a.lse),
        starts,
        ancestor_offsets,
        ancestors,
        work: scratch.read(query_work),
        positions,
        cos,
        sin,
        stats: scratch.write(stats),
        dqkv: MutPtr::new(dqkv, 0),
        tokens,
        heads,
        kv_heads,
        head_dim,
        scale,
    }
    .launch(&k.device, head, blocks(k, &d, rows), path_bytes(head, 2, if head == 64 { 2 } else { 1 }))?;
    launch::AttentionBwdKvSm90 {
        queries: query_boxes(step)?,
        douts: dout_boxes(step)?,
        keys,
        qkv: qkv_pointer,
        dout: dout_pointer,
        stats: scratch.read(stats),
        starts,
        ancestor_offsets,
        ancestors,
        work: scratch.read(key_work),
        positions,
        cos,
        sin,
        dqkv: MutPtr::new(dqkv, 0),
        tokens,
        heads,
        kv_heads,
        head_dim,
        scale,
    }
    .launch(&k.device, head, blocks(k, &d, KEYS), key_bytes(head))?;
    Ok(true)
}
