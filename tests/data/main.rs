//! Input: preference files, instructions and groups built from them, templates, tokens, prefix trees, objectives, model folders.

mod construction;
mod fuzz_seeds;
mod instructions;
mod model_config;
mod model_folder;
mod objective;
mod sources;
mod templates;
mod tokens;
mod tree;
