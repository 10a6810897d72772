//! Predicted floor of a training step on a GPU that need not be present.
//!
//! An op's floor is the longer of its FLOPs and its bytes (by its contract) at the GPU's rates. A
//! launch's waves are its tiles over the blocks that the GPU holds at a time. The step is rehearsed
//! on a counting device ([`crate::backend::kernels::rehearsal`]): host code, packing and op calls
//! are the same as in a real run.

pub mod decode;
mod pair;

use std::fmt::Write as _;

use half::bf16;
use serde::Serialize;

use crate::backend::Backend as _;
use crate::backend::contract::{Bound, uses_gemm_rate};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Properties, Resources};
use crate::backend::kernels::geometry::{Chosen, of_card};
use crate::backend::kernels::launchers::{KERNELS, RESOURCES};
use crate::backend::kernels::rehearsal::{Launched, Rehearsal};
use crate::backend::probe::OpTime;
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{LossOptions, Method};
use crate::model::config::{Head, ModelConfig};
use crate::model::decoder::Model;
use crate::model::lora::{Lora, LoraSpec};
use crate::optim::adamw::AdamWSettings;
use crate::perf::data_sheets::{DATA_SHEETS, data_sheet};
use crate::train::batch::packing::PackedStep;
use crate::train::step::Trainer;
use crate::{Error, Result};
use pair::synthetic_pair;

/// Rates of a GPU. `copy` and `product` are rates that good programs reach, and `peak` is the data
/// sheet's. All are given, not measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuRates {
    pub name: String,
    /// Number of multiprocessors.
    pub processors: usize,
    /// Bytes per second of a copy, counting reads and writes.
    pub copy: f64,
    /// FLOP/s of the best bf16 GEMM.
    pub product: f64,
    /// Dense bf16 FLOP/s of the data sheet, the basis of utilisation.
    pub peak: f64,
    /// Compute capability, which selects the kernels.
    pub compute_capability: (u32, u32),
}

/// One step: pairs of equal lengths in one micro-batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    pub pairs: usize,
    /// Prompt tokens.
    pub prompt: usize,
    /// Tokens per response.
    pub response: usize,
    /// DPO, with a reference model next to the policy; otherwise a reward model.
    pub dpo: bool,
    /// Rank of adapters on all linear layers, if adapters are trained; the base is then the reference.
    pub lora_rank: Option<usize>,
}

/// Floor of an op of the step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpFloor {
    pub op: String,
    pub calls: u64,
    pub flops: u64,
    pub bytes: u64,
    /// Whichever takes longer: `product` (FLOPs) or `copy` (bytes).
    pub bound: &'static str,
    pub floor_seconds: f64,
}

/// GEMMs of one size with selected tiles, and their predicted time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GemmEstimate {
    pub op: &'static str,
    /// C is (m, n); sums run over k.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub calls: u64,
    pub tile: &'static str,
    /// Number of splits of K.
    pub parts: usize,
    /// Tiles times splits over the blocks or clusters at work.
    pub waves: f64,
    pub predicted_seconds: f64,
}

/// Launches of one kernel with the same number of tiles.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaunchEstimate {
    pub kernel: &'static str,
    pub launches: u64,
    /// Number of tiles or rows of the work: the blocks on a GPU without a limit.
    pub tiles: u64,
    pub threads: u32,
    pub shared_bytes: usize,
    /// Resident blocks per multiprocessor; `None` in a build without compiled kernels.
    pub blocks_held: Option<u32>,
    /// Tiles over the blocks that the GPU holds at a time.
    pub waves: Option<f64>,
    /// Waves over the next whole number of waves; below 1 if the last wave is not full.
    pub efficiency: Option<f64>,
}

/// Floors of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepPlan {
    pub card: GpuRates,
    pub workload: Workload,
    pub parameters: usize,
    pub trained_parameters: usize,
    /// Token rows with shared prompts, and rows of the vocabulary head.
    pub tokens: usize,
    pub head_rows: usize,
    pub ops: Vec<OpFloor>,
    pub products: Vec<GemmEstimate>,
    pub launches: Vec<LaunchEstimate>,
    /// FLOPs that recompute logits; the ops' FLOPs include them.
    pub recomputed_flops: u64,
    pub flops: u64,
    pub floor_seconds: f64,
    /// Predicted time. For ops with selected tiles it is the prediction of the tile selection,
    /// elsewhere the floor divided by the wave efficiency of the launches.
    pub predicted_seconds: f64,
    /// Share of the data sheet's FLOP/s at the predicted time.
    pub utilisation: f64,
}

impl GpuRates {
    /// Rates of a known GPU. The case of the name, the words around it ("NVIDIA H100 PCIe"), and a
    /// missing form or memory size do not matter; the form that is named first in the list of data
    /// sheets is then meant.
    ///
    /// # Errors
    /// [`Error::Usage`] with the known names.
    pub fn named(name: &str) -> Result<Self> {
        let Some(gpu) = data_sheet(name) else {
            let known: Vec<&str> = DATA_SHEETS.iter().map(|gpu| gpu.name).collect();
            return Err(Error::Usage(format!(
                "--card {name}: not a known GPU; known are {}; for another one give --processors, --copy, --product and \
                 --peak",
                known.join(", ")
            )));
        };
        Ok(Self {
            name: gpu.name.into(),
            processors: gpu.processors,
            copy: gpu.copy(),
            product: gpu.product(),
            peak: gpu.bf16_flops,
            compute_capability: gpu.compute_capability,
        })
    }
}

impl GpuRates {
    /// The GPU without a limit of multiprocessors, so that a grid has one block per tile of the work.
    fn unbounded(&self) -> Properties {
        Properties {
            name: self.name.clone(),
            processors: 1 << 24,
            shared_bytes: shared_bytes(self.compute_capability),
            compute_capability: self.compute_capability,
        }
    }
}

/// Shared memory that a block may use, by the CUDA programming guide's table of compute
/// capabilities.
fn shared_bytes(compute_capability: (u32, u32)) -> usize {
    match compute_capability {
        (8, 0 | 7) => 163 << 10,
        (8, _) => 99 << 10,
        _ => 227 << 10,
    }
}

impl StepPlan {
    /// Rehearses a step of a bf16 model with this configuration.
    pub fn new(config: &ModelConfig, workload: &Workload, gpu: &GpuRates) -> Result<Self> {
        let longest = workload.prompt + workload.response;
        if workload.pairs == 0 || workload.response == 0 || workload.prompt == 0 || longest > config.max_positions {
            return Err(Error::Usage(format!(
                "{} pairs with {} prompt and {} response tokens: each number must be at least 1, and prompt and response \
                 together at most {} tokens",
                workload.pairs, workload.prompt, workload.response, config.max_positions
            )));
        }
        let mut config = config.clone();
        if !workload.dpo {
            config = if config.head == Head::Reward { config } else { config.into_reward(0)? };
        }
        let backend = Kernels::<_, bf16>::probed(Rehearsal::of(&gpu.unbounded())).keeping_choices();
        let method = if workload.dpo { Method::Dpo } else { Method::Reward };
        let loss = LossOptions::default().resolve(method, [1.0; 3], false)?;
        let mut policy = Model::zeros(&backend, config.clone(), longest)?;
        let (adapted, mut reference) = (workload.lora_rank.is_some(), None);
        if let Some(rank) = workload.lora_rank {
            let spec = LoraSpec::new(&config, rank, 1, false, &[])?;
            policy.lora = Some(Lora::zeros(&backend, &config, spec)?);
        } else if workload.dpo {
            reference = Some(Model::zeros(&backend, config.clone(), longest)?);
        }
        let parameters = [policy.layout.len, policy.trained().len];
        let mut trainer = Trainer::new(&backend, policy, reference, loss, AdamWSettings::default())?;
        if adapted && workload.dpo {
            trainer.use_base_as_frozen()?;
        }
        let groups: Vec<TokenizedGroup> =
            (0..workload.pairs).map(|pair| synthetic_pair(pair, workload, config.vocab)).collect();
        let mut packed = PackedStep::default();
        trainer.packer().pack(&[groups.iter().collect()], &mut packed)?;
        let sizes = packed.micro_batches()[0].host.sizes;
        backend.device().take_launches();
        backend.op_times()?;
        backend.take_chosen();
        trainer.begin(packed, 0.0)?;
        let ops = backend.op_times()?;
        let launches = backend.device().take_launches();
        let products = gemm_estimates(gpu, &backend.take_chosen());
        Ok(Self::of(gpu, workload, (parameters, sizes.tokens, sizes.rows), &ops, products, &launches))
    }

    fn of(
        gpu: &GpuRates,
        workload: &Workload,
        ([parameters, trained_parameters], tokens, head_rows): ([usize; 2], usize, usize),
        ops: &[OpTime],
        products: Vec<GemmEstimate>,
        launches: &[Launched],
    ) -> Self {
        let ops: Vec<OpFloor> = ops.iter().map(|op| op_floor(gpu, op)).collect();
        let launches: Vec<LaunchEstimate> = launches.iter().map(|launched| launch_estimate(gpu, launched)).collect();
        let flops = ops.iter().map(|op| op.flops).sum();
        let floor_seconds = ops.iter().map(|op| op.floor_seconds).sum();
        let predicted_seconds = ops.iter().map(|op| predicted(op, &products, &launches)).sum::<f64>();
        let head = ops.iter().find(|op| op.op == "head_logprob_bwd");
        Self {
            card: gpu.clone(),
            workload: workload.clone(),
            parameters,
            trained_parameters,
            tokens,
            head_rows,
            // One of three GEMMs recomputes logits (contract of head_logprob_bwd). A head fused
            // with the loss recomputes none.
            recomputed_flops: head.map_or(0, |op| op.flops / 3),
            flops,
            floor_seconds,
            predicted_seconds,
            utilisation: flops as f64 / predicted_seconds / gpu.peak,
            ops,
            products,
            launches,
        }
    }

    /// FLOPs of the ops whose names start with `prefix`.
    pub fn flops_of(&self, prefix: &str) -> u64 {
        self.ops.iter().filter(|op| op.op.starts_with(prefix)).map(|op| op.flops).sum()
    }

    /// The plan as text for a terminal.
    pub fn text(&self) -> String {
        let (gpu, work) = (&self.card, &self.workload);
        let mut out = format!(
            "{} {} of {} pairs, prompt {}, responses {}: {} tokens with shared prompts, {} head rows, {:.1} M parameters, {:.1} M of them trained\n\
             {}: {} multiprocessors, copy {:.2} TB/s, GEMM {:.0} TFLOP/s, data sheet {:.0} TFLOP/s\n\n",
            if work.dpo { "DPO" } else { "reward" },
            "step",
            work.pairs,
            work.prompt,
            work.response,
            self.tokens,
            self.head_rows,
            self.parameters as f64 / 1e6,
            self.trained_parameters as f64 / 1e6,
            gpu.name,
            gpu.processors,
            gpu.copy / 1e12,
            gpu.product / 1e12,
            gpu.peak / 1e12
        );
        let _ = writeln!(out, "{:<20} {:>6} {:>9} {:>9} {:>8}  bound", "op", "calls", "TFLOP", "GB", "floor ms");
        for op in &self.ops {
            let _ = writeln!(
                out,
                "{:<20} {:>6} {:>9.3} {:>9.3} {:>8.3}  {}",
                op.op,
                op.calls,
                op.flops as f64 / 1e12,
                op.bytes as f64 / 1e9,
                1e3 * op.floor_seconds,
                op.bound
            );
        }
        let _ = writeln!(
            out,
            "\n{:<20} {:>6} {:>7} {:>7} {:>7} {:>6} {:>8} {:>12}  tile",
            "GEMM", "calls", "m", "n", "k", "splits", "waves", "predicted us"
        );
        for p in &self.products {
            let _ = writeln!(
                out,
                "{:<20} {:>6} {:>7} {:>7} {:>7} {:>6} {:>8.2} {:>12.1}  {}",
                p.op,
                p.calls,
                p.m,
                p.n,
                p.k,
                p.parts,
                p.waves,
                1e6 * p.predicted_seconds,
                p.tile
            );
        }
        let _ = writeln!(
            out,
            "\n{:<30} {:>8} {:>9} {:>7} {:>7} {:>9} {:>8} {:>6}",
            "kernel", "launches", "tiles", "threads", "shared", "blocks/SM", "waves", "full"
        );
        let known = |value: Option<String>| value.unwrap_or_else(|| "unknown".into());
        for l in &self.launches {
            let _ = writeln!(
                out,
                "{:<30} {:>8} {:>9} {:>7} {:>7} {:>9} {:>8} {:>6}",
                l.kernel,
                l.launches,
                l.tiles,
                l.threads,
                l.shared_bytes,
                known(l.blocks_held.map(|b| b.to_string())),
                known(l.waves.map(|w| format!("{w:.2}"))),
                known(l.efficiency.map(|e| format!("{:.0}%", 100.0 * e)))
            );
        }
        let _ = write!(
            out,
            "\n{:.1} TFLOP per step, {:.1} of them recomputed logits; floor {:.1} ms, predicted with the selected tiles and wave quantisation \
             {:.1} ms: {:.0} % of the data sheet's peak",
            self.flops as f64 / 1e12,
            self.recomputed_flops as f64 / 1e12,
            1e3 * self.floor_seconds,
            1e3 * self.predicted_seconds,
            100.0 * self.utilisation
        );
        out
    }
}

/// GEMMs by op and size, with the selected tiles and the time predicted for the GPU.
fn gemm_estimates(gpu: &GpuRates, chosen: &[Chosen]) -> Vec<GemmEstimate> {
    let mut products: Vec<GemmEstimate> = Vec::new();
    for c in chosen {
        let cut = of_card(c.sizes, c.choice, gpu.processors);
        let gemm = GemmEstimate {
            op: c.op,
            m: c.sizes.m,
            n: c.sizes.n,
            k: c.sizes.k,
            calls: 1,
            tile: cut.tile.name(),
            parts: cut.splits,
            waves: cut.waves,
            predicted_seconds: cut.seconds,
        };
        match products.iter_mut().find(|p| (p.op, p.m, p.n, p.k) == (gemm.op, gemm.m, gemm.n, gemm.k)) {
            Some(same) => same.calls += 1,
            None => products.push(gemm),
        }
    }
    products
}

/// Predicted seconds of an op: by its selected tiles, else its floor over the wave efficiency.
fn predicted(op: &OpFloor, products: &[GemmEstimate], launches: &[LaunchEstimate]) -> f64 {
    let of_op = products.iter().filter(|p| p.op == op.op);
    let chosen: f64 = of_op.map(|p| p.calls as f64 * p.predicted_seconds).sum();
    chosen.max(op.floor_seconds / wave_efficiency(&op.op, launches))
}

fn op_floor(gpu: &GpuRates, op: &OpTime) -> OpFloor {
    let (floor_seconds, bound) = op.cost.floor(op.op, gpu.copy, gpu.product);
    OpFloor {
        op: op.op.into(),
        calls: op.calls,
        flops: op.cost.flops,
        bytes: op.cost.bytes,
        bound: if bound == Bound::Gemm { "product" } else { "copy" },
        floor_seconds,
    }
}

/// Limits per multiprocessor of compute capability 9.0 (CUDA programming guide, technical
/// specifications).
const MAX_THREADS: u32 = 2048;
const MAX_BLOCKS: u32 = 32;
const REGISTERS: u32 = 65536;
/// Registers are allocated per warp in units of this size.
const REGISTER_UNIT: u32 = 256;
const SHARED_BYTES: usize = 228 << 10;
/// Shared memory per block that the system reserves.
const SYSTEM_SHARED_BYTES: usize = 1 << 10;

/// Number of blocks that a multiprocessor holds at a time.
fn blocks_per_multiprocessor(threads: u32, registers: u32, shared_bytes: usize) -> u32 {
    let warps = threads.div_ceil(32);
    let of_block = warps * (registers * 32).next_multiple_of(REGISTER_UNIT);
    let by_shared = (SHARED_BYTES / (shared_bytes + SYSTEM_SHARED_BYTES)) as u32;
    (MAX_THREADS / threads).min(MAX_BLOCKS).min(REGISTERS / of_block.max(1)).min(by_shared)
}

fn launch_estimate(gpu: &GpuRates, launched: &Launched) -> LaunchEstimate {
    let threads = KERNELS.iter().find(|k| k.name == launched.kernel).map_or(0, |k| k.threads);
    let resources: Option<&Resources> = RESOURCES.iter().find(|r| r.kernel == launched.kernel && r.target == "sm_90a");
    let blocks_held =
        resources.map(|r| blocks_per_multiprocessor(threads, r.registers, launched.shared_bytes + r.shared as usize));
    let waves = blocks_held.map(|b| launched.blocks as f64 / (f64::from(b.max(1)) * gpu.processors as f64));
    LaunchEstimate {
        kernel: launched.kernel,
        launches: launched.count,
        tiles: launched.blocks,
        threads,
        shared_bytes: launched.shared_bytes,
        blocks_held,
        waves,
        efficiency: waves.map(|w| w / w.ceil()),
    }
}

/// Wave efficiency of an op's launches, weighted by their waves; 1 if unknown. Memory-bound ops
/// loop over rows with a grid stride, so their floors are not stretched.
fn wave_efficiency(op: &str, launches: &[LaunchEstimate]) -> f64 {
    if !uses_gemm_rate(op) {
        return 1.0;
    }
    let (mut waves, mut whole) = (0.0, 0.0);
    for launch in launches.iter().filter(|l| l.kernel.starts_with(op)) {
        if let Some(w) = launch.waves {
            waves += w * launch.launches as f64;
            whole += w.ceil() * launch.launches as f64;
        }
    }
    if whole > 0.0 { waves / whole } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multiprocessor_holds_what_its_scarcest_resource_allows() {
        // 128 threads of 168 registers: 4 warps of 5376, so 21504 per block and 3 blocks.
        assert_eq!(blocks_per_multiprocessor(128, 168, 0), 3);
        assert_eq!(blocks_per_multiprocessor(256, 32, 0), 8);
        assert_eq!(blocks_per_multiprocessor(32, 16, 0), 32);
        // 228 KiB hold two blocks of 100 KiB with the system's reserve.
        assert_eq!(blocks_per_multiprocessor(128, 32, 100 << 10), 2);
    }

    #[test]
    fn unfilled_waves_stretch_only_gemms() {
        let launch = |kernel, tiles: u64, waves: f64| LaunchEstimate {
            kernel,
            launches: 2,
            tiles,
            threads: 128,
            shared_bytes: 0,
            blocks_held: Some(1),
            waves: Some(waves),
            efficiency: Some(waves / waves.ceil()),
        };
        let launches = [launch("linear_fwd_bf16", 10, 1.25), launch("norm_fwd_bf16", 1, 0.1)];
        assert_eq!(wave_efficiency("linear_fwd", &launches), 0.625);
        assert_eq!(wave_efficiency("norm_fwd", &launches), 1.0);
        assert_eq!(wave_efficiency("linear_bwd_input", &launches), 1.0);
    }
}
