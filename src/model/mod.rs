//! Transformers from Hugging Face folders: configuration, presets, the naming table, and weights in and out.

pub mod config;
mod config_json;
mod config_write;
pub mod presets;
pub mod rope;
pub mod tensors;
pub mod weights;
mod weights_read;
mod weights_write;
