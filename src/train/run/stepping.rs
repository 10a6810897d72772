//! Steps of a run. On an asynchronous device, one step runs while the next is packed and sent, and results
//! are read when they are available. An evaluation or a checkpoint waits only for its step; no later step has
//! begun by then.

use std::time::Instant;

use super::{Progress, Run, loader};
use crate::backend::Backend;
use crate::backend::nvtx::Range;
use crate::data::loader::Position;
use crate::ranks::world;
use crate::train::share::Share;
use crate::train::step::{Pending, STEPS_IN_FLIGHT};
use crate::{Error, Result};

/// A step in flight.
pub(super) struct StepInFlight<B: Backend> {
    pending: Pending<B>,
    learning_rate: f64,
    began: Instant,
    /// Data position after the step.
    progress: Progress,
}

impl<B: Backend> Run<'_, '_, B> {
    /// Trains until the last step or a signal.
    pub(super) fn steps(&mut self) -> Result<()> {
        if self.evaluation_due {
            self.after_step()?;
        }
        // Discards earlier op times, which are not part of the first step.
        self.trainer.backend.op_times()?;
        while self.step < self.total {
            // Only one step is in flight if ops are timed, and on several ranks, because ranks agree after
            // every step on what is due.
            let alone = self.trainer.backend.probe().is_none() && world::collective().is_alone();
            let limit = if B::ASYNCHRONOUS && alone { STEPS_IN_FLIGHT } else { 1 };
            while self.in_flight.len() < limit && self.begun < self.total && !self.must_finish_last() {
                self.begin_step()?;
            }
            self.finish_step()?;
        }
        Ok(())
    }

    /// Whether the last begun step must finish before another may begin, because an evaluation, a
    /// checkpoint or a signal needs its weights.
    fn must_finish_last(&self) -> bool {
        let (s, Some(last)) = (self.settings, self.in_flight.back()) else { return false };
        let epoch_ends = last.progress.position.offset == 0;
        self.due(self.begun, epoch_ends, (s.eval_steps, s.eval_epochs))
            || self.due(self.begun, epoch_ends, (s.save_steps, s.save_epochs))
            || self.overdue()
            || self.signals.pending()
    }

    fn begin_step(&mut self) -> Result<()> {
        let began = Instant::now();
        let progress = match self.packing.take() {
            Some(progress) => progress,
            None => self.pack_next()?,
        };
        let packed = self.prefetch.take()?;
        // Requests the next batch now if its groups have already been drawn.
        let drawn = self.data.redraw.is_none() || self.loader.position().epoch == self.drawn_epoch;
        if self.begun + 1 < self.total && drawn {
            self.packing = Some(self.pack_next()?);
        }
        let learning_rate = self.schedule.rate(self.begun);
        let range = Range::numbered("step", self.begun + 1);
        let pending = self.trainer.begin(packed, learning_rate)?;
        drop(range);
        self.begun += 1;
        self.in_flight.push_back(StepInFlight { pending, learning_rate, began, progress });
        Ok(())
    }

    /// Requests the packing of the next batch; returns the data position after it.
    fn pack_next(&mut self) -> Result<Progress> {
        let epoch = self.loader.position().epoch;
        if self.data.redraw.is_some() && epoch != self.drawn_epoch {
            // A new epoch may have a different number of groups, so its order is drawn for the new list.
            self.redraw(epoch)?;
            self.loader = loader(self.settings, self.groups.len(), Position { epoch, offset: 0 })?;
        }
        let indices = self.loader.next_batch();
        let groups = indices.len();
        let ranks = world::collective();
        let share = Share {
            rank: ranks.rank(),
            size: ranks.size(),
            micro_batch: self.settings.micro_batch,
            whole: self.trainer.loss.estimates_divergence(),
        };
        let into = self.trainer.spare_step();
        self.prefetch.request(self.trainer.packer(), &self.groups, (indices, share), into)?;
        Ok(Progress { groups, ..Progress::of(&self.loader) })
    }

    /// Waits for the oldest step in flight, records it, and does the work that is due after it.
    fn finish_step(&mut self) -> Result<()> {
        let Some(step) = self.in_flight.pop_front() else {
            return Err(Error::Runtime("no step is in flight".into()));
        };
        let report = self.trainer.finish(step.pending)?;
        let now = Instant::now();
        let elapsed = now - step.began.max(self.finished_at);
        self.finished_at = now;
        self.progress = step.progress;
        self.step += 1;
        if self.trainer.backend.probe().is_some() {
            let ops = self.trainer.backend.op_times()?;
            if let Some(observed) = &self.settings.observed {
                observed.add(self.step, now, elapsed, (report.tally.tokens, self.progress.groups), &ops);
            }
            self.profile.add(elapsed, &ops);
        }
        self.num_tokens += report.tally.tokens as u64;
        self.record(&report, step.learning_rate, elapsed)?;
        self.compare_memory()?;
        self.check_divergence(&report)?;
        if self.in_flight.is_empty() { self.after_step() } else { Ok(()) }
    }
}
