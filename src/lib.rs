//! Preference training of transformers: reward models and DPO policies, with the comparisons of
//! multi-level aware preference learning, MAPL (arXiv 2505.12845).
//!
#![doc = include_str!("../docs/figures/cargo-doc.html")]
//!
//! Accuracies are from `mapl quickstart` on held-out prompts of an artificial language. Times are medians on
//! an H200 for 8,192 response rows, hidden size 896 and a vocabulary of 151,936 in bf16; the bars of a group
//! come from one run. The rates on a CPU are medians of three runs. `docs/` in the repository has pages on
//! MAPL, data, evaluation, devices, checkpoints and kernels.
//!
#![doc = include_str!("../docs/tour.md")]
//!
//! # Modules in reading order
//! - [`error`], [`rng`], [`terminal`], [`files`], [`memory`], `statistics`: the error type with its exit
//!   codes; seeded random numbers; terminal output; reading and writing of files; free memory; intervals of
//!   shares
//! - [`backend`]: the list of operations, their contracts, and the backends that run them
//! - `ranks`: processes that a launcher started together, and sums over them
//! - [`perf`]: measured ceilings, time by op, data-sheet peaks, hardware counters
//! - [`data`]: text rows -> preference groups -> token ids -> packed prefix-tree batches
//! - `doctor`: checks of preference data before anything is trained on them
//! - [`loss`]: comparison curves and objectives
//! - [`model`]: transformers as a list of op calls, and the reversed list as the backward pass; reading and
//!   writing of Hugging Face folders
//! - [`optim`]: learning-rate schedules and AdamW state
//! - [`train`]: one step, the loop around it, metrics, checkpoints, scores of a data set
//! - [`eval`]: measures of scored data with intervals, and the paired comparison of two models
//! - [`generate`]: text generation with language models and a KV cache
//! - [`ifeval`]: instruction following of responses, with the verdicts of the official checkers
//! - [`report`]: SVG charts and HTML pages about runs
//! - [`mod@bench`]: timings of every op, which is verified first, compared with other libraries and with the
//!   ceilings measured in the same run
//! - [`study`]: training runs and benchmarks under observation, and the predicted floor of a step
//! - [`watch`]: shows a run in the terminal while it trains
//! - [`cli`]: the commands of the binary
//!
//! A module imports only from modules above it in this list, which a test in `tests/tools` checks.

#![warn(missing_docs)]

pub mod backend;
pub mod bench;
pub mod cli;
pub mod data;
mod doctor;
pub mod error;
pub mod eval;
pub mod files;
pub mod generate;
pub mod ifeval;
pub mod loss;
pub mod memory;
pub mod model;
pub mod optim;
pub mod perf;
mod ranks;
pub mod report;
pub mod rng;
mod statistics;
pub mod study;
pub mod terminal;
pub mod train;
pub mod watch;

pub use error::{Error, Result};

/// Commit of the checkout that this program was built from, with `-dirty` if a source differs from
/// it; `unknown` for a build from an archive.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// The example of the page on the library, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct LibraryPage;
