//! Losses over per-sequence scores. A loss does not see the model, only the signed sum of a
//! comparison.
//!
//! - [`objective`]: trained comparisons with their weights and scales
//! - [`signed_sum`]: the argument z of a comparison

pub mod objective;
pub mod signed_sum;
