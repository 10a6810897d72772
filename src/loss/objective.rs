//! The training objective: curve, scale and weight of every comparison kind, and the terms that are not
//! comparisons.
//!
//! `L = sum over kinds of weight_kind * mean over the kind's comparisons of (weight * loss)`, where
//! a comparison's loss is the weighted sum of the chosen curves. A curve ([`Curve`]) is a function of the
//! comparison's argument z, or of its two terms. The mean is over the global batch, so every split into
//! micro-batches or ranks gives the same loss.

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

pub use super::loss_type::{Divergence, LossType};
pub use super::options::{DEFAULT_BETA, LossOptions, ReduceName, ScopeName};
use crate::backend::contract::{Curve, KINDS, Link, OwnCurve, Reduce, WeightedCurve};
use crate::data::group::Kind;
use crate::data::pack::LogpScope;
use crate::data::tokenized::{SequenceComparison, TokenizedGroup};
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
    /// Kahneman-Tversky optimisation of rows with one response and a label (arXiv 2402.01306).
    Kto,
}

impl Method {
    /// Name of the command.
    pub fn name(self) -> &'static str {
        match self {
            Method::Sft => "sft",
            Method::Reward => "reward",
            Method::Dpo => "dpo",
            Method::Kto => "kto",
        }
    }

    /// Whether the method trains a policy whose scores may be relative to a frozen reference.
    pub fn has_policy(self) -> bool {
        matches!(self, Method::Dpo | Method::Kto)
    }
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

/// Resolved loss, with every setting decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Training method.
    pub method: Method,
    /// Losses as named by `--loss-type`, with their weights; at least one.
    pub types: Vec<(LossType, f64)>,
    /// Curves of the losses in the same order, without the loss `sft`, which is part of `nll_weight`. If `sft`
    /// is the only loss, the list has one curve of weight 0.
    pub curves: Vec<WeightedCurve>,
    /// Maps log-ratios to the argument of the curves.
    pub link: Link,
    /// Factor on scores by kind: beta, or 1 for rewards.
    pub scale: [f64; KINDS],
    /// Weight of the mean loss of each kind. A kind of weight 0 is not computed.
    pub weights: [f64; KINDS],
    /// How the kinds of comparisons are mixed.
    pub mix: Mix,
    /// Subtracted from the logit.
    pub margin: f64,
    /// Bound of the detached gap if inter comparisons are `pop-detached`.
    pub pop_clip: Option<f64>,
    /// Weight of the likelihood term.
    pub nll_weight: f64,
    /// Weight of the centring term.
    pub center: f64,
    /// Tokens that are scored.
    pub scope: LogpScope,
    /// Reduction of log-probs over the tokens of a sequence, sum or mean.
    pub reduce: Reduce,
    /// Weight of the log-probs of a response beyond the shorter response of its pair (arXiv 2409.06411);
    /// `None` for 1.
    pub ld_alpha: Option<f64>,
    /// Whether comparisons are weighted by the policy's probability of their sequences (arXiv
    /// 2406.11827).
    pub use_weighting: bool,
    /// Weights of desirable and of undesirable rows.
    pub label_weights: [f64; 2],
    /// Share prompt prefixes within a group: tokens of a common prefix are computed once. Results
    /// agree up to rounding.
    pub share_prefixes: bool,
    /// Whether to log entropy, mean logits and accuracy of tokens. Reward models have no such statistics.
    /// Training results are bitwise the same with and without them.
    pub token_stats: bool,
}

impl Loss {
    /// Returns the loss of next-token likelihood, which trains no comparison.
    pub fn sft() -> Self {
        Loss {
            method: Method::Sft,
            types: vec![(LossType::Sigmoid, 1.0)],
            curves: vec![Curve::Sigmoid { smoothing: 0.0 }.into()],
            link: Link::Identity,
            scale: [1.0; KINDS],
            weights: [0.0; KINDS],
            mix: Mix::Sum,
            margin: 0.0,
            pop_clip: None,
            nll_weight: 0.0,
            center: 0.0,
            scope: LogpScope::Response,
            reduce: Reduce::Sum,
            ld_alpha: None,
            use_weighting: false,
            label_weights: [1.0; 2],
            share_prefixes: true,
            token_stats: false,
        }
    }

    /// Returns this loss with a custom curve over z instead of its curves. The logs show it under the name of
    /// the first loss type.
    ///
    /// # Errors
    /// [`Error::Usage`] if the slope is not the derivative of the value.
    pub fn with_curve(mut self, curve: &'static OwnCurve) -> Result<Self> {
        curve.check()?;
        self.types.truncate(1);
        self.curves = vec![Curve::Own(curve).into()];
        Ok(self)
    }

    /// Whether a run logs statistics of its tokens, which reward models do not have.
    pub(crate) fn measures_tokens(&self) -> bool {
        self.token_stats && self.method != Method::Reward
    }

    /// Whether a loss curve is user-defined. Such a curve is evaluated on the host, so training steps that use it
    /// are not replayed as CUDA graphs.
    pub(crate) fn has_own_curve(&self) -> bool {
        self.curves.iter().any(|part| matches!(part.curve, Curve::Own(_)))
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

    /// Whether scores have no frozen reference, regardless of `--ref-model`.
    pub fn is_reference_free(&self) -> bool {
        self.types.iter().any(|(of, _)| of.is_reference_free())
    }

    /// Replaces an f-divergence by the identity, for scores without a reference; returns whether there was a
    /// divergence.
    pub fn drops_divergence(&mut self) -> bool {
        let is_divergence = matches!(self.link, Link::ForwardKl | Link::JensenShannon | Link::Alpha { .. });
        if is_divergence {
            self.link = Link::Identity;
        }
        is_divergence
    }

    /// Losses with a curve, in the order of `curves`.
    pub fn curve_types(&self) -> impl Iterator<Item = LossType> {
        self.types.iter().map(|(of, _)| *of).filter(|of| *of != LossType::Sft)
    }

    /// Whether a curve sorts the comparisons of a batch.
    pub fn sorts(&self) -> bool {
        self.curves.iter().any(|part| part.curve.sorts())
    }

    /// Rejects a step of several micro-batches if a curve sorts the comparisons of the whole step, because a
    /// sort of each micro-batch would give a different loss.
    ///
    /// # Errors
    /// [`Error::Usage`] with the loss.
    pub fn check_split(&self, micro_batches: usize) -> Result<()> {
        let mut sorting = self.curve_types().zip(&self.curves).filter(|(_, part)| part.curve.sorts());
        match sorting.next() {
            Some((of, _)) if micro_batches > 1 => Err(Error::Usage(format!(
                "--loss-type {} sorts the pairs of a whole step, so the step must be one micro-batch; set \
                 --gradient-accumulation-steps 1 and --per-device-train-batch-size to the whole batch",
                of.name()
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that the likelihood term has sequences. It is the mean over the preferred sequences of base and
    /// intra comparisons.
    ///
    /// # Errors
    /// [`Error::Usage`] if neither kind is trained.
    pub fn check_likelihood(&self) -> Result<()> {
        let [base, intra] = [Kind::Base, Kind::Intra].map(|kind| self.weights[kind.index()]);
        if self.method != Method::Dpo || self.nll_weight == 0.0 || base != 0.0 || intra != 0.0 {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "the likelihood term of weight {} is over the preferred responses of base and intra comparisons, and neither \
             kind is trained; set --base-weight or --intra-weight above 0, or choose another --loss-type with \
             --nll-weight 0",
            self.nll_weight
        )))
    }

    /// Whether a curve divides scores, which are sums, by the number of tokens of the sequence.
    pub fn needs_rows(&self) -> bool {
        self.curves.iter().any(|part| part.per_token)
    }

    /// Whether scores are relative to a frozen reference. `given` is the value of `--ref-model`.
    ///
    /// # Errors
    /// [`Error::Usage`] for a reference that the method or the loss does not use, and for a loss that needs a
    /// reference if there is none.
    pub fn has_reference(&self, given: Option<&Path>) -> Result<bool> {
        let none = given.is_some_and(|path| path.as_os_str() == "none");
        let names = || self.types.iter().map(|(of, _)| of.name()).collect::<Vec<_>>().join(" ");
        let why = match (given, self.link) {
            (Some(_), _) if !self.method.has_policy() => {
                format!("--ref-model has no effect in this {} run; leave it out", self.method.name())
            }
            (Some(_), _) if !none && self.is_reference_free() => {
                format!("--ref-model has no effect with --loss-type {}, which scores without a reference", names())
            }
            (_, Link::ForwardKl | Link::JensenShannon | Link::Alpha { .. }) if none => {
                "--f-divergence-type: a divergence is between policy and reference; leave out --ref-model none".into()
            }
            _ if none && self.method == Method::Kto => format!(
                "--ref-model none: --loss-type {} is a function of the log-ratio of policy and reference; leave it out",
                names()
            ),
            _ => return Ok(self.method.has_policy() && !none && !self.is_reference_free()),
        };
        Err(Error::Usage(why))
    }

    /// Checks that the loss is defined for every trained comparison of prepared or of evaluation groups. A
    /// curve that uses two terms separately needs two trained terms and no margin.
    ///
    /// # Errors
    /// [`Error::Usage`] with the loss, the group and the reason.
    pub fn check_comparisons(&self, groups: &[TokenizedGroup]) -> Result<()> {
        let mut of_terms = self.curve_types().zip(&self.curves).filter(|(_, part)| part.curve.is_of_terms());
        let Some((name, _)) = of_terms.next() else { return Ok(()) };
        let trained = |c: &SequenceComparison| self.weights[c.kind.index()] != 0.0 && c.weight != 0.0;
        for (group, c) in groups.iter().flat_map(|group| group.comparisons.iter().map(move |c| (group, c))) {
            let of_sign = |sign: i8| c.terms.iter().filter(|t| !t.detached && t.sign == sign).count();
            let is_pair = c.terms.len() == 2 && [of_sign(1), of_sign(-1)] == [1, 1];
            let (why, advice) = match (trained(c), is_pair, c.margin == 0.0) {
                (false, ..) => continue,
                (true, true, true) if c.weight == 1.0 || !self.sorts() => continue,
                (true, true, true) => {
                    let why = format!("has the weight {}, but sorted pairs weigh the same", c.weight);
                    (why, "set it to 1 (--lambda-resp 1)".to_owned())
                }
                (true, false, _) => {
                    let terms = format!("has {} terms", c.terms.len());
                    (terms, format!("set --{}-weight 0, or build pairs with --inter-loss pair", c.kind.name()))
                }
                (true, true, false) => {
                    (format!("has the margin {}", c.margin), "drop the margins from the rows".to_owned())
                }
            };
            return Err(Error::Usage(format!(
                "--loss-type {} is a function of the two terms of a comparison, without a margin, and the {} \
                 comparison of group {} {why}; {advice}, or choose a loss of their difference, such as sigmoid",
                name.name(),
                c.kind.name(),
                group.group.id
            )));
        }
        Ok(())
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
}

/// Detaches the original prompt's terms of four-term inter comparisons and bounds their signed sum. This is
/// the margin `clip(gap(x))` of DPO-PoP (arXiv 2509.22851, from a secondary source). In direction `up` the
/// sum is `-gap(x)`, clamped to [-clip, 0]; in direction `down` it is `gap(x)`, clamped to [0, clip].
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
