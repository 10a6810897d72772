//! Order of the groups: a seeded permutation per epoch, cut into global batches, and a position for
//! an exact resume. Also two ways to cut a list of groups further: into micro-batches of a fixed
//! number of groups, and into packs under a token budget.
//!
//! The order of an epoch depends only on seed and epoch, so the position is the only state that a resume
//! needs. A batch never crosses the end of an epoch; the last batch may be short. An empty list of groups, a
//! batch size of 0, `drop_last` with fewer groups than one batch, and a position outside the data are errors.

use crate::rng::Rng;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Settings of a [`Loader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Groups in a global batch: micro-batch size x accumulation steps x ranks.
    pub batch_groups: usize,
    /// Whether each epoch is shuffled; otherwise groups keep the order of the file.
    pub shuffle: bool,
    /// Seed of the permutations.
    pub seed: u64,
    /// Drops the last batch of an epoch if it is short.
    pub drop_last: bool,
}

/// Position of the next batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Completed epochs.
    pub epoch: u64,
    /// Groups of the current epoch that were already returned; less than the number of groups.
    pub offset: usize,
}

/// Endless sequence of global batches of group indices.
#[derive(Clone, Debug)]
pub struct Loader {
    count: usize,
    options: LoaderOptions,
    position: Position,
    /// Permutation of `position.epoch`.
    order: Vec<usize>,
}

impl Loader {
    /// A loader over the groups `0..count`, at the start of epoch 0.
    pub fn new(count: usize, options: LoaderOptions) -> Result<Self> {
        if count == 0 {
            return Err(Error::Usage("no groups to load; check the input files and the number of dropped rows".into()));
        }
        if options.batch_groups == 0 {
            return Err(Error::Usage("a batch needs at least one group; raise the batch size".into()));
        }
        if options.drop_last && count < options.batch_groups {
            return Err(Error::Usage(format!(
                "{count} groups do not fill one batch of {}, and short batches are dropped; lower the batch size",
                options.batch_groups
            )));
        }
        let mut loader = Self { count, options, position: Position::default(), order: Vec::new() };
        loader.set_order();
        Ok(loader)
    }

    /// Number of batches in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        match self.options.drop_last {
            true => self.count / self.options.batch_groups,
            false => self.count.div_ceil(self.options.batch_groups),
        }
    }

    /// Position of the next batch. If it is saved before a batch is drawn, seeking to it returns
    /// that batch again.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Moves to a saved position.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        if position.offset >= self.count {
            return Err(Error::Usage(format!(
                "cannot resume at group {} of an epoch: the data has {} groups; resume with the same data as the first run",
                position.offset, self.count
            )));
        }
        self.position = position;
        self.set_order();
        // If the batch size has changed, only a dropped short batch may be left after the saved
        // offset.
        self.finish_epoch();
        Ok(())
    }

    /// Completed epochs plus the completed fraction of the current one.
    pub fn epochs(&self) -> f64 {
        self.position.epoch as f64 + self.position.offset as f64 / self.count as f64
    }

    /// Group indices of the next batch: `batch_groups` of them, or fewer at the end of an epoch.
    pub fn next_batch(&mut self) -> Vec<usize> {
        let start = self.position.offset;
        let end = self.count.min(start + self.options.batch_groups);
        let batch = self.order[start..end].to_vec();
        self.position.offset = end;
        self.finish_epoch();
        batch
    }

    /// Moves to the next epoch if the current one has no batch left.
    fn finish_epoch(&mut self) {
        let left = self.count - self.position.offset;
        if left == 0 || (self.options.drop_last && left < self.options.batch_groups) {
            self.position = Position { epoch: self.position.epoch + 1, offset: 0 };
            self.set_order();
        }
    }

    fn set_order(&mut self) {
        self.order.clear();
        self.order.extend(0..self.count);
        if self.options.shuffle {
            Rng::keyed(self.options.seed, &["order", &self.position.epoch.to_string()]).shuffle(&mut self.order);
        }
    }
}

/// Cuts a global batch into micro-batches of `per_device` groups; the last one may be short.
pub fn micro_batches(groups: &[usize], per_device: usize) -> Result<std::slice::Chunks<'_, usize>> {
    if per_device == 0 {
        return Err(Error::Usage("a micro-batch needs at least one group; raise --per-device-train-batch-size".into()));
    }
    Ok(groups.chunks(per_device))
}

/// Cuts a list of groups into packs, in order and without gaps. Groups are added to a pack until the next one
/// would exceed `budget` tokens. `tokens[g]` is the size of group g, for example
/// [`super::tree::TokenCounts::tree`]. A group larger than the budget gets a separate pack.
pub fn split_by_tokens(tokens: &[usize], budget: usize) -> Vec<Range<usize>> {
    let mut packs = Vec::new();
    let (mut start, mut sum) = (0, 0usize);
    for (group, &size) in tokens.iter().enumerate() {
        if group > start && sum.saturating_add(size) > budget {
            packs.push(start..group);
            (start, sum) = (group, 0);
        }
        sum = sum.saturating_add(size);
    }
    if start < tokens.len() {
        packs.push(start..tokens.len());
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: LoaderOptions = LoaderOptions { batch_groups: 4, shuffle: true, seed: 7, drop_last: false };

    fn loader(count: usize, options: LoaderOptions) -> Loader {
        Loader::new(count, options).unwrap()
    }

    #[test]
    fn an_epoch_holds_every_group_once_and_epochs_differ() {
        let mut l = loader(10, OPTIONS);
        assert_eq!(l.steps_per_epoch(), 3);
        let mut epoch = || {
            let batches: Vec<_> = (0..3).map(|_| l.next_batch()).collect();
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
            batches.concat()
        };
        let (first, second) = (epoch(), epoch());
        assert_ne!(first, second);
        for mut order in [first, second] {
            order.sort_unstable();
            assert_eq!(order, (0..10).collect::<Vec<_>>());
        }
        assert_eq!(l.position(), Position { epoch: 2, offset: 0 });
    }

    #[test]
    fn order_depends_on_the_seed_and_not_on_the_batch_size() {
        let order = |options| {
            let mut l = loader(24, options);
            (0..l.steps_per_epoch()).flat_map(|_| l.next_batch()).collect::<Vec<_>>()
        };
        assert_eq!(order(OPTIONS), order(LoaderOptions { batch_groups: 7, ..OPTIONS }));
        assert_ne!(order(OPTIONS), order(LoaderOptions { seed: 8, ..OPTIONS }));
        assert_eq!(order(LoaderOptions { shuffle: false, ..OPTIONS }), (0..24).collect::<Vec<_>>());
    }

    #[test]
    fn every_position_resumes_the_same_run() {
        for drop_last in [false, true] {
            let options = LoaderOptions { drop_last, ..OPTIONS };
            let mut l = loader(10, options);
            for _ in 0..8 {
                let json = serde_json::to_string(&l.position()).unwrap();
                let mut resumed = loader(10, options);
                resumed.seek(serde_json::from_str(&json).unwrap()).unwrap();
                assert_eq!(resumed.epochs(), l.epochs());
                let mut ahead = l.clone();
                for _ in 0..7 {
                    assert_eq!(resumed.next_batch(), ahead.next_batch());
                }
                l.next_batch();
            }
        }
    }

    #[test]
    fn drop_last_leaves_out_short_batches_only() {
        let mut l = loader(10, LoaderOptions { drop_last: true, ..OPTIONS });
        assert_eq!(l.steps_per_epoch(), 2);
        assert!((0..9).all(|_| l.next_batch().len() == 4));
        assert_eq!(l.position(), Position { epoch: 4, offset: 4 });
        // With a multiple of the batch size nothing is dropped.
        let mut l = loader(8, LoaderOptions { drop_last: true, ..OPTIONS });
        let mut epoch = [l.next_batch(), l.next_batch()].concat();
        epoch.sort_unstable();
        assert_eq!(epoch, (0..8).collect::<Vec<_>>());
    }

    #[test]
    fn impossible_settings_are_refused() {
        let fails = |count, options| Loader::new(count, options).unwrap_err().to_string();
        assert!(fails(0, OPTIONS).contains("no groups"));
        assert!(fails(3, LoaderOptions { batch_groups: 0, ..OPTIONS }).contains("at least one group"));
        assert!(fails(3, LoaderOptions { drop_last: true, ..OPTIONS }).contains("do not fill one batch"));
        let outside = loader(3, OPTIONS).seek(Position { epoch: 0, offset: 3 }).unwrap_err();
        assert!(outside.to_string().contains("the data has 3 groups"));
        assert!(micro_batches(&[1], 0).is_err());
    }

    #[test]
    fn micro_batches_cover_the_batch_in_order() {
        let parts: Vec<_> = micro_batches(&[5, 3, 9, 1, 2], 2).unwrap().collect();
        assert_eq!(parts, [&[5, 3][..], &[9, 1], &[2]]);
        assert_eq!(micro_batches(&[], 2).unwrap().count(), 0);
    }

    #[test]
    fn packs_fill_the_budget_and_large_groups_get_their_own_pack() {
        assert_eq!(split_by_tokens(&[3, 4, 3, 1, 20, 2, 8], 10), [0..3, 3..4, 4..5, 5..7]);
        assert_eq!(split_by_tokens(&[20, 1], 10), [0..1, 1..2]);
        assert_eq!(split_by_tokens(&[5, 5], 0), [0..1, 1..2]);
        assert_eq!(split_by_tokens(&[0, usize::MAX, usize::MAX], 9), [0..1, 1..2, 2..3]);
        assert!(split_by_tokens(&[], 10).is_empty());
    }
}
