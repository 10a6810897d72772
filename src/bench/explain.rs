//! Explains the time of a call on a GPU: the floor (the least time by bytes and FLOPs), tiles and waves of
//! its launches, occupancy and bytes in flight, instructions of the main loops, the prediction against the
//! measurement, and the limit that binds.
//!
//! Registers and instructions are those of the committed tables `kernels/resources.csv` and
//! `kernels/sass.csv`, which tests compare with the machine code of a build.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use half::bf16;

use super::occupancy::{BlockNeeds, Multiprocessor};
use super::operand::OperandSet;
use super::own::launches;
use super::rates::Rates;
use super::run::{cost, floor, predict};
use super::shapes::Case;
use super::work::Call;
use crate::Result;
use crate::backend::contract::Precision;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::Properties;
use crate::backend::kernels::geometry::Chosen;
use crate::backend::kernels::launchers::KERNELS;
use crate::backend::kernels::rehearsal::{Launched, Rehearsal};
use crate::perf::predict::LAUNCH_SECONDS;

/// A GPU and its rates.
pub(crate) struct Gpu {
    pub properties: Properties,
    /// Bytes per second of a copy, counting reads and writes.
    pub copy: f64,
    /// FLOP/s of a large bf16 GEMM.
    pub product: f64,
}

/// Seconds from a load's issue to its data: DRAM latency of recent GPUs, 0.6 to 0.8 us.
const LATENCY: f64 = 700e-9;
/// Bytes of the largest load of a thread.
const LOAD_BYTES: u64 = 16;
/// Minimum share of a launch's time at which a loss, in idle multiprocessors or around the main loop, is
/// named as a limit.
const IDLE: f64 = 0.1;

/// Instructions of a main loop, from `kernels/sass.csv`.
#[derive(Clone, Copy, Debug)]
struct MainLoop {
    instructions: usize,
    products: usize,
    global_loads: usize,
    global_stores: usize,
    copies: usize,
    shared_loads: usize,
    shared_stores: usize,
    barriers: usize,
    loads_in_a_row: usize,
}

type Table<T> = BTreeMap<(String, String), T>;

fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().skip(1).map(|line| line.split(',').collect())
}

static LOOPS: LazyLock<Table<MainLoop>> = LazyLock::new(|| {
    let mut table = Table::new();
    for row in rows(include_str!("../../kernels/sass.csv")) {
        let number = |at: usize| row.get(at).and_then(|text| text.parse().ok()).unwrap_or(0);
        if row.len() > 12 && row[2] == "loop" {
            let of = MainLoop {
                instructions: number(3),
                products: number(5),
                global_loads: number(6),
                global_stores: number(7),
                copies: number(8),
                shared_loads: number(9),
                shared_stores: number(10),
                barriers: number(11),
                loads_in_a_row: number(12),
            };
            table.insert((row[0].to_owned(), row[1].to_owned()), of);
        }
    }
    table
});

/// Registers, spilled bytes and static shared bytes of a shipped kernel, from
/// `kernels/resources.csv`.
pub(super) fn resources_of(kernel: &str, target: &str) -> Option<(u32, u32, usize)> {
    static RESOURCES: LazyLock<Table<(u32, u32, usize)>> = LazyLock::new(|| {
        let mut table = Table::new();
        for row in rows(include_str!("../../kernels/resources.csv")) {
            let number = |at: usize| row.get(at).and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
            if row.len() > 6 {
                let of = (number(2), number(4) + number(5), number(6) as usize);
                table.insert((row[0].to_owned(), row[1].to_owned()), of);
            }
        }
        table
    });
    RESOURCES.get(&(kernel.to_owned(), target.to_owned())).copied()
}

/// Compilation target of the kernels that a GPU runs.
fn target(properties: &Properties) -> &'static str {
    if properties.compute_capability.0 == 9 { "sm_90a" } else { "sm_80" }
}

/// GEMMs of a bf16 call and their tiles.
fn chosen(case: &Case, gpu: &Properties) -> Result<Vec<Chosen>> {
    let on = Kernels::<_, bf16>::new(Rehearsal::of(gpu)).keeping_choices();
    let mut set = OperandSet::new(&on, &case.work.operands())?;
    on.take_chosen();
    case.work.call(&on, set.cursor())?;
    Ok(on.take_chosen())
}

/// A limit on the time of a launch, and the share of the time that it costs.
struct Limit {
    share: f64,
    text: String,
}

/// Explains a call. `measured` is its median in microseconds on this GPU.
pub(crate) fn explain(case: &Case, gpu: &Gpu, precision: Precision, measured: Option<f64>) -> Result<String> {
    let op = case.work.op();
    let cost = cost(&case.work, precision)?;
    let rates = Rates { memory: gpu.copy, product: gpu.product };
    let (floor, bound) = floor(op, cost.bytes, cost.flops, &rates);
    let by_bytes = cost.bytes as f64 / gpu.copy;
    let by_flops = cost.flops as f64 / gpu.product;
    let name = &gpu.properties.name;
    let mut text = format!("{op} {} {} {} ({} on {name})\n", case.model, case.layer, case.shape(), precision.name());
    let _ = writeln!(
        text,
        "  work         {} bytes, {} FLOPs: {:.1} FLOP/byte; this GPU computes {:.1} FLOPs while it moves a byte",
        cost.bytes,
        cost.flops,
        cost.flops as f64 / cost.bytes.max(1) as f64,
        gpu.product / gpu.copy
    );
    let _ = writeln!(
        text,
        "  floor        {} us by bytes at {:.2} TB/s, {} us by FLOPs at {:.0} TFLOP/s: {} us, set by {}",
        microseconds(by_bytes),
        1e-12 * gpu.copy,
        microseconds(by_flops),
        1e-12 * gpu.product,
        microseconds(floor),
        if bound == "product" { "FLOPs" } else { "bytes" }
    );
    let mut limits = Vec::new();
    let launched = launches(&case.work, &gpu.properties, precision)?;
    // Small launches before or after the largest one do not set the time.
    let largest = launched.iter().max_by_key(|launch| launch.blocks * u64::from(threads(launch)));
    for launch in &launched {
        let found = explain_launch(&mut text, launch, gpu, bound == "memory");
        limits.extend(found.into_iter().filter(|_| largest == Some(launch)));
    }
    let count: u64 = launched.iter().map(|launch| launch.count).sum();
    if count as f64 * LAUNCH_SECONDS > floor {
        let text =
            format!("launches: {count} of at least {:.1} us each take longer than the floor", 1e6 * LAUNCH_SECONDS);
        limits.push(Limit { share: count as f64 * LAUNCH_SECONDS / floor, text });
    }
    let gemms = if precision == Precision::Bf16 { chosen(case, &gpu.properties)? } else { Vec::new() };
    for Chosen { sizes, choice, .. } in &gemms {
        let (waves, idle) = (choice.waves, 1.0 - choice.waves / choice.waves.ceil().max(1.0));
        let _ = writeln!(
            text,
            "  GEMM         {} x {} x {}: {:.2} waves in {} blocks, {} split(s) of k, predicted {:.2} us, {:.0}% of the peak",
            sizes.m,
            sizes.n,
            sizes.k,
            waves,
            choice.grid,
            choice.splits,
            1e6 * choice.seconds,
            100.0 * choice.efficiency
        );
        if idle > IDLE {
            let text = format!("the last wave: {waves:.2} waves take the time of {:.0}", waves.ceil());
            limits.push(Limit { share: idle, text });
        }
    }
    let of_gemms: f64 = gemms.iter().map(|gemm| 1e6 * gemm.choice.seconds).sum();
    let predicted = match precision {
        _ if of_gemms > 0.0 => Some(of_gemms),
        Precision::Bf16 => predict(&case.work, &gpu.properties, 0)?.microseconds,
        Precision::F32 | Precision::F64 => None,
    };
    if let Some(excess) = (of_gemms > 0.0).then(|| 1.0 - 1e6 * floor / of_gemms).filter(|&excess| excess > IDLE) {
        let depth = gemms.iter().map(|gemm| gemm.sizes.k.to_string()).collect::<Vec<_>>().join(" and ");
        let text = format!(
            "the tile: start and epilogue around a main loop over k = {depth}, and unfilled waves, take {:.0}% of the time",
            100.0 * excess
        );
        limits.push(Limit { share: excess, text });
    }
    let waiting = predicted.filter(|_| of_gemms == 0.0).map(|us| 1.0 - 1e6 * floor / us);
    if let Some(excess) = waiting.filter(|&excess| excess > IDLE) {
        let what = match bound {
            "product" => "the work list: instructions around the products, and multiprocessors without an item,",
            _ => "the launch, and memory accesses that wait for one another,",
        };
        limits.push(Limit { share: excess, text: format!("{what} take {:.0}% of the predicted time", 100.0 * excess) });
    }
    let against = |us: f64| format!("{us:.2} us, {:.2}x the floor", us / (1e6 * floor));
    let _ = writeln!(text, "  predicted    {}", predicted.map_or_else(|| "not modelled".to_owned(), against));
    let _ = writeln!(
        text,
        "  measured     {}",
        measured.map_or_else(|| "not measured on this machine".to_owned(), against)
    );
    limits.sort_by(|a, b| b.share.total_cmp(&a.share));
    let floor_text = || match bound {
        "product" => "the rate of GEMMs: no other limit is in sight".to_owned(),
        _ => "the bandwidth of memory: no other limit is in sight".to_owned(),
    };
    let _ = write!(text, "  limit        {}", limits.into_iter().next().map_or_else(floor_text, |limit| limit.text));
    Ok(text)
}

/// Seconds as a number of microseconds, with more digits if it is small.
fn microseconds(seconds: f64) -> String {
    let us = 1e6 * seconds;
    if us < 0.1 { format!("{us:.4}") } else { format!("{us:.2}") }
}

/// Threads per block of a launch.
fn threads(launch: &Launched) -> u32 {
    KERNELS.iter().find(|kernel| kernel.name == launch.kernel).map_or(1, |kernel| kernel.threads)
}

/// Appends the lines of a launch to `text`. Returns the limits that keep the launch from reaching the floor.
fn explain_launch(text: &mut String, launch: &Launched, gpu: &Gpu, memory_bound: bool) -> Vec<Limit> {
    let Some(kernel) = KERNELS.iter().find(|kernel| kernel.name == launch.kernel) else { return Vec::new() };
    let (target, sm) = (target(&gpu.properties), Multiprocessor::of(gpu.properties.compute_capability));
    let known = resources_of(kernel.name, target);
    let (registers, spills, fixed) = known.unwrap_or_default();
    let shared = fixed + launch.shared_bytes;
    let needs = BlockNeeds { threads: kernel.threads, registers: known.map(|_| registers), shared };
    let (per_sm, limit) = sm.blocks(needs);
    let processors = gpu.properties.processors as u64;
    let held = u64::from(per_sm.max(1)) * processors;
    let waves = launch.blocks as f64 / held as f64;
    let times = if launch.count > 1 { format!("{} times ", launch.count) } else { String::new() };
    let _ = writeln!(
        text,
        "  launch       {times}{}: {} blocks of {} threads, {} at a time ({per_sm} per multiprocessor, limit: {limit}): {waves:.2} waves",
        kernel.name,
        launch.blocks,
        kernel.threads,
        held.min(launch.blocks)
    );
    let resident = launch.blocks.min(held);
    let _ = writeln!(
        text,
        "    block      {} registers, {spills} bytes spilled, {shared} bytes of shared memory; {:.0}% of the warps of a \
         multiprocessor",
        known.map_or_else(|| "unknown".to_owned(), |_| registers.to_string()),
        100.0 * sm.occupancy(per_sm, kernel.threads)
    );
    let main = LOOPS.get(&(kernel.name.to_owned(), target.to_owned()));
    // Bytes in flight are the staged tiles, or the loads of all threads between two stores.
    let loads = main.map_or(1, |main| main.loads_in_a_row.max(1)) as u64 * LOAD_BYTES * u64::from(kernel.threads);
    let in_flight = resident * if launch.shared_bytes > 0 { launch.shared_bytes as u64 } else { loads };
    let needed = gpu.copy * LATENCY;
    let _ = writeln!(
        text,
        "    in flight  at most {} KiB; full bandwidth needs {:.0} KiB (bandwidth x {:.0} ns latency)",
        in_flight >> 10,
        needed / 1024.0,
        1e9 * LATENCY
    );
    match main {
        Some(m) => {
            let _ = writeln!(
                text,
                "    main loop  {} instructions: {} tensor-core products, {} copies, {} + {} global loads and stores, {} + {} shared, \
                 {} barriers ({target})",
                m.instructions,
                m.products,
                m.copies,
                m.global_loads,
                m.global_stores,
                m.shared_loads,
                m.shared_stores,
                m.barriers
            );
        }
        None => {
            let _ = writeln!(text, "    main loop  not in kernels/sass.csv for {target}");
        }
    }
    let mut limits = Vec::new();
    if launch.blocks < processors {
        let idle = 1.0 - launch.blocks as f64 / processors as f64;
        let text = format!(
            "{}: {} blocks leave {} of {processors} multiprocessors idle",
            kernel.name,
            launch.blocks,
            processors - launch.blocks
        );
        limits.push(Limit { share: idle, text });
    }
    if memory_bound && (in_flight as f64) < needed {
        let share = 1.0 - in_flight as f64 / needed;
        let text = format!(
            "{}: {} KiB in flight cover {:.0}% of the memory's latency",
            kernel.name,
            in_flight >> 10,
            100.0 * (1.0 - share)
        );
        limits.push(Limit { share, text });
    }
    limits
}

/// Kernels that a call launches, for the profiler.
pub(crate) fn kernels_of(case: &Case, gpu: &Properties, precision: Precision) -> Result<Vec<&'static str>> {
    Ok(launches(&case.work, gpu, precision)?.into_iter().map(|launch| launch.kernel).collect())
}
