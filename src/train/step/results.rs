//! Readback of a step's results: layout of the readback buffer, and its reading on the host.
//!
//! ```text
//! buffer       control vector, then per micro-batch:
//! micro-batch  scores (seqs), frozen scores (seqs), losses (comparisons), logits (comparisons),
//!              statistics of tokens (ROW_STATS, seqs)
//! ```
//!
//! SFT has only scores and statistics. Frozen scores are present if the loss has a reference, statistics if
//! it measures tokens.

use super::{Pending, Trainer};
use crate::Result;
use crate::backend::contract::{CONTROL, ROW_STATS};
use crate::backend::{Backend, View};
use crate::data::pack::Batch;
use crate::loss::objective::Method;
use crate::train::batch::packing::{MicroBatchResults, PackedMicroBatch};
use crate::train::metrics::Tally;

impl<B: Backend> Trainer<'_, B> {
    /// Enqueues the readback of a micro-batch's results to `results[at..]`; returns the offset after them.
    pub(super) fn fetch(&mut self, batch: &Batch, results: &mut B::ReadbackBuffer, mut at: usize) -> Result<usize> {
        let (backend, seqs, comparisons) = (self.backend, batch.seqs(), batch.comparison_count());
        let mut fetch = |view: View<'_, B::Acc>| {
            let start = at;
            at += view.len;
            backend.fetch(view, results, start)
        };
        fetch(View::first(&self.scorer.score, seqs))?;
        if self.loss.method != Method::Sft {
            if let Some(frozen) = &self.frozen {
                fetch(frozen.scores(&self.batch).part(0, seqs))?;
            }
            self.losses.results(comparisons).into_iter().try_for_each(&mut fetch)?;
        }
        if let Some(stats) = self.scorer.stats(seqs) {
            stats.into_iter().try_for_each(fetch)?;
        }
        Ok(at)
    }

    /// Waits for a step's results and adds them to `tally`; returns the control vector after the
    /// step.
    pub(super) fn collect(
        &mut self,
        mut pending: Pending<B>,
        tally: &mut Tally,
        not_finite: &mut Vec<String>,
    ) -> Result<[f64; CONTROL]> {
        let with_comparisons = self.loss.method != Method::Sft;
        let lengths = |p: &PackedMicroBatch| {
            let (seqs, comparisons) = (p.batch.seqs(), p.batch.comparison_count());
            let frozen = if self.frozen.is_some() { seqs } else { 0 };
            let stats = if self.loss.measures_tokens() { ROW_STATS * seqs } else { 0 };
            if with_comparisons { [seqs, frozen, comparisons, comparisons, stats] } else { [seqs, 0, 0, 0, stats] }
        };
        let len = pending.packed.micro_batches().iter().map(|p| lengths(p).iter().sum::<usize>()).sum::<usize>();
        let mut values = vec![0.0; CONTROL + len];
        self.backend.open(&mut pending.results, &mut values)?;
        let (control, mut rest) = values.split_at(CONTROL);
        for packed in pending.packed.micro_batches() {
            let [score, frozen, loss, logit, stats] = lengths(packed).map(|len| {
                let (part, after) = rest.split_at(len);
                rest = after;
                part
            });
            let (part, ids) = packed.tally(&self.loss, &MicroBatchResults { score, frozen, loss, logit, stats });
            tally.merge(&part);
            not_finite.extend(ids.into_iter().map(str::to_owned));
        }
        let control = std::array::from_fn(|i| control[i]);
        self.spare_readback_buffers.push((pending.results, pending.capacity));
        self.spare_steps.push(pending.packed);
        Ok(control)
    }
}
