//! Memory per GPU of a training step on several GPUs, by part, for each choice of what is sharded. The
//! buffers are those of a run, allocated on the counting device (`train::memory`).

use std::fmt::Write as _;

use serde::Serialize;

use super::pair::synthetic_pair;
use super::{GpuRates, Workload, shared_bytes};
use crate::backend::contract::Precision;
use crate::backend::kernels::device::Properties;
use crate::data::pack::{ComparisonOptions, GroupSizes};
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{LossOptions, Method};
use crate::model::config::{Head, ModelConfig};
use crate::model::lora::LoraSpec;
use crate::train::memory::{CHOICES, MemoryInputs, MemoryPlan, PlannedReference};
use crate::train::pack_for;
use crate::{Error, Result};

/// Memory of one sharding choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceMemory {
    /// Flags that select the choice.
    pub flags: String,
    /// Name and bytes of each part.
    pub parts: Vec<(String, u64)>,
    /// Bytes of all parts.
    pub total: u64,
}

/// Memory of the rank with the most bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RankMemory {
    /// Number of GPUs.
    pub ranks: usize,
    /// Bytes of a GPU, if they were given.
    pub memory_bytes: Option<u64>,
    /// Sharding choices, in order of increasing traffic and computation.
    pub choices: Vec<ChoiceMemory>,
    /// Flags of the first choice that fits into the memory of a GPU.
    pub fits: Option<String>,
}

impl RankMemory {
    /// Plans a bf16 step of `workload` on each of `ranks` GPUs, with `memory_bytes` each.
    pub fn new(
        config: &ModelConfig,
        workload: &Workload,
        gpu: &GpuRates,
        ranks: usize,
        memory_bytes: Option<u64>,
    ) -> Result<Self> {
        let mut config = config.clone();
        if !workload.dpo && config.head == Head::LanguageModel {
            config = config.into_reward(0)?;
        }
        let method = if workload.dpo { Method::Dpo } else { Method::Reward };
        let loss = LossOptions::default().resolve(method, [1.0; 3], false)?;
        let groups: Vec<TokenizedGroup> =
            (0..workload.pairs).map(|pair| synthetic_pair(pair, workload, config.vocab)).collect();
        let comparison = ComparisonOptions { scale: loss.scale, margin_add: loss.margin };
        let sizes = GroupSizes::measure(&groups, &pack_for(&loss, &config), &comparison)?;
        let card = Properties {
            name: gpu.name.clone(),
            processors: gpu.processors,
            shared_bytes: shared_bytes(gpu.compute_capability),
            compute_capability: gpu.compute_capability,
        };
        let lora = workload.lora_rank.map(|rank| LoraSpec::new(&config, rank, 1, false, &[])).transpose()?;
        let mut choices = Vec::new();
        for recompute in [false, true] {
            for (sharded, flag) in CHOICES {
                let subject = MemoryInputs {
                    config: &config,
                    lora: lora.as_ref(),
                    reference: match (workload.dpo, &lora) {
                        (true, Some(_)) => PlannedReference::Base,
                        (true, None) => PlannedReference::Model(&config),
                        (false, _) => PlannedReference::None,
                    },
                    loss: &loss,
                    precision: Precision::Bf16,
                    recompute,
                    replays: false,
                    accumulation: 1,
                    kernels: Some(&card),
                    generation: None,
                    head_rows: 0,
                    ranks,
                    sharded,
                };
                let plan = MemoryPlan::new(&subject, &sizes, workload.pairs, None)?;
                let plan = plan.ok_or_else(|| Error::Runtime("a bf16 step has no memory plan".into()))?;
                let with = if recompute { " --gradient-checkpointing" } else { "" };
                let flags = format!("{flag}{with}");
                choices.push(ChoiceMemory { flags, parts: plan.named_parts(), total: plan.total() });
            }
        }
        let within = |choice: &&ChoiceMemory| memory_bytes.is_some_and(|memory| choice.total <= memory);
        let fits = choices.iter().find(within).map(|choice| choice.flags.clone());
        Ok(Self { ranks, memory_bytes, choices, fits })
    }

    /// The plan as a table.
    pub fn text(&self) -> String {
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let mut out = format!("memory per GPU in GB on {} GPUs, by what is sharded\n", self.ranks);
        let _ = writeln!(
            out,
            "{:<26} {:>10} {:>10} {:>10}   {:>10} {:>10} {:>10}\n{:<26} {:>10} {:>10} {:>10}   with --gradient-checkpointing",
            "", "nothing", "optimizer", "weights", "nothing", "optimizer", "weights", "part", "", "", ""
        );
        let row = |name: &str, bytes: Vec<u64>| {
            let columns: Vec<String> = bytes.iter().map(|&bytes| format!("{:>10.2}", gb(bytes))).collect();
            let (kept, recomputed) = columns.split_at(columns.len() / 2);
            format!("{name:<26} {}   {}", kept.join(" "), recomputed.join(" "))
        };
        for (part, (name, _)) in self.choices[0].parts.iter().enumerate() {
            let bytes: Vec<u64> = self.choices.iter().map(|choice| choice.parts[part].1).collect();
            if bytes.iter().any(|&bytes| bytes > 0) {
                let _ = writeln!(out, "{}", row(name, bytes));
            }
        }
        let _ = write!(out, "{}", row("total", self.choices.iter().map(|choice| choice.total).collect()));
        if let Some(memory) = self.memory_bytes {
            let said = match &self.fits {
                Some(flags) => format!("the first choice that fits is {flags}"),
                None => "no choice fits; plan fewer --pairs, or more --ranks".to_owned(),
            };
            let _ = write!(out, "\n{:.1} GB per GPU: {said}", gb(memory));
        }
        out
    }
}
