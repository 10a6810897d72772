//! Reads a file as a stream of JSON objects with line numbers: JSONL (one object per line) or one JSON array
//! of objects; other JSON (`document`), tables of text (`table`) and Parquet (`parquet_rows`) become such
//! objects. The first bytes of a file decide its kind; only tables are recognised by their names too.
//! `container` unpacks compressed files.
//!
//! Each of these is an error with a line number: lines longer than [`MAX_LINE`] bytes, invalid UTF-8, NUL
//! bytes, malformed JSON, nesting deeper than serde_json allows (128), values that are not objects, and
//! compressed streams that are damaged or cut off. Unsupported kinds of files (`kinds`) are errors that name
//! the kind. NaN and similar values are replaced (`odd_values`), and the caller rejects them under keys that
//! it uses.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::rc::Rc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::container::{Headed, Opened, open};
use super::document;
use super::fields::shorten;
use super::keys::{distinct_keys, keep_id_text, on_one_line};
use super::kinds::{foreign_text, table_separator};
use super::odd_values::{Odd, Rewriter, What, long_integers, rewrite};
use super::parquet_rows::parquet_rows;
use super::table::table_rows;
use super::type_name;
use crate::files::lfs_pointer;
use crate::memory::Growth;
use crate::{Error, Result};

/// Byte-order mark of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Longest accepted line of a JSONL file and longest accepted element of an array, in bytes.
pub(super) const MAX_LINE: usize = 64 << 20;

/// Longest header of a table that is recognised, in bytes.
const MAX_HEADER: usize = 1 << 20;

/// Message for a row above [`MAX_LINE`].
pub(super) const TOO_LONG: &str =
    "the row is longer than 64 MiB; expected one JSON object per line, or an array of objects";

/// A row, or an error that concerns only this row.
pub(crate) type RowResult = Result<RowObject>;

/// Object of a row, and the keys with values that it cannot represent ([`super::odd_values`]).
pub(crate) struct RowObject {
    pub object: Map<String, Value>,
    pub odd: Vec<Odd>,
    /// Text of the row in the file, if [`Columns::keep_text`] is set and the file holds such a text.
    pub text: Option<String>,
}

impl RowObject {
    /// Creates a row without its text in the file.
    pub fn new(object: Map<String, Value>, odd: Vec<Odd>) -> Self {
        Self { object, odd, text: None }
    }

    /// The row as a JSON object on one line, without its closing brace. Numbers and texts are written as
    /// in the file.
    ///
    /// # Errors
    /// A message with the key and the kind of a value that cannot be written again.
    pub fn open_text(&self) -> Result<String, String> {
        let is_kept = |odd: &&Odd| self.text.is_some() && odd.what.is_json();
        if let Some(Odd { key, what }) = self.odd.iter().find(|odd| !is_kept(odd)) {
            return Err(format!("\"{}\" could not be written again: it holds {}", shorten(key), what.fault()));
        }
        // The keys are strings and the values are JSON, so the conversion cannot fail.
        let written = || serde_json::to_string(&self.object).unwrap_or_default();
        let text = self.text.as_deref().map_or_else(written, on_one_line);
        Ok(text.strip_suffix('}').unwrap_or(&text).to_owned())
    }
}

/// Columns that are read in a special way.
#[derive(Clone, Copy, Default)]
pub(crate) struct Columns<'a> {
    /// Columns of the id.
    pub ids: &'a [&'a str],
    /// Keys with the column of each ([`super::ColumnMap::pairs`]).
    pub mapped: &'a [(String, String)],
    /// Whether rows keep their text.
    pub keep_text: bool,
}

/// Calls `f` with the line number (from 1) and the object of every row, in order. Blank lines are skipped. A
/// row that is not an object reaches `f` as an error, and `f` decides whether reading continues. Reading ends
/// at damage that hides the start of the next row: a cut stream, a row that never ends, broken array syntax.
/// Numbers in the id columns that are not whole or do not fit 64 bits become strings with their text.
pub(crate) fn for_each_row(
    path: &Path,
    columns: Columns<'_>,
    mut f: impl FnMut(usize, RowResult) -> Result<()>,
) -> Result<()> {
    match open(path)? {
        Opened::Parquet(file) => parquet_rows(path, file, &mut f),
        Opened::Text(reader) => text_rows(path, reader, columns, &mut f),
    }
}

fn text_rows(
    path: &Path,
    mut reader: Headed,
    columns: Columns<'_>,
    f: &mut dyn FnMut(usize, RowResult) -> Result<()>,
) -> Result<()> {
    let mut line = 1;
    let mut skipped = Vec::new();
    let first = skip_blank(&mut reader, &mut line, &mut skipped).map_err(|e| read_error(path, line, e))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match first {
        None => Ok(()),
        Some(b'[') => array_rows(path, reader, line, columns, f),
        Some(b'{') => line_rows(path, reader, line, columns, f),
        Some(_) => {
            let start = reader.line(MAX_HEADER).map_err(|e| read_error(path, line, e))?;
            if let Some(what) = foreign_text(start) {
                return Err(Error::data(path, line, None, what));
            }
            if excel_line(start) {
                let what = "is a line for Excel that names the separator, not the header; remove the line";
                return Err(Error::data(path, line, None, what));
            }
            // The first cell of a header may be empty, as pandas writes it for the index, so a leading tab is
            // put back.
            if skipped.contains(&b'\t') {
                reader.put_back(&skipped);
            }
            match table_separator(reader.line(MAX_HEADER).unwrap_or_default(), &name) {
                Some(separator) => table_rows((path, columns.mapped), reader, line, separator, f),
                None => line_rows(path, reader, line, columns, f),
            }
        }
    }
}

/// Skips a byte-order mark and white space; returns the next byte without consuming it. `skipped` receives
/// the white space before this byte in its line, at most `MAX_HEADER` bytes of it.
fn skip_blank(reader: &mut Headed, line: &mut usize, skipped: &mut Vec<u8>) -> io::Result<Option<u8>> {
    if reader.head(BOM.len())?.starts_with(BOM) {
        reader.consume(BOM.len());
    }
    loop {
        let Some(&byte) = reader.fill_buf()?.first() else { return Ok(None) };
        match byte {
            b'\n' => {
                *line += 1;
                skipped.clear();
            }
            b' ' | b'\t' | b'\r' if skipped.len() < MAX_HEADER => skipped.push(byte),
            b' ' | b'\t' | b'\r' => {}
            other => return Ok(Some(other)),
        }
        reader.consume(1);
    }
}

/// True for a line such as `sep=;`.
fn excel_line(start: &[u8]) -> bool {
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    matches!(line, [s, e, p, b'=', _] if [s, e, p].iter().map(|c| c.to_ascii_lowercase()).eq(*b"sep"))
}

/// Classifies a failed read: damage of the compressed stream is a data error, anything else an I/O
/// error.
pub(super) fn read_error(path: &Path, line: usize, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            Error::data(path, line, None, format!("the compressed stream is damaged or cut off here ({error})"))
        }
        _ => Error::io("read", path)(error),
    }
}

fn line_rows(
    path: &Path,
    mut reader: Headed,
    line: usize,
    columns: Columns<'_>,
    f: &mut dyn FnMut(usize, RowResult) -> Result<()>,
) -> Result<()> {
    line_rows_from(path, &mut reader, line, true, columns, f)
}

fn line_rows_from(
    path: &Path,
    reader: &mut dyn BufRead,
    mut line: usize,
    mut first: bool,
    columns: Columns<'_>,
    f: &mut dyn FnMut(usize, RowResult) -> Result<()>,
) -> Result<()> {
    let (mut buffer, growth) = (Vec::new(), Growth::default());
    loop {
        buffer.clear();
        let read = (&mut *reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut buffer);
        if read.map_err(|e| read_error(path, line, e))? == 0 {
            return Ok(());
        }
        let fail = |why: String| Error::data(path, line, None, why);
        if buffer.len() > MAX_LINE {
            return Err(fail(TOO_LONG.into()));
        }
        if !buffer.trim_ascii().is_empty() {
            let row = parse_line(&buffer, columns);
            // Only the first row can start a document that is not JSON lines.
            if std::mem::take(&mut first) && document::may_start(&buffer, row.as_ref().ok()) {
                (&mut *reader)
                    .take(document::MAX_BYTES)
                    .read_to_end(&mut buffer)
                    .map_err(|e| read_error(path, line, e))?;
                if let Some(found) = document::parse(&buffer) {
                    return found.rows(path, line, columns, f);
                }
                // The text is not such a document, so it is read as JSON lines.
                let rest = buffer.iter().position(|&byte| byte == b'\n').map_or(&[][..], |end| &buffer[end + 1..]);
                f(line, row.map_err(fail))?;
                let mut rest = rest.chain(reader);
                return line_rows_from(path, &mut rest, line + 1, false, columns, f);
            }
            f(line, row.map_err(fail))?;
        }
        growth.add(buffer.len() as u64, || grown(path, line))?;
        line += 1;
    }
}

/// Returns the name of the data that grows while a file is read, and advice, for the error about low memory.
pub(super) fn grown(path: &Path, line: usize) -> [String; 2] {
    let advice = "all rows are held in memory: split the file, or use a machine with more memory";
    [format!("rows, at {}:{line}", path.display()), advice.into()]
}

fn parse_line(bytes: &[u8], columns: Columns<'_>) -> Result<RowObject, String> {
    if bytes.starts_with(BOM) {
        return Err(
            "the line starts with a byte-order mark, as if files had been joined here; remove its first 3 bytes \
                    (`sed -i 's/^\\xEF\\xBB\\xBF//'`)"
                .into(),
        );
    }
    if let Some(at) = bytes.iter().position(|&b| b == 0) {
        return Err(format!("byte {} of the line is NUL; the file is damaged or not text", at + 1));
    }
    if let Some(why) = lfs_pointer(bytes) {
        return Err(why.into());
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| format!("byte {} of the line is not valid UTF-8; save the file as UTF-8", e.valid_up_to() + 1))?;
    let (value, odd): (Value, Vec<Odd>) = match serde_json::from_str(text) {
        Ok(value) => (value, long_integers(bytes)),
        Err(e) => {
            let (text, odd) = rewrite(bytes).ok_or_else(|| json_message(&e))?;
            (serde_json::from_slice(&text).map_err(|e| json_message(&e))?, odd)
        }
    };
    let mut object = into_object(value)?;
    let inner = bytes.iter().position(|&b| b == b'{').map_or(bytes, |start| &bytes[start + 1..]);
    distinct_keys(&object, inner)?;
    keep_id_text(&mut object, inner, columns.ids);
    Ok(RowObject { object, odd, text: columns.keep_text.then(|| text.trim().to_owned()) })
}

fn into_object(value: Value) -> Result<Map<String, Value>, String> {
    match value {
        Value::Object(object) => Ok(object),
        other => Err(format!("the row is {}; expected a JSON object", type_name(&other))),
    }
}

/// Returns serde_json's message with only the column of the position; the caller adds the line.
pub(super) fn json_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let why = message.rsplit_once(" at line ").map_or(message.as_str(), |(why, _)| why);
    let advice = match error.classify() {
        serde_json::error::Category::Eof => "; the row is cut off, or a row spans several lines",
        _ if why.contains("recursion limit") => "; the row is nested too deep",
        _ => "",
    };
    format!("is not valid JSON: {why} (column {}){advice}", error.column())
}

pub(super) fn array_rows<R: BufRead>(
    path: &Path,
    reader: R,
    line: usize,
    columns: Columns<'_>,
    f: &mut dyn FnMut(usize, RowResult) -> Result<()>,
) -> Result<()> {
    let position = Rc::new(ArrayPosition {
        line: Cell::new(line),
        row_bytes: Cell::new(0),
        text: RefCell::default(),
        rewriter: RefCell::new(Rewriter::new(2)),
    });
    let reader = CountingReader { inner: reader, position: position.clone(), ready: Vec::new(), given: 0 };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let mut failure = None;
    let outcome = json.deserialize_seq(Elements { position: &position, path, columns, f, failure: &mut failure });
    let outcome = outcome.and_then(|()| json.end());
    match (failure, outcome) {
        (Some(failure), _) => Err(failure),
        (None, Ok(())) => Ok(()),
        (None, Err(_)) if position.row_bytes.get() > MAX_LINE => {
            Err(Error::data(path, position.line.get(), None, TOO_LONG))
        }
        (None, Err(e)) if e.is_io() => Err(read_error(path, position.line.get(), e.into())),
        (None, Err(e)) => Err(Error::data(path, (line + e.line()).saturating_sub(1), None, json_message(&e))),
    }
}

/// Position of the array reader.
struct ArrayPosition {
    line: Cell<usize>,
    /// Number of bytes since the start of the current element; `text` holds these bytes. Both lack the first
    /// byte, which serde_json has read ahead.
    row_bytes: Cell<usize>,
    text: RefCell<Vec<u8>>,
    /// Replaces odd values ([`super::odd_values`]).
    rewriter: RefCell<Rewriter>,
}

/// Counts lines and limits the bytes of one element. serde_json reads one byte at a time and looks
/// ahead by one byte, so the count is exact at the start of an element.
struct CountingReader<R> {
    inner: R,
    position: Rc<ArrayPosition>,
    /// Rewritten bytes; `given` is the number of them that have been returned.
    ready: Vec<u8>,
    given: usize,
}

impl<R: Read> CountingReader<R> {
    /// Returns at least one byte of rewritten text, or none at the end of the file.
    fn rewritten(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
            let mut byte = [0];
            let mut rewriter = self.position.rewriter.borrow_mut();
            if self.inner.read(&mut byte)? == 0 {
                rewriter.finish(&mut self.ready);
                if self.ready.is_empty() {
                    return Ok(0);
                }
            } else {
                rewriter.push(byte[0], &mut self.ready);
            }
        }
        let count = buffer.len().min(self.ready.len() - self.given);
        buffer[..count].copy_from_slice(&self.ready[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.rewritten(buffer)?;
        let newlines = buffer[..read].iter().filter(|&&b| b == b'\n').count();
        self.position.line.set(self.position.line.get() + newlines);
        self.position.row_bytes.set(self.position.row_bytes.get() + read);
        if self.position.row_bytes.get() > MAX_LINE {
            return Err(io::Error::other(TOO_LONG));
        }
        self.position.text.borrow_mut().extend(&buffer[..read]);
        Ok(read)
    }
}

struct Elements<'a> {
    position: &'a ArrayPosition,
    path: &'a Path,
    columns: Columns<'a>,
    f: &'a mut dyn FnMut(usize, RowResult) -> Result<()>,
    failure: &'a mut Option<Error>,
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let growth = Growth::default();
        while let Some((line, value)) = seq.next_element_seed(Element(self.position))? {
            let odd = self.position.rewriter.borrow_mut().take();
            let row = into_object(value).and_then(|mut object| {
                let inner = self.position.text.borrow();
                distinct_keys(&object, &inner)?;
                keep_id_text(&mut object, &inner, self.columns.ids);
                // Rewriting changes every odd value but a long integer, so a row with other odd values keeps no text.
                let whole = self.columns.keep_text && odd.iter().all(|odd| odd.what == What::LongInteger);
                let text = whole.then(|| format!("{{{}", String::from_utf8_lossy(&inner)));
                Ok(RowObject { object, odd, text })
            });
            let row = row.map_err(|why| Error::data(self.path, line, None, why));
            let taken = (self.f)(line, row);
            let bytes = self.position.row_bytes.get() as u64;
            if let Err(failure) = taken.and_then(|()| growth.add(bytes, || grown(self.path, line))) {
                *self.failure = Some(failure);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Reads one element of the array, with the line where it starts.
struct Element<'a>(&'a ArrayPosition);

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = (usize, Value);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.row_bytes.set(0);
        self.0.text.borrow_mut().clear();
        let line = self.0.line.get();
        Ok((line, serde::Deserialize::deserialize(deserializer)?))
    }
}
