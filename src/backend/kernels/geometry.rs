//! Which tiles a Hopper product is cut into, and why: the choice whose predicted time is least. The prediction counts clocks
//! of tensor cores and of results on their way out; memory and launches are not in it.

use std::fmt::Write as _;

/// Rows of a tile, values of k of a stage, most stages: those of `kernels/tile_sm90.cuh`.
pub const ROWS: usize = 128;
const DEPTH: usize = 64;
const MOST_STAGES: usize = 4;
/// Shared memory that a block may have.
const MOST_SHARED: usize = 227 << 10;
/// FLOPs of a multiprocessor's tensor cores in a clock: 989.4 TFLOP/s over 132 multiprocessors at 1.83 GHz, and the clock of
/// long products (H100 SXM data sheet; both cards have the same die).
const FLOPS_PER_CLOCK: usize = 4096;
const CLOCK: f64 = 1.755e9;
/// Clocks from the last product of a tile to the first piece of its result, and of a piece of 8 KiB on its way out. Estimates;
/// no card has been timed.
const EPILOGUE_CLOCKS: usize = 600;
const PIECE_CLOCKS: usize = 90;
/// Most parts of a sum.
const MOST_SPLITS: usize = 8;

/// A way of cutting and doing a product: a kernel for each op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tile {
    /// 128 rows by 256 columns, both consumers together, clusters of two blocks.
    Wide,
    /// By 224: seven eighths, for sizes such as 896.
    Middle,
    /// By 192.
    Narrow,
    /// By 192, one consumer multiplies while the other stores; clusters of two blocks.
    Turns,
    /// As `Turns`, in blocks by themselves: for few rows, or one multiprocessor.
    Alone,
}

impl Tile {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Wide, Self::Middle, Self::Narrow, Self::Turns, Self::Alone];

    /// Columns of the result.
    pub fn columns(self) -> usize {
        match self {
            Self::Wide => 256,
            Self::Middle => 224,
            Self::Narrow | Self::Turns | Self::Alone => 192,
        }
    }

    /// Blocks of a cluster, one below the other.
    pub fn blocks(self) -> usize {
        if self == Self::Alone { 1 } else { 2 }
    }

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wide => "128x256 together, clusters of 2",
            Self::Middle => "128x224 together, clusters of 2",
            Self::Narrow => "128x192 together, clusters of 2",
            Self::Turns => "128x192 in turn, clusters of 2",
            Self::Alone => "128x192 in turn",
        }
    }

    /// Shared memory of a block: stages, pieces of the result, barriers (`Hopper::SHARED_BYTES`). Operands that are contiguous
    /// across k come in boxes of 64 columns; `out_bytes` is the size of an element of C.
    pub fn shared_bytes(self, b_across: bool, out_bytes: usize) -> usize {
        let columns = if b_across { self.columns().next_multiple_of(64) } else { self.columns() };
        let batch = match self {
            Self::Turns | Self::Alone => 2,
            _ if out_bytes == 2 => self.columns().div_ceil(64),
            Self::Narrow => 3,
            _ => 4,
        };
        let (stage, out) = (2 * DEPTH * (ROWS + columns), 2 * batch * 64 * 128);
        let stages = MOST_STAGES.min((MOST_SHARED - out - 64) / stage);
        stages * (stage + 16) + out
    }
}

/// Sizes of a product: C (m, n) = A B, sums over k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Bytes of an element of C.
    pub out_bytes: usize,
    /// Whether parts of a sum may be added in memory: C is f32.
    pub may_split: bool,
}

/// Blocks of a launch over tiles of 128 rows by so many columns, in clusters of two.
pub fn blocks_of(rows: usize, columns: usize, width: usize, processors: usize) -> usize {
    let works = rows.div_ceil(2 * ROWS) * columns.div_ceil(width);
    2 * (processors / 2).clamp(1, works.max(1))
}

/// A way of doing a product, and what it is predicted to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub tile: Tile,
    /// Parts of every sum.
    pub splits: usize,
    /// Blocks of the launch.
    pub grid: usize,
    /// Items of work of a cluster of blocks, over the clusters at work.
    pub waves: f64,
    /// Of the tensor cores' clocks: those of elements of C over all until the last item is done.
    pub efficiency: f64,
    pub seconds: f64,
}

/// A product cut in this way on so many multiprocessors.
pub fn cut(s: Sizes, tile: Tile, splits: usize, processors: usize) -> Choice {
    let blocks = tile.blocks();
    let steps = s.k.div_ceil(DEPTH).max(1);
    // No part without steps.
    let splits = steps.div_ceil(steps.div_ceil(splits.clamp(1, steps)));
    let tiles = s.m.div_ceil(ROWS * blocks) * s.n.div_ceil(tile.columns());
    let items = tiles * splits;
    let clusters = (processors / blocks).clamp(1, items.max(1));
    let rounds = items.div_ceil(clusters);
    let multiply = steps.div_ceil(splits) * 2 * ROWS * tile.columns() * DEPTH / FLOPS_PER_CLOCK;
    let pieces = ROWS * tile.columns() * s.out_bytes / 8192;
    let store = EPILOGUE_CLOCKS + PIECE_CLOCKS * pieces;
    // In turn, results leave while the other consumer multiplies; together, they do not.
    let clocks = match tile {
        Tile::Turns | Tile::Alone => rounds * multiply.max(store.div_ceil(2)) + store,
        _ => rounds * (multiply + store),
    } + (splits - 1) * store;
    let useful = 2 * s.m * s.n * s.k / FLOPS_PER_CLOCK;
    Choice {
        tile,
        splits,
        grid: clusters * blocks,
        waves: items as f64 / clusters as f64,
        efficiency: useful as f64 / (clocks * processors) as f64,
        seconds: clocks as f64 / CLOCK,
    }
}

/// All ways, best first.
pub fn ranked(s: Sizes, processors: usize) -> Vec<Choice> {
    let most = if s.may_split { MOST_SPLITS } else { 1 };
    let ways = Tile::ALL.into_iter().filter(|tile| tile.blocks() <= processors);
    let mut ranked: Vec<Choice> =
        ways.flat_map(|tile| (1..=most).map(move |splits| cut(s, tile, splits, processors))).collect();
    // Equal times: fewer parts, then the order of `Tile::ALL`.
    ranked.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.splits.cmp(&b.splits)));
    ranked.dedup_by(|a, b| (a.tile, a.splits) == (b.tile, b.splits));
    ranked
}

/// Multiprocessors that the parts of sums are chosen for, whatever the card has: those of an H100 or H200 (SXM). The number of
/// parts decides the bits of a result, and these do not depend on the card.
pub const PLANNED_PROCESSORS: usize = 132;

/// The best way on so many multiprocessors, of which there is at least one. Parts are those of [`PLANNED_PROCESSORS`].
pub fn choose(s: Sizes, processors: usize) -> Choice {
    of_card(s, ranked(s, PLANNED_PROCESSORS)[0], processors)
}

/// A choice for [`PLANNED_PROCESSORS`] on another number of multiprocessors: a tile that fits there, and as many parts.
pub fn of_card(s: Sizes, planned: Choice, processors: usize) -> Choice {
    let tile = if planned.tile.blocks() <= processors { planned.tile } else { Tile::Alone };
    cut(s, tile, planned.splits, processors.max(1))
}

/// Why a way was chosen: it and the best of every other tile.
pub fn why(s: Sizes, processors: usize) -> String {
    let mut text = String::new();
    let mut seen = Vec::new();
    for choice in ranked(s, processors.max(1)) {
        if seen.contains(&choice.tile) {
            continue;
        }
        let mark = if seen.is_empty() { "chosen" } else { "      " };
        seen.push(choice.tile);
        let _ = writeln!(
            text,
            "{mark} {:<32} splits {}  waves {:>6.2}  tensor cores {:>5.1} %  {:>9.2} us",
            choice.tile.name(),
            choice.splits,
            choice.waves,
            100.0 * choice.efficiency,
            1e6 * choice.seconds
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(m: usize, n: usize, k: usize) -> Sizes {
        Sizes { m, n, k, out_bytes: 2, may_split: false }
    }

    #[test]
    fn tiles_fit_the_sizes() {
        // 896 is four times 224: other widths leave a part of their last tile empty.
        assert_eq!(choose(forward(8192, 896, 4864), 132).tile, Tile::Middle);
        // A large square is cut into the largest tiles.
        assert_eq!(choose(forward(8192, 8192, 8192), 132).tile, Tile::Wide);
        // Short sums: results leave while the other consumer multiplies.
        assert_eq!(choose(forward(8192, 1152, 896), 132).tile, Tile::Turns);
    }

    #[test]
    fn long_sums_of_few_tiles_are_split_where_they_may_be() {
        let weight = Sizes { m: 896, n: 896, k: 16_384, out_bytes: 4, may_split: true };
        let choice = choose(weight, 132);
        assert!(choice.splits > 1 && choice.grid > 100, "{choice:?}");
        assert_eq!(choose(Sizes { may_split: false, ..weight }, 132).splits, 1);
        // A part is at least one step, and none is empty.
        let five_steps = cut(Sizes { k: 5 * 64, ..weight }, Tile::Turns, 4, 132);
        assert_eq!(five_steps.splits, 3);
        assert_eq!(cut(Sizes { k: 1, ..weight }, Tile::Turns, 8, 132).splits, 1);
    }

    #[test]
    fn efficiency_is_that_of_the_clocks() {
        // 132 tiles of 128x192 whose store is hidden but for the last: 64 steps of 768 clocks.
        let choice = cut(forward(128 * 132, 192, 4096), Tile::Alone, 1, 132);
        let store = 600.0 + 90.0 * 6.0;
        let clocks = 64.0 * 768.0 + store;
        assert!((choice.seconds * 1.755e9 - clocks).abs() < 1e-3, "{choice:?}");
        assert!((choice.efficiency - 64.0 * 768.0 / clocks).abs() < 1e-9, "{choice:?}");
        assert_eq!((choice.grid, choice.waves), (132, 1.0));
        // One tile on 132 multiprocessors.
        assert!(cut(forward(128, 192, 4096), Tile::Alone, 1, 132).efficiency < 0.01);
    }

    #[test]
    fn blocks_have_the_shared_memory_of_a_multiprocessor() {
        for tile in Tile::ALL {
            for out_bytes in [2, 4] {
                let (along, across) = (tile.shared_bytes(false, out_bytes), tile.shared_bytes(true, out_bytes));
                assert!(across <= MOST_SHARED && along <= MOST_SHARED, "{tile:?}");
            }
        }
        assert_eq!(Tile::Wide.shared_bytes(false, 2), 3 * 49_152 + 65_536 + 48);
        assert_eq!(Tile::Turns.shared_bytes(false, 2), 4 * 40_960 + 32_768 + 64);
    }

    #[test]
    fn every_tile_is_explained() {
        let text = why(forward(8192, 896, 896), 132);
        assert!(text.starts_with("chosen 128x") && text.lines().count() == 5, "{text}");
        // One multiprocessor has no room for clusters.
        assert_eq!(why(forward(100, 100, 100), 1).lines().count(), 1);
    }
}
