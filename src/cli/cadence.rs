//! Schedule of evaluations and checkpoints, and the checkpoints to keep. Names and meanings follow
//! transformers' trainer. Errors are: steps that contradict a strategy, options without an effect, and a best
//! checkpoint that would never be found, because evaluations and checkpoints never coincide.

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::step_count::StepCount;
use crate::loss::objective::Method;
use crate::train::best::BestModel;
use crate::{Error, Result};

/// Updates between checkpoints by default, as in transformers.
const SAVE_STEPS: u64 = 500;
/// Minutes between checkpoints by default, if updates take long.
const SAVE_MINUTES: u64 = 30;
/// Number of checkpoints kept by default. While updates are skipped, the last good checkpoint counts as one
/// of them.
const SAVE_LIMIT: usize = 2;

/// Trigger of an evaluation or a checkpoint.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Never
    No,
    /// At a fixed number of updates
    Steps,
    /// At the end of every epoch
    Epoch,
}

/// Evaluations and checkpoints of a run.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Evaluation and checkpoints")]
pub struct CadenceArgs {
    /// When to evaluate on --eval-file and --ifeval-file [default: steps with --eval-steps, else only at start and
    /// end]
    #[arg(long, value_enum, alias = "evaluation-strategy")]
    pub eval_strategy: Option<Strategy>,
    /// Updates between evaluations, or a fraction of all updates [default with --eval-strategy
    /// steps: --logging-steps]
    #[arg(long)]
    pub eval_steps: Option<StepCount>,
    /// When to write checkpoints, in addition to one at the end of the run [default: steps with --save-steps;
    /// else every 500 updates or 30 minutes, without one at the end]
    #[arg(long, value_enum)]
    pub save_strategy: Option<Strategy>,
    /// Updates between checkpoints, or a fraction of all updates [default: 500]
    #[arg(long)]
    pub save_steps: Option<StepCount>,
    /// Number of checkpoints to keep; the newest and the best always stay [default: all with
    /// --save-steps or --save-strategy, else 2]
    #[arg(long)]
    pub save_total_limit: Option<usize>,
    /// Always keep checkpoints at multiples of this step; they do not count towards the limit
    #[arg(long)]
    pub keep_every: Option<u64>,
    /// End with the weights of the best checkpoint
    #[arg(long)]
    pub load_best_model_at_end: bool,
    /// Metric of the best checkpoint: loss, accuracy or margin; append /base, /intra or /inter for
    /// one kind [default with --load-best-model-at-end: loss]
    #[arg(long)]
    pub metric_for_best_model: Option<String>,
    /// Whether a greater value of the metric is better [default: no for losses, else yes]
    #[arg(long, value_parser = BoolishValueParser::new(), num_args = 0..=1, default_missing_value = "true")]
    pub greater_is_better: Option<bool>,
}

/// The resolved arguments.
pub struct Cadence {
    /// Updates between evaluations; with `u64::MAX`, the run evaluates at start and end only.
    pub eval_steps: Option<u64>,
    pub eval_epochs: bool,
    pub save_steps: Option<u64>,
    pub save_epochs: bool,
    /// Minutes between checkpoints; see [`crate::train::run::RunSettings`].
    pub save_minutes: Option<u64>,
    /// Whether to save at the end too.
    pub save_at_end: bool,
    pub save_total_limit: Option<usize>,
    pub best: Option<BestModel>,
}

impl CadenceArgs {
    /// Checks the options against each other and resolves dependent defaults. `total` is the number
    /// of updates of the run, once it is known.
    pub fn resolve(
        &self,
        method: Method,
        evaluates: bool,
        logging_steps: StepCount,
        total: Option<u64>,
    ) -> Result<Cadence> {
        let refuse = |why: &str| Err(Error::Usage(why.to_owned()));
        for (flag, value) in [
            ("--eval-steps", self.eval_steps.map(|n| n.of(total))),
            ("--save-steps", self.save_steps.map(|n| n.of(total))),
            ("--save-total-limit", self.save_total_limit.map(|n| n as u64)),
            ("--keep-every", self.keep_every),
        ] {
            if value == Some(0) {
                return refuse(&format!("{flag} 0: at least 1 is needed"));
            }
        }
        if !evaluates && self.eval_steps.is_some() {
            return refuse("--eval-steps has no effect without --eval-file or --ifeval-file");
        }
        let (eval_steps, eval_epochs) = match (self.eval_strategy, self.eval_steps) {
            (Some(Strategy::No), _) if evaluates => {
                return refuse("--eval-strategy no contradicts --eval-file and --ifeval-file; leave one of them out");
            }
            (Some(Strategy::Steps | Strategy::Epoch), _) if !evaluates => {
                return refuse("--eval-strategy has no effect without --eval-file or --ifeval-file");
            }
            (Some(Strategy::Epoch), Some(_)) => return refuse("--eval-strategy epoch contradicts --eval-steps"),
            (Some(Strategy::Epoch), None) => (None, true),
            (Some(Strategy::Steps), steps) => (Some(steps.unwrap_or(logging_steps).of(total)), false),
            (None, steps) if evaluates => (Some(steps.map_or(u64::MAX, |steps| steps.of(total))), false),
            (None | Some(Strategy::No), _) => (None, false),
        };
        let (save_steps, save_epochs) = match (self.save_strategy, self.save_steps) {
            (Some(Strategy::No), Some(_)) => return refuse("--save-strategy no contradicts --save-steps"),
            (Some(Strategy::Epoch), Some(_)) => return refuse("--save-strategy epoch contradicts --save-steps"),
            (Some(Strategy::Epoch), None) => (None, true),
            (Some(Strategy::Steps), steps) => (Some(steps.map_or(SAVE_STEPS, |steps| steps.of(total))), false),
            (None, steps) => (steps.map(|steps| steps.of(total)), false),
            (Some(Strategy::No), None) => (None, false),
        };
        if self.keep_every.is_some() && self.save_total_limit.is_none() {
            return refuse("--keep-every has no effect without --save-total-limit: every checkpoint is kept");
        }
        let mut cadence = Cadence {
            eval_steps,
            eval_epochs,
            save_steps,
            save_epochs,
            save_minutes: None,
            save_at_end: save_steps.is_some() || save_epochs,
            save_total_limit: self.save_total_limit,
            best: None,
        };
        let shares = [self.eval_steps, self.save_steps].into_iter().flatten().chain([logging_steps]);
        let unknown = total.is_none() && shares.into_iter().any(StepCount::is_share);
        cadence.best = self.best(method, &cadence, unknown)?;
        if self.save_strategy.is_none() && self.save_steps.is_none() {
            // These checkpoints only serve to recover from a crash. The result of the run is its model.
            cadence.save_steps = Some(SAVE_STEPS);
            cadence.save_minutes = Some(SAVE_MINUTES);
            cadence.save_total_limit = self.save_total_limit.or(Some(SAVE_LIMIT));
        }
        Ok(cadence)
    }

    /// Resolves how the best checkpoint is selected. While the number of updates is `unknown`, the
    /// coincidence of evaluations and checkpoints is not checked.
    fn best(&self, method: Method, cadence: &Cadence, unknown: bool) -> Result<Option<BestModel>> {
        let flag = match (self.load_best_model_at_end, &self.metric_for_best_model) {
            (true, _) => "--load-best-model-at-end",
            (false, Some(_)) => "--metric-for-best-model",
            (false, None) if self.greater_is_better.is_some() => {
                return Err(Error::Usage("--greater-is-better has no effect without --metric-for-best-model".into()));
            }
            (false, None) => return Ok(None),
        };
        // Either both happen at the end of epochs, or every checkpoint follows an evaluation.
        let coincide = match (cadence.eval_steps, cadence.save_steps) {
            (None, None) => cadence.eval_epochs && cadence.save_epochs,
            (Some(eval), Some(save)) => eval != u64::MAX && (unknown || save.is_multiple_of(eval)),
            _ => false,
        };
        if !coincide {
            return Err(Error::Usage(format!(
                "{flag} needs an evaluation before every checkpoint: give --eval-file, --eval-steps and --save-steps, a \
                 multiple of --eval-steps, or --eval-strategy epoch and --save-strategy epoch"
            )));
        }
        let name = self.metric_for_best_model.as_deref().unwrap_or("loss");
        BestModel::resolve(name, self.greater_is_better, self.load_best_model_at_end, method).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        cadence: CadenceArgs,
    }

    fn saves(words: &str) -> (Option<u64>, Option<u64>, bool, Option<usize>) {
        let words = Words::try_parse_from(["run"].into_iter().chain(words.split_whitespace())).unwrap();
        let c = words.cadence.resolve(Method::Reward, true, StepCount::Steps(10), Some(40)).unwrap();
        (c.save_steps, c.save_minutes, c.save_at_end, c.save_total_limit)
    }

    /// A crash loses at most 500 updates or half an hour, unless checkpoints are turned off.
    #[test]
    fn checkpoints_are_written_by_default() {
        assert_eq!(saves(""), (Some(500), Some(30), false, Some(2)));
        assert_eq!(saves("--save-total-limit 5"), (Some(500), Some(30), false, Some(5)));
        assert_eq!(saves("--save-strategy no"), (None, None, false, None));
        assert_eq!(saves("--save-strategy steps"), (Some(500), None, true, None));
        assert_eq!(saves("--save-steps 7"), (Some(7), None, true, None));
        assert_eq!(saves("--save-strategy epoch"), (None, None, true, None));
        assert_eq!(saves("--save-steps 0.1"), (Some(4), None, true, None));
    }
}
