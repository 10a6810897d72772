//! Losses over per-sequence scores. A loss does not see the model, only the scores of a comparison's
//! sequences.
//!
//! - [`objective`]: trained comparisons with their weights and scales
//! - `loss_type`: the losses by TRL's names
//! - `options`: options of the loss, and what they resolve to
//! - `formula`: the loss as a formula, for logs
//! - `fingerprint`: the loss in the fingerprint of a checkpoint
//! - `spelled_out`: options with every value explicit, for the record of a run
//! - `signed_sum`: the argument z of a comparison's loss curve
//! - `unpaired`: rows with one response and a label; `weights`: weights of tokens, pairs and rows
//! - `value`: losses of a comparison on the host

mod fingerprint;
mod formula;
pub(crate) mod loss_type;
pub mod objective;
pub(crate) mod options;
pub(crate) mod signed_sum;
mod spelled_out;
mod unpaired;
pub(crate) mod value;
mod weights;
