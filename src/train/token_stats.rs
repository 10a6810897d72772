//! Entropy, mean logits and token accuracy of the policy for the logs, as TRL's trainers define them.
//! The head computes them per row; here they are summed by sequence on the device, then over tokens.
//!
//! ```text
//! entropy                    mean over the scored tokens of chosen and rejected responses (SFT: of all)
//! logits/chosen, /rejected   mean over the chosen (rejected) tokens of the mean logit over the vocabulary
//! mean_token_accuracy        share of the chosen (SFT: of all) tokens that are the most likely ones
//! ```
//!
//! With several micro-batches, the means are over the tokens of the whole step.

use super::score::{grow, reserve};
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Buffer, View, ViewMut};
use crate::data::pack::{Batch, BatchLimits};
use crate::loss::objective::Method;

/// Buffers of a batch's statistics.
pub(super) struct TokenStats<B: Backend> {
    /// (ROW_STATS, rows)
    rows: B::Acc,
    /// (ROW_STATS, capacity) sums over the rows of each sequence. The second dimension is the capacity of the
    /// buffer, so that padding of a batch does not move the sums.
    sums: B::Acc,
}

impl<B: Backend> TokenStats<B> {
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self { rows: backend.zeros_acc(0)?, sums: backend.zeros_acc(0)? })
    }

    /// Reserves buffers for every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        reserve(backend, &mut self.rows, ROW_STATS * limits.rows)?;
        reserve(backend, &mut self.sums, ROW_STATS * limits.seqs)
    }

    pub fn grow(&mut self, backend: &B, rows: usize, seqs: usize) -> Result<()> {
        grow(backend, &mut self.rows, ROW_STATS * rows)?;
        grow(backend, &mut self.sums, ROW_STATS * seqs)
    }

    /// Returns the buffer into which the head writes the statistics of `rows` rows.
    pub fn of_rows(&mut self, rows: usize) -> ViewMut<'_, B::Acc> {
        ViewMut::first(&mut self.rows, ROW_STATS * rows)
    }

    /// Sums the rows of each sequence.
    pub fn sum(&mut self, backend: &B, (rows, seqs): (usize, usize), offsets: View<'_, B::Idx>) -> Result<()> {
        let capacity = self.capacity();
        for i in 0..ROW_STATS {
            backend.segment_sum_fwd(SegmentSumFwd {
                rows,
                seqs,
                reduce: Reduce::Sum,
                values: View::first(&self.rows, ROW_STATS * rows).part(i * rows, rows),
                offsets,
                tail: None,
                sums: ViewMut::first(&mut self.sums, (i + 1) * capacity).part(i * capacity, seqs),
            })?;
        }
        Ok(())
    }

    /// Returns the sums of entropy, mean logit and top-1 hits over each sequence of the last batch, (seqs)
    /// each.
    pub fn results(&self, seqs: usize) -> [View<'_, B::Acc>; ROW_STATS] {
        let capacity = self.capacity();
        std::array::from_fn(|i| View::first(&self.sums, (i + 1) * capacity).part(i * capacity, seqs))
    }

    /// [`TokenStats::results`] on the host, concatenated; waits for them.
    pub fn read(&self, backend: &B, seqs: usize) -> Result<Vec<f64>> {
        let mut values = vec![0.0; ROW_STATS * seqs];
        for (i, view) in self.results(seqs).into_iter().enumerate() {
            backend.read_acc(view, &mut values[i * seqs..(i + 1) * seqs])?;
        }
        Ok(values)
    }

    fn capacity(&self) -> usize {
        self.sums.len() / ROW_STATS
    }
}

/// Sums over the tokens of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenTally {
    /// Sum of entropies over chosen and rejected tokens.
    pub entropy: f64,
    /// Sums of mean logits over chosen and over rejected tokens.
    pub logits: [f64; 2],
    /// Numbers of chosen and of rejected tokens that are the most likely ones.
    pub correct: [f64; 2],
    /// Numbers of chosen and of rejected tokens.
    pub tokens: [usize; 2],
}

impl TokenTally {
    /// Adds a sequence to one side: 0 is chosen, 1 is rejected. `sums` is (ROW_STATS, seqs), and empty
    /// if tokens are not measured.
    pub(super) fn add(&mut self, side: usize, batch: &Batch, sequence: usize, sums: &[f64]) {
        if sums.is_empty() {
            return;
        }
        let seqs = sums.len() / ROW_STATS;
        let [entropy, logit, correct] = std::array::from_fn(|i| sums[i * seqs + sequence]);
        self.entropy += entropy;
        self.logits[side] += logit;
        self.correct[side] += correct;
        self.tokens[side] += (batch.seq_offsets[sequence + 1] - batch.seq_offsets[sequence]) as usize;
    }

    /// Adds the sums of another tally of the same step.
    pub(super) fn merge(&mut self, other: &Self) {
        self.entropy += other.entropy;
        for side in 0..2 {
            self.logits[side] += other.logits[side];
            self.correct[side] += other.correct[side];
            self.tokens[side] += other.tokens[side];
        }
    }

    /// Passes to `put` the values that TRL's trainer of the method logs, by TRL's names. Values without data
    /// are omitted.
    pub(super) fn named(&self, method: Method, mut put: impl FnMut(&str, f64)) {
        let [chosen, rejected] = self.tokens;
        if chosen + rejected > 0 {
            put("entropy", self.entropy / (chosen + rejected) as f64);
        }
        if method != Method::Kto && chosen > 0 {
            put("mean_token_accuracy", self.correct[0] / chosen as f64);
        }
        for (side, name) in ["logits/chosen", "logits/rejected"].into_iter().enumerate() {
            if method != Method::Sft && self.tokens[side] > 0 {
                put(name, self.logits[side] / self.tokens[side] as f64);
            }
        }
    }
}
