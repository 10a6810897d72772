//! Report on the rows read from one file, for the log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::reading::Used;
use super::{Format, Occurrences};
use crate::terminal::{agreeing, counted, shown};

/// Maximum number of unused keys that the line about a file names.
const KEYS: usize = 30;

/// Formats and keys of one file; `Display` gives one line for the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// The file.
    pub file: PathBuf,
    /// Rows of each format, in the order of [`Format`].
    pub formats: Vec<(Format, usize)>,
    /// Keys that no reader uses, in ascending order.
    pub ignored_keys: BTreeSet<String>,
    /// Number of text pairs in which `chosen` and `rejected` both start with the whole prompt, a sign that the
    /// prompt is duplicated.
    pub prompt_repeated: usize,
    /// Rows left out because no response is better than another.
    pub tied_rows: usize,
    /// Pairs left out because their responses are equally good, those of `tied_rows` included.
    pub tied_pairs: usize,
    /// Responses of lists left out because they have no score or rank.
    pub unrated: usize,
    /// Rows left out because they cannot be read, by reason.
    pub skipped: Vec<Skipped>,
    /// Options that the rows of the file use.
    #[serde(skip)]
    pub(super) used: Used,
    /// Text columns that hold a list of messages as JSON or Python text.
    pub messages_as_text: BTreeMap<String, Occurrences>,
}

/// Rows that were left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Reason.
    pub why: String,
    /// Number of rows.
    pub rows: usize,
    /// Line of the first such row.
    pub first_line: usize,
}

impl FileReport {
    /// Rows of all formats.
    pub fn rows(&self) -> usize {
        self.formats.iter().map(|(_, rows)| rows).sum()
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        for (i, (format, rows)) in self.formats.iter().enumerate() {
            write!(f, "{} {rows} {format}", if i == 0 { "" } else { "," })?;
        }
        if !self.ignored_keys.is_empty() {
            let keys: Vec<String> = self.ignored_keys.iter().take(KEYS).map(|key| shown(key)).collect();
            write!(f, "; keys not used: {}", keys.join(", "))?;
            if self.ignored_keys.len() > KEYS {
                write!(f, " and {} more", self.ignored_keys.len() - KEYS)?;
            }
        }
        if self.tied_pairs > 0 {
            let (pairs, rows) = (self.tied_pairs, self.tied_rows);
            let (ties, are) = (counted(pairs, "tie"), agreeing(pairs, "is", "are"));
            let (left, out) = (counted(rows, "row"), agreeing(rows, "is", "are"));
            write!(f, "; {ties} {are} not compared, and {left} with no other pair {out} left out")?;
        }
        if self.unrated > 0 {
            let (count, are) = (counted(self.unrated, "response"), agreeing(self.unrated, "is", "are"));
            write!(f, "; {count} without a number {are} left out")?;
        }
        let skipped: usize = self.skipped.iter().map(|skipped| skipped.rows).sum();
        if skipped > 0 {
            write!(f, "; {} {} left out", counted(skipped, "bad row"), agreeing(skipped, "is", "are"))?;
        }
        if self.prompt_repeated > 0 {
            let rows = counted(self.prompt_repeated, "row");
            write!(f, "; in {rows} chosen and rejected both start with the whole prompt, which may be duplicated")?;
        }
        Ok(())
    }
}
