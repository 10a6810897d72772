//! A training run that several ranks share: what they cannot do together, what must be equal on all
//! of them before the first step, and what a message about a failed rank says.

use std::path::Path;

use super::config_record;
use super::same_start::{facts, weights_on_ranks};
use super::train::TrainSetup;
use super::train_args::{Switch, TrainArgs};
use crate::backend::Backend;
use crate::error::refuse_given;
use crate::loss::objective::Loss;
use crate::ranks::{agreement, world};
use crate::terminal::counted;
use crate::train::checkpoint;
use crate::{Error, Result};

/// Refuses options that several ranks cannot have.
pub(super) fn check(args: &TrainArgs, loss: &Loss) -> Result<()> {
    if !world::is_shared() {
        let given = [("--shard-optimizer", args.shard_optimizer == Some(Switch::On))];
        return refuse_given(&given, "with one rank; leave it out, or start several (docs/ranks.md)");
    }
    let dir = args.output_dir.clone();
    world::set_last_checkpoint(move || checkpoint::advice(&dir));
    let refuse = |flag: &str, why: &str| Err(Error::Usage(format!("{flag} needs one rank: {why}")));
    if args.profile {
        return refuse("--profile", "a step of several ranks also waits for the others; profile a run of one");
    }
    if loss.sorts() {
        return refuse("this --loss-type", "it sorts the pairs of a whole step, which several ranks would split");
    }
    Ok(())
}

impl TrainSetup<'_> {
    /// Whether each rank keeps the optimiser state of a slice of the parameters.
    pub(super) fn shards_optimizer(&self) -> bool {
        world::is_shared() && self.args.shard_optimizer != Some(Switch::Off)
    }

    /// Refuses ranks that were started differently, and says how a step is shared.
    pub(super) fn agree<B: Backend>(&self, backend: &B, start: &Path, fingerprint: &[(String, String)]) -> Result<()> {
        if !world::is_shared() {
            return Ok(());
        }
        let mut facts = facts(backend);
        facts.push(("model".into(), weights_on_ranks(start, self.args.base.base())?));
        let options = config_record::text(self, B::NAME, B::PRECISION.name())?;
        let lines = options.lines().filter_map(|line| line.split_once(": "));
        let flags = lines.map(|(name, value)| (format!("--{}", name.replace('_', "-")), value.to_owned()));
        facts.extend(flags);
        facts.extend(fingerprint.iter().cloned());
        let ranks = world::collective();
        agreement::compare(ranks, &facts)?;
        let batch = self.settings.micro_batch * self.settings.accumulation;
        self.print(&format!(
            "{:<13} {} on {}; {} of a step are split over them by tokens",
            "ranks",
            ranks.size(),
            world::hosts().join(", "),
            counted(batch, "group")
        ));
        if self.loss.estimates_divergence() && self.settings.accumulation < ranks.size() {
            self.print(&format!(
                "note: --loss-type kto keeps micro-batches whole, so at most {} of {} ranks have work in a step",
                self.settings.accumulation,
                ranks.size()
            ));
        }
        Ok(())
    }
}
