//! Cache file of frozen-reference log-probs: a header and a sorted list of (sequence key,
//! log-prob).
//!
//! | bytes | content, little-endian |
//! |---|---|
//! | 8 | `maplref\n` |
//! | 4 | format, 1 |
//! | 4 | bytes of a value: 4 (f32) or 8 (f64) |
//! | 32 | fingerprint of everything the values depend on except the sequence; see [`super::key`] |
//! | 8 | number of entries |
//! | 32 | BLAKE3 of the entries |
//! | 16 + value, each | key, value; keys ascend |
//!
//! A file is never modified, only replaced by a complete one, so readers need no lock. Writers lock the
//! folder if its file system has locks. Without locks, concurrent writers may lose each other's entries, but
//! a wrong entry is never written. A file that deviates from this format, even by a single bit, is not used,
//! and the reason is reported.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::key::Fingerprint;
use crate::Result;
use crate::files::{input, write_atomic};

const MAGIC: [u8; 8] = *b"maplref\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 88;
const KEY_BYTES: usize = 16;

/// Log-probs by sequence key.
pub type Entries = BTreeMap<u128, f64>;

/// Outcome of reading a cache file.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// No file.
    Nothing,
    /// Entries of a file.
    Entries(Entries),
    /// The file cannot be used; holds the reason.
    Refused(String),
}

/// Path and fingerprint of a cache file.
#[derive(Clone, Debug)]
pub struct CacheFile {
    path: PathBuf,
    fingerprint: Fingerprint,
    value_bytes: usize,
}

impl CacheFile {
    /// Cache file of `fingerprint` in folder `dir`; `value_bytes` is 4 or 8.
    pub fn new(dir: &Path, fingerprint: Fingerprint, value_bytes: usize) -> Self {
        let name = blake3::Hash::from_bytes(fingerprint).to_hex();
        Self { path: dir.join(format!("{}.logps", &name[..32])), fingerprint, value_bytes }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and verifies the whole file.
    pub fn read(&self) -> Found {
        if !input::is_named(&self.path) {
            return Found::Nothing;
        }
        self.read_entries().map_or_else(Found::Refused, Found::Entries)
    }

    fn read_entries(&self) -> Result<Entries, String> {
        let unreadable = |e: std::io::Error| format!("cannot be read ({e})");
        let mut file = input::open(&self.path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        if size < HEADER_BYTES as u64 {
            return Err(format!("is truncated: it has {size} bytes, less than its header of {HEADER_BYTES}"));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(unreadable)?;
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| header[at + i]));
        if header[..8] != MAGIC {
            return Err("is damaged or not a reference cache: its first bytes are wrong".into());
        }
        if u32_at(8) != FORMAT {
            return Err(format!("has format {}; this version of mapl reads format {FORMAT}", u32_at(8)));
        }
        if header[16..48] != self.fingerprint || u32_at(12) as usize != self.value_bytes {
            let why = "is stale: it belongs to different weights, or to a different score, device or version of mapl";
            return Err(why.into());
        }
        let count = u64::from_le_bytes(std::array::from_fn(|i| header[48 + i]));
        let entry = KEY_BYTES + self.value_bytes;
        let whole = count.checked_mul(entry as u64).and_then(|n| n.checked_add(HEADER_BYTES as u64));
        match whole {
            Some(whole) if whole == size => {}
            Some(whole) if whole > size => return Err(format!("is truncated: it has {size} of {whole} bytes")),
            _ => return Err(format!("is damaged: its size of {size} bytes does not match its {count} entries")),
        }
        let mut payload = Vec::new();
        file.read_to_end(&mut payload).map_err(unreadable)?;
        if blake3::hash(&payload).as_bytes() != &header[56..] {
            return Err("is damaged: its checksum does not match".into());
        }
        let value = |bytes: &[u8]| match self.value_bytes {
            4 => f64::from(f32::from_le_bytes(std::array::from_fn(|i| bytes[i]))),
            _ => f64::from_le_bytes(std::array::from_fn(|i| bytes[i])),
        };
        let key = |bytes: &[u8]| u128::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        Ok(payload.chunks_exact(entry).map(|bytes| (key(bytes), value(&bytes[KEY_BYTES..]))).collect())
    }

    fn encode(&self, entries: &Entries) -> Vec<u8> {
        let mut payload = Vec::with_capacity(entries.len() * (KEY_BYTES + self.value_bytes));
        for (key, &value) in entries {
            payload.extend(key.to_le_bytes());
            match self.value_bytes {
                4 => payload.extend((value as f32).to_le_bytes()),
                _ => payload.extend(value.to_le_bytes()),
            }
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend((self.value_bytes as u32).to_le_bytes());
        bytes.extend(self.fingerprint);
        bytes.extend((entries.len() as u64).to_le_bytes());
        bytes.extend(blake3::hash(&payload).as_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Adds `entries` to the file and keeps entries written by other runs. Replaces an unusable
    /// file.
    pub fn merge(&self, entries: &Entries) -> Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // The lock is held until the file is written, so that no writer loses the entries of another.
        let lock = File::open(dir).and_then(|folder| folder.lock().map(|()| folder));
        let mut all = match self.read() {
            Found::Entries(all) => all,
            Found::Nothing | Found::Refused(_) => Entries::new(),
        };
        all.extend(entries);
        let written = write_atomic(&self.path, &self.encode(&all));
        drop(lock);
        written
    }
}
