//! Tile shapes of the Hopper GEMMs, and the choice among them: the shape with the least predicted time. The
//! prediction counts main loop stages, epilogues and the launch, but not memory traffic.

use serde::{Deserialize, Serialize};

pub use super::launchers::GemmTile as Tile;
use super::launchers::{
    GEMM_CLUSTER, GEMM_COLUMNS, GEMM_DEPTH as DEPTH, GEMM_MAX_STAGES as MAX_STAGES, GEMM_PING_PONG, GEMM_ROWS as ROWS,
    MAX_SHARED_BYTES,
};

/// Constants of the prediction, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TileTimes {
    /// Time of a launch with programmatic dependent launch.
    pub launch: f64,
    /// Additional time of a launch with clusters of two.
    pub cluster: f64,
    /// Epilogue time of a cooperative tile per 2-byte column.
    pub cooperative: f64,
    /// Epilogue time of a ping-pong tile per 2-byte column, mostly overlapped.
    pub ping_pong: f64,
    /// Epilogue time of the last ping-pong tile per 2-byte column, not overlapped.
    pub last_ping_pong: f64,
    /// Time that a split waits for the previous split.
    pub split: f64,
    /// Additional time of that wait per column.
    pub split_column: f64,
    /// Time of a main loop stage per column, in the order of [`Tile::ALL`].
    pub stage: [f64; 6],
}

/// Fitted to 818 measured times on H200s: of 39 GEMMs (9 us to 6 ms) and of one and four tiles per
/// multiprocessor (benches/README.md, "Choosing tiles"). On the fitted times, the chosen tiles are
/// within 1 % of the best ones, and predictions within 10 % (root mean square).
pub const H200_TIMES: TileTimes = TileTimes {
    launch: LAUNCH_NS,
    cluster: CLUSTER_NS,
    cooperative: COOPERATIVE_NS,
    ping_pong: PING_PONG_NS,
    last_ping_pong: LAST_PING_PONG_NS,
    split: SPLIT_NS,
    split_column: SPLIT_COLUMN_NS,
    stage: [2.60, 2.80, 2.54, 2.45, 2.85, 2.70],
};
const LAUNCH_NS: f64 = 1800.0;
const CLUSTER_NS: f64 = 1230.0;
const COOPERATIVE_NS: f64 = 8.1;
const PING_PONG_NS: f64 = 5.1;
const LAST_PING_PONG_NS: f64 = 10.4;
const SPLIT_NS: f64 = 830.0;
const SPLIT_COLUMN_NS: f64 = 4.1;
/// Peak FLOPs per nanosecond of a multiprocessor's tensor cores: 989.4 TFLOP/s over 132
/// multiprocessors (H100 SXM data sheet; the H200 has the same die).
const FLOPS_PER_NS: f64 = 989_400.0 / 132.0;
/// Maximum number of splits of k.
const MAX_SPLITS: usize = 8;
/// Maximum number of waves of output tiles with which split-K is considered.
const MAX_SPLIT_WAVES: f64 = 2.0;

impl Tile {
    /// Columns of a tile.
    pub(super) fn columns(self) -> usize {
        GEMM_COLUMNS[self as usize]
    }

    /// Number of blocks of a cluster, whose tiles are adjacent along m.
    pub fn blocks(self) -> usize {
        GEMM_CLUSTER[self as usize]
    }

    /// Whether the consumers have a tile each and alternate (ping-pong), instead of sharing one
    /// (cooperative).
    pub(super) fn ping_pong(self) -> bool {
        GEMM_PING_PONG[self as usize] != 0
    }

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::N256 => "128x256 cooperative, clusters of 2",
            Self::N224 => "128x224 cooperative, clusters of 2",
            Self::N192 => "128x192 cooperative",
            Self::N192PingPong => "128x192 ping-pong",
            Self::N128 => "128x128 cooperative",
            Self::N128PingPong => "128x128 ping-pong",
        }
    }

    /// Shared memory of a block in bytes: stages, epilogue subtiles, rows of bias, mbarriers
    /// (`Hopper::SHARED_BYTES`). If `b_across`, B is contiguous along n instead of k, and is loaded in boxes
    /// of 64 columns. `out_bytes` is the size of an element of C.
    pub(super) fn shared_bytes(self, b_across: bool, out_bytes: usize) -> usize {
        let subtiles = match self {
            Self::N192PingPong | Self::N128PingPong => 2,
            _ if out_bytes == 2 => self.columns().div_ceil(64),
            Self::N192 => 3,
            _ => 4,
        };
        self.shared_bytes_with(b_across, subtiles)
    }

    /// Like [`Tile::shared_bytes`], with `subtiles` epilogue subtiles per consumer.
    pub(super) fn shared_bytes_with(self, b_across: bool, subtiles: usize) -> usize {
        let columns = if b_across { self.columns().next_multiple_of(64) } else { self.columns() };
        let (stage, out) = (2 * DEPTH * (ROWS + columns), 2 * subtiles * 64 * 128);
        let bias = 2 * 2 * self.columns();
        let stages = MAX_STAGES.min((MAX_SHARED_BYTES - out - bias - 128) / stage);
        stages * (stage + 16) + out + bias + 32
    }
}

/// A GEMM: C (m, n) = A B, summed over k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the dot products.
    pub k: usize,
    /// Size of an element of C in bytes.
    pub out_bytes: usize,
    /// Whether split-K is allowed, which needs C in f32, so that splits can be added in memory.
    pub may_split: bool,
}

/// Number of blocks of a launch without clusters over tiles of 128 rows by `width` columns; at most one per
/// tile and one per multiprocessor.
pub(super) fn blocks_of(rows: usize, columns: usize, width: usize, processors: usize) -> usize {
    processors.clamp(1, (rows.div_ceil(ROWS) * columns.div_ceil(width)).max(1))
}

/// A tile and number of splits for a GEMM, with the predicted time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Tile.
    pub tile: Tile,
    /// Splits of k.
    pub splits: usize,
    /// Blocks of the launch.
    pub grid: usize,
    /// Work items (tile and split) per cluster of blocks.
    pub waves: f64,
    /// FLOPs divided by the peak FLOPs in the predicted time.
    pub efficiency: f64,
    /// Predicted time.
    pub seconds: f64,
}

/// A GEMM of an op and its tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// Name of the op.
    pub op: &'static str,
    /// Sizes.
    pub sizes: Sizes,
    /// Tile and splits chosen for the GEMM.
    pub choice: Choice,
}

/// Prediction for a GEMM with a tile and at most `splits` splits on `processors` multiprocessors.
pub(super) fn cut(s: Sizes, tile: Tile, splits: usize, processors: usize) -> Choice {
    cut_by(&H200_TIMES, s, tile, splits, processors)
}

/// Same as [`cut`], with the constants `times`.
pub(crate) fn cut_by(times: &TileTimes, s: Sizes, tile: Tile, splits: usize, processors: usize) -> Choice {
    let blocks = tile.blocks();
    let stages = s.k.div_ceil(DEPTH).max(1);
    // Every split has at least one stage.
    let splits = stages.div_ceil(stages.div_ceil(splits.clamp(1, stages)));
    let tiles = s.m.div_ceil(ROWS * blocks) * s.n.div_ceil(tile.columns());
    let items = tiles * splits;
    let clusters = (processors / blocks).clamp(1, items.max(1));
    let rounds = items.div_ceil(clusters);
    let columns = tile.columns() as f64;
    let halfwords = columns * s.out_bytes as f64 / 2.0;
    let (epilogue, last) =
        if tile.ping_pong() { (times.ping_pong, times.last_ping_pong) } else { (times.cooperative, 0.0) };
    let of_item = stages.div_ceil(splits) as f64 * columns * times.stage[tile as usize] + halfwords * epilogue;
    let launch = times.launch + if blocks > 1 { times.cluster } else { 0.0 };
    let waits = (splits - 1) as f64 * (times.split + columns * times.split_column);
    let nanoseconds = launch + rounds as f64 * of_item + halfwords * last + waits;
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

/// Predictions for every tile and number of splits, fastest first.
fn ranked(s: Sizes, processors: usize) -> Vec<Choice> {
    let most = if s.may_split { MAX_SPLITS } else { 1 };
    let tiles = Tile::ALL.into_iter().filter(|tile| tile.blocks() <= processors);
    let mut ranked: Vec<Choice> =
        tiles.flat_map(|tile| (1..=most).map(move |splits| cut(s, tile, splits, processors))).collect();
    // Split-K is considered only for few tiles; it was not measured with many.
    ranked.retain(|choice| choice.splits == 1 || choice.waves / choice.splits as f64 <= MAX_SPLIT_WAVES);
    // Choices of equal time are ordered by their number of splits, then as in `Tile::ALL`.
    ranked.sort_by(|a, b| a.seconds.total_cmp(&b.seconds).then(a.splits.cmp(&b.splits)));
    ranked.dedup_by(|a, b| (a.tile, a.splits) == (b.tile, b.splits));
    ranked
}

/// Number of multiprocessors for which splits are chosen on every GPU: 132, as on an H100 or H200
/// (SXM). The number of splits changes the bits of a result, and results must not depend on the
/// GPU.
pub(super) const PLANNED_PROCESSORS: usize = 132;

/// Fastest choice on `processors` multiprocessors (at least 1), with the splits of
/// `PLANNED_PROCESSORS`.
pub(super) fn choose(s: Sizes, processors: usize) -> Choice {
    of_card(s, ranked(s, PLANNED_PROCESSORS)[0], processors)
}

/// Returns the tile with the least time by the constants `times` of a GPU, with the same number of splits as
/// `choice`. A different tile does not change the bits of a result, but a different number of splits would.
/// `allowed` tells which tiles may have these splits.
pub(super) fn retile(
    times: &TileTimes,
    s: Sizes,
    choice: Choice,
    processors: usize,
    allowed: impl Fn(Tile) -> bool,
) -> Choice {
    fastest(times, s, choice.splits, processors, allowed).unwrap_or(choice)
}

/// Returns the fastest of the tiles that `allowed` permits and that support `splits` splits; `None` if there
/// is no such tile.
pub(super) fn fastest(
    times: &TileTimes,
    s: Sizes,
    splits: usize,
    processors: usize,
    allowed: impl Fn(Tile) -> bool,
) -> Option<Choice> {
    let tiles = Tile::ALL.into_iter().filter(|&tile| tile.blocks() <= processors.max(1) && allowed(tile));
    let choices = tiles.map(|tile| cut_by(times, s, tile, splits, processors.max(1)));
    let same = choices.filter(|other| other.splits == splits);
    same.min_by(|a, b| a.seconds.total_cmp(&b.seconds))
}

/// Adapts a choice for `PLANNED_PROCESSORS` to a different number of multiprocessors: the same splits, and a
/// tile that fits.
pub fn of_card(s: Sizes, planned: Choice, processors: usize) -> Choice {
    let tile = if planned.tile.blocks() <= processors { planned.tile } else { Tile::N192PingPong };
    cut(s, tile, planned.splits, processors.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(m: usize, n: usize, k: usize) -> Sizes {
        Sizes { m, n, k, out_bytes: 2, may_split: false }
    }

    #[test]
    fn tiles_fit_the_sizes() {
        // 896 is four times 224; other widths waste a part of their last tile.
        assert_eq!(choose(forward(8192, 896, 4864), 132).tile, Tile::N224);
        // With small k, ping-pong tiles overlap epilogues with the other consumer's main loop.
        assert_eq!(choose(forward(8192, 9728, 896), 132).tile, Tile::N192PingPong);
        // 16 x 16 tiles of the largest shape are four waves that are almost full.
        assert_eq!(choose(forward(4096, 4096, 4096), 132).tile, Tile::N256);
        // With few rows, narrow tiles give most multiprocessors a tile. With a single wave, ping-pong
        // overlaps nothing.
        assert_eq!(choose(forward(2048, 896, 4864), 132).tile.columns(), 128);
        assert_eq!(choose(forward(2048, 1152, 896), 132).tile, Tile::N192);
    }

    #[test]
    fn gemms_of_few_tiles_and_large_k_are_split() {
        let weight = Sizes { m: 896, n: 896, k: 16_384, out_bytes: 4, may_split: true };
        let choice = choose(weight, 132);
        assert!(choice.splits > 1 && choice.grid > 100, "{choice:?}");
        assert_eq!(choose(Sizes { may_split: false, ..weight }, 132).splits, 1);
        // Every split has at least one stage.
        let five_stages = cut(Sizes { k: 5 * 64, ..weight }, Tile::N192PingPong, 4, 132);
        assert_eq!(five_stages.splits, 3);
        assert_eq!(cut(Sizes { k: 1, ..weight }, Tile::N192PingPong, 8, 132).splits, 1);
    }

    #[test]
    fn times_add_up() {
        // 132 tiles of 128x192, one wave: 64 stages, one epilogue, one launch.
        let choice = cut(forward(128 * 132, 192, 4096), Tile::N192PingPong, 1, 132);
        let nanoseconds = 64.0 * 192.0 * 2.45 + 192.0 * (PING_PONG_NS + LAST_PING_PONG_NS) + LAUNCH_NS;
        assert!((choice.seconds * 1e9 - nanoseconds).abs() < 1e-3, "{choice:?}");
        assert_eq!((choice.grid, choice.waves), (132, 1.0));
        // One tile on 132 multiprocessors.
        assert!(cut(forward(128, 192, 4096), Tile::N192PingPong, 1, 132).efficiency < 0.01);
    }

    #[test]
    fn blocks_fit_the_shared_memory_of_a_multiprocessor() {
        for tile in Tile::ALL {
            for out_bytes in [2, 4] {
                let (along, across) = (tile.shared_bytes(false, out_bytes), tile.shared_bytes(true, out_bytes));
                assert!(across <= MAX_SHARED_BYTES && along <= MAX_SHARED_BYTES, "{tile:?}");
            }
        }
        assert_eq!(Tile::N256.shared_bytes(false, 2), 3 * 49_152 + 65_536 + 1024 + 80);
        assert_eq!(Tile::N192PingPong.shared_bytes(false, 2), 4 * 40_960 + 32_768 + 768 + 96);
    }

    #[test]
    fn every_tile_is_ranked_and_clusters_need_two_multiprocessors() {
        assert_eq!(ranked(forward(8192, 896, 896), 132).len(), Tile::ALL.len());
        assert!(ranked(forward(100, 100, 100), 1).iter().all(|choice| choice.tile.blocks() == 1));
    }
}
