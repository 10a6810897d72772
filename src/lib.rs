//! `mapl` trains transformers on preference data: reward models and DPO with multi-level aware
//! preference learning, MAPL (arXiv 2505.12845). Modules, in reading order:
//!
//! - [`data`]: text rows -> preference groups -> token ids -> packed prefix-tree batches
//! - [`backend`]: the list of ops, their contracts, and the backends that run them
//! - [`model`]: transformers as lists of op calls, forward and reversed; Hugging Face folders in
//!   and out
//! - [`loss`]: preference loss curves and objectives
//! - [`optim`]: learning-rate schedules and AdamW state
//! - [`study`]: breakdown of the step time, against ceilings measured on this machine
//! - [`mod@bench`]: verified op benchmarks, against other libraries and the ceilings of the run
//! - [`train`]: one step, the training loop, metrics, checkpoints, scores of a data set
//! - [`watch`]: terminal view of a run while it trains
//! - [`eval`]: metrics of scored data with intervals, and the paired comparison of two models
//! - [`error`], [`rng`], [`files`]: error type with exit codes; seeded random numbers; atomic file
//!   writes
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
pub mod study;
pub mod train;
pub mod watch;

pub use error::{Error, Result};
