//! Models: what a transformer is made of, its Hugging Face folder, and its forward and backward as lists of op calls.
//!
//! - [`config`], [`rope`], [`presets`]: sizes from `config.json`, checked once; named sizes for new models
//! - [`tensors`], [`layout`]: names and shapes; where each tensor lies in the flat parameter arena
//! - [`weights`]: weight files of a folder in and out
//! - [`store`]: a model loaded from a folder, drawn at random, or written to a folder
//! - [`decoder`], [`decoder_grad`]: Llama and Qwen2, forward and backward; [`activations`] is their workspace
//! - [`inputs`]: a packed batch as the model sees it

pub mod activations;
pub mod config;
mod config_json;
mod config_write;
pub mod decoder;
pub mod decoder_grad;
pub mod inputs;
pub mod layout;
pub mod presets;
pub mod rope;
pub mod store;
pub mod tensors;
pub mod weights;
mod weights_read;
mod weights_write;
