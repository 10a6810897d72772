//! The end of a growing file of JSON lines: what has been added since the last look. A line that is still being written waits; a
//! file that has become shorter or has been replaced is read anew.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result};

/// A file that is read as it grows.
pub struct Tail {
    path: PathBuf,
    /// Bytes read so far.
    at: u64,
    /// The begin of the file, by which another one in its place is known.
    head: Vec<u8>,
    /// Bytes after the last line break.
    rest: Vec<u8>,
    /// Lines that were no JSON objects.
    pub damaged: usize,
}

/// What a look has found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// The file has begun anew: what was read before is void.
    pub anew: bool,
    pub rows: Vec<Map<String, Value>>,
}

/// Bytes of the begin that are compared.
const HEAD: usize = 256;

impl Tail {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), at: 0, head: Vec::new(), rest: Vec::new(), damaged: 0 }
    }

    /// What is new. A file that is not there yet has nothing new.
    pub fn look(&mut self) -> Result<News> {
        let path = self.path.clone();
        let failed = |source| Error::Io { action: "read", path: path.clone(), source };
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let anew = self.at > 0;
                self.forget();
                return Ok(News { anew, rows: Vec::new() });
            }
            Err(e) => return Err(failed(e)),
        };
        let mut begin = vec![0; self.head.len()];
        let same = file.read_exact(&mut begin).is_ok() && begin == self.head;
        let len = file.metadata().map_err(failed)?.len();
        let anew = self.at > 0 && (!same || len < self.at);
        if anew {
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
        Ok(News { anew, rows })
    }

    fn forget(&mut self) {
        (self.at, self.damaged) = (0, 0);
        self.head.clear();
        self.rest.clear();
    }
}
