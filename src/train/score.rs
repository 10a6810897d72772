//! From a batch to per-sequence scores and back: the part of a step that training, evaluation and the frozen
//! reference share.

use super::upload::DeviceBatch;
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Buffer, View, ViewMut, Write};
use crate::data::pack::BatchLimits;
use crate::model::activations::{Activations, Mode};
use crate::model::config::Head;
use crate::model::decoder::Model;
use crate::model::decoder_grad::slot;

/// Buffers between the model and the loss, and the model's workspace.
pub struct Scorer<B: Backend> {
    pub acts: Activations<B>,
    /// (rows)
    logp: B::Acc,
    /// (rows)
    lse: B::Acc,
    /// (rows)
    dlogp: B::Acc,
    /// (seqs) sum or mean of log-probs, or the reward
    pub score: B::Acc,
}

/// Makes a buffer hold at least `len` elements, a quarter more when it must grow.
pub(super) fn grow<B: Backend>(backend: &B, buffer: &mut B::Acc, len: usize) -> Result<()> {
    if buffer.len() < len {
        *buffer = backend.zeros_acc(len + len / 4)?;
    }
    Ok(())
}

/// Makes a buffer hold `len` elements exactly, where it holds less.
pub(super) fn reserve<B: Backend>(backend: &B, buffer: &mut B::Acc, len: usize) -> Result<()> {
    if buffer.len() < len {
        *buffer = backend.zeros_acc(len)?;
    }
    Ok(())
}

impl<B: Backend> Scorer<B> {
    /// A scorer without room; it grows with the first batch.
    pub fn new(backend: &B, model: &Model<B>, mode: Mode) -> Result<Self> {
        Ok(Self {
            acts: Activations::new(backend, &model.config, mode, 0)?,
            logp: backend.zeros_acc(0)?,
            lse: backend.zeros_acc(0)?,
            dlogp: backend.zeros_acc(0)?,
            score: backend.zeros_acc(0)?,
        })
    }

    /// Makes room for every batch within `limits`, so that no later call allocates.
    pub fn reserve(&mut self, backend: &B, model: &Model<B>, mode: Mode, limits: &BatchLimits) -> Result<()> {
        self.acts.reserve(backend, &model.config, limits.tokens)?;
        let backward = if mode.trains() { limits.rows } else { 0 };
        for (buffer, len) in [
            (&mut self.logp, limits.rows),
            (&mut self.lse, limits.rows),
            (&mut self.dlogp, backward),
            (&mut self.score, limits.seqs),
        ] {
            reserve(backend, buffer, len)?;
        }
        Ok(())
    }

    /// Runs the model over the batch; the result is `self.score` (seqs).
    pub fn forward(&mut self, backend: &B, model: &Model<B>, batch: &DeviceBatch<B>, reduce: Reduce) -> Result<()> {
        let s = batch.sizes;
        grow(backend, &mut self.score, s.seqs)?;
        model.forward(backend, &batch.inputs(), &mut self.acts)?;
        let hidden = View::first(&self.acts.hidden, s.tokens * model.config.hidden);
        if let Some(weight) = &model.layout.score {
            return backend.reward_head_fwd(RewardHeadFwd {
                dims: RewardDims { tokens: s.tokens, hidden: model.config.hidden, seqs: s.seqs },
                hidden,
                weight: model.weight(weight),
                rows: batch.last_rows(),
                score: ViewMut::first(&mut self.score, s.seqs),
            });
        }
        grow(backend, &mut self.logp, s.rows)?;
        grow(backend, &mut self.lse, s.rows)?;
        backend.head_logprob_fwd(HeadLogprobFwd {
            dims: head_dims(model, batch),
            hidden,
            head: head(model),
            source: batch.source(),
            target: batch.target(),
            logp: ViewMut::first(&mut self.logp, s.rows),
            lse: ViewMut::first(&mut self.lse, s.rows),
        })?;
        backend.segment_sum_fwd(SegmentSumFwd {
            rows: s.rows,
            seqs: s.seqs,
            reduce,
            values: View::first(&self.logp, s.rows),
            offsets: batch.seq_offsets(),
            sums: ViewMut::first(&mut self.score, s.seqs),
        })
    }

    /// Gradients of all weights from `dscore` (seqs), after [`Scorer::forward`] on the same batch; `grads`
    /// (layout.len) is overwritten or added to.
    pub fn backward(
        &mut self,
        backend: &B,
        model: &Model<B>,
        batch: &DeviceBatch<B>,
        reduce: Reduce,
        dscore: View<'_, B::Acc>,
        (grads, write): (&mut B::Acc, Write),
    ) -> Result<()> {
        let s = batch.sizes;
        let wide = s.tokens * model.config.hidden;
        grow(backend, &mut self.dlogp, s.rows)?;
        let Activations { hidden, gradients, .. } = &mut self.acts;
        let Some(gradients) = gradients else {
            return Err(crate::Error::Runtime("backward needs a workspace made for training".into()));
        };
        let dhidden = ViewMut::first(&mut gradients.dnormed, wide);
        if let Some(weight) = &model.layout.score {
            backend.reward_head_bwd(RewardHeadBwd {
                dims: RewardDims { tokens: s.tokens, hidden: model.config.hidden, seqs: s.seqs },
                hidden: View::first(hidden, wide),
                weight: model.weight(weight),
                rows: batch.last_rows(),
                dscore,
                dhidden,
                dweight: slot(grads, weight),
                dweight_write: write,
            })?;
        } else {
            backend.segment_sum_bwd(SegmentSumBwd {
                rows: s.rows,
                seqs: s.seqs,
                reduce,
                dsums: dscore,
                offsets: batch.seq_offsets(),
                dvalues: ViewMut::first(&mut self.dlogp, s.rows),
            })?;
            backend.head_logprob_bwd(HeadLogprobBwd {
                dims: head_dims(model, batch),
                hidden: View::first(hidden, wide),
                head: head(model),
                source: batch.source(),
                target: batch.target(),
                runs: batch.head_runs(),
                lse: View::first(&self.lse, s.rows),
                dlogp: View::first(&self.dlogp, s.rows),
                dhidden,
                dhead: slot(grads, head_range(model)),
                dhead_write: write,
            })?;
        }
        model.backward(backend, &batch.inputs(), &mut self.acts, grads, write)
    }

    /// Per-token log-probs of the last batch (rows), for tests and tools.
    pub fn read_logp(&self, backend: &B, rows: usize) -> Result<Vec<f64>> {
        read(backend, &self.logp, rows)
    }

    /// Scores of the last batch (seqs); waits for them.
    pub fn read_score(&self, backend: &B, seqs: usize) -> Result<Vec<f64>> {
        read(backend, &self.score, seqs)
    }
}

/// The first `len` elements on the host.
pub(super) fn read<B: Backend>(backend: &B, buffer: &B::Acc, len: usize) -> Result<Vec<f64>> {
    let mut values = vec![0.0; len];
    backend.read_acc(View::first(buffer, len), &mut values)?;
    Ok(values)
}

fn head_dims<B: Backend>(model: &Model<B>, batch: &DeviceBatch<B>) -> HeadDims {
    debug_assert_eq!(model.config.head, Head::LanguageModel);
    HeadDims {
        tokens: batch.sizes.tokens,
        hidden: model.config.hidden,
        vocab: model.config.vocab,
        rows: batch.sizes.rows,
    }
}

fn head_range<B: Backend>(model: &Model<B>) -> &std::ops::Range<usize> {
    model.layout.lm_head.as_ref().unwrap_or(&model.layout.embedding)
}

fn head<B: Backend>(model: &Model<B>) -> View<'_, B::Act> {
    model.weight(head_range(model))
}
