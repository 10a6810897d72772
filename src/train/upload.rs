//! A packed batch on the device: one index buffer and one number buffer, each filled by one transfer, and the views
//! that ops take. Buffers grow to the largest batch seen and are reused.

use std::ops::Range;

use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::data::pack::{Batch, BatchLimits};
use crate::model::inputs::Inputs;

/// Index arrays of a batch, in the order they lie in the buffer.
#[derive(Clone, Copy)]
enum Index {
    Ids,
    Positions,
    IdOrder,
    IdOffsets,
    IdKeys,
    Starts,
    AncestorOffsets,
    Ancestors,
    Trees,
    Source,
    Target,
    HeadOrder,
    HeadOffsets,
    HeadKeys,
    SeqOffsets,
    LastRows,
    TermSequence,
    TermSign,
    Kind,
    UseOffsets,
    Uses,
}
const INDICES: usize = Index::Uses as usize + 1;

/// Number arrays of a batch, in the order they lie in the buffer.
#[derive(Clone, Copy)]
enum Number {
    Scale,
    Margin,
    Weight,
    DetachedClip,
    KindScale,
}
const NUMBERS: usize = Number::KindScale as usize + 1;

/// Sizes of a batch that the host needs to launch ops.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSizes {
    pub tokens: usize,
    /// Head rows; 0 for rewards.
    pub rows: usize,
    pub seqs: usize,
    pub comparisons: usize,
    segments: usize,
    ancestors: usize,
    trees: usize,
    pairs: u64,
    longest_path: usize,
}

/// The current batch of a backend.
pub struct DeviceBatch<B: Backend> {
    indices: B::Idx,
    numbers: B::Acc,
    index_ranges: [Range<usize>; INDICES],
    number_ranges: [Range<usize>; NUMBERS],
    index_staging: Vec<i32>,
    number_staging: Vec<f64>,
    pub sizes: BatchSizes,
}

/// Concatenates arrays and returns where each lies.
fn lay_out<T: Copy, const N: usize>(staging: &mut Vec<T>, arrays: [&[T]; N]) -> [Range<usize>; N] {
    staging.clear();
    arrays.map(|array| {
        let start = staging.len();
        staging.extend_from_slice(array);
        start..staging.len()
    })
}

/// Ranges of the given lengths without gaps.
fn one_after_another<const N: usize>(lengths: impl Iterator<Item = usize>) -> [Range<usize>; N] {
    let mut lengths = lengths;
    let mut end = 0;
    std::array::from_fn(|_| {
        let start = end;
        end += lengths.next().unwrap_or(0);
        start..end
    })
}

impl<B: Backend> DeviceBatch<B> {
    /// An empty batch.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            indices: backend.zeros_idx(0)?,
            numbers: backend.zeros_acc(0)?,
            index_ranges: std::array::from_fn(|_| 0..0),
            number_ranges: std::array::from_fn(|_| 0..0),
            index_staging: Vec::new(),
            number_staging: Vec::new(),
            sizes: BatchSizes::default(),
        })
    }

    /// Makes room for every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        if self.indices.len() < limits.indices() {
            self.indices = backend.zeros_idx(limits.indices())?;
        }
        if self.numbers.len() < limits.numbers() {
            self.numbers = backend.zeros_acc(limits.numbers())?;
        }
        self.index_staging.reserve(limits.indices());
        self.number_staging.reserve(limits.numbers());
        Ok(())
    }

    /// Elements of the index and the number buffer.
    pub fn room(&self) -> (usize, usize) {
        (self.indices.len(), self.numbers.len())
    }

    /// Replaces the batch. `kind_scale` is the weight of each kind over its count in the global batch.
    pub fn upload(&mut self, backend: &B, batch: &Batch, kind_scale: [f64; KINDS]) -> Result<()> {
        self.index_ranges = lay_out(
            &mut self.index_staging,
            [
                &batch.ids,
                &batch.positions,
                &batch.id_runs.order,
                &batch.id_runs.offsets,
                &batch.id_runs.keys,
                &batch.tree.starts,
                &batch.tree.ancestor_offsets,
                &batch.tree.ancestors,
                &batch.tree.trees,
                &batch.source,
                &batch.target,
                &batch.head_runs.order,
                &batch.head_runs.offsets,
                &batch.head_runs.keys,
                &batch.seq_offsets,
                &batch.last_rows,
                &batch.comparisons.term_sequence,
                &batch.comparisons.term_sign,
                &batch.comparisons.kind,
                &batch.comparisons.use_offsets,
                &batch.comparisons.uses,
            ],
        );
        let table = &batch.comparisons;
        self.number_ranges = lay_out(
            &mut self.number_staging,
            [&table.scale, &table.margin, &table.weight, &table.detached_clip, &kind_scale],
        );
        let (indices, numbers) = (self.index_staging.len(), self.number_staging.len());
        if self.indices.len() < indices {
            self.indices = backend.zeros_idx(indices + indices / 4)?;
        }
        if self.numbers.len() < numbers {
            self.numbers = backend.zeros_acc(numbers + numbers / 4)?;
        }
        backend.write_idx(ViewMut::first(&mut self.indices, indices), &self.index_staging)?;
        backend.write_acc(ViewMut::first(&mut self.numbers, numbers), &self.number_staging)?;
        self.sizes = BatchSizes {
            tokens: batch.tokens(),
            rows: batch.head_rows(),
            seqs: batch.seqs(),
            comparisons: batch.comparison_count(),
            segments: batch.segments(),
            ancestors: batch.tree.ancestors.len(),
            trees: batch.trees(),
            pairs: batch.pairs,
            longest_path: batch.longest_path,
        };
        Ok(())
    }

    /// A batch as large as `limits` allow whose tables hold zeros: for rehearsals, where only sizes count.
    pub fn of_limits(backend: &B, limits: &BatchLimits) -> Result<Self> {
        let mut batch = Self::new(backend)?;
        batch.reserve(backend, limits)?;
        let l = *limits;
        let last_rows = if l.rows == 0 { l.seqs } else { 0 };
        let indices = [
            [l.tokens, l.tokens, l.tokens, l.tokens + 1, l.tokens, l.segments + 1, l.segments + 1],
            [l.ancestors, l.trees + 1, l.rows, l.rows, l.rows, l.rows + 1, l.rows],
            [l.seqs + 1, last_rows, TERMS * l.comparisons, TERMS * l.comparisons, l.comparisons, l.seqs + 1, 0],
        ];
        let numbers = [l.comparisons, l.comparisons, l.comparisons, 2 * l.comparisons, KINDS];
        batch.index_ranges = one_after_another(indices.into_iter().flatten());
        batch.number_ranges = one_after_another(numbers.into_iter());
        batch.sizes = BatchSizes {
            tokens: l.tokens,
            rows: l.rows,
            seqs: l.seqs,
            comparisons: l.comparisons,
            segments: l.segments,
            ancestors: l.ancestors,
            trees: l.trees,
            pairs: 0,
            longest_path: l.longest_path,
        };
        Ok(batch)
    }

    fn index(&self, index: Index) -> View<'_, B::Idx> {
        let range = &self.index_ranges[index as usize];
        View::new(&self.indices, range.start, range.len())
    }

    fn number(&self, number: Number) -> View<'_, B::Acc> {
        let range = &self.number_ranges[number as usize];
        View::new(&self.numbers, range.start, range.len())
    }

    /// Tokens and trees, for the model.
    pub fn inputs(&self) -> Inputs<'_, B> {
        let s = self.sizes;
        Inputs {
            tokens: s.tokens,
            segments: s.segments,
            ancestors: s.ancestors,
            trees: s.trees,
            pairs: s.pairs,
            longest_path: s.longest_path,
            ids: self.index(Index::Ids),
            positions: self.index(Index::Positions),
            id_runs: Runs {
                order: self.index(Index::IdOrder),
                offsets: self.index(Index::IdOffsets),
                keys: self.index(Index::IdKeys),
            },
            tree: Tree {
                starts: self.index(Index::Starts),
                ancestor_offsets: self.index(Index::AncestorOffsets),
                ancestors: self.index(Index::Ancestors),
                trees: self.index(Index::Trees),
            },
        }
    }

    /// (rows) hidden row of each head row.
    pub fn source(&self) -> View<'_, B::Idx> {
        self.index(Index::Source)
    }

    /// (rows) token id each head row predicts.
    pub fn target(&self) -> View<'_, B::Idx> {
        self.index(Index::Target)
    }

    /// Head rows grouped by hidden row.
    pub fn head_runs(&self) -> Runs<'_, B::Idx> {
        Runs {
            order: self.index(Index::HeadOrder),
            offsets: self.index(Index::HeadOffsets),
            keys: self.index(Index::HeadKeys),
        }
    }

    /// (seqs + 1) head rows of each sequence.
    pub fn seq_offsets(&self) -> View<'_, B::Idx> {
        self.index(Index::SeqOffsets)
    }

    /// (seqs) last row of each sequence; for rewards.
    pub fn last_rows(&self) -> View<'_, B::Idx> {
        self.index(Index::LastRows)
    }

    /// The comparison tables.
    pub fn comparisons(&self) -> Comparisons<'_, B> {
        Comparisons {
            term_sequence: self.index(Index::TermSequence),
            term_sign: self.index(Index::TermSign),
            kind: self.index(Index::Kind),
            scale: self.number(Number::Scale),
            margin: self.number(Number::Margin),
            weight: self.number(Number::Weight),
            detached_clip: self.number(Number::DetachedClip),
            kind_scale: self.number(Number::KindScale),
            use_offsets: self.index(Index::UseOffsets),
            uses: self.index(Index::Uses),
        }
    }
}
