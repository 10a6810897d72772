//! Tables of one step: the new tokens of every sequence and their cache rows, filled on the host and copied to
//! the device as one array.

use std::ops::Range;

use crate::Result;
use crate::backend::contract::Paths;
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::model::decoder_cached::{CachedInputs, Seen};

/// Tables in the order of the array on the device.
#[derive(Default)]
pub(super) struct Tables {
    ids: Vec<i32>,
    positions: Vec<i32>,
    starts: Vec<i32>,
    span_offsets: Vec<i32>,
    spans: Vec<i32>,
    slots: Vec<i32>,
    last: Vec<i32>,
    /// Number of tokens in the attention window of the layers that have one; `usize::MAX` without a window.
    window: usize,
    seen: Seen,
    seen_in_window: Seen,
    longest_path: usize,
    all: Vec<i32>,
}

impl Tables {
    /// Tables for a model with this window in some layers.
    pub fn new(window: Option<usize>) -> Self {
        Self { window: window.unwrap_or(usize::MAX), ..Self::default() }
    }

    pub fn clear(&mut self) {
        let (window, all) = (self.window, std::mem::take(&mut self.all));
        *self = Self { starts: vec![0], span_offsets: vec![0], window, all, ..Self::default() };
    }

    pub fn sequences(&self) -> usize {
        self.last.len()
    }

    /// Adds a sequence with the new tokens `ids`. `path` holds the rows of the cache up to the last
    /// new token; empty ranges have no effect.
    pub fn add(&mut self, ids: &[u32], path: &[Range<usize>]) {
        let rows: usize = path.iter().map(Range::len).sum();
        let earlier = rows - ids.len();
        self.ids.extend(ids.iter().map(|&id| id as i32));
        self.positions.extend((earlier..rows).map(|position| position as i32));
        self.starts.push(self.ids.len() as i32);
        self.last.push(self.ids.len() as i32 - 1);
        let first = self.spans.len();
        for span in path.iter().filter(|span| !span.is_empty()) {
            if self.spans.len() > first && self.spans.last() == Some(&(span.start as i32)) {
                self.spans.pop();
            } else {
                self.spans.push(span.start as i32);
            }
            self.spans.push(span.end as i32);
        }
        self.span_offsets.push(self.spans.len() as i32 / 2);
        let all = path.iter().cloned().flatten();
        self.slots.extend(all.skip(earlier).map(|row| row as i32));
        self.seen.add(rows, ids.len(), usize::MAX);
        self.seen_in_window.add(rows, ids.len(), self.window);
        self.longest_path = self.longest_path.max(rows);
    }

    /// Copies the tables to the device.
    pub fn upload<'a, B: Backend>(&mut self, backend: &B, to: &'a mut B::Idx) -> Result<CachedInputs<'a, B>> {
        self.all.clear();
        let tables =
            [&self.ids, &self.positions, &self.starts, &self.span_offsets, &self.spans, &self.slots, &self.last];
        let mut ranges: [Range<usize>; 7] = std::array::from_fn(|_| 0..0);
        for (range, table) in ranges.iter_mut().zip(tables) {
            *range = self.all.len()..self.all.len() + table.len();
            self.all.extend(table);
        }
        if to.len() < self.all.len() {
            *to = backend.zeros_idx(self.all.len() + self.all.len() / 4)?;
        }
        backend.write_idx(ViewMut::first(to, self.all.len()), &self.all)?;
        let to = &*to;
        let [ids, positions, starts, span_offsets, spans, slots, last] =
            ranges.map(|range| View::new(to, range.start, range.len()));
        Ok(CachedInputs {
            ids,
            positions,
            paths: Paths { starts, span_offsets, spans, slots },
            last,
            sequences: self.sequences(),
            spans: self.spans.len() / 2,
            seen: self.seen,
            seen_in_window: self.seen_in_window,
            longest_path: self.longest_path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_spans_merge_and_new_tokens_end_the_path() {
        let mut tables = Tables::new(Some(3));
        tables.clear();
        tables.add(&[7, 8], &[3..5, 5..8]);
        tables.add(&[9], &[0..2, 0..0, 9..11]);
        assert_eq!((tables.ids.len(), tables.sequences()), (3, 2));
        assert_eq!((&tables.spans[..], &tables.span_offsets[..]), (&[3, 8, 0, 2, 9, 11][..], &[0, 1, 3][..]));
        assert_eq!((&tables.slots[..], &tables.positions[..]), (&[6, 7, 10][..], &[3, 4, 3][..]));
        assert_eq!((&tables.starts[..], &tables.last[..]), (&[0, 2, 3][..], &[1, 2][..]));
        assert_eq!((tables.seen, tables.longest_path), (Seen { pairs: 4 + 5 + 4, keys: 9 }, 5));
        // Two queries that see 3 keys each see 4 rows together.
        assert_eq!(tables.seen_in_window, Seen { pairs: 3 + 3 + 3, keys: 4 + 3 });
        tables.clear();
        tables.add(&[1], std::slice::from_ref(&(0..1)));
        assert_eq!((tables.ids.len(), tables.seen.pairs, tables.window), (1, 1, 3));
    }
}
