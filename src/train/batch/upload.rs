//! A packed batch laid out for transfer ([`HostBatch`]) and on the device ([`DeviceBatch`]): one index buffer and one number
//! buffer, and the views that ops take. Buffers grow to the largest batch seen and are reused.

pub use super::host::{BatchSizes, HostBatch, SequenceNumbers};

use std::ops::Range;

use super::host::{INDICES, Index, NUMBERS, Number};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::data::pack::{Batch, BatchLimits};
use crate::model::inputs::Inputs;

/// The current batch of a backend.
pub struct DeviceBatch<B: Backend> {
    indices: B::Idx,
    numbers: B::Acc,
    index_ranges: [Range<usize>; INDICES],
    number_ranges: [Range<usize>; NUMBERS],
    groups: Vec<GroupEnd>,
    /// The batch of [`DeviceBatch::upload`] on the host.
    staging: HostBatch,
    pub sizes: BatchSizes,
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
            groups: Vec::new(),
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
        self.groups.clone_from(&batch.groups);
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

    /// A batch as large as `limits` allow whose tables hold zeros: for rehearsals, where only sizes count. Its groups make
    /// chunks as large as any batch's, for a head that takes `rows_at_once`.
    pub fn of_limits(backend: &B, limits: &BatchLimits, rows_at_once: usize) -> Result<Self> {
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
        let chunk = rows_at_once.max(l.group_rows).max(1);
        batch.groups = (chunk..l.rows).step_by(chunk).map(|row| GroupEnd { row, seq: 0 }).collect();
        batch.groups.push(GroupEnd { row: l.rows, seq: l.seqs });
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

    /// Ends of the preference groups.
    pub fn groups(&self) -> &[GroupEnd] {
        &self.groups
    }

    /// (seqs) last row of each sequence; for rewards.
    pub fn last_rows(&self) -> View<'_, B::Idx> {
        self.index(Index::LastRows)
    }

    /// (seqs) gradient of each score beside the comparisons; `None` without one.
    pub fn direct(&self) -> Option<View<'_, B::Acc>> {
        Some(self.number(Number::Direct)).filter(|view| view.len == self.sizes.seqs)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;

    /// A rehearsal must see the largest chunk that any batch within the limits has.
    #[test]
    fn chunks_of_a_largest_batch_are_as_large_as_any() {
        let cpu = Cpu::new();
        let chunks = |rows, group_rows, most_rows| {
            let limits = BatchLimits { tokens: 50, rows, group_rows, seqs: 8, ..BatchLimits::default() };
            let batch = DeviceBatch::of_limits(&cpu, &limits, most_rows).unwrap();
            let chunks: Vec<usize> = chunks_of(batch.groups(), most_rows).iter().map(|c| c.rows.len()).collect();
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
