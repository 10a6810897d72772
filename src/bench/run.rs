//! A benchmark run: verifies and times the selected calls of the table on a backend and returns the
//! rows of a record.

use std::time::{Duration, Instant};

use half::bf16;

use super::compare::{Verdict, compare};
use super::entry::Entry;
use super::measure::Effort;
use super::operand::OperandSet;
use super::own::{OwnContender, launching};
use super::rates::{BenchBackend, Rates};
use super::row::{Cache, Row};
use super::shapes::{Case, MODELS, SQUARE, SizeLimits, cases, squares};
use super::work::rotated::RotatedAttention;
use super::work::{Call, Work};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::{Bound, Cost, Precision, uses_gemm_rate};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Element, Properties};
use crate::backend::kernels::rehearsal::Rehearsal;
use crate::perf::data_sheets::data_sheet;
use crate::perf::predict::attention::Family;
use crate::perf::predict::row_wise;

/// Selection of the calls, sampling limits, and labels of the rows.
#[derive(Clone, Debug)]
pub(crate) struct BenchOptions {
    /// Prefixes of op names; empty selects all ops.
    pub ops: Vec<String>,
    pub models: Vec<String>,
    pub tokens: Vec<usize>,
    /// Layer names or `name=value` sizes; a call must match one of them. Empty selects all calls.
    pub shapes: Vec<String>,
    /// Prefixes of contender names; empty selects all.
    pub variants: Vec<String>,
    /// Sampling effort of all passes combined.
    pub effort: Effort,
    /// Passes over the table. With several passes, a machine that is slow for some seconds widens
    /// the spread of the rows instead of shifting the medians of a few.
    pub passes: usize,
    /// A call is skipped if its minimum samples take longer than this even at the floor.
    pub max_duration: Duration,
    /// Total bytes of the rotating operand sets, if memory allows.
    pub rotated_bytes: u64,
    pub size_limits: SizeLimits,
    /// Minimum seconds for which a call is repeated to measure its energy, if the hardware has an energy counter.
    /// With 0, energy is not measured.
    pub energy_seconds: f64,
    /// Time after which no call is started.
    pub limit: Option<Duration>,
    pub date: String,
    pub commit: String,
    /// Custom kernels; only calls that launch them are run.
    pub own: Option<OwnContender>,
}

/// Name of this project's ops in records.
pub(super) const OWN_VARIANT: &str = "mapl";

/// Interval between measurements of the ceilings. Clocks, and the load by other users of the machine, change
/// during a run.
const CEILING_INTERVAL: Duration = Duration::from_secs(30);

impl BenchOptions {
    fn any(wanted: &[String], is: impl Fn(&str) -> bool) -> bool {
        wanted.is_empty() || wanted.iter().any(|text| is(text))
    }

    /// Calls that these options select, on a backend of this precision.
    pub fn cases(&self, precision: Precision) -> Vec<Case> {
        let models = MODELS.iter().filter(|model| self.models.iter().any(|name| name == model.name));
        let of_model = |model| self.tokens.iter().flat_map(move |&t| cases(model, t, precision, self.size_limits));
        let mut chosen: Vec<Case> = models.flat_map(of_model).collect();
        if self.models.iter().any(|name| name == SQUARE) {
            chosen.extend(squares());
        }
        chosen.retain(|case| {
            Self::any(&self.ops, |text| case.work.op().starts_with(text))
                && Self::any(&self.shapes, |text| case.answers(text))
        });
        // Calls whose sizes do not depend on the number of tokens appear once.
        let mut seen = std::collections::BTreeSet::new();
        chosen.retain(|case| seen.insert((case.work.op(), case.model, case.layer, case.shape())));
        chosen
    }

    /// Calls that these options select on a backend. With custom kernels, only the calls that launch them.
    pub fn cases_on<B: Backend>(&self, on: &B) -> Result<Vec<Case>> {
        let cases = self.cases(B::PRECISION);
        match (&self.own, on.kernel_properties()) {
            (Some(own), Some(gpu)) => Ok(launching(cases, own.kernels, gpu, B::PRECISION)?.0),
            _ => Ok(cases),
        }
    }

    /// Whether a contender of this name is selected.
    pub fn selects(&self, variant: &str) -> bool {
        Self::any(&self.variants, |text| variant.to_lowercase().starts_with(&text.to_lowercase()))
    }
}

/// An earlier record, and the relative difference of times that is ignored.
pub type Baseline<'a> = (&'a [Row], f64);

/// Progress of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Index of the pass, from 0.
    pub pass: usize,
    /// Start and end of the samples just taken; `None` for a call that is not timed.
    pub timed: Option<(Instant, Instant)>,
}

/// Runs the selected calls on a backend. Each of `passes` passes covers all calls. Up to `passes` more passes
/// repeat the calls that differ from the earlier record or were disturbed. `report` receives the progress and
/// the rows of a call over all passes so far.
pub(crate) fn run<B: BenchBackend>(
    on: &B,
    options: &BenchOptions,
    earlier: Option<Baseline<'_>>,
    mut report: impl FnMut(Progress, &[Row]) -> Result<()>,
) -> Result<Vec<Row>> {
    let mut rates = on.rates()?;
    let began = Instant::now();
    let mut measured = began;
    let passes = options.passes.max(1);
    let cases = options.cases_on(on)?;
    let mut entries: Vec<Entry> = Vec::new();
    on.with_peers(|peers| {
        for pass in 0..2 * passes {
            for (at, case) in cases.iter().enumerate() {
                if options.limit.is_some_and(|limit| began.elapsed() > limit) {
                    return Ok(());
                }
                if pass >= passes && !entries[at].needs_more_samples(earlier) {
                    continue;
                }
                if rates.is_some() && measured.elapsed() > CEILING_INTERVAL {
                    rates = max_rates(rates, on.rates()?);
                    measured = Instant::now();
                }
                if pass == 0 {
                    entries.push(Entry::new(on, case, options, peers, rates)?);
                } else if !entries[at].sample_again(on, options, peers)? {
                    continue;
                }
                entries[at].rows_mut().for_each(|row| set_share(row, rates));
                report(Progress { pass, timed: entries[at].last_span() }, &entries[at].rows())?;
            }
        }
        Ok(())
    })?;
    let mut rows: Vec<Row> = entries.iter().flat_map(Entry::rows).collect();
    // A GEMM of the table may have been faster than the GEMMs of the ceilings.
    if let Some(rates) = &mut rates {
        let best = rows.iter().filter_map(|row| row.tflop_per_s).fold(0.0, f64::max) * 1e12;
        *rates = rates.or(Rates { memory: 0.0, product: best });
    }
    rates = max_rates(rates, on.rates()?);
    rows.iter_mut().for_each(|row| set_share(row, rates));
    Ok(rows)
}

/// Whether a row is slower or faster than in the earlier record, or was disturbed, so that more
/// samples may settle it.
pub fn needs_more_samples(rows: &[Row], earlier: Option<Baseline<'_>>) -> bool {
    earlier.is_some_and(|(earlier, threshold)| {
        let pairs = compare(rows, earlier, threshold);
        pairs.iter().any(|pair| matches!(pair.verdict, Verdict::Slower | Verdict::Faster | Verdict::Disturbed))
    })
}

fn max_rates(a: Option<Rates>, b: Option<Rates>) -> Option<Rates> {
    Some(a?.or(b?))
}

/// Predicted time and workspace of a call on a GPU.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prediction {
    /// Predicted microseconds, if the call has a prediction.
    pub microseconds: Option<f64>,
    /// Bytes of memory in addition to the operands.
    pub workspace: usize,
}

/// Predicts a bf16 call from a dry run on a GPU with these properties, with at most `head_rows` head rows at
/// once (0: the default). Row-wise ops are predicted at the copy rate of the GPU's data sheet.
pub(super) fn predict(work: &Work, gpu: &Properties, head_rows: usize) -> Result<Prediction> {
    let on = Kernels::<_, bf16>::new(Rehearsal::of(gpu)).keeping_choices().with_head_rows(head_rows);
    let mut set = OperandSet::new(&on, &work.operands())?;
    on.take_chosen();
    on.device().take_launches();
    work.call(&on, set.cursor())?;
    let chosen = on.take_chosen();
    let launched = on.device().take_launches();
    let copy = data_sheet(&gpu.name).map(|gpu| gpu.copy());
    let seconds = match work {
        _ if !chosen.is_empty() => Some(chosen.iter().map(|c| c.choice.seconds).sum::<f64>()),
        Work::Attention(call) | Work::RotatedAttention(RotatedAttention { attention: call, .. }) => {
            let kernel = launched.iter().find(|l| l.kernel.starts_with(call.op())).map_or("", |l| l.kernel);
            call.predicted(Family::of(kernel), gpu.processors).filter(|_| gpu.compute_capability == (9, 0))
        }
        _ if uses_gemm_rate(work.op()) || work.op() == "attention_cached_fwd" => None,
        _ => copy.and_then(|copy| {
            let tokens = work.sizes().iter().find(|(name, _)| *name == "tokens").map_or(0, |&(_, size)| size);
            let bytes = cost(work, Precision::Bf16).ok()?.bytes;
            let kernel = launched.iter().find(|l| l.kernel.starts_with(work.op())).map_or(work.op(), |l| l.kernel);
            Some(row_wise(kernel, 1, bytes, tokens, (copy, gpu.processors)))
        }),
    };
    // Time of a rotation that runs as a separate op.
    let pass = work.rotation().filter(|_| launched.iter().any(|l| l.kernel.starts_with("rope_")));
    let pass = pass.zip(copy).map(|(dims, copy)| {
        let bytes = dims.bytes(Precision::Bf16);
        row_wise("rope_fwd", 1, bytes, dims.tokens, (copy, gpu.processors))
    });
    let seconds = seconds.map(|seconds| seconds + pass.unwrap_or(0.0));
    Ok(Prediction { microseconds: seconds.map(|seconds| 1e6 * seconds), workspace: on.scratch_bytes() })
}

/// Bytes and FLOPs of a call by its contract, from a rehearsal on a counting device.
pub fn cost(work: &Work, precision: Precision) -> Result<Cost> {
    fn priced<A: Element>(work: &Work) -> Result<Cost> {
        let properties =
            Properties { name: "price".into(), processors: 1, shared_bytes: 227 << 10, compute_capability: (9, 0) };
        let on = Kernels::<_, A>::probed(Rehearsal::of(&properties));
        let mut set = OperandSet::new(&on, &work.operands())?;
        work.call(&on, set.cursor())?;
        let times = on.op_times()?;
        Ok(times
            .iter()
            .map(|time| time.cost)
            .fold(Cost::default(), |sum, cost| Cost { bytes: sum.bytes + cost.bytes, flops: sum.flops + cost.flops }))
    }
    if precision == Precision::Bf16 { priced::<bf16>(work) } else { priced::<f32>(work) }
}

/// Floor of a call in seconds at these rates, and the name of the rate that sets it.
pub(crate) fn floor(op: &str, bytes: u64, flops: u64, rates: &Rates) -> (f64, &'static str) {
    let (seconds, bound) = Cost { bytes, flops }.floor(op, rates.memory, rates.product);
    (seconds, if bound == Bound::Gemm { "product" } else { "memory" })
}

/// Writes the ceilings, and the floor's share of the median, into a row.
fn set_share(row: &mut Row, rates: Option<Rates>) {
    let (Some(rates), Some(bytes), Some(flops)) = (rates, row.bytes, row.flops) else { return };
    let (seconds, bound) = floor(&row.op, bytes, flops, &rates);
    row.bound = Some(bound.into());
    row.memory_gb_per_s = Some(rates.memory * 1e-9);
    row.product_tflop_per_s = Some(rates.product * 1e-12);
    // Memory bandwidth does not bound operands that a cache holds.
    let known = bound == "product" || row.cache == Some(Cache::Cold);
    row.share = row.median_us.filter(|_| known).map(|median| 1e6 * seconds / median);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::contract::NormDims;
    use crate::bench::shapes::small;
    use crate::bench::work::head::Head;
    use crate::bench::work::head_preference::PreferenceHead;
    use crate::bench::work::norm::Norm;

    /// The workspace of the head keeps the limits of the goals G-HEAD-1 and G-HEAD-4.
    #[test]
    fn workspace_of_the_head_on_a_hopper_gpu() {
        let gpu = Properties { name: "h".into(), processors: 132, shared_bytes: 227 << 10, compute_capability: (9, 0) };
        let workspace = |work: Work| predict(&work, &gpu, 0).unwrap().workspace;
        let forward = workspace(Head::new(false, 16_384, 1152, 262_144).into());
        assert!((1..=64 << 20).contains(&forward), "{forward}");
        let both = workspace(PreferenceHead::new(16_384, 896, 151_936).into());
        // The exponentials of a chunk of at least 4,096 rows are stored.
        assert!((4096 * 151_936 * 2..=5 << 29).contains(&both), "{both}");
        let norm = Norm { backward: false, dims: NormDims { tokens: 64, hidden: 64, eps: 1e-6, offset: 0.0 } };
        assert_eq!(workspace(norm.into()), 0);
    }

    /// With 2048 head rows at once, the head needs at most 0.6 GiB and at most 5 % more predicted time.
    #[test]
    fn the_head_needs_little_memory_at_little_time() {
        let gpu = Properties { name: "h".into(), processors: 132, shared_bytes: 227 << 10, compute_capability: (9, 0) };
        let work: Work = PreferenceHead::new(8192, 896, 151_936).into();
        let [most, few] = [0, 2048].map(|rows| predict(&work, &gpu, rows).unwrap());
        assert!(few.workspace as f64 <= 0.6 * f64::from(1 << 30) && most.workspace > 2 << 30, "{few:?} {most:?}");
        let ratio = few.microseconds.unwrap() / most.microseconds.unwrap();
        assert!((1.0..=1.05).contains(&ratio), "{ratio}");
    }

    /// Ops with GEMMs are left out: they have a prediction only if the Hopper kernels support their sizes.
    #[test]
    fn attention_and_row_wise_ops_have_a_prediction() {
        let gpu =
            Properties { name: "h200".into(), processors: 132, shared_bytes: 227 << 10, compute_capability: (9, 0) };
        for work in small(Precision::Bf16) {
            let attention = work.op() == "attention_fwd" || work.op() == "attention_bwd";
            if attention || !uses_gemm_rate(work.op()) && work.op() != "attention_cached_fwd" {
                let prediction = predict(&work, &gpu, 0).unwrap();
                assert!(prediction.microseconds.is_some_and(|us| us > 1.0), "{}: {prediction:?}", work.op());
            }
        }
    }
}
