//! The `mapl` binary, end to end: every command on tiny data, with its files, messages and exit
//! codes.

mod adapters;
mod arguments;
mod bad_input {
    //! Every kind of bad input ends with the exit code listed in docs/commands.md and with one message, which
    //! says where the input is wrong and gives a remedy. No command panics or leaves partial files.

    mod configs;
    mod damage;
    mod disk;
    mod diverging;
    mod foreign;
    mod hostile;
    mod inputs;
    mod kinds;
    mod limits;
    mod locks;
    mod models;
    mod outputs;
    mod rows;
    mod settings;
    mod tokenizers;
}
mod benchmarks;
mod best_model;
mod chat;
mod checkpoints;
mod data_check;
mod data_convert;
mod data_files;
mod data_pairs;
mod devices;
mod evaluation;
mod explain;
mod families;
mod first_use;
mod foreign;
mod foreign_heads;
mod generate;
#[path = "../common/html.rs"]
mod html;
mod ifeval;
mod kills;
mod kto;
mod lab;
mod lora;
mod lost_text;
mod nvtx;
mod own_kernels;
mod pipeline;
mod quickstart;
mod random_signals;
mod ranks;
mod reference;
mod repeat;
mod resume;
mod run_report;
mod signals;
mod study;
mod sweep;
mod tensorboard;
mod tile_instructions;
mod trl_commands;
mod watch;
mod workbench;
