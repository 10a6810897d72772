//! Contracts of the ops: named arguments with their shapes, the check of every length, bytes moved, FLOPs, and the
//! error allowed against [`crate::backend::reference::Reference`]. Tests, reports and benches read these and nothing
//! else.
//!
//! Shapes are row-major, outermost first. Index *values* are the packer's responsibility (`data::pack` checks them
//! once on the host); lengths are checked here on every call.

mod attention;
mod cost;
pub(crate) mod curve;
mod embedding;
mod glu;
mod head;
mod head_preference;
mod linear;
mod norm;
mod optim;
mod preference;
mod reward;
mod rope;
mod segment;

pub use attention::*;
pub use cost::*;
pub use curve::Curve;
pub use embedding::*;
pub use glu::*;
pub use head::*;
pub use head_preference::*;
pub use linear::*;
pub use norm::*;
pub use optim::*;
pub use preference::*;
pub use reward::*;
pub use rope::*;
pub use segment::*;

use crate::{Error, Result};

/// Storage of activations and of accumulated values.
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
    /// Name of the storage of activations, as `--dtype` has it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Bytes of one `Act` element.
    pub fn act_bytes(self) -> u64 {
        match self {
            Precision::F64 => 8,
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        }
    }

    /// Bytes of one `Acc` element.
    pub fn acc_bytes(self) -> u64 {
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
    pub fn acc_roundoff(self) -> f64 {
        match self {
            Precision::F64 => f64::EPSILON / 2.0,
            Precision::F32 | Precision::Bf16 => f64::from(f32::EPSILON) / 2.0,
        }
    }
}

/// Allowed error of an element: `atol + rtol * |reference|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub atol: f64,
    pub rtol: f64,
}

impl Tolerance {
    /// Error of a sum of `length` products of numbers of order one in `precision`, stored as `Act`. Rounding errors
    /// of a long sum behave like a random walk, so the bound grows with sqrt(length); the factor 8 covers the largest
    /// of many elements. For f64 the same formula bounds the difference between two orders of summation.
    pub fn dot(precision: Precision, length: usize) -> Self {
        let sum = 8.0 * precision.acc_roundoff() * (length.max(1) as f64).sqrt();
        Self { atol: sum, rtol: sum + 2.0 * precision.act_roundoff() }
    }

    /// As [`Tolerance::dot`], with every magnitude multiplied by `scale`: for outputs whose terms are not of order one.
    pub fn scaled(self, scale: f64) -> Self {
        Self { atol: self.atol * scale, rtol: self.rtol }
    }

    /// Largest difference allowed from `reference`.
    pub fn allowed(&self, reference: f64) -> f64 {
        self.atol + self.rtol * reference.abs()
    }
}

/// Checks one length; the message names op, argument, and the product of sizes expected.
pub(crate) fn expect_len(op: &'static str, what: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Contract { op, what, expected: format!("{expected} elements"), got: format!("{got}") })
}

/// Checks any other condition of a contract.
pub(crate) fn expect(
    op: &'static str,
    what: &'static str,
    ok: bool,
    expected: impl Into<String>,
    got: impl ToString,
) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Contract { op, what, expected: expected.into(), got: got.to_string() }) }
}
