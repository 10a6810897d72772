//! Reader of a growing file of JSON lines. It returns the lines added since the last call. An
//! incomplete last line waits for the next call. A file that was truncated or replaced is read from
//! the start again.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::files::input;
use crate::{Error, Result};

/// A file that is read as it grows.
pub struct Tail {
    path: PathBuf,
    /// Bytes read so far.
    at: u64,
    /// First bytes of the file, to recognise a replacement.
    head: Vec<u8>,
    /// Bytes after the last line break.
    rest: Vec<u8>,
    /// Number of lines that were not JSON objects.
    pub damaged: usize,
}

/// Result of a read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewRows {
    /// Whether the file was replaced or truncated, which invalidates all earlier rows.
    pub restarted: bool,
    /// The rows.
    pub rows: Vec<Map<String, Value>>,
}

/// Number of first bytes that are compared.
const HEAD: usize = 256;

impl Tail {
    /// A reader that starts at the beginning of a file.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), at: 0, head: Vec::new(), rest: Vec::new(), damaged: 0 }
    }

    /// Reads the new lines. A file that does not exist yet has none.
    pub fn poll(&mut self) -> Result<NewRows> {
        let path = self.path.clone();
        let failed = |source| Error::Io { action: "read", path: path.clone(), source };
        let mut file = match input::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let restarted = self.at > 0;
                self.forget();
                return Ok(NewRows { restarted, rows: Vec::new() });
            }
            Err(e) => return Err(input::data_error(&path)(e)),
        };
        let mut begin = vec![0; self.head.len()];
        let same = file.read_exact(&mut begin).is_ok() && begin == self.head;
        let len = file.metadata().map_err(failed)?.len();
        let restarted = self.at > 0 && (!same || len < self.at);
        if restarted {
            self.forget();
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.at)).and_then(|_| file.read_to_end(&mut bytes)).map_err(failed)?;
        self.at += bytes.len() as u64;
        self.rest.extend_from_slice(&bytes);
        if self.head.len() < HEAD {
            let wanted = HEAD - self.head.len();
            self.head.extend(bytes.iter().take(wanted));
        }
        let mut rows = Vec::new();
        let complete = self.rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        for line in self.rest[..complete].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(Value::Object(row)) => rows.push(row),
                _ => self.damaged += 1,
            }
        }
        self.rest.drain(..complete);
        Ok(NewRows { restarted, rows })
    }

    fn forget(&mut self) {
        (self.at, self.damaged) = (0, 0);
        self.head.clear();
        self.rest.clear();
    }
}
