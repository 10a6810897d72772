//! A packed batch laid out for transfer ([`HostBatch`]) and on the device ([`DeviceBatch`]): one index buffer and one number
//! buffer, and the views that ops take. Buffers grow to the largest batch seen and are reused.

use std::ops::Range;

use super::padding::{segment_ends, tree_ends};
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
    /// (seqs) gradient of each score beside the comparisons; empty without one.
    Direct,
    /// (seqs) scores of a reference that were computed before; empty without them.
    Reference,
}
const NUMBERS: usize = Number::Reference as usize + 1;

/// Sizes of a batch that the host needs to launch ops.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSizes {
    pub tokens: usize,
    /// Head rows; 0 for rewards.
    pub rows: usize,
    pub seqs: usize,
    pub comparisons: usize,
    pub segments: usize,
    pub ancestors: usize,
    pub trees: usize,
    pub pairs: u64,
    pub longest_path: usize,
}

impl BatchSizes {
    /// Sizes of a packed batch.
    pub fn of(batch: &Batch) -> Self {
        Self {
            tokens: batch.tokens(),
            rows: batch.head_rows(),
            seqs: batch.seqs(),
            comparisons: batch.comparison_count(),
            segments: batch.segments(),
            ancestors: batch.tree.ancestors.len(),
            trees: batch.trees(),
            pairs: batch.pairs,
            longest_path: batch.longest_path,
        }
    }
}

/// A batch laid out for transfer; made without a device.
#[derive(Debug, Default)]
pub struct HostBatch {
    indices: Vec<i32>,
    numbers: Vec<f64>,
    index_ranges: [Range<usize>; INDICES],
    number_ranges: [Range<usize>; NUMBERS],
    pub sizes: BatchSizes,
}

/// Per-sequence numbers that go with a batch; each is empty or (seqs).
#[derive(Clone, Copy, Default)]
pub struct SequenceNumbers<'a> {
    /// Gradient of each score beside the comparisons.
    pub direct: &'a [f64],
    /// Scores of a reference that were computed before.
    pub reference: &'a [f64],
}

/// The current batch of a backend.
pub struct DeviceBatch<B: Backend> {
    indices: B::Idx,
    numbers: B::Acc,
    index_ranges: [Range<usize>; INDICES],
    number_ranges: [Range<usize>; NUMBERS],
    /// The batch of [`DeviceBatch::upload`] on the host.
    staging: HostBatch,
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

/// Puts values behind every array.
fn insert<T: Copy, const N: usize>(values: &mut Vec<T>, ranges: &mut [Range<usize>; N], behind: &[Vec<T>; N]) {
    let mut all = Vec::with_capacity(values.len() + behind.iter().map(Vec::len).sum::<usize>());
    for (range, behind) in ranges.iter_mut().zip(behind) {
        let start = all.len();
        all.extend_from_slice(&values[range.clone()]);
        all.extend_from_slice(behind);
        *range = start..all.len();
    }
    *values = all;
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

impl HostBatch {
    /// Lays a batch out. `kind_scale` is the weight of each kind over its count in the global batch.
    pub fn lay_out(&mut self, batch: &Batch, kind_scale: [f64; KINDS], of_seqs: SequenceNumbers<'_>) {
        self.index_ranges = lay_out(
            &mut self.indices,
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
            &mut self.numbers,
            [
                &table.scale,
                &table.margin,
                &table.weight,
                &table.detached_clip,
                &kind_scale,
                of_seqs.direct,
                of_seqs.reference,
            ],
        );
        self.sizes = BatchSizes::of(batch);
    }

    /// Fills the batch up to `shape`, which it is smaller than, as [`super::padding`] says.
    pub fn pad(&mut self, shape: &BatchLimits) {
        let s = self.sizes;
        let last_token = shape.tokens as i32 - 1;
        let fill = |value: i32, count: usize| vec![value; count];
        let int = |places: &mut dyn Iterator<Item = usize>| places.map(|i| i as i32).collect::<Vec<i32>>();
        let (tokens, rows, seqs) = (shape.tokens - s.tokens, shape.rows - s.rows, shape.seqs - s.seqs);
        let (segments, trees) = (shape.segments - s.segments, shape.trees - s.trees);
        let terms = TERMS * (shape.comparisons - s.comparisons);
        let length = |index: Index| self.index_ranges[index as usize].len();
        let last = |index: Index| self.index_ranges[index as usize].end.checked_sub(1).map_or(0, |i| self.indices[i]);
        let of_rewards = if shape.rows == 0 { seqs } else { 0 };
        let padding: [Vec<i32>; INDICES] = [
            fill(0, tokens),
            fill(0, tokens),
            int(&mut (s.tokens..shape.tokens)),
            fill(shape.tokens as i32, shape.tokens - length(Index::IdKeys)),
            fill(-1, shape.tokens - length(Index::IdKeys)),
            int(&mut segment_ends(s.tokens, tokens, segments)),
            fill(last(Index::AncestorOffsets), segments),
            fill(0, shape.ancestors - s.ancestors),
            int(&mut tree_ends(s.segments, segments, trees)),
            fill(last_token, rows),
            fill(0, rows),
            int(&mut (s.rows..shape.rows)),
            fill(shape.rows as i32, shape.rows - length(Index::HeadKeys)),
            fill(-1, shape.rows - length(Index::HeadKeys)),
            fill(shape.rows as i32, seqs),
            fill(last_token, of_rewards),
            fill(-1, terms),
            fill(0, terms),
            fill(0, terms / TERMS),
            fill(last(Index::UseOffsets), seqs),
            fill(0, TERMS * shape.comparisons - length(Index::Uses)),
        ];
        insert(&mut self.indices, &mut self.index_ranges, &padding);
        let filled = |present: usize, count: usize| if present == 0 { 0 } else { count };
        let length = |number: Number| self.number_ranges[number as usize].len();
        let padding: [Vec<f64>; NUMBERS] = [
            vec![1.0; terms / TERMS],
            vec![0.0; terms / TERMS],
            vec![0.0; terms / TERMS],
            vec![0.0; 2 * (terms / TERMS)],
            Vec::new(),
            vec![0.0; filled(length(Number::Direct), seqs)],
            vec![0.0; filled(length(Number::Reference), seqs)],
        ];
        insert(&mut self.numbers, &mut self.number_ranges, &padding);
        self.sizes = BatchSizes {
            tokens: shape.tokens,
            rows: shape.rows,
            seqs: shape.seqs,
            comparisons: shape.comparisons,
            segments: shape.segments,
            ancestors: shape.ancestors,
            trees: shape.trees,
            pairs: s.pairs,
            longest_path: shape.longest_path,
        };
    }

    /// (seqs) gradient of each score beside the comparisons; empty without one.
    pub fn direct(&self) -> &[f64] {
        &self.numbers[self.number_ranges[Number::Direct as usize].clone()]
    }

    /// Indices and numbers to transfer.
    pub fn len(&self) -> (usize, usize) {
        (self.indices.len(), self.numbers.len())
    }
}

/// A batch on its way to the device, and how large it may be.
pub struct Arrival<B: Backend> {
    inlet: B::Inlet,
    room: (usize, usize),
}

impl<B: Backend> Arrival<B> {
    /// Room for every batch within `limits`.
    pub fn new(backend: &B, limits: &BatchLimits) -> Result<Self> {
        let room = (limits.indices(), limits.numbers());
        Ok(Self { inlet: backend.inlet(room.0, room.1)?, room })
    }

    /// Starts the transfer.
    pub fn send(&mut self, backend: &B, batch: &HostBatch) -> Result<()> {
        let (indices, numbers) = batch.len();
        if indices > self.room.0 || numbers > self.room.1 {
            let room = (indices + indices / 4, numbers + numbers / 4);
            *self = Self { inlet: backend.inlet(room.0, room.1)?, room };
        }
        backend.send(&mut self.inlet, &batch.indices, &batch.numbers)
    }

    /// Makes room for every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        if limits.indices() > self.room.0 || limits.numbers() > self.room.1 {
            *self = Self::new(backend, limits)?;
        }
        Ok(())
    }
}

impl<B: Backend> DeviceBatch<B> {
    /// An empty batch.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            indices: backend.zeros_idx(0)?,
            numbers: backend.zeros_acc(0)?,
            index_ranges: std::array::from_fn(|_| 0..0),
            number_ranges: std::array::from_fn(|_| 0..0),
            staging: HostBatch::default(),
            sizes: BatchSizes::default(),
        })
    }

    /// Makes room for every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        self.grow(backend, (limits.indices(), limits.numbers()))
    }

    /// Elements of the index and the number buffer.
    pub fn room(&self) -> (usize, usize) {
        (self.indices.len(), self.numbers.len())
    }

    fn grow(&mut self, backend: &B, (indices, numbers): (usize, usize)) -> Result<()> {
        if self.indices.len() < indices {
            self.indices = backend.zeros_idx(indices)?;
        }
        if self.numbers.len() < numbers {
            self.numbers = backend.zeros_acc(numbers)?;
        }
        Ok(())
    }

    /// Makes the buffers hold `batch` and takes its layout over.
    fn adopt(&mut self, backend: &B, batch: &HostBatch) -> Result<()> {
        let (indices, numbers) = batch.len();
        let room = (indices + indices / 4, numbers + numbers / 4);
        if self.indices.len() < indices || self.numbers.len() < numbers {
            self.grow(backend, room)?;
        }
        self.index_ranges.clone_from(&batch.index_ranges);
        self.number_ranges.clone_from(&batch.number_ranges);
        self.sizes = batch.sizes;
        Ok(())
    }

    /// Replaces the batch by one that was sent, when it has arrived and the work before is done; waits for neither.
    pub fn receive(&mut self, backend: &B, arrival: &mut Arrival<B>, batch: &HostBatch) -> Result<()> {
        self.adopt(backend, batch)?;
        backend.receive(&mut arrival.inlet, &mut self.indices, &mut self.numbers)
    }

    /// Replaces the batch.
    pub fn upload(&mut self, backend: &B, batch: &Batch, kind_scale: [f64; KINDS]) -> Result<()> {
        let mut staging = std::mem::take(&mut self.staging);
        staging.lay_out(batch, kind_scale, SequenceNumbers::default());
        let (indices, numbers) = staging.len();
        let done = self.adopt(backend, &staging).and_then(|()| {
            backend.write_idx(ViewMut::first(&mut self.indices, indices), &staging.indices)?;
            backend.write_acc(ViewMut::first(&mut self.numbers, numbers), &staging.numbers)
        });
        self.staging = staging;
        done
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
        let numbers = [l.comparisons, l.comparisons, l.comparisons, 2 * l.comparisons, KINDS, l.seqs, l.seqs];
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

    /// (seqs) gradient of each score beside the comparisons; `None` without one.
    pub fn direct(&self) -> Option<View<'_, B::Acc>> {
        Some(self.number(Number::Direct)).filter(|view| view.len > 0)
    }

    /// (seqs) scores of a reference that were computed before; of length 0 without them.
    pub fn reference(&self) -> View<'_, B::Acc> {
        self.number(Number::Reference)
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
