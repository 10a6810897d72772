//! Linear layers on Hopper (`kernels/linear_sm90.cu`).

use super::{Hopper, ROWS, are_aligned, f32_result, is_supported, matrix, operand};
use crate::Result;
use crate::backend::Write as Mode;
use crate::backend::kernels::device::{ConstPtr, Device, Element, MutPtr};
use crate::backend::kernels::geometry::{
    Choice, H200_TIMES, PLANNED_PROCESSORS, Sizes, Tile, choose, cut, fastest, retile,
};
use crate::backend::kernels::launchers as launch;
use crate::backend::kernels::{Kernels, int};

/// Number of split-K semaphores, two per output tile. A GEMM that needs more is not split. This is rare,
/// because GEMMs that are worth splitting have few tiles.
const SEMAPHORES: usize = 1 << 14;

/// Preallocates the semaphores, so that no GEMM allocates later.
pub(in super::super) fn reserve<D: Device, A: Element>(k: &Kernels<D, A>) -> Result<()> {
    if is_supported(k) { k.semaphores(SEMAPHORES).map(|_| ()) } else { Ok(()) }
}

/// Address of the split-K semaphores; null if the choice has no splits.
pub(super) fn semaphores<D: Device, A: Element>(k: &Kernels<D, A>, choice: &Choice) -> Result<u64> {
    k.semaphores(if choice.splits > 1 { SEMAPHORES } else { 0 })
}

/// A GEMM of a linear layer: C = A B.
#[derive(Clone, Copy)]
pub(in super::super) struct Gemm<A> {
    /// Name of the op that the GEMM is part of.
    pub name: &'static str,
    pub op: Op,
    pub a: ConstPtr<A>,
    /// Row stride of A in memory, in elements.
    pub a_stride: usize,
    pub b: ConstPtr<A>,
    /// Address of C.
    pub c: u64,
    pub bias: ConstPtr<A>,
    pub residual: ConstPtr<A>,
    /// Address for the norms of C's patches; 0 if they are not requested.
    pub norms: u64,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub mode: Mode,
}

/// Kernel family. It determines which operands are contiguous across k instead of along k, and the element
/// type of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Op {
    Forward,
    Input,
    Weight,
}

impl Op {
    /// Whether A and B are contiguous across k.
    fn across(self) -> (bool, bool) {
        match self {
            Self::Forward => (false, false),
            Self::Input => (false, true),
            Self::Weight => (true, true),
        }
    }
}

impl<A> Gemm<A> {
    pub(super) fn sizes(&self) -> Sizes {
        let weight = self.op == Op::Weight;
        Sizes { m: self.m, n: self.n, k: self.k, out_bytes: if weight { 4 } else { 2 }, may_split: weight }
    }

    /// Whether addresses and rows of all operands have the alignment of TMA.
    fn is_aligned(&self) -> bool {
        let (_, b_across) = self.op.across();
        let rows = [self.a_stride, if b_across { self.n } else { self.k }];
        let out = if self.op == Op::Weight { 4 } else { 8 };
        rows.iter().all(|row| row.is_multiple_of(8))
            && self.n.is_multiple_of(out)
            && are_aligned(&[self.a.address(), self.b.address(), self.c, self.bias.address(), self.residual.address()])
    }
}

/// Whether the Hopper kernels support a GEMM.
pub(super) fn supports<D: Device, A: Element>(k: &Kernels<D, A>, gemm: &Gemm<A>) -> bool {
    let empty = gemm.m == 0 || gemm.n == 0 || gemm.k == 0;
    is_supported(k) && !empty && gemm.is_aligned()
}

/// Tile and splits of a GEMM; `None` if the Hopper kernels do not support it.
pub(in super::super) fn choice<D: Device, A: Element>(k: &Kernels<D, A>, gemm: &Gemm<A>) -> Option<Choice> {
    let properties = k.device.properties();
    if !supports(k, gemm) {
        return None;
    }
    match k.hopper {
        Hopper::Off => None,
        Hopper::Chosen => Some(best(k, gemm)),
        Hopper::Cut(tile, _) if tile.blocks() > properties.processors => None,
        Hopper::Cut(tile, splits) => {
            let sizes = gemm.sizes();
            let splits = if sizes.may_split { splits } else { 1 };
            Some(limit_splits(sizes, cut(sizes, tile, splits, properties.processors), properties.processors))
        }
    }
}

/// Tile and splits with the least predicted time. Constants that were fitted on this GPU may change the tile,
/// but never the splits.
pub(super) fn best<D: Device, A: Element>(k: &Kernels<D, A>, gemm: &Gemm<A>) -> Choice {
    best_of(k, gemm.sizes())
}

/// Tile with the least predicted time without splits.
pub(super) fn unsplit<D: Device, A: Element>(k: &Kernels<D, A>, gemm: &Gemm<A>) -> Choice {
    best_of(k, Sizes { may_split: false, ..gemm.sizes() })
}

/// The tile among `tiles` with the least predicted time, without splits.
pub(super) fn best_among<D: Device, A: Element>(k: &Kernels<D, A>, gemm: &Gemm<A>, tiles: &[Tile]) -> Option<Choice> {
    let (sizes, processors) = (Sizes { may_split: false, ..gemm.sizes() }, k.device.properties().processors);
    let allowed = |tile: Tile| tiles.contains(&tile) && tile.blocks() <= processors;
    let planned = fastest(&H200_TIMES, sizes, 1, PLANNED_PROCESSORS, allowed)?;
    let built_in = cut(sizes, planned.tile, 1, processors);
    Some(k.tile_times.map_or(built_in, |times| retile(times, sizes, built_in, processors, allowed)))
}

fn best_of<D: Device, A: Element>(k: &Kernels<D, A>, sizes: Sizes) -> Choice {
    let processors = k.device.properties().processors;
    let built_in = limit_splits(sizes, choose(sizes, processors), processors);
    let allowed = |tile| built_in.splits == 1 || may_split(sizes.m, sizes.n, tile);
    k.tile_times.map_or(built_in, |times| retile(times, sizes, built_in, processors, allowed))
}

/// Removes the splits of a choice that needs more than [`SEMAPHORES`] semaphores.
fn limit_splits(sizes: Sizes, choice: Choice, processors: usize) -> Choice {
    if choice.splits > 1 && !may_split(sizes.m, sizes.n, choice.tile) {
        return cut(sizes, choice.tile, 1, processors);
    }
    choice
}

/// Whether there are enough semaphores for a split GEMM with an m x n result.
pub(super) fn may_split(m: usize, n: usize, tile: Tile) -> bool {
    2 * m.div_ceil(ROWS * tile.blocks()) * tile.blocks() * n.div_ceil(tile.columns()) <= SEMAPHORES
}

/// Enqueues a GEMM with the tile and splits of [`choice`].
pub(in super::super) fn enqueue<D: Device, A: Element>(
    k: &Kernels<D, A>,
    gemm: &Gemm<A>,
    choice: Choice,
) -> Result<()> {
    k.note_choice(gemm.name, gemm.sizes(), choice);
    let (tile, (a_across, b_across)) = (choice.tile, gemm.op.across());
    let device = &k.device;
    let (m, n) = (gemm.m, gemm.n);
    let a = operand(device, gemm.a.address(), a_across, (m, gemm.k), gemm.a_stride, ROWS)?;
    // Each block of a cluster loads its share of the columns.
    let share = tile.columns() / tile.blocks();
    let b = operand(device, gemm.b.address(), b_across, (n, gemm.k), if b_across { n } else { gemm.k }, share)?;
    let weight = gemm.op == Op::Weight;
    let c = if weight { f32_result(device, gemm.c, (m, n))? } else { matrix(device, gemm.c, (m, n), n, 64)? };
    let shared = tile.shared_bytes(b_across, if weight { 4 } else { 2 });
    let (m, n, depth, splits) = (int(gemm.m)?, int(gemm.n)?, int(gemm.k)?, int(choice.splits)?);
    let add = i32::from(gemm.mode == Mode::Add);
    match gemm.op {
        Op::Forward => {
            let residual = gemm.residual.address();
            // The map of an absent residual is not used, but must be valid.
            let map = if residual == 0 { c } else { matrix(device, residual, (gemm.m, gemm.n), gemm.n, 64)? };
            let (added, bias) = (i32::from(residual != 0), ConstPtr::new(gemm.bias.address(), 0));
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
            let (semaphores, norms) = (MutPtr::new(semaphores(k, &choice)?, 0), MutPtr::new(gemm.norms, 0));
            launch::LinearBwdWeightSm90 { a, b, c, semaphores, norms, m, n, k: depth, splits, add }.launch(
                device,
                tile,
                choice.grid,
                shared,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backend::kernels::device::Properties;
    use crate::backend::kernels::geometry::TileTimes;
    use crate::backend::kernels::rehearsal::Rehearsal;

    fn gemm(op: Op, m: usize, n: usize, k: usize) -> Gemm<bf16> {
        let (none, at) = (ConstPtr::NONE, |address| ConstPtr::new(address, 0));
        let (mode, name) = (Mode::Overwrite, "linear");
        let (a_stride, norms) = (if op == Op::Weight { m } else { k }, 0);
        Gemm { name, op, a: at(256), a_stride, b: at(512), c: 768, bias: none, residual: none, norms, m, n, k, mode }
    }

    #[test]
    fn fitted_constants_change_the_tile_and_never_the_splits() {
        let properties =
            Properties { name: "h".into(), processors: 132, shared_bytes: 227 << 10, compute_capability: (9, 0) };
        let on = |times| {
            let on = Kernels::<_, bf16>::new(Rehearsal::of(&properties)).with_hopper(Hopper::Chosen);
            Kernels { tile_times: times, ..on }
        };
        // A GPU on which one tile is far faster than the others.
        let fast = |tile: Tile| -> &'static TileTimes {
            let mut times = H200_TIMES;
            times.stage[tile as usize] = 0.1;
            Box::leak(Box::new(times))
        };
        let gemms =
            [gemm(Op::Forward, 8192, 896, 4864), gemm(Op::Input, 2048, 896, 896), gemm(Op::Weight, 896, 896, 16_384)];
        for gemm in gemms {
            let built_in = choice(&on(None), &gemm).unwrap();
            assert_eq!(built_in.splits > 1, gemm.op == Op::Weight, "{built_in:?}");
            assert_eq!(choice(&on(Some(&H200_TIMES)), &gemm).unwrap().splits, built_in.splits);
            for tile in Tile::ALL {
                let chosen = choice(&on(Some(fast(tile))), &gemm).unwrap();
                assert_eq!((chosen.tile, chosen.splits), (tile, built_in.splits), "{gemm:?}", gemm = gemm.op);
            }
        }
    }
}
