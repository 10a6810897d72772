//! Requests that signals and the clock make of a run after a step. With several ranks, every rank acts on the
//! requests made of any rank, so that all stop, save and continue together.

use serde::{Deserialize, Serialize};

use super::{Deferred, Run};
use crate::Result;
use crate::backend::Backend;
use crate::ranks::world;
use crate::train::share;

/// Requests made of a run during a step.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Requests {
    /// Signal that requests a stop.
    pub stop: Option<i32>,
    /// Whether a signal requests a checkpoint.
    pub save: bool,
    /// Whether the last checkpoint is too old.
    pub overdue: bool,
}

impl<B: Backend> Run<'_, '_, B> {
    /// The requests after this step.
    pub(super) fn requests(&self) -> Result<Requests> {
        let own = Requests { stop: self.signals.stop(), save: self.signals.take_save(), overdue: self.overdue() };
        let ranks = world::collective();
        if ranks.is_alone() {
            return Ok(own);
        }
        let of_ranks: Vec<Requests> = share::gathered(ranks, &own)?;
        let requests = Requests {
            stop: of_ranks.iter().find_map(|requests| requests.stop),
            save: of_ranks.iter().any(|requests| requests.save),
            // The clocks of hosts differ, so only the clock of rank 0 is used. Rank 0 writes the checkpoints.
            overdue: of_ranks[0].overdue,
        };
        if requests.stop.is_some() && world::is_shared() {
            self.console.line("stopping after this step on all ranks");
        }
        Ok(requests)
    }

    /// Defers stop signals to the end of a step.
    pub(super) fn defer_signals(&self) -> Deferred {
        let printer = self.console.printer();
        // A launcher that ends the ranks also signals them, so several ranks announce a stop only when all
        // have agreed on it.
        self.signals.defer(move |text| {
            if !world::is_shared() {
                printer(text);
            }
        })
    }

    /// Whether the last checkpoint is older than `save_minutes`.
    pub(super) fn overdue(&self) -> bool {
        self.settings.save_minutes.is_some_and(|minutes| self.saved_at.elapsed().as_secs() >= 60 * minutes)
    }
}
