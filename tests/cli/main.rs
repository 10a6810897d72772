//! The binary as a user meets it: every command on tiny data, its files, its messages and its exit codes.

mod arguments;
mod bad_input {
    //! Bad input of every kind against the binary: the exit code of the table in docs/commands.md, one message that says where and
    //! what to do, no panic, and nothing half-written.

    mod configs;
    mod damage;
    mod disk;
    mod diverging;
    mod locks;
    mod models;
    mod rows;
    mod settings;
    mod tokenizers;
}
mod best_model;
mod checkpoints;
mod data_check;
mod devices;
mod evaluation;
#[path = "../common/html.rs"]
mod html;
mod kills;
mod pipeline;
mod reference;
mod repeat;
mod resume;
mod run_report;
mod signals;
mod study;
mod tensorboard;
mod watch;
mod workbench;
