//! Losses over per-sequence scores. A loss never sees the model: it sees the signed sum of a comparison.
//!
//! - [`objective`]: which comparisons are trained, with which weights and scales

pub mod objective;
pub mod signed_sum;
