//! Upper bounds on the batches of a data set, field by field. They are known before the first step,
//! and memory is preallocated for them.

use super::{Batch, ComparisonOptions, PackOptions};
use crate::Result;
use crate::data::tokenized::TokenizedGroup;

/// Upper bounds on every table of a batch with a given number of groups. Some choice of groups
/// reaches each bound, but usually no choice reaches all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchLimits {
    /// Groups in a batch.
    pub groups: usize,
    /// Token rows.
    pub tokens: usize,
    /// Rows of the vocabulary head.
    pub rows: usize,
    /// Largest number of head rows of a single group.
    pub group_rows: usize,
    /// Sequences.
    pub seqs: usize,
    /// Rows of the comparison table.
    pub comparisons: usize,
    /// Segments of the prefix trees.
    pub segments: usize,
    /// Entries of all ancestor lists.
    pub ancestors: usize,
    /// Prefix trees.
    pub trees: usize,
    /// Length of the longest path in tokens.
    pub longest_path: usize,
    /// Token rows that are grouped by position: all token rows, or 0 without this grouping.
    pub position_rows: usize,
}

/// Table sizes of every group of a data set, each packed separately.
#[derive(Clone, Debug, Default)]
pub struct GroupSizes {
    /// For each field, one size per group, in descending order.
    fields: [Vec<usize>; FIELDS],
    longest_path: usize,
    /// Whether token rows are grouped by position.
    position_runs: bool,
}

/// Number of fields of [`BatchLimits`] that add up over the groups of a batch.
const FIELDS: usize = 7;
/// Index of the head rows among these fields.
const ROWS: usize = 1;

impl GroupSizes {
    /// Measures every group.
    ///
    /// # Errors
    /// Same as [`super::pack_into`] for a batch of one group.
    pub fn measure(groups: &[TokenizedGroup], options: &PackOptions, loss: &ComparisonOptions) -> Result<Self> {
        let mut single = Batch::default();
        let mut sizes = Self { position_runs: options.position_runs, ..Self::default() };
        for group in groups {
            single.clear();
            single.push_group(group, options, loss)?;
            sizes.longest_path = sizes.longest_path.max(single.longest_path);
            let of_group = [
                single.tokens(),
                single.head_rows(),
                single.seqs(),
                single.comparison_count(),
                single.segments(),
                single.tree.ancestors.len(),
                single.trees(),
            ];
            sizes.fields.iter_mut().zip(of_group).for_each(|(field, size)| field.push(size));
        }
        sizes.fields.iter_mut().for_each(|field| field.sort_unstable_by(|a, b| b.cmp(a)));
        Ok(sizes)
    }

    /// Number of measured groups.
    pub fn groups(&self) -> usize {
        self.fields[0].len()
    }

    /// Bounds over all batches of `batch` groups, for any order of the groups. Each field is the
    /// sum over the `batch` groups with the largest values of this field.
    pub fn limits(&self, batch: usize) -> BatchLimits {
        let [tokens, rows, seqs, comparisons, segments, ancestors, trees] =
            std::array::from_fn(|field| self.fields[field].iter().take(batch).sum());
        BatchLimits {
            groups: batch.min(self.groups()),
            tokens,
            rows,
            // The list is in descending order.
            group_rows: if batch > 0 { self.fields[ROWS].first().copied().unwrap_or(0) } else { 0 },
            seqs,
            comparisons,
            segments,
            ancestors,
            trees,
            longest_path: self.longest_path,
            position_rows: if self.position_runs { tokens } else { 0 },
        }
    }
}
