//! Console output of a run: step lines with stable columns on stdout, a progress bar on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use serde_json::{Map, Value};

use super::metrics::Tally;
use super::step::StepReport;
use crate::data::group::Kind;
use crate::loss::objective::{Loss, Method};
use crate::terminal::{complain, follows, say};

/// Console of one run.
pub(super) struct Console {
    bar: ProgressBar,
    quiet: bool,
}

impl Console {
    /// Console of a run of `total` steps that starts after step `done`. The progress bar is hidden
    /// if stderr is not a terminal, if `CI` or `NO_COLOR` is set, or if `quiet`.
    pub fn new(total: u64, done: u64, quiet: bool) -> Self {
        let hidden = quiet || follows() || std::env::var_os("CI").is_some() || std::env::var_os("NO_COLOR").is_some();
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(4) };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_position(done);
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} | {elapsed} elapsed, {eta} left") {
            bar.set_style(style);
        }
        Self { bar, quiet }
    }

    /// Prints the result on stdout, even if quiet.
    pub fn result(&self, text: &str) {
        self.bar.suspend(|| say(text));
    }

    /// Prints a line on stdout, above the progress bar; nothing if quiet.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| say(text));
        }
    }

    /// Prints a warning on stderr, even if quiet.
    pub fn warn(&self, text: &str) {
        self.bar.suspend(|| complain(&format!("warning: {text}")));
    }

    /// Returns a function that prints a line on stderr from another thread, above the progress bar.
    pub fn printer(&self) -> impl FnOnce(&str) + Send + 'static {
        let bar = self.bar.clone();
        move |text| bar.suspend(|| complain(text))
    }

    /// Moves the progress bar to `step`.
    pub fn advance(&self, step: u64) {
        self.bar.set_position(step);
    }

    /// Removes the progress bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Step line, without the columns of absent comparison kinds. An accuracy is `-` if all comparisons are ties.
///
/// ```text
/// step 12/500 | loss 0.6812 | acc 0.62 | intra 0.55 | inter 0.51 | margin +0.031 | gnorm 1.420
/// | lr 4.80e-7 | 812 ms | 41.2k tok/s
/// ```
pub(super) fn step_line(
    (step, total): (u64, u64),
    report: &StepReport,
    loss: &Loss,
    learning_rate: f64,
    elapsed: Duration,
) -> String {
    let tally = &report.tally;
    let mut parts = vec![format!("step {step}/{total}"), format!("loss {:.4}", tally.loss(loss))];
    parts.extend(accuracies(tally, loss));
    let applied = if report.update.applied { "" } else { " (skipped)" };
    parts.push(format!("gnorm {:.3}{applied}", report.update.grad_norm));
    parts.push(format!("lr {learning_rate:.2e}"));
    parts.push(format!("{:.0} ms", elapsed.as_secs_f64() * 1e3));
    parts.push(format!("{} tok/s", thousands(tally.tokens as f64 / elapsed.as_secs_f64().max(1e-9))));
    parts.join(" | ")
}

/// Evaluation line: `eval 200 | loss 0.6000 | acc 0.71 | intra 0.66 | inter 0.58`.
///
/// Metrics of generated text follow with their names: `ifeval/prompt_strict 0.25`.
pub(super) fn eval_line(step: u64, scored: Option<(&Tally, &Loss)>, figures: &Map<String, Value>) -> String {
    let mut parts = vec![format!("eval {step}")];
    if let Some((tally, loss)) = scored {
        parts.push(format!("loss {:.4}", tally.loss(loss)));
        parts.extend(accuracies(tally, loss));
    }
    parts.extend(figures.iter().filter_map(|(name, value)| Some(format!("{name} {:.3}", value.as_f64()?))));
    parts.join(" | ")
}

fn accuracies(tally: &Tally, loss: &Loss) -> Vec<String> {
    if loss.method == Method::Sft {
        return Vec::new();
    }
    let mut parts = Vec::new();
    for (kind, name) in Kind::ALL.into_iter().zip(["acc", "intra", "inter"]) {
        let kind = &tally.kinds[kind.index()];
        if kind.count > 0 {
            // If the policy equals its reference, every comparison is a tie, and an accuracy would say
            // nothing.
            let accuracy = format!("{:.2}", kind.accuracy());
            parts.push(format!("{name} {}", if kind.ties == kind.count { "-" } else { &accuracy }));
        }
    }
    let base = &tally.kinds[Kind::Base.index()];
    if base.count > 0 {
        parts.push(format!("margin {:+.3}", base.logit / base.count as f64));
    }
    parts
}

/// Short form of a rate: 41234 is `41.2k`.
fn thousands(x: f64) -> String {
    if x >= 1e6 {
        format!("{:.2}M", x / 1e6)
    } else if x >= 1e3 {
        format!("{:.1}k", x / 1e3)
    } else {
        format!("{x:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::objective::LossOptions;

    #[test]
    fn an_accuracy_of_nothing_but_ties_is_a_dash() {
        let loss = LossOptions::default().resolve(Method::Dpo, [1.0; 3], false).unwrap();
        let mut tally = Tally::default();
        tally.kinds[Kind::Base.index()].add(0.69, 0.0);
        tally.kinds[Kind::Intra.index()].add(0.69, 0.0);
        tally.kinds[Kind::Intra.index()].add(0.69, -1.0);
        let line = eval_line(0, Some((&tally, &loss)), &Map::new());
        assert!(line.ends_with("| acc - | intra 0.00 | margin +0.000"), "{line}");
    }

    #[test]
    fn rates_are_short() {
        assert_eq!([thousands(950.0), thousands(41_234.0), thousands(2_500_000.0)], ["950", "41.2k", "2.50M"]);
    }
}
