//! Saves and restores checkpoints, keeps track of the best one, and writes the final model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::{Deferred, Progress, Run, RunSummary, loader, now, object};
use crate::backend::Backend;
use crate::files::{json_text, write_atomic};
use crate::model::config::StoredDtype;
use crate::model::store;
use crate::ranks::world;
use crate::terminal::{counted, follows};
use crate::train::checkpoint::{self, Best, Retention, RunState};
use crate::train::logs::Logs;
use crate::train::metrics::Tally;
use crate::train::share;
use crate::{Error, Result};

impl<B: Backend> Run<'_, '_, B> {
    /// Restores the state of a checkpoint. The weights have already been loaded.
    pub(super) fn restore(&mut self, folder: &Path) -> Result<()> {
        let state = checkpoint::read_state(folder)?;
        state.check(folder, &self.data.fingerprint)?;
        checkpoint::restore(&mut self.trainer, folder)?;
        self.redraw(state.position.epoch)?;
        // The data are unchanged since the checkpoint, so a position beyond their end means that the
        // checkpoint is damaged.
        self.loader = loader(self.settings, self.groups.len(), state.position)
            .map_err(|e| Error::model(folder, e.to_string()))?;
        self.progress = Progress::of(&self.loader);
        self.history = checkpoint::read_history(folder)?;
        (self.step, self.num_tokens, self.seconds_before) = (state.step, state.num_tokens, state.seconds);
        self.begun = state.step;
        (self.skipped_in_a_row, self.evaluation_due) = (state.skipped_in_a_row, state.evaluation_due);
        let own = checkpoint::folder(&self.settings.output_dir, state.step);
        if same_folder(&own, folder) {
            self.saved = Some((state.step, own));
        }
        self.best = state.best.filter(|_| self.settings.best.is_some());
        if let Some(best) = self.best {
            let folder = self.folder_of(best);
            if !folder.is_dir() {
                self.best = None;
                self.console.warn(&format!(
                    "{}, the best checkpoint so far, no longer exists; the search starts again after step {}",
                    folder.display(),
                    state.step
                ));
            }
        }
        if self.saved.is_some() && !follows() {
            // A run killed between a save and the removal of older checkpoints left too many.
            self.prune();
        }
        self.console.line(&format!("resumed after step {} from {}", state.step, folder.display()));
        let event = json!({ "event": "resumed", "time": now() });
        self.metrics.write("event", state.step, object(event))
    }

    fn folder_of(&self, best: Best) -> PathBuf {
        checkpoint::folder(&self.settings.output_dir, best.step)
    }

    /// Marks the checkpoint that is about to be written as the best if its metric is better than the best so
    /// far.
    pub(super) fn compare_with_best(&mut self, tally: &Tally) {
        let Some(chooser) = &self.settings.best else { return };
        let Some(value) = chooser.value(tally, &self.trainer.loss) else { return };
        if self.best.is_none_or(|best| chooser.improves(value, best.value)) {
            self.best = Some(Best { step: self.step, value });
        }
    }

    /// Makes sure that the output folder exists and belongs to this run. If the folder was removed, it is
    /// recreated with a warning, its checkpoints are forgotten, and its logs start again.
    pub(super) fn keep_folder(&mut self) -> Result<()> {
        let Some(warning) = self.data.keep_folder.map_or(Ok(None), |keep| keep())? else { return Ok(()) };
        self.console.warn(&warning);
        (self.saved, self.best) = (None, None);
        if self.metrics.are_lost() {
            self.metrics = Logs::open(&self.settings.output_dir, self.settings.report_to, None)?;
            let event = json!({ "event": "output folder recreated", "time": now() });
            self.metrics.write("event", self.step, object(event))?;
        }
        Ok(())
    }

    /// Calls [`Run::keep_folder`] on all ranks. If rank 0 forgets the checkpoints of a removed folder, the
    /// other ranks forget them too.
    fn keep_folder_on_ranks(&mut self) -> Result<()> {
        self.keep_folder()?;
        let ranks = world::collective();
        if !ranks.is_alone() {
            let of_ranks: Vec<(bool, Option<Best>)> = share::gathered(ranks, &(self.saved.is_some(), self.best))?;
            let (is_saved, best) = of_ranks[0];
            self.saved = self.saved.take().filter(|_| is_saved);
            self.best = best;
        }
        Ok(())
    }

    /// Writes a checkpoint of this step, unless one exists, and returns its folder. Returns an error if the
    /// state is not finite.
    pub(super) fn save(&mut self) -> Result<PathBuf> {
        self.keep_folder_on_ranks()?;
        if let Some((step, folder)) = &self.saved
            && *step == self.step
        {
            return Ok(folder.clone());
        }
        self.check_state()?;
        self.check_ranks()?;
        let state = RunState {
            step: self.step,
            position: self.progress.position,
            num_tokens: self.num_tokens,
            seconds: self.seconds(),
            skipped_in_a_row: self.skipped_in_a_row,
            evaluation_due: self.evaluation_due,
            best: self.best,
            fingerprint: self.data.fingerprint.clone(),
            ..RunState::default()
        };
        // The events that led to a checkpoint must be on disk before the checkpoint.
        self.metrics.sync()?;
        let dir = &self.settings.output_dir;
        let folder = match follows() {
            true if self.trainer.is_sharded() => checkpoint::save_shard(&self.trainer, dir, self.step)?,
            true => checkpoint::folder(dir, self.step),
            false => checkpoint::save(&self.trainer, self.data.tokenizer, dir, state, &self.trainer_state())?,
        };
        self.saved = Some((self.step, folder.clone()));
        self.saved_at = Instant::now();
        if !follows() {
            self.prune();
        }
        Ok(folder)
    }

    /// Returns an error if the weights of the ranks differ, because a checkpoint holds those of rank 0.
    /// Sharded weights are not checked, because each rank holds different ones.
    fn check_ranks(&self) -> Result<()> {
        let ranks = world::collective();
        if ranks.is_alone() || self.trainer.policy.trains_shards() {
            return Ok(());
        }
        let hash = store::trained_hash(self.trainer.backend, &self.trainer.policy)?;
        share::check_equal(ranks, &format!("weights after step {}", self.step), &hash)
    }

    /// Removes checkpoints above the limit. A failure is a warning: the checkpoint in use is
    /// complete, and the next save tries again.
    fn prune(&self) {
        let good = if self.skipped_in_a_row > 0 { self.known_good() } else { None };
        let retention = Retention {
            limit: self.settings.save_total_limit,
            every: self.settings.keep_every,
            best: self.best.map(|best| best.step),
            good: good.map(|(step, _)| step),
        };
        for e in checkpoint::prune(&self.settings.output_dir, self.step, retention) {
            self.console.warn(&format!("an old checkpoint could not be removed; the next save tries again: {e}"));
        }
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.began.elapsed().as_secs_f64()
    }

    fn trainer_state(&self) -> serde_json::Value {
        let best = self.best.map(|best| (best, self.folder_of(best)));
        checkpoint::history((self.step, self.total), self.progress.epochs, best, &self.history)
    }

    /// Writes the final model, its weights last, and returns the summary. A diverged model is an error.
    /// Signals are deferred until the model is written.
    pub(super) fn finish(mut self, deferred: Deferred) -> Result<RunSummary> {
        self.keep_folder_on_ranks()?;
        self.check_last_updates()?;
        self.check_ranks()?;
        let state = self.trainer_state();
        if follows() {
            // Rank 0 writes the model. If the weights are sharded, the other ranks send it their parts.
            let shares = self.trainer.policy.trains_shards();
            if shares {
                self.load_best()?;
            }
            self.check_weights()?;
            if shares {
                self.final_dtype()?;
                self.trainer.policy.serve_trained(self.trainer.backend)?;
            }
            drop(deferred);
            self.summary.steps = self.step;
            return Ok(self.summary);
        }
        self.load_best()?;
        self.check_weights()?;
        let dir = &self.settings.output_dir;
        self.metrics.sync()?;
        self.data.tokenizer.copy_to(dir)?;
        write_atomic(&dir.join(checkpoint::HISTORY_FILE), json_text(&state).as_bytes())?;
        let dtype = self.final_dtype()?;
        store::save_as(self.trainer.backend, &self.trainer.policy, dir, dtype)?;
        drop(deferred);
        self.summary.steps = self.step;
        self.summary.tokens = self.num_tokens;
        self.summary.seconds = self.seconds();
        self.console.finish();
        self.console.result(&format!(
            "done: {} in {:.1} s; model in {}",
            counted(self.summary.steps, "step"),
            self.summary.seconds,
            dir.display()
        ));
        self.report_profile()?;
        Ok(self.summary)
    }

    /// Returns the data type of the final model. It is float32 if a weight is beyond the range of the
    /// requested type, so that the run is not lost.
    fn final_dtype(&self) -> Result<StoredDtype> {
        let asked = self.settings.save_dtype;
        let Some((name, weight)) = store::beyond(self.trainer.backend, &self.trainer.policy, asked)? else {
            return Ok(asked);
        };
        self.console.warn(&format!(
            "tensor {name:?} holds {weight:e}, which {} cannot hold; the model is saved as float32 instead",
            asked.name()
        ));
        Ok(StoredDtype::F32)
    }

    /// Loads the weights of the best checkpoint if the run is to end with them.
    fn load_best(&mut self) -> Result<()> {
        let Some(chooser) = self.settings.best.as_ref().filter(|chooser| chooser.load_at_end) else { return Ok(()) };
        let Some(best) = self.best else {
            self.console.warn(&format!("no checkpoint has a finite {}; the last weights are kept", chooser.metric));
            return Ok(());
        };
        let folder = self.folder_of(best);
        if best.step != self.step {
            let last = self.saved.as_ref().map(|(_, folder)| folder.display().to_string()).unwrap_or_default();
            checkpoint::verify(&folder).map_err(|e| {
                let hint = "the last weights are in";
                Error::model(&folder, format!("the best checkpoint cannot be loaded: {e}; {hint} {last}"))
            })?;
            store::reload(self.trainer.backend, &mut self.trainer.policy, &folder)?;
        }
        self.console.line(&format!("best checkpoint: {} ({} {})", folder.display(), chooser.metric, best.value));
        Ok(())
    }
}

/// Adds the path of the last checkpoint to a device or memory error.
pub(super) fn with_checkpoint_hint(output_dir: &Path, error: Error) -> Error {
    match error {
        Error::Device(why) => Error::Device(why + &checkpoint::advice(output_dir)),
        Error::Memory(why) => Error::Memory(why + &checkpoint::advice(output_dir)),
        other => other,
    }
}

/// Whether two paths name the same existing folder.
fn same_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
