//! Linear layers (`kernels/matmul_sm90.cu`).

use super::{Hopper, ROWS, f32_result, is_copied, is_here, matrix, operand};
use crate::Result;
use crate::backend::Write as Mode;
use crate::backend::kernels::device::{Device, Element, Read, Write};
use crate::backend::kernels::geometry::{Choice, Sizes, Tile, choose, cut};
use crate::backend::kernels::launchers as launch;
use crate::backend::kernels::{Kernels, int};

/// Words of turns that the splits of a product take at most: two for each tile of a launch, which has no more blocks than the
/// card has multiprocessors. Products of more tiles are not split.
const TURNS: usize = 1 << 14;

/// Sets the words for turns aside, so that no later product allocates.
pub(in super::super) fn reserve<D: Device, A: Element>(k: &Kernels<D, A>) -> Result<()> {
    if is_here(k) { k.turns(TURNS).map(|_| ()) } else { Ok(()) }
}

/// Address of the words for the turns of a choice.
pub(super) fn turns<D: Device, A: Element>(k: &Kernels<D, A>, choice: &Choice) -> Result<u64> {
    k.turns(if choice.splits > 1 { TURNS } else { 0 })
}

/// A product of a linear layer.
#[derive(Clone, Copy)]
pub(in super::super) struct Product<A> {
    /// The op that it is part of.
    pub name: &'static str,
    pub op: Op,
    pub a: Read<A>,
    /// Elements from one row of A in memory to the next.
    pub a_stride: usize,
    pub b: Read<A>,
    /// C's address.
    pub c: u64,
    pub bias: Read<A>,
    pub residual: Read<A>,
    /// Address of the norms of C's patches, or 0.
    pub norms: u64,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub mode: Mode,
}

/// Which operands are contiguous across k, and what C is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Op {
    Forward,
    Input,
    Weight,
}

impl Op {
    fn across(self) -> (bool, bool) {
        match self {
            Self::Forward => (false, false),
            Self::Input => (false, true),
            Self::Weight => (true, true),
        }
    }
}

impl<A> Product<A> {
    fn sizes(&self) -> Sizes {
        let weight = self.op == Op::Weight;
        Sizes {
            m: self.m,
            n: self.n,
            k: self.k,
            out_bytes: if weight { 4 } else { 2 },
            may_split: weight,
            a_across: weight,
        }
    }

    /// Whether rows of all operands are multiples of 16 bytes, as bulk copies take them.
    fn is_aligned(&self) -> bool {
        let (_, b_across) = self.op.across();
        let rows = [self.a_stride, if b_across { self.n } else { self.k }];
        let out = if self.op == Op::Weight { 4 } else { 8 };
        rows.iter().all(|row| row.is_multiple_of(8))
            && self.n.is_multiple_of(out)
            && is_copied(&[self.a.address(), self.b.address(), self.c, self.bias.address(), self.residual.address()])
    }
}

/// How a product is done by these kernels; `None` where it is not.
pub(in super::super) fn choice<D: Device, A: Element>(k: &Kernels<D, A>, product: &Product<A>) -> Option<Choice> {
    let properties = k.device.properties();
    let empty = product.m == 0 || product.n == 0 || product.k == 0;
    if !is_here(k) || empty || !product.is_aligned() {
        return None;
    }
    match k.hopper {
        Hopper::Off => None,
        Hopper::Chosen => Some(best(product, properties.processors)),
        Hopper::Cut(tile, _) if tile.blocks() > properties.processors => None,
        Hopper::Cut(tile, splits) => {
            let sizes = product.sizes();
            Some(within_turns(
                sizes,
                cut(sizes, tile, if sizes.may_split { splits } else { 1 }, properties.processors),
                properties.processors,
            ))
        }
    }
}

/// How a product is best done.
pub(super) fn best<A>(product: &Product<A>, processors: usize) -> Choice {
    within_turns(product.sizes(), choose(product.sizes(), processors), processors)
}

/// Not split where there are too few words for the turns.
fn within_turns(sizes: Sizes, choice: Choice, processors: usize) -> Choice {
    if choice.splits > 1 && turns_of(sizes.m, sizes.n, choice.tile) > TURNS {
        return cut(sizes, choice.tile, 1, processors);
    }
    choice
}

/// Whether there are words enough for the turns of parts of an m x n product.
pub(super) fn may_split(m: usize, n: usize, tile: Tile) -> bool {
    turns_of(m, n, tile) <= TURNS
}

/// Words that the turns of a split product of m x n take.
fn turns_of(m: usize, n: usize, tile: Tile) -> usize {
    2 * m.div_ceil(ROWS * tile.blocks()) * tile.blocks() * n.div_ceil(tile.columns())
}

/// Enqueues a product that [`choice`] has a way for.
pub(in super::super) fn enqueue<D: Device, A: Element>(
    k: &Kernels<D, A>,
    product: &Product<A>,
    choice: Choice,
) -> Result<()> {
    k.chose(product.name, product.sizes(), choice);
    let (tile, (a_across, b_across)) = (choice.tile, product.op.across());
    let device = &k.device;
    let (m, n) = (product.m, product.n);
    let a = operand(device, product.a.address(), a_across, (m, product.k), product.a_stride, ROWS)?;
    // Each block of a cluster copies its share of the columns.
    let share = tile.columns() / tile.blocks();
    let b =
        operand(device, product.b.address(), b_across, (n, product.k), if b_across { n } else { product.k }, share)?;
    let weight = product.op == Op::Weight;
    let c = if weight { f32_result(device, product.c, (m, n))? } else { matrix(device, product.c, (m, n), n, 64)? };
    let shared = tile.shared_bytes(b_across, if weight { 4 } else { 2 });
    let (m, n, depth, splits) = (int(product.m)?, int(product.n)?, int(product.k)?, int(choice.splits)?);
    let add = i32::from(product.mode == Mode::Add);
    match product.op {
        Op::Forward => {
            let residual = product.residual.address();
            // One that is absent is not looked at, and must name memory all the same.
            let map = if residual == 0 { c } else { matrix(device, residual, (product.m, product.n), product.n, 64)? };
            let (added, bias) = (i32::from(residual != 0), Read::new(product.bias.address(), 0));
            launch::LinearFwdSm90 { a, b, c, residual: map, bias, m, n, k: depth, added }.launch(
                device,
                tile,
                choice.grid,
                shared,
            )
        }
        Op::Input => {
            launch::LinearBwdInputSm90 { a, b, c, m, n, k: depth, add }.launch(device, tile, choice.grid, shared)
        }
        Op::Weight => {
            let (turns, norms) = (Write::new(turns(k, &choice)?, 0), Write::new(product.norms, 0));
            launch::LinearBwdWeightSm90 { a, b, c, turns, norms, m, n, k: depth, splits, add }.launch(
                device,
                tile,
                choice.grid,
                shared,
            )
        }
    }
}
