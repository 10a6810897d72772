//! The training objective: curve, scale and weight of every comparison kind, and the terms besides
//! the comparisons.
//!
//! `L = sum over kinds of weight_kind * mean over the kind's comparisons of (weight * f(z))`. The
//! mean is over the global batch, so every split into micro-batches or ranks gives the same loss.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::backend::contract::{Curve, KINDS, Reduce};
use crate::data::group::Kind;
use crate::data::pack::LogpScope;
use crate::data::tokenized::{SequenceComparison, TokenizedGroup};
use crate::error::{refuse_given, refuse_outside_f32};
use crate::{Error, Result};

/// Training method of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Next-token likelihood of responses.
    Sft,
    /// Scalar reward from Bradley-Terry comparisons.
    Reward,
    /// Direct preference optimisation (arXiv 2305.18290).
    Dpo,
}

impl Method {
    /// Name of the command.
    pub fn name(self) -> &'static str {
        match self {
            Method::Sft => "sft",
            Method::Reward => "reward",
            Method::Dpo => "dpo",
        }
    }
}

/// Values of `--loss-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossType {
    #[value(alias = "logexp")]
    Sigmoid,
    Robust,
    Hinge,
    Ipo,
}

/// Values of `--mix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mix {
    /// All comparisons of a group in one batch; one mean per kind.
    Sum,
    /// Comparisons shuffled as separate records; one mean over all.
    Union,
}

/// Values of `--logp-scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScopeName {
    Response,
    PromptAndResponse,
}

/// Values of `--logp-reduce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReduceName {
    Sum,
    Mean,
}

/// Loss options as given. [`LossOptions::resolve`] replaces unset options by the objective's or the
/// default value.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[command(next_help_heading = "Loss")]
pub struct LossOptions {
    /// Factor on log pi - log ref [DPO; default 0.1]
    #[arg(long)]
    pub beta: Option<f64>,
    /// beta of intra comparisons [default: --beta]
    #[arg(long, alias = "beta_intra")]
    pub beta_intra: Option<f64>,
    /// beta of inter comparisons [default: --beta]
    #[arg(long, alias = "beta_inter")]
    pub beta_inter: Option<f64>,
    /// Weight of the mean loss of base comparisons [default 1, or the objective's]
    #[arg(long, alias = "base_weight")]
    pub base_weight: Option<f64>,
    /// Weight of the mean loss of intra comparisons [default 1, or the objective's]
    #[arg(long, alias = "intra_weight")]
    pub intra_weight: Option<f64>,
    /// Weight of the mean loss of inter comparisons [default 1, or the objective's]
    #[arg(long, alias = "inter_weight")]
    pub inter_weight: Option<f64>,
    /// One mean per kind, or comparisons shuffled as separate records with one mean over all
    /// [default sum]
    #[arg(long)]
    pub mix: Option<Mix>,
    /// Constant added to every comparison's margin [default 0]
    #[arg(long, allow_negative_numbers = true)]
    pub margin: Option<f64>,
    /// Bound of the detached gap [--inter-loss pop-detached; default 5]
    #[arg(long, alias = "pop_clip")]
    pub pop_clip: Option<f64>,
    /// Loss curve f(z) of a comparison [default sigmoid]
    #[arg(long, alias = "loss_type")]
    pub loss_type: Option<LossType>,
    /// Probability that a label is wrong: cDPO with sigmoid, where TRL ignores it, and robust DPO with
    /// robust [default 0]
    #[arg(long, alias = "label_smoothing")]
    pub label_smoothing: Option<f64>,
    /// Weight of the mean negative log-likelihood of preferred sequences [DPO; default 0]
    #[arg(long, alias = "nll_weight")]
    pub nll_weight: Option<f64>,
    /// Coefficient of the squared sum of a pair's rewards [reward; default 0]
    #[arg(long, alias = "center_rewards_coefficient")]
    pub center_rewards_coefficient: Option<f64>,
    /// Tokens with log-probabilities that count towards a score [DPO; default response]
    #[arg(long, alias = "logp_scope")]
    pub logp_scope: Option<ScopeName>,
    /// Sum or mean over a sequence's tokens [DPO; default sum, mean for ipo]
    #[arg(long, alias = "logp_reduce")]
    pub logp_reduce: Option<ReduceName>,
}

/// Resolved loss, with every setting decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    pub method: Method,
    pub curve: Curve,
    /// Factor on scores by kind: beta, or 1 for rewards.
    pub scale: [f64; KINDS],
    /// Weight of the mean loss of each kind. A kind of weight 0 is not computed.
    pub weights: [f64; KINDS],
    pub mix: Mix,
    pub margin: f64,
    /// Bound of the detached gap if inter comparisons are `pop-detached`.
    pub pop_clip: Option<f64>,
    pub nll_weight: f64,
    pub center: f64,
    pub scope: LogpScope,
    pub reduce: Reduce,
    /// Share prompt prefixes within a group: tokens of a common prefix are computed once. Results
    /// agree up to rounding.
    pub share_prefixes: bool,
}

/// Refuses NaN, infinities and negative numbers.
fn non_negative(flag: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    Err(Error::Usage(format!("{flag} {value}: a finite number of at least 0 is needed")))
}

impl LossOptions {
    /// Decides every setting. `preset` has the objective's weights by kind; `pop_detached` is true
    /// if inter comparisons are trained with a detached gap. An option that the method does not use
    /// is an error.
    pub fn resolve(&self, method: Method, preset: [f64; KINDS], pop_detached: bool) -> Result<Loss> {
        self.refuse_unused(method, pop_detached)?;
        let loss_type = self.loss_type.unwrap_or(LossType::Sigmoid);
        let smoothing = non_negative("--label-smoothing", self.label_smoothing.unwrap_or(0.0))?;
        let limit = |below: bool| if below { "below 0.5" } else { "at most 0.5" };
        let curve = match loss_type {
            LossType::Sigmoid if smoothing <= 0.5 => Curve::Sigmoid { smoothing },
            LossType::Robust if smoothing < 0.5 => Curve::Robust { smoothing },
            LossType::Sigmoid | LossType::Robust => {
                let limit = limit(loss_type == LossType::Robust);
                return Err(Error::Usage(format!("--label-smoothing {smoothing}: it must be {limit}")));
            }
            LossType::Hinge | LossType::Ipo if self.label_smoothing.is_some() => {
                return Err(Error::Usage("--label-smoothing has no effect with --loss-type hinge or ipo".into()));
            }
            LossType::Hinge => Curve::Hinge,
            LossType::Ipo => Curve::Ipo,
        };
        let scale = match method {
            Method::Dpo => {
                let beta = self.beta.unwrap_or(0.1);
                let betas = [beta, self.beta_intra.unwrap_or(beta), self.beta_inter.unwrap_or(beta)];
                for (flag, value) in ["--beta", "--beta-intra", "--beta-inter"].iter().zip(betas) {
                    if !(value.is_finite() && value > 0.0) {
                        return Err(Error::Usage(format!("{flag} {value}: a finite number above 0 is needed")));
                    }
                    refuse_outside_f32(flag, value)?;
                }
                betas
            }
            Method::Sft | Method::Reward => [1.0; KINDS],
        };
        let weights = [
            non_negative("--base-weight", self.base_weight.unwrap_or(preset[0]))?,
            non_negative("--intra-weight", self.intra_weight.unwrap_or(preset[1]))?,
            non_negative("--inter-weight", self.inter_weight.unwrap_or(preset[2]))?,
        ];
        for (flag, value) in ["--base-weight", "--intra-weight", "--inter-weight"].iter().zip(weights) {
            refuse_outside_f32(flag, value)?;
        }
        let margin = self.margin.unwrap_or(0.0);
        if !margin.is_finite() {
            return Err(Error::Usage(format!("--margin {margin}: a finite number is needed")));
        }
        if method != Method::Sft && weights.iter().all(|&w| w == 0.0) {
            return Err(Error::Usage(
                "all of --base-weight, --intra-weight, --inter-weight are 0; at least one must be above 0".into(),
            ));
        }
        let default_reduce = if curve == Curve::Ipo { ReduceName::Mean } else { ReduceName::Sum };
        Ok(Loss {
            method,
            curve,
            scale,
            weights,
            mix: self.mix.unwrap_or(Mix::Sum),
            margin,
            pop_clip: match pop_detached {
                true => Some(non_negative("--pop-clip", self.pop_clip.unwrap_or(5.0))?),
                false => None,
            },
            nll_weight: non_negative("--nll-weight", self.nll_weight.unwrap_or(0.0))?,
            center: non_negative("--center-rewards-coefficient", self.center_rewards_coefficient.unwrap_or(0.0))?,
            scope: match self.logp_scope.unwrap_or(ScopeName::Response) {
                ScopeName::Response => LogpScope::Response,
                ScopeName::PromptAndResponse => LogpScope::PromptAndResponse,
            },
            reduce: match self.logp_reduce.unwrap_or(default_reduce) {
                ReduceName::Sum => Reduce::Sum,
                ReduceName::Mean => Reduce::Mean,
            },
            share_prefixes: true,
        })
    }

    fn refuse_unused(&self, method: Method, pop_detached: bool) -> Result<()> {
        let dpo_only = [
            ("--beta", self.beta.is_some()),
            ("--beta-intra", self.beta_intra.is_some()),
            ("--beta-inter", self.beta_inter.is_some()),
            ("--nll-weight", self.nll_weight.is_some()),
            ("--logp-scope", self.logp_scope.is_some()),
            ("--logp-reduce", self.logp_reduce.is_some()),
            ("--loss-type ipo", self.loss_type == Some(LossType::Ipo)),
        ];
        let comparison_only = [
            ("--base-weight", self.base_weight.is_some()),
            ("--intra-weight", self.intra_weight.is_some()),
            ("--inter-weight", self.inter_weight.is_some()),
            ("--mix", self.mix.is_some()),
            ("--margin", self.margin.is_some()),
            ("--loss-type", self.loss_type.is_some()),
            ("--label-smoothing", self.label_smoothing.is_some()),
        ];
        let mut unused = Vec::new();
        if method != Method::Dpo {
            unused.extend(dpo_only);
        }
        if method == Method::Sft {
            unused.extend(comparison_only);
        }
        if method != Method::Reward {
            unused.push(("--center-rewards-coefficient", self.center_rewards_coefficient.is_some()));
        }
        if !pop_detached {
            unused.push(("--pop-clip", self.pop_clip.is_some()));
        }
        if self.mix == Some(Mix::Union) {
            let weights = [self.base_weight, self.intra_weight, self.inter_weight];
            unused.push(("a kind's weight together with --mix union", weights.iter().any(Option::is_some)));
        }
        refuse_given(&unused, &format!("in this {} run; leave it out", method.name()))
    }
}

impl Loss {
    /// Returns the loss of next-token likelihood, which trains no comparison.
    pub fn sft() -> Self {
        Loss {
            method: Method::Sft,
            curve: Curve::Sigmoid { smoothing: 0.0 },
            scale: [1.0; KINDS],
            weights: [0.0; KINDS],
            mix: Mix::Sum,
            margin: 0.0,
            pop_clip: None,
            nll_weight: 0.0,
            center: 0.0,
            scope: LogpScope::Response,
            reduce: Reduce::Sum,
            share_prefixes: true,
        }
    }

    /// Prepares groups for training: drops comparisons of kinds with weight 0 and unused sequences,
    /// marks detached terms, and splits comparisons into records under `--mix union`. Groups
    /// without a comparison are dropped.
    pub fn prepare(&self, groups: Vec<TokenizedGroup>) -> Vec<TokenizedGroup> {
        let mut prepared = Vec::with_capacity(groups.len());
        for mut group in groups {
            if let Some(clip) = self.pop_clip {
                detach_gap(&mut group, clip);
            }
            group.comparisons.retain(|c| self.weights[c.kind.index()] != 0.0);
            let records = match self.mix {
                Mix::Sum => vec![group],
                Mix::Union => split(&group),
            };
            prepared.extend(records.into_iter().filter(|g| !g.comparisons.is_empty()).map(drop_unused));
        }
        prepared
    }

    /// Factor of each kind: its weight divided by its number of comparisons in the global batch.
    /// With `--mix union`, the factor is 1 divided by the number of all comparisons. An absent kind
    /// gets 0.
    pub fn kind_scale(&self, counts: [usize; KINDS]) -> [f64; KINDS] {
        let total: usize = counts.iter().sum();
        std::array::from_fn(|k| match (self.mix, counts[k]) {
            (_, 0) => 0.0,
            (Mix::Sum, n) => self.weights[k] / n as f64,
            (Mix::Union, _) => 1.0 / total as f64,
        })
    }

    /// Formats the loss as a formula for logs, because `label_smoothing`, `ipo` and `beta` mean
    /// different things in different tools. `frozen` is true if scores are relative to a frozen
    /// reference model.
    pub fn formula(&self, frozen: bool) -> String {
        let ratio = if frozen { "(log pi - log ref)" } else { "log pi" };
        let mean = if self.reduce == Reduce::Mean { "mean " } else { "" };
        let trained: Vec<Kind> = Kind::ALL.into_iter().filter(|k| self.weights[k.index()] != 0.0).collect();
        let first = trained.first().map_or(self.scale[0], |k| self.scale[k.index()]);
        let same_scale = trained.iter().all(|k| self.scale[k.index()] == first);
        let score = match self.method {
            Method::Sft => return "-mean log pi(response token)".into(),
            Method::Reward => "r".to_owned(),
            Method::Dpo if same_scale => format!("{first} {mean}{ratio}"),
            Method::Dpo => format!("beta {mean}{ratio}"),
        };
        let curve = match self.curve {
            Curve::Sigmoid { smoothing: 0.0 } => "softplus(-z)".to_owned(),
            Curve::Sigmoid { smoothing: e } => format!("{} softplus(-z) + {e} softplus(z)", 1.0 - e),
            Curve::Robust { smoothing: e } => {
                format!("({} softplus(-z) - {e} softplus(z)) / {}", 1.0 - e, 1.0 - 2.0 * e)
            }
            Curve::Hinge => "max(0, 1 - z)".to_owned(),
            Curve::Ipo => "((z - 1/2) / beta)^2".to_owned(),
        };
        let weights = trained.iter().map(|k| format!("{} mean_{}", self.weights[k.index()], k.name()));
        let means = match self.mix {
            Mix::Union => "mean_all".to_owned(),
            Mix::Sum => weights.collect::<Vec<_>>().join(" + "),
        };
        let mut text = format!("[{means}] of {curve}, z = sum sign * {score} - margin");
        if self.margin != 0.0 {
            text += &format!(", margin = the row's + {}", self.margin);
        }
        if self.method == Method::Dpo && !same_scale {
            let betas = trained.iter().map(|k| format!("{} in {}", self.scale[k.index()], k.name()));
            text += &format!(", beta = {}", betas.collect::<Vec<_>>().join(", "));
        }
        if let Some(clip) = self.pop_clip {
            text += &format!(", in inter the gap under the bare prompt is detached and clipped to [0, {clip}]");
        }
        if self.nll_weight != 0.0 {
            text += &format!(", + {} mean nll of preferred tokens", self.nll_weight);
        }
        if self.center != 0.0 {
            text += &format!(", + {} (r_chosen + r_rejected)^2 in base", self.center);
        }
        if self.method == Method::Dpo && self.scope == LogpScope::PromptAndResponse {
            text += "; prompt tokens are scored too, and each adds a row to the vocabulary head";
        }
        text
    }
}

/// Detaches the original prompt's terms of four-term inter comparisons and bounds their signed sum.
/// This is the margin `clip(gap(x))` of DPO-PoP (arXiv 2509.22851, read second-hand). In direction
/// `up` the sum is `-gap(x)`, clamped to [-clip, 0]; in direction `down` it is `gap(x)`, clamped to
/// [0, clip].
fn detach_gap(group: &mut TokenizedGroup, clip: f64) {
    let Some(base) = group.comparisons.iter().find(|c| c.kind == Kind::Base && c.terms.len() == 2) else {
        return;
    };
    let Some(chosen) = base.terms.iter().find(|t| t.sign > 0).map(|t| t.sequence) else {
        return;
    };
    let prompt = group.sequences[chosen].prompt;
    for comparison in group.comparisons.iter_mut().filter(|c| c.kind == Kind::Inter && c.terms.len() == 4) {
        for term in &mut comparison.terms {
            term.detached = group.sequences[term.sequence].prompt == prompt;
        }
        let sign = comparison.terms.iter().find(|t| t.sequence == chosen).map(|t| t.sign);
        comparison.detached_clip = sign.map(|s| if s < 0 { (-clip, 0.0) } else { (0.0, clip) });
    }
}

/// Splits a group into one group per comparison.
fn split(group: &TokenizedGroup) -> Vec<TokenizedGroup> {
    let single = |c: &SequenceComparison| TokenizedGroup { comparisons: vec![c.clone()], ..group.clone() };
    group.comparisons.iter().map(single).collect()
}

/// Removes sequences that no comparison uses, and clears the ids of prompts that no sequence uses.
fn drop_unused(mut group: TokenizedGroup) -> TokenizedGroup {
    let mut used = vec![false; group.sequences.len()];
    for term in group.comparisons.iter().flat_map(|c| &c.terms) {
        used[term.sequence] = true;
    }
    let mut place = vec![usize::MAX; used.len()];
    let mut kept = Vec::new();
    for (i, sequence) in std::mem::take(&mut group.sequences).into_iter().enumerate() {
        if used[i] {
            place[i] = kept.len();
            kept.push(sequence);
        }
    }
    group.sequences = kept;
    for term in group.comparisons.iter_mut().flat_map(|c| &mut c.terms) {
        term.sequence = place[term.sequence];
    }
    for (p, ids) in group.prompt_ids.iter_mut().enumerate() {
        if group.sequences.iter().all(|s| s.prompt != p) {
            ids.clear();
        }
    }
    group
}
