//! State of one call of the table during a run: its contenders, their samples so far, and their
//! rows.

use std::time::Instant;

use super::energy::{Energy, energy};
use super::measure::{PreparedCall, Samples, TimedCall, Timing, interleaved};
use super::operand::{Operand, OperandSet};
use super::own::OwnContender;
use super::rates::{BenchBackend, Peers, Rates};
use super::row::{Cache, Row, Status};
use super::run::{Baseline, BenchOptions, OWN_VARIANT, Prediction, cost, floor, needs_more_samples, predict};
use super::shapes::Case;
use super::verify::Oracle;
use super::work::{Call, Work};
use crate::Result;
use crate::backend::contract::{Bound, Cost, Precision, uses_gemm_rate};
use crate::backend::kernels::own;
use crate::perf::hardware::host::OtherLoad;

/// Maximum number of operand sets that a call rotates over.
const MAX_SETS: u64 = 4096;

/// A contender's row and its samples.
struct ContenderState {
    row: Row,
    /// `None` if the contender is not timed.
    samples: Option<Samples>,
    /// Seconds of each sample divided by those of the yardstick sample next to it.
    paced: Vec<f64>,
}

/// A call with its contenders: this project's op and the peers' ops.
pub struct Entry {
    case: Case,
    cost: Cost,
    prediction: Prediction,
    /// Bound of the yardstick that is timed next to the call: memory or GEMM.
    yardstick: Bound,
    lanes: Vec<ContenderState>,
    /// Start and end of the samples of the last pass.
    last_span: Option<(Instant, Instant)>,
    /// CPU seconds that other programs used in all passes, and the elapsed seconds of the passes.
    load: (f64, f64),
}

/// Name of a contender and its prepared call.
type Contender<'a, B> = (String, Box<TimedCall<'a, B>>);

impl Entry {
    /// Verifies every contender and takes the samples of the first pass.
    pub fn new<B: BenchBackend>(
        on: &B,
        case: &Case,
        options: &BenchOptions,
        peers: &Peers<'_, B>,
        rates: Option<Rates>,
    ) -> Result<Self> {
        let cost = cost(&case.work, B::PRECISION)?;
        let prediction = match on.kernel_properties() {
            Some(gpu) if B::PRECISION == Precision::Bf16 => predict(&case.work, gpu, 0)?,
            _ => Prediction::default(),
        };
        let (lanes, last_span, load) = (Vec::new(), None, (0.0, 0.0));
        let bound = if uses_gemm_rate(case.work.op()) { Bound::Gemm } else { Bound::Memory };
        let mut entry = Self { case: case.clone(), cost, prediction, yardstick: bound, lanes, last_span, load };
        if matches!(case.work, Work::Linear(_)) {
            for (name, why) in peers.absent.iter().filter(|(name, _)| options.selects(name)) {
                entry.push_untimed(on, options, name, Status::Absent, why.clone());
            }
        }
        let operands = case.work.operands();
        if let Some(why) = skip_reason(on, case.work.op(), bytes::<B>(&operands), cost, options, rates) {
            entry.push_untimed(on, options, OWN_VARIANT, Status::Skipped, why);
            return Ok(entry);
        }
        let mut sets = entry.sets(on, options, &operands)?;
        let oracle = Oracle::new(on, &case.work, &sets[0])?;
        let mut checked: Vec<(Contender<'_, B>, f64)> = Vec::new();
        for (name, call) in contenders(case, options, peers, on, &mut sets[0]) {
            let share = call.and_then(|call| {
                let Some(call) = call else { return Ok(None) };
                oracle.reset(on, &case.work, &mut sets[0])?;
                call(on, &mut sets[0])?;
                let share = oracle.check(on, &case.work, &sets[0])?;
                Ok(Some((call, share)))
            });
            match share {
                Ok(None) => {}
                Ok(Some((call, share))) => checked.push(((name, call), share)),
                Err(why) => entry.push_untimed(on, options, &name, Status::Failed, why.to_string()),
            }
        }
        // Bytes that the calls touch. An embedding call touches only a small part of its table.
        let cold = sets.len() as u64 * cost.bytes.min(bytes::<B>(&operands)) >= on.cold_bytes();
        for ((name, _), share) in &checked {
            let workspace = entry.prediction.workspace;
            let note = if name == OWN_VARIANT && workspace > 0 {
                format!("workspace {} MiB", workspace >> 20)
            } else if let Some(own) = options.own.as_ref().filter(|own| own.name == *name) {
                own.kernels.label()
            } else {
                String::new()
            };
            let note = match own::used_on(B::NAME) {
                Some(own) if name == OWN_VARIANT => {
                    [note, format!("{}: {}", own::VARIABLE, own.label())].join(" ").trim_start().to_owned()
                }
                _ => note,
            };
            let mut row = entry.empty_row(on, options, name, Status::Measured, note);
            row.cache = Some(if cold { Cache::Cold } else { Cache::Warm });
            row.error_share = Some(*share);
            entry.lanes.push(ContenderState { row, samples: None, paced: Vec::new() });
        }
        let calls: Vec<Contender<'_, B>> = checked.into_iter().map(|(contender, _)| contender).collect();
        entry.sample(on, options, &calls, &mut sets)?;
        for (name, call) in &calls {
            let Some(lane) = entry.lane(name) else { continue };
            let Some(timing) = lane.samples.as_ref().map(Timing::of) else { continue };
            let (median, seconds) = (timing.median, options.energy_seconds);
            match energy(on, &**call, &mut sets, median, seconds, B::joules, on.power_limit())? {
                Energy::Unavailable => {}
                Energy::Joules(joules) => lane.row.energy_mj = Some(1e3 * joules),
                Energy::Implausible(why) if lane.row.note.is_empty() => lane.row.note = why,
                Energy::Implausible(why) => lane.row.note = format!("{}; {why}", lane.row.note),
            }
        }
        Ok(entry)
    }

    /// Takes the samples of one more pass. Returns false if no contender of the call is timed.
    pub fn sample_again<B: BenchBackend>(
        &mut self,
        on: &B,
        options: &BenchOptions,
        peers: &Peers<'_, B>,
    ) -> Result<bool> {
        if self.lanes.iter().all(|lane| lane.samples.is_none()) {
            return Ok(false);
        }
        let case = self.case.clone();
        let operands = case.work.operands();
        let mut sets = self.sets(on, options, &operands)?;
        let mut calls = Vec::new();
        for (name, call) in contenders(&case, options, peers, on, &mut sets[0]) {
            if self.lane(&name).is_some_and(|lane| lane.samples.is_some())
                && let Some(call) = call?
            {
                calls.push((name, call));
            }
        }
        self.sample(on, options, &calls, &mut sets)?;
        Ok(true)
    }

    /// Rows so far.
    pub fn rows(&self) -> Vec<Row> {
        self.lanes.iter().map(|lane| lane.row.clone()).collect()
    }

    /// Start and end of the samples of the last pass, or `None` if nothing was timed.
    pub fn last_span(&self) -> Option<(Instant, Instant)> {
        self.last_span
    }

    /// Rows so far, mutable.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut Row> {
        self.lanes.iter_mut().map(|lane| &mut lane.row)
    }

    /// Whether more samples could change the verdict against an earlier record.
    pub fn needs_more_samples(&self, earlier: Option<Baseline<'_>>) -> bool {
        needs_more_samples(&self.rows(), earlier)
    }

    fn lane(&mut self, name: &str) -> Option<&mut ContenderState> {
        self.lanes.iter_mut().find(|lane| lane.row.variant == name && lane.row.status == Status::Measured)
    }

    fn push_untimed<B: BenchBackend>(
        &mut self,
        on: &B,
        options: &BenchOptions,
        name: &str,
        status: Status,
        note: String,
    ) {
        let row = self.empty_row(on, options, name, status, note);
        self.lanes.push(ContenderState { row, samples: None, paced: Vec::new() });
    }

    /// Allocates and initialises the operand sets that calls rotate over.
    fn sets<B: BenchBackend>(
        &self,
        on: &B,
        options: &BenchOptions,
        operands: &[Operand],
    ) -> Result<Vec<OperandSet<B>>> {
        let bytes = bytes::<B>(operands).max(1);
        let room = on.memory_free().unwrap_or(u64::MAX) / 2;
        let count = options.rotated_bytes.div_ceil(bytes).min(room / bytes).clamp(1, MAX_SETS);
        let one = || {
            let mut set = OperandSet::new(on, operands)?;
            set.initialise(on, &self.case.work, operands)?;
            Ok(set)
        };
        (0..count).map(|_| one()).collect()
    }

    /// Takes the samples of one pass, interleaving the contenders, and appends them to the earlier
    /// samples.
    fn sample<B: BenchBackend>(
        &mut self,
        on: &B,
        options: &BenchOptions,
        calls: &[Contender<'_, B>],
        sets: &mut [OperandSet<B>],
    ) -> Result<()> {
        let yardstick = on.yardstick(self.yardstick);
        let timed: Vec<&TimedCall<'_, B>> = calls.iter().map(|(_, call)| &**call).chain(yardstick.as_deref()).collect();
        let (load, began) = (OtherLoad::start(), Instant::now());
        let mut taken = interleaved(on, &timed, sets, &options.effort.of_pass(options.passes))?;
        if let Some((used, seconds)) = load.others() {
            self.load = (self.load.0 + used, self.load.1 + seconds);
        }
        // Linux counts CPU time in ticks of 10 ms.
        let others = (self.load.1 >= 0.05).then(|| self.load.0 / self.load.1);
        self.last_span = Some((began, Instant::now()));
        let cost = self.cost;
        let control = if yardstick.is_some() { taken.pop() } else { None };
        for ((name, _), taken) in calls.iter().zip(taken) {
            let Some(lane) = self.lane(name) else { continue };
            let samples = lane.samples.get_or_insert(Samples { seconds: Vec::new(), calls: taken.calls });
            if let Some(control) = &control {
                lane.paced.extend(taken.seconds.iter().zip(&control.seconds).map(|(call, unit)| call / unit));
                set_paced_times(
                    &mut lane.row,
                    &Timing::of(&Samples { seconds: lane.paced.clone(), calls: taken.calls }),
                );
            }
            samples.seconds.extend(taken.seconds);
            lane.row.others = others;
            set_times(&mut lane.row, &Timing::of(samples), cost);
        }
        Ok(())
    }

    fn empty_row<B: BenchBackend>(
        &self,
        on: &B,
        options: &BenchOptions,
        variant: &str,
        status: Status,
        note: String,
    ) -> Row {
        Row {
            date: options.date.clone(),
            commit: options.commit.clone(),
            device: on.hardware(),
            backend: B::NAME.into(),
            variant: variant.into(),
            dtype: B::PRECISION.name().into(),
            op: self.case.work.op().into(),
            model: self.case.model.into(),
            layer: self.case.layer.into(),
            shape: self.case.shape(),
            bytes: Some(self.cost.bytes),
            flops: Some(self.cost.flops),
            predicted_us: self.prediction.microseconds.filter(|_| variant == OWN_VARIANT && status == Status::Measured),
            note,
            ..Row::blank(status)
        }
    }
}

/// Selected contenders, each prepared for the call; `None` for a peer that does not support it.
fn contenders<'a, B: BenchBackend>(
    case: &'a Case,
    options: &BenchOptions,
    peers: &'a Peers<'_, B>,
    on: &'a B,
    set: &mut OperandSet<B>,
) -> Vec<(String, Result<PreparedCall<'a, B>>)> {
    let shipped = |on: &B, set: &mut OperandSet<B>| case.work.call(on, set.cursor());
    let mut contenders: Vec<(String, Result<PreparedCall<'a, B>>)> = Vec::new();
    if options.selects(OWN_VARIANT) {
        contenders.push((OWN_VARIANT.into(), Ok(Some(Box::new(shipped)))));
    }
    if let Some(OwnContender { kernels, name }) = &options.own {
        let call = |on: &B, set: &mut OperandSet<B>| own::with(kernels, || case.work.call(on, set.cursor()));
        contenders.push((name.clone(), Ok(Some(Box::new(call)))));
    }
    for peer in peers.present.iter().filter(|peer| options.selects(&peer.name())) {
        contenders.push((peer.name(), peer.prepare(on, &case.work, set)));
    }
    contenders
}

/// Bytes of one operand set.
fn bytes<B: BenchBackend>(operands: &[Operand]) -> u64 {
    operands.iter().map(|operand| operand.bytes(B::PRECISION)).sum()
}

/// Reason to skip a call, if there is one.
fn skip_reason<B: BenchBackend>(
    on: &B,
    op: &str,
    bytes: u64,
    cost: Cost,
    options: &BenchOptions,
    rates: Option<Rates>,
) -> Option<String> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let free = on.memory_free().unwrap_or(u64::MAX);
    // Verification by the reference and the staging chunks need some of the host's memory too.
    if bytes > free / 4 * 3 {
        return Some(format!(
            "the operands take {:.1} GiB, more than three quarters of the {:.1} GiB of free memory",
            gib(bytes),
            gib(free)
        ));
    }
    let pass = options.effort.of_pass(options.passes);
    // Calls of all passes: the minimum samples, the warm-up, and one to estimate the duration; plus
    // one to verify.
    let calls = options.passes * (pass.min_samples + pass.warm_up + 1) + 1;
    // Only the emulator has no measured rates. It reaches at least these.
    let rates = rates.unwrap_or(Rates { memory: 1e8, product: 3e8 });
    let seconds = floor(op, cost.bytes, cost.flops, &rates).0 * calls as f64;
    let longest = options.max_duration.as_secs_f64();
    (seconds > longest)
        .then(|| format!("{calls} calls take at least {seconds:.0} s, more than the {longest:.0} s of --longest"))
}

fn set_paced_times(row: &mut Row, timing: &Timing) {
    row.paced_median = Some(timing.median);
    row.paced_p20 = Some(timing.p20);
    row.paced_p80 = Some(timing.p80);
}

fn set_times(row: &mut Row, timing: &Timing, cost: Cost) {
    row.samples = Some(timing.samples as u64);
    row.calls = Some(timing.calls as u64);
    row.median_us = Some(1e6 * timing.median);
    row.p20_us = Some(1e6 * timing.p20);
    row.p80_us = Some(1e6 * timing.p80);
    row.least_us = Some(1e6 * timing.min);
    row.gb_per_s = Some(1e-9 * cost.bytes as f64 / timing.median);
    row.tflop_per_s = Some(1e-12 * cost.flops as f64 / timing.median);
}
