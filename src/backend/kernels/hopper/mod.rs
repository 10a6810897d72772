//! Ops that run on the Hopper kernels (`kernels/*_sm90.cu`), which use wgmma and TMA: when they are used, the
//! tensor maps of their operands, and their launches.

mod attention;
mod glu;
pub(super) mod head;
mod head_chunk;
mod linear;
pub(super) mod rope;

pub(super) use attention::{attention_bwd, attention_fwd};
pub(super) use glu::{linear_glu_bwd, linear_glu_fwd};
use linear::unsplit;
pub(super) use linear::{Gemm, Op, choice, enqueue, reserve};

use super::Kernels;
use super::device::{Device, Element, MapElement, MapSwizzle, TensorMap, TensorMapSpec};
use super::geometry::Tile;
use super::launchers::GEMM_ROWS as ROWS;
use crate::Result;
use crate::backend::contract::Precision;

/// Selects which Hopper kernels are used on GPUs of compute capability 9.0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hopper {
    /// Only the portable kernels.
    #[default]
    Off,
    /// The Hopper kernels wherever operands allow it, with the tiles that [`super::geometry`] predicts to be
    /// fastest.
    Chosen,
    /// Like `Chosen`, but linear layers use this tile, and this number of splits for GEMMs that may be split.
    Cut(Tile, usize),
}

impl Hopper {
    /// Reads `MAPL_SM90`; `0` selects the portable kernels.
    pub(super) fn of_environment() -> Self {
        match std::env::var("MAPL_SM90").is_ok_and(|value| value == "0") {
            true => Self::Off,
            false => Self::Chosen,
        }
    }
}

/// Whether the Hopper kernels are switched on and support the device and the storage type of activations.
fn is_supported<D: Device, A: Element>(k: &Kernels<D, A>) -> bool {
    k.hopper != Hopper::Off && A::PRECISION == Precision::Bf16 && k.device.properties().compute_capability == (9, 0)
}

/// Whether every number is a multiple of `unit`.
fn all_multiples(unit: usize, numbers: &[usize]) -> bool {
    numbers.iter().all(|number| number.is_multiple_of(unit))
}

/// Alignment in bytes that TMA needs of addresses and of row strides.
const TMA_ALIGNMENT: u64 = 16;

fn are_aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(TMA_ALIGNMENT))
}

/// Tensor map of a bf16 matrix (outer, inner) with rows `stride` elements apart, in boxes of `rows`
/// rows by 64 elements.
fn matrix<D: Device>(
    device: &D,
    address: u64,
    (outer, inner): (usize, usize),
    stride: usize,
    rows: usize,
) -> Result<TensorMap> {
    device.tensor_map(&TensorMapSpec {
        address,
        element: MapElement::Bf16,
        dims: vec![inner as u64, outer as u64],
        strides: vec![2 * stride as u64],
        boxes: vec![64, rows as u32],
        swizzle: MapSwizzle::Bytes128,
    })
}

/// Tensor map of an f32 result, in boxes of 64 rows by 32 elements, as epilogues store them.
fn f32_result<D: Device>(device: &D, address: u64, (outer, inner): (usize, usize)) -> Result<TensorMap> {
    device.tensor_map(&TensorMapSpec {
        address,
        element: MapElement::F32,
        dims: vec![inner as u64, outer as u64],
        strides: vec![4 * inner as u64],
        boxes: vec![32, 64],
        swizzle: MapSwizzle::Bytes128,
    })
}

/// Tensor map of A or B: `count` rows or columns of the GEMM by `k`, contiguous along k or across it. `rows`
/// is the number of rows of a box if the operand is contiguous along k.
fn operand<D: Device>(
    device: &D,
    address: u64,
    across: bool,
    (count, k): (usize, usize),
    stride: usize,
    rows: usize,
) -> Result<TensorMap> {
    if across {
        matrix(device, address, (k, count), stride, 64)
    } else {
        matrix(device, address, (count, k), stride, rows)
    }
}
