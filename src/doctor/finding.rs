//! Findings of the checks: level, affected rows, reason and advice.

use std::fmt;

use serde::Serialize;

use super::corpus::Corpus;
use crate::Error;

/// Maximum number of places named in one finding.
pub(super) const MAX_PLACES: usize = 5;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Training on this data fails or is meaningless (exit code 3).
    Error,
    /// A problem that a user should know before training.
    Warning,
}

impl Level {
    /// Returns [`Level::Error`] if the condition holds, otherwise [`Level::Warning`].
    pub(super) fn error_if(condition: bool) -> Self {
        if condition { Level::Error } else { Level::Warning }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
        }
    }
}

/// A row or a file with a note.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: String,
    /// Line number from 1; 0 for the whole file.
    pub line: usize,
    pub id: Option<String>,
    pub note: Option<String>,
}

impl Place {
    /// Returns the place of a row.
    pub(super) fn row(corpus: &Corpus, row: usize) -> Self {
        let source = &corpus.rows[row];
        Self {
            file: source.file.display().to_string(),
            line: source.line,
            id: Some(source.group.id.clone()),
            note: None,
        }
    }

    pub(super) fn with(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// Formats the place as `file:line`.
    pub(super) fn short(&self) -> String {
        if self.line == 0 { self.file.clone() } else { format!("{}:{}", self.file, self.line) }
    }

    /// Returns the place and cause of a data error.
    pub(super) fn of_error(error: &Error) -> Self {
        match error {
            Error::Data { file, line, id, why } => {
                Self { file: file.display().to_string(), line: *line, id: id.clone(), note: Some(why.clone()) }
            }
            other => Self { file: String::new(), line: 0, id: None, note: Some(other.to_string()) },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_control(&self.short()))?;
        if let Some(id) = &self.id {
            write!(f, " (id {})", escape_control(id))?;
        }
        if let Some(note) = &self.note {
            write!(f, ": {}", escape_control(note))?;
        }
        Ok(())
    }
}

/// A problem found by a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Stable name of the problem, such as `label-conflicts`.
    pub check: &'static str,
    /// Number of affected rows, comparisons or texts, and the total they are counted from.
    pub count: usize,
    pub of: usize,
    pub what: String,
    pub why: String,
    #[serde(rename = "try")]
    pub advice: String,
    /// First affected rows.
    #[serde(rename = "where")]
    pub places: Vec<Place>,
}

impl Finding {
    /// Creates a finding without places.
    pub(super) fn new(level: Level, check: &'static str, (count, of): (usize, usize), what: String) -> Self {
        Self { level, check, count, of, what, why: String::new(), advice: String::new(), places: Vec::new() }
    }

    pub(super) fn why(self, why: &str) -> Self {
        Self { why: why.into(), ..self }
    }

    pub(super) fn advice(self, advice: &str) -> Self {
        Self { advice: advice.into(), ..self }
    }

    /// Adds the first `MAX_PLACES` places.
    pub(super) fn places(self, places: impl IntoIterator<Item = Place>) -> Self {
        Self { places: places.into_iter().take(MAX_PLACES).collect(), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}: {}", self.level.name(), self.check, escape_control(&self.what))?;
        for place in &self.places {
            writeln!(f, "    {place}")?;
        }
        writeln!(f, "  why: {}", self.why)?;
        writeln!(f, "  try: {}", self.advice)
    }
}

/// Escapes control characters, so that the text stays on one line and cannot control the terminal.
pub(super) fn escape_control(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Formats `part / whole` as `12.3 %`.
pub(super) fn percent(part: usize, whole: usize) -> String {
    share_percent(if whole == 0 { 0.0 } else { part as f64 / whole as f64 })
}

/// Formats 0.123 as `12.3 %`.
pub(super) fn share_percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
