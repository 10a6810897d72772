//! Lines on stdout and stderr, and whether they may be coloured.

use std::io::Write as _;

/// Prints a line on stdout. A reader that has gone, such as a pipe that was closed, ends no run: `print` macros would
/// panic, and a run stopped by Ctrl-C together with its pager would lose its last checkpoint.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Whether text on stdout may be coloured: a terminal, and no `NO_COLOR`.
pub fn color() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout()) && std::env::var_os("NO_COLOR").is_none()
}

/// As [`say`], on stderr.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
