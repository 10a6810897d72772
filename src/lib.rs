//! `mapl` trains transformers on preference data (reward models and DPO) with multi-level aware preference
//! learning, MAPL (arXiv 2505.12845). The modules, in reading order:
//!
//! - [`data`]: text rows -> preference groups -> token ids -> packed prefix-tree batches
//! - [`backend`]: the list of operations, their contracts, and the backends that run them
//! - [`model`]: transformers as a list of op calls and the list reversed; Hugging Face folders in and out
//! - [`loss`]: comparison curves and objectives
//! - [`optim`]: learning-rate schedules and AdamW state
//! - [`study`]: where the time goes, against ceilings measured on this machine
//! - [`mod@bench`]: every op timed, verified first, beside other libraries and the ceilings of the run
//! - [`train`]: one step, the loop around it, metrics, checkpoints, scores of a data set
//! - [`watch`]: a run in the terminal while it trains
//! - [`eval`]: measures of scored data with intervals, and the paired comparison of two models
//! - [`error`], [`rng`], [`files`]: the error type with its exit codes; seeded random numbers; files written whole
//! - [`cli`]: the commands of the binary

pub mod backend;
pub mod bench;
pub mod cli;
pub mod data;
pub mod error;
pub mod eval;
pub mod files;
pub mod loss;
pub mod model;
pub mod optim;
pub mod rng;
mod statistics;
pub mod study;
pub mod train;
pub mod watch;

pub use error::{Error, Result};
