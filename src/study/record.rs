//! A study of a training run: its steps and ops, with hardware readings. `study.json` stores it; an
//! unavailable value is null.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use crate::backend::probe::OpTime;
use crate::bench::rates::Rates;
use crate::bench::run::floor;
use crate::perf::hardware::Sample;
use crate::perf::hardware::sampler::Readings;
use crate::perf::observe::{Observations, StepTime};
use crate::perf::op_totals::WARM_UP;

/// Facts known before the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Facts {
    /// The command.
    pub command: String,
    /// Training method.
    pub method: String,
    /// `cpu`, `cuda`, `emulator`.
    pub backend: String,
    /// Name of the GPU or CPU.
    pub hardware: String,
    /// Storage of activations and weights.
    pub dtype: String,
    /// CPU threads.
    pub threads: usize,
    /// FLOP/s that utilisation is relative to; `None` if no reliable value is known.
    pub peak_flops: Option<f64>,
    /// Source of `peak_flops`.
    pub peak_source: String,
    /// Milliseconds between samples.
    pub sample_interval_ms: u64,
}

/// An op's totals over the steps after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpRow {
    /// Name of the op.
    pub op: String,
    /// Calls per step.
    pub calls: f64,
    /// Milliseconds of a mean step.
    pub milliseconds: f64,
    /// Share of the time of all steps.
    pub share_of_step: f64,
    /// Bytes of a mean step.
    pub bytes: f64,
    /// FLOPs of a mean step.
    pub flops: f64,
    /// Bandwidth, in 10^9 bytes per second.
    pub gb_per_s: f64,
    /// FLOP rate, in 10^12 per second.
    pub tflop_per_s: f64,
    /// Ceiling that limits the op: `memory` or `product` (GEMM); `None` if the ceilings are unknown.
    pub bound: Option<&'static str>,
    /// Rate as a share of the ceiling that limits the op; `None` if the ceilings are unknown.
    pub share_of_ceiling: Option<f64>,
}

/// A step on the sampler's clock.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRow {
    /// The step.
    #[serde(flatten)]
    pub step: StepTime,
    /// End of the step, in seconds since the sampler started.
    pub end_s: Option<f64>,
    /// Seconds outside ops.
    pub host_seconds: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Executed FLOPs divided by the FLOPs that the peak allows in the same time.
    pub utilisation: Option<f64>,
}

/// Energy of the steps after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Energy {
    /// Joules.
    pub joules: f64,
    /// `counter` of the GPU, or `power` integrated over time.
    pub source: &'static str,
    /// Joules per group.
    pub joules_per_group: f64,
}

/// Means over the steps after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Number of steps.
    pub steps: usize,
    /// Seconds of a mean step.
    pub step_seconds: f64,
    /// Tokens per second.
    pub tokens_per_s: f64,
    /// Groups per second.
    pub groups_per_s: f64,
    /// FLOPs of a mean step.
    pub flops_per_step: f64,
    /// FLOP rate, in 10^12 per second.
    pub tflop_per_s: f64,
    /// Share of the GPU's peak.
    pub utilisation: Option<f64>,
    /// Energy, if it was measured.
    pub energy: Option<Energy>,
}

/// Planned and used memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Planned bytes by part.
    pub planned: Vec<(String, u64)>,
    /// Planned bytes.
    pub planned_total: u64,
    /// Bytes used on a device with separate memory.
    pub taken: Option<u64>,
    /// Peak resident memory of the process.
    pub peak_resident: Option<u64>,
}

/// The complete study.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Study {
    /// Version of the file format.
    pub schema: u32,
    /// Facts of the run.
    pub facts: Facts,
    /// How the run ended: `finished`, or its error.
    pub outcome: String,
    /// Bytes per second of a copy, the memory ceiling.
    pub memory_bytes_per_s: Option<f64>,
    /// FLOP/s of a GEMM, the compute ceiling.
    pub product_flops_per_s: Option<f64>,
    /// The summary.
    pub summary: Option<Summary>,
    /// Totals by op.
    pub ops: Vec<OpRow>,
    /// Measured steps.
    pub steps: Vec<StepRow>,
    /// Memory.
    pub memory: Memory,
    /// Hardware readings that were unavailable, with the reason.
    pub missing: BTreeMap<String, String>,
    /// Samples of the hardware.
    pub samples: Vec<Sample>,
}

/// Version of `study.json`.
pub const SCHEMA: u32 = 1;

impl Study {
    /// Combines a run's reports with the hardware readings.
    pub fn new(facts: Facts, outcome: String, rates: Option<Rates>, seen: Observations, readings: Readings) -> Self {
        let peak = facts.peak_flops;
        let steps: Vec<StepRow> = seen.steps.iter().map(|step| step_row(step, readings.began, peak)).collect();
        let samples = readings.samples;
        let peak_resident = samples.iter().filter_map(|sample| sample.peak_resident_bytes).max();
        let memory = Memory {
            planned_total: seen.planned.iter().map(|part| part.1).sum(),
            planned: seen.planned,
            taken: seen.taken,
            peak_resident,
        };
        let warm = steps.get(WARM_UP..).unwrap_or_default();
        let summary = summary(warm, peak, &samples);
        let seconds: f64 = warm.iter().map(|row| row.step.seconds).sum();
        let row = |op: &OpTime| {
            let count = warm.len() as f64;
            let ceiling = rates.map(|rates| floor(op.op, op.cost.bytes, op.cost.flops, &rates));
            OpRow {
                op: op.op.into(),
                calls: op.calls as f64 / count,
                milliseconds: 1e3 * op.seconds / count,
                share_of_step: op.seconds / seconds,
                bytes: op.cost.bytes as f64 / count,
                flops: op.cost.flops as f64 / count,
                gb_per_s: 1e-9 * op.cost.bytes as f64 / op.seconds,
                tflop_per_s: 1e-12 * op.cost.flops as f64 / op.seconds,
                bound: ceiling.map(|(_, bound)| bound),
                share_of_ceiling: ceiling.map(|(floor, _)| floor / op.seconds),
            }
        };
        let mut ops: Vec<OpRow> = seen.ops.ops().iter().filter(|op| op.seconds > 0.0).map(row).collect();
        ops.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        Self {
            schema: SCHEMA,
            facts,
            outcome,
            memory_bytes_per_s: rates.map(|rates| rates.memory),
            product_flops_per_s: rates.map(|rates| rates.product),
            summary,
            ops,
            steps,
            memory,
            missing: readings.missing.into_iter().collect(),
            samples,
        }
    }
}

fn step_row(step: &StepTime, began: Option<Instant>, peak: Option<f64>) -> StepRow {
    StepRow {
        end_s: began.map(|began| step.finished.saturating_duration_since(began).as_secs_f64()),
        host_seconds: (step.seconds - step.op_seconds).max(0.0),
        tokens_per_s: step.tokens as f64 / step.seconds,
        utilisation: peak.map(|peak| step.flops as f64 / step.seconds / peak),
        step: step.clone(),
    }
}

fn summary(warm: &[StepRow], peak: Option<f64>, samples: &[Sample]) -> Option<Summary> {
    if warm.is_empty() {
        return None;
    }
    let sum = |of: fn(&StepTime) -> f64| warm.iter().map(|row| of(&row.step)).sum::<f64>();
    let seconds = sum(|step| step.seconds);
    let (flops, groups) = (sum(|step| step.flops as f64), sum(|step| step.groups as f64));
    Some(Summary {
        steps: warm.len(),
        step_seconds: seconds / warm.len() as f64,
        tokens_per_s: sum(|step| step.tokens as f64) / seconds,
        groups_per_s: groups / seconds,
        flops_per_step: flops / warm.len() as f64,
        tflop_per_s: 1e-12 * flops / seconds,
        utilisation: peak.map(|peak| flops / seconds / peak),
        energy: energy(warm, samples, groups),
    })
}

/// Largest plausible ratio of the mean power by the energy counter to the power limit.
const OVER_LIMIT: f64 = 1.05;

/// Returns the energy of the span from the start of the first step in `warm` to the end of its last step.
/// Prefers the GPU's energy counter: the energy between its first and its last advance in the span. If that
/// implies a power above the power limit, or the counter advances less than twice, sampled power is integrated
/// by the trapezoidal rule. Either energy is scaled to the length of the span.
fn energy(warm: &[StepRow], samples: &[Sample], groups: f64) -> Option<Energy> {
    let first = warm.first()?;
    let (from, to) = (first.end_s? - first.step.seconds, warm.last()?.end_s?);
    let within = |sample: &&Sample| (from..=to).contains(&sample.time_s);
    let of = |joules: f64, covered: f64, source| {
        let joules = joules * (to - from) / covered;
        (covered > 0.0).then(|| Energy { joules, source, joules_per_group: joules / groups })
    };
    let counted: Vec<(f64, f64)> =
        samples.iter().filter(within).filter_map(|sample| Some((sample.time_s, sample.energy_j?))).collect();
    let advances: Vec<(f64, f64)> =
        counted.windows(2).filter(|pair| pair[1].1 > pair[0].1).map(|pair| pair[1]).collect();
    let limit = samples.iter().filter_map(|sample| sample.power_limit_w).reduce(f64::max);
    if let (Some(a), Some(b)) = (advances.first(), advances.last())
        && b.0 > a.0
        && limit.is_none_or(|limit| (b.1 - a.1) / (b.0 - a.0) <= OVER_LIMIT * limit)
    {
        return of(b.1 - a.1, b.0 - a.0, "counter");
    }
    let power: Vec<(f64, f64)> =
        samples.iter().filter(within).filter_map(|sample| Some((sample.time_s, sample.power_w?))).collect();
    let joules = power.windows(2).map(|pair| (pair[1].0 - pair[0].0) * 0.5 * (pair[0].1 + pair[1].1)).sum();
    of(joules, power.last()?.0 - power.first()?.0, "power")
}
