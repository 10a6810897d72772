//! Steps of a run. On a device that works by itself one step runs while the next is packed and sent; its results are read
//! when they are there. Whatever needs the weights of a step, an evaluation or a checkpoint, waits for that step alone, and no
//! later one has then been begun.

use std::time::Instant;

use super::{Reached, Run, loader};
use crate::backend::Backend;
use crate::data::loader::Position;
use crate::train::step::Pending;
use crate::{Error, Result};

/// A step that has been begun.
pub(super) struct Begun<B: Backend> {
    pending: Pending<B>,
    learning_rate: f64,
    began: Instant,
    /// Where the data stands after it.
    reached: Reached,
}

/// Steps that are begun before the first of them is finished, on a device that works by itself.
const AHEAD: usize = 2;

impl<B: Backend> Run<'_, '_, B> {
    /// Trains until the last step or a signal.
    pub(super) fn steps(&mut self) -> Result<()> {
        if self.evaluation_due {
            self.close_step()?;
        }
        // What came before is no part of the first step.
        self.trainer.backend.op_times()?;
        while self.step < self.total {
            // A step whose ops are timed has the device for itself.
            let ahead = if B::ASYNCHRONOUS && self.trainer.backend.probe().is_none() { AHEAD } else { 1 };
            while self.under_way.len() < ahead && self.begun < self.total && !self.last_needs_its_weights() {
                self.begin_step()?;
            }
            self.finish_step()?;
        }
        Ok(())
    }

    /// Whether the step begun last is followed by an evaluation or a checkpoint, or a signal asks for one.
    fn last_needs_its_weights(&self) -> bool {
        let (s, Some(last)) = (self.settings, self.under_way.back()) else { return false };
        let epoch_ends = last.reached.position.offset == 0;
        self.due(self.begun, epoch_ends, (s.eval_steps, s.eval_epochs))
            || self.due(self.begun, epoch_ends, (s.save_steps, s.save_epochs))
            || self.signals.pending()
    }

    fn begin_step(&mut self) -> Result<()> {
        let began = Instant::now();
        let reached = match self.packing.take() {
            Some(reached) => reached,
            None => self.pack_next()?,
        };
        let packed = self.prefetch.take()?;
        // The batch after this one, unless its groups are still to be drawn.
        let drawn = self.data.redraw.is_none() || self.loader.position().epoch == self.drawn_epoch;
        if self.begun + 1 < self.total && drawn {
            self.packing = Some(self.pack_next()?);
        }
        let learning_rate = self.schedule.rate(self.begun);
        let pending = self.trainer.begin(packed, learning_rate)?;
        self.begun += 1;
        self.under_way.push_back(Begun { pending, learning_rate, began, reached });
        Ok(())
    }

    /// Has the next batch packed; where the data stands after it.
    fn pack_next(&mut self) -> Result<Reached> {
        let epoch = self.loader.position().epoch;
        if self.data.redraw.is_some() && epoch != self.drawn_epoch {
            // A new epoch's groups may differ in number, so its order is drawn for the new list.
            self.redraw(epoch)?;
            self.loader = loader(self.settings, self.groups.len(), Position { epoch, offset: 0 })?;
        }
        let indices = self.loader.next_batch();
        let groups = indices.len();
        let micro_batches = indices.chunks(self.settings.micro_batch).map(<[_]>::to_vec).collect();
        let into = self.trainer.spare_step();
        self.prefetch.request(self.trainer.packer(), &self.groups, micro_batches, into)?;
        Ok(Reached { groups, ..Reached::of(&self.loader) })
    }

    /// Waits for the oldest step under way, records it, and does what is due after it.
    fn finish_step(&mut self) -> Result<()> {
        let Some(begun) = self.under_way.pop_front() else {
            return Err(Error::Runtime("no step is under way".into()));
        };
        let report = self.trainer.finish(begun.pending)?;
        let now = Instant::now();
        let elapsed = now - begun.began.max(self.finished_at);
        self.finished_at = now;
        self.reached = begun.reached;
        self.step += 1;
        if self.trainer.backend.probe().is_some() {
            let ops = self.trainer.backend.op_times()?;
            if let Some(observed) = &self.settings.observed {
                observed.add(self.step, now, elapsed, (report.tally.tokens, self.reached.groups), &ops);
            }
            self.profile.add(elapsed, ops);
        }
        self.num_tokens += report.tally.tokens as u64;
        self.record(&report, begun.learning_rate, elapsed)?;
        self.compare_memory()?;
        self.guard(&report)?;
        if self.under_way.is_empty() { self.close_step() } else { Ok(()) }
    }
}
