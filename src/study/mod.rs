//! Studies: training runs and benchmarks under observation, and the plan of a step on a GPU that is not present.
//!
//! - [`record`]: the study of one run, built from step times, op times and hardware samples; [`page`]: its HTML page
//! - [`sweep`]: observed runs over a grid of flags
//! - [`mod@bench`]: a benchmark under observation
//! - [`plan`]: predicted floor of a training step

pub mod bench;
pub mod page;
pub mod plan;
pub mod record;
pub mod sweep;
