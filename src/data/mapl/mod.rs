//! MAPL's construction: adds intra-sample and inter-sample comparisons to the base comparison of a preference group
//! (idea: arXiv 2505.12845; arguments, balance and defaults are this project's, and every open choice is an option).
//!
//! For a pair (x, chosen, rejected) one set of instruction functions is drawn. With arguments that the chosen response
//! meets and the rejected one fails it gives the prompt `up`; with the flags exchanged, `down`. Inter comparisons hold
//! the gap between the responses under these prompts against the gap under x. Intra comparisons hold one response
//! against itself under two prompts whose functions are the same and whose arguments differ; by default one of the two
//! is `up` or `down`:
//!
//! | response | rule A: meets all of the better prompt | rule B: meets none of the worse prompt |
//! |---|---|---|
//! | chosen | better = up, worse new | worse = down, better new |
//! | rejected | better = down, worse new | worse = up, better new |
//!
//! Randomness comes from the data seed, the row id and, under `--redraw epoch`, the epoch alone, so the result does
//! not depend on threads, ranks or the order of rows. Rows that already carry intra or inter comparisons stay as they
//! are.

use rayon::prelude::*;

use super::group::{Comparison, Kind, PreferenceGroup};
use super::instructions::{self, Analysis, Function};
use super::options::{BuildOptions, Objective, Redraw};
use crate::rng::Rng;

mod assemble;
mod compare;
mod draw;
mod report;
mod table;

pub use report::{FunctionCounts, RelationCounts, Report, SizeCounts};

use assemble::turn_text;
use compare::Builder;
use draw::Drawer;

/// Why a comparison was not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// No set of functions of the size asked for is feasible for the two responses.
    TooFewFunctions,
    /// No arguments turn the flags of a prompt without contradicting its other instructions.
    NoContrast,
    /// A check of the assembled prompt disagreed with a flag.
    WrongFlag,
    /// An earlier draw gave the same comparison.
    Repeated,
    /// The conversation has no user turn.
    NoUserTurn,
    /// Plain text has no system message for `--placement system`.
    NoSystemTurn,
    /// The row has no base comparison to build from.
    NoBase,
    /// The row carries intra or inter comparisons already.
    AlreadyBuilt,
}

impl Dropped {
    /// The reason as reports show it.
    pub fn reason(self) -> &'static str {
        match self {
            Dropped::TooFewFunctions => "too few feasible functions",
            Dropped::NoContrast => "no arguments for the opposite flags",
            Dropped::WrongFlag => "flag not confirmed by its check",
            Dropped::Repeated => "same as an earlier draw",
            Dropped::NoUserTurn => "no user turn",
            Dropped::NoSystemTurn => "no system message in plain text",
            Dropped::NoBase => "row without a base comparison",
            Dropped::AlreadyBuilt => "row already built",
        }
    }
}

/// Builds one group. `epoch` matters under `--redraw epoch` only. The base comparisons of the row are kept as they are;
/// a row for which nothing can be built keeps just these. Under the objective `base` the result has no comparison at
/// all if the row had no base comparison.
pub fn build_group(group: &PreferenceGroup, options: &BuildOptions, epoch: u64) -> (PreferenceGroup, Report) {
    let mut report = Report { rows: 1, ..Report::default() };
    let mut built = group.clone();
    match options.objective {
        Objective::Rows => {}
        Objective::Base => {
            built.comparisons.retain(|c| c.kind == Kind::Base);
            if built.comparisons.is_empty() {
                report.drop_row(Dropped::NoBase);
            }
        }
        Objective::Mapl | Objective::Rc | Objective::Iopo | Objective::Rpo => {
            if group.comparisons.iter().any(|c| c.kind != Kind::Base) {
                report.drop_row(Dropped::AlreadyBuilt);
            } else {
                built = build(group, options, epoch, &mut report);
            }
        }
    }
    report.count_group(&built);
    (built, report)
}

/// Builds groups on all threads of the current pool. Groups come out in the order of the rows; rows left without any
/// comparison (objective `base`) are left out.
pub fn build_groups(groups: &[PreferenceGroup], options: &BuildOptions, epoch: u64) -> (Vec<PreferenceGroup>, Report) {
    let built: Vec<_> = groups.par_iter().map(|group| build_group(group, options, epoch)).collect();
    let mut total = Report::default();
    let mut kept = Vec::with_capacity(built.len());
    for (group, report) in built {
        total.merge(&report);
        if !group.comparisons.is_empty() {
            kept.push(group);
        }
    }
    (kept, total)
}

fn build(group: &PreferenceGroup, options: &BuildOptions, epoch: u64, report: &mut Report) -> PreferenceGroup {
    let analyses: Vec<Analysis> = group.responses.iter().map(|r| Analysis::new(r.text())).collect();
    let mut builder = Builder::new(group, &analyses, options);
    let mut pairs = 0;
    for comparison in &group.comparisons {
        let Some((x, chosen, rejected)) = pair(comparison) else { continue };
        let prompt = Analysis::new(turn_text(&group.prompts[x], options));
        // Rows hold one pair as a rule; the number tells several apart.
        let mut labels = vec!["mapl".to_owned(), group.id.clone(), pairs.to_string()];
        match options.redraw {
            Redraw::Never => {}
            Redraw::Epoch => labels.push(format!("epoch {epoch}")),
        }
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let mut drawer = Drawer {
            responses: [&analyses[chosen], &analyses[rejected]],
            functions: allowed(&prompt, options, report),
            prompt: &prompt,
            options,
            rng: Rng::keyed(options.data_seed, &labels),
        };
        builder.add_pair(x, [chosen, rejected], &mut drawer, report);
        pairs += 1;
    }
    if pairs == 0 {
        report.drop_row(Dropped::NoBase);
    }
    builder.finish()
}

/// Prompt, chosen and rejected response of an ordinary base comparison.
fn pair(comparison: &Comparison) -> Option<(usize, usize, usize)> {
    let [a, b] = comparison.terms[..] else { return None };
    let (better, worse) = if a.sign > 0 { (a, b) } else { (b, a) };
    (better.prompt == worse.prompt && better.sign != worse.sign).then_some((
        better.prompt,
        better.response,
        worse.response,
    ))
}

/// Functions of the options that the prompt does not speak of already.
fn allowed(prompt: &Analysis, options: &BuildOptions, report: &mut Report) -> Vec<&'static Function> {
    let functions = options.functions.iter().filter_map(|id| instructions::by_id(id));
    functions
        .filter(|function| {
            let mentioned = options.avoid_existing && function.is_mentioned_in(prompt);
            if mentioned {
                report.mentioned(function.id);
            }
            !mentioned
        })
        .collect()
}
