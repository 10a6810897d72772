//! Learning-rate schedules with linear warm-up, as in transformers' `get_scheduler`. The factor of
//! step s (counted from 0) multiplies the peak learning rate.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Values of `--lr-scheduler-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Linear decay to 0.
    Linear,
    /// Cosine decay to 0, over half a period.
    Cosine,
    /// Constant rate without warm-up; `--warmup-steps` is refused.
    Constant,
    /// Constant rate after the warm-up.
    #[value(name = "constant_with_warmup", alias = "constant-with-warmup")]
    ConstantWithWarmup,
}

/// Learning-rate schedule of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub scheduler: Scheduler,
    /// Peak learning rate.
    pub peak: f64,
    pub warmup_steps: u64,
    pub total_steps: u64,
}

impl Schedule {
    /// Returns the learning rate of the update after `step` completed updates.
    pub fn rate(&self, step: u64) -> f64 {
        let warm = self.warmup_steps;
        if self.scheduler != Scheduler::Constant && step < warm {
            return self.peak * step as f64 / warm.max(1) as f64;
        }
        let left = self.total_steps.saturating_sub(step) as f64;
        let decaying = self.total_steps.saturating_sub(warm).max(1) as f64;
        let factor = match self.scheduler {
            Scheduler::Constant | Scheduler::ConstantWithWarmup => 1.0,
            Scheduler::Linear => left / decaying,
            Scheduler::Cosine => {
                let progress = (step - warm) as f64 / decaying;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        };
        self.peak * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(scheduler: Scheduler, warmup_steps: u64) -> Vec<f64> {
        let schedule = Schedule { scheduler, peak: 2.0, warmup_steps, total_steps: 6 };
        (0..=6).map(|s| schedule.rate(s)).collect()
    }

    /// Values of transformers 5.23.0 `get_scheduler` with a peak of 2, 2 warm-up and 6 total steps.
    #[test]
    fn rates_equal_those_of_transformers() {
        let close = |a: Vec<f64>, b: [f64; 7]| {
            assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12), "{a:?} {b:?}");
        };
        close(rates(Scheduler::Linear, 2), [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
        let half = std::f64::consts::FRAC_1_SQRT_2;
        close(rates(Scheduler::Cosine, 2), [0.0, 1.0, 2.0, 1.0 + half, 1.0, 1.0 - half, 0.0]);
        close(rates(Scheduler::Constant, 0), [2.0; 7]);
        close(rates(Scheduler::ConstantWithWarmup, 2), [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
    }
}
