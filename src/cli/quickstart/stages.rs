//! Training runs of the quick start.

use crate::loss::objective::Method;
use crate::report::scores::MAPL;

/// Length and settings of a stage.
#[derive(Clone, Copy)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) method: Method,
    pub(super) start: &'static str,
    /// Steps at scale 1, unless `as_long_as` decides.
    pub(super) steps: u64,
    /// A MAPL and a base run: this run has as many steps as the base run needs for the tokens of the MAPL run.
    pub(super) as_long_as: &'static [&'static str],
    pub(super) flags: &'static [&'static str],
}

impl Stage {
    pub(super) fn is_mapl(&self) -> bool {
        self.name.ends_with(MAPL)
    }

    /// Row of the table.
    pub(super) fn row(&self) -> usize {
        ROWS.iter().position(|name| *name == self.name).unwrap_or(ROWS.len())
    }
}

/// Runs in the order of the table.
const ROWS: [&str; 6] = ["reward-base", "reward-base-equal", "reward-mapl", "dpo-base", "dpo-base-equal", "dpo-mapl"];

const fn run(name: &'static str, method: Method, steps: u64) -> Stage {
    let flags = if matches!(method, Method::Dpo) { DPO_FLAGS } else { REWARD_FLAGS };
    Stage { name, method, start: SFT.name, steps, as_long_as: &[], flags }
}

pub(super) const SFT: Stage = Stage {
    name: "sft",
    method: Method::Sft,
    start: "init",
    steps: 300,
    as_long_as: &[],
    flags: &["--learning-rate", "3e-3", "--warmup-steps", "20", "--per-device-train-batch-size", "32"],
};

/// The compared runs in the order in which they start, the longest first: then runs side by side end at about
/// the same time. A base run trains on the pairs, a MAPL run on the groups built from these pairs; their flags
/// differ only in `--objective`.
pub(super) const STARTED: [Stage; 4] = [
    run("reward-mapl", Method::Reward, 4000),
    run("dpo-mapl", Method::Dpo, 600),
    run("reward-base", Method::Reward, 4000),
    run("dpo-base", Method::Dpo, 600),
];

/// Base runs at equal compute.
pub(super) const EQUAL: [Stage; 2] = [
    Stage { as_long_as: &["reward-mapl", "reward-base"], ..run("reward-base-equal", Method::Reward, 0) },
    Stage { as_long_as: &["dpo-mapl", "dpo-base"], ..run("dpo-base-equal", Method::Dpo, 0) },
];

const REWARD_FLAGS: &[&str] =
    &["--learning-rate", "6e-4", "--warmup-steps", "50", "--per-device-train-batch-size", "8"];
const DPO_FLAGS: &[&str] = &["--learning-rate", "1e-3", "--warmup-steps", "30", "--per-device-train-batch-size", "8"];
