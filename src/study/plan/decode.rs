//! Predicted minimum time (floor) of a decoding step: one new token for each of several sequences, with their
//! keys and values in the KV cache.
//!
//! A step reads every weight once and every cache row of its sequences, so its floor by bytes is the sum of
//! both divided by the copy bandwidth. The plan also lists the floors of the ops by their contracts.

use std::fmt::Write as _;

use half::bf16;
use serde::Serialize;

use super::estimates::{gemm_estimates, op_floor, predicted};
use super::{GemmEstimate, GpuRates, LaunchEstimate, OpFloor, launch_estimate};
use crate::backend::contract::Paths;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::rehearsal::Rehearsal;
use crate::backend::{Backend as _, View};
use crate::model::activations::{Activations, Mode};
use crate::model::config::ModelConfig;
use crate::model::decoder::Model;
use crate::model::decoder_cached::{CachedInputs, KvCache, LastLogits, Seen};
use crate::{Error, Result};

/// A decoding step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecodePlan {
    /// The GPU.
    pub card: GpuRates,
    /// Number of sequences decoded together.
    pub rows: usize,
    /// Tokens of a sequence at this step, including the new one.
    pub context: usize,
    /// Parameters of the model.
    pub parameters: usize,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of the cached keys and values that the step reads.
    pub cache_bytes: u64,
    /// Weight and cache bytes divided by the copy bandwidth.
    pub byte_floor_seconds: f64,
    /// Floors by op.
    pub ops: Vec<OpFloor>,
    /// Estimates by GEMM.
    pub products: Vec<GemmEstimate>,
    /// Launches by kernel.
    pub launches: Vec<LaunchEstimate>,
    /// Sum of the ops' floors.
    pub floor_seconds: f64,
    /// Sum of the ops' predicted times.
    pub predicted_seconds: f64,
}

impl DecodePlan {
    /// Rehearses a step of a bf16 model for `rows` sequences of `context` tokens.
    ///
    /// # Errors
    /// [`Error::Usage`] for numbers that are 0 or beyond the model's positions.
    pub fn new(config: &ModelConfig, rows: usize, context: usize, gpu: &GpuRates) -> Result<Self> {
        if rows == 0 || context == 0 || context > config.max_positions {
            return Err(Error::Usage(format!(
                "{rows} sequences of {context} tokens: both numbers must be at least 1, and the model supports at most \
                 {} tokens per sequence",
                config.max_positions
            )));
        }
        let backend = Kernels::<_, bf16>::probed(Rehearsal::of(&gpu.unbounded())).keeping_choices();
        let model = Model::zeros(&backend, config.clone(), context)?;
        let slots = rows * context;
        // Keys that a new token sees in each layer.
        let windows: Vec<usize> =
            (0..config.layers).map(|i| config.window(i).map_or(context, |window| window.min(context))).collect();
        let all = |keys: usize| Seen { pairs: (rows * keys) as u64, keys: (rows * keys) as u64 };
        let mut cache = KvCache::new(&backend, config, slots)?;
        let mut acts = Activations::new(&backend, config, Mode::Infer, rows)?;
        let mut out = LastLogits::new(&backend)?;
        // A rehearsal does not read index values, so all index inputs share one table of zeros.
        let table = backend.zeros_idx(2 * rows + 2)?;
        let view = |len: usize| View::first(&table, len);
        let inputs = CachedInputs {
            ids: view(rows),
            positions: view(rows),
            paths: Paths {
                starts: view(rows + 1),
                span_offsets: view(rows + 1),
                spans: view(2 * rows),
                slots: view(rows),
            },
            last: view(rows),
            sequences: rows,
            spans: rows,
            seen: all(context),
            seen_in_window: all(windows.iter().copied().min().unwrap_or(context)),
            longest_path: context,
        };
        backend.device().take_launches();
        backend.op_times()?;
        backend.take_chosen();
        model.forward_cached(&backend, &inputs, &mut acts, &mut cache, &mut out)?;
        let floors: Vec<OpFloor> = backend.op_times()?.iter().map(|op| op_floor(gpu, op)).collect();
        let launches: Vec<LaunchEstimate> =
            backend.device().take_launches().iter().map(|launched| launch_estimate(gpu, launched)).collect();
        let products = gemm_estimates(gpu, &backend.take_chosen());
        let seconds = |op: &OpFloor| predicted(op, &op.op, &products, &launches, (gpu, rows));
        let ops: Vec<OpFloor> =
            floors.into_iter().map(|op| OpFloor { predicted_seconds: seconds(&op), ..op }).collect();
        let parameters = model.layout.len;
        let weight_bytes = 2 * parameters as u64;
        let row_bytes = KvCache::<Kernels<Rehearsal, bf16>>::row_bytes(config);
        let cache_bytes = (rows * windows.iter().sum::<usize>()) as u64 * row_bytes / config.layers as u64;
        Ok(Self {
            card: gpu.clone(),
            rows,
            context,
            parameters,
            weight_bytes,
            cache_bytes,
            byte_floor_seconds: (weight_bytes + cache_bytes) as f64 / gpu.copy,
            floor_seconds: ops.iter().map(|op| op.floor_seconds).sum(),
            predicted_seconds: ops.iter().map(|op| op.predicted_seconds).sum(),
            ops,
            products,
            launches,
        })
    }

    /// The plan as text for a terminal.
    pub fn text(&self) -> String {
        let gpu = &self.card;
        let mut out = format!(
            "decoding step of {} sequences with {} tokens each: {:.1} M parameters, {:.3} GB of weights, {:.3} GB of \
             the cache\n{}: copy {:.2} TB/s, GEMM {:.0} TFLOP/s\n\n",
            self.rows,
            self.context,
            self.parameters as f64 / 1e6,
            self.weight_bytes as f64 / 1e9,
            self.cache_bytes as f64 / 1e9,
            gpu.name,
            gpu.copy / 1e12,
            gpu.product / 1e12
        );
        let _ = writeln!(
            out,
            "{:<22} {:>6} {:>9} {:>9} {:>9} {:>12}  bound",
            "op", "calls", "GFLOP", "MB", "floor us", "predicted us"
        );
        for op in &self.ops {
            let _ = writeln!(
                out,
                "{:<22} {:>6} {:>9.3} {:>9.3} {:>9.1} {:>12.1}  {}",
                op.op,
                op.calls,
                op.flops as f64 / 1e9,
                op.bytes as f64 / 1e6,
                1e6 * op.floor_seconds,
                1e6 * op.predicted_seconds,
                op.bound
            );
        }
        let rate = |seconds: f64| self.rows as f64 / seconds;
        let _ = write!(
            out,
            "\nfloor by the bytes of weights and cache {:.3} ms ({:.0} tokens/s); sum of the ops' floors {:.3} ms ({:.0} \
             tokens/s); predicted {:.3} ms ({:.0} tokens/s)",
            1e3 * self.byte_floor_seconds,
            rate(self.byte_floor_seconds),
            1e3 * self.floor_seconds,
            rate(self.floor_seconds),
            1e3 * self.predicted_seconds,
            rate(self.predicted_seconds)
        );
        out
    }
}
