//! Input data: preference files, instructions, group construction, chat templates, tokenisation,
//! prefix trees, objectives and model folders.

mod adapters;
mod construction;
mod containers;
mod draw_keys;
mod file_kinds;
mod foreign_folders;
mod fuzz_seeds;
mod gemma;
mod ifeval;
mod instructions;
mod key_spellings;
mod lost_text;
mod model_config;
mod model_defaults;
mod model_family;
mod model_folder;
mod objective;
mod read_options;
mod reward_rows;
mod row_files;
mod shapes;
mod sources;
mod spaces;
mod templates;
mod tokenizer_files;
mod tokens;
mod tree;
mod turns;
mod unpaired;
