//! Tables of text with a header (CSV, TSV and the like) as rows. Every cell is text, except:
//!
//! - an empty cell is an absent key
//! - `margin` is a number
//! - JSON lists and objects are read as such where a reader expects them: messages, tools, lists of
//!   responses
//!
//! Refused, with the line: rows with more or fewer cells than the header, bytes that are not UTF-8,
//! rows longer than [`MAX_LINE`], and a header that names a column twice.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::overlooked::spells_messages;
use super::rows::{MAX_LINE, RowObject, RowResult, TOO_LONG, grown, read_error};
use crate::memory::Growth;
use crate::{Error, Result};

/// Columns that hold JSON.
const JSON: [&str; 14] = [
    "tools",
    "chat_template_kwargs",
    "history",
    "prompts",
    "responses",
    "comparisons",
    "instructions",
    "completions",
    "answers",
    "candidates",
    "scores",
    "ranks",
    "ratings",
    "rewards",
];

/// Calls `f` for every row after the header. `first` is the line of the header.
pub(super) fn table_rows(
    path: &Path,
    reader: impl BufRead,
    first: usize,
    separator: u8,
    f: &mut dyn FnMut(usize, RowResult) -> Result<()>,
) -> Result<()> {
    let taken = Rc::new(Cell::new(0));
    let reader = Limited { inner: reader, taken: taken.clone() };
    let mut table = csv::ReaderBuilder::new().delimiter(separator).from_reader(reader);
    let failed = |line: usize, error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(_) if taken.get() > MAX_LINE => Error::data(path, line, None, TOO_LONG),
        csv::ErrorKind::Io(error) => read_error(path, line, error),
        _ => Error::data(path, line, None, "is not a table"),
    };
    let header = table.byte_headers().cloned().map_err(|e| failed(first, e))?;
    let mut columns = Vec::new();
    for name in &header {
        let name = std::str::from_utf8(name)
            .map_err(|_| Error::data(path, first, None, "the header is not valid UTF-8; save the file as UTF-8"))?;
        if columns.contains(&name) {
            return Err(Error::data(path, first, None, format!("the header names the column \"{name}\" twice")));
        }
        columns.push(name);
    }
    let growth = Growth::default();
    let mut record = csv::ByteRecord::new();
    loop {
        taken.set(0);
        let line = usize::try_from(table.position().line()).unwrap_or(usize::MAX) + first - 1;
        match table.read_byte_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(error) => match error.kind() {
                csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
                    let line = pos.as_ref().map_or(line, |pos| pos.line() as usize + first - 1);
                    let why = format!(
                        "the row has {len} cells and the header {expected_len}; quote cells with separators or line breaks"
                    );
                    f(line, Err(Error::data(path, line, None, why)))?;
                    continue;
                }
                _ => return Err(failed(line, error)),
            },
        }
        let line = record.position().map_or(line, |pos| pos.line() as usize + first - 1);
        let row = row(&columns, &record).map_err(|why| Error::data(path, line, None, why));
        f(line, row.map(|object| RowObject { object, non_finite: Vec::new() }))?;
        growth.add(record.as_slice().len() as u64, || grown(path, line))?;
    }
}

fn row(columns: &[&str], record: &csv::ByteRecord) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for (name, cell) in columns.iter().zip(record) {
        let text = std::str::from_utf8(cell)
            .map_err(|_| format!("the cell of \"{name}\" is not valid UTF-8; save the file as UTF-8"))?;
        object.insert((*name).to_owned(), value(name, text));
    }
    Ok(object)
}

/// Value of a cell.
fn value(column: &str, text: &str) -> Value {
    let parsed = || serde_json::from_str::<Value>(text).ok();
    let json = text.starts_with(['[', '{']) && (JSON.contains(&column) || spells_messages(text));
    match column {
        _ if text.is_empty() => Value::Null,
        "margin" => parsed().filter(Value::is_number).unwrap_or_else(|| text.into()),
        _ if json => parsed().unwrap_or_else(|| text.into()),
        _ => text.into(),
    }
}

/// Counts the bytes since the last row and limits them: a quote that never ends would read the whole
/// file into one cell.
struct Limited<R> {
    inner: R,
    taken: Rc<Cell<usize>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + count);
        if self.taken.get() > MAX_LINE {
            return Err(io::Error::other(TOO_LONG));
        }
        Ok(count)
    }
}
