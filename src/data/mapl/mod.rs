//! MAPL's construction: adds intra-sample and inter-sample comparisons to the base comparison of a
//! preference group. The idea is from arXiv 2505.12845; arguments, balance and defaults are this
//! project's, and every open choice is an option.
//!
//! ```text
//! for each base comparison (x, chosen, rejected) and each draw:
//!     functions = k random instruction functions, feasible and free of conflicts
//!     up        = x + functions, with arguments that chosen meets and rejected fails
//!     down      = x + functions, with arguments that rejected meets and chosen fails
//!     for each response r:                                             (intra comparisons)
//!         rule  = A or B
//!         given = up or down, see the table
//!         other = given, with some arguments redrawn so that r's flags flip
//!         add: score(r, better prompt) > score(r, worse prompt)
//!     for each prompt p of up and down, met by w and failed by l:      (inter comparisons)
//!         add: score(w, p) - score(l, p) > score(w, x) - score(l, x)
//! ```
//!
//! | response | rule A: meets all of the better prompt | rule B: meets none of the worse prompt |
//! |---|---|---|
//! | chosen | better = up, worse = other | worse = down, better = other |
//! | rejected | better = down, worse = other | worse = up, better = other |
//!
//! The code departs from this in four points. `given` is drawn separately for the response if prompts are not
//! shared, or if the flags of the shared prompt cannot be flipped. With `--intra-anchor bare` one of the two
//! prompts is x. A comparison with too few feasible functions is drawn again, built with fewer instructions or
//! dropped, see `--inter-infeasible`. Every flag is checked again on the drawn arguments before a prompt is
//! added, and equal prompts and comparisons are added once.
//!
//! Randomness depends only on the data seed, the row's key ([`draw_keys`]), the index of the pair in the row
//! and, under `--redraw epoch`, the epoch. The result does not depend on threads, ranks, ids, file names or the
//! order of rows. Rows that already carry intra or inter comparisons are left unchanged.

use std::collections::HashMap;

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

/// Reason why a comparison was not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum DropReason {
    /// No set of functions of the requested size is feasible for the two responses.
    TooFewFunctions,
    /// No arguments flip the flags of a prompt without contradicting its other instructions.
    NoContrast,
    /// The check of a drawn instruction disagreed with its expected flag.
    WrongFlag,
    /// An earlier draw gave the same comparison.
    Repeated,
    /// The conversation has no user turn.
    NoUserTurn,
    /// Plain text has no system message for `--placement system`.
    NoSystemTurn,
    /// The row has no base comparison to build from.
    NoBase,
    /// The row already carries intra or inter comparisons.
    AlreadyBuilt,
}

impl DropReason {
    /// Text of the reason, a key in reports.
    fn reason(self) -> &'static str {
        match self {
            DropReason::TooFewFunctions => "too few feasible functions",
            DropReason::NoContrast => "no arguments for the opposite flags",
            DropReason::WrongFlag => "flag not confirmed by its check",
            DropReason::Repeated => "same as an earlier draw",
            DropReason::NoUserTurn => "no user turn",
            DropReason::NoSystemTurn => "no system message in plain text",
            DropReason::NoBase => "no base comparison of two responses to one prompt",
            DropReason::AlreadyBuilt => "row already built",
        }
    }
}

/// Returns the key of the random draws of every row: a hash of its content, and its index among rows with the
/// same content, so that equal rows draw different instructions.
pub fn draw_keys<'a>(groups: impl IndexedParallelIterator<Item = &'a PreferenceGroup>) -> Vec<String> {
    let contents: Vec<String> = groups.map(content_key).collect();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    contents
        .iter()
        .map(|content| {
            let earlier = seen.entry(content).or_default();
            *earlier += 1;
            draw_key(content, *earlier - 1)
        })
        .collect()
}

/// Key of a row with `earlier` rows of the same content before it.
fn draw_key(content: &str, earlier: usize) -> String {
    format!("{content}-{earlier}")
}

/// Hash of a row's prompts and responses.
fn content_key(group: &PreferenceGroup) -> String {
    // A group is read from JSON, so it can always be serialised to JSON.
    let text = serde_json::to_vec(&(&group.prompts, &group.responses)).unwrap_or_default();
    blake3::hash(&text).to_hex().to_string()
}

/// Builds one group, with the draws of the first row of a file with this content. `epoch` matters only under
/// `--redraw epoch`. The base comparisons of the row are kept unchanged, even if nothing else can be built.
/// Under the objective `base` the result has no comparison if the row has no base comparison.
pub fn build_group(group: &PreferenceGroup, options: &BuildOptions, epoch: u64) -> (PreferenceGroup, Report) {
    build_keyed(group, &draw_key(&content_key(group), 0), options, epoch)
}

/// [`build_group`] for a row whose key comes from [`draw_keys`].
pub fn build_keyed(
    group: &PreferenceGroup,
    key: &str,
    options: &BuildOptions,
    epoch: u64,
) -> (PreferenceGroup, Report) {
    let mut report = Report { rows: 1, ..Report::default() };
    let mut built = group.clone();
    match options.objective {
        Objective::Rows => {}
        Objective::Base => {
            built.comparisons.retain(|c| c.kind == Kind::Base);
            if built.comparisons.is_empty() {
                report.drop_row(DropReason::NoBase);
            }
        }
        Objective::Mapl | Objective::Rc | Objective::Iopo | Objective::Rpo => {
            if group.comparisons.iter().any(|c| c.kind != Kind::Base) {
                report.drop_row(DropReason::AlreadyBuilt);
            } else {
                built = build(group, key, options, epoch, &mut report);
            }
        }
    }
    report.count_group(&built);
    (built, report)
}

/// Builds groups on all threads of the current pool, in the order of the rows. Rows without any
/// comparison (objective `base`) are dropped.
pub fn build_groups(groups: &[PreferenceGroup], options: &BuildOptions, epoch: u64) -> (Vec<PreferenceGroup>, Report) {
    let keys = draw_keys(groups.par_iter());
    let keyed = groups.par_iter().zip(&keys);
    let built: Vec<_> = keyed.map(|(group, key)| build_keyed(group, key, options, epoch)).collect();
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

fn build(
    group: &PreferenceGroup,
    key: &str,
    options: &BuildOptions,
    epoch: u64,
    report: &mut Report,
) -> PreferenceGroup {
    let analyses: Vec<Analysis> = group.responses.iter().map(|r| Analysis::new(r.text())).collect();
    let mut builder = Builder::new(group, &analyses, options);
    let mut pairs = 0;
    for comparison in &group.comparisons {
        let Some((x, chosen, rejected)) = pair(comparison) else { continue };
        let prompt = Analysis::new(turn_text(&group.prompts[x], options));
        // The index of the pair gives several pairs of one row different draws.
        let mut labels = vec!["mapl".to_owned(), key.to_owned(), pairs.to_string()];
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
        report.drop_row(DropReason::NoBase);
    }
    builder.finish()
}

/// Returns the indices of the prompt, the chosen and the rejected response of a comparison of two responses to
/// one prompt; `None` for other comparisons.
fn pair(comparison: &Comparison) -> Option<(usize, usize, usize)> {
    let [a, b] = comparison.terms[..] else { return None };
    let (better, worse) = if a.sign > 0 { (a, b) } else { (b, a) };
    (better.prompt == worse.prompt && better.sign != worse.sign).then_some((
        better.prompt,
        better.response,
        worse.response,
    ))
}

/// Returns the functions that the options allow. With `avoid_existing`, functions that the prompt already
/// mentions are left out.
fn allowed(prompt: &Analysis, options: &BuildOptions, report: &mut Report) -> Vec<&'static Function> {
    let functions = options.functions.iter().filter_map(|id| instructions::by_id(id));
    functions
        .filter(|function| {
            let mentioned = options.avoid_existing && function.is_mentioned_in(prompt);
            if mentioned {
                report.count_mentioned(function.id);
            }
            !mentioned
        })
        .collect()
}
