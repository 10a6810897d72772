//! Training: the optimiser step, the training loop, and the files a run writes.
//!
//! - [`batch`]: from groups to a batch on the device: packing on a thread, padding to the shapes of
//!   captured CUDA graphs, the transfer
//! - [`score`]: forward to per-sequence scores, and the backward; shared by training, evaluation
//!   and the frozen reference
//! - `losses`: the losses over the scores, as op arguments
//! - [`frozen`]: DPO's frozen reference, run online or read from a cache of log-probs
//! - [`step`]: one optimiser step; `share`: a step that several ranks share; `shard`: the step with
//!   sharded optimiser state; `unit_sums`: the step with sharded weights; `layer_sums`: gradient sums
//!   that overlap with the backward
//! - [`metrics`]: sums with counts, per comparison kind; metrics.jsonl
//! - [`logs`]: destinations of metrics; [`tensorboard`]: event files; `manifest`: run.json
//! - [`memory`]: the memory plan of a run, by part, made before any allocation
//! - [`evaluate`]: scores of a data set
//! - [`checkpoint`]: a run's state on disk; `best`: the metric that selects the best checkpoint
//! - [`run`]: the training loop; `console`: its output; `signals`: its signal handlers

pub mod batch;
pub(crate) mod best;
pub mod checkpoint;
pub(crate) mod console;
pub mod evaluate;
pub mod frozen;
mod layer_sums;
pub mod logs;
mod losses;
pub(crate) mod manifest;
pub mod memory;
pub mod metrics;
pub mod run;
pub mod score;
mod shard;
#[cfg(test)]
mod sharded_steps;
mod share;
pub(crate) mod signals;
pub mod step;
pub mod tensorboard;
pub(crate) mod token_stats;
mod unit_sums;

use crate::data::pack::{PackOptions, Scoring};
use crate::loss::objective::{Loss, Method};
use crate::model::config::ModelConfig;

/// Packing options of a loss: log-probs read every response token, and rewards the last token that is
/// not `pad`, the pad token of the model.
pub fn pack_options(loss: &Loss, vocab: usize, pad: Option<u32>) -> PackOptions {
    let scoring = match loss.method {
        Method::Reward => Scoring::Reward,
        Method::Sft | Method::Dpo | Method::Kto => Scoring::LogProb { scope: loss.scope },
    };
    PackOptions { share_prefixes: loss.share_prefixes, scoring, vocab, pad, position_runs: false }
}

/// Packing options of a loss on a model.
pub fn pack_for(loss: &Loss, config: &ModelConfig) -> PackOptions {
    PackOptions { position_runs: config.has_position_table(), ..pack_options(loss, config.vocab, config.pad) }
}
