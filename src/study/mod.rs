//! Performance studies: ceilings measured on this machine, and time by op compared with them.
//!
//! - `ceilings`: rates of a large GEMM and of a copy
//! - [`hardware`]: clocks, power, activity and memory, sampled during a run
//! - [`observe`]: what a run reports; [`record`]: the study built from it; [`page`]: the study as a
//!   page
//! - `peak`: FLOP/s of data sheets
//! - `sweep`: observed runs over a grid of flags
//! - `bench`: a benchmark under observation
//! - [`plan`]: predicted floor of a training step on a GPU that need not be present
//! - `profile`: time by op of training steps, as a table and as JSON

pub(crate) mod bench;
pub(crate) mod ceilings;
pub mod hardware;
pub mod observe;
pub mod page;
pub(crate) mod peak;
pub mod plan;
pub(crate) mod profile;
pub mod record;
pub(crate) mod sweep;
