//! Which tiles a Hopper product is cut into, and why: the choice whose predicted time is least. The prediction counts stages,
//! results on their way out and the launch; memory is not in it.

use std::fmt::Write as _;

pub use super::launchers::GemmTile as Tile;
use super::launchers::{GEMM_CLUSTER, GEMM_COLUMNS, GEMM_PING_PONG};

/// Rows of a tile, values of k of a stage, most stages: those of `kernels/tile_sm90.cuh`.
pub const ROWS: usize = 128;
const DEPTH: usize = 64;
const MOST_STAGES: usize = 4;
/// Shared memory that a block may have.
const MOST_SHARED: usize = 227 << 10;
/// Nanoseconds, fitted to 818 times on H200s: of 39 products (9 us to 6 ms) and of one and four tiles a multiprocessor
/// (benches/README.md, "Choosing tiles"). Among the times of the fit itself the chosen tiles are within 1 % of the best ones, and
/// predictions within 10 % (root mean square). A launch, which begins while the one before ends; the same in clusters of two takes
/// more.
const LAUNCH_NS: f64 = 1800.0;
const CLUSTER_NS: f64 = 1230.0;
/// The way out of a tile, for each column of two bytes: both consumers together; in turn, where it is mostly behind products of the
/// other consumer, and that of the last tile, which is behind nothing.
const TOGETHER_NS: f64 = 8.1;
const IN_TURN_NS: f64 = 5.1;
const LAST_IN_TURN_NS: f64 = 10.4;
/// A part of a sum that waits for the one before, and for each column of it.
const PART_NS: f64 = 830.0;
const PART_COLUMN_NS: f64 = 4.1;
/// FLOPs of a multiprocessor's tensor cores in a nanosecond: 989.4 TFLOP/s over 132 multiprocessors (H100 SXM data sheet; both
/// cards have the same die).
const FLOPS_PER_NS: f64 = 989_400.0 / 132.0;
/// Most parts of a sum.
const MOST_SPLITS: usize = 8;
/// Rounds of whole sums at most where they are cut into parts.
const MOST_WAVES_IN_PARTS: f64 = 2.0;

impl Tile {
    /// Columns of the result.
    pub fn columns(self) -> usize {
        GEMM_COLUMNS[self as usize]
    }

    /// Blocks of a cluster, one below the other.
    pub fn blocks(self) -> usize {
        GEMM_CLUSTER[self as usize]
    }

    /// Whether one consumer multiplies while the other works on sums.
    pub fn ping_pong(self) -> bool {
        GEMM_PING_PONG[self as usize] != 0
    }

    /// Nanoseconds of a stage's products for each column of a tile (fitted as the constants above).
    fn step_ns(self) -> f64 {
        match self {
            Self::N256 => 2.60,
            Self::N224 => 2.80,
            Self::N192 => 2.54,
            Self::N192PingPong => 2.45,
            Self::N128 => 2.85,
            Self::N128PingPong => 2.70,
        }
    }

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::N256 => "128x256 together, clusters of 2",
            Self::N224 => "128x224 together, clusters of 2",
            Self::N192 => "128x192 together",
            Self::N192PingPong => "128x192 in turn",
            Self::N128 => "128x128 together",
            Self::N128PingPong => "128x128 in turn",
        }
    }

    /// Shared memory of a block: stages, pieces of the result, rows of bias, barriers (`Hopper::SHARED_BYTES`). Operands that are contiguous
    /// across k come in boxes of 64 columns; `out_bytes` is the size of an element of C.
    pub fn shared_bytes(self, b_across: bool, out_bytes: usize) -> usize {
        let pieces = match self {
            Self::N192PingPong | Self::N128PingPong => 2,
            _ if out_bytes == 2 => self.columns().div_ceil(64),
            Self::N192 => 3,
            _ => 4,
        };
        self.shared_bytes_with(b_across, pieces)
    }

    /// The same, with so many pieces for each consumer.
    pub fn shared_bytes_with(self, b_across: bool, pieces: usize) -> usize {
        let columns = if b_across { self.columns().next_multiple_of(64) } else { self.columns() };
        let (stage, out) = (2 * DEPTH * (ROWS + columns), 2 * pieces * 64 * 128);
        let rows = 2 * 2 * self.columns();
        let stages = MOST_STAGES.min((MOST_SHARED - out - rows - 128) / stage);
        stages * (stage + 16) + out + rows + 32
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
    /// Whether A is contiguous across k: a weight gradient.
    pub a_across: bool,
}

/// Blocks of a launch over tiles of 128 rows by so many columns, in blocks by themselves.
pub fn blocks_of(rows: usize, columns: usize, width: usize, processors: usize) -> usize {
    processors.clamp(1, (rows.div_ceil(ROWS) * columns.div_ceil(width)).max(1))
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
    /// FLOPs over those of the data sheet in that time.
    pub efficiency: f64,
    pub seconds: f64,
}

/// A product of an op and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    pub op: &'static str,
    pub sizes: Sizes,
    pub choice: Choice,
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
    let columns = tile.columns() as f64;
    let halves = columns * s.out_bytes as f64 / 2.0;
    let (out, last) = if tile.ping_pong() { (IN_TURN_NS, LAST_IN_TURN_NS) } else { (TOGETHER_NS, 0.0) };
    let of_item = steps.div_ceil(splits) as f64 * columns * tile.step_ns() + halves * out;
    let launch = LAUNCH_NS + if blocks > 1 { CLUSTER_NS } else { 0.0 };
    let parts = (splits - 1) as f64 * (PART_NS + columns * PART_COLUMN_NS);
    let nanoseconds = launch + rounds as f64 * of_item + halves * last + parts;
    let flops = 2.0 * s.m as f64 * s.n as f64 * s.k as f64;
    Choice {
        tile,
        splits,
        grid: clusters * blocks,
        waves: items as f64 / clusters as f64,
        efficiency: flops / (FLOPS_PER_NS * processors as f64 * nanoseconds),
        seconds: nanoseconds * 1e-9,
    }
}

/// All ways, best first.
pub fn ranked(s: Sizes, processors: usize) -> Vec<Choice> {
    let most = if s.may_split { MOST_SPLITS } else { 1 };
    let ways = Tile::ALL.into_iter().filter(|tile| tile.blocks() <= processors);
    let mut ranked: Vec<Choice> =
        ways.flat_map(|tile| (1..=most).map(move |splits| cut(s, tile, splits, processors))).collect();
    // Parts are for sums of few tiles; those of many were not measured.
    ranked.retain(|choice| choice.splits == 1 || choice.waves / choice.splits as f64 <= MOST_WAVES_IN_PARTS);
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
    let tile = if planned.tile.blocks() <= processors { planned.tile } else { Tile::N192PingPong };
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
        Sizes { m, n, k, out_bytes: 2, may_split: false, a_across: false }
    }

    #[test]
    fn tiles_fit_the_sizes() {
        // 896 is four times 224: other widths leave a part of their last tile empty.
        assert_eq!(choose(forward(8192, 896, 4864), 132).tile, Tile::N224);
        // Short sums: results leave while the other consumer multiplies.
        assert_eq!(choose(forward(8192, 9728, 896), 132).tile, Tile::N192PingPong);
        // Sixteen times sixteen tiles of the largest are four rounds that are all but full.
        assert_eq!(choose(forward(4096, 4096, 4096), 132).tile, Tile::N256);
        // Few rows: narrow tiles, so that as many multiprocessors as can be have one; of a single round none is behind another.
        assert_eq!(choose(forward(2048, 896, 4864), 132).tile.columns(), 128);
        assert_eq!(choose(forward(2048, 1152, 896), 132).tile, Tile::N192);
    }

    #[test]
    fn long_sums_of_few_tiles_are_split_where_they_may_be() {
        let weight = Sizes { m: 896, n: 896, k: 16_384, out_bytes: 4, may_split: true, a_across: true };
        let choice = choose(weight, 132);
        assert!(choice.splits > 1 && choice.grid > 100, "{choice:?}");
        assert_eq!(choose(Sizes { may_split: false, ..weight }, 132).splits, 1);
        // A part is at least one step, and none is empty.
        let five_steps = cut(Sizes { k: 5 * 64, ..weight }, Tile::N192PingPong, 4, 132);
        assert_eq!(five_steps.splits, 3);
        assert_eq!(cut(Sizes { k: 1, ..weight }, Tile::N192PingPong, 8, 132).splits, 1);
    }

    #[test]
    fn times_add_up() {
        // 132 tiles of 128x192, a round: 64 stages, one way out, a launch.
        let choice = cut(forward(128 * 132, 192, 4096), Tile::N192PingPong, 1, 132);
        let nanoseconds = 64.0 * 192.0 * 2.45 + 192.0 * (IN_TURN_NS + LAST_IN_TURN_NS) + LAUNCH_NS;
        assert!((choice.seconds * 1e9 - nanoseconds).abs() < 1e-3, "{choice:?}");
        assert_eq!((choice.grid, choice.waves), (132, 1.0));
        // One tile on 132 multiprocessors.
        assert!(cut(forward(128, 192, 4096), Tile::N192PingPong, 1, 132).efficiency < 0.01);
    }

    #[test]
    fn blocks_have_the_shared_memory_of_a_multiprocessor() {
        for tile in Tile::ALL {
            for out_bytes in [2, 4] {
                let (along, across) = (tile.shared_bytes(false, out_bytes), tile.shared_bytes(true, out_bytes));
                assert!(across <= MOST_SHARED && along <= MOST_SHARED, "{tile:?}");
            }
        }
        assert_eq!(Tile::N256.shared_bytes(false, 2), 3 * 49_152 + 65_536 + 1024 + 80);
        assert_eq!(Tile::N192PingPong.shared_bytes(false, 2), 4 * 40_960 + 32_768 + 768 + 96);
    }

    #[test]
    fn every_tile_is_explained() {
        let text = why(forward(8192, 896, 896), 132);
        assert!(text.starts_with("chosen 128x") && text.lines().count() == 6, "{text}");
        // One multiprocessor has no room for clusters.
        assert_eq!(why(forward(100, 100, 100), 1).lines().count(), 4);
    }
}
