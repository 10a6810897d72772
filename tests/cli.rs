//! The binary as a user meets it: every command on tiny data, its files, its messages and its exit codes.

mod cli {
    mod arguments;
    mod bad_input;
    mod bench;
    mod best_model;
    mod checkpoints;
    mod devices;
    mod evaluation;
    mod kills;
    mod pipeline;
    mod reference;
    mod repeat;
    mod resume;
    mod signals;
}
