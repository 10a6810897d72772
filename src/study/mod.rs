//! Where the time goes: ceilings measured on this machine, and time by op against them.
//!
//! - [`ceilings`]: rates of a large matrix product and of a copy
//! - [`hardware`]: clocks, power, activity and memory, sampled beside a run
//! - [`observe`]: what a run tells; [`record`]: the study made of it; [`page`]: as a page; [`peak`]: data sheets
//! - [`sweep`]: observed runs over a grid of flags
//! - [`mod@bench`]: a benchmark under observation
//! - [`plan`]: the floor of a step on a card that need not be here
//! - [`profile`]: time by op of training steps, as a table and as JSON

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
