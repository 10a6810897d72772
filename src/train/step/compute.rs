//! Loss and gradient of the micro-batches of a step, without the update.
//!
//! With sharded weights, every rank takes part in the gathers and sums of every micro-batch. A rank with
//! fewer micro-batches than another rank takes part in the remaining ones without a batch.

use super::replay::Phase;
use super::{Pending, Trainer};
use crate::Result;
use crate::backend::contract::CONTROL;
use crate::backend::{Backend, Write};
use crate::model::decoder_grad::GradientsOut;
use crate::ranks::buffers::Begun;
use crate::train::batch::packing::{PackedMicroBatch, PackedStep};
use crate::train::share;

impl<B: Backend> Trainer<'_, B> {
    /// Enqueues loss and gradient of every micro-batch, and the readback of the results.
    pub(super) fn enqueue(&mut self, packed: PackedStep) -> Result<Pending<B>> {
        let count = |p: &PackedMicroBatch| self.results(p.batch.seqs(), p.batch.comparison_count());
        let capacity = CONTROL + packed.micro_batches().iter().map(count).sum::<usize>();
        let spare = self.spare_readback_buffers.iter().position(|(_, len)| *len >= capacity);
        let (mut results, capacity) = match spare {
            Some(i) => self.spare_readback_buffers.swap_remove(i),
            None => (self.backend.readback_buffer(capacity)?, capacity),
        };
        let (mut at, mut begun) = (CONTROL, Vec::new());
        let rounds = self.rounds(packed.micro_batches().len())?;
        for i in 0..rounds {
            let write = if i == 0 { Write::Overwrite } else { Write::Add };
            let phase = Phase { write, last: i + 1 == packed.micro_batches().len() };
            let Some(micro_batch) = packed.micro_batches().get(i) else {
                self.compute_idle(phase, &mut begun)?;
                continue;
            };
            self.upload(micro_batch)?;
            let shapes = self.packer.shapes.as_ref();
            let rows = |level: &usize| shapes.map_or(usize::MAX, |shapes| shapes.shape(*level).rows);
            let level = micro_batch.level.filter(|level| rows(level) <= self.captured_rows);
            match phase.last && self.layer_sums.is_some() {
                // Sums over the ranks cannot be captured in a graph.
                true => self.compute(phase, &mut begun)?,
                false => self.compute_or_replay(level, phase)?,
            }
            at = self.fetch(&micro_batch.batch, &mut results, at)?;
        }
        if self.layer_sums.is_some() && rounds == 0 {
            self.compute_idle(Phase { write: Write::Overwrite, last: true }, &mut begun)?;
        }
        begun.into_iter().try_for_each(|begun| begun.settle(self.backend).map(|_| ()))?;
        let finite = match &mut self.unit_sums {
            Some(sums) => sums.finish(self.backend, &mut self.grads)?,
            None => true,
        };
        Ok(Pending { packed, results, capacity, finite })
    }

    /// Returns the number of micro-batches of a step in which this rank takes part; `own` of them are local.
    /// With sharded weights, it is the largest number of local micro-batches of any rank.
    fn rounds(&self, own: usize) -> Result<usize> {
        if !self.policy.is_sharded() {
            return Ok(own);
        }
        let of_ranks = share::gathered_numbers(self.ranks, &[own as f64])?.concat();
        Ok(of_ranks.into_iter().fold(own, |most, count| most.max(count as usize)))
    }

    /// Computes loss and gradient of the uploaded micro-batch. It only calls ops, so it can be captured,
    /// unless it starts sums over the ranks, which are added to `begun`.
    pub(super) fn compute(&mut self, Phase { write, last }: Phase, begun: &mut Vec<Begun>) -> Result<()> {
        let keeps_norms = self.keeps_norms();
        let (backend, policy, batch) = (self.backend, &mut self.policy, &self.batch);
        let reduce = self.loss.reduce;
        if let Some(frozen) = &mut self.frozen {
            frozen.forward(backend, policy, batch, reduce)?;
        }
        self.scorer.run_model(backend, policy, batch)?;
        if let Some(weights) = self.losses.weights(backend, &self.loss, batch.sizes.seqs)? {
            self.scorer.pair_weights(backend, policy, batch, weights)?;
        }
        let frozen = self.frozen.as_ref().map(|frozen| frozen.scores(batch));
        let losses = self.losses.of_batch(backend, &self.loss, batch, frozen)?;
        let (mut of_units, mut of_layers);
        let mut out = match (&mut self.unit_sums, &self.layer_sums) {
            (Some(sums), _) => {
                let windows;
                (windows, of_units) = sums.of_micro_batch((&mut self.grads, write), false);
                GradientsOut { grads: windows, write, norms: None, units: Some(&mut of_units) }
            }
            (None, Some(sums)) if last => {
                of_layers = sums.of_backward(true, begun);
                let norms = keeps_norms.then_some(&mut self.norms);
                GradientsOut { grads: &mut self.grads, write, norms, units: Some(&mut of_layers) }
            }
            (None, _) => {
                let norms = (last && keeps_norms).then_some(&mut self.norms);
                GradientsOut { grads: &mut self.grads, write, norms, units: None }
            }
        };
        self.scorer.head_and_losses(backend, policy, batch, reduce, losses, &mut out)?;
        self.scorer.model_backward(backend, policy, batch, out)
    }

    /// Takes part in a micro-batch of other ranks: gathers weights and sums gradients with them.
    fn compute_idle(&mut self, Phase { write, .. }: Phase, begun: &mut Vec<Begun>) -> Result<()> {
        let (backend, policy) = (self.backend, &mut self.policy);
        if policy.is_sharded() {
            if let Some(frozen) = &mut self.frozen {
                frozen.forward_idle(backend, policy)?;
            }
            policy.forward_idle(backend)?;
        }
        let (mut of_units, mut of_layers);
        let mut out = GradientsOut { grads: &mut self.grads, write, norms: None, units: None };
        if let Some(sums) = &mut self.unit_sums {
            (out.grads, of_units) = sums.of_micro_batch((out.grads, write), true);
            out.units = Some(&mut of_units);
        } else if let Some(sums) = &self.layer_sums {
            of_layers = sums.of_backward(false, begun);
            out.units = Some(&mut of_layers);
        }
        policy.backward_idle(backend, &mut out)
    }
}
