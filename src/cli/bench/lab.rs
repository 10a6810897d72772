//! Tools that inspect kernels: `--count-accesses` counts the emulator's memory accesses, `--ladder` runs the
//! ladders of `benches/ladder`, `--tune` fits the tile choice to a GPU.

use std::path::PathBuf;

use clap::Args;

use super::super::device::Device;
use super::{BenchArgs, RunRecord};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Device as KernelDevice, Element, Properties};
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::accesses::{SECTOR_BYTES, count_accesses};
use crate::backend::kernels::emulator::{Emulator, Schedule};
use crate::backend::kernels::geometry::{H200_TIMES, Sizes, Tile, TileTimes};
use crate::backend::kernels::own;
use crate::backend::kernels::tile_file::{TileFile, path_of};
use crate::bench::accesses::text;
use crate::bench::ladder::{LADDERS, Ladder, RECORDED_ON, Rung};
use crate::bench::operand::OperandSet;
use crate::bench::own::OwnContender;
use crate::bench::run::BenchOptions;
use crate::bench::tune::{TimedTile, fit, measure};
use crate::bench::work::{Call as _, Work};
use crate::perf::predict::counted::GpuFloor;
use crate::study::plan::GpuRates;
use crate::terminal::{complain, emit, say};
use crate::{Error, Result};

/// Arguments of the tools that inspect kernels.
#[derive(Args, Clone, Debug)]
pub(super) struct LabArgs {
    /// Count bank conflicts of shared memory and sectors of global memory, by source line, in one more
    /// launch of each call on the emulator
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list", "explain", "ladder"])]
    pub count_accesses: bool,
    /// Run a ladder from the textbook loop to the shipped kernel: product, head (benches/ladder)
    #[arg(long, value_name = "NAME", value_parser = ladder, conflicts_with_all = [
        "StepPlanArgs", "list", "explain", "kernel", "compare", "output", "op", "model", "tokens", "shape", "dtype",
        "variant", "repeats",
        "passes", "seconds", "longest", "rotate_mib", "energy_seconds", "limit", "commit"
    ])]
    pub ladder: Option<String>,
    /// Fit the constants of the tile choice to this machine's Hopper GPU and store them by its name; the
    /// emulator only rehearses the fit
    #[arg(long, conflicts_with_all = [
        "StepPlanArgs", "list", "explain", "kernel", "compare", "output", "op", "model", "tokens", "shape", "dtype",
        "ladder", "count_accesses", "variant", "repeats",
        "passes", "seconds", "longest", "rotate_mib", "energy_seconds", "limit", "commit"
    ])]
    pub tune: bool,
    /// File to store the constants in (MAPL_TILES names it to other commands) [default: by the GPU's name
    /// in the cache folder; none on the emulator]
    #[arg(long, value_name = "FILE", requires = "tune", conflicts_with_all = [
        "StepPlanArgs", "list", "explain", "kernel", "compare", "ladder"
    ])]
    pub tune_output: Option<PathBuf>,
}

impl LabArgs {
    /// Whether these arguments select a tool (`--ladder`, `--tune`) that adds no timing rows to the record.
    pub fn times_nothing(&self) -> bool {
        self.ladder.is_some() || self.tune
    }
}

/// Opens a GPU for a command that runs on kernels only. An error suggests the emulator instead of the CPU.
fn gpu(flag: &str, ordinal: usize) -> Result<Driver> {
    Driver::new(ordinal).map_err(|error| match error {
        Error::Device(text) => Error::Device(format!("{flag}: {}", text.replace("--device cpu", "--device emulator"))),
        other => other,
    })
}

fn ladder(text: &str) -> Result<String, String> {
    match Ladder::named(text) {
        Some(ladder) => Ok(ladder.name.to_owned()),
        None => Err(format!("one of {}", LADDERS.map(|ladder| ladder.name).join(", "))),
    }
}

impl BenchArgs {
    /// Returns an error for `--count-accesses` on devices that cannot count accesses.
    pub(super) fn check_lab(&self) -> Result<()> {
        let other = self.device.iter().find(|&&device| device != Device::Emulator);
        match other.filter(|_| self.lab.count_accesses) {
            Some(device) => Err(Error::Usage(format!(
                "--count-accesses with --device {device}: only the emulator counts accesses; use --device emulator"
            ))),
            None => Ok(()),
        }
    }

    /// Counts the accesses of the selected calls by the shipped kernels, and by custom kernels.
    pub(super) fn count_calls<D: KernelDevice, A: Element>(
        &self,
        on: &Kernels<D, A>,
        options: &BenchOptions,
        record: &RunRecord,
        contender: Option<&OwnContender>,
    ) -> Result<()> {
        for case in options.cases_on(on)? {
            let count = |work: &Work| -> Result<_> {
                let mut set = OperandSet::new(on, &work.operands())?;
                set.initialise(on, work, &work.operands())?;
                let (called, launches) = count_accesses(|| work.call(on, set.cursor()));
                called.map(|()| launches)
            };
            let of = format!("{} {} {} {}", case.work.op(), case.model, case.layer, case.shape());
            record.tell(&text(&of, &count(&case.work)?))?;
            if let Some(contender) = contender {
                let launches = own::with(contender.kernels, || count(&case.work))?;
                record.tell(&text(&format!("{of} by {}", contender.name), &launches))?;
            }
        }
        Ok(())
    }

    /// Fits the constants of the tile choice, and stores them.
    pub(super) fn tune(&self) -> Result<()> {
        let driver = match self.device.as_slice() {
            [Device::Auto] => Some(gpu("--tune", 0)?),
            [Device::Cuda(ordinal)] => Some(gpu("--tune", *ordinal)?),
            [Device::Emulator] => None,
            _ => return Err(Error::Usage("--tune runs on one device: auto, cuda, cuda:N or emulator".into())),
        };
        if let Some(path) = &self.lab.tune_output {
            super::super::output::check_output("--tune-output", path, &self.inputs())?;
        }
        match driver {
            Some(driver) => {
                let properties = driver.properties().clone();
                if properties.compute_capability != (9, 0) {
                    return Err(Error::Usage(format!(
                        "--tune: {} is not a Hopper GPU, and other GPUs have one tile",
                        properties.name
                    )));
                }
                let path = self.lab.tune_output.clone().or_else(|| path_of(&properties.name));
                let timed = measure(driver, false, |time| emit(&timed_line(time)))?;
                store(&properties, &timed, path)
            }
            None => {
                complain("note: emulator times say nothing about a GPU; this run only rehearses the fit");
                let emulator = Emulator::with(Schedule::Rising, 4)?;
                let properties = emulator.properties().clone();
                let timed = measure(emulator, true, |time| emit(&timed_line(time)))?;
                store(&properties, &timed, self.lab.tune_output.clone())
            }
        }
    }

    /// Runs a ladder and prints it as a table.
    pub(super) fn climb(&self, name: &str) -> Result<()> {
        let ladder = Ladder::named(name).ok_or_else(|| Error::Usage(format!("--ladder {name} is unknown")))?;
        let driver = match self.device.as_slice() {
            [Device::Auto] => Driver::new(0).ok(),
            [Device::Cuda(ordinal)] => Some(gpu("--ladder", *ordinal)?),
            [Device::Emulator] => None,
            _ => return Err(Error::Usage("--ladder runs on one device: auto, cuda, cuda:N or emulator".into())),
        };
        let schedules = [Schedule::Rising, Schedule::Falling, Schedule::Random(1)];
        let emulators: Result<Vec<Emulator>> =
            schedules.into_iter().map(|schedule| Emulator::with(schedule, 4)).collect();
        let emulators = match (&driver, emulators) {
            (_, Ok(emulators)) => emulators,
            (Some(_), Err(_)) => Vec::new(),
            (None, Err(why)) => return Err(why),
        };
        let rates = GpuRates::named(RECORDED_ON.0)?;
        let gpu = Properties {
            name: rates.name.clone(),
            processors: rates.processors,
            shared_bytes: 227 << 10,
            compute_capability: rates.compute_capability,
        };
        let floor = GpuFloor { copy: rates.copy, product: rates.product, processors: rates.processors };
        let sizes: Vec<String> = ladder.recorded.iter().map(|(name, size)| format!("{name}={size}")).collect();
        emit(&format!("ladder {}: {}", ladder.name, ladder.computes))?;
        if let Some(driver) = &driver {
            emit(&format!("verified and timed on {}", driver.properties().name))?;
        }
        emit(&format!(
            "counts: at the sizes of the sheets, on the emulator; times: {} on {}\n",
            sizes.join(" "),
            rates.name
        ))?;
        emit(&format!(
            "{:<26} {:<34} {:>6} {:>10} {:>7} {:>9} {:>9} {:>10}  {:<20} {:>11}",
            "rung", "idea", "error", "global KB", "x least", "passes", "conflicts", "floor us", "limit", "recorded us"
        ))?;
        ladder.climb(driver.as_ref(), &emulators, (&gpu, floor), |rung| emit(&line(rung)))?;
        say("");
        emit(&format!(
            "floor: bytes, products, or passes and sectors at one multiprocessor's rates, whichever takes longest \
             (src/perf/predict/counted.rs);\nthe last rung: predicted by tiles. recorded: {} at {}, benches/record. Latency is \
             in neither.",
            RECORDED_ON.0, RECORDED_ON.1
        ))
    }
}

fn timed_line(time: &TimedTile) -> String {
    let Sizes { m, n, k, .. } = time.sizes;
    format!("{m} x {n} x {k}, {}, {} splits: {:.2} us", time.tile.name(), time.splits, 1e6 * time.seconds)
}

/// Fits the constants, prints them next to the built-in ones, and stores them if there is a path.
fn store(gpu: &Properties, timed: &[TimedTile], path: Option<PathBuf>) -> Result<()> {
    let found = fit(timed, gpu.processors)?;
    let TileTimes { launch, cluster, cooperative, ping_pong, last_ping_pong, split, split_column, stage } = found.times;
    let built_in = H200_TIMES;
    emit(&format!("\n{:<36}{:>14}{:>12}", "nanoseconds", "fitted", "built in"))?;
    let mut rows = vec![
        ("launch".to_owned(), launch, built_in.launch),
        ("cluster".into(), cluster, built_in.cluster),
        ("epilogue, cooperative".into(), cooperative, built_in.cooperative),
        ("epilogue, ping-pong".into(), ping_pong, built_in.ping_pong),
        ("last epilogue, ping-pong".into(), last_ping_pong, built_in.last_ping_pong),
        ("split".into(), split, built_in.split),
        ("split, per column".into(), split_column, built_in.split_column),
    ];
    for (at, tile) in Tile::ALL.into_iter().enumerate() {
        rows.push((tile.name().to_owned(), stage[at], built_in.stage[at]));
    }
    for (name, fitted, built_in) in rows {
        emit(&format!("{name:<36}{fitted:>14.2}{built_in:>12.2}"))?;
    }
    emit(&format!("{} times, error {:.1}% (root mean square)", timed.len(), 100.0 * found.error))?;
    let Some(path) = path else { return emit("not stored; --tune-output FILE stores the constants") };
    TileFile::new(&gpu.name, found.times, timed.len(), found.error).write(&path)?;
    emit(&format!("stored in {}", path.display()))
}

/// A rung as a line of the table.
fn line(rung: &Rung) -> String {
    let counted = rung.counts.map_or_else(
        || format!("{:>10} {:>7} {:>9} {:>9}", "-", "-", "-", "-"),
        |[shared, global]| {
            let least = global.units as f64 / (global.fewest.max(1)) as f64;
            let kilobytes = (global.units * SECTOR_BYTES) as f64 / 1024.0;
            format!("{kilobytes:>10.0} {least:>7.2} {:>9} {:>9}", shared.units, shared.units - shared.fewest)
        },
    );
    let us = |seconds: f64| format!("{:.0}", 1e6 * seconds);
    let (floor, limit) = rung.predicted.map_or(("-".into(), "-"), |(seconds, limit)| (us(seconds), limit));
    let recorded = match (rung.measured, rung.recorded) {
        (Some(seconds), _) => format!("{} here", us(seconds)),
        (None, Some(seconds)) => us(seconds),
        (None, None) => "-".into(),
    };
    format!(
        "{:<26} {:<34} {:>6.2} {counted} {floor:>10}  {limit:<20} {recorded:>11}{}",
        rung.name,
        rung.idea,
        rung.error_share,
        rung.note.as_ref().map_or(String::new(), |note| format!("  {note}"))
    )
}
