//! LoRA adapters in PEFT's layout: a folder with `adapter_config.json` and `adapter_model.safetensors`. The base
//! model has a separate folder.
//!
//! ```text
//! for every adapted module:  W' = W + factor B A      factor = alpha / rank, or alpha / sqrt(rank)
//! for every saved module:    W' = the stored weight
//! ```
//!
//! - `config`: `adapter_config.json`, read, checked and written
//! - `targets`: the modules that an adapter changes, with their ranks and factors
//! - `base`: the folder of the base
//! - `files`: the checked weights of an adapter, and the products that are added to weights of the base
//! - `write`: an adapter folder that PEFT loads

pub(crate) mod base;
pub(crate) mod config;
pub(crate) mod files;
pub(crate) mod targets;
pub(crate) mod write;

pub use base::AdapterFolder;
pub use config::{AdapterConfig, Targets, TaskType};
pub use files::AdapterFiles;
pub use targets::AdaptedModule;
pub use write::write_adapter;
