//! Divergence of a run: updates that were skipped, and weights or moments that are not finite.

use std::path::PathBuf;

use super::Run;
use crate::backend::Backend;
use crate::model::store;
use crate::ranks::world::named_with_hosts;
use crate::train::checkpoint;
use crate::train::step::StepReport;
use crate::{Error, Result};

/// Maximum number of group ids in a warning.
const MAX_NAMED_GROUPS: usize = 5;

impl<B: Backend> Run<'_, '_, B> {
    /// Warns of a skipped update; fails after too many consecutive ones, or if it is the run's last.
    pub(super) fn check_divergence(&mut self, report: &StepReport) -> Result<()> {
        if report.update.applied {
            self.skipped_in_a_row = 0;
            return Ok(());
        }
        self.skipped_in_a_row += 1;
        self.odd_ranks = report.odd_ranks.clone();
        let ids = &report.not_finite;
        let more = if ids.len() > MAX_NAMED_GROUPS {
            format!(" and {} more", ids.len() - MAX_NAMED_GROUPS)
        } else {
            String::new()
        };
        let groups = match ids.is_empty() {
            true => String::new(),
            false => format!(" (groups {}{more})", ids[..ids.len().min(MAX_NAMED_GROUPS)].join(", ")),
        };
        let on = self.on_ranks();
        self.console
            .warn(&format!("step {}: loss or gradient is not finite{groups}{on}; the update was skipped", self.step));
        if self.skipped_in_a_row < self.settings.max_skipped_steps && self.step < self.total {
            return Ok(());
        }
        self.check_last_updates()
    }

    /// Fails if the last update was skipped, because nothing then shows that the weights are usable.
    pub(super) fn check_last_updates(&self) -> Result<()> {
        let what = match self.skipped_in_a_row {
            0 => return Ok(()),
            1 => "the last update had".to_owned(),
            n => format!("{n} updates in a row had"),
        };
        let last = if self.skipped_in_a_row == 1 { "" } else { ", the last" };
        let on = self.on_ranks();
        let what = format!("{what} a non-finite loss or gradient{last} at step {}{on}", self.step);
        Err(self.diverged(&what, "look at the groups named above"))
    }

    /// Names the ranks whose local loss or gradient is not finite, if the run has several ranks.
    fn on_ranks(&self) -> String {
        match self.odd_ranks.as_slice() {
            [] => String::new(),
            ranks => format!(" ({})", named_with_hosts(ranks)),
        }
    }

    /// Returns the newest checkpoint that is known to be good, because a later update was applied to its
    /// weights.
    pub(super) fn known_good(&self) -> Option<(u64, PathBuf)> {
        let applied = self.step - self.skipped_in_a_row;
        checkpoint::list(&self.settings.output_dir).into_iter().rfind(|(step, _)| *step < applied)
    }

    /// Returns an error if weights are not finite, so that they are not saved.
    pub(super) fn check_weights(&self) -> Result<()> {
        match store::not_finite(self.trainer.backend, &self.trainer.policy)? {
            None => Ok(()),
            Some((tensor, count)) => Err(self.not_finite(&format!("weights of {tensor}"), count)),
        }
    }

    /// Returns an error if weights or optimiser state are not finite, so that they are not saved.
    pub(super) fn check_state(&self) -> Result<()> {
        self.check_weights()?;
        match checkpoint::not_finite(&self.trainer)? {
            None => Ok(()),
            Some((tensor, count)) => Err(self.not_finite(&format!("elements of the optimiser's {tensor}"), count)),
        }
    }

    fn not_finite(&self, what: &str, count: usize) -> Error {
        let what = format!("{count} {what} are not finite after step {}, so nothing was saved", self.step);
        self.diverged(&what, "look at the step lines above")
    }

    /// Error of a diverged run, with the last good checkpoint.
    fn diverged(&self, what: &str, look: &str) -> Error {
        let advice = match self.known_good() {
            Some((_, path)) => format!(
                "last good checkpoint: {}; {look}, or start from it (--model) with a lower --learning-rate",
                path.display()
            ),
            None => format!("no good checkpoint exists; {look}, or lower --learning-rate"),
        };
        self.console.finish();
        Error::Diverged(format!("{what}; {advice}"))
    }
}
