//! Lines on stdout and stderr, and whether they may be coloured. Text from files, such as row ids,
//! tokens and file names, could recolour or clear a terminal, or reverse the order of a line. Every
//! line for people is therefore printed as [`plain`] text; JSON keeps the true values.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{Stdout, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Maximum number of characters of a value that [`shown`] keeps.
const SHOWN: usize = 200;

/// Maximum number of characters of a message on stderr, and number of characters that a longer message keeps at
/// its end, where the advice is.
const MESSAGE: (usize, usize) = (4000, 1000);

/// Whether rank 0 prints and writes for this process.
static FOLLOWS: AtomicBool = AtomicBool::new(false);

/// Whether a launcher forwards the output of this process.
static PASSED_ON: AtomicBool = AtomicBool::new(false);

/// Makes this process print nothing and write no file through [`crate::files`], because rank 0 does both.
pub(crate) fn follow() {
    FOLLOWS.store(true, Ordering::SeqCst);
}

/// Whether this process prints and writes nothing, because rank 0 does.
pub(crate) fn follows() -> bool {
    FOLLOWS.load(Ordering::SeqCst)
}

/// Whether a character is a control character, a Unicode line or paragraph separator, or a bidirectional
/// formatting character.
fn acts(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || c.is_control()
}

/// Returns the text with control characters (except line feeds and tabs), Unicode line and paragraph separators,
/// and bidirectional formatting characters escaped, for example as `\u{1b}`.
pub fn plain(text: &str) -> Cow<'_, str> {
    let kept = |c: char| c == '\n' || c == '\t' || !acts(c);
    if text.chars().all(kept) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if kept(c) { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    Cow::Owned(out)
}

/// Formats a value from a file for a message, on one line. A value of more than 200 characters is cut, and
/// its length is added.
pub fn shown(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars().take(SHOWN) {
        match c {
            '\n' | '\t' | '\r' => out.extend(c.escape_default()),
            c if acts(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    if value.len() > SHOWN {
        let all = value.chars().count();
        if all > SHOWN {
            out += &format!("... ({all} characters)");
        }
    }
    out
}

/// Returns a count with its noun: `1 row`, `2 rows`. `noun` is singular, and its last word is put in the
/// plural.
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    if count == N::from(1) {
        return format!("{count} {noun}");
    }
    match noun.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{count} {stem}ies"),
        _ => format!("{count} {noun}s"),
    }
}

/// Returns `one` if the count is 1, and `many` otherwise.
pub fn agreeing<'a, N: PartialEq + From<u8>>(count: N, one: &'a str, many: &'a str) -> &'a str {
    if count == N::from(1) { one } else { many }
}

/// Shortens a very long message by leaving out its middle.
fn shortened(text: &str) -> Cow<'_, str> {
    let (most, end) = MESSAGE;
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let all: Vec<char> = text.chars().collect();
    if all.len() <= most {
        return Cow::Borrowed(text);
    }
    let (start, end) = (&all[..most - end], &all[all.len() - end..]);
    let left_out = all.len() - most;
    let join = |part: &[char]| part.iter().collect::<String>();
    Cow::Owned(format!("{} ... ({left_out} characters left out) ... {}", join(start), join(end)))
}

/// Prints a line of [`plain`] text on stdout and ignores errors. The `print` macros would panic on a closed
/// pipe. Ctrl-C also ends a pager that reads the output, so the stopped run would then lose its last
/// checkpoint.
pub fn say(text: &str) {
    say_styled(&plain(text));
}

/// Like [`say`] for text with colour codes; the caller has already made the rest of the text plain.
pub fn say_styled(text: &str) {
    if !follows() {
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// Prints [`plain`] text of a command's result and a line break on stdout. Unlike [`say`] it fails
/// if the text cannot be written, and with [`Error::ReaderLeft`] if stdout is a pipe without a
/// reader.
pub fn emit(text: &str) -> Result<()> {
    emit_exactly(&plain(text))
}

/// Like [`emit`], but without escaping, for JSON and for text with colours.
pub fn emit_exactly(text: &str) -> Result<()> {
    on_stdout(|out| writeln!(out, "{text}"))
}

/// Writes to stdout and flushes it; fails like [`emit`].
pub fn on_stdout(write: impl FnOnce(&mut Stdout) -> std::io::Result<()>) -> Result<()> {
    if follows() {
        return Ok(());
    }
    let mut out = std::io::stdout();
    write(&mut out).and_then(|()| out.flush()).map_err(Error::written(Path::new("standard output")))
}

/// Makes stdout count as a file, because a launcher forwards it, often through a separate terminal.
pub(crate) fn pass_on() {
    PASSED_ON.store(true, Ordering::SeqCst);
}

/// Whether stdout is a terminal that shows what this process prints.
fn on_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout()) && !PASSED_ON.load(Ordering::SeqCst)
}

/// Whether text on stdout may be coloured: stdout is a terminal and `NO_COLOR` is not set.
pub fn color() -> bool {
    on_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Columns of the terminal on stdout; `None` if stdout is a file or a pipe, whose lines are not wrapped.
pub fn columns() -> Option<usize> {
    let (columns, _) = ratatui::crossterm::terminal::size().ok().filter(|_| on_terminal())?;
    Some(usize::from(columns))
}

/// Wraps lines between words to at most `columns` characters, unless a word is longer. Continuation lines
/// start with `indent` spaces.
pub fn wrapped(text: &str, columns: usize, indent: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut used = 0;
        for word in line.split_inclusive(' ') {
            let seen = word.trim_end().chars().count();
            if used > indent && used + seen > columns {
                out.truncate(out.trim_end().len());
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent));
                used = indent;
            }
            out += word;
            used += word.chars().count();
        }
    }
    out
}

/// Prints a message on stderr as [`plain`] text, shortened if it is very long. Ignores errors, like [`say`].
pub fn complain(text: &str) {
    if !follows() {
        complain_of_rank(text);
    }
}

/// Like [`complain`], but ranks other than 0 print too, so that a rank can report its failure.
pub(crate) fn complain_of_rank(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", shortened(&plain(text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_agree_with_their_nouns() {
        let all =
            [(0_usize, "row"), (1, "row"), (2, "row"), (1, "entry"), (3, "entry"), (2, "response token"), (2, "key")];
        let texts = all.map(|(count, noun)| counted(count, noun));
        assert_eq!(texts, ["0 rows", "1 row", "2 rows", "1 entry", "3 entries", "2 response tokens", "2 keys"]);
        assert_eq!([agreeing(1_u64, "is", "are"), agreeing(0, "is", "are")], ["is", "are"]);
    }

    #[test]
    fn characters_that_act_on_a_terminal_are_written_out() {
        assert_eq!(plain("a\n\tb é 鳥"), "a\n\tb é 鳥");
        let acting = "a\u{1b}[2J\u{9b}1m\u{7f}\r\u{202e}b\u{2066}\u{200f}\0";
        let text = r"a\u{1b}[2J\u{9b}1m\u{7f}\u{d}\u{202e}b\u{2066}\u{200f}\u{0}";
        assert_eq!(plain(acting), text);
        assert_eq!(shown("a\nb\u{1b}"), r"a\nb\u{1b}");
    }

    #[test]
    fn lines_are_broken_between_words() {
        let text = "name      one two three four\nb         a-word-that-fits-nowhere, x\nshort\n";
        let expected =
            "name      one two\n          three four\nb         a-word-that-fits-nowhere,\n          x\nshort\n";
        assert_eq!(wrapped(text, 20, 10), expected);
        assert_eq!(wrapped(text, 80, 10), text);
        assert_eq!(wrapped("", 5, 2), "");
    }

    #[test]
    fn long_values_and_messages_say_how_much_is_left_out() {
        assert_eq!(shown(&"é".repeat(200)), "é".repeat(200));
        assert_eq!(shown(&"é".repeat(201)), format!("{}... (201 characters)", "é".repeat(200)));
        let message = format!("start{}; try this", "x".repeat(9000));
        let short = shortened(&message);
        assert!(short.starts_with("startx") && short.ends_with("x; try this"), "{short}");
        let left_out = message.len() - MESSAGE.0;
        assert!(short.contains(&format!("({left_out} characters left out)")), "{short}");
    }
}
