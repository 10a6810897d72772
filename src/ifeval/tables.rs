//! Reads the committed tables of statistics (`tables/README.md`).

use std::io::Read as _;

use lzma_rust2::XzReader;

/// Memory limit of the decoder, in KiB; the dictionaries have 2 MiB.
const MEMORY: u32 = 1 << 15;

/// Unpacks a table that is part of the program.
pub(super) fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    XzReader::new_mem_limit(packed, false, MEMORY).read_to_end(&mut data).expect("the committed table is whole");
    data
}

/// Reads numbers and texts from a table, front to back; `None` at its end.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Reads a number in groups of 7 bits, lowest first; the highest bit of a byte says that another group
    /// follows.
    pub(super) fn number(&mut self) -> Option<u64> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 127).checked_shl(shift)?;
            if byte < 128 {
                return Some(number);
            }
            shift += 7;
        }
    }

    /// Reads a text, which is stored after its length in bytes.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }
}
