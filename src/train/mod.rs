//! Training: one step, the loop around it, and what a run leaves behind.
//!
//! - [`upload`]: a packed batch on the device
//! - [`score`]: forward to per-sequence scores, for training, evaluation and the reference alike
//! - [`step`]: one optimiser step
//! - [`metrics`]: sums with counts, per kind; metrics.jsonl; the step line
//! - [`evaluate`]: accuracies over a data set
//! - [`checkpoint`]: a run's state on disk
//! - [`run`]: the loop
//! - [`report`]: SVG charts and HTML pages

pub mod checkpoint;
pub mod evaluate;
pub mod metrics;
pub mod report;
pub mod run;
pub mod score;
pub mod step;
pub mod upload;
