//! Order of groups over a run: seeded shuffles, epochs, a position that a checkpoint stores, and the split of a batch
//! into parts.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::tokenized::TokenizedGroup;
use crate::rng::Rng;

/// Where a run stands in its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Completed epochs.
    pub epoch: u64,
    /// Groups already used in the current epoch.
    pub offset: usize,
}

/// Yields batches of group indices without end; the order of an epoch depends on seed and epoch alone.
#[derive(Clone, Debug)]
pub struct Loader {
    groups: usize,
    batch: usize,
    shuffle: Option<u64>,
    position: Position,
    order: Vec<usize>,
}

impl Loader {
    /// Batches of `batch` groups out of `groups`; `shuffle` is the seed, or `None` for file order. Both counts are at
    /// least 1.
    pub fn new(groups: usize, batch: usize, shuffle: Option<u64>, position: Position) -> Self {
        let mut loader = Self { groups, batch, shuffle, position, order: Vec::new() };
        loader.reorder();
        loader
    }

    fn reorder(&mut self) {
        self.order = (0..self.groups).collect();
        if let Some(seed) = self.shuffle {
            Rng::keyed(seed, &["order", &self.position.epoch.to_string()]).shuffle(&mut self.order);
        }
    }

    /// Batches of one epoch; the last may be short.
    pub fn batches_per_epoch(&self) -> usize {
        self.groups.div_ceil(self.batch)
    }

    /// Where the next batch starts.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next batch, and the epoch it belongs to.
    pub fn next_batch(&mut self) -> (u64, Vec<usize>) {
        if self.position.offset >= self.groups {
            self.position = Position { epoch: self.position.epoch + 1, offset: 0 };
            self.reorder();
        }
        let end = (self.position.offset + self.batch).min(self.groups);
        let batch = self.order[self.position.offset..end].to_vec();
        self.position.offset = end;
        (self.position.epoch, batch)
    }
}

/// Cuts a list of groups, in order, into runs of at most `budget` tokens before sharing; a longer group stands alone.
pub fn split_by_tokens(groups: &[TokenizedGroup], budget: usize) -> Vec<Range<usize>> {
    let tokens = |g: &TokenizedGroup| -> usize {
        g.sequences.iter().map(|s| g.prompt_ids[s.prompt].len() + s.response_ids.len()).sum()
    };
    let (mut ranges, mut start, mut sum) = (Vec::new(), 0, 0);
    for (i, group) in groups.iter().enumerate() {
        let more = tokens(group);
        if i > start && sum + more > budget {
            ranges.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += more;
    }
    if start < groups.len() {
        ranges.push(start..groups.len());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_and_resumes_in_the_middle() {
        let mut loader = Loader::new(10, 4, Some(3), Position::default());
        let mut epochs = vec![Vec::new(), Vec::new()];
        let mut after_four = None;
        for i in 0..6 {
            let (epoch, batch) = loader.next_batch();
            epochs[epoch as usize].extend(batch);
            if i == 3 {
                after_four = Some(loader.position());
            }
        }
        let mut resumed = Loader::new(10, 4, Some(3), after_four.unwrap());
        let rest: Vec<usize> = (0..2).flat_map(|_| resumed.next_batch().1).collect();
        assert_eq!(rest, epochs[1][4..]);
        assert_ne!(epochs[0], epochs[1]);
        for mut epoch in epochs {
            epoch.sort_unstable();
            assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(loader.batches_per_epoch(), 3);
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_file() {
        let mut loader = Loader::new(5, 2, None, Position::default());
        assert_eq!(loader.next_batch().1, [0, 1]);
        assert_eq!(loader.next_batch().1, [2, 3]);
        assert_eq!(loader.next_batch().1, [4]);
        assert_eq!(loader.next_batch(), (1, vec![0, 1]));
    }
}
