//! Numbers of updates in the format of transformers: a whole number, or a fraction below 1 of all updates of the run.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Value of `--logging-steps`, `--eval-steps`, `--save-steps` and `--warmup-steps`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepCount {
    Steps(u64),
    /// Fraction of all updates of the run, above 0 and below 1.
    Share(f64),
}

impl StepCount {
    /// Returns the number of updates in a run of `total` updates, where a share is rounded up. Before `total`
    /// is known, a share counts as one update.
    pub fn of(self, total: Option<u64>) -> u64 {
        match (self, total) {
            (StepCount::Steps(steps), _) => steps,
            (StepCount::Share(_), None) => 1,
            (StepCount::Share(share), Some(total)) => ((total as f64 * share).ceil() as u64).max(1),
        }
    }

    /// Whether the number depends on the length of the run.
    pub fn is_share(self) -> bool {
        matches!(self, StepCount::Share(_))
    }
}

impl FromStr for StepCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(steps) = text.parse() {
            return Ok(StepCount::Steps(steps));
        }
        match text.parse::<f64>() {
            Ok(share) if share > 0.0 && share < 1.0 => Ok(StepCount::Share(share)),
            // YAML and JSON files may contain 100 as 100.0 or 1e2.
            Ok(steps) if (0.0..9e15).contains(&steps) && steps.fract() == 0.0 => Ok(StepCount::Steps(steps as u64)),
            _ => Err("a whole number of updates is needed, or a fraction below 1 of all updates".into()),
        }
    }
}

impl fmt::Display for StepCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepCount::Steps(steps) => steps.fmt(f),
            StepCount::Share(share) => share.fmt(f),
        }
    }
}

impl Serialize for StepCount {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            StepCount::Steps(steps) => to.serialize_u64(*steps),
            StepCount::Share(share) => to.serialize_f64(*share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fraction is rounded up, as `TrainerState.compute_steps` and `get_warmup_steps` of transformers do.
    #[test]
    fn a_fraction_counts_updates_of_the_run() {
        let steps = |text: &str, total| text.parse::<StepCount>().unwrap().of(Some(total));
        assert_eq!((steps("7", 100), steps("1e2", 7), steps("3.0", 7), steps("0", 7)), (7, 100, 3, 0));
        assert_eq!((steps("0.1", 100), steps("0.1", 101), steps("0.03", 10), steps("0.999", 1)), (10, 11, 1, 1));
        for wrong in ["-1", "1.5", "nan", "inf", "-0.1", "x", "", "1e30"] {
            assert!(wrong.parse::<StepCount>().is_err(), "{wrong}");
        }
    }
}
