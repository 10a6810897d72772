//! Contracts of the ops: named arguments with their shapes, checks of all lengths, bytes moved, FLOPs, and
//! tolerances relative to [`crate::backend::reference::Reference`]. Tests, reports and benchmarks take these
//! numbers only from here.
//!
//! Shapes are row-major, outermost dimension first. Every call checks the lengths. The *values* of
//! indices are the responsibility of the caller that packs the batch and checks them once on the
//! host.

mod attention;
mod cost;
pub(crate) mod curve;
mod embedding;
mod gelu;
mod glu;
mod head;
mod head_preference;
mod layer_norm;
mod linear;
mod norm;
mod optim;
mod own_curve;
mod preference;
mod reward;
mod rope;
mod scale;
mod segment;
mod softcap;

pub use attention::*;
pub use cost::*;
pub use curve::{ALPHA_BOUND, Curve, Link, WeightedCurve};
pub use embedding::*;
pub use gelu::*;
pub use glu::*;
pub use head::*;
pub use head_preference::*;
pub use layer_norm::*;
pub use linear::*;
pub use norm::*;
pub use optim::*;
pub use own_curve::OwnCurve;
pub use preference::*;
pub use reward::*;
pub use rope::*;
pub use scale::*;
pub use segment::*;
pub use softcap::capped;
use softcap::check_softcap;

use crate::{Error, Result};

/// Element types of activations (`Act`) and of accumulated values (`Acc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f64 for both.
    F64,
    /// f32 for both.
    F32,
    /// bf16 activations, f32 accumulation.
    Bf16,
}

impl Precision {
    /// Name of the element type of `Act`, as in `--dtype`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Bytes of one `Act` element.
    pub(crate) fn act_bytes(self) -> u64 {
        match self {
            Precision::F64 => 8,
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }

    /// Bytes of one `Acc` element.
    pub(crate) fn acc_bytes(self) -> u64 {
        match self {
            Precision::F64 => 8,
            Precision::F32 | Precision::Bf16 => 4,
        }
    }

    /// Unit roundoff of an `Act` element.
    pub fn act_roundoff(self) -> f64 {
        match self {
            Precision::F64 => f64::EPSILON / 2.0,
            Precision::F32 => f64::from(f32::EPSILON) / 2.0,
            Precision::Bf16 => 1.0 / 256.0,
        }
    }

    /// Unit roundoff of an `Acc` element.
    fn acc_roundoff(self) -> f64 {
        match self {
            Precision::F64 => f64::EPSILON / 2.0,
            Precision::F32 | Precision::Bf16 => f64::from(f32::EPSILON) / 2.0,
        }
    }
}

/// Tolerance of an element: an error of at most `atol + rtol * |reference|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub atol: f64,
    /// Relative part, multiplied by the magnitude of the reference.
    pub rtol: f64,
}

impl Tolerance {
    /// Tolerance of a dot product of `length` terms of order one in `precision`, stored as `Act`.
    /// The rounding errors of a long sum behave like a random walk, so the bound grows with
    /// sqrt(length). The factor 8 covers the largest error among many elements. For f64 the same
    /// formula bounds the difference between two orders of summation.
    pub fn dot(precision: Precision, length: usize) -> Self {
        let sum = 8.0 * precision.acc_roundoff() * (length.max(1) as f64).sqrt();
        Self { atol: sum, rtol: sum + 2.0 * precision.act_roundoff() }
    }

    /// This tolerance with `atol` multiplied by `scale`, for outputs with terms of order `scale`.
    pub fn scaled(self, scale: f64) -> Self {
        Self { atol: self.atol * scale, rtol: self.rtol }
    }

    /// Largest error allowed for an element with the value `reference`.
    pub fn allowed(&self, reference: f64) -> f64 {
        self.atol + self.rtol * reference.abs()
    }
}

/// Checks the length of an argument. The error names the op, the argument and the expected length.
pub(crate) fn expect_len(op: &'static str, what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Contract { op, what, expected: format!("{expected} elements"), got: format!("{got}") })
}

/// Checks a condition other than a length.
pub(crate) fn expect(
    op: &'static str,
    what: &'static str,
    ok: bool,
    expected: impl Into<String>,
    got: impl ToString,
) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Contract { op, what, expected: expected.into(), got: got.to_string() }) }
}
