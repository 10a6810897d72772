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
pub mod entry;
pub mod measure;
pub mod operand;
pub mod peer;
pub mod rates;
pub mod row;
pub mod run;
pub mod shapes;
pub mod verify;
pub mod work;
pub mod yardstick;
