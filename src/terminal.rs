//! Lines on stdout and stderr, and whether they may be coloured.

use std::io::{Stdout, Write as _};
use std::path::Path;

use crate::{Error, Result};

/// Prints a line on stdout and ignores errors. The `print` macros would panic on a closed pipe; a
/// run stopped by Ctrl-C, which also ends its pager, would then lose its last checkpoint.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line of a command's result on stdout. Unlike [`say`] it fails if the line cannot be
/// written, and with [`Error::ReaderLeft`] if stdout is a pipe without a reader.
pub fn emit(text: &str) -> Result<()> {
    on_stdout(|out| writeln!(out, "{text}"))
}

/// Writes to stdout and flushes it; fails like [`emit`].
pub fn on_stdout(write: impl FnOnce(&mut Stdout) -> std::io::Result<()>) -> Result<()> {
    let mut out = std::io::stdout();
    write(&mut out).and_then(|()| out.flush()).map_err(Error::written(Path::new("standard output")))
}

/// Whether text on stdout may be coloured: stdout is a terminal and `NO_COLOR` is not set.
pub fn color() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout()) && std::env::var_os("NO_COLOR").is_none()
}

/// Prints a line on stderr and ignores errors, like [`say`].
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
