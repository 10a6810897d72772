//! Models: configuration and Hugging Face folders, and forward and backward as lists of op calls.
//!
//! - [`family`], `family_ids`, `family_missing`, `family_names`, [`config`], `traits`, [`rope`], [`presets`]:
//!   properties of each model family; sizes from `config.json`, checked once; named sizes for new models
//! - [`tensors`], [`layout`]: names and shapes of tensors; their places in the flat parameter arena
//! - `trained`: the parameters that training changes
//! - `units`, `part`, `shards`: weights that are sharded over ranks, unit by unit
//! - [`weights`]: reading and writing of weight files
//! - `reward_heads`: heads of reward models under the names of other trainers, and normalised rewards
//! - [`adapter`]: LoRA adapters of PEFT, read, merged and written
//! - [`store`]: loading, random initialisation and saving of a model
//! - [`decoder`], `decoder_grad`: the decoder, forward and backward; [`activations`] is their workspace;
//!   `decoder_cached`: its forward for generation, with a cache of keys and values
//! - [`lora`]: low-rank adapters of a frozen model
//! - `inputs`: a packed batch as model input

pub mod activations;
pub mod adapter;
pub mod config;
mod config_json;
mod config_support;
mod config_write;
pub mod decoder;
mod decoder_behind;
pub(crate) mod decoder_cached;
pub(crate) mod decoder_grad;
mod decoder_norm;
pub mod family;
mod family_ids;
mod family_missing;
pub(crate) mod family_names;
pub(crate) mod inputs;
pub mod layout;
pub mod lora;
pub(crate) mod part;
pub mod presets;
pub(crate) mod reward_heads;
pub mod rope;
mod rope_frequencies;
pub(crate) mod rope_layers;
pub(crate) mod shards;
pub mod softcaps;
pub mod store;
pub mod tensors;
pub(crate) mod trained;
pub(crate) mod traits;
pub(crate) mod units;
pub mod weights;
mod weights_names;
mod weights_read;
mod weights_shards;
mod weights_write;
mod window;
