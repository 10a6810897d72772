//! Text generation with a language model.
//!
//! - [`sampling`]: chooses the next token from logits
//! - `prefix`: prefix tree of the prompts in the KV cache
//! - `slots`: free rows of the KV cache
//! - `step`: the tables of one step on the device
//! - [`session`]: one conversation, with its cache kept over turns
//! - `shared`: a run that several ranks share
//! - [`run`]: the loop, in which prompts enter and samples start and end; samples share the cache rows of
//!   their prompt
//!
//! The tokens of a sample depend only on its prompt, its index among the prompt's samples, the seed and the
//! settings. Other prompts, their order, the batch size and the number of threads have no effect, because a row
//! of an op's result does not depend on the other rows, and every sample has a separate random stream.

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
