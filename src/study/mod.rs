//! Studies: training runs and benchmarks under observation, and the predicted minimum time (floor) of a step
//! on a GPU that need not be present.
//!
//! - [`record`]: the study of a run, built from its observations; [`page`]: the study as a page
//! - `sweep`: observed runs over a grid of flags
//! - `bench`: a benchmark under observation
//! - [`plan`]: predicted floor of a training step

pub(crate) mod bench;
pub mod page;
pub mod plan;
pub mod record;
pub(crate) mod sweep;
