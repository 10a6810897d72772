//! The losses by TRL's names: their curves, parameters and properties. One list serves the options,
//! the formula and the logs.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::backend::contract::{Curve, Link};

/// Values of `--loss-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[allow(missing_docs, reason = "clap would print the texts in --help")]
pub enum LossType {
    #[value(alias = "logexp")]
    Sigmoid,
    #[value(alias = "sigmoid-norm")]
    SigmoidNorm,
    Robust,
    Hinge,
    Ipo,
    #[value(alias = "exo-pair")]
    ExoPair,
    Discopop,
    #[value(alias = "apo-zero")]
    ApoZero,
    #[value(alias = "apo-down")]
    ApoDown,
    #[value(alias = "nca-pair")]
    NcaPair,
    #[value(alias = "bco-pair")]
    BcoPair,
    #[value(alias = "sppo-hard")]
    SppoHard,
    Sft,
    Simpo,
    Orpo,
    #[value(alias = "aot_pair", alias = "aot-pair")]
    Aot,
    #[value(alias = "aot-unpaired")]
    AotUnpaired,
    /// For rows with one response and a label.
    Kto,
    /// For rows with one response and a label.
    #[value(alias = "apo-zero-unpaired")]
    ApoZeroUnpaired,
}

/// Values of `--f-divergence-type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[allow(missing_docs, reason = "clap would print the texts in --help")]
pub enum Divergence {
    #[default]
    #[value(alias = "reverse-kl")]
    ReverseKl,
    #[value(alias = "forward-kl")]
    ForwardKl,
    #[value(alias = "js-divergence")]
    JsDivergence,
    #[value(alias = "alpha-divergence")]
    AlphaDivergence,
}

/// Parameters of the curves.
#[derive(Clone, Copy, Debug)]
pub(super) struct CurveParameters {
    pub smoothing: f64,
    pub temperature: f64,
}

impl LossType {
    /// Name as `--loss-type` and TRL spell it.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether the loss is for rows with one response and a label, the data of `mapl kto`.
    pub(crate) fn is_unpaired(self) -> bool {
        matches!(self, LossType::Kto | LossType::ApoZeroUnpaired)
    }

    /// Curve of the loss over comparisons; `None` for `sft`, which has no curve.
    pub(super) fn curve(self, p: CurveParameters) -> Option<Curve> {
        Some(match self {
            LossType::Sigmoid | LossType::SigmoidNorm | LossType::Simpo => Curve::Sigmoid { smoothing: p.smoothing },
            LossType::Orpo => Curve::Sigmoid { smoothing: 0.0 },
            LossType::Robust => Curve::Robust { smoothing: p.smoothing },
            LossType::Hinge => Curve::Hinge,
            LossType::Ipo => Curve::Ipo,
            LossType::ExoPair => Curve::Exo { smoothing: p.smoothing },
            LossType::Discopop => Curve::DiscoPop { temperature: p.temperature },
            LossType::ApoZero => Curve::ApoZero,
            LossType::ApoDown => Curve::ApoDown,
            LossType::NcaPair => Curve::NcaPair,
            LossType::BcoPair => Curve::BcoPair,
            LossType::SppoHard => Curve::SppoHard,
            LossType::Aot => Curve::Aot { smoothing: p.smoothing },
            LossType::AotUnpaired => Curve::AotUnpaired { smoothing: p.smoothing },
            LossType::Kto => Curve::Kto,
            LossType::ApoZeroUnpaired => Curve::ApoZeroUnpaired,
            LossType::Sft => return None,
        })
    }

    /// Whether a score is a mean over tokens.
    pub(super) fn per_token(self) -> bool {
        matches!(self, LossType::Ipo | LossType::SigmoidNorm | LossType::Simpo | LossType::Orpo)
    }

    /// Whether the loss uses `--label-smoothing`.
    pub(super) fn takes_smoothing(self) -> bool {
        use LossType::*;
        matches!(self, Sigmoid | SigmoidNorm | Robust | ExoPair | Simpo | Aot | AotUnpaired)
    }

    /// Whether the loss has no frozen reference and must be the only loss of a run.
    pub(super) fn is_reference_free(self) -> bool {
        matches!(self, LossType::Simpo | LossType::Orpo)
    }

    /// Whether the loss supports an f-divergence other than the reverse KL, because it is a function of the
    /// difference of two scores.
    pub(super) fn takes_divergence(self) -> bool {
        use LossType::*;
        matches!(self, Sigmoid | SigmoidNorm | Hinge | Ipo | ExoPair | Robust | Discopop | Sft)
    }

    /// Whether a reward model can be trained with the loss.
    pub(crate) fn is_of_rewards(self) -> bool {
        matches!(self, LossType::Sigmoid | LossType::Robust | LossType::Hinge)
    }
}

/// Link of a divergence. Near alpha = 1 the alpha-divergence is the reverse KL divergence, as in TRL.
pub(super) fn link_of(divergence: Divergence, alpha: f64) -> Link {
    match divergence {
        Divergence::ReverseKl => Link::Identity,
        Divergence::ForwardKl => Link::ForwardKl,
        Divergence::JsDivergence => Link::JensenShannon,
        Divergence::AlphaDivergence if (alpha - 1.0).abs() < 1e-6 => Link::Identity,
        Divergence::AlphaDivergence => Link::Alpha { alpha },
    }
}
