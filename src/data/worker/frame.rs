//! Messages between a process and its worker. A message is one integer and a list of byte strings.
//!
//! ```text
//! magic number (MARK) u32 | integer u32 | number of parts u32 | length of each part, u64 | parts
//! ```
//!
//! All numbers are little-endian. A reader rejects a wrong magic number, too many parts and a message above
//! [`MAX_BYTES`], so that stray output of a library is not read as a message.

use std::io::{self, Read};

const MARK: u32 = 0x4d41_5057;
const HEAD: usize = 12;
const MAX_PARTS: usize = 1 << 24;

/// Maximum bytes of a message.
pub(crate) const MAX_BYTES: u64 = 8 << 30;

/// A message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Limit of processor time in seconds, in a request; 0 in a response.
    pub number: u32,
    pub parts: Vec<Vec<u8>>,
}

impl Frame {
    /// Returns part `at`, or an empty slice if the message has fewer parts.
    pub(crate) fn part(&self, at: usize) -> &[u8] {
        self.parts.get(at).map_or(&[], Vec::as_slice)
    }
}

/// Bytes of a message before its parts.
pub(crate) fn head(number: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + 8 * parts.len());
    for word in [MARK, number, parts.len() as u32] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for part in parts {
        out.extend_from_slice(&(part.len() as u64).to_le_bytes());
    }
    out
}

/// Reads a message; `None` at the end of the stream.
pub(crate) fn read(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD];
    let mut filled = 0;
    while filled < HEAD {
        match from.read(&mut head[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let count = word(8) as usize;
    if word(0) != MARK || count > MAX_PARTS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a message"));
    }
    let mut lengths = vec![0; 8 * count];
    from.read_exact(&mut lengths)?;
    let mut parts = Vec::with_capacity(count);
    let mut total = 0u64;
    for length in lengths.chunks_exact(8) {
        let length = length.iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        total = total.saturating_add(length);
        if total > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
        }
        let mut part = Vec::with_capacity(length.min(1 << 20) as usize);
        if from.by_ref().take(length).read_to_end(&mut part)? as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        parts.push(part);
    }
    Ok(Some(Frame { number: word(4), parts }))
}

/// Converts token ids to bytes in native byte order, because both processes run on one machine.
pub(crate) fn id_bytes(ids: &[u32]) -> Vec<u8> {
    bytemuck::cast_slice(ids).to_vec()
}

/// Token ids from bytes.
pub(crate) fn ids(bytes: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(&bytes[..bytes.len() / 4 * 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_make_the_round_trip_and_others_are_refused() {
        let parts: [&[u8]; 3] = [b"head", b"", &[7; 300]];
        let bytes = [head(9, &parts), parts.concat()].concat();
        let mut twice = [bytes.clone(), bytes.clone()].concat();
        let mut from = &twice[..];
        for _ in 0..2 {
            let frame = read(&mut from).unwrap().unwrap();
            assert_eq!((frame.number, frame.parts.len()), (9, 3));
            assert_eq!((frame.part(0), frame.part(2), frame.part(7)), (&b"head"[..], &[7; 300][..], &[][..]));
        }
        assert!(read(&mut from).unwrap().is_none());
        for cut in 1..bytes.len() {
            assert!(read(&mut &bytes[..cut]).is_err(), "{cut}");
        }
        twice[0] ^= 1;
        assert!(read(&mut &twice[..]).is_err());
        let long = head(0, &[]).into_iter().take(8).chain(1u32.to_le_bytes()).chain(u64::MAX.to_le_bytes());
        assert!(read(&mut &long.collect::<Vec<u8>>()[..]).is_err());
        assert_eq!(ids(&id_bytes(&[1, u32::MAX])), [1, u32::MAX]);
    }
}
