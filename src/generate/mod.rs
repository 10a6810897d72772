//! Text from a language model: prompts in, tokens out.
//!
//! - [`sampling`]: from the logits after a text to its next token
//! - `prefix`: prompts in the cache as a prefix tree
//! - `slots`: rows of the key and value cache that are in use
//! - `step`: the tables of one step on the device
//! - [`session`]: one conversation, with its cache kept over turns
//! - `shared`: a run that several ranks share
//! - [`run`]: the loop: prompts enter, rows leave, and their samples share the prompt's part of the cache
//!
//! The tokens of a sample depend on its prompt, its number, the seed and the settings only. Other
//! prompts, their order, the batch size and the number of threads change nothing: a row of an op's
//! result does not depend on the other rows, and every sample has random numbers of its own.

mod prefix;
pub mod run;
pub mod sampling;
pub mod session;
pub(crate) mod shared;
mod slots;
mod step;

pub use run::{Engine, Finish, Generated, Limits, Prompt, Sizes};
pub use sampling::{Sampler, Sampling};
pub use session::Session;
