//! Training: one step, the loop around it, and what a run leaves behind.
//!
//! - [`batch`]: groups to a batch on the device: packing on a thread, padding to captured shapes, the transfer
//! - [`score`]: forward to per-sequence scores, for training, evaluation and the reference alike; the way back
//! - [`losses`]: the losses over those scores, as ops take them
//! - [`frozen`]: DPO's frozen reference, online or as precomputed log-probs in a disk cache
//! - [`step`]: one optimiser step
//! - [`metrics`]: sums with counts, per kind; metrics.jsonl; the step line
//! - [`logs`]: where metrics go; [`tensorboard`]: event files; [`manifest`]: run.json
//! - [`memory`]: what a run takes, by part, before it is taken
//! - [`evaluate`]: accuracies over a data set
//! - [`checkpoint`]: a run's state on disk; [`best`]: the metric that chooses the best one
//! - [`run`]: the loop; [`console`]: what it prints; [`signals`]: what interrupts it

pub mod batch;
pub mod best;
pub mod checkpoint;
pub mod console;
pub mod evaluate;
pub mod frozen;
pub mod logs;
pub mod losses;
pub mod manifest;
pub mod memory;
pub mod metrics;
pub mod run;
pub mod score;
pub mod signals;
pub mod step;
pub mod tensorboard;

use crate::data::pack::{PackOptions, Scoring};
use crate::loss::objective::{Loss, Method};

/// How batches are packed for a loss: rewards read the last token, log-probs every response token.
pub fn pack_options(loss: &Loss, vocab: usize) -> PackOptions {
    let scoring = match loss.method {
        Method::Reward => Scoring::Reward,
        Method::Sft | Method::Dpo => Scoring::LogProb { scope: loss.scope },
    };
    PackOptions { share_prefixes: loss.share_prefixes, scoring, vocab }
}
