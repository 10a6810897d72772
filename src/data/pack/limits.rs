//! The largest batch a data set can give, field by field, known before the first step: what memory is set aside for.

use super::{Batch, ComparisonOptions, PackOptions};
use crate::Result;
use crate::data::tokenized::TokenizedGroup;

/// Bounds on every table of a batch of so many groups. Each field is reached by some choice of groups, not all at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchLimits {
    /// Groups of a batch.
    pub groups: usize,
    /// Token rows.
    pub tokens: usize,
    /// Rows of the vocabulary head.
    pub rows: usize,
    /// Of them those of one group.
    pub group_rows: usize,
    pub seqs: usize,
    pub comparisons: usize,
    pub segments: usize,
    /// Entries of all ancestor lists.
    pub ancestors: usize,
    pub trees: usize,
    /// Most tokens on a path.
    pub longest_path: usize,
}

/// Sizes of every group of a data set, packed alone.
#[derive(Clone, Debug, Default)]
pub struct GroupSizes {
    /// By field, one entry a group, descending.
    fields: [Vec<usize>; FIELDS],
    longest_path: usize,
}

/// Fields of [`BatchLimits`] that add up over the groups of a batch.
const FIELDS: usize = 7;
/// Which of them head rows are.
const ROWS: usize = 1;

impl GroupSizes {
    /// Measures every group.
    ///
    /// # Errors
    /// As [`super::pack_into`] for a group alone.
    pub fn of(groups: &[TokenizedGroup], options: &PackOptions, loss: &ComparisonOptions) -> Result<Self> {
        let mut alone = Batch::default();
        let mut sizes = Self::default();
        for group in groups {
            alone.clear();
            alone.push_group(group, options, loss)?;
            sizes.longest_path = sizes.longest_path.max(alone.longest_path);
            let of_group = [
                alone.tokens(),
                alone.head_rows(),
                alone.seqs(),
                alone.comparison_count(),
                alone.segments(),
                alone.tree.ancestors.len(),
                alone.trees(),
            ];
            sizes.fields.iter_mut().zip(of_group).for_each(|(field, size)| field.push(size));
        }
        sizes.fields.iter_mut().for_each(|field| field.sort_unstable_by(|a, b| b.cmp(a)));
        Ok(sizes)
    }

    /// Groups that were measured.
    pub fn groups(&self) -> usize {
        self.fields[0].len()
    }

    /// Bounds over all batches of `batch` of the groups, in whatever order they come: for every field the sum over the
    /// groups that have most of it.
    pub fn limits(&self, batch: usize) -> BatchLimits {
        let [tokens, rows, seqs, comparisons, segments, ancestors, trees] =
            std::array::from_fn(|field| self.fields[field].iter().take(batch).sum());
        BatchLimits {
            groups: batch.min(self.groups()),
            tokens,
            rows,
            // The first is the largest.
            group_rows: if batch > 0 { self.fields[ROWS].first().copied().unwrap_or(0) } else { 0 },
            seqs,
            comparisons,
            segments,
            ancestors,
            trees,
            longest_path: self.longest_path,
        }
    }
}
