//! Computes the per-sequence scores of a batch, and their backward. Training, evaluation and the frozen
//! reference share this part of a step.

use std::ops::Range;
use std::sync::Arc;

use super::batch::upload::DeviceBatch;
use super::losses::Losses;
use super::token_stats::TokenStats;
use crate::Result;
use crate::backend::contract::*;
use crate::backend::{Backend, Buffer, View, ViewMut, Write};
use crate::data::pack::BatchLimits;
use crate::loss::objective::Loss;
use crate::model::activations::{Activations, Gradients, Mode};
use crate::model::config::Head;
use crate::model::decoder::Model;
use crate::model::decoder_grad::GradientsOut;
use crate::model::lora::layout::LoraLayout;

/// Buffers between model and loss, and the activations of the model.
pub struct Scorer<B: Backend> {
    /// Activations.
    pub acts: Activations<B>,
    /// (rows)
    logp: B::Acc,
    /// (rows)
    lse: B::Acc,
    /// (rows)
    dlogp: B::Acc,
    /// (seqs) sum or mean of log-probs, or the reward
    pub score: B::Acc,
    /// Statistics of the policy's tokens, if they are measured.
    stats: Option<TokenStats<B>>,
}

/// Grows a buffer to at least `len` elements, with a quarter of slack.
pub(super) fn grow<B: Backend>(backend: &B, buffer: &mut B::Acc, len: usize) -> Result<()> {
    if buffer.len() < len {
        *buffer = backend.zeros_acc(len + len / 4)?;
    }
    Ok(())
}

/// Grows a buffer to exactly `len` elements if it is smaller.
pub(super) fn reserve<B: Backend>(backend: &B, buffer: &mut B::Acc, len: usize) -> Result<()> {
    if buffer.len() < len {
        *buffer = backend.zeros_acc(len)?;
    }
    Ok(())
}

impl<B: Backend> Scorer<B> {
    /// Scorer with empty buffers, which grow with the first batch.
    pub fn new(backend: &B, model: &Model<B>, mode: Mode) -> Result<Self> {
        let adapters = model.lora.as_ref().map(|lora| lora.layout.clone());
        Self::with_adapters(backend, model, adapters, mode)
    }

    /// Scorer of the model without its adapters.
    pub(super) fn of_base(backend: &B, model: &Model<B>) -> Result<Self> {
        Self::with_adapters(backend, model, None, Mode::Infer)
    }

    fn with_adapters(backend: &B, model: &Model<B>, adapters: Option<Arc<LoraLayout>>, mode: Mode) -> Result<Self> {
        Ok(Self {
            acts: Activations::with_adapters(backend, &model.config, adapters, mode, 0)?,
            logp: backend.zeros_acc(0)?,
            lse: backend.zeros_acc(0)?,
            dlogp: backend.zeros_acc(0)?,
            score: backend.zeros_acc(0)?,
            stats: None,
        })
    }

    /// Enables token statistics for later batches if the loss requires them.
    pub(super) fn measuring(mut self, backend: &B, loss: &Loss) -> Result<Self> {
        self.stats = loss.measures_tokens().then(|| TokenStats::new(backend)).transpose()?;
        Ok(self)
    }

    /// Returns the sums of each statistic over the tokens of each sequence of the last batch, (seqs) each, if
    /// tokens are measured.
    pub(super) fn stats(&self, seqs: usize) -> Option<[View<'_, B::Acc>; ROW_STATS]> {
        self.stats.as_ref().map(|stats| stats.results(seqs))
    }

    /// [`Scorer::stats`] on the host, empty if tokens are not measured; waits for them.
    pub(super) fn read_stats(&self, backend: &B, seqs: usize) -> Result<Vec<f64>> {
        self.stats.as_ref().map_or(Ok(Vec::new()), |stats| stats.read(backend, seqs))
    }

    /// Sums the statistics of each sequence, if tokens are measured.
    fn sum_stats(&mut self, backend: &B, batch: &DeviceBatch<B>) -> Result<()> {
        let sizes = (batch.sizes.rows, batch.sizes.seqs);
        self.stats.as_mut().map_or(Ok(()), |stats| stats.sum(backend, sizes, batch.seq_offsets()))
    }

    /// Reserves buffers for every batch within `limits`, so that no later call allocates.
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
        self.stats.as_mut().map_or(Ok(()), |stats| stats.reserve(backend, limits))
    }

    /// Runs the model on the batch and scores every sequence into `self.score` (seqs). This is sufficient if
    /// no backward follows.
    pub fn forward(&mut self, backend: &B, model: &mut Model<B>, batch: &DeviceBatch<B>, reduce: Reduce) -> Result<()> {
        self.run_model(backend, model, batch)?;
        let s = batch.sizes;
        let model = &*model;
        if let Some(weight) = model.trained().score {
            return self.reward(backend, model, batch, weight);
        }
        self.log_probs(backend, model, batch, true)?;
        self.sum_stats(backend, batch)?;
        backend.segment_sum_fwd(SegmentSumFwd {
            rows: s.rows,
            seqs: s.seqs,
            reduce,
            values: View::first(&self.logp, s.rows),
            offsets: batch.seq_offsets(),
            tail: batch.tail(),
            sums: ViewMut::first(&mut self.score, s.seqs),
        })
    }

    /// Computes the two numbers per sequence from which [`PairWeights`] weights its comparisons: the mean
    /// log-prob under doubled logits, and under the logits themselves. [`Scorer::run_model`] must have run on
    /// the same batch. The call costs two passes of the head. It leaves the hidden rows unchanged, because
    /// doubling and halving are exact.
    pub(super) fn pair_weights(
        &mut self,
        backend: &B,
        model: &Model<B>,
        batch: &DeviceBatch<B>,
        weights: [ViewMut<'_, B::Acc>; 2],
    ) -> Result<()> {
        let (s, hidden) = (batch.sizes, model.config.hidden);
        for (sums, [before, after]) in weights.into_iter().zip([[2.0, 0.5], [1.0, 1.0]]) {
            self.scale_hidden(backend, (s.tokens, hidden), before)?;
            self.log_probs(backend, model, batch, false)?;
            self.scale_hidden(backend, (s.tokens, hidden), after)?;
            backend.segment_sum_fwd(SegmentSumFwd {
                rows: s.rows,
                seqs: s.seqs,
                reduce: Reduce::Mean,
                values: View::first(&self.logp, s.rows),
                offsets: batch.seq_offsets(),
                tail: None,
                sums,
            })?;
        }
        Ok(())
    }

    /// Computes the log-probs of all rows from the hidden rows. With `measure`, also computes their
    /// statistics if tokens are measured.
    fn log_probs(&mut self, backend: &B, model: &Model<B>, batch: &DeviceBatch<B>, measure: bool) -> Result<()> {
        let s = batch.sizes;
        backend.head_logprob_fwd(HeadLogprobFwd {
            dims: head_dims(model, batch),
            hidden: View::first(&self.acts.hidden, s.tokens * model.config.hidden),
            head: head(model),
            source: batch.source(),
            target: batch.target(),
            logp: ViewMut::first(&mut self.logp, s.rows),
            lse: ViewMut::first(&mut self.lse, s.rows),
            stats: self.stats.as_mut().filter(|_| measure).map(|stats| stats.of_rows(s.rows)),
        })
    }

    fn scale_hidden(&mut self, backend: &B, (tokens, hidden): (usize, usize), factor: f64) -> Result<()> {
        if factor == 1.0 {
            return Ok(());
        }
        let x_in_place = ViewMut::first(&mut self.acts.hidden, tokens * hidden);
        backend.scale(Scale { dims: ScaleDims { tokens, hidden, factor }, addend: None, x_in_place })
    }

    /// Runs the model on the batch up to the hidden rows, which are the input of the head.
    pub(super) fn run_model(&mut self, backend: &B, model: &mut Model<B>, batch: &DeviceBatch<B>) -> Result<()> {
        let s = batch.sizes;
        grow(backend, &mut self.score, s.seqs)?;
        grow(backend, &mut self.logp, s.rows)?;
        grow(backend, &mut self.lse, s.rows)?;
        if let Some(stats) = &mut self.stats {
            stats.grow(backend, s.rows, s.seqs)?;
        }
        model.forward(backend, &batch.inputs(), &mut self.acts)
    }

    /// Computes scores, losses, and the gradients of the head and of the hidden rows, after
    /// [`Scorer::run_model`] on the same batch. The gradient of the head, if it is trained, goes to `out`.
    pub(super) fn head_and_losses(
        &mut self,
        backend: &B,
        model: &Model<B>,
        batch: &DeviceBatch<B>,
        reduce: Reduce,
        losses: Losses<'_, B>,
        out: &mut GradientsOut<'_, B>,
    ) -> Result<()> {
        let write = out.write;
        model.prepare_head(backend, out)?;
        if let Some(weight) = model.trained().score {
            return self.reward_and_losses(backend, model, batch, losses, (out.slot(weight), write));
        }
        let s = batch.sizes;
        let wide = s.tokens * model.config.hidden;
        grow(backend, &mut self.dlogp, s.rows)?;
        let Losses { comparison, direct, dscore } = losses;
        backend.head_preference(HeadPreference {
            dims: head_dims(model, batch),
            seqs: s.seqs,
            reduce,
            groups: batch.groups(),
            hidden: View::first(&self.acts.hidden, wide),
            head: head(model),
            source: batch.source(),
            target: batch.target(),
            runs: batch.head_runs(),
            seq_offsets: batch.seq_offsets(),
            tail: batch.tail(),
            comparison,
            direct,
            logp: ViewMut::first(&mut self.logp, s.rows),
            lse: ViewMut::first(&mut self.lse, s.rows),
            stats: self.stats.as_mut().map(|stats| stats.of_rows(s.rows)),
            dlogp: ViewMut::first(&mut self.dlogp, s.rows),
            score: ViewMut::first(&mut self.score, s.seqs),
            dscore,
            dhidden: dhidden(&mut self.acts.gradients, wide)?,
            // With adapters the head is frozen.
            dhead: model.lora.is_none().then(|| out.slot(head_range(model))),
            dhead_write: write,
        })?;
        self.sum_stats(backend, batch)
    }

    /// Computes rewards at the last token of each sequence.
    fn reward(&mut self, backend: &B, model: &Model<B>, batch: &DeviceBatch<B>, weight: &Range<usize>) -> Result<()> {
        let dims = reward_dims(model, batch);
        backend.reward_head_fwd(RewardHeadFwd {
            dims,
            hidden: View::first(&self.acts.hidden, dims.tokens * dims.hidden),
            weight: model.trained_weight(weight),
            rows: batch.last_rows(),
            score: ViewMut::first(&mut self.score, dims.seqs),
        })
    }

    /// [`Scorer::head_and_losses`] for reward models; `dweight` is (hidden).
    fn reward_and_losses(
        &mut self,
        backend: &B,
        model: &Model<B>,
        batch: &DeviceBatch<B>,
        losses: Losses<'_, B>,
        (dweight, write): (ViewMut<'_, B::Acc>, Write),
    ) -> Result<()> {
        let Some(weight) = model.trained().score else { return Ok(()) };
        self.reward(backend, model, batch, weight)?;
        let dims = reward_dims(model, batch);
        let Losses { comparison, direct, mut dscore } = losses;
        let direct_gradient = match comparison {
            Some(comparison) => {
                let score = View::first(&self.score, dims.seqs);
                backend.preference_fwd(comparison.into_preference_fwd(score, direct, dscore.reborrow()))?;
                None
            }
            None => direct,
        };
        let wide = dims.tokens * dims.hidden;
        backend.reward_head_bwd(RewardHeadBwd {
            dims,
            hidden: View::first(&self.acts.hidden, wide),
            weight: model.trained_weight(weight),
            rows: batch.last_rows(),
            dscore: direct_gradient.unwrap_or(dscore.as_view()),
            dhidden: dhidden(&mut self.acts.gradients, wide)?,
            dweight,
            dweight_write: write,
        })
    }

    /// Computes gradients of all weights below the head, after [`Scorer::head_and_losses`] on the
    /// same batch.
    pub(super) fn model_backward(
        &mut self,
        backend: &B,
        model: &mut Model<B>,
        batch: &DeviceBatch<B>,
        out: GradientsOut<'_, B>,
    ) -> Result<()> {
        model.backward(backend, &batch.inputs(), &mut self.acts, out)
    }

    /// (rows) log-prob of each predicted token of the last batch, for tests.
    pub fn read_logp(&self, backend: &B, rows: usize) -> Result<Vec<f64>> {
        read(backend, &self.logp, rows)
    }

    /// (seqs) scores of the last batch; waits for them.
    pub fn read_score(&self, backend: &B, seqs: usize) -> Result<Vec<f64>> {
        read(backend, &self.score, seqs)
    }
}

/// Copies the first `len` elements to the host.
pub(super) fn read<B: Backend>(backend: &B, buffer: &B::Acc, len: usize) -> Result<Vec<f64>> {
    let mut values = vec![0.0; len];
    backend.read_acc(View::first(buffer, len), &mut values)?;
    Ok(values)
}

/// Gradient buffer of the hidden rows, `len` elements.
fn dhidden<B: Backend>(gradients: &mut Option<Gradients<B>>, len: usize) -> Result<ViewMut<'_, B::Act>> {
    match gradients {
        Some(gradients) => Ok(ViewMut::first(&mut gradients.dnormed, len)),
        None => Err(crate::Error::Runtime("the backward needs activations allocated for training".into())),
    }
}

fn reward_dims<B: Backend>(model: &Model<B>, batch: &DeviceBatch<B>) -> RewardDims {
    RewardDims { tokens: batch.sizes.tokens, hidden: model.config.hidden, seqs: batch.sizes.seqs }
}

fn head_dims<B: Backend>(model: &Model<B>, batch: &DeviceBatch<B>) -> HeadDims {
    debug_assert_eq!(model.config.head, Head::LanguageModel);
    HeadDims {
        tokens: batch.sizes.tokens,
        hidden: model.config.hidden,
        vocab: model.config.vocab,
        rows: batch.sizes.rows,
        softcap: model.config.softcaps.logits,
    }
}

fn head_range<B: Backend>(model: &Model<B>) -> &Range<usize> {
    model.layout.lm_head.as_ref().unwrap_or(&model.layout.embedding)
}

fn head<B: Backend>(model: &Model<B>) -> View<'_, B::Act> {
    model.weight(head_range(model))
}
