//! The `mapl` binary: parses the command line, runs one command, and turns an error into a message
//! and an exit code.

use clap::Parser as _;
use clap::error::ErrorKind;
use mapl::cli::{Cli, args, run};
use mapl::terminal::complain;

fn main() {
    std::process::exit(exit_code());
}

fn exit_code() -> i32 {
    let arguments = args::normalised(std::env::args_os());
    let command_line = args::shown(&arguments);
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(e) => {
            if e.kind() == ErrorKind::UnknownArgument
                && let Some(note) = args::known_in_trl(&arguments)
            {
                complain(&format!("error: {note}"));
                return 2;
            }
            // Help and version go to stdout with code 0, usage errors to stderr with code 2.
            let code = e.exit_code();
            return if e.print().is_ok() { code } else { 1 };
        }
    };
    match run(cli, &command_line) {
        Ok(()) => 0,
        Err(e) => {
            complain(&format!("error: {e}"));
            e.exit_code()
        }
    }
}
