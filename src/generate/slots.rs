//! Free rows of the KV cache, as ranges. Allocation is first-fit, and a freed range merges with its free
//! neighbours.

use std::ops::Range;

/// The free rows of a cache.
#[derive(Debug)]
pub(super) struct Slots {
    /// Ascending, non-adjacent and non-empty ranges.
    free: Vec<Range<usize>>,
}

impl Slots {
    /// Creates the list for a cache of `rows` rows, all of them free.
    pub fn new(rows: usize) -> Self {
        Self { free: std::iter::once(0..rows).filter(|all| !all.is_empty()).collect() }
    }

    /// Allocates `len` consecutive rows; `None` if no free range is long enough.
    pub fn take(&mut self, len: usize) -> Option<Range<usize>> {
        if len == 0 {
            return Some(0..0);
        }
        let at = self.free.iter().position(|range| range.len() >= len)?;
        let found = &mut self.free[at];
        let taken = found.start..found.start + len;
        found.start = taken.end;
        if found.start == found.end {
            self.free.remove(at);
        }
        Some(taken)
    }

    /// Frees rows that [`Slots::take`] has allocated.
    pub fn give_back(&mut self, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        let at = self.free.partition_point(|range| range.start < rows.start);
        self.free.insert(at, rows);
        for i in [at + 1, at] {
            if i > 0 && i < self.free.len() && self.free[i - 1].end == self.free[i].start {
                self.free[i - 1].end = self.free[i].end;
                self.free.remove(i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_come_back_merge_with_their_neighbours() {
        let mut slots = Slots::new(10);
        let [a, b, c] = [4, 3, 3].map(|len| slots.take(len).unwrap());
        assert_eq!((a.clone(), b.clone(), c.clone()), (0..4, 4..7, 7..10));
        assert_eq!(slots.take(1), None);
        slots.give_back(c);
        slots.give_back(a);
        assert_eq!(slots.take(5), None, "4 and 3 rows, apart");
        assert_eq!(slots.take(0), Some(0..0));
        slots.give_back(b);
        assert!(slots.free.iter().eq(std::iter::once(&(0..10))));
        // A part of an allocated range may be freed.
        let whole = slots.take(10).unwrap();
        slots.give_back(whole.start + 6..whole.end);
        assert_eq!(slots.take(4), Some(6..10));
    }
}
