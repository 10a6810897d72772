//! Selection of the best checkpoint by a metric (`--metric-for-best-model`). Metrics that the method does not
//! report, and comparison kinds that the evaluation rows do not have, are errors.

use serde::{Deserialize, Serialize};

use super::metrics::Tally;
use crate::data::group::Kind;
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{Loss, Method};
use crate::{Error, Result};

/// Metric that selects the best checkpoint, and whether that checkpoint becomes the final model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestModel {
    /// Name of the metric in metrics.jsonl, without the prefix `eval_`.
    pub metric: String,
    pub greater_is_better: bool,
    /// Whether the final model is the best checkpoint instead of the last state.
    pub load_at_end: bool,
}

impl BestModel {
    /// Resolves a metric name, with or without the prefix `eval_`. Methods with comparisons also
    /// accept `accuracy` and `margin`, and a suffix `/base`, `/intra` or `/inter` for one kind. If
    /// `greater` is `None`, smaller is better for losses and greater for all other metrics.
    pub fn resolve(name: &str, greater: Option<bool>, load_at_end: bool, method: Method) -> Result<Self> {
        let bare = name.strip_prefix("eval_").unwrap_or(name);
        let (value, kind) = match bare.rsplit_once('/') {
            Some((value, kind)) if Kind::ALL.iter().any(|k| k.name() == kind) => (value, Some(kind)),
            _ => (bare, None),
        };
        let compares = method != Method::Sft;
        let metric = match (value, kind) {
            ("loss", None) => "loss".to_owned(),
            ("loss", Some(kind)) if compares => format!("loss/{kind}"),
            ("accuracy" | "rewards/accuracies", _) if compares => match (kind, method) {
                (Some(kind), _) => format!("rewards/accuracies/{kind}"),
                (None, Method::Reward) => "accuracy".to_owned(),
                (None, _) => "rewards/accuracies".to_owned(),
            },
            ("margin" | "rewards/margins", _) if compares => match (kind, method) {
                (Some(kind), _) => format!("rewards/margins/{kind}"),
                (None, Method::Reward) => "margin".to_owned(),
                (None, _) => "rewards/margins".to_owned(),
            },
            _ => {
                let known = if compares {
                    "loss, accuracy and margin, optionally followed by /base, /intra or /inter"
                } else {
                    "loss"
                };
                return Err(Error::Usage(format!("--metric-for-best-model {name}: {} reports {known}", method.name())));
            }
        };
        let greater_is_better = greater.unwrap_or(!metric.starts_with("loss"));
        Ok(Self { metric, greater_is_better, load_at_end })
    }

    /// Returns an error if the evaluation groups lack the comparisons of the metric.
    pub fn check(&self, eval: &[TokenizedGroup]) -> Result<()> {
        if self.metric == "loss" {
            return Ok(());
        }
        let kind = Kind::ALL.into_iter().find(|k| self.metric.ends_with(&format!("/{}", k.name())));
        // Accuracy and margin without a kind refer to base pairs.
        let kind = kind.unwrap_or(Kind::Base);
        if eval.iter().flat_map(|group| &group.comparisons).any(|c| c.kind == kind) {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "--metric-for-best-model {}: the rows of --eval-file have no {} comparisons",
            self.metric,
            kind.name()
        )))
    }

    /// Value of the metric in an evaluation; `None` if it is not finite.
    pub(super) fn value(&self, tally: &Tally, loss: &Loss) -> Option<f64> {
        tally.named(loss, "").get(&self.metric)?.as_f64()
    }

    /// Whether `value` is better than `best`; a tie is not.
    pub(super) fn improves(&self, value: f64, best: f64) -> bool {
        if self.greater_is_better { value > best } else { value < best }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_depend_on_the_method() {
        let metric = |name: &str, method| BestModel::resolve(name, None, true, method).map(|b| b.metric).ok();
        assert_eq!(metric("accuracy", Method::Reward).as_deref(), Some("accuracy"));
        assert_eq!(metric("eval_accuracy", Method::Dpo).as_deref(), Some("rewards/accuracies"));
        assert_eq!(
            metric("eval_rewards/accuracies/intra", Method::Reward).as_deref(),
            Some("rewards/accuracies/intra")
        );
        assert_eq!(metric("margin/inter", Method::Dpo).as_deref(), Some("rewards/margins/inter"));
        assert_eq!(metric("loss/base", Method::Dpo).as_deref(), Some("loss/base"));
        assert_eq!((metric("accuracy", Method::Sft), metric("f1", Method::Dpo)), (None, None));
        assert_eq!(metric("loss/other", Method::Dpo), None);
    }

    #[test]
    fn smaller_is_better_for_losses_unless_overridden() {
        let best = |name: &str, greater| BestModel::resolve(name, greater, true, Method::Dpo).unwrap();
        assert!(best("loss", None).improves(0.1, 0.2) && !best("loss", None).improves(0.2, 0.2));
        assert!(best("accuracy", None).improves(0.3, 0.2));
        assert!(best("loss/intra", Some(true)).improves(0.3, 0.2));
        assert!(best("accuracy", Some(false)).improves(0.1, 0.2));
    }
}
