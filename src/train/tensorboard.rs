//! TensorBoard event files: `events.out.tfevents.<seconds>.<host>.<pid>.0` in the run folder, with
//! one record per event.
//!
//! A record is its length (u64), the masked CRC-32C of the length, the bytes of an `Event` message,
//! and their masked CRC-32C, all little-endian. Four protobuf messages are encoded by hand: `Event`
//! (wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7), `Summary` (value =
//! 1), `Summary.Value` (tag = 1, simple_value = 2) and `SessionLog` (status = 1).
//!
//! Tags equal the ones that transformers' TensorBoard callback derives from the same log keys. A
//! resumed run writes a new file with a session start at its first step. Readers then drop the
//! records of earlier files from that step on.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ranks::host::host_name;
use crate::{Error, Result};

/// Prefix of event file names.
const PREFIX: &str = "events.out.tfevents.";
/// Content of the first record of every file: the version from which readers honour session starts.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const SESSION_START: u64 = 1;
/// Protobuf wire types.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

/// Appends events to an event file.
pub struct EventWriter {
    pub(super) path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates an event file in `dir` at wall-clock `time` (seconds since 1970). `resumed` is the
    /// step of the checkpoint from which a run resumes; scalars of later steps in earlier files are
    /// superseded.
    pub fn create(dir: &Path, time: f64, resumed: Option<u64>) -> Result<Self> {
        // Readers order files by name. A run resumed within the same second must still get a later
        // name.
        let earlier = list(dir)?.iter().filter_map(|path| creation_seconds(path)).max();
        let seconds = earlier.map_or(0, |s| s.saturating_add(1)).max(time.max(0.0) as u64);
        let path = dir.join(format!("{PREFIX}{seconds:010}.{}.{}.0", host_name(), std::process::id()));
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let mut writer = Self { path, file };
        let mut event = Message::default();
        event.double(1, time);
        event.bytes(3, FILE_VERSION.as_bytes());
        writer.record(&event.0)?;
        if let Some(step) = resumed {
            let mut session = Message::default();
            session.varint(1, SESSION_START);
            let mut event = Message::default();
            event.double(1, time);
            event.varint(2, step.saturating_add(1));
            event.bytes(7, &session.0);
            writer.record(&event.0)?;
        }
        Ok(writer)
    }

    /// Writes the numbers among `values` as one event, each under its [`tag`]. `time`, `step` and
    /// text values are omitted.
    pub fn scalars(&mut self, step: u64, time: f64, values: &Map<String, Value>) -> Result<()> {
        let mut summary = Message::default();
        for (key, value) in values {
            let Some(number) = super::metrics::read_number(value).filter(|_| key != "time" && key != "step") else {
                continue;
            };
            let mut scalar = Message::default();
            scalar.bytes(1, tag(key).as_bytes());
            scalar.float(2, number as f32);
            summary.bytes(1, &scalar.0);
        }
        let mut event = Message::default();
        event.double(1, time);
        event.varint(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut bytes = Vec::with_capacity(data.len() + 16);
        bytes.extend(length);
        bytes.extend(masked(crc32c(&length)).to_le_bytes());
        bytes.extend(data);
        bytes.extend(masked(crc32c(data)).to_le_bytes());
        self.file.write_all(&bytes).map_err(Error::io("write", &self.path))
    }
}

/// Event files of a folder, ordered by name; empty if the folder does not exist.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn creation_seconds(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse().ok()
}

/// Tag of a log key, as in transformers' `rewrite_logs`: `eval_loss` is `eval/loss`, `loss` is
/// `train/loss`.
pub fn tag(key: &str) -> String {
    match key.split_once('_') {
        Some((part @ ("eval" | "test"), name)) => format!("{part}/{name}"),
        _ => format!("train/{key}"),
    }
}

/// Protobuf message under construction. Callers write fields in ascending order.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u32, wire: u32) {
        self.raw_varint(u64::from(field << 3 | wire));
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, VARINT);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u32, value: f64) {
        self.key(field, FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, BYTES);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }
}

/// Castagnoli polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// CRC of each byte value.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// CRC-32C (RFC 3720, appendix B.4).
pub fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// Stored form of a CRC: rotated and offset by a constant, so that the CRC of data that contains
/// CRCs remains meaningful.
pub fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}
