//! Data: from text rows to packed batches. Reading order:
//!
//! - [`group`]: the preference group, the only unit of data inside the program
//! - [`source`]: one reader per input format, each yielding groups
//! - [`instructions`]: checkable instruction functions, each with a builder and a checker
//! - [`mapl`]: adds intra-sample and inter-sample comparisons to a group; [`options`] holds its
//!   settings
//! - [`construct`]: applies an objective to rows read from files
//! - [`template`], [`tokenizer`]: chat templates; tokenizer of a model folder, and training of a
//!   new one
//! - [`tokenize`], [`tokenized`]: groups to token ids, with the prompt/response boundary on ids and
//!   the length limit
//! - [`show`]: tokenised groups as text, with the tokens of the loss marked
//! - [`tree`], [`pack`]: prefix tree of a group; packing of groups into a batch
//! - [`loader`]: seeded order, epochs, batches of groups
//! - [`synth`]: the artificial language of the quick start
//! - [`worker`], `requests`, [`serve`]: processes that run untrusted tokenizers and templates

pub mod construct;
pub mod group;
pub mod instructions;
pub mod loader;
pub mod mapl;
pub mod options;
pub mod pack;
mod requests;
pub mod serve;
pub mod show;
pub mod source;
pub mod synth;
pub mod template;
pub mod tokenize;
pub mod tokenized;
pub mod tokenizer;
pub mod tree;
pub mod worker;
