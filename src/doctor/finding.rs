//! What the checks say: findings with a level, the rows they are about, the reason they matter and what to try.

use std::fmt;

use serde::Serialize;

use super::corpus::Corpus;
use crate::Error;

/// Places named in one finding.
pub const PLACES: usize = 5;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Training on the data as they are stops or means nothing (exit code 3).
    Error,
    /// To be known before training.
    Warning,
}

impl Level {
    /// [`Level::Error`] if the condition holds.
    pub fn error_if(condition: bool) -> Self {
        if condition { Level::Error } else { Level::Warning }
    }

    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
        }
    }
}

/// A row, and what about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: String,
    /// Counts from 1; 0 means the whole file.
    pub line: usize,
    pub id: Option<String>,
    pub note: Option<String>,
}

impl Place {
    /// The place of a row of a corpus.
    pub fn row(corpus: &Corpus, row: usize) -> Self {
        let source = &corpus.rows[row];
        Self {
            file: source.file.display().to_string(),
            line: source.line,
            id: Some(source.group.id.clone()),
            note: None,
        }
    }

    pub fn with(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    /// `file:line`.
    pub fn short(&self) -> String {
        if self.line == 0 { self.file.clone() } else { format!("{}:{}", self.file, self.line) }
    }

    /// The place and cause of a data error.
    pub fn of_error(error: &Error) -> Self {
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
        f.write_str(&plain(&self.short()))?;
        if let Some(id) = &self.id {
            write!(f, " (id {})", plain(id))?;
        }
        if let Some(note) = &self.note {
            write!(f, ": {}", plain(note))?;
        }
        Ok(())
    }
}

/// One result of a check that a reader should act on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Stable name of what was found, such as `label-conflicts`.
    pub check: &'static str,
    /// Rows, comparisons or texts concerned, and of how many.
    pub count: usize,
    pub of: usize,
    pub what: String,
    pub why: String,
    #[serde(rename = "try")]
    pub advice: String,
    /// The first of the rows concerned.
    #[serde(rename = "where")]
    pub places: Vec<Place>,
}

impl Finding {
    /// A finding without places.
    pub fn new(level: Level, check: &'static str, (count, of): (usize, usize), what: String) -> Self {
        Self { level, check, count, of, what, why: String::new(), advice: String::new(), places: Vec::new() }
    }

    pub fn why(self, why: &str) -> Self {
        Self { why: why.into(), ..self }
    }

    pub fn advice(self, advice: &str) -> Self {
        Self { advice: advice.into(), ..self }
    }

    /// Names the first few places.
    pub fn places(self, places: impl IntoIterator<Item = Place>) -> Self {
        Self { places: places.into_iter().take(PLACES).collect(), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}: {}", self.level.name(), self.check, plain(&self.what))?;
        for place in &self.places {
            writeln!(f, "    {place}")?;
        }
        writeln!(f, "  why: {}", self.why)?;
        writeln!(f, "  try: {}", self.advice)
    }
}

/// Text on one line without the control characters that steer a terminal.
pub fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// `12.3 %`.
pub fn percent(part: usize, whole: usize) -> String {
    share_percent(if whole == 0 { 0.0 } else { part as f64 / whole as f64 })
}

/// `12.3 %` from 0.123.
pub fn share_percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
