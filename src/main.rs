//! The `mapl` binary: parses the command line, runs one command, and turns an error into a message
//! and an exit code.

use clap::Parser as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use mapl::Error;
use mapl::cli::{Cli, args, method_options, run};
use mapl::terminal::{complain, on_stdout};

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
                && let Some(ContextValue::String(flag)) = e.get(ContextKind::InvalidArg)
                && let Some(note) = args::known_in_trl(&arguments, flag)
            {
                complain(&format!("error: {note}"));
                return 2;
            }
            if e.use_stderr() {
                // A usage error that cannot be printed still has its exit code.
                let _ = e.print();
                return e.exit_code();
            }
            return finished(on_stdout(|_| e.print()));
        }
    };
    finished(method_options::check(&arguments).and_then(|()| run(cli, &command_line)))
}

/// Exit code of an outcome, after its message was printed.
fn finished(outcome: mapl::Result<()>) -> i32 {
    match outcome {
        Ok(()) | Err(Error::ReaderLeft) => 0,
        Err(e) => {
            complain(&format!("error: {e}"));
            e.exit_code()
        }
    }
}
