//! Microbenchmarks of ops at the sizes of published models. Every op is verified against the f64
//! reference before it is timed, next to other libraries and to ceilings measured in the same run.
//!
//! - `shapes`: the table of calls; [`work`]: the calls; `operand`: their operands
//! - `verify`: results against the reference, complete or in parts
//! - `measure`: interleaved samples, medians and quantiles
//! - `yardstick`: the control workload, timed between the calls' samples on CPUs
//! - [`rates`]: measured ceilings, and the trait of a benchmarked backend; `peer`: cuBLASLt
//! - `own`: custom kernels next to the shipped ones; `occupancy`: blocks per multiprocessor
//! - `explain`: why a call takes its time on a GPU; `ncu`: metrics of NVIDIA's profiler
//! - `sheet`: kernels without a launcher, described by a TOML file
//! - `accesses`: counts of the emulator's memory accesses; `ladder`: kernels in rungs of one idea each
//! - `tune`: constants of the tile choice, fitted to the GPU at hand
//! - [`op`]: user-defined ops, described by a trait
//! - `entry`: one call of the table with its contenders; [`run`]: the passes over the table
//! - [`row`]: rows of a record; [`compare`]: a record against an earlier one
//!
//! A contender is any timed implementation of a call. A peer is a contender from another library.

pub(crate) mod accesses;
pub mod compare;
mod energy;
mod entry;
pub(crate) mod explain;
pub(crate) mod ladder;
pub(crate) mod measure;
pub(crate) mod ncu;
mod occupancy;
pub mod op;
pub(crate) mod operand;
pub(crate) mod own;
mod peer;
pub mod rates;
pub mod row;
pub mod run;
pub(crate) mod shapes;
pub(crate) mod sheet;
pub(crate) mod tune;
mod verify;
pub mod work;
mod yardstick;
