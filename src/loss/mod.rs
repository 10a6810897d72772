//! Losses over per-sequence scores. A loss does not see the model, only the signed sum of a
//! comparison.
//!
//! - [`curve`]: the function f of `loss = f(z)` and its slope, in f64
//! - [`objective`]: trained comparisons with their weights and scales

pub mod curve;
pub mod objective;
