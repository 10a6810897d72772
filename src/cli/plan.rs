//! `mapl bench --plan`: predicts the floor (lower bound of the time) of a training step on a GPU that need not
//! be present.

use clap::Args;
use serde::Serialize;

use crate::model::lora::MAX_RANK;
use crate::model::presets;
use crate::perf::data_sheets::data_sheet;
use crate::study::plan::decode::DecodePlan;
use crate::study::plan::memory::RankMemory;
use crate::study::plan::ranks::{Fabric, Ranks, RanksPlan};
use crate::study::plan::{GpuRates, PlanOptions, StepPlan, Workload};
use crate::terminal::{emit, emit_exactly};
use crate::{Error, Result};

/// Arguments of `bench --plan`. The other flags of `bench` conflict with this group.
#[derive(Args, Clone, Debug)]
pub struct StepPlanArgs {
    /// Predict the floor (lower bound of the time) of every op of a training step and the tiles of every
    /// launch, from sizes only
    #[arg(long)]
    plan: bool,
    /// Preset with the model's sizes; `mapl env` lists the presets
    #[arg(long, default_value = "qwen2.5-0.5b", requires = "plan")]
    preset: String,
    /// GPU with known rates, such as h200, h100, h100-pcie, b200, a100, l40s, l4, 4090 or 3090; or
    /// any name if all rates are given
    #[arg(long, default_value = "h200", requires = "plan")]
    card: String,
    /// Number of multiprocessors of the GPU
    #[arg(long, requires_all = ["plan", "copy", "product", "peak"])]
    processors: Option<usize>,
    /// Copy bandwidth of the GPU in TB/s, counting reads and writes
    #[arg(long, requires = "plan")]
    copy: Option<f64>,
    /// Rate of the GPU's best bf16 GEMM in TFLOP/s
    #[arg(long, requires = "plan")]
    product: Option<f64>,
    /// Dense bf16 peak of the GPU's data sheet in TFLOP/s, for the utilisation
    #[arg(long, requires = "plan")]
    peak: Option<f64>,
    /// Pairs per step
    #[arg(long, default_value_t = 16, requires = "plan")]
    pairs: usize,
    /// Tokens per prompt
    #[arg(long, default_value_t = 512, requires = "plan")]
    prompt: usize,
    /// Tokens per response
    #[arg(long, default_value_t = 256, requires = "plan")]
    response: usize,
    /// Plan a reward model step instead of a DPO step with its reference
    #[arg(long, requires = "plan")]
    reward: bool,
    /// Plan a step of low-rank adapters of this rank on all linear layers
    #[arg(long, requires = "plan", value_name = "RANK")]
    lora_r: Option<usize>,
    /// Plan a decoding step with this batch size, for a context of --prompt and half of --response tokens
    #[arg(long, requires = "plan", value_name = "TEXTS", value_parser = super::generate::count, conflicts_with_all = ["pairs", "reward", "lora_r"])]
    decode: Option<usize>,
    /// Plan the vocabulary head with at most this many rows at once [default: the most that the kernels support]
    #[arg(long, requires = "plan", value_name = "ROWS", value_parser = super::generate::count, conflicts_with_all = ["reward", "decode"])]
    head_rows: Option<usize>,
    /// Predict attention, norms and bias gradients for the portable kernels, with which the step recorded in
    /// the repository was measured
    #[arg(long, requires = "plan", conflicts_with = "decode", alias = "recorded-attention")]
    recorded_kernels: bool,
    /// Also print the memory per GPU for this number of GPUs; with --link, also predict the step with --pairs
    /// on each GPU, and weak scaling
    #[arg(long, requires = "plan", value_parser = rank_count, conflicts_with = "decode")]
    ranks: Option<usize>,
    /// Memory of a GPU, such as 80GB, for which the plan names the sharding that fits
    #[arg(long, requires = "ranks", value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Bandwidth between the GPUs of a host, per GPU and direction, such as 450GB/s
    #[arg(long, requires = "ranks", value_name = "RATE", value_parser = rate)]
    link: Option<f64>,
    /// Bandwidth between hosts, per GPU and direction, such as 50GB/s or 400Gbit/s
    #[arg(long, requires_all = ["ranks", "link"], value_name = "RATE", value_parser = rate)]
    network: Option<f64>,
    /// Number of hosts of the ranks
    #[arg(long, requires = "link", default_value_t = 1, value_parser = super::generate::count)]
    hosts: usize,
    /// Print JSON
    #[arg(long, requires = "plan")]
    json: bool,
}

/// Parses bytes per second from a text such as 450GB/s or 400Gbit/s.
fn rate(text: &str) -> Result<f64, String> {
    let units = [("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6), ("Tbit/s", 125e9), ("Gbit/s", 125e6)];
    let read = units.iter().find_map(|(unit, bytes)| {
        let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        Some(number * bytes).filter(|rate| rate.is_finite() && *rate > 0.0)
    });
    read.ok_or_else(|| "a number above 0 is needed, with MB/s, GB/s, TB/s, Gbit/s or Tbit/s".into())
}

/// Maximum number of ranks of a plan. The limit bounds the cost of a plan, which computes the shard of every rank.
const MOST_RANKS: usize = 1 << 16;

fn rank_count(text: &str) -> Result<usize, String> {
    let in_range = text.parse().ok().filter(|n| (1..=MOST_RANKS).contains(n));
    in_range.ok_or_else(|| format!("a whole number from 1 to {MOST_RANKS} is needed"))
}

/// Parses bytes from a text such as 80GB or 80GiB.
fn size(text: &str) -> Result<u64, String> {
    let binary = |power: u32| (1_u64 << power) as f64;
    let units = [("TiB", binary(40)), ("GiB", binary(30)), ("MiB", binary(20)), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)];
    let read = units.iter().find_map(|(unit, bytes)| {
        let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        Some(number * bytes).filter(|size| *size >= 1.0 && *size < 1e18)
    });
    read.map(|size| size as u64).ok_or_else(|| "a number above 0 is needed, with MB, GB, TB, MiB, GiB or TiB".into())
}

impl StepPlanArgs {
    /// Whether a plan was requested.
    pub fn wanted(&self) -> bool {
        self.plan
    }

    /// Prints the plan.
    pub fn print(&self) -> Result<()> {
        if self.lora_r.is_some_and(|rank| rank == 0 || rank > MAX_RANK) {
            return Err(Error::Usage(format!("--lora-r: a rank from 1 to {MAX_RANK} is needed")));
        }
        let config = presets::config(&self.preset)?;
        if let Some(rows) = self.decode {
            let context = self.prompt.saturating_add(self.response.div_ceil(2));
            let plan = DecodePlan::new(&config, rows, context, &card(self)?)?;
            return if self.json { emit_exactly(&json_text(&plan)?) } else { emit(&plan.text()) };
        }
        let workload = Workload {
            pairs: self.pairs,
            prompt: self.prompt,
            response: self.response,
            dpo: !self.reward,
            lora_rank: self.lora_r,
        };
        let options = PlanOptions { head_rows: self.head_rows, recorded_kernels: self.recorded_kernels };
        let plan = StepPlan::with(&config, &workload, &card(self)?, options)?;
        let ranks = match (self.ranks, self.link) {
            (Some(ranks), Some(link)) => {
                let fabric = Fabric { link, network: self.network };
                Some(RanksPlan::new(&plan, &config, Ranks { ranks, hosts: self.hosts }, fabric)?)
            }
            _ => None,
        };
        let memory = |ranks| RankMemory::new(&config, &workload, &card(self)?, ranks, self.memory);
        let memory = self.ranks.map(memory).transpose()?;
        if self.json {
            return emit_exactly(&json_text(&WithRanks { plan: &plan, ranks, memory })?);
        }
        let texts = [Some(plan.text()), ranks.map(|plan| plan.text()), memory.map(|memory| memory.text())];
        emit(&texts.into_iter().flatten().collect::<Vec<_>>().join("\n\n"))
    }
}

/// The plan as JSON, with the plan for several GPUs if one was requested.
#[derive(Serialize)]
struct WithRanks<'p> {
    #[serde(flatten)]
    plan: &'p StepPlan,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<RanksPlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<RankMemory>,
}

fn json_text(plan: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(plan).map_err(|e| Error::Runtime(format!("cannot print: {e}")))
}

/// Returns the rates of the GPU that `--card` names. Rates given by flags override the known rates.
fn card(args: &StepPlanArgs) -> Result<GpuRates> {
    for (flag, value) in [("--copy", args.copy), ("--product", args.product), ("--peak", args.peak)] {
        if value.is_some_and(|v| !(v.is_finite() && v > 0.0)) {
            return Err(Error::Usage(format!("{flag}: a finite number above 0 is needed")));
        }
    }
    if args.processors == Some(0) {
        return Err(Error::Usage("--processors 0: at least 1 is needed".into()));
    }
    let tera = |value: f64| value * 1e12;
    if let (Some(processors), Some(copy), Some(product), Some(peak)) =
        (args.processors, args.copy, args.product, args.peak)
    {
        return Ok(GpuRates {
            name: args.card.clone(),
            processors,
            copy: tera(copy),
            product: tera(product),
            peak: tera(peak),
            compute_capability: data_sheet(&args.card).map_or((9, 0), |gpu| gpu.compute_capability),
        });
    }
    let known = GpuRates::named(&args.card)?;
    Ok(GpuRates {
        copy: args.copy.map_or(known.copy, tera),
        product: args.product.map_or(known.product, tera),
        peak: args.peak.map_or(known.peak, tera),
        ..known
    })
}

#[cfg(test)]
mod tests {
    use super::rate;

    #[test]
    fn a_rate_has_a_unit() {
        assert_eq!((rate("450GB/s"), rate("400 Gbit/s"), rate("0.9TB/s")), (Ok(450e9), Ok(50e9), Ok(0.9e12)));
        for wrong in ["450", "GB/s", "-1GB/s", "0GB/s", "nanGB/s", "infGB/s", "450GiB/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
