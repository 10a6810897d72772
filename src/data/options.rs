//! Settings of the construction of preference groups, in two forms. [`BuildArgs`] is the command
//! line, with every flag optional. [`BuildOptions`] is complete; the builder reads it and the run
//! manifest stores it. The preset of the objective gives the values of flags that are left out.
//!
//! Unknown function ids, empty ranges, numbers out of range, and flags that have no effect under the
//! objective are errors. Options that act only during training (weights, beta, loss curve) are not here;
//! [`Objective::kind_weights`] gives the preset weights of an objective.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::instructions::{self, FunctionKind};
use crate::{Error, Result};

mod resolve;

/// Comparisons that are built from a row and used in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Comparisons that the rows carry; nothing is built.
    Rows,
    /// Base comparisons only; other comparisons of the rows are dropped.
    Base,
    /// MAPL: base, intra-sample and inter-sample comparisons (arXiv 2505.12845).
    Mapl,
    /// Response-conditioned Bradley-Terry (arXiv 2502.00814): the original prompt against one with
    /// a length limit.
    Rc,
    /// Input-output preference optimisation (arXiv 2411.06208): four-term comparisons only.
    Iopo,
    /// The pair under the instructed prompt, with a margin per differing instruction (arXiv
    /// 2505.22172).
    Rpo,
}

impl Objective {
    /// Preset weights of base, intra and inter comparisons, in the order of `Kind::ALL`.
    pub fn kind_weights(self) -> [f64; 3] {
        match self {
            Objective::Rows | Objective::Mapl => [1.0, 1.0, 1.0],
            Objective::Base => [1.0, 0.0, 0.0],
            Objective::Rc => [1.0, 2.0, 0.0],
            Objective::Iopo | Objective::Rpo => [0.0, 0.0, 1.0],
        }
    }

    /// True if the objective adds comparisons to a row.
    pub fn builds(self) -> bool {
        match self {
            Objective::Rows | Objective::Base => false,
            Objective::Mapl | Objective::Rc | Objective::Iopo | Objective::Rpo => true,
        }
    }
}

/// Rule of an intra comparison, see [`super::group::Rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntraRule {
    /// A or B by a seeded coin flip per comparison.
    Mixed,
    /// Rule A for both responses.
    A,
    /// Rule B for both responses.
    B,
    /// A for the chosen response, B for the rejected one.
    AChosenBRejected,
}

/// Number of instructions, out of k, with different flags in the two prompts of an intra
/// comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Violations {
    /// Uniform in 1..=k.
    Uniform,
    /// Exactly one.
    One,
    /// All k.
    All,
}

/// Responses that get an intra comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntraResponses {
    /// Chosen and rejected.
    Both,
    /// Chosen only.
    Chosen,
    /// Rejected only.
    Rejected,
}

/// Prompt that an instructed prompt is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntraAnchor {
    /// Another instructed prompt (MAPL).
    None,
    /// The original prompt (response-conditioned Bradley-Terry).
    Bare,
}

/// Terms of an inter comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterLoss {
    /// Four terms: the gap under the instructed prompt against the gap under the original one.
    Margin,
    /// Two terms: the pair under the instructed prompt.
    Pair,
    /// Two terms with margin gamma times the number of differing instructions.
    PairMargin,
    /// Same as `margin`; the name of the equivalent group Bradley-Terry model.
    Group,
    /// The four terms of `margin`; training detaches and clips the gap under the original prompt.
    PopDetached,
}

/// Directions of inter comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterDir {
    /// Up and down.
    Both,
    /// Only prompts that must widen the gap.
    Up,
    /// Only prompts that must narrow it.
    Down,
}

/// Whether intra comparisons reuse the prompts of inter comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterPrompts {
    /// Reuse them, which needs fewer sequences.
    Shared,
    /// Draw them separately.
    Separate,
}

/// Action if fewer than k functions are feasible, for inter prompts and for intra prompts that do not reuse them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterInfeasible {
    /// Draw the functions again, up to eight times, then skip.
    Resample,
    /// Use fewer than k.
    Fewer,
    /// Skip at once.
    Skip,
}

/// Frequency of drawing groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Redraw {
    /// Once.
    Never,
    /// Again in each epoch.
    Epoch,
}

/// Position of the instructions in the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// After the text of the user turn.
    Suffix,
    /// Before the text of the user turn.
    Prefix,
    /// In the system message of a conversation.
    System,
}

/// Form in which several instructions are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Joiner {
    /// As sentences.
    Sentences,
    /// As a numbered list.
    List,
}

/// User turn that receives the instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turn {
    /// The last one.
    Last,
    /// The first one.
    First,
}

/// Command-line form of the construction options: `None` for a flag that was not given. Flatten it
/// into a command and call [`BuildArgs::resolve`].
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Serialize)]
#[command(next_help_heading = "Construction of preference groups")]
pub struct BuildArgs {
    /// Comparisons to build and train on; sets the defaults of the options below
    #[arg(long, value_enum)]
    pub objective: Option<Objective>,
    /// Rule of intra comparisons [default: mixed]
    #[arg(long, alias = "intra_rule", value_enum)]
    pub intra_rule: Option<IntraRule>,
    /// Number of instructions that change between the two prompts of an intra comparison [default:
    /// uniform]
    #[arg(long, value_enum)]
    pub violations: Option<Violations>,
    /// Minimum number of instructions added to a prompt [default: 2; rc: 1]
    #[arg(long, alias = "k_min")]
    pub k_min: Option<usize>,
    /// Maximum number of instructions added to a prompt [default: 5; 1 with --objective rc]
    #[arg(long, alias = "k_max")]
    pub k_max: Option<usize>,
    /// Responses that get an intra comparison [default: both]
    #[arg(long, alias = "intra_responses", value_enum)]
    pub intra_responses: Option<IntraResponses>,
    /// Weight of intra comparisons on the rejected response [default: 1]
    #[arg(long, alias = "lambda_resp")]
    pub lambda_resp: Option<f64>,
    /// Compare an instructed prompt with another one (none) or with the original (bare) [default:
    /// none; rc: bare]
    #[arg(long, alias = "intra_anchor", value_enum)]
    pub intra_anchor: Option<IntraAnchor>,
    /// Number of intra comparisons to draw per response [default: 1]
    #[arg(long, alias = "n_intra")]
    pub n_intra: Option<usize>,
    /// Number of inter comparisons to draw per direction [default: 1]
    #[arg(long, alias = "n_inter")]
    pub n_inter: Option<usize>,
    /// Terms of inter comparisons; `group` is the same as `margin` [default: margin; rpo:
    /// pair-margin]
    #[arg(long, alias = "inter_loss", value_enum)]
    pub inter_loss: Option<InterLoss>,
    /// Directions of inter comparisons [default: both; iopo and rpo: up]
    #[arg(long, alias = "inter_dir", value_enum)]
    pub inter_dir: Option<InterDir>,
    /// Reuse inter prompts in intra comparisons, or draw separate ones [default: shared]
    #[arg(long, alias = "inter_prompts", value_enum)]
    pub inter_prompts: Option<InterPrompts>,
    /// Action if too few functions are feasible for the responses [default: resample]
    #[arg(long, alias = "inter_infeasible", value_enum)]
    pub inter_infeasible: Option<InterInfeasible>,
    /// Draw groups once or again in each epoch [default: never]
    #[arg(long, value_enum)]
    pub redraw: Option<Redraw>,
    /// Number of attempts to find instruction arguments with the opposite outcome before an intra comparison
    /// is dropped [default: 8]
    #[arg(long, alias = "build_attempts")]
    pub build_attempts: Option<usize>,
    /// Margin per differing instruction under `--inter-loss pair-margin` [default: 0.05]
    #[arg(long)]
    pub gamma: Option<f64>,
    /// Position of the instructions in the prompt [default: suffix]
    #[arg(long, value_enum)]
    pub placement: Option<Placement>,
    /// Form in which several instructions are joined [default: sentences]
    #[arg(long, value_enum)]
    pub joiner: Option<Joiner>,
    /// User turn that receives the instructions [default: last]
    #[arg(long, value_enum)]
    pub turn: Option<Turn>,
    /// Instruction functions to draw from, comma-separated ids such as `number_words` or
    /// `keywords:existence`
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    pub functions: Option<Vec<String>>,
    /// Functions removed from the list of --functions, to test generalisation to them
    #[arg(long, alias = "holdout_functions", value_delimiter = ',', num_args = 1..)]
    pub holdout_functions: Option<Vec<String>>,
    /// Skip functions with a subject that the prompt already mentions [default: true]
    #[arg(long, alias = "avoid_existing", num_args = 0..=1, default_missing_value = "true")]
    pub avoid_existing: Option<bool>,
    /// Seed of the construction; in TRL this flag seeds the order of rows, which is --seed here
    /// [default: 42]
    #[arg(long, alias = "data_seed")]
    pub data_seed: Option<u64>,
}

/// Complete construction options. The default is the preset of [`Objective::Mapl`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildOptions {
    /// `--objective`.
    pub objective: Objective,
    /// Whether intra comparisons are built; false if their weight is 0.
    pub build_intra: bool,
    /// Whether inter comparisons are built; false if their weight is 0.
    pub build_inter: bool,
    /// `--intra-rule`.
    pub intra_rule: IntraRule,
    /// `--violations`.
    pub violations: Violations,
    /// `--k-min`.
    pub k_min: usize,
    /// `--k-max`.
    pub k_max: usize,
    /// `--intra-responses`.
    pub intra_responses: IntraResponses,
    /// `--lambda-resp`.
    pub lambda_resp: f64,
    /// `--intra-anchor`.
    pub intra_anchor: IntraAnchor,
    /// `--n-intra`.
    pub n_intra: usize,
    /// `--n-inter`.
    pub n_inter: usize,
    /// `--inter-loss`.
    pub inter_loss: InterLoss,
    /// `--inter-dir`.
    pub inter_dir: InterDir,
    /// `--inter-prompts`.
    pub inter_prompts: InterPrompts,
    /// `--inter-infeasible`.
    pub inter_infeasible: InterInfeasible,
    /// `--redraw`.
    pub redraw: Redraw,
    /// `--build-attempts`.
    pub build_attempts: usize,
    /// `--gamma`.
    pub gamma: f64,
    /// `--placement`.
    pub placement: Placement,
    /// `--joiner`.
    pub joiner: Joiner,
    /// `--turn`.
    pub turn: Turn,
    /// Full ids of the functions to draw from, without held-out functions, in registry order.
    pub functions: Vec<String>,
    /// Full ids of the held-out functions, in registry order.
    pub holdout_functions: Vec<String>,
    /// `--avoid-existing`.
    pub avoid_existing: bool,
    /// `--data-seed`.
    pub data_seed: u64,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self::preset(Objective::Mapl)
    }
}

impl BuildOptions {
    /// Preset options of an objective.
    pub fn preset(objective: Objective) -> Self {
        let [_, intra, inter] = objective.kind_weights();
        let defaults = Self {
            objective,
            build_intra: objective.builds() && intra > 0.0,
            build_inter: objective.builds() && inter > 0.0,
            intra_rule: IntraRule::Mixed,
            violations: Violations::Uniform,
            k_min: 2,
            k_max: 5,
            intra_responses: IntraResponses::Both,
            lambda_resp: 1.0,
            intra_anchor: IntraAnchor::None,
            n_intra: 1,
            n_inter: 1,
            inter_loss: InterLoss::Margin,
            inter_dir: InterDir::Both,
            inter_prompts: InterPrompts::Shared,
            inter_infeasible: InterInfeasible::Resample,
            redraw: Redraw::Never,
            build_attempts: 8,
            gamma: 0.05,
            placement: Placement::Suffix,
            joiner: Joiner::Sentences,
            turn: Turn::Last,
            functions: default_functions(),
            holdout_functions: Vec::new(),
            avoid_existing: true,
            data_seed: 42,
        };
        match objective {
            Objective::Rows | Objective::Base | Objective::Mapl => defaults,
            Objective::Rc => Self {
                intra_anchor: IntraAnchor::Bare,
                k_min: 1,
                k_max: 1,
                functions: vec!["length_constraints:number_words".to_owned()],
                ..defaults
            },
            Objective::Iopo => Self { inter_dir: InterDir::Up, ..defaults },
            Objective::Rpo => Self { inter_dir: InterDir::Up, inter_loss: InterLoss::PairMargin, ..defaults },
        }
    }
}

/// Default of `--functions`: all functions of the kinds whose text depends on the response. The response
/// language is left out, because its check needs a detector.
fn default_functions() -> Vec<String> {
    let changes = |kind| match kind {
        FunctionKind::TwoSided | FunctionKind::Exact | FunctionKind::AtLeast | FunctionKind::Lexical => true,
        FunctionKind::Fixed => false,
    };
    instructions::all()
        .iter()
        .filter(|f| changes(f.kind) && f.id != "language:response_language")
        .map(|f| f.id.to_owned())
        .collect()
}

/// Full id of a function, given its id or the part after the colon. `flag` names the option in
/// errors.
pub fn function_id(name: &str, flag: &str) -> Result<&'static str> {
    let found = instructions::all().iter().find(|f| f.id == name || f.id.split_once(':').is_some_and(|p| p.1 == name));
    found.map(|f| f.id).ok_or_else(|| {
        let known: Vec<_> = instructions::all().iter().map(|f| f.id).collect();
        Error::Usage(format!("{flag}: unknown instruction function {name:?}; known functions: {}", known.join(", ")))
    })
}
