//! Options of the loss as given, and the loss that they resolve to. Options without effect, values out of
//! range, and undefined combinations of losses are errors.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::loss_type::{CurveParameters, Divergence, LossType, link_of};
use super::objective::{Loss, Method, Mix};
use crate::backend::contract::{Curve, KINDS, Link, Reduce, WeightedCurve};
use crate::data::pack::LogpScope;
use crate::error::{refuse_given, refuse_outside_f32};
use crate::{Error, Result};

/// Value of `--beta` by default.
pub const DEFAULT_BETA: f64 = 0.1;
/// Value of `--discopop-tau` by default.
pub(super) const DISCOPOP_TAU: f64 = 0.05;
/// Value of `--simpo-gamma` by default.
pub(super) const SIMPO_GAMMA: f64 = 0.5;

/// Values of `--logp-scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "clap would print the texts in --help")]
pub enum ScopeName {
    Response,
    PromptAndResponse,
}

/// Values of `--logp-reduce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "clap would print the texts in --help")]
pub enum ReduceName {
    Sum,
    Mean,
}

/// Loss options as given. [`LossOptions::resolve`] replaces unset options by the objective's or the
/// default value.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Loss")]
pub struct LossOptions {
    /// Factor on log pi - log ref [DPO, KTO; default 0.1]
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
    /// Loss of a comparison; several losses are added [default sigmoid; kto in kto runs]
    #[arg(long, alias = "loss_type", value_enum, value_delimiter = ',', num_args = 1..)]
    pub loss_type: Vec<LossType>,
    /// Weight of each loss of --loss-type [DPO; default 1 each]
    #[arg(long, alias = "loss_weights", value_delimiter = ',', num_args = 1..)]
    pub loss_weights: Vec<f64>,
    /// Probability that a label is wrong: cDPO for sigmoid (where TRL ignores it), robust DPO for robust, and
    /// the target of exo_pair, which needs a value above 0 [default 0]
    #[arg(long, alias = "label_smoothing")]
    pub label_smoothing: Option<f64>,
    /// Temperature of the mixing weight of discopop [default 0.05]
    #[arg(long, alias = "discopop_tau")]
    pub discopop_tau: Option<f64>,
    /// Target margin of simpo [default 0.5]
    #[arg(long, alias = "simpo_gamma")]
    pub simpo_gamma: Option<f64>,
    /// Divergence between the policy and the reference [DPO; default reverse_kl]
    #[arg(long, alias = "f_divergence_type", value_enum)]
    pub f_divergence_type: Option<Divergence>,
    /// alpha of --f-divergence-type alpha_divergence [default 0.5]
    #[arg(long, alias = "f_alpha_divergence_coef")]
    pub f_alpha_divergence_coef: Option<f64>,
    /// Weight of the mean negative log-likelihood of preferred sequences [DPO; default 0, and 1 for
    /// simpo and orpo]
    #[arg(long, aliases = ["nll_weight", "rpo-alpha", "cpo-alpha"])]
    pub nll_weight: Option<f64>,
    /// Factor on the log-probs of a response beyond the length of the shorter response of its pair
    /// [DPO; default 1]
    #[arg(long, alias = "ld_alpha")]
    pub ld_alpha: Option<f64>,
    /// Weight pairs by the policy's probability of both responses (WPO) [DPO; default off]
    #[arg(long, alias = "use_weighting")]
    pub use_weighting: bool,
    /// Weight of desirable rows [KTO; default 1]
    #[arg(long, alias = "desirable_weight")]
    pub desirable_weight: Option<f64>,
    /// Weight of undesirable rows [KTO; default 1]
    #[arg(long, alias = "undesirable_weight")]
    pub undesirable_weight: Option<f64>,
    /// Coefficient of the squared sum of a pair's rewards [reward; default 0]
    #[arg(long, alias = "center_rewards_coefficient")]
    pub center_rewards_coefficient: Option<f64>,
    /// Tokens with log-probabilities that count towards a score [DPO; default response]
    #[arg(long, alias = "logp_scope")]
    pub logp_scope: Option<ScopeName>,
    /// Sum or mean over a sequence's tokens [DPO; default sum, mean for ipo, sigmoid_norm, simpo, orpo]
    #[arg(long, alias = "logp_reduce")]
    pub logp_reduce: Option<ReduceName>,
}

fn usage<T>(why: String) -> Result<T> {
    Err(Error::Usage(why))
}

/// Rejects NaN, infinities and negative numbers.
fn non_negative(flag: &str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 {
        return Ok(value);
    }
    usage(format!("{flag} {value}: a finite number of at least 0 is needed"))
}

/// Rejects a value that is not finite or not above 0, in f64 or after rounding to f32.
fn positive(flag: &str, value: f64) -> Result<f64> {
    if !(value.is_finite() && value > 0.0) {
        return usage(format!("{flag} {value}: a finite number above 0 is needed"));
    }
    refuse_outside_f32(flag, value)?;
    Ok(value)
}

impl LossOptions {
    /// Decides every setting. `preset` has the objective's weights by kind; `pop_detached` is true
    /// if inter comparisons are trained with a detached gap. An option that the method does not use
    /// is an error.
    pub fn resolve(&self, method: Method, preset: [f64; KINDS], pop_detached: bool) -> Result<Loss> {
        let types = self.types(method)?;
        self.refuse_unused(method, pop_detached, &types)?;
        let orpo = types[0].0 == LossType::Orpo;
        let link = match self.link(&types)? {
            Link::Identity if orpo => Link::Odds,
            link => link,
        };
        let mut curves = self.curves(&types)?;
        let scale = self.scale(method)?;
        // The odds ratio of ORPO is not scaled; beta is the weight of its loss.
        let scale = if orpo {
            curves[0].weight *= scale[0];
            [1.0; KINDS]
        } else {
            scale
        };
        let reduce = self.reduce(&types, &mut curves, link)?;
        let preset = if method == Method::Kto { [1.0, 0.0, 0.0] } else { preset };
        let nll_weight = self.likelihood(&types)?;
        let weights = [
            non_negative("--base-weight", self.base_weight.unwrap_or(preset[0]))?,
            non_negative("--intra-weight", self.intra_weight.unwrap_or(preset[1]))?,
            non_negative("--inter-weight", self.inter_weight.unwrap_or(preset[2]))?,
        ];
        for (flag, value) in ["--base-weight", "--intra-weight", "--inter-weight"].iter().zip(weights) {
            refuse_outside_f32(flag, value)?;
        }
        if method != Method::Sft && weights.iter().all(|&w| w == 0.0) {
            return usage(
                "all of --base-weight, --intra-weight, --inter-weight are 0; at least one must be above 0".into(),
            );
        }
        Ok(Loss {
            method,
            link,
            scale,
            weights,
            mix: self.mix.unwrap_or(Mix::Sum),
            margin: self.margin(&types)?,
            pop_clip: match pop_detached {
                true => Some(non_negative("--pop-clip", self.pop_clip.unwrap_or(5.0))?),
                false => None,
            },
            nll_weight,
            center: non_negative("--center-rewards-coefficient", self.center_rewards_coefficient.unwrap_or(0.0))?,
            scope: match self.logp_scope.unwrap_or(ScopeName::Response) {
                ScopeName::Response => LogpScope::Response,
                ScopeName::PromptAndResponse => LogpScope::PromptAndResponse,
            },
            reduce,
            ld_alpha: self.tail_weight(&types, nll_weight)?,
            use_weighting: self.weighs_pairs(&types, nll_weight)?,
            label_weights: self.label_weights(method)?,
            share_prefixes: true,
            token_stats: false,
            curves,
            types,
        })
    }

    /// Losses with their weights, at least one.
    fn types(&self, method: Method) -> Result<Vec<(LossType, f64)>> {
        let mut types = self.loss_type.clone();
        if types.is_empty() {
            types.push(if method == Method::Kto { LossType::Kto } else { LossType::Sigmoid });
        }
        for (i, of) in types.iter().enumerate() {
            let name = of.name();
            if of.is_unpaired() && method != Method::Kto {
                return usage(format!(
                    "--loss-type {name} trains on rows with one response and a label, and this {} run on pairs; use \
                     `mapl kto --loss-type {name}`, which also splits pairs, or bco_pair or apo_zero, which have one \
                     term for each response of a pair",
                    method.name()
                ));
            }
            if method == Method::Kto && (types.len() > 1 || !of.is_unpaired()) {
                let all: Vec<String> = types.iter().map(|of| of.name()).collect();
                return usage(format!(
                    "--loss-type {} has no effect in this kto run; give one of kto and apo_zero_unpaired",
                    all.join(" ")
                ));
            }
            if types[..i].contains(of) {
                return usage(format!("--loss-type: {name} is given twice; give it once, with its --loss-weights"));
            }
            if of.is_reference_free() && types.len() > 1 {
                return usage(format!(
                    "--loss-type {name} scores without a reference and includes a likelihood term, so it cannot \
                     be combined with other losses; give only this one"
                ));
            }
            if method == Method::Reward && (types.len() > 1 || !of.is_of_rewards()) {
                let all: Vec<String> = types.iter().map(|of| of.name()).collect();
                return usage(format!(
                    "--loss-type {} has no effect in this reward run; give one of sigmoid, robust and hinge",
                    all.join(" ")
                ));
            }
        }
        let given = &self.loss_weights;
        if !given.is_empty() && given.len() != types.len() {
            return usage(format!(
                "--loss-weights has {} numbers for the {} losses of --loss-type; give one for each",
                given.len(),
                types.len()
            ));
        }
        for &weight in given {
            non_negative("--loss-weights", weight)?;
            refuse_outside_f32("--loss-weights", weight)?;
        }
        if !given.is_empty() && given.iter().all(|&weight| weight == 0.0) {
            return usage("--loss-weights are all 0; at least one must be above 0".into());
        }
        Ok(types.into_iter().enumerate().map(|(i, of)| (of, given.get(i).copied().unwrap_or(1.0))).collect())
    }

    /// Curves of the losses, before `reduce` sets `per_token`.
    fn curves(&self, types: &[(LossType, f64)]) -> Result<Vec<WeightedCurve>> {
        let smoothing = non_negative("--label-smoothing", self.label_smoothing.unwrap_or(0.0))?;
        if self.label_smoothing.is_some() && !types.iter().any(|(of, _)| of.takes_smoothing()) {
            let names: Vec<String> = types.iter().map(|(of, _)| of.name()).collect();
            return usage(format!("--label-smoothing has no effect with --loss-type {}", names.join(" ")));
        }
        let temperature = positive("--discopop-tau", self.discopop_tau.unwrap_or(DISCOPOP_TAU))?;
        let mut curves = Vec::new();
        for &(of, weight) in types {
            match of {
                LossType::Robust if smoothing >= 0.5 => {
                    return usage(format!("--label-smoothing {smoothing}: it must be below 0.5"));
                }
                _ if of.takes_smoothing() && smoothing > 0.5 => {
                    return usage(format!("--label-smoothing {smoothing}: it must be at most 0.5"));
                }
                LossType::ExoPair if smoothing == 0.0 => {
                    return usage(
                        "--loss-type exo_pair needs --label-smoothing above 0, because it compares with the smoothed \
                         label; its paper uses 1e-3"
                            .into(),
                    );
                }
                LossType::ExoPair => refuse_outside_f32("--label-smoothing", smoothing)?,
                _ => {}
            }
            if let Some(curve) = of.curve(CurveParameters { smoothing, temperature }) {
                curves.push(WeightedCurve { curve, weight, per_token: false });
            }
        }
        if curves.is_empty() {
            // Comparisons are scored for the logs but do not contribute to the loss.
            curves.push(WeightedCurve { weight: 0.0, ..Curve::Sigmoid { smoothing: 0.0 }.into() });
        }
        Ok(curves)
    }

    /// Factor on scores by kind.
    fn scale(&self, method: Method) -> Result<[f64; KINDS]> {
        if !method.has_policy() {
            return Ok([1.0; KINDS]);
        }
        let beta = self.beta.unwrap_or(DEFAULT_BETA);
        let betas = [beta, self.beta_intra.unwrap_or(beta), self.beta_inter.unwrap_or(beta)];
        for (flag, value) in ["--beta", "--beta-intra", "--beta-inter"].iter().zip(betas) {
            positive(flag, value)?;
        }
        Ok(betas)
    }

    /// Reduction of the log-probs to scores. If some losses need a mean and others a sum, scores are sums, and
    /// `curves` that need a mean are set to divide by the number of tokens.
    fn reduce(&self, types: &[(LossType, f64)], curves: &mut [WeightedCurve], link: Link) -> Result<Reduce> {
        let of_curves: Vec<LossType> = types.iter().map(|(of, _)| *of).filter(|of| *of != LossType::Sft).collect();
        match self.logp_reduce {
            Some(ReduceName::Mean) => return Ok(Reduce::Mean),
            Some(ReduceName::Sum) => {
                return match of_curves.iter().find(|of| of.per_token() && **of != LossType::Ipo) {
                    Some(of) => usage(format!("--logp-reduce sum: {} is defined with means over tokens", of.name())),
                    None => Ok(Reduce::Sum),
                };
            }
            None => {}
        }
        let means = of_curves.iter().filter(|of| of.per_token()).count();
        if means == 0 {
            return Ok(Reduce::Sum);
        }
        // A divergence is applied to the score of the whole sequence, before the mean.
        if means == of_curves.len() && matches!(link, Link::Identity | Link::Odds) {
            return Ok(Reduce::Mean);
        }
        for (curve, of) in curves.iter_mut().zip(of_curves) {
            curve.per_token = of.per_token();
        }
        Ok(Reduce::Sum)
    }

    /// Link of `--f-divergence-type`.
    fn link(&self, types: &[(LossType, f64)]) -> Result<Link> {
        let divergence = self.f_divergence_type.unwrap_or_default();
        if divergence != Divergence::ReverseKl
            && let Some((of, _)) = types.iter().find(|(of, _)| !of.takes_divergence())
        {
            return usage(format!(
                "--f-divergence-type has no meaning with --loss-type {}, which is not a function of the difference of \
                 two scores; leave it out",
                of.name()
            ));
        }
        let alpha = self.f_alpha_divergence_coef.unwrap_or(0.5);
        if !alpha.is_finite() {
            return usage(format!("--f-alpha-divergence-coef {alpha}: a finite number is needed"));
        }
        refuse_outside_f32("--f-alpha-divergence-coef", alpha)?;
        Ok(link_of(divergence, alpha))
    }

    /// Margin that every comparison gets in addition to the row's.
    fn margin(&self, types: &[(LossType, f64)]) -> Result<f64> {
        let margin = self.margin.unwrap_or(0.0);
        if !margin.is_finite() {
            return usage(format!("--margin {margin}: a finite number is needed"));
        }
        let curve_of = |of: LossType| of.curve(CurveParameters { smoothing: 0.25, temperature: 1.0 });
        if margin != 0.0
            && let Some((of, _)) = types.iter().find(|(of, _)| curve_of(*of).is_some_and(Curve::is_of_terms))
        {
            return usage(format!("--margin has no effect with --loss-type {}, which has no margin", of.name()));
        }
        if types[0].0 != LossType::Simpo {
            return Ok(margin);
        }
        Ok(margin + non_negative("--simpo-gamma", self.simpo_gamma.unwrap_or(SIMPO_GAMMA))?)
    }

    /// Weight of the likelihood term: `--nll-weight` and the weight of the loss `sft`.
    fn likelihood(&self, types: &[(LossType, f64)]) -> Result<f64> {
        let own = non_negative("--nll-weight", self.own_likelihood(types))?;
        Ok(own + types.iter().filter(|(of, _)| *of == LossType::Sft).map(|(_, weight)| weight).sum::<f64>())
    }

    /// Value of `--nll-weight`, or its default.
    pub(super) fn own_likelihood(&self, types: &[(LossType, f64)]) -> f64 {
        let default = if types[0].0.is_reference_free() { 1.0 } else { 0.0 };
        self.nll_weight.unwrap_or(default)
    }

    /// Rejects options that only affect comparisons, for a run in which no loss has a curve. The likelihood
    /// term depends only on which kinds have a weight above 0.
    fn refuse_comparisons(&self) -> Result<()> {
        let odd = |weight: Option<f64>| weight.is_some_and(|weight| weight != 0.0 && weight != 1.0);
        let unused = [
            ("--beta", self.beta.is_some()),
            ("--beta-intra", self.beta_intra.is_some()),
            ("--beta-inter", self.beta_inter.is_some()),
            ("--margin", self.margin.is_some()),
            ("--pop-clip", self.pop_clip.is_some()),
            ("--f-divergence-type", self.f_divergence_type.is_some()),
            ("--logp-reduce", self.logp_reduce.is_some()),
            ("--base-weight other than 0 and 1", odd(self.base_weight)),
            ("--intra-weight other than 0 and 1", odd(self.intra_weight)),
            ("--inter-weight", self.inter_weight.is_some_and(|weight| weight != 0.0)),
        ];
        refuse_given(
            &unused,
            "with --loss-type sft as the only loss, which is the likelihood of preferred responses; leave it out",
        )
    }

    fn refuse_unused(&self, method: Method, pop_detached: bool, types: &[(LossType, f64)]) -> Result<()> {
        let has = |of: LossType| types.iter().any(|(other, _)| *other == of);
        let dpo_only = [
            ("--beta", self.beta.is_some()),
            ("--beta-intra", self.beta_intra.is_some()),
            ("--beta-inter", self.beta_inter.is_some()),
            ("--nll-weight", self.nll_weight.is_some()),
            ("--logp-scope", self.logp_scope.is_some()),
            ("--logp-reduce", self.logp_reduce.is_some()),
            ("--loss-weights", !self.loss_weights.is_empty()),
            ("--f-divergence-type", self.f_divergence_type.is_some()),
            ("--ld-alpha", self.ld_alpha.is_some()),
            ("--use-weighting", self.use_weighting),
        ];
        let comparison_only = [
            ("--base-weight", self.base_weight.is_some()),
            ("--intra-weight", self.intra_weight.is_some()),
            ("--inter-weight", self.inter_weight.is_some()),
            ("--mix", self.mix.is_some()),
            ("--margin", self.margin.is_some()),
            ("--loss-type", !self.loss_type.is_empty()),
            ("--label-smoothing", self.label_smoothing.is_some()),
        ];
        let mut unused = Vec::new();
        let is_kto = method == Method::Kto;
        if method != Method::Dpo {
            unused.extend(dpo_only.into_iter().filter(|(flag, _)| !is_kto || *flag != "--beta"));
        }
        if method == Method::Sft || is_kto {
            unused.extend(comparison_only.into_iter().filter(|(flag, _)| !is_kto || *flag != "--loss-type"));
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
        refuse_given(&unused, &format!("in this {} run; leave it out", method.name()))?;
        if method == Method::Dpo && types.iter().all(|(of, _)| *of == LossType::Sft) {
            self.refuse_comparisons()?;
        }
        let of_types = [
            ("--discopop-tau", self.discopop_tau.is_some() && !has(LossType::Discopop), "without --loss-type discopop"),
            ("--simpo-gamma", self.simpo_gamma.is_some() && !has(LossType::Simpo), "without --loss-type simpo"),
            (
                "--f-alpha-divergence-coef",
                self.f_alpha_divergence_coef.is_some() && self.f_divergence_type != Some(Divergence::AlphaDivergence),
                "without --f-divergence-type alpha_divergence",
            ),
            (
                "--beta-intra or --beta-inter",
                has(LossType::Orpo) && (self.beta_intra.is_some() || self.beta_inter.is_some()),
                "with --loss-type orpo, where --beta is the weight of the odds ratio in all kinds",
            ),
        ];
        of_types.iter().try_for_each(|&(flag, unused, why)| refuse_given(&[(flag, unused)], why))
    }
}
