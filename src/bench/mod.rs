//! Microbenchmarks of ops: every op at the sizes of published models, verified against the reference before it is timed,
//! beside other libraries and beside ceilings measured in the same run.
//!
//! - [`shapes`]: the table of calls; [`work`]: the calls; [`operand`]: what they are called on
//! - [`verify`]: results against the reference, whole or in parts
//! - [`measure`]: samples in turn, medians and quantiles
//! - [`yardstick`]: work that never changes, timed beside calls on processors
//! - [`rates`]: ceilings, and what a backend needs to be benchmarked; [`peer`]: cuBLASLt
//! - [`run`]: all of it over the table
//! - [`row`]: rows of a record; [`compare`]: a record against an earlier one

pub mod compare;
mod entry;
pub(crate) mod measure;
mod operand;
mod peer;
pub mod rates;
pub mod row;
pub mod run;
pub(crate) mod shapes;
mod verify;
pub mod work;
mod yardstick;
