//! Lines on stdout and stderr, and whether they may be coloured.

use std::io::Write as _;

/// Prints a line on stdout and ignores errors. The `print` macros would panic on a closed pipe; a
/// run stopped by Ctrl-C, which also ends its pager, would then lose its last checkpoint.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Whether text on stdout may be coloured: stdout is a terminal and `NO_COLOR` is not set.
pub fn color() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout()) && std::env::var_os("NO_COLOR").is_none()
}

/// Prints a line on stderr and ignores errors, like [`say`].
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
