//! Losses over per-sequence scores. A loss never sees the model: it sees the signed sum of a comparison.
//!
//! - [`curve`]: the function f of `loss = f(z)` and its slope, in f64
//! - [`objective`]: which comparisons are trained, with which weights and scales

pub mod curve;
pub mod objective;
