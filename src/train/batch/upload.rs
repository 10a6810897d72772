//! A packed batch laid out for transfer (`HostBatch`) and on the device ([`DeviceBatch`]).
//!
//! ```text
//! layout    one index array and one number array; table i is array[ranges[i]]
//! training  UploadSlot::send        host batch -> slot, asynchronous
//!           DeviceBatch::receive    slot -> device buffers, enqueued
//! else      DeviceBatch::upload     host batch -> device buffers, blocking
//! ```
//!
//! Buffers grow to the largest batch seen and are reused.

pub use super::host::BatchSizes;
pub(in crate::train) use super::host::HostBatch;
pub(in crate::train) use super::layout::SequenceNumbers;

use std::ops::Range;

use super::layout::{Index, Number};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::data::pack::{Batch, BatchLimits};
use crate::model::inputs::Inputs;

/// Current batch on the device.
pub struct DeviceBatch<B: Backend> {
    indices: B::Idx,
    numbers: B::Acc,
    index_ranges: [Range<usize>; Index::COUNT],
    number_ranges: [Range<usize>; Number::COUNT],
    groups: Vec<GroupEnd>,
    /// Number of visible (query, key) pairs by distance between query and key.
    distances: Vec<u32>,
    /// Weight of the tails (response tokens beyond the shared length), if the loss has one.
    tail_alpha: Option<f64>,
    /// Host copy of the batch for [`DeviceBatch::upload`].
    staging: HostBatch,
    /// Sizes of the batch.
    pub sizes: BatchSizes,
}

/// Consecutive ranges of the given lengths.
fn consecutive_ranges<const N: usize>(lengths: [usize; N]) -> [Range<usize>; N] {
    let mut end = 0;
    lengths.map(|length| {
        let start = end;
        end += length;
        start..end
    })
}

/// Staging buffer of a batch in flight to the device, with its capacity in indices and numbers.
pub(in crate::train) struct UploadSlot<B: Backend> {
    upload_buffer: B::UploadBuffer,
    capacity: (usize, usize),
}

impl<B: Backend> UploadSlot<B> {
    /// Allocates a slot for every batch within `limits`.
    pub fn new(backend: &B, limits: &BatchLimits) -> Result<Self> {
        let capacity = (limits.indices(), limits.numbers());
        Ok(Self { upload_buffer: backend.upload_buffer(capacity.0, capacity.1)?, capacity })
    }

    /// Starts the transfer of `batch` to the slot.
    pub fn send(&mut self, backend: &B, batch: &HostBatch) -> Result<()> {
        let (indices, numbers) = batch.len();
        if indices > self.capacity.0 || numbers > self.capacity.1 {
            let capacity = (indices + indices / 4, numbers + numbers / 4);
            *self = Self { upload_buffer: backend.upload_buffer(capacity.0, capacity.1)?, capacity };
        }
        backend.send(&mut self.upload_buffer, &batch.indices, &batch.numbers)
    }

    /// Grows the slot to hold every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        if limits.indices() > self.capacity.0 || limits.numbers() > self.capacity.1 {
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
            groups: Vec::new(),
            distances: Vec::new(),
            tail_alpha: None,
            staging: HostBatch::default(),
            sizes: BatchSizes::default(),
        })
    }

    /// Grows the buffers to hold every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        self.grow(backend, (limits.indices(), limits.numbers()))
    }

    /// Capacity of the index and the number buffer, in elements.
    pub fn capacity(&self) -> (usize, usize) {
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

    /// Grows the buffers to hold `batch`, and copies its ranges, groups and sizes.
    fn take_layout(&mut self, backend: &B, batch: &HostBatch) -> Result<()> {
        let (indices, numbers) = batch.len();
        let capacity = (indices + indices / 4, numbers + numbers / 4);
        if self.indices.len() < indices || self.numbers.len() < numbers {
            self.grow(backend, capacity)?;
        }
        self.index_ranges.clone_from(&batch.index_ranges);
        self.number_ranges.clone_from(&batch.number_ranges);
        self.groups.clone_from(&batch.groups);
        self.distances.clone_from(&batch.distances);
        self.tail_alpha = batch.tail_alpha;
        self.sizes = batch.sizes;
        Ok(())
    }

    /// Enqueues the copy of a sent batch from its slot to the buffers. The copy runs after the
    /// transfer and after earlier work; the host waits for neither.
    pub(in crate::train) fn receive(&mut self, backend: &B, slot: &mut UploadSlot<B>, batch: &HostBatch) -> Result<()> {
        self.take_layout(backend, batch)?;
        backend.receive(&mut slot.upload_buffer, &mut self.indices, &mut self.numbers)
    }

    /// Replaces the batch by a blocking copy from the host.
    pub fn upload(&mut self, backend: &B, batch: &Batch, kind_scale: [f64; KINDS]) -> Result<()> {
        self.upload_with(backend, batch, kind_scale, SequenceNumbers::default())
    }

    /// Like [`DeviceBatch::upload`], with per-sequence numbers.
    pub(in crate::train) fn upload_with(
        &mut self,
        backend: &B,
        batch: &Batch,
        kind_scale: [f64; KINDS],
        of_seqs: SequenceNumbers<'_>,
    ) -> Result<()> {
        let mut staging = std::mem::take(&mut self.staging);
        staging.lay_out(batch, kind_scale, of_seqs);
        let (indices, numbers) = staging.len();
        let written = self.take_layout(backend, &staging).and_then(|()| {
            backend.write_idx(ViewMut::first(&mut self.indices, indices), &staging.indices)?;
            backend.write_acc(ViewMut::first(&mut self.numbers, numbers), &staging.numbers)
        });
        self.staging = staging;
        written
    }

    /// Batch of the largest sizes within `limits`, with tables of zeros, for the memory rehearsal. Its group
    /// ends give chunks as large as those of any batch, for a head that processes `rows_at_once` rows at a
    /// time.
    pub(in crate::train) fn of_limits(backend: &B, limits: &BatchLimits, rows_at_once: usize) -> Result<Self> {
        let mut batch = Self::new(backend)?;
        batch.reserve(backend, limits)?;
        let l = *limits;
        batch.index_ranges = consecutive_ranges(Index::lengths(&l));
        batch.number_ranges = consecutive_ranges(Number::lengths(&l));
        let chunk = rows_at_once.max(l.group_rows).max(1);
        batch.groups = (chunk..l.rows).step_by(chunk).map(|row| GroupEnd { row, seq: 0 }).collect();
        batch.groups.push(GroupEnd { row: l.rows, seq: l.seqs });
        batch.sizes = BatchSizes::of_limits(&l, 0);
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

    /// Tokens and trees, as inputs of the model.
    pub fn inputs(&self) -> Inputs<'_, B> {
        let s = self.sizes;
        Inputs {
            tokens: s.tokens,
            segments: s.segments,
            ancestors: s.ancestors,
            trees: s.trees,
            pairs: s.pairs,
            distances: &self.distances,
            longest_path: s.longest_path,
            ids: self.index(Index::Ids),
            positions: self.index(Index::Positions),
            id_runs: Runs {
                order: self.index(Index::IdOrder),
                offsets: self.index(Index::IdOffsets),
                keys: self.index(Index::IdKeys),
            },
            position_runs: Runs {
                order: self.index(Index::PositionOrder),
                offsets: self.index(Index::PositionOffsets),
                keys: self.index(Index::PositionKeys),
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

    /// Head rows, grouped by hidden row.
    pub fn head_runs(&self) -> Runs<'_, B::Idx> {
        Runs {
            order: self.index(Index::HeadOrder),
            offsets: self.index(Index::HeadOffsets),
            keys: self.index(Index::HeadKeys),
        }
    }

    /// (seqs + 1) offsets of each sequence's head rows.
    pub fn seq_offsets(&self) -> View<'_, B::Idx> {
        self.index(Index::SeqOffsets)
    }

    /// Ends of the preference groups, in rows and sequences.
    pub fn groups(&self) -> &[GroupEnd] {
        &self.groups
    }

    /// (seqs) last row of each sequence, for reward models.
    pub fn last_rows(&self) -> View<'_, B::Idx> {
        self.index(Index::LastRows)
    }

    /// (seqs) gradient of each score in addition to the comparisons' gradient; `None` if the loss has none.
    pub fn direct(&self) -> Option<View<'_, B::Acc>> {
        Some(self.number(Number::Direct)).filter(|view| view.len == self.sizes.seqs)
    }

    /// (seqs) cached scores of the frozen reference; empty without a cache.
    pub(in crate::train) fn frozen_scores(&self) -> View<'_, B::Acc> {
        self.number(Number::Frozen)
    }

    /// (seqs) 1 / head rows of each sequence, for loss curves per token.
    pub(in crate::train) fn inverse_rows(&self) -> View<'_, B::Acc> {
        self.number(Number::InverseRows)
    }

    /// Tails of the sequences, if the loss weights them.
    pub(in crate::train) fn tail(&self) -> Option<Tail<'_, B>> {
        Some(Tail { starts: self.number(Number::TailStarts), alpha: self.tail_alpha? })
    }

    /// Comparison tables.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    /// The memory rehearsal must see the largest chunk of head rows that any batch within the limits has.
    #[test]
    fn the_largest_batch_has_the_largest_chunks() {
        let cpu = Cpu::new();
        let chunks = |rows, group_rows, max_rows| {
            let limits = BatchLimits { tokens: 50, rows, group_rows, seqs: 8, ..BatchLimits::default() };
            let batch = DeviceBatch::of_limits(&cpu, &limits, max_rows).unwrap();
            let chunks: Vec<usize> = chunks_of(batch.groups(), max_rows).iter().map(|c| c.rows.len()).collect();
            assert_eq!(batch.groups().last(), Some(&GroupEnd { row: rows, seq: 8 }));
            chunks
        };
        assert_eq!(chunks(40, 25, usize::MAX), [40]);
        assert_eq!(chunks(40, 25, 40), [40]);
        assert_eq!(chunks(40, 3, 16), [16, 16, 8]);
        assert_eq!(chunks(40, 25, 16), [25, 15]);
        assert_eq!(chunks(0, 0, 16), [0]);
    }
}
