//! Optimisation: the learning-rate [`schedule`] with its `schedule_options`, and [`adamw`], the
//! host side of AdamW. A backend op does the arithmetic of the update.

pub mod adamw;
pub mod schedule;
pub(crate) mod schedule_options;
