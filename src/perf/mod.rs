//! Performance measurements that training, benchmarks and studies share.
//!
//! - `ceilings`: measured rates of a large GEMM and of a copy
//! - `peak`: FLOP/s of data sheets, by GPU name; `data_sheets`: figures for plans of a step
//! - [`observe`]: step times, op times and planned memory of a run, collected while it trains
//! - `op_totals`: totals by op over steps; `profile`: time by op of a mean step, as a table and as JSON
//! - `predict`: predicted time of attention and of row-wise ops on a Hopper GPU
//! - [`hardware`]: clocks, power, activity and memory, sampled during a run

pub(crate) mod ceilings;
pub(crate) mod data_sheets;
pub mod hardware;
pub mod observe;
pub(crate) mod op_totals;
pub(crate) mod peak;
pub(crate) mod predict;
pub(crate) mod profile;
