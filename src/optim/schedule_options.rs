//! `--lr-scheduler-kwargs`: the parameters of a schedule, under the names of transformers. Names that the
//! schedule does not have are an error, and so are values that transformers rejects or for which the rate is
//! undefined.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::schedule::{Ramp, Scheduler, Shape};
use crate::{Error, Result};

/// Parameters as given, in JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    num_cycles: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_lr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_lr_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lr_end: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    power: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timescale: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_stable_steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_decay_steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_type: Option<Ramp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decay_type: Option<Ramp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_lr_ratio: Option<f64>,
}

impl FromStr for ScheduleOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| {
            let said = e.to_string();
            format!(
                "{}; a JSON object is needed, as {{\"min_lr_rate\": 0.1}}",
                said.split(" at line").next().unwrap_or("")
            )
        })
    }
}

/// Parameters that a schedule has.
fn names(scheduler: Scheduler) -> &'static [&'static str] {
    match scheduler {
        Scheduler::Linear | Scheduler::Constant | Scheduler::ConstantWithWarmup => &[],
        Scheduler::Cosine | Scheduler::CosineWithRestarts => &["num_cycles"],
        Scheduler::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
        Scheduler::Polynomial => &["lr_end", "power"],
        Scheduler::InverseSqrt => &["timescale"],
        Scheduler::WarmupStableDecay => {
            &["num_stable_steps", "num_decay_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"]
        }
    }
}

fn refuse<T>(why: impl std::fmt::Display) -> Result<T> {
    Err(Error::Usage(format!("--lr-scheduler-kwargs: {why}")))
}

impl ScheduleOptions {
    /// Names of the given parameters.
    fn given(&self) -> Vec<String> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(map)) => map.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// The schedule with these parameters and a peak learning rate of `peak`.
    ///
    /// # Errors
    /// [`Error::Usage`] that names the parameter.
    pub fn shape(&self, scheduler: Scheduler, peak: f64) -> Result<Shape> {
        let taken = names(scheduler);
        if let Some(name) = self.given().iter().find(|name| !taken.contains(&name.as_str())) {
            let accepts = match taken.is_empty() {
                true => "has no parameters".to_owned(),
                false => format!("accepts {}", taken.join(", ")),
            };
            let of = serde_json::to_value(scheduler).unwrap_or_default();
            return refuse(format!(
                "{name} has no effect: --lr-scheduler-type {} {accepts}",
                of.as_str().unwrap_or("")
            ));
        }
        for (name, value) in [
            ("num_cycles", self.num_cycles),
            ("min_lr", self.min_lr),
            ("min_lr_rate", self.min_lr_rate),
            ("lr_end", self.lr_end),
            ("power", self.power),
            ("min_lr_ratio", self.min_lr_ratio),
        ] {
            if value.is_some_and(|value| !(value.is_finite() && value >= 0.0)) {
                return refuse(format!("{name}: a finite number of at least 0 is needed"));
            }
        }
        let cycles = self.num_cycles.unwrap_or(0.5);
        let share = |name: &str, value: f64| match value {
            value if value <= 1.0 => Ok(value),
            _ => refuse(format!("{name}: it must be at most 1, which is the peak learning rate")),
        };
        Ok(match scheduler {
            Scheduler::Linear => Shape::Linear,
            Scheduler::Constant => Shape::Constant,
            Scheduler::ConstantWithWarmup => Shape::ConstantWithWarmup,
            Scheduler::Cosine => Shape::Cosine { cycles, floor: 0.0 },
            Scheduler::CosineWithRestarts => {
                let cycles = self.num_cycles.unwrap_or(1.0);
                if cycles < 1.0 || cycles.fract() != 0.0 || cycles > 1e15 {
                    return refuse("num_cycles: a whole number of at least 1 is needed");
                }
                Shape::CosineWithRestarts { cycles: cycles as u64 }
            }
            Scheduler::CosineWithMinLr => {
                let floor = match (self.min_lr, self.min_lr_rate) {
                    (Some(_), Some(_)) => return refuse("min_lr and min_lr_rate are both given; leave one out"),
                    (Some(rate), None) => share("min_lr divided by --learning-rate", rate / peak)?,
                    (None, Some(rate)) => share("min_lr_rate", rate)?,
                    (None, None) => {
                        return refuse("--lr-scheduler-type cosine_with_min_lr needs min_lr or min_lr_rate");
                    }
                };
                Shape::Cosine { cycles, floor }
            }
            Scheduler::Polynomial => {
                let end = self.lr_end.unwrap_or(1e-7);
                if end >= peak {
                    return refuse(format!("lr_end {end:e} must be below --learning-rate {peak:e}; lower it"));
                }
                Shape::Polynomial { end, power: self.power.unwrap_or(1.0) }
            }
            Scheduler::InverseSqrt if self.timescale == Some(0) => return refuse("timescale: at least 1 is needed"),
            Scheduler::InverseSqrt => Shape::InverseSqrt { timescale: self.timescale },
            Scheduler::WarmupStableDecay => {
                let Some(decay_steps) = self.num_decay_steps else {
                    return refuse("--lr-scheduler-type warmup_stable_decay needs num_decay_steps");
                };
                Shape::WarmupStableDecay {
                    stable_steps: self.num_stable_steps,
                    decay_steps,
                    warmup: self.warmup_type.unwrap_or(Ramp::Linear),
                    decay: self.decay_type.unwrap_or(Ramp::Cosine),
                    cycles,
                    floor: share("min_lr_ratio", self.min_lr_ratio.unwrap_or(0.0))?,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn why(scheduler: Scheduler, text: &str) -> String {
        let outcome = text.parse::<ScheduleOptions>().map_err(Error::Usage).and_then(|o| o.shape(scheduler, 1e-3));
        outcome.expect_err(text).to_string()
    }

    #[test]
    fn parameters_without_effect_and_wrong_values_are_named() {
        for (scheduler, text, part) in [
            (Scheduler::Linear, "{\"num_cycles\": 2}", "has no parameters"),
            (Scheduler::Cosine, "{\"min_lr\": 1e-5}", "min_lr has no effect"),
            (Scheduler::CosineWithMinLr, "{}", "needs min_lr or min_lr_rate"),
            (Scheduler::CosineWithMinLr, "{\"min_lr\": 1e-5, \"min_lr_rate\": 0.1}", "both given"),
            (Scheduler::CosineWithMinLr, "{\"min_lr\": 1.0}", "at most 1"),
            (Scheduler::CosineWithMinLr, "{\"min_lr\": -1}", "at least 0"),
            (Scheduler::CosineWithRestarts, "{\"num_cycles\": 1.5}", "whole number"),
            (Scheduler::Polynomial, "{\"lr_end\": 1e-2}", "below --learning-rate"),
            (Scheduler::InverseSqrt, "{\"timescale\": 0}", "timescale"),
            (Scheduler::WarmupStableDecay, "{}", "num_decay_steps"),
            (Scheduler::WarmupStableDecay, "{\"num_decay_steps\": 2, \"decay_type\": \"up\"}", "unknown variant"),
            (Scheduler::Cosine, "{\"cycles\": 2}", "unknown field"),
            (Scheduler::Cosine, "num_cycles=2", "JSON object"),
        ] {
            let why = why(scheduler, text);
            assert!(why.contains(part), "{text}: {why}");
        }
    }

    #[test]
    fn every_listed_parameter_is_one_of_the_options() {
        for scheduler in Scheduler::value_variants() {
            for name in names(*scheduler) {
                let value = if name.ends_with("_type") { "\"linear\"" } else { "1" };
                let options: ScheduleOptions = format!("{{\"{name}\": {value}}}").parse().unwrap();
                assert_eq!(options.given(), [*name]);
            }
        }
    }
}
