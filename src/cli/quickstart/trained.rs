//! What the log of a run holds for the summary.

use crate::data::group::Kind;
use crate::report::run::log::{Columns, RunLog};
use crate::report::summary::{AccuracyPoint, NamedText, Point};

/// A finished training run.
#[derive(Clone, Debug, Default)]
pub(super) struct Trained {
    /// Its command.
    pub(super) command: NamedText,
    pub(super) steps: u64,
    /// Tokens that the policy has processed; shared prompt tokens count once.
    pub(super) tokens: u64,
    pub(super) seconds: f64,
    /// Training loss by step.
    pub(super) loss: Vec<Point>,
    /// Held-out accuracies by step.
    pub(super) accuracy: Vec<AccuracyPoint>,
}

impl Trained {
    pub(super) fn new(command: NamedText, log: &RunLog, seconds: f64) -> Self {
        let losses = log.train.get("loss").into_iter().flatten();
        let tokens = log.train.get("num_tokens").and_then(|column| column.last());
        let evaluated: Vec<u64> = log.eval.get("loss").into_iter().flatten().map(|(step, _)| *step).collect();
        Self {
            command,
            steps: log.last_step().unwrap_or(0),
            tokens: tokens.map_or(0, |(_, tokens)| *tokens as u64),
            seconds,
            loss: losses.map(|&(step, value)| Point { step, value }).collect(),
            accuracy: evaluated.into_iter().map(|step| accuracy_point(&log.eval, step)).collect(),
        }
    }
}

/// Accuracies of the evaluation after `step`; 0 for a kind without comparisons.
fn accuracy_point(columns: &Columns, step: u64) -> AccuracyPoint {
    let value = |column: &str, kind: Kind| {
        let points = columns.get(&format!("{column}/{}", kind.name()))?;
        points.iter().find(|(at, _)| *at == step).map(|(_, value)| *value)
    };
    let [semantic, intra, inter] = Kind::ALL.map(|kind| value("rewards/accuracies", kind).unwrap_or(0.0));
    let ties = Kind::ALL.map(|kind| match (value("ties", kind), value("comparisons", kind)) {
        (Some(ties), Some(count)) if count > 0.0 => ties / count,
        _ => 0.0,
    });
    AccuracyPoint { step, semantic, intra, inter, ties }
}
