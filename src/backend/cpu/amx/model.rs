//! Software model of AMX tiles, from Intel's description of the instructions.
//!
//! ```text
//! TDPBF16PS C, A, B:  for each row m and column n of C:
//!     even = odd = 0
//!     for each k:  even = fma(A[m][2k], B[k][2n], even);  odd = fma(A[m][2k + 1], B[k][2n + 1], odd)
//!     C[m][n] = C[m][n] + (even + odd)
//! ```
//!
//! Every operation rounds to nearest, ties to even, and flushes subnormal inputs and results to zero. Where a
//! processor raises an exception, the model returns a [`Fault`]. Loads and stores outside the given memory,
//! which a processor does not detect, are faults too.

use std::fmt;

use super::super::simd::vectorised;
use super::super::tile::Tile;
use super::unit::{CONFIG_BYTES, Config, LANES, ROW_BYTES, ROWS, TILES, Unit};

/// Row of a tile: f32 numbers, or pairs of bf16 with the first one in the lower half.
type Row = [u32; LANES];

/// Configured size of a tile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    rows: usize,
    bytes: usize,
}

/// An exception of the processor, or an access outside the given memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "software model of AMX: {}", self.0)
    }
}

/// The tiles of a thread. If `shapes` is `None`, no configuration is loaded.
pub(super) struct Model {
    shapes: Option<[Shape; TILES]>,
    tiles: Box<[[Row; ROWS]; TILES]>,
}

fn fault<T>(why: impl Into<String>) -> Result<T, Fault> {
    Err(Fault(why.into()))
}

impl Model {
    /// Returns tiles in the initial state of a thread.
    pub fn new() -> Self {
        Self { shapes: None, tiles: Box::new([[[0; LANES]; ROWS]; TILES]) }
    }

    /// Whether a configuration is loaded.
    #[cfg(test)]
    pub fn configured(&self) -> bool {
        self.shapes.is_some()
    }

    /// LDTILECFG. The GEMM never resumes an interrupted load, so a first row other than 0 is a fault.
    pub fn try_configure(&mut self, config: &[u8; CONFIG_BYTES]) -> Result<(), Fault> {
        self.try_release();
        match config[0] {
            0 => return Ok(()),
            1 => {}
            palette => return fault(format!("general protection: palette {palette}")),
        }
        if config[1] != 0 {
            return fault("the first row to load is not 0");
        }
        if [2..16, 32..48, 56..64].into_iter().flatten().any(|i| config[i] != 0) {
            return fault("general protection: a reserved byte of the configuration is not 0");
        }
        let mut shapes = [Shape::default(); TILES];
        for (tile, shape) in shapes.iter_mut().enumerate() {
            let bytes = u16::from_le_bytes([config[16 + 2 * tile], config[17 + 2 * tile]]);
            *shape = Shape { rows: usize::from(config[48 + tile]), bytes: usize::from(bytes) };
            if shape.rows > ROWS || shape.bytes > ROW_BYTES {
                return fault(format!("general protection: tile {tile} has {shape:?}"));
            }
            if (shape.rows == 0) != (shape.bytes == 0) {
                return fault(format!("general protection: tile {tile} has {shape:?}"));
            }
        }
        self.shapes = Some(shapes);
        Ok(())
    }

    /// TILERELEASE.
    pub fn try_release(&mut self) {
        self.shapes = None;
        self.tiles.iter_mut().for_each(|tile| *tile = [[0; LANES]; ROWS]);
    }

    /// Returns the shape of a configured tile whose rows are whole f32 elements.
    fn shape(&self, tile: u8) -> Result<Shape, Fault> {
        let Some(shapes) = &self.shapes else { return fault("undefined: no configuration is loaded") };
        match shapes.get(usize::from(tile)) {
            None => fault(format!("undefined: tile {tile} does not exist")),
            Some(Shape { rows: 0, .. }) => fault(format!("undefined: tile {tile} is not configured")),
            Some(shape) if !shape.bytes.is_multiple_of(size_of::<f32>()) => {
                fault(format!("undefined: rows of tile {tile} have {} bytes", shape.bytes))
            }
            Some(shape) => Ok(*shape),
        }
    }

    /// TILEZERO.
    pub fn try_zero(&mut self, tile: u8) -> Result<(), Fault> {
        self.shape(tile)?;
        self.tiles[usize::from(tile)] = [[0; LANES]; ROWS];
        Ok(())
    }

    /// TILELOADD. Elements outside the shape become 0.
    pub fn try_load(&mut self, tile: u8, from: &[u8], at: usize, stride: usize) -> Result<(), Fault> {
        let shape = self.shape(tile)?;
        let rows = &mut self.tiles[usize::from(tile)];
        *rows = [[0; LANES]; ROWS];
        for (r, row) in rows.iter_mut().enumerate().take(shape.rows) {
            let start = r.checked_mul(stride).and_then(|offset| offset.checked_add(at));
            let Some(bytes) = start.and_then(|start| from.get(start..)?.get(..shape.bytes)) else {
                return fault(format!("row {r} of tile {tile} is outside {} bytes", from.len()));
            };
            for (to, word) in row.iter_mut().zip(bytes.as_chunks().0) {
                *to = u32::from_le_bytes(*word);
            }
        }
        Ok(())
    }

    /// TILESTORED.
    pub fn try_store(&mut self, tile: u8, to: &mut Tile<'_>, row: usize, col: usize) -> Result<(), Fault> {
        let shape = self.shape(tile)?;
        let cols = shape.bytes / size_of::<f32>();
        if row + shape.rows > to.rows() || col + cols > to.cols() {
            return fault(format!(
                "tile {tile} of {} x {cols} at ({row}, {col}) is outside {} x {} elements",
                shape.rows,
                to.rows(),
                to.cols()
            ));
        }
        for (r, from) in self.tiles[usize::from(tile)].iter().enumerate().take(shape.rows) {
            for (to, x) in to.row(row + r)[col..col + cols].iter_mut().zip(from) {
                *to = f32::from_bits(*x);
            }
        }
        Ok(())
    }

    /// TDPBF16PS.
    pub fn try_dot(&mut self, [c, a, b]: [u8; 3]) -> Result<(), Fault> {
        if c == a || c == b || a == b {
            return fault(format!("undefined: tiles {c}, {a} and {b} are not three tiles"));
        }
        let [sums, left, right] = [self.shape(c)?, self.shape(a)?, self.shape(b)?];
        if sums.bytes != right.bytes || sums.rows != left.rows || left.bytes / size_of::<f32>() != right.rows {
            return fault(format!("undefined: {left:?} by {right:?} does not give {sums:?}"));
        }
        let [left, right] = [a, b].map(|tile| self.tiles[usize::from(tile)]);
        for (to, left) in self.tiles[usize::from(c)].iter_mut().zip(&left).take(sums.rows) {
            dot_row(to, left, &right);
            to[sums.bytes / size_of::<f32>()..].fill(0);
        }
        Ok(())
    }
}

vectorised! {
    /// `sums += left right` for one row. Pairs outside the shapes are 0 in both operands.
    fn dot_row(sums: &mut [u32; 16], left: &[u32; 16], right: &[[u32; 16]; 16]) {
        let (mut even, mut odd) = ([0.0f32; LANES], [0.0f32; LANES]);
        for (pair, right) in left.iter().zip(right) {
            let (first, second) = (flushed(f32::from_bits(pair << 16)), flushed(f32::from_bits(pair & 0xffff_0000)));
            for n in 0..LANES {
                let (x, y) = (f32::from_bits(right[n] << 16), f32::from_bits(right[n] & 0xffff_0000));
                even[n] = flushed(first.mul_add(flushed(x), even[n]));
                odd[n] = flushed(second.mul_add(flushed(y), odd[n]));
            }
        }
        for n in 0..LANES {
            let sum = flushed(even[n] + odd[n]);
            sums[n] = flushed(flushed(f32::from_bits(sums[n])) + sum).to_bits();
        }
    }
}

/// Returns x, with a subnormal number replaced by a zero of the same sign. Intel's units test for subnormal
/// results after rounding with an unlimited exponent, so a sum within half a step below the smallest normal
/// number may differ from this model.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    let tiny = x.to_bits() & 0x7f80_0000 == 0;
    f32::from_bits(if tiny { x.to_bits() & 0x8000_0000 } else { x.to_bits() })
}

/// Unwraps the result of an operation. A fault here is a bug of this program, so it panics.
fn done(result: Result<(), Fault>) {
    if let Err(fault) = result {
        panic!("{fault}");
    }
}

impl Unit for Model {
    unsafe fn configure(&mut self, config: &Config) {
        done(self.try_configure(&config.0));
    }
    unsafe fn zero<const T: u8>(&mut self) {
        done(self.try_zero(T));
    }
    unsafe fn load<const T: u8>(&mut self, from: &[u8], at: usize, stride: usize) {
        done(self.try_load(T, from, at, stride));
    }
    unsafe fn store<const T: u8>(&mut self, to: &mut Tile<'_>, row: usize, col: usize) {
        done(self.try_store(T, to, row, col));
    }
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        done(self.try_dot([C, A, B]));
    }
    fn release(&mut self) {
        self.try_release();
    }
}

#[cfg(test)]
mod tests;
