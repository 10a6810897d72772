//! Where the time goes: ceilings measured on this machine, and time by op against them.
//!
//! - [`ceilings`]: rates of a large matrix product and of a copy
//! - [`profile`]: time by op of training steps, as a table and as JSON

pub mod ceilings;
pub mod profile;
