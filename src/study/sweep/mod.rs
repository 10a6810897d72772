//! Runs over a grid of flags: a file says what all runs share and what varies, every point is an observed run of its own, and
//! the points are put side by side.
//!
//! - [`grid`]: the file and its points
//! - [`outcome`]: what a point gave, from its study
//! - [`page`]: tables and scaling plots

pub mod grid;
pub mod outcome;
pub mod page;
