//! Opens a data file and unpacks it: plain, or compressed with gzip, zstd, bzip2 or xz, whatever its
//! name. The first bytes decide. `-` is standard input.
//!
//! Folders, files that are compressed twice, and other kinds of files (`kinds`) are errors, also inside a
//! compressed file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::kinds::{PARQUET, foreign};
use super::rows::read_error;
use crate::files::hub::hub_data;
use crate::files::is_dash;
use crate::{Error, Result};

/// Size of read buffers in bytes.
const BUFFER: usize = 1 << 18;
/// Memory limit of an xz decoder, in KiB; the highest preset needs 65 MiB.
const XZ_MEMORY: u32 = 1 << 20;

/// Number of first bytes that decide the kind of a file. Of all signatures, that of a tar archive ends last,
/// before byte 262.
const HEAD: usize = 512;

/// A data file after unpacking.
pub(super) enum Opened {
    Text(Headed),
    /// A Parquet file, which needs random access.
    Parquet(File),
}

/// Opens a data file to read its rows.
pub(super) fn open(path: &Path) -> Result<Opened> {
    let mut raw = open_raw(path)?;
    if raw.head(HEAD).map_err(Error::io("read", path))?.starts_with(PARQUET) {
        return Ok(Opened::Parquet(seekable(path, raw)?));
    }
    unpacked(path, raw).map(Opened::Text)
}

/// Opens a file of text lines, as for a tokenizer.
pub(crate) fn open_text(path: &Path) -> Result<Box<dyn BufRead>> {
    Ok(Box::new(unpacked(path, open_raw(path)?)?))
}

fn open_raw(path: &Path) -> Result<Headed> {
    if is_dash(path) {
        return Ok(Headed::new(Box::new(BufReader::with_capacity(BUFFER, io::stdin()))));
    }
    if path.is_dir() {
        return Err(Error::data(path, 0, None, "is a folder; pass the files in it"));
    }
    let file = File::open(path).map_err(|e| match hub_data(path).filter(|_| e.kind() == io::ErrorKind::NotFound) {
        Some(why) => Error::data(path, 0, None, why),
        None => Error::io("open", path)(e),
    })?;
    Ok(Headed::new(Box::new(BufReader::with_capacity(BUFFER, file))))
}

fn unpacked(path: &Path, mut raw: Headed) -> Result<Headed> {
    let refuse = |what: String| Err(Error::data(path, 0, None, what));
    let start = raw.head(HEAD).map_err(Error::io("read", path))?;
    let Some(packed) = Packed::of(start) else {
        return match foreign(start) {
            Some(what) => refuse(what),
            None => Ok(raw),
        };
    };
    let mut inner = Headed::new(packed.decoder(Box::new(raw)));
    let start = inner.head(HEAD).map_err(|e| read_error(path, 1, e))?;
    let name = packed.name();
    if let Some(again) = Packed::of(start) {
        let twice = if again == packed { "twice".to_owned() } else { format!("and {} again", again.name()) };
        return refuse(format!("is compressed with {name} {twice}; unpack it once (`{}`)", packed.tool()));
    }
    if start.starts_with(PARQUET) {
        return refuse(format!("is a Parquet file compressed with {name}; unpack it (`{}`)", packed.tool()));
    }
    match foreign(start) {
        Some(what) => refuse(format!("is compressed with {name}, and its content {what}")),
        None => Ok(inner),
    }
}

/// Reader that can show its next bytes without consuming them, even if a pipe or a compressed stream returns
/// few bytes at once.
pub(super) struct Headed {
    head: Vec<u8>,
    /// Number of bytes of `head` that have been consumed.
    at: usize,
    /// Error to return after the bytes of `head`.
    failed: Option<io::Error>,
    rest: Box<dyn BufRead>,
}

impl Headed {
    fn new(rest: Box<dyn BufRead>) -> Self {
        Self { head: Vec::new(), at: 0, failed: None, rest }
    }

    /// Returns the next bytes, at least `count` of them if the stream has as many. An error that occurs after
    /// some bytes is returned by the read that follows these bytes.
    pub(super) fn head(&mut self, count: usize) -> io::Result<&[u8]> {
        self.head_until(|head| head.len() >= count)
    }

    /// Returns the next bytes, which include the first line break if it is within `most` bytes.
    pub(super) fn line(&mut self, most: usize) -> io::Result<&[u8]> {
        self.head_until(|head| head.len() >= most || head.contains(&b'\n'))
    }

    fn head_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> io::Result<&[u8]> {
        self.head.drain(..self.at);
        self.at = 0;
        while self.failed.is_none() && !enough(&self.head) {
            let next = match self.rest.fill_buf() {
                Ok([]) => break,
                Ok(next) => next,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if self.head.is_empty() => return Err(e),
                Err(e) => {
                    self.failed = Some(e);
                    break;
                }
            };
            let count = next.len();
            self.head.extend(next);
            self.rest.consume(count);
        }
        Ok(&self.head)
    }

    /// Inserts bytes before the next bytes.
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.head.splice(..self.at, bytes.iter().copied());
        self.at = 0;
    }
}

impl BufRead for Headed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at < self.head.len() {
            return Ok(&self.head[self.at..]);
        }
        match self.failed.take() {
            Some(e) => Err(e),
            None => self.rest.fill_buf(),
        }
    }

    fn consume(&mut self, count: usize) {
        match self.at < self.head.len() {
            true => self.at += count,
            false => self.rest.consume(count),
        }
    }
}

impl Read for Headed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// Returns the regular file at a path, or a temporary copy of a pipe's content.
fn seekable(path: &Path, mut raw: Headed) -> Result<File> {
    if !is_dash(path) && path.is_file() {
        return File::open(path).map_err(Error::io("open", path));
    }
    let mut copy = tempfile::tempfile().map_err(Error::io("copy", path))?;
    io::copy(&mut raw, &mut copy).map_err(Error::io("copy", path))?;
    Ok(copy)
}

/// Kind of compression.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packed {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Packed {
    fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, ..] => Some(Packed::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Packed::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, ..] => Some(Packed::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Packed::Xz),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Packed::Gzip => "gzip",
            Packed::Zstd => "zstd",
            Packed::Bzip2 => "bzip2",
            Packed::Xz => "xz",
        }
    }

    fn tool(self) -> &'static str {
        match self {
            Packed::Gzip => "gunzip",
            Packed::Zstd => "unzstd",
            Packed::Bzip2 => "bunzip2",
            Packed::Xz => "unxz",
        }
    }

    fn decoder(self, raw: Box<dyn BufRead>) -> Box<dyn BufRead> {
        let decoder: Box<dyn Read> = match self {
            Packed::Gzip => Box::new(MultiGzDecoder::new(raw)),
            Packed::Zstd => Box::new(ZstdFrames { source: raw, frame: None }),
            Packed::Bzip2 => Box::new(MultiBzDecoder::new(raw)),
            Packed::Xz => Box::new(XzReader::new_mem_limit(raw, true, XZ_MEMORY)),
        };
        Box::new(BufReader::with_capacity(BUFFER, decoder))
    }
}

/// Decodes all frames of a zstd file, and checks their checksums.
struct ZstdFrames {
    source: Box<dyn BufRead>,
    frame: Option<FrameDecoder>,
}

fn damaged(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

impl ZstdFrames {
    /// Starts the next frame; `None` at the end of the file. Skippable frames, which hold no data, are passed over.
    fn next_frame(&mut self) -> io::Result<Option<FrameDecoder>> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let mut frame = FrameDecoder::new();
            match frame.init(&mut self.source) {
                Ok(()) => return Ok(Some(frame)),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                    if skipped < length.into() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(e) => return Err(damaged(e)),
            }
        }
    }
}

impl Read for ZstdFrames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.frame.is_none() {
                self.frame = self.next_frame()?;
            }
            let Some(frame) = &mut self.frame else { return Ok(0) };
            while frame.can_collect() == 0 && !frame.is_finished() {
                frame.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1)).map_err(damaged)?;
            }
            let count = frame.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let stored = frame.get_checksum_from_data();
            if stored.is_some() && stored != frame.get_calculated_checksum() {
                return Err(damaged("the checksum of a frame is wrong"));
            }
            self.frame = None;
        }
    }
}
