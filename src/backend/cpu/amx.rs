//! GEMM of one tile of bf16 matrices with AMX tile registers.
//!
//! ```text
//! left operand: contiguous rows are used in place; other rows are packed in tiles of 16 rows and 32 k (`pack`);
//!     if the depth is not a multiple of 32, its last k are always packed
//! for each panel of 32 columns of the right operand, packed with two consecutive k next to each other:
//!     for each block of 32 rows:
//!         2 x 2 tiles of sums = 0
//!         for each 32 k, in order:
//!             load 2 tiles of the left operand and 2 of the panel;  4 TDPBF16PS
//!         C = sums, or C = C + sums
//! release the tiles
//! ```
//!
//! Blocks at the edges have tiles with fewer rows or columns, and no tiles for an empty half. The order of
//! summation does not depend on the shape of a tile. Each step sums 32 products, and TDPBF16PS first sums
//! those of even and of odd k separately (`model`). Both operands are padded with 0 after the last k. An
//! element therefore depends only on its row of the left operand, its column of the right operand and the
//! depth.
//!
//! At a depth of [`DEPTH`] a panel occupies 32 KiB, which leaves space in an L1 cache of 48 KiB. The rows of
//! the left operand stream from the L2 cache, so half of the loaded bytes come from L2.
//!
//! [`gemm`] uses the operations of the trait in [`unit`]. `hardware` implements them as processor
//! instructions, and `model` in software. Tiles are configured at the start of a GEMM and released at its
//! end, so no thread keeps tile state between GEMMs.

mod grant;
#[cfg(target_arch = "x86_64")]
mod hardware;
mod model;
mod pack;
mod unit;

use std::cell::RefCell;
use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};
use half::bf16;

pub(super) use grant::Lack;
use model::Model;
use pack::{STEP_WORDS, TILE_WORDS, has_vectors, pack_left, pack_right};
use unit::{Config, LANES, LEFT, RIGHT, ROW_BYTES, ROWS, SUMS, Unit};

use super::rows::add_rows;
use super::tile::{Mat, Tile};
use crate::backend::Write;

/// Maximum depth of one accumulation.
pub(super) const DEPTH: usize = 512;
/// Number of columns of a panel, and number of rows of a block.
const PANEL: usize = 2 * LANES;
/// Number of k that one tile product (TDPBF16PS) sums.
const STEP: usize = 2 * LANES;

/// A row of a tile, aligned so that no load crosses a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u32; LANES]);

/// Buffers of a thread for packed operands and sums. They grow to the largest size that the thread has needed.
#[derive(Default)]
struct Packed {
    left: Vec<Line>,
    right: Vec<Line>,
    /// (32, 32) sums that are added to C.
    sums: Vec<Line>,
}

thread_local! {
    static PACKED: RefCell<Packed> = RefCell::default();
}

/// Returns the first `words` words of a buffer, which grows if it is shorter.
fn reserve(buffer: &mut Vec<Line>, words: usize) -> &mut [u32] {
    let lines = words.div_ceil(LANES);
    if buffer.len() < lines {
        buffer.resize(lines, Line::zeroed());
    }
    &mut bytemuck::cast_slice_mut(buffer)[..words]
}

/// Left operand in memory, with sizes in bytes. The tile of row group g (16 rows) and step s starts at `g *
/// rows_on + s * step_on`. Its rows are `row` bytes apart.
#[derive(Clone, Copy)]
struct Left<'a> {
    bytes: &'a [u8],
    row: usize,
    rows_on: usize,
    step_on: usize,
}

impl<'a> Left<'a> {
    /// An operand with contiguous rows, which tiles load without packing.
    fn direct(a: Mat<'a, bf16>) -> Self {
        let row = a.row_stride * size_of::<bf16>();
        Self { bytes: bytemuck::cast_slice(a.data), row, rows_on: ROWS * row, step_on: STEP * size_of::<bf16>() }
    }

    /// An operand packed in tiles.
    fn packed(words: &'a [u32], steps: usize) -> Self {
        let tile = TILE_WORDS * size_of::<u32>();
        Self { bytes: bytemuck::cast_slice(words), row: ROW_BYTES, rows_on: steps * tile, step_on: tile }
    }
}

/// Tiles of a thread and the block shape for which they are configured. Releases the tiles on drop.
struct Configured<'a, U: Unit> {
    unit: &'a mut U,
    shape: [usize; 2],
}

impl<U: Unit> Configured<'_, U> {
    /// Returns the unit, configured with tiles for a block of these rows and columns.
    fn shaped(&mut self, shape: [usize; 2]) -> &mut U {
        if self.shape != shape {
            // SAFETY: `Config::of` returns only valid configurations.
            unsafe { self.unit.configure(&Config::of(shape)) };
            self.shape = shape;
        }
        self.unit
    }
}

impl<U: Unit> Drop for Configured<'_, U> {
    fn drop(&mut self) {
        self.unit.release();
    }
}

/// `c (+)= a b` in blocks of at most [`DEPTH`] terms.
fn in_blocks<U: Unit>(unit: &mut U, c: &mut Tile<'_>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, write: Write) {
    if a.cols == 0 && write == Write::Overwrite {
        c.fill(0.0);
    }
    if a.rows * b.cols == 0 {
        return;
    }
    let mut packed = PACKED.take();
    let mut tiles = Configured { unit, shape: [0; 2] };
    for from in (0..a.cols).step_by(DEPTH) {
        let block = from..a.cols.min(from + DEPTH);
        let add = write == Write::Add || from > 0;
        gemm(&mut tiles, &mut packed, c, a.cols(block.clone()), b.rows(block), add);
    }
    drop(tiles);
    PACKED.set(packed);
}

/// `c = a b` or `c += a b` for one block of the depth.
fn gemm<U: Unit>(
    tiles: &mut Configured<'_, U>,
    packed: &mut Packed,
    c: &mut Tile<'_>,
    a: Mat<'_, bf16>,
    b: Mat<'_, bf16>,
    add: bool,
) {
    let (m, n, depth, vectors) = (a.rows, b.cols, a.cols, has_vectors());
    let steps = depth.div_ceil(STEP);
    // Number of steps whose tiles are loaded from the operand itself; the remaining steps are packed.
    let direct = if a.col_stride == 1 { depth / STEP } else { 0 };
    let rest = reserve(&mut packed.left, m.div_ceil(ROWS) * (steps - direct) * TILE_WORDS);
    if direct < steps {
        pack_left(rest, a.cols(direct * STEP..depth), vectors);
    }
    let parts = [(Left::direct(a), 0..direct), (Left::packed(rest, steps - direct), direct..steps)];
    let right = reserve(&mut packed.right, steps * STEP_WORDS);
    for j in (0..n).step_by(PANEL) {
        let cols = PANEL.min(n - j);
        pack_right(right, b.cols(j..j + cols), vectors);
        let panel = bytemuck::cast_slice(right);
        for i in (0..m).step_by(PANEL) {
            let rows = PANEL.min(m - i);
            let unit = tiles.shaped([rows, cols]);
            let sums = bytemuck::cast_slice_mut(reserve(&mut packed.sums, PANEL * PANEL));
            let mut sums = Tile::new(sums, rows, cols, PANEL);
            let (to, at) = if add { (&mut sums.reborrow(), [0, 0]) } else { (&mut c.reborrow(), [i, j]) };
            // SAFETY: `shaped` configured the tiles for the block. For a direct operand, the block's rows are
            // inside `a` in every whole step; packed operands consist of whole tiles. `to` contains the block
            // at `at`.
            unsafe {
                match (rows > ROWS, cols > LANES) {
                    (true, true) => block::<U, true, true>(unit, &parts, i / ROWS, panel, to, at),
                    (true, false) => block::<U, true, false>(unit, &parts, i / ROWS, panel, to, at),
                    (false, true) => block::<U, false, true>(unit, &parts, i / ROWS, panel, to, at),
                    (false, false) => block::<U, false, false>(unit, &parts, i / ROWS, panel, to, at),
                }
            }
            if add {
                (0..rows).for_each(|r| add_rows(&mut c.row(i + r)[j..j + cols], sums.row(r)));
            }
        }
    }
}

/// Computes a block that starts at tile row `first` and stores it to `c` at row and column `at`. The block
/// has two tile rows if `DOWN`, and two tile columns if `ACROSS`.
///
/// # Safety
/// The caller guarantees that the tiles are configured for the block, and that the block is inside the
/// operands and inside `c`.
#[inline(always)]
unsafe fn block<U: Unit, const DOWN: bool, const ACROSS: bool>(
    unit: &mut U,
    parts: &[(Left<'_>, std::ops::Range<usize>); 2],
    first: usize,
    panel: &[u8],
    c: &mut Tile<'_>,
    [row, col]: [usize; 2],
) {
    const TOP_LEFT: u8 = SUMS[0];
    const TOP_RIGHT: u8 = SUMS[1];
    const BOTTOM_LEFT: u8 = SUMS[2];
    const BOTTOM_RIGHT: u8 = SUMS[3];
    const TOP: u8 = LEFT[0];
    const BOTTOM: u8 = LEFT[1];
    const FIRST: u8 = RIGHT[0];
    const SECOND: u8 = RIGHT[1];
    const PANEL_ROW: usize = PANEL * size_of::<u32>();
    // SAFETY: the caller guarantees the tile configuration and the bounds that the operations of `Unit`
    // require.
    unsafe {
        unit.zero::<TOP_LEFT>();
        if ACROSS {
            unit.zero::<TOP_RIGHT>();
        }
        if DOWN {
            unit.zero::<BOTTOM_LEFT>();
        }
        if DOWN && ACROSS {
            unit.zero::<BOTTOM_RIGHT>();
        }
        for (left, steps) in parts {
            let mut rows = first * left.rows_on;
            let mut pairs = steps.start * STEP_WORDS * size_of::<u32>();
            for _ in steps.clone() {
                unit.load::<TOP>(left.bytes, rows, left.row);
                unit.load::<FIRST>(panel, pairs, PANEL_ROW);
                unit.dot::<TOP_LEFT, TOP, FIRST>();
                if ACROSS {
                    unit.load::<SECOND>(panel, pairs + ROW_BYTES, PANEL_ROW);
                    unit.dot::<TOP_RIGHT, TOP, SECOND>();
                }
                if DOWN {
                    unit.load::<BOTTOM>(left.bytes, rows + left.rows_on, left.row);
                    unit.dot::<BOTTOM_LEFT, BOTTOM, FIRST>();
                }
                if DOWN && ACROSS {
                    unit.dot::<BOTTOM_RIGHT, BOTTOM, SECOND>();
                }
                rows += left.step_on;
                pairs += STEP_WORDS * size_of::<u32>();
            }
        }
        unit.store::<TOP_LEFT>(c, row, col);
        if ACROSS {
            unit.store::<TOP_RIGHT>(c, row, col + LANES);
        }
        if DOWN {
            unit.store::<BOTTOM_LEFT>(c, row + ROWS, col);
        }
        if DOWN && ACROSS {
            unit.store::<BOTTOM_RIGHT>(c, row + ROWS, col + LANES);
        }
    }
}

/// `c (+)= a b` on the software model of the tiles.
pub(super) fn on_model(c: &mut Tile<'_>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, write: Write) {
    in_blocks(&mut Model::new(), c, a, b, write);
}

/// `c (+)= a b` on the tiles of this processor. Panics if [`lack`] returns a reason.
pub(super) fn on_tiles(c: &mut Tile<'_>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, write: Write) {
    let granted = usable();
    assert!(granted.is_ok(), "amx_bf16 is {}", granted.as_ref().map_or_else(Lack::to_string, |_| String::new()));
    if let Ok(granted) = granted {
        on_hardware(*granted, c, a, b, write);
    }
}

/// `c (+)= a b` on the processor's tiles, whose use `granted` permits. Only the functions called from here
/// contain tile instructions; a test checks the machine code.
#[inline(never)]
fn on_hardware(granted: grant::Granted, c: &mut Tile<'_>, a: Mat<'_, bf16>, b: Mat<'_, bf16>, write: Write) {
    #[cfg(target_arch = "x86_64")]
    in_blocks(&mut hardware::Hardware::new(granted), c, a, b, write);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (granted, c, a, b, write);
}

/// Result of the request for tiles, which is made once per process.
static USABLE: OnceLock<Result<grant::Granted, Lack>> = OnceLock::new();

/// Returns the grant. The first call requests it and checks it with one small GEMM.
fn usable() -> &'static Result<grant::Granted, Lack> {
    USABLE.get_or_init(|| {
        let granted = grant::granted()?;
        tried(|c, a, b| on_hardware(granted, c, a, b, Write::Overwrite))?;
        Ok(granted)
    })
}

/// Reason why this process cannot use tiles. The first call requests them from the operating system.
pub(super) fn lack() -> Option<&'static Lack> {
    usable().as_ref().err()
}

/// Same as [`lack`], but requests nothing: returns `None` if no call has requested the tiles yet.
pub(super) fn known_lack() -> Option<&'static Lack> {
    USABLE.get()?.as_ref().err()
}

/// Whether the processor has tiles. Makes no system call.
pub(super) fn is_present() -> bool {
    grant::is_present()
}

/// Compares a GEMM whose sizes are not multiples of the tile sizes with the same GEMM on the software model.
/// The check is at run time, because the tests have not run on a processor with tiles.
fn tried(gemm: impl FnOnce(&mut Tile<'_>, Mat<'_, bf16>, Mat<'_, bf16>)) -> Result<(), Lack> {
    let [m, n, depth] = [37, 21, 2 * STEP + 5];
    let of = |len: usize, factor: usize| -> Vec<bf16> {
        (0..len).map(|i| bf16::from_f32(((i * factor + 17) % 509) as f32 / 256.0 - 1.0)).collect()
    };
    let (a, b) = (of(m * depth, 7919), of(depth * n, 104_729));
    let (a, b) = (Mat::new(&a, m, depth, depth), Mat::new(&b, depth, n, n));
    let [mut got, mut expected] = [(); 2].map(|()| vec![0.0f32; m * n]);
    gemm(&mut Tile::new(&mut got, m, n, n), a, b);
    on_model(&mut Tile::new(&mut expected, m, n, n), a, b, Write::Overwrite);
    // The processor may sum in a different order, so the comparison has a tolerance.
    let near = |x: &f32, y: &f32| (x - y).abs() <= 1e-5 * (1.0 + y.abs());
    if got.iter().zip(&expected).all(|(x, y)| near(x, y)) {
        return Ok(());
    }
    Err(Lack::Refused(
        "a GEMM on its tiles differs from the same GEMM on the software model; please report the processor model"
            .into(),
    ))
}

/// Returns results whose bits depend on the order of summation, computed on this processor's tiles or on the
/// model.
pub(super) fn samples(on_processor: bool) -> Vec<f32> {
    // Powers of two at the edge of a sum's precision, values that cause ties, and a subnormal number.
    const VALUES: [f32; 7] = [1.0, 1.007_812_5, -4096.0, 0.003_906_25, 5.9e-8, 1e-39, -1.992_187_5];
    let depth = 3 * STEP / 2;
    let of = |step: usize| -> Vec<bf16> {
        (0..ROWS * depth).map(|i| bf16::from_f32(VALUES[(i * step + i / 9) % VALUES.len()])).collect()
    };
    let (a, b) = (of(1), of(3));
    let (a, b) = (Mat::new(&a, ROWS, depth, depth), Mat::new(&b, ROWS, depth, depth).t());
    let mut sums = vec![0.0; ROWS * ROWS];
    let on = if on_processor { on_tiles } else { on_model };
    on(&mut Tile::new(&mut sums, ROWS, ROWS, ROWS), a, b, Write::Overwrite);
    sums
}

#[cfg(test)]
mod tests;
