//! Data: from text rows to packed batches. Order of reading:
//!
//! - [`group`]: the preference group, the only unit of data inside the program
//! - [`source`]: one reader per input format, each yielding groups
//! - [`instructions`]: checkable instruction functions, each a builder and a checker
//! - [`mapl`]: adds intra-sample and inter-sample comparisons to a group; [`options`] are its settings
//! - [`construct`]: applies an objective to rows that were read
//! - [`template`], [`tokenizer`]: chat templates; a model folder's tokenizer, and training of a new one
//! - [`tokenize`], [`tokenized`]: groups to token ids, with the prompt/response boundary on ids and the length limit
//! - [`show`]: tokenised groups as text, trained tokens marked
//! - [`tree`], [`pack`]: prefix tree of a group; groups to a packed batch
//! - [`loader`]: seeded order, epochs, batches of groups
//! - [`synth`]: the artificial language of the quick start

pub mod construct;
pub mod group;
pub mod instructions;
pub mod loader;
pub mod mapl;
pub mod options;
pub mod pack;
pub mod show;
pub mod source;
pub mod synth;
pub mod template;
pub mod tokenize;
pub mod tokenized;
pub mod tokenizer;
pub mod tree;
