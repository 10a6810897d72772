//! Bad input of every kind against the binary: the exit code of the README's table, one message that says where and
//! what to do, no panic, and nothing half-written.

#[path = "cli/bench.rs"]
mod bench;

mod bad_input {
    mod configs;
    mod disk;
    mod diverging;
    mod locks;
    mod models;
    mod rows;
    mod settings;
    mod tokenizers;
}
