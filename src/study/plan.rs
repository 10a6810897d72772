//! Predicted minimum time (floor) of a training step on a GPU that need not be present.
//!
//! An op's floor is the larger of the times for its FLOPs and for its bytes (by its contract) at the GPU's
//! rates. The number of waves of a launch is its tiles divided by the blocks that the GPU holds at a time.
//! The step is rehearsed on a counting device (`backend::kernels::rehearsal`): host code, packing and op
//! calls are the same as in a real run.

pub mod decode;
mod estimates;
pub mod memory;
mod pair;
pub(crate) mod ranks;
mod waves;

use std::fmt::Write as _;

use half::bf16;
use serde::Serialize;

use crate::backend::Backend as _;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::Properties;
use crate::backend::kernels::rehearsal::Rehearsal;
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{LossOptions, Method};
use crate::model::config::{Head, ModelConfig};
use crate::model::decoder::Model;
use crate::model::lora::{Lora, LoraSpec};
use crate::optim::adamw::AdamWSettings;
use crate::perf::data_sheets::{DATA_SHEETS, data_sheet};
use crate::perf::predict::attention::{Family, Heads, Segments, seconds};
use crate::train::batch::packing::PackedStep;
use crate::train::step::Trainer;
use crate::{Error, Result};
use estimates::{gemm_estimates, op_floor, predicted};
use pair::synthetic_pair;
pub use waves::LaunchEstimate;
use waves::launch_estimate;

/// Rates of a GPU. `copy` and `product` are rates that good programs reach, and `peak` is the data sheet's.
/// All rates are inputs of the plan and are not measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuRates {
    /// Name of the GPU.
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
    /// Pairs of a step.
    pub pairs: usize,
    /// Prompt tokens.
    pub prompt: usize,
    /// Tokens per response.
    pub response: usize,
    /// Whether the step is DPO with a frozen reference; otherwise it trains a reward model.
    pub dpo: bool,
    /// Rank of adapters on all linear layers, if adapters are trained; the base is then the reference.
    pub lora_rank: Option<usize>,
}

/// Floor of an op of the step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpFloor {
    /// Name of the op.
    pub op: String,
    /// Calls in a step.
    pub calls: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that are moved.
    pub bytes: u64,
    /// Whichever takes longer: `product` (FLOPs) or `copy` (bytes).
    pub bound: &'static str,
    /// Floor in seconds.
    pub floor_seconds: f64,
    /// Predicted time: by tiles for GEMMs, by a simulated work list for attention, by bytes and
    /// latency for row-wise ops ([`crate::perf`]).
    pub predicted_seconds: f64,
}

/// GEMMs of one size with selected tiles, and their predicted time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GemmEstimate {
    /// Name of the op.
    pub op: &'static str,
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Calls in a step.
    pub calls: u64,
    /// Name of the tile.
    pub tile: &'static str,
    /// Number of splits of K.
    pub parts: usize,
    /// Tiles times splits, divided by the blocks or clusters that run at a time.
    pub waves: f64,
    /// Predicted seconds.
    pub predicted_seconds: f64,
}

/// Floors of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepPlan {
    /// The GPU.
    pub card: GpuRates,
    /// The work of a step.
    pub workload: Workload,
    /// Parameters of the model.
    pub parameters: usize,
    /// Parameters that are trained.
    pub trained_parameters: usize,
    /// Token rows; shared prompts count once.
    pub tokens: usize,
    /// Rows of the vocabulary head.
    pub head_rows: usize,
    /// Floors by op.
    pub ops: Vec<OpFloor>,
    /// Estimates by GEMM.
    pub products: Vec<GemmEstimate>,
    /// Launches by kernel.
    pub launches: Vec<LaunchEstimate>,
    /// FLOPs that recompute logits; the ops' FLOPs include them.
    pub recomputed_flops: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Floor in seconds.
    pub floor_seconds: f64,
    /// Sum of the ops' predicted times.
    pub predicted_seconds: f64,
    /// FLOP/s at the predicted time, as a share of the data sheet's FLOP/s.
    pub utilisation: f64,
    /// Bytes that ops use in addition to their operands, most of them for the vocabulary head.
    pub workspace_bytes: u64,
}

/// Settings of a planned step that are not part of a [`Workload`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// Maximum number of head rows at a time; `None` for the default of the kernels.
    pub head_rows: Option<usize>,
    /// Predicts the portable kernels, with RoPE as a separate op. The recorded step used them, so the
    /// prediction can be compared with that record.
    pub recorded_kernels: bool,
}

impl GpuRates {
    /// Returns the rates of a known GPU. The case of the name and the vendor's words around it ("NVIDIA H100
    /// PCIe") do not matter. If the form factor or memory size is missing, the first match in the list of
    /// data sheets is used.
    ///
    /// # Errors
    /// [`Error::Usage`] with the known names.
    pub fn named(name: &str) -> Result<Self> {
        let Some(gpu) = data_sheet(name) else {
            let known: Vec<&str> = DATA_SHEETS.iter().map(|gpu| gpu.name).collect();
            return Err(Error::Usage(format!(
                "--card {name}: not a known GPU; known GPUs are {}; for any other GPU, give --processors, --copy, \
                 --product and --peak",
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
    /// Returns the GPU's properties without a limit on multiprocessors, so that a grid has one block per tile
    /// of the work.
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

/// Maximum number of tokens of a rehearsed step; packing needs about 45 bytes per token.
const MAX_TOKENS: u128 = 1 << 25;

impl StepPlan {
    /// Rehearses a step of a bf16 model with this configuration.
    pub fn new(config: &ModelConfig, workload: &Workload, gpu: &GpuRates) -> Result<Self> {
        Self::with(config, workload, gpu, PlanOptions::default())
    }

    /// Like [`StepPlan::new`], with options.
    pub fn with(config: &ModelConfig, workload: &Workload, gpu: &GpuRates, options: PlanOptions) -> Result<Self> {
        let longest = workload.prompt + workload.response;
        if workload.pairs == 0 || workload.response == 0 || workload.prompt == 0 || longest > config.max_positions {
            return Err(Error::Usage(format!(
                "{} pairs with {} prompt and {} response tokens: each number must be at least 1, and prompt and response \
                 together at most {} tokens",
                workload.pairs, workload.prompt, workload.response, config.max_positions
            )));
        }
        let tokens = workload.pairs as u128 * (workload.prompt + 2 * workload.response) as u128;
        if tokens > MAX_TOKENS {
            return Err(Error::Usage(format!(
                "a step of {tokens} tokens: a plan rehearses at most {MAX_TOKENS} on this machine; use fewer pairs"
            )));
        }
        let mut config = config.clone();
        if !workload.dpo {
            config = if config.head == Head::Reward { config } else { config.into_reward(0)? };
        }
        let backend = Kernels::<_, bf16>::probed(Rehearsal::of(&gpu.unbounded()))
            .keeping_choices()
            .with_apart_rotations(options.recorded_kernels);
        backend.set_max_head_rows(options.head_rows.unwrap_or(0));
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
        let tree = packed.micro_batches()[0].batch.tree.clone();
        backend.device().take_launches();
        backend.op_times()?;
        backend.take_chosen();
        trainer.begin(packed, 0.0)?;
        let ops = backend.op_times()?;
        let launches = backend.device().take_launches();
        let products = gemm_estimates(gpu, &backend.take_chosen());
        let launches: Vec<LaunchEstimate> = launches.iter().map(|launched| launch_estimate(gpu, launched)).collect();
        let segments = Segments {
            starts: &tree.starts,
            offsets: &tree.ancestor_offsets,
            ancestors: &tree.ancestors,
            trees: &tree.trees,
        };
        let heads = Heads { heads: config.heads, kv_heads: config.kv_heads, head_dim: config.head_dim };
        let ops: Vec<OpFloor> = ops
            .iter()
            .map(|op| {
                let floor = op_floor(gpu, op);
                let predicted_seconds = match op.op {
                    "attention_fwd" | "attention_bwd" | "attention_rope_bwd" => {
                        let stem = op.op.replace("_rope", "");
                        let kernel = launches.iter().find(|l| l.kernel.starts_with(&stem)).map_or("", |l| l.kernel);
                        let family = match options.recorded_kernels {
                            true => Family::Recorded,
                            false => Family::of(kernel),
                        };
                        let call = seconds(family, stem == "attention_bwd", &segments, heads, gpu.processors);
                        call.map_or(floor.floor_seconds, |call| (op.calls as f64 * call).max(floor.floor_seconds))
                    }
                    _ => {
                        let launched = launches.iter().find(|l| l.kernel.starts_with(op.op));
                        let kernel = launched.filter(|_| !options.recorded_kernels).map_or(op.op, |l| l.kernel);
                        predicted(&floor, kernel, &products, &launches, (gpu, sizes.tokens))
                    }
                };
                OpFloor { predicted_seconds, ..floor }
            })
            .collect();
        let workspace = backend.scratch_bytes() as u64;
        Ok(Self::of(gpu, workload, (parameters, sizes.tokens, sizes.rows), ops, products, (launches, workspace)))
    }

    fn of(
        gpu: &GpuRates,
        workload: &Workload,
        ([parameters, trained_parameters], tokens, head_rows): ([usize; 2], usize, usize),
        ops: Vec<OpFloor>,
        products: Vec<GemmEstimate>,
        (launches, workspace_bytes): (Vec<LaunchEstimate>, u64),
    ) -> Self {
        let flops = ops.iter().map(|op| op.flops).sum();
        let floor_seconds = ops.iter().map(|op| op.floor_seconds).sum();
        let predicted_seconds = ops.iter().map(|op| op.predicted_seconds).sum::<f64>();
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
            workspace_bytes,
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
        let _ = writeln!(
            out,
            "{:<20} {:>6} {:>9} {:>9} {:>8} {:>12}  bound",
            "op", "calls", "TFLOP", "GB", "floor ms", "predicted ms"
        );
        for op in &self.ops {
            let _ = writeln!(
                out,
                "{:<20} {:>6} {:>9.3} {:>9.3} {:>8.3} {:>12.3}  {}",
                op.op,
                op.calls,
                op.flops as f64 / 1e12,
                op.bytes as f64 / 1e9,
                1e3 * op.floor_seconds,
                1e3 * op.predicted_seconds,
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
            "\n{:.1} TFLOP per step ({:.1} of recomputed logits); workspace of ops {:.2} GiB; floor {:.1} ms, predicted \
             {:.1} ms ({:.0} % of the data sheet's peak)",
            self.flops as f64 / 1e12,
            self.recomputed_flops as f64 / 1e12,
            self.workspace_bytes as f64 / f64::from(1 << 30),
            1e3 * self.floor_seconds,
            1e3 * self.predicted_seconds,
            100.0 * self.utilisation
        );
        out
    }
}
