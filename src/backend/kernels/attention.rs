//! Attention over prefix trees (`kernels/attention.cu`, `kernels/attention_bwd.cu`): the forward, and the
//! backward in three kernels. The kernels for Hopper ([`hopper`]) run instead if they support the call. Only
//! the device knows the starts of segments, so a kernel builds the work list; the host bounds its length.

use super::device::{Device, Element, MutPtr};
use super::launchers as launch;
use super::{Array, Kernels, hopper, int, read, write};
use crate::backend::contract::*;
use crate::{Error, Result};

/// Largest head size. The kernels keep a row of a head's results in registers.
const MAX_HEAD: usize = 256;
/// Lanes per row of `attention_bwd_delta`.
const DELTA_LANES: usize = 8;

/// Tile shapes of the kernels for heads padded to `head` columns, in the terms of
/// `kernels/attention.cuh`. The emulator checks the sizes of shared memory.
#[derive(Clone, Copy)]
struct Shape {
    head: usize,
    /// Size of an element in bytes.
    size: usize,
}

impl Shape {
    /// Shape of the smallest kernel for these heads.
    fn of<A: Element>(AttentionDims { head_dim, softcap, .. }: AttentionDims) -> Result<Self> {
        let heads = match softcap {
            None => &launch::AttentionFwd::<A>::HEAD[..],
            Some(_) => &launch::AttentionCappedFwd::<A>::HEAD[..],
        };
        let head = heads.iter().copied().find(|&head| head_dim <= head).ok_or_else(|| {
            Error::Usage(format!(
                "head_dim {head_dim} is larger than {MAX_HEAD}, the limit of the attention kernels; run this model with \
                 --device cpu"
            ))
        })?;
        Ok(Self { head, size: size_of::<A>() })
    }

    fn wide(self) -> bool {
        self.head == MAX_HEAD
    }

    /// Number of rows of a tile (`BlockShape::ROWS` of the kernels).
    fn rows(self) -> usize {
        if self.wide() && self.size == 4 { 32 } else { 64 }
    }

    /// Size of a tile of `rows` rows in bytes.
    fn tile_bytes(self, rows: usize) -> usize {
        rows * self.head * self.size
    }

    /// Shared memory of the forward in bytes (`Forward::SHARED_BYTES`): queries, and two stages of keys and
    /// values.
    fn forward_bytes(self) -> usize {
        let keys = if self.wide() { 64 } else { 128 } / self.size;
        self.tile_bytes(self.rows()) + 2 * 2 * self.tile_bytes(keys)
    }

    /// Number of pipeline stages of the backward (`Backward::STAGES`).
    fn stages(self) -> usize {
        if self.wide() && self.size == 4 { 1 } else { 2 }
    }

    /// Shared memory of the backward over queries in bytes (`Backward::SHARED_BYTES_Q`): queries and
    /// gradients of outputs, and stages of keys and values.
    fn backward_q_bytes(self) -> usize {
        let keys = if self.wide() || self.size == 4 { 16 } else { 64 };
        2 * self.tile_bytes(self.rows()) + self.stages() * 2 * self.tile_bytes(keys)
    }

    /// Shared memory of the backward over keys in bytes (`Backward::SHARED_BYTES_KV`): keys and values, and
    /// stages of queries, gradients, logsumexps and deltas.
    fn backward_kv_bytes(self) -> usize {
        let queries = if self.wide() || self.size == 4 { 16 } else { 32 };
        2 * self.tile_bytes(self.rows()) + self.stages() * 2 * (self.tile_bytes(queries) + queries * size_of::<f32>())
    }

    /// Number of column parts of a query's gradient (HEAD / `Backward::PART_Q`). One block computes one part.
    fn parts_q(self) -> usize {
        if self.wide() && self.size == 4 { 2 } else { 1 }
    }

    /// Number of column parts of the gradients of a key and value (HEAD / `Backward::PART_KV`). One block
    /// computes one part.
    fn parts_kv(self) -> usize {
        match (self.size, self.head) {
            (4, 96) => 3,
            (4, 128..) => self.head / 64,
            _ => self.head.div_ceil(128),
        }
    }

    /// Upper bound on the number of tiles of all segments. Each segment has at most one partial tile.
    fn tiles(self, d: &AttentionDims) -> usize {
        d.segments + d.tokens / self.rows()
    }

    /// Length of the work list.
    fn work_len(self, d: &AttentionDims) -> usize {
        2 + 2 * self.tiles(d)
    }
}

/// Number of blocks of a grid-stride loop over items. There are up to 16 per multiprocessor, because items
/// differ in length.
fn blocks<D: Device, A: Element>(k: &Kernels<D, A>, items: usize) -> usize {
    items.min(16 * k.device.properties().processors)
}

/// Converts a window to a kernel argument. Without a window, the argument is larger than every distance.
pub(super) fn window(window: Option<usize>) -> Result<i32> {
    window.map_or(Ok(i32::MAX), int)
}

/// Converts a soft cap to kernel arguments: the cap and its inverse, for scores in base 2. Both are 0 without
/// a soft cap.
pub(super) fn softcap(softcap: Option<f64>) -> [f32; 2] {
    let in_base_2 = |cap: f64| cap * std::f64::consts::LOG2_E;
    softcap.map_or([0.0; 2], |cap| [in_base_2(cap) as f32, in_base_2(cap).recip() as f32])
}

/// Launches an attention kernel, or its variant for a soft cap if the dims have one.
macro_rules! launch_by_softcap {
    ($dims:expr, $plain:ident, $capped:ident { $($field:ident: $value:expr,)* }, ($($argument:expr),* $(,)?)) => {
        match $dims.softcap {
            None => launch::$plain::<A> { $($field: $value,)* }.launch($($argument),*),
            Some(_) => {
                let [softcap, inverse_softcap] = softcap($dims.softcap);
                launch::$capped::<A> { $($field: $value,)* softcap, inverse_softcap }.launch($($argument),*)
            }
        }
    };
}

/// Builds the work list: the tiles of root segments first, then those of their children, then those of all
/// deeper segments.
fn plan<D: Device, A: Element>(
    k: &Kernels<D, A>,
    shape: Shape,
    d: &AttentionDims,
    tree: &Tree<'_, Array<D, i32>>,
    work: MutPtr<i32>,
) -> Result<()> {
    let (segments, rows) = (int(d.segments)?, int(shape.rows())?);
    let (starts, ancestor_offsets) = (read(tree.starts), read(tree.ancestor_offsets));
    launch::AttentionPlan { starts, ancestor_offsets, work, segments, rows }.launch(&k.device, 1, 0)
}

pub(super) fn attention_fwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: AttentionFwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let (d, shape) = (a.dims, Shape::of::<A>(a.dims)?);
    if d.tokens == 0 {
        return Ok(());
    }
    if hopper::attention_fwd(k, &mut a)? {
        return Ok(());
    }
    let mut scratch = k.scratch()?;
    let work = scratch.request::<i32>(shape.work_len(&d));
    scratch.take()?;
    plan(k, shape, &d, &a.tree, scratch.write(work))?;
    launch_by_softcap!(
        d,
        AttentionFwd,
        AttentionCappedFwd {
            qkv: read(a.qkv),
            starts: read(a.tree.starts),
            ancestor_offsets: read(a.tree.ancestor_offsets),
            ancestors: read(a.tree.ancestors),
            work: scratch.read(work),
            o: write(&mut a.o),
            lse: write(&mut a.lse),
            tokens: int(d.tokens)?,
            heads: int(d.heads)?,
            kv_heads: int(d.kv_heads)?,
            head_dim: int(d.head_dim)?,
            scale: d.scale as f32,
            window: window(d.window)?,
        },
        (&k.device, shape.head, blocks(k, shape.tiles(&d) * d.heads), shape.forward_bytes())
    )
}

pub(super) fn attention_bwd<D: Device, A: Element>(
    k: &Kernels<D, A>,
    mut a: AttentionBwd<'_, Kernels<D, A>>,
) -> Result<()> {
    let (d, shape) = (a.dims, Shape::of::<A>(a.dims)?);
    if d.tokens == 0 {
        return Ok(());
    }
    if hopper::attention_bwd(k, &mut a, None)? {
        return Ok(());
    }
    let mut scratch = k.scratch()?;
    let work = scratch.request::<i32>(shape.work_len(&d));
    let delta = scratch.request::<f32>(d.heads * d.tokens);
    scratch.take()?;
    plan(k, shape, &d, &a.tree, scratch.write(work))?;
    launch::AttentionBwdDelta::<A> {
        dout: read(a.do_),
        o: read(a.o),
        delta: scratch.write(delta),
        tokens: int(d.tokens)?,
        heads: int(d.heads)?,
        head_dim: int(d.head_dim)?,
    }
    .launch(
        &k.device,
        k.row_blocks(d.tokens * d.heads, launch::AttentionBwdDelta::<A>::THREADS / DELTA_LANES),
        0,
    )?;
    launch_by_softcap!(
        d,
        AttentionBwdQ,
        AttentionCappedBwdQ {
            dout: read(a.do_),
            qkv: read(a.qkv),
            lse: read(a.lse),
            delta: scratch.read(delta),
            starts: read(a.tree.starts),
            ancestor_offsets: read(a.tree.ancestor_offsets),
            ancestors: read(a.tree.ancestors),
            work: scratch.read(work),
            dqkv: write(&mut a.dqkv),
            tokens: int(d.tokens)?,
            heads: int(d.heads)?,
            kv_heads: int(d.kv_heads)?,
            head_dim: int(d.head_dim)?,
            scale: d.scale as f32,
            window: window(d.window)?,
        },
        (&k.device, shape.head, blocks(k, shape.tiles(&d) * d.heads * shape.parts_q()), shape.backward_q_bytes(),)
    )?;
    launch_by_softcap!(
        d,
        AttentionBwdKv,
        AttentionCappedBwdKv {
            dout: read(a.do_),
            qkv: read(a.qkv),
            lse: read(a.lse),
            delta: scratch.read(delta),
            starts: read(a.tree.starts),
            ancestor_offsets: read(a.tree.ancestor_offsets),
            ancestors: read(a.tree.ancestors),
            trees: read(a.tree.trees),
            work: scratch.read(work),
            dqkv: write(&mut a.dqkv),
            tokens: int(d.tokens)?,
            tree_count: int(d.trees)?,
            heads: int(d.heads)?,
            kv_heads: int(d.kv_heads)?,
            head_dim: int(d.head_dim)?,
            scale: d.scale as f32,
            window: window(d.window)?,
        },
        (&k.device, shape.head, blocks(k, shape.tiles(&d) * d.kv_heads * shape.parts_kv()), shape.backward_kv_bytes(),)
    )
}
