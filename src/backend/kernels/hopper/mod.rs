//! Ops by the kernels of `kernels/*_sm90.cu`, which multiply by warpgroups and copy boxes: which calls they can do, descriptors
//! of operands, launches.

mod glu;
pub(super) mod head;
mod linear;

pub(super) use glu::{glu_bwd, glu_fwd};
use linear::best;
pub(super) use linear::{Op, Product, choice, enqueue, reserve};

use super::Kernels;
use super::device::{Device, Element, MapElement, MapSwizzle, TensorMap, TensorMapSpec};
use super::geometry::{ROWS, Tile};
use crate::Result;
use crate::backend::contract::Precision;

/// Whether ops go through warpgroup products and bulk copies, which Hopper cards have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hopper {
    /// The portable kernels alone.
    #[default]
    Off,
    /// Where operands allow it, cut as [`super::geometry`] chooses.
    Chosen,
    /// Linear layers cut in this way, with so many parts of sums that may be split.
    Cut(Tile, usize),
}

impl Hopper {
    /// As `MAPL_SM90` says: `0` for the portable kernels alone.
    pub fn of_environment() -> Self {
        match std::env::var("MAPL_SM90").is_ok_and(|value| value == "0") {
            true => Self::Off,
            false => Self::Chosen,
        }
    }
}

/// Whether the device and the storage of activations are those of these kernels.
fn is_here<D: Device, A: Element>(k: &Kernels<D, A>) -> bool {
    k.hopper != Hopper::Off && A::PRECISION == Precision::Bf16 && k.device.properties().compute_capability == (9, 0)
}

/// Whether every number is a multiple of `unit`.
fn all_multiples(unit: usize, numbers: &[usize]) -> bool {
    numbers.iter().all(|number| number.is_multiple_of(unit))
}

/// Bytes that addresses of copied operands, and strides of their rows, are multiples of.
const COPY_UNIT: u64 = 16;

fn is_copied(addresses: &[u64]) -> bool {
    addresses.iter().all(|address| address.is_multiple_of(COPY_UNIT))
}

/// Descriptor of a matrix of bf16 (outer, inner) whose rows are `stride` elements apart, in boxes of 64 elements of so many rows.
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

/// As [`matrix`] for f32: boxes of 32 elements of 64 rows, as results leave.
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

/// Descriptor of A or B: `count` rows or columns of the product by `k`, contiguous along k or across it; `most` is the rows of a
/// box along k.
fn operand<D: Device>(
    device: &D,
    address: u64,
    across: bool,
    (count, k): (usize, usize),
    stride: usize,
    most: usize,
) -> Result<TensorMap> {
    if across {
        matrix(device, address, (k, count), stride, 64)
    } else {
        matrix(device, address, (count, k), stride, most)
    }
}
