//! Performance measurements that training, benchmarks and studies share.
//!
//! - `ceilings`: measured rates of a large GEMM and of a copy
//! - `peak`: FLOP/s of data sheets, by GPU name
//! - [`observe`]: step times, op times and planned memory of a run, collected while it trains
//! - `profile`: time by op of an average step, as a table and as JSON
//! - [`hardware`]: clocks, power, activity and memory, sampled during a run

pub(crate) mod ceilings;
pub mod hardware;
pub mod observe;
pub(crate) mod peak;
pub(crate) mod profile;
