//! A benchmark run: the chosen calls of the table on a backend, each verified and timed, as rows of a record.

use std::time::{Duration, Instant};

use half::bf16;

use super::measure::{Effort, LEAST, Ready, Timed, Timing, energy, interleaved};
use super::operand::Set;
use super::rates::{Benched, Rates, Rivals};
use super::row::{Cache, Row, SCHEMA, Status};
use super::shapes::{Case, MODELS, Room, cases};
use super::verify::Oracle;
use super::work::{Call, Work};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::{Cost, Precision};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Element, Properties};
use crate::backend::kernels::rehearsal::Rehearsal;
use crate::study::hardware::host::Load;
use crate::study::plan::multiplies;

/// Which calls, how, and what their rows say of the run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Beginnings of op names; all where it is empty.
    pub ops: Vec<String>,
    pub models: Vec<String>,
    pub tokens: Vec<usize>,
    /// Parts of the layer's name or of the shape's text, of which one must be in it.
    pub shapes: Vec<String>,
    /// Beginnings of the variants' names.
    pub variants: Vec<String>,
    pub effort: Effort,
    /// Calls whose samples take longer than this by their floor are left out.
    pub longest: Duration,
    /// Bytes that the rotating sets of operands have together, where memory allows.
    pub rotated: u64,
    pub room: Room,
    /// Seconds of calls over which energy is counted, where the hardware counts it.
    pub energy_seconds: f64,
    pub date: String,
    pub commit: String,
}

/// The name of this project's own ops in records.
pub const OWN: &str = "mapl";

/// Most sets of operands that a call rotates over.
const MOST_SETS: u64 = 4096;

/// Ceilings are measured anew after so long, because clocks and neighbours change.
const CEILINGS_EVERY: Duration = Duration::from_secs(30);

impl Options {
    fn any(wanted: &[String], is: impl Fn(&str) -> bool) -> bool {
        wanted.is_empty() || wanted.iter().any(|text| is(text))
    }

    /// The calls that these options choose, on a backend of that precision.
    pub fn cases(&self, precision: Precision) -> Vec<Case> {
        let models = MODELS.iter().filter(|model| self.models.iter().any(|name| name == model.name));
        let of_model = |model| self.tokens.iter().flat_map(move |&t| cases(model, t, precision, self.room));
        let mut chosen: Vec<Case> = models.flat_map(of_model).collect();
        chosen.retain(|case| {
            let shape = case.shape();
            Self::any(&self.ops, |text| case.work.op().starts_with(text))
                && Self::any(&self.shapes, |text| case.layer == text || shape.contains(text))
        });
        // Sizes that do not depend on the number of tokens come once.
        let mut seen = std::collections::BTreeSet::new();
        chosen.retain(|case| seen.insert((case.work.op(), case.model, case.layer, case.shape())));
        chosen
    }

    fn wants(&self, variant: &str) -> bool {
        Self::any(&self.variants, |text| variant.to_lowercase().starts_with(&text.to_lowercase()))
    }
}

/// Runs the chosen calls on a backend. `report` gets the new rows of every call, and the ceilings so far.
pub fn run<B: Benched>(on: &B, options: &Options, mut report: impl FnMut(&[Row]) -> Result<()>) -> Result<Vec<Row>> {
    let mut rates = on.rates()?;
    let mut measured = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    on.with_rivals(|rivals| {
        for case in options.cases(B::PRECISION) {
            if rates.is_some() && measured.elapsed() > CEILINGS_EVERY {
                rates = better(rates, on.rates()?);
                measured = Instant::now();
            }
            let mut new = of_case(on, &case, options, rivals, rates)?;
            new.iter_mut().for_each(|row| judge(row, rates));
            report(&new)?;
            rows.append(&mut new);
        }
        Ok(())
    })?;
    // A product of the table may have been faster than those of the ceilings.
    if let Some(rates) = &mut rates {
        let best = rows.iter().filter_map(|row| row.tflop_per_s).fold(0.0, f64::max) * 1e12;
        *rates = rates.or(Rates { memory: 0.0, product: best });
    }
    rates = better(rates, on.rates()?);
    rows.iter_mut().for_each(|row| judge(row, rates));
    Ok(rows)
}

fn better(a: Option<Rates>, b: Option<Rates>) -> Option<Rates> {
    Some(a?.or(b?))
}

/// Bytes and FLOPs of a call by its contract, on a device that only counts.
pub fn cost(work: &Work, precision: Precision) -> Result<Cost> {
    fn priced<A: Element>(work: &Work) -> Result<Cost> {
        let properties =
            Properties { name: "price".into(), processors: 1, shared_bytes: 227 << 10, compute_capability: (9, 0) };
        let on = Kernels::<_, A>::probed(Rehearsal::of(&properties));
        let mut set = Set::new(&on, &work.operands())?;
        work.call(&on, set.take())?;
        let times = on.op_times()?;
        Ok(times
            .iter()
            .map(|time| time.cost)
            .fold(Cost::default(), |sum, cost| Cost { bytes: sum.bytes + cost.bytes, flops: sum.flops + cost.flops }))
    }
    if precision == Precision::Bf16 { priced::<bf16>(work) } else { priced::<f32>(work) }
}

/// Seconds that a call takes at least at these rates, and which of them decides. FLOPs of ops that are no products cost
/// nothing beside their bytes.
pub fn floor(op: &str, bytes: u64, flops: u64, rates: &Rates) -> (f64, &'static str) {
    let memory = bytes as f64 / rates.memory;
    let product = if multiplies(op) { flops as f64 / rates.product } else { 0.0 };
    if product > memory { (product, "product") } else { (memory, "memory") }
}

/// Puts ceilings and the share of them into a row.
fn judge(row: &mut Row, rates: Option<Rates>) {
    let (Some(rates), Some(bytes), Some(flops)) = (rates, row.bytes, row.flops) else { return };
    let (seconds, bound) = floor(&row.op, bytes, flops, &rates);
    row.bound = Some(bound.into());
    row.memory_gb_per_s = Some(rates.memory * 1e-9);
    row.product_tflop_per_s = Some(rates.product * 1e-12);
    // Memory is no ceiling for what a cache holds.
    let known = bound == "product" || row.cache == Some(Cache::Cold);
    row.share = row.median_us.filter(|_| known).map(|median| 1e6 * seconds / median);
}

/// The rows of a call: one for this project's op and one for every other library.
fn of_case<B: Benched>(
    on: &B,
    case: &Case,
    options: &Options,
    rivals: &Rivals<'_, B>,
    rates: Option<Rates>,
) -> Result<Vec<Row>> {
    let cost = cost(&case.work, B::PRECISION)?;
    let blank = |variant: &str, status: Status, note: String| Row {
        schema: SCHEMA,
        date: options.date.clone(),
        commit: options.commit.clone(),
        device: on.hardware(),
        backend: B::NAME.into(),
        variant: variant.into(),
        dtype: B::PRECISION.name().into(),
        op: case.work.op().into(),
        model: case.model.into(),
        layer: case.layer.into(),
        shape: case.shape(),
        cache: None,
        status,
        samples: None,
        calls: None,
        median_us: None,
        p20_us: None,
        p80_us: None,
        least_us: None,
        bytes: Some(cost.bytes),
        flops: Some(cost.flops),
        gb_per_s: None,
        tflop_per_s: None,
        bound: None,
        memory_gb_per_s: None,
        product_tflop_per_s: None,
        share: None,
        energy_mj: None,
        others: None,
        error_share: None,
        note,
    };
    let mut rows = Vec::new();
    if matches!(case.work, Work::Linear(_)) {
        let absent = rivals.absent.iter().filter(|(name, _)| options.wants(name));
        rows.extend(absent.map(|(name, why)| blank(name, Status::Absent, why.clone())));
    }
    let operands = case.work.operands();
    let bytes: u64 = operands.iter().map(|operand| operand.bytes(B::PRECISION)).sum();
    if let Some(why) = too_large(on, case.work.op(), bytes, cost, options, rates) {
        rows.push(blank(OWN, Status::Skipped, why));
        return Ok(rows);
    }
    let room = on.memory_free().unwrap_or(u64::MAX) / 2;
    let count = options.rotated.div_ceil(bytes.max(1)).min(room / bytes.max(1)).clamp(1, MOST_SETS);
    // What calls touch, which of a table of embeddings is a small part.
    let cold = count * cost.bytes.min(bytes) >= on.beyond_caches();
    let mut sets = Vec::new();
    for _ in 0..count {
        let mut set = Set::new(on, &operands)?;
        set.ready(on, &case.work, &operands)?;
        sets.push(set);
    }
    let oracle = Oracle::new(on, &case.work, &sets[0])?;
    let own = |on: &B, set: &mut Set<B>| case.work.call(on, set.take());
    let mut contenders: Vec<(String, Result<Ready<'_, B>>)> = Vec::new();
    if options.wants(OWN) {
        contenders.push((OWN.into(), Ok(Some(Box::new(own)))));
    }
    for rival in rivals.present.iter().filter(|rival| options.wants(&rival.name())) {
        contenders.push((rival.name(), rival.ready(on, &case.work, &mut sets[0])));
    }
    let mut calls: Vec<(String, Box<Timed<'_, B>>, f64)> = Vec::new();
    for (name, call) in contenders {
        let checked = call.and_then(|call| {
            let Some(call) = call else { return Ok(None) };
            sets[0].ready(on, &case.work, &operands)?;
            call(on, &mut sets[0])?;
            let share = oracle.check(on, &case.work, &sets[0])?;
            Ok(Some((call, share)))
        });
        match checked {
            Ok(None) => {}
            Ok(Some((call, share))) => calls.push((name, call, share)),
            Err(why) => rows.push(blank(&name, Status::Failed, why.to_string())),
        }
    }
    let timed: Vec<&Timed<'_, B>> = calls.iter().map(|(_, call, _)| &**call).collect();
    let load = Load::start();
    let timings = interleaved(on, &timed, &mut sets, &options.effort)?;
    let others = load.others();
    for ((name, call, share), timing) in calls.iter().zip(timings) {
        let mut row = blank(name, Status::Measured, String::new());
        row.cache = Some(if cold { Cache::Cold } else { Cache::Warm });
        row.error_share = Some(*share);
        row.others = others;
        time(&mut row, &timing, cost);
        let joules = energy(on, &**call, &mut sets, &timing, options.energy_seconds, B::joules)?;
        row.energy_mj = joules.map(|joules| 1e3 * joules);
        rows.push(row);
    }
    Ok(rows)
}

/// Why a call is left out, if it is.
fn too_large<B: Benched>(
    on: &B,
    op: &str,
    bytes: u64,
    cost: Cost,
    options: &Options,
    rates: Option<Rates>,
) -> Option<String> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let free = on.memory_free().unwrap_or(u64::MAX);
    // The reference's part and the pieces on the way need some of the host's memory too.
    if bytes > free / 4 * 3 {
        return Some(format!("operands of {:.1} GiB, and {:.1} GiB of memory are free", gib(bytes), gib(free)));
    }
    let least = LEAST + options.effort.warm_up + 2;
    // What the emulator does at least.
    let rates = rates.unwrap_or(Rates { memory: 1e8, product: 3e8 });
    let seconds = floor(op, cost.bytes, cost.flops, &rates).0 * least as f64;
    let longest = options.longest.as_secs_f64();
    (seconds > longest)
        .then(|| format!("{least} calls take {seconds:.0} s at least, more than {longest:.0} s (--longest)"))
}

fn time(row: &mut Row, timing: &Timing, cost: Cost) {
    row.samples = Some(timing.samples as u64);
    row.calls = Some(timing.calls as u64);
    row.median_us = Some(1e6 * timing.median);
    row.p20_us = Some(1e6 * timing.p20);
    row.p80_us = Some(1e6 * timing.p80);
    row.least_us = Some(1e6 * timing.least);
    row.gb_per_s = Some(1e-9 * cost.bytes as f64 / timing.median);
    row.tflop_per_s = Some(1e-12 * cost.flops as f64 / timing.median);
}
