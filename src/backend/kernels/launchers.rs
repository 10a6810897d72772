//! Typed launchers of all kernels, and the constants and enums that the kernels share with the
//! host. `build.rs` generates them from the KERNEL, KERNELS and EXPORT lines of `kernels/`.
//!
//! Each declaration becomes a struct with the kernel's parameters as fields and a method that enqueues it. If
//! a family has an axis for the storage type, its struct is generic over that type. The other axes are
//! arguments of the launch.

#![allow(missing_docs)]

#[allow(unused_imports)]
use half::bf16;

use super::device::*;
use crate::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/launchers.rs"));

/// Error for axis values for which a family has no kernel. `axes` has the name, value and available values of
/// each axis.
fn no_instance(family: &str, axes: &[(&str, String, String)]) -> Error {
    let axes: Vec<String> =
        axes.iter().map(|(axis, value, known)| format!("{axis} {value} (available: {known})")).collect();
    Error::Runtime(format!("no kernel {family} for {}", axes.join(", ")))
}
