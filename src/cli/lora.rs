//! Flags of low-rank adapters. Values out of range, dropout in `sft`, and flags without `--use-peft` are errors.

use clap::Args;
use serde::Serialize;

use crate::error::refuse_given;
use crate::loss::objective::Method;
use crate::model::config::ModelConfig;
use crate::model::lora::{ALL_LINEAR, LoraSpec, MAX_RANK};
use crate::{Error, Result};

/// Low-rank adapters.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[command(next_help_heading = "Adapters")]
pub struct LoraArgs {
    /// Train low-rank adapters (LoRA) and freeze the weights of the model; the output is a PEFT folder
    #[arg(long)]
    pub use_peft: bool,
    /// Rank of the adapters [default: 16]
    #[arg(long, value_name = "RANK")]
    pub lora_r: Option<usize>,
    /// Numerator of the scale: updates are multiplied by alpha / rank [default: 32]
    #[arg(long, value_name = "ALPHA")]
    pub lora_alpha: Option<u32>,
    /// Linear layers that get an adapter, by name (q_proj v_proj), or all-linear for all but the head
    /// [default: all-linear]
    #[arg(long, num_args = 1.., value_delimiter = ',', value_name = "NAME")]
    pub lora_target_modules: Vec<String>,
    /// Dropout before the adapters; sft supports only 0, and the other commands ignore it, as TRL does with
    /// its default --disable-dropout [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub lora_dropout: Option<f64>,
    /// Scale by alpha / sqrt(rank) (rank-stabilised LoRA)
    #[arg(long)]
    pub use_rslora: bool,
}

/// Adapter options of a run, before the model's configuration is known.
#[derive(Clone, Debug)]
pub struct LoraChoice {
    rank: usize,
    alpha: u32,
    rslora: bool,
    names: Vec<String>,
    /// Notes on options whose default or meaning differs from TRL's, or that have no effect.
    notes: Vec<&'static str>,
}

impl LoraArgs {
    /// Returns the adapters to train, or `None` without `--use-peft`.
    pub fn resolve(&self, method: Method) -> Result<Option<LoraChoice>> {
        if !self.use_peft {
            let given = [
                ("--lora-r", self.lora_r.is_some()),
                ("--lora-alpha", self.lora_alpha.is_some()),
                ("--lora-target-modules", !self.lora_target_modules.is_empty()),
                ("--lora-dropout", self.lora_dropout.is_some()),
                ("--use-rslora", self.use_rslora),
            ];
            return refuse_given(&given, "without --use-peft").map(|()| None);
        }
        let refuse = |text: String| Err(Error::Usage(text));
        let rank = self.lora_r.unwrap_or(16);
        if rank == 0 || rank > MAX_RANK {
            return refuse(format!("--lora-r {rank}: a rank from 1 to {MAX_RANK} is needed"));
        }
        let alpha = self.lora_alpha.unwrap_or(32);
        if alpha == 0 || alpha > 1 << 24 {
            return refuse(format!("--lora-alpha {alpha}: a number from 1 to {} is needed", 1 << 24));
        }
        if let Some(dropout) = self.lora_dropout.filter(|dropout| !(0.0..1.0).contains(dropout)) {
            return refuse(format!("--lora-dropout {dropout}: a share from 0 to below 1 is needed"));
        }
        let mut notes = Vec::new();
        if self.lora_target_modules.is_empty() {
            notes.push("adapters are on all linear layers; TRL's default is PEFT's list for the model type");
        }
        // TRL's DPO, KTO and reward trainers also set adapter dropout to 0 by default; its SFT trainer does not.
        match (method, self.lora_dropout) {
            (Method::Sft, None) => notes.push("adapters have no dropout; TRL's default is --lora-dropout 0.05"),
            (Method::Sft, Some(dropout)) if dropout != 0.0 => {
                return refuse(format!("--lora-dropout {dropout}: dropout is not supported in sft; use 0"));
            }
            (_, Some(dropout)) if dropout != 0.0 => {
                notes.push(
                    "--lora-dropout has no effect: adapters have no dropout, as with TRL's --disable-dropout true",
                );
            }
            _ => {}
        }
        let names = self.lora_target_modules.clone();
        Ok(Some(LoraChoice { rank, alpha, rslora: self.use_rslora, names, notes }))
    }
}

impl LoraChoice {
    /// The adapters of a model with this configuration.
    pub fn spec(&self, config: &ModelConfig) -> Result<LoraSpec> {
        LoraSpec::new(config, self.rank, self.alpha, self.rslora, &self.names)
    }

    /// Returns notes on defaults that differ from TRL's, and on options that have no effect.
    pub fn notes(&self) -> &[&'static str] {
        &self.notes
    }
}

/// Describes adapters in one line: rank, scale, adapted layers, and the number of trained parameters out of `all`.
pub(super) fn described(spec: &LoraSpec, config: &ModelConfig, trained: usize, all: usize) -> String {
    let root = if spec.rslora { "sqrt(rank)" } else { "rank" };
    let places = match spec.is_all_linear(config) {
        true => format!("{ALL_LINEAR} ({})", spec.targets.join(", ")),
        false => spec.targets.join(", "),
    };
    let head = if config.head == crate::model::config::Head::Reward { ", and the score head in full" } else { "" };
    format!(
        "LoRA of rank {}, alpha {}, scale alpha / {root} = {}, on {places}{head}; {trained} trained parameters, {:.2} % \
         of {all} in the model",
        spec.rank,
        spec.alpha,
        (spec.scale() * 1e4).round() / 1e4,
        100.0 * trained as f64 / all.max(1) as f64
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_without_use_peft_and_values_that_cannot_work_are_refused() {
        let error = |args: LoraArgs| args.resolve(Method::Sft).unwrap_err().to_string();
        let peft = LoraArgs { use_peft: true, ..LoraArgs::default() };
        assert!(error(LoraArgs { lora_r: Some(8), ..LoraArgs::default() }).contains("without --use-peft"));
        assert!(error(LoraArgs { use_rslora: true, ..LoraArgs::default() }).contains("--use-rslora"));
        assert!(error(LoraArgs { lora_r: Some(0), ..peft.clone() }).contains("--lora-r 0"));
        assert!(error(LoraArgs { lora_alpha: Some(0), ..peft.clone() }).contains("--lora-alpha 0"));
        for dropout in [0.05, 1.0, -0.1, f64::NAN] {
            assert!(error(LoraArgs { lora_dropout: Some(dropout), ..peft.clone() }).contains("--lora-dropout"));
        }
        let given = LoraArgs { lora_dropout: Some(0.0), lora_target_modules: vec!["q_proj".into()], ..peft.clone() };
        let notes = |args: &LoraArgs, method| args.resolve(method).unwrap().unwrap().notes().len();
        assert_eq!((notes(&given, Method::Sft), notes(&peft, Method::Sft)), (0, 2));
        // DPO, KTO and reward runs ignore --lora-dropout. TRL's trainers for these methods set it to 0.
        let dropping = LoraArgs { lora_dropout: Some(0.05), ..given };
        for method in [Method::Dpo, Method::Kto, Method::Reward] {
            assert_eq!((notes(&dropping, method), notes(&peft, method)), (1, 1));
            let above = LoraArgs { lora_dropout: Some(1.0), ..peft.clone() };
            assert!(above.resolve(method).unwrap_err().to_string().contains("from 0 to below 1"));
        }
        assert!(LoraArgs::default().resolve(Method::Dpo).unwrap().is_none());
    }
}
