//! Predicts the time of attention over prefix trees. The prediction runs the items of a kernel's work list on as
//! many blocks as the GPU holds.
//!
//! ```text
//! tile = instructions of the main loop x warps of a scheduler / clock / share    portable
//!      + FLOPs of its products / rate of the tensor cores                        Hopper
//! item = tiles of its path (or steps over the queries of its keys) x tile
//! time = launches + the block that ends last
//! ```
//!
//! On Hopper, the two terms of a tile are added, so a kernel that overlaps them is faster than predicted.
//! FlashAttention-3 needs about their sum at head_dim 64 (arXiv 2407.08608). The portable kernels use the share
//! [`PORTABLE_SHARE`] of a scheduler's issue slots, which includes the time of their products.

use super::LAUNCH_SECONDS;

/// Tables with the instructions of every kernel's loops, and with the registers per thread.
const LOOPS: &str = include_str!("../../../kernels/sass.csv");
const REGISTERS: &str = include_str!("../../../kernels/resources.csv");
/// Clock of an H200 under load, in cycles per second.
pub(super) const CLOCK: f64 = 1.755e9;
/// FLOP/s of a multiprocessor's tensor cores in the main loop of a GEMM of 192 columns
/// (`geometry::Tile::stage_ns`).
const TENSOR_FLOPS: f64 = 2.0 * 128.0 * 64.0 / 2.45e-9;
/// Share of the issue slots that the portable kernels use. Fitted to the recorded step (`predict`).
const PORTABLE_SHARE: f64 = 0.7;
/// Instructions of the portable kernels' main loops at head_dim 64 when the step was recorded. Since then an
/// exponential needs one instruction instead of four.
const RECORDED_LOOPS: [(&str, f64); 3] =
    [("attention_fwd_64_bf16", 1525.0), ("attention_bwd_q_64_bf16", 1575.0), ("attention_bwd_kv_64_bf16", 1457.0)];
/// Assumed cycles of an item on Hopper for the first loads and the results.
const ITEM_CYCLES: f64 = 1500.0;
/// Rows of a tile of the portable kernels in bf16, and queries per step of their key and value backward.
const ROWS: usize = 64;
const STEP: usize = 32;
/// Keys and packed rows of a tile on Hopper, and packed rows of a step over queries.
const WIDE: usize = 128;
const WIDE_STEP: usize = 64;

/// Segments of a batch (`backend::contract::Tree`), on the host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments<'a> {
    /// (segments + 1) first row of each segment
    pub starts: &'a [i32],
    /// (segments + 1) offsets into `ancestors`
    pub offsets: &'a [i32],
    /// Ancestors of each segment, root first
    pub ancestors: &'a [i32],
    /// (trees + 1) first segment of each tree
    pub trees: &'a [i32],
}

/// Heads of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Segments<'_> {
    fn count(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    fn rows(&self, segment: usize) -> usize {
        (self.starts[segment + 1] - self.starts[segment]) as usize
    }

    fn above(&self, segment: usize) -> &[i32] {
        &self.ancestors[self.offsets[segment] as usize..self.offsets[segment + 1] as usize]
    }

    fn rows_above(&self, segment: usize) -> usize {
        self.above(segment).iter().map(|&above| self.rows(above as usize)).sum()
    }

    /// Splits every segment into tiles of `tokens` tokens: (segment, first token, number of tokens).
    fn tiles(&self, tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..self.count()).flat_map(move |segment| {
            let rows = self.rows(segment);
            (0..rows).step_by(tokens).map(move |first| (segment, first, tokens.min(rows - first)))
        })
    }

    /// Number of key tiles on the path of every tile of `tokens` queries.
    fn path_tiles(&self, tokens: usize, keys: usize) -> Vec<f64> {
        self.tiles(tokens).map(|(s, first, n)| (self.rows_above(s) + first + n).div_ceil(keys) as f64).collect()
    }

    /// Number of steps of `step` queries that attend to each tile of `tokens` keys. The queries are those of its
    /// segment and of the segment's descendants.
    fn query_steps(&self, tokens: usize, step: usize) -> Vec<f64> {
        let descends = |other: usize, s: usize| self.above(other).contains(&(s as i32));
        let end_of_tree = |s: usize| self.trees.iter().copied().find(|&first| first as usize > s);
        let steps = |(s, first, _): (usize, usize, usize)| {
            let own = (self.rows(s) - first).div_ceil(step);
            let end = end_of_tree(s).map_or(self.count(), |end| end as usize);
            let below = (s + 1..end).filter(|&other| descends(other, s)).map(|other| self.rows(other).div_ceil(step));
            (own + below.sum::<usize>()) as f64
        };
        self.tiles(tokens).map(steps).collect()
    }
}

/// Kernel family of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Hopper,
    Portable,
    /// Portable kernels as in the recorded step: with their main loops at that time, and with the items of the
    /// key and value backward in batch order.
    Recorded,
}

impl Family {
    /// Family of a launched kernel.
    pub(crate) fn of(kernel: &str) -> Self {
        if kernel.contains("_sm90") { Self::Hopper } else { Self::Portable }
    }
}

/// Reads a column from the row of a table that starts with `start`. `at` is the index of the column after
/// `start`.
fn column(table: &str, start: &str, at: usize) -> Option<f64> {
    table.lines().find_map(|line| line.strip_prefix(start)?.split(',').nth(at)?.parse().ok())
}

/// Instructions of a kernel's main loop on Hopper.
fn loop_instructions(kernel: &str) -> Option<f64> {
    column(LOOPS, &format!("{kernel},sm_90a,loop,"), 0)
}

/// Blocks of 128 threads that a multiprocessor's registers hold.
fn blocks_held(kernel: &str) -> usize {
    let registers = column(REGISTERS, &format!("{kernel},sm_90a,"), 0).unwrap_or(128.0) as usize;
    (65_536 / (128 * registers.next_multiple_of(8))).max(1)
}

/// Time at which the last of `workers` workers ends. Each starts the next item when it is free.
fn makespan(items: impl Iterator<Item = f64>, workers: usize) -> f64 {
    let mut free = std::collections::BinaryHeap::from(vec![std::cmp::Reverse(0u64); workers.max(1)]);
    let mut last = 0;
    for item in items {
        let std::cmp::Reverse(start) = free.pop().unwrap_or_default();
        // Integer picoseconds, because the heap needs a total order.
        let end = start + (item * 1e12) as u64;
        last = last.max(end);
        free.push(std::cmp::Reverse(end));
    }
    last as f64 * 1e-12
}

/// Seconds of one call; `None` if no kernel supports this head size.
pub(crate) fn seconds(family: Family, backward: bool, tree: &Segments<'_>, h: Heads, gpus: usize) -> Option<f64> {
    match (family, backward) {
        (Family::Hopper, false) => hopper_paths("attention_fwd_sm90", 2.0, tree, h, gpus),
        (Family::Hopper, true) => {
            Some(hopper_paths("attention_bwd_q_sm90", 3.0, tree, h, gpus)? + hopper_keys(tree, h, gpus)?)
        }
        (_, false) => portable_paths("attention_fwd", family, tree, h, gpus),
        (_, true) => {
            // attention_bwd_delta reads two arrays of a query's width; its estimated time is that of a
            // launch.
            let delta = LAUNCH_SECONDS;
            Some(
                delta
                    + portable_paths("attention_bwd_q", family, tree, h, gpus)?
                    + portable_keys(family, tree, h, gpus)?,
            )
        }
    }
}

/// Returns the kernel with the smallest head size of at least `head_dim`, and this size.
fn kernel_of(stem: &str, sizes: &[usize], end: &str, head_dim: usize) -> Option<(String, usize)> {
    let size = sizes.iter().copied().find(|&size| head_dim <= size)?;
    Some((format!("{stem}_{size}{end}"), size))
}

const HOPPER_HEADS: [usize; 4] = [64, 80, 96, 128];
const PORTABLE_HEADS: [usize; 5] = [32, 64, 96, 128, 256];

/// Seconds of a tile on Hopper: eight consumer warps on four schedulers, then `products` GEMMs of
/// `rows` x 128 x `head`.
fn hopper_tile(kernel: &str, products: f64, rows: usize, head: usize) -> Option<f64> {
    let flops = 2.0 * products * (rows * WIDE * head) as f64;
    Some(2.0 * loop_instructions(kernel)? / CLOCK + flops / TENSOR_FLOPS)
}

/// Seconds of the work-list kernel and of the attention kernel, which runs the longest items first.
fn hopper(items: Vec<f64>, tile: f64, kv_heads: usize, processors: usize) -> f64 {
    let mut items = items;
    items.sort_by(|a, b| b.total_cmp(a));
    let all = items.iter().flat_map(|&tiles| std::iter::repeat_n(tiles * tile + ITEM_CYCLES / CLOCK, kv_heads));
    2.0 * LAUNCH_SECONDS + makespan(all, processors)
}

fn hopper_paths(stem: &str, products: f64, tree: &Segments<'_>, h: Heads, processors: usize) -> Option<f64> {
    let (kernel, head) = kernel_of(stem, &HOPPER_HEADS, "", h.head_dim)?;
    let tile = hopper_tile(&kernel, products, WIDE, head)?;
    let items = tree.path_tiles(WIDE / (h.heads / h.kv_heads.max(1)).max(1), WIDE);
    Some(hopper(items, tile, h.kv_heads, processors))
}

fn hopper_keys(tree: &Segments<'_>, h: Heads, processors: usize) -> Option<f64> {
    let (kernel, head) = kernel_of("attention_bwd_kv_sm90", &HOPPER_HEADS, "", h.head_dim)?;
    let step = hopper_tile(&kernel, 4.0, WIDE_STEP, head)?;
    let items = tree.query_steps(WIDE, (WIDE_STEP / (h.heads / h.kv_heads.max(1)).max(1)).max(1));
    Some(hopper(items, step, h.kv_heads, processors))
}

/// Seconds of the work-list kernel and of a portable kernel, which runs each item of `items` once for each of
/// `heads` heads.
fn portable(kernel: &str, family: Family, items: &[f64], heads: usize, processors: usize) -> Option<f64> {
    let held = blocks_held(kernel);
    let recorded = RECORDED_LOOPS.iter().find(|(name, _)| family == Family::Recorded && *name == kernel);
    let instructions = recorded.map(|(_, count)| *count).or_else(|| loop_instructions(kernel))?;
    // A block has a warp on each scheduler, which it shares with the other resident blocks.
    let tile = held as f64 * instructions / CLOCK / PORTABLE_SHARE;
    let all = items.iter().flat_map(|&tiles| std::iter::repeat_n(tiles * tile, heads));
    Some(2.0 * LAUNCH_SECONDS + makespan(all, held * processors))
}

fn portable_paths(stem: &str, family: Family, tree: &Segments<'_>, h: Heads, processors: usize) -> Option<f64> {
    let (kernel, head) = kernel_of(stem, &PORTABLE_HEADS, "_bf16", h.head_dim)?;
    let mut items = tree.path_tiles(ROWS, if head == 256 { ROWS / 2 } else { ROWS });
    items.sort_by(|a, b| b.total_cmp(a));
    portable(&kernel, family, &items, h.heads, processors)
}

fn portable_keys(family: Family, tree: &Segments<'_>, h: Heads, processors: usize) -> Option<f64> {
    let (kernel, head) = kernel_of("attention_bwd_kv", &PORTABLE_HEADS, "_bf16", h.head_dim)?;
    let group = (h.heads / h.kv_heads.max(1)) as f64;
    let mut items = tree.query_steps(ROWS, if head == 256 { STEP / 2 } else { STEP });
    items.iter_mut().for_each(|steps| *steps *= group);
    if family != Family::Recorded {
        items.sort_by(|a, b| b.total_cmp(a));
    }
    portable(&kernel, family, &items, h.kv_heads, processors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt of 100 tokens with responses of 70 and 30.
    const TREE: Segments<'_> =
        Segments { starts: &[0, 100, 170, 200], offsets: &[0, 0, 1, 2], ancestors: &[0, 0], trees: &[0, 3] };

    #[test]
    fn items_are_the_tiles_of_paths_and_the_steps_of_queries() {
        // Prompt: tiles end at 64 and 100; responses at 164, 170 and 130.
        assert_eq!(TREE.path_tiles(64, 64), [1.0, 2.0, 3.0, 3.0, 3.0]);
        // Keys 0 to 63 of the prompt: 100 own queries, 70 and 30 of the responses, in steps of 32.
        assert_eq!(TREE.query_steps(64, 32), [4.0 + 3.0 + 1.0, 2.0 + 3.0 + 1.0, 3.0, 1.0, 1.0]);
    }

    #[test]
    fn the_block_that_ends_last_decides() {
        assert!((makespan([3.0, 3.0, 2.0].into_iter(), 2) - 5.0).abs() < 1e-9);
        assert!((makespan([2.0, 3.0, 3.0].into_iter(), 3) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn every_head_size_has_a_prediction_and_hopper_is_faster() {
        for head_dim in [64, 72, 96, 128] {
            let h = Heads { heads: 14, kv_heads: 2, head_dim };
            for backward in [false, true] {
                let of = |family| seconds(family, backward, &TREE, h, 132).unwrap();
                assert!(of(Family::Hopper) > 0.0 && of(Family::Hopper) < of(Family::Portable), "{head_dim} {backward}");
            }
        }
        let h = Heads { heads: 1, kv_heads: 1, head_dim: 257 };
        assert_eq!(seconds(Family::Portable, false, &TREE, h, 132), None);
    }
}
