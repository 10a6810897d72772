//! Optimisation: the learning-rate [`schedule`], and [`adamw`], the host side of AdamW. The arithmetic of the update
//! is an op of the backend.

pub mod adamw;
pub mod schedule;
