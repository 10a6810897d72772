//! The tile operations of AMX that the GEMM uses, and the configuration of its tiles.
//!
//! An instruction encodes the index of a tile register, so a tile is a const generic argument. Two units
//! implement the operations: `hardware` and the software `model`.

use super::super::tile::Tile;

/// Number of tiles of palette 1.
pub(super) const TILES: usize = 8;
/// Maximum rows of a tile.
pub(super) const ROWS: usize = 16;
/// Maximum bytes of a row of a tile.
pub(super) const ROW_BYTES: usize = 64;
/// Number of f32 elements, or of bf16 pairs, in a row.
pub(super) const LANES: usize = ROW_BYTES / size_of::<f32>();
/// Bytes that LDTILECFG reads.
pub(super) const CONFIG_BYTES: usize = 64;

/// Tiles of the sums of a block of 32 rows and 32 columns: top left, top right, bottom left, bottom right.
pub(super) const SUMS: [u8; 4] = [0, 1, 2, 3];
/// Tiles of 16 rows each of the left operand: top, bottom.
pub(super) const LEFT: [u8; 2] = [4, 5];
/// Tiles of 16 columns each of the right operand: left, right.
pub(super) const RIGHT: [u8; 2] = [6, 7];

/// Configuration as LDTILECFG reads it. Byte 0 is the palette. From byte 16 on are the bytes per row of each
/// tile, and from byte 48 on its number of rows. A tile without rows is not configured.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Config(pub [u8; CONFIG_BYTES]);

impl Config {
    /// Configures tiles for products of `rows` by `cols` elements, at most 32 each, with 32 terms at a time.
    pub fn of([rows, cols]: [usize; 2]) -> Self {
        let halves = |length: usize| [length.min(LANES), length.saturating_sub(LANES)];
        let mut config = Self([0; CONFIG_BYTES]);
        config.0[0] = 1;
        for (i, rows) in halves(rows).into_iter().enumerate() {
            config.set(LEFT[i], rows, ROW_BYTES);
            for (j, cols) in halves(cols).into_iter().enumerate() {
                config.set(SUMS[2 * i + j], rows, cols * size_of::<f32>());
                config.set(RIGHT[j], ROWS, cols * size_of::<f32>());
            }
        }
        config
    }

    fn set(&mut self, tile: u8, rows: usize, bytes: usize) {
        if rows > 0 && bytes > 0 {
            self.0[48 + usize::from(tile)] = rows as u8;
            self.0[16 + 2 * usize::from(tile)] = bytes as u8;
        }
    }
}

/// Tile operations of one thread. The tile state belongs to the thread, so a unit must stay on it.
///
/// # Safety
/// Callers guarantee the conditions that the model checks. A tile is configured before it is used. The
/// configured rows lie inside the memory of a load or store. The three tiles of a product are different, and
/// their shapes match.
pub(super) trait Unit {
    /// LDTILECFG: sets the shapes of all tiles and zeroes them.
    unsafe fn configure(&mut self, config: &Config);
    /// TILEZERO.
    unsafe fn zero<const T: u8>(&mut self);
    /// TILELOADD: loads rows that are `stride` bytes apart, from byte `at` of `from` on.
    unsafe fn load<const T: u8>(&mut self, from: &[u8], at: usize, stride: usize);
    /// TILESTORED: stores to the rows of `to` from `row` on, and their elements from `col` on.
    unsafe fn store<const T: u8>(&mut self, to: &mut Tile<'_>, row: usize, col: usize);
    /// TDPBF16PS: adds to tile `C` the product of tile `A` and tile `B`, whose rows hold pairs of k.
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self);
    /// TILERELEASE: leaves no tile configured.
    fn release(&mut self);
}
