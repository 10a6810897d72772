//! Learning-rate schedules with warm-up, as in transformers' `get_scheduler`. The factor of step s
//! (counted from 0) multiplies the peak learning rate. `schedule_options` reads the
//! parameters of a schedule.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Values of `--lr-scheduler-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Linear decay to 0.
    Linear,
    /// Cosine decay to 0, over half a period or `num_cycles` periods.
    Cosine,
    /// Cosine decay to 0, `num_cycles` times from the peak.
    #[value(name = "cosine_with_restarts", alias = "cosine-with-restarts")]
    CosineWithRestarts,
    /// Cosine decay to `min_lr`, or to `min_lr_rate` of the peak.
    #[value(name = "cosine_with_min_lr", alias = "cosine-with-min-lr")]
    CosineWithMinLr,
    /// Decay to `lr_end` with exponent `power`.
    Polynomial,
    /// Constant rate without warm-up; `--warmup-steps` is an error.
    Constant,
    /// Constant rate after the warm-up.
    #[value(name = "constant_with_warmup", alias = "constant-with-warmup")]
    ConstantWithWarmup,
    /// Decay with the inverse square root of the step, in units of `timescale` steps.
    #[value(name = "inverse_sqrt", alias = "inverse-sqrt")]
    InverseSqrt,
    /// Constant rate, then a decay of `num_decay_steps` steps.
    #[value(name = "warmup_stable_decay", alias = "warmup-stable-decay")]
    WarmupStableDecay,
}

/// Curve of the factor between its lowest and highest value, for the warm-up and the decay of
/// `warmup_stable_decay`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ramp {
    /// Linear.
    #[default]
    #[serde(rename = "linear")]
    Linear,
    /// Half a cosine.
    #[serde(rename = "cosine")]
    Cosine,
    /// One minus the square root.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// A schedule with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Linear decay to 0.
    Linear,
    /// `cycles` periods of the cosine, scaled to end at `floor` times the peak.
    Cosine {
        /// Number of cycles.
        cycles: f64,
        /// Smallest rate, as a fraction of the peak.
        floor: f64,
    },
    /// Cosine with restarts.
    CosineWithRestarts {
        /// Number of cycles.
        cycles: u64,
    },
    /// Decay to the learning rate `end`.
    Polynomial {
        /// Final learning rate.
        end: f64,
        /// Power of the polynomial.
        power: f64,
    },
    /// Constant rate.
    Constant,
    /// Constant rate after the warm-up.
    ConstantWithWarmup,
    /// Decay with the inverse square root of the step.
    InverseSqrt {
        /// Time scale in steps; `None` for the warm-up steps, or 10,000 without any.
        timescale: Option<u64>,
    },
    /// Constant rate between warm-up and decay.
    WarmupStableDecay {
        /// Steps at the full rate; `None` means all steps outside warm-up and decay.
        stable_steps: Option<u64>,
        /// Steps of the decay.
        decay_steps: u64,
        /// Shape of the warm-up.
        warmup: Ramp,
        /// Shape of the decay.
        decay: Ramp,
        /// Number of cycles.
        cycles: f64,
        /// Smallest rate, as a fraction of the peak.
        floor: f64,
    },
}

impl Shape {
    /// Whether the rate of a step depends on the length of the run.
    pub fn depends_on_length(self) -> bool {
        match self {
            Shape::Constant | Shape::ConstantWithWarmup | Shape::InverseSqrt { .. } => false,
            Shape::WarmupStableDecay { stable_steps, .. } => stable_steps.is_none(),
            Shape::Linear | Shape::Cosine { .. } | Shape::CosineWithRestarts { .. } | Shape::Polynomial { .. } => true,
        }
    }
}

impl Shape {
    /// Checks that the decay fits into the run.
    ///
    /// # Errors
    /// [`Error::Usage`] with the numbers of updates.
    pub fn check_length(self, warmup_steps: u64, total_steps: u64) -> Result<()> {
        let Shape::WarmupStableDecay { stable_steps: None, decay_steps, .. } = self else { return Ok(()) };
        if warmup_steps.saturating_add(decay_steps) <= total_steps {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "--lr-scheduler-kwargs: num_decay_steps {decay_steps} and {warmup_steps} of warm-up are more than the run's \
             {total_steps}; lower num_decay_steps or --warmup-steps"
        )))
    }

    /// Returns the update after which the decay would end, if the run ends earlier.
    pub fn cut_decay(self, warmup_steps: u64, total_steps: u64) -> Option<u64> {
        let Shape::WarmupStableDecay { stable_steps: Some(stable), decay_steps, .. } = self else { return None };
        let end = warmup_steps.saturating_add(stable).saturating_add(decay_steps);
        (end > total_steps).then_some(end)
    }
}

/// Learning-rate schedule of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Shape of the decay.
    pub shape: Shape,
    /// Peak learning rate.
    pub peak: f64,
    /// Updates of the warm-up.
    pub warmup_steps: u64,
    /// Updates of the whole run.
    pub total_steps: u64,
}

/// Value of a cosine that falls from 1 to 0 in half a cycle.
fn cosine(cycles: f64, progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * cycles * 2.0 * progress).cos())
}

/// Maps a factor in 0..=1 to floor..=1.
fn above(floor: f64, factor: f64) -> f64 {
    factor * (1.0 - floor) + floor
}

impl Schedule {
    /// Returns the learning rate of the update after `step` completed updates.
    pub fn rate(&self, step: u64) -> f64 {
        let warm = self.warmup_steps;
        if self.shape != Shape::Constant && step < warm {
            let progress = step as f64 / warm.max(1) as f64;
            return self.peak * progress_of_warmup(self.shape, progress).unwrap_or(progress);
        }
        let left = self.total_steps.saturating_sub(step) as f64;
        let decaying = self.total_steps.saturating_sub(warm).max(1) as f64;
        let progress = (step - warm.min(step)) as f64 / decaying;
        let factor = match self.shape {
            Shape::Constant | Shape::ConstantWithWarmup => 1.0,
            Shape::Linear => left / decaying,
            Shape::Cosine { cycles, floor } => above(floor, cosine(cycles, progress)).max(0.0),
            Shape::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Shape::CosineWithRestarts { cycles } => {
                let within = (cycles as f64 * progress) % 1.0;
                (0.5 * (1.0 + (std::f64::consts::PI * within).cos())).max(0.0)
            }
            Shape::Polynomial { end, .. } if left == 0.0 => end / self.peak,
            Shape::Polynomial { end, power } => ((self.peak - end) * (1.0 - progress).powf(power) + end) / self.peak,
            Shape::InverseSqrt { timescale } => {
                let scale = timescale.unwrap_or(if warm > 0 { warm } else { 10_000 }) as f64;
                1.0 / ((step as f64 + (scale - warm as f64)) / scale).sqrt()
            }
            Shape::WarmupStableDecay { stable_steps, decay_steps, decay, cycles, floor, .. } => {
                let stable = stable_steps.unwrap_or(self.total_steps.saturating_sub(warm.saturating_add(decay_steps)));
                match step - warm {
                    after if after < stable => 1.0,
                    after if after < stable.saturating_add(decay_steps) => {
                        let progress = (after - stable) as f64 / decay_steps.max(1) as f64;
                        let factor = match decay {
                            Ramp::Linear => 1.0 - progress,
                            Ramp::Cosine => cosine(cycles, progress),
                            Ramp::OneMinusSqrt => 1.0 - progress.sqrt(),
                        };
                        above(floor, factor).max(0.0)
                    }
                    _ => floor,
                }
            }
        };
        self.peak * factor
    }
}

/// Factor of the warm-up of `warmup_stable_decay`; `None` for other schedules, whose warm-up is linear.
fn progress_of_warmup(shape: Shape, progress: f64) -> Option<f64> {
    let Shape::WarmupStableDecay { warmup, floor, .. } = shape else { return None };
    let factor = match warmup {
        Ramp::Linear => progress,
        Ramp::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * progress).cos()),
        Ramp::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
    };
    Some(above(floor, factor).max(0.0))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::schedule_options::ScheduleOptions;
    use super::*;

    fn rates(shape: Shape, warmup_steps: u64) -> Vec<f64> {
        let schedule = Schedule { shape, peak: 2.0, warmup_steps, total_steps: 6 };
        (0..=6).map(|s| schedule.rate(s)).collect()
    }

    /// Values of transformers 5.23.0 `get_scheduler` with a peak of 2, 2 warm-up and 6 total steps.
    #[test]
    fn rates_equal_those_of_transformers() {
        let close = |a: Vec<f64>, b: [f64; 7]| {
            assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12), "{a:?} {b:?}");
        };
        close(rates(Shape::Linear, 2), [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let cosine = Shape::Cosine { cycles: 0.5, floor: 0.0 };
        close(rates(cosine, 2), [0.0, 1.0, 2.0, 1.0 + half, 1.0, 1.0 - half, 0.0]);
        close(rates(Shape::Constant, 0), [2.0; 7]);
        close(rates(Shape::ConstantWithWarmup, 2), [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
    }

    /// Compares every schedule with its parameters, at every step and beyond the end, to 1e-12 relative.
    #[test]
    fn golden_schedules_equal_those_of_transformers() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/golden/schedules.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for case in cases {
            let name = case["scheduler"].as_str().unwrap();
            let scheduler = Scheduler::from_str(name, false).unwrap();
            seen.insert(name);
            let peak = case["peak"].as_f64().unwrap();
            let options: ScheduleOptions = case["kwargs"].to_string().parse().unwrap();
            let shape = options.shape(scheduler, peak).unwrap();
            let number = |key: &str| case[key].as_u64().unwrap();
            let (warmup_steps, total_steps) = (number("warmup_steps"), number("total_steps"));
            let schedule = Schedule { shape, peak, warmup_steps, total_steps };
            for (step, expected) in case["rates"].as_array().unwrap().iter().enumerate() {
                let (rate, expected) = (schedule.rate(step as u64), expected.as_f64().unwrap());
                let close = (rate - expected).abs() <= 1e-12 * expected.abs().max(1e-4 * peak);
                assert!(close, "{case} step {step}: {rate:e} {expected:e}");
            }
        }
        assert_eq!(seen.len(), Scheduler::value_variants().len());
    }

    #[test]
    fn only_schedules_without_decay_allow_a_longer_run() {
        for shape in [Shape::Constant, Shape::ConstantWithWarmup, Shape::InverseSqrt { timescale: None }] {
            let at = |total_steps| Schedule { shape, peak: 1.0, warmup_steps: 3, total_steps }.rate(5);
            assert!(!shape.depends_on_length() && at(6) == at(600), "{shape:?}");
        }
        assert!(Shape::Polynomial { end: 0.0, power: 2.0 }.depends_on_length());
    }
}
