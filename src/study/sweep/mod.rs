//! Sweeps: observed runs over a grid of flags. A file lists shared and varied flags. Every point is
//! an observed run in its own process, and a page compares the points.
//!
//! - [`grid`]: the file and its points
//! - [`outcome`]: results of a point, from its study
//! - [`summary`]: accuracies over seeds, with intervals
//! - [`page`]: tables and scaling plots

pub mod grid;
pub mod outcome;
pub mod page;
pub mod summary;
