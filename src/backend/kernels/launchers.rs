//! Typed launchers of all kernels, made by `build.rs` from the KERNEL lines of `kernels/*.cu`: a struct for each kernel with
//! its parameters as fields and a method that enqueues it. Pairs `_f32` and `_bf16` are one struct over the storage of
//! activations.

#![allow(missing_docs)]

#[allow(unused_imports)]
use half::bf16;

use super::device::*;
use crate::Result;

include!(concat!(env!("OUT_DIR"), "/launchers.rs"));
