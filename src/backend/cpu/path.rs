//! Path of a segment, from the root to the segment itself, as a stack of segments at consecutive
//! positions. The step from one segment to the next keeps their common ancestors. For a tree in
//! depth-first order, every row is therefore gathered about once.

use std::ops::Range;

use crate::backend::contract::Tree;

/// Segments, ancestors and trees of a batch, as in [`Tree`].
#[derive(Clone, Copy)]
pub(super) struct Segments<'a> {
    starts: &'a [i32],
    offsets: &'a [i32],
    ancestors: &'a [i32],
    trees: &'a [i32],
}

impl<'a> Segments<'a> {
    pub fn new(tree: &Tree<'a, Vec<i32>>) -> Self {
        Self {
            starts: tree.starts.slice(),
            offsets: tree.ancestor_offsets.slice(),
            ancestors: tree.ancestors.slice(),
            trees: tree.trees.slice(),
        }
    }

    /// Rows of a segment.
    pub fn rows(&self, segment: usize) -> Range<usize> {
        self.starts[segment] as usize..self.starts[segment + 1] as usize
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Segments of a tree.
    pub fn tree(&self, tree: usize) -> Range<usize> {
        self.trees[tree] as usize..self.trees[tree + 1] as usize
    }

    /// First rows of all trees, then the end of the last tree.
    pub fn tree_bounds(&self) -> Vec<usize> {
        self.trees.iter().map(|&segment| self.starts[segment as usize] as usize).collect()
    }

    fn ancestors(&self, segment: usize) -> &'a [i32] {
        &self.ancestors[self.offsets[segment] as usize..self.offsets[segment + 1] as usize]
    }

    /// Number of rows on the longest path.
    pub fn longest_path(&self) -> usize {
        let above = |s: usize| self.ancestors(s).iter().map(|&a| self.rows(a as usize).len()).sum::<usize>();
        (0..self.len()).map(|s| above(s) + self.rows(s).len()).max().unwrap_or(0)
    }
}

/// Segment on the path: its rows and the position of its first row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub segment: usize,
    pub rows: Range<usize>,
    pub position: usize,
}

/// Path as a stack of steps.
pub(super) struct Path<'a> {
    segments: Segments<'a>,
    steps: Vec<Step>,
}

impl<'a> Path<'a> {
    pub fn new(segments: Segments<'a>) -> Self {
        Self { segments, steps: Vec::new() }
    }

    /// Number of rows on the path.
    pub fn len(&self) -> usize {
        self.steps.last().map_or(0, |step| step.position + step.rows.len())
    }

    /// Changes the path to end with the rows of `segment` before `end`. Calls `leave` for the steps
    /// that leave the path, last first, then `join` for the steps that join it. Returns the
    /// position of the segment's first row.
    pub fn enter(
        &mut self,
        segment: usize,
        end: usize,
        leave: impl FnMut(&Step),
        mut join: impl FnMut(&Step),
    ) -> usize {
        let ancestors = self.segments.ancestors(segment);
        let shared = self.steps.iter().zip(ancestors).take_while(|(step, a)| step.segment == **a as usize).count();
        self.truncate(shared, leave);
        let own = self.segments.rows(segment);
        let missing = ancestors[shared..].iter().map(|&a| (a as usize, self.segments.rows(a as usize)));
        for (segment, rows) in missing.chain([(segment, own.start..end)]) {
            let step = Step { segment, rows, position: self.len() };
            join(&step);
            self.steps.push(step);
        }
        self.len() - (end - own.start)
    }

    /// Empties the path and calls `leave` for every step, last first.
    pub fn finish(mut self, leave: impl FnMut(&Step)) {
        self.truncate(0, leave);
    }

    fn truncate(&mut self, len: usize, mut leave: impl FnMut(&Step)) {
        for step in self.steps.drain(len..).rev() {
            leave(&step);
        }
    }
}
