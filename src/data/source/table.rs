//! Tables of text with a header (CSV, TSV and the like) as rows. Every cell is text, except:
//!
//! - an empty cell is an absent key
//! - `margin` is a number
//! - JSON lists and objects are read as such where a reader expects them: messages, tools, lists of
//!   responses; `chosen` and `rejected` if both hold a list of strings
//!
//! Each of these is an error with the line: rows with more or fewer cells than the header, bytes that are not
//! UTF-8, rows longer than [`MAX_LINE`], and a header that names a column twice. The csv crate accepts any
//! quotes; [`Quotes`] rejects text after a closing quote, and a quote that is not closed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::overlooked::spells_messages;
use super::rows::{MAX_LINE, RowObject, RowResult, TOO_LONG, grown, read_error};
use crate::memory::Growth;
use crate::{Error, Result};

/// Columns that hold JSON. Media columns are included, because an empty list of media is harmless.
const JSON: [&str; 31] = [
    "tools",
    "instruction_id_list",
    "kwargs",
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
    "outputs",
    "generations",
    "ranked_responses",
    "all_responses",
    "overall_scores",
    "rank",
    "ranking",
    "image",
    "images",
    "pixel_values",
    "video",
    "videos",
    "audio",
    "audios",
    "sound",
];

/// Columns with lists of numbers. Next to such a list, `output` is a list of responses; otherwise it is the
/// text of one response.
const NUMBERS: [&str; 7] = ["ranks", "ranking", "rank", "scores", "ratings", "rewards", "overall_scores"];

/// Calls `f` for every row after the header. `first` is the line of the header. A column that `mapped`
/// assigns to a key is read like that key.
pub(super) fn table_rows(
    (path, mapped): (&Path, &[(String, String)]),
    reader: impl BufRead,
    first: usize,
    separator: u8,
    f: &mut dyn FnMut(usize, RowResult) -> Result<()>,
) -> Result<()> {
    let taken = Rc::new(Cell::new(0));
    let quotes = Rc::new(RefCell::new(Quotes::new(first, separator)));
    let reader = Limited { inner: reader, taken: taken.clone(), quotes: quotes.clone() };
    let mut table = csv::ReaderBuilder::new().delimiter(separator).from_reader(reader);
    let failed = |line: usize, error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(_) if taken.get() > MAX_LINE => {
            let (quoted, line) = quotes.borrow().open_at().map_or((false, line), |line| (true, line));
            Error::data(path, line, None, if quoted { OPEN } else { TOO_LONG })
        }
        csv::ErrorKind::Io(error) => read_error(path, line, error),
        _ => Error::data(path, line, None, "is not a table"),
    };
    let open = |end: u64| {
        let line = quotes.borrow().unclosed.filter(|&(byte, _)| byte < end).map(|(_, line)| line);
        line.map(|line| Error::data(path, line, None, OPEN))
    };
    let header = table.byte_headers().cloned().map_err(|e| failed(first, e))?;
    if let Some(error) = open(table.position().byte()) {
        return Err(error);
    }
    if let Some(fault) = quotes.borrow_mut().fault_before(table.position().byte()) {
        return Err(Error::data(path, fault.line, None, fault.why("a cell of the header", separator)));
    }
    let mut columns = Vec::new();
    for name in &header {
        let name = std::str::from_utf8(name)
            .map_err(|_| Error::data(path, first, None, "the header is not valid UTF-8; save the file as UTF-8"))?;
        if columns.contains(&name) {
            return Err(Error::data(path, first, None, format!("the header names the column \"{name}\" twice")));
        }
        columns.push(name);
    }
    let key = |name: &&str| mapped.iter().find(|(_, column)| column == name).map_or("", |(key, _)| key.as_str());
    let keys: Vec<&str> = columns.iter().map(|name| if key(name).is_empty() { name } else { key(name) }).collect();
    let growth = Growth::default();
    let mut record = csv::ByteRecord::new();
    loop {
        taken.set(0);
        let line = usize::try_from(table.position().line()).unwrap_or(usize::MAX) + first - 1;
        let next = table.read_byte_record(&mut record);
        // With an unclosed quote, the last record holds the rest of the file, including whole rows.
        if let Some(error) = open(table.position().byte()) {
            return Err(error);
        }
        if let Some(fault) = quotes.borrow_mut().fault_before(table.position().byte()) {
            let cell = columns.get(fault.column).map_or("a cell".into(), |name| format!("the cell of \"{name}\""));
            f(fault.line, Err(Error::data(path, fault.line, None, fault.why(&cell, separator))))?;
            continue;
        }
        match next {
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
        let row = row(&columns, &keys, &record).map_err(|why| Error::data(path, line, None, why));
        f(line, row.map(|object| RowObject::new(object, Vec::new())))?;
        growth.add(record.as_slice().len() as u64, || grown(path, line))?;
    }
}

/// Returns the object of a row; `keys` are the keys as which the columns are read.
fn row(columns: &[&str], keys: &[&str], record: &csv::ByteRecord) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for ((name, key), cell) in columns.iter().zip(keys).zip(record) {
        let text = std::str::from_utf8(cell)
            .map_err(|_| format!("the cell of \"{name}\" is not valid UTF-8; save the file as UTF-8"))?;
        object.insert((*name).to_owned(), value(key, text));
    }
    let column = |key: &str| keys.iter().position(|known| *known == key).map(|place| columns[place]);
    let lists = |object: &Map<String, Value>, wanted: &[&str]| -> Option<Vec<(String, Value)>> {
        let list = |key: &&str| Some((column(key)?.to_owned(), text_list(object.get(column(key)?)?.as_str()?)?));
        wanted.iter().map(list).collect()
    };
    let found = lists(&object, &["chosen", "rejected"]);
    object.extend(found.into_iter().flatten());
    let has_list = |key: &&str| column(key).and_then(|name| object.get(name)).is_some_and(Value::is_array);
    if NUMBERS.iter().any(has_list)
        && let Some(found) = lists(&object, &["output"])
    {
        object.extend(found);
    }
    Ok(object)
}

/// Parses a JSON list of strings that is not empty.
fn text_list(text: &str) -> Option<Value> {
    let list: Vec<String> = text.starts_with('[').then(|| serde_json::from_str(text).ok())??;
    (!list.is_empty()).then(|| list.into())
}

/// Returns the value of a cell that is read as the key `column`.
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

/// Message for a quote that is not closed.
const OPEN: &str = "a quoted cell begins here and its closing quote is missing; add it, or double a quote that is text \
                    (\"\") and quote the whole cell";

/// Counts the bytes since the last row and limits them, because an unclosed quote would read the whole file
/// into one cell.
struct Limited<R> {
    inner: R,
    taken: Rc<Cell<usize>>,
    quotes: Rc<RefCell<Quotes>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + count);
        let mut quotes = self.quotes.borrow_mut();
        buffer[..count].iter().for_each(|&byte| quotes.push(byte));
        if self.taken.get() > MAX_LINE {
            return Err(io::Error::other(TOO_LONG));
        }
        if count == 0 && !buffer.is_empty() {
            quotes.unclosed = quotes.open_at().map(|line| (quotes.began_byte, line));
        }
        Ok(count)
    }
}

/// Position in a cell, as the csv crate parses it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Plain,
    Quoted,
    /// After a quote in a quoted cell: the closing one, or the first of two.
    Closed,
}

/// A cell that goes on after its closing quote.
struct Fault {
    byte: u64,
    /// Line where the cell begins.
    line: usize,
    column: usize,
}

impl Fault {
    fn why(&self, cell: &str, separator: u8) -> String {
        let plain = match separator {
            b'\t' => ", or leave out the outer quotes and begin the cell with a different character",
            _ => "",
        };
        format!(
            "{cell} goes on after its closing quote; double the quotes inside (\"\") and quote the whole cell{plain}"
        )
    }
}

/// Tracks the quotes of a table. It reads ahead of the rows, and keeps faults until their row is read.
struct Quotes {
    separator: u8,
    place: Place,
    byte: u64,
    line: usize,
    column: usize,
    /// Byte and line where the current cell begins.
    began_byte: u64,
    began: usize,
    faults: VecDeque<Fault>,
    /// Byte and line of a quoted cell that the end of the file cuts off.
    unclosed: Option<(u64, usize)>,
}

impl Quotes {
    fn new(line: usize, separator: u8) -> Self {
        let (faults, place) = (VecDeque::new(), Place::Start);
        Self { separator, place, byte: 0, line, column: 0, began_byte: 0, began: line, faults, unclosed: None }
    }

    fn push(&mut self, byte: u8) {
        if self.place == Place::Start {
            (self.began_byte, self.began) = (self.byte, self.line);
        }
        self.place = match (self.place, byte) {
            (Place::Quoted, b'"') => Place::Closed,
            (Place::Quoted, _) | (Place::Closed, b'"') => Place::Quoted,
            (_, b'\n' | b'\r') => {
                self.column = 0;
                Place::Start
            }
            (_, byte) if byte == self.separator => {
                self.column += 1;
                Place::Start
            }
            (Place::Start, b'"') => Place::Quoted,
            (Place::Closed, _) => {
                self.faults.push_back(Fault { byte: self.byte, line: self.began, column: self.column });
                Place::Plain
            }
            _ => Place::Plain,
        };
        self.byte += 1;
        self.line += usize::from(byte == b'\n');
    }

    /// Line where the current cell begins, if it is quoted.
    fn open_at(&self) -> Option<usize> {
        (self.place == Place::Quoted).then_some(self.began)
    }

    /// Removes all faults before a byte, and returns the first of them.
    fn fault_before(&mut self, byte: u64) -> Option<Fault> {
        let count = self.faults.iter().take_while(|fault| fault.byte < byte).count();
        self.faults.drain(..count).next()
    }
}
