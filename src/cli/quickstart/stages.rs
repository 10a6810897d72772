//! Training runs of the quick start.

use crate::loss::objective::Method;
use crate::report::scores::MAPL;

/// Length and settings of a stage.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) method: Method,
    pub(super) start: &'static str,
    pub(super) steps: u64,
    pub(super) flags: &'static [&'static str],
}

impl Stage {
    pub(super) fn is_mapl(&self) -> bool {
        self.name.ends_with(MAPL)
    }
}

pub(super) const SFT: Stage = Stage {
    name: "sft",
    method: Method::Sft,
    start: "init",
    steps: 300,
    flags: &["--learning-rate", "3e-3", "--warmup-steps", "20", "--per-device-train-batch-size", "32"],
};

/// The compared runs. Base and MAPL runs differ only in `--objective`.
pub(super) const RUNS: [Stage; 4] = [
    Stage { name: "reward-base", method: Method::Reward, start: "sft", steps: 4000, flags: REWARD_FLAGS },
    Stage { name: "reward-mapl", method: Method::Reward, start: "sft", steps: 4000, flags: REWARD_FLAGS },
    Stage { name: "dpo-base", method: Method::Dpo, start: "sft", steps: 600, flags: DPO_FLAGS },
    Stage { name: "dpo-mapl", method: Method::Dpo, start: "sft", steps: 600, flags: DPO_FLAGS },
];
const REWARD_FLAGS: &[&str] =
    &["--learning-rate", "6e-4", "--warmup-steps", "50", "--per-device-train-batch-size", "8"];
const DPO_FLAGS: &[&str] = &["--learning-rate", "1e-3", "--warmup-steps", "30", "--per-device-train-batch-size", "8"];
