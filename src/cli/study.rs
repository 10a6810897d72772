//! `mapl study`: training runs and benchmarks under observation.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use half::bf16;

use super::bench::BenchArgs;
use super::device::{Device, DeviceArgs, Dtype, on_pool};
use super::meeting::MeetingArgs;
use super::method_options::listed;
use super::sweep::SweepArgs;
use super::train_args::TrainArgs;
use crate::backend::cpu::{Cpu, Units};
use crate::backend::kernels::Kernels;
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::Emulator;
use crate::bench::rates::{BenchBackend, Rates};
use crate::bench::row::Status;
use crate::files::{check_folder_writable, json_text, write_atomic};
use crate::loss::objective::Method;
use crate::perf::hardware::Meter;
use crate::perf::hardware::gpu::GpuMeter;
use crate::perf::hardware::host::HostMeter;
use crate::perf::hardware::nvml::{self, NvmlGpu};
use crate::perf::hardware::sampler::{Meters, Sampler};
use crate::perf::observe::RunObserver;
use crate::perf::peak;
use crate::study::bench::BenchStudy;
use crate::study::page;
use crate::study::record::{Facts, Study};
use crate::terminal::{complain, say};
use crate::{Error, Result};

/// Command to observe.
#[derive(Subcommand, Clone, Debug)]
pub enum StudyCommand {
    /// Observe a `mapl sft` run
    #[command(mut_args(|arg| listed(Method::Sft, arg)))]
    Sft(Box<StudyArgs>),
    /// Observe a `mapl reward` run
    #[command(mut_args(|arg| listed(Method::Reward, arg)))]
    Reward(Box<StudyArgs>),
    /// Observe a `mapl dpo` run
    #[command(mut_args(|arg| listed(Method::Dpo, arg)))]
    Dpo(Box<StudyArgs>),
    /// Observe a `mapl kto` run
    #[command(mut_args(|arg| listed(Method::Kto, arg)))]
    Kto(Box<StudyArgs>),
    /// Observe a benchmark, with hardware readings while every row is timed
    Bench(Box<BenchStudyArgs>),
    /// Observe runs over a grid of flags
    Sweep(SweepArgs),
}

impl StudyCommand {
    /// Returns whether a training run has `--quiet`; false for other commands.
    pub(super) fn is_quiet(&self) -> bool {
        match self {
            Self::Sft(args) | Self::Reward(args) | Self::Dpo(args) | Self::Kto(args) => args.train.quiet,
            StudyCommand::Bench(_) | StudyCommand::Sweep(_) => false,
        }
    }

    /// Stores the environment variables that a configuration file sets, so that they are recorded with the run.
    pub(super) fn set_variables(&mut self, variables: &[(String, String)]) {
        if let Self::Sft(args) | Self::Reward(args) | Self::Dpo(args) | Self::Kto(args) = self {
            args.train.env = variables.to_vec();
        }
    }

    /// Returns the arguments that list data files.
    pub(super) fn data_files(&mut self) -> Vec<&mut Vec<PathBuf>> {
        match self {
            Self::Sft(args) | Self::Reward(args) | Self::Dpo(args) | Self::Kto(args) => args.train.data_files(),
            StudyCommand::Bench(_) | StudyCommand::Sweep(_) => Vec::new(),
        }
    }

    /// Returns the arguments for the device and the ranks of a training study; `None` for other studies.
    pub fn meeting(&self) -> Option<(DeviceArgs, &MeetingArgs)> {
        match self {
            Self::Sft(args) | Self::Reward(args) | Self::Dpo(args) | Self::Kto(args) => {
                Some((args.train.device, &args.train.meeting))
            }
            Self::Bench(_) | Self::Sweep(_) => None,
        }
    }
}

/// Arguments of `study sft`, `reward`, `dpo` and `kto`: the run's and the observation's.
#[derive(Args, Clone, Debug)]
pub struct StudyArgs {
    #[command(flatten)]
    train: TrainArgs,
    /// Folder for study.json, report.html and hw.jsonl [default: the output folder's name plus
    /// -study]
    #[arg(long)]
    study_dir: Option<PathBuf>,
    /// Milliseconds between hardware readings
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    sample_interval: u64,
    /// Peak TFLOP/s that utilisation is relative to [default: dense bf16 of the GPU's data sheet,
    /// if known]
    #[arg(long)]
    peak_tflops: Option<f64>,
}

/// Arguments of `study bench`: the benchmark's and the observation's.
#[derive(Args, Clone, Debug)]
pub struct BenchStudyArgs {
    #[command(flatten)]
    bench: BenchArgs,
    /// Folder for study.json, report.html and hw.jsonl
    #[arg(long)]
    study_dir: PathBuf,
    /// Overwrite an earlier study in the folder
    #[arg(long)]
    overwrite: bool,
    /// Milliseconds between hardware readings
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    sample_interval: u64,
}

/// Files of a study.
const FILES: [&str; 3] = ["study.json", "report.html", "hw.jsonl"];

/// Trains under observation and writes the study, even if the run fails.
pub fn run(command: &StudyCommand, command_line: &str) -> Result<()> {
    let (method, args) = match command {
        StudyCommand::Sft(args) => (Method::Sft, args),
        StudyCommand::Reward(args) => (Method::Reward, args),
        StudyCommand::Dpo(args) => (Method::Dpo, args),
        StudyCommand::Kto(args) => (Method::Kto, args),
        StudyCommand::Bench(args) => return benchmark(args, command_line),
        StudyCommand::Sweep(args) => return super::sweep::run(args),
    };
    if args.peak_tflops.is_some_and(|peak| !(peak.is_finite() && peak > 0.0)) {
        return Err(Error::Usage("--peak-tflops: a finite number above 0 is needed".into()));
    }
    if args.train.dry_run {
        return Err(Error::Usage("--dry-run trains no step, so there is nothing to study; leave out `study`".into()));
    }
    if args.train.profile {
        return Err(Error::Usage("--profile: a study times every op anyway; leave it out".into()));
    }
    let folder = args.folder()?;
    args.train.spare_inputs()?;
    args.train.inputs().spare(("--study-dir", &folder), &FILES.map(|name| folder.join(name)))?;
    check_folder_writable(&folder)?;
    let place = RunDevice::of(args.train.device)?;
    let facts = args.facts(method, command_line, &place);
    let before = place.rates()?;
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let uuid = place.uuid.clone();
    let has_gpu = matches!(place.device, Device::Cuda(_));
    let interval = Duration::from_millis(args.sample_interval);
    let sampler = Sampler::start(interval, Some(&folder.join(FILES[2])), move || meters(has_gpu, uuid.as_deref()))?;
    let observed = RunObserver::default();
    let outcome = super::train::run_observed(method, &args.train, command_line, Some(observed.clone()));
    let readings = sampler.stop();
    let seen = observed.take();
    if let (Err(_), true) = (&outcome, seen.steps.is_empty()) {
        // No step was trained, so the log of readings (hw.jsonl) and an otherwise empty folder are removed.
        let _ = std::fs::remove_file(folder.join(FILES[2]));
        let _ = std::fs::remove_dir(&folder);
        return outcome.map(|_| ());
    }
    // Rates are measured again only after a successful run, because the device may have failed.
    let after = if outcome.is_ok() { place.rates()? } else { None };
    let rates = match (before, after) {
        (Some(a), Some(b)) => Some(a.or(b)),
        (a, b) => a.or(b),
    };
    let ended = outcome.as_ref().map_or_else(|why| why.to_string(), |_| "finished".into());
    let study = Study::new(facts, ended, rates, seen, readings);
    let value = serde_json::to_value(&study).map_err(|e| Error::Runtime(format!("cannot write a study: {e}")));
    let written = value
        .and_then(|value| write_atomic(&folder.join(FILES[0]), json_text(&value).as_bytes()))
        .and_then(|()| write_atomic(&folder.join(FILES[1]), page::html(&study).as_bytes()));
    match (outcome, written) {
        (Ok(_), Ok(())) => {
            say(&format!("study in {}", folder.join(FILES[1]).display()));
            Ok(())
        }
        (Ok(_), Err(why)) => Err(why),
        (Err(why), written) => {
            if let Err(other) = written {
                complain(&format!("warning: {other}"));
            }
            Err(why)
        }
    }
}

/// Benchmarks under observation and writes the study.
fn benchmark(args: &BenchStudyArgs, command_line: &str) -> Result<()> {
    args.bench.check_timed()?;
    if let (Some(name), false) = (existing_file(&args.study_dir), args.overwrite) {
        let folder = args.study_dir.display();
        return Err(Error::Usage(format!(
            "--study-dir {folder} already holds {name}; name another folder, or give --overwrite"
        )));
    }
    let written = FILES.map(|name| args.study_dir.join(name));
    args.bench.inputs().spare(("--study-dir", &args.study_dir), &written)?;
    check_folder_writable(&args.study_dir)?;
    let uuid = RunDevice::of(DeviceArgs { device: args.bench.first_device(), dtype: None })?.uuid;
    let has_gpu = uuid.is_some();
    std::fs::create_dir_all(&args.study_dir).map_err(Error::io("create", &args.study_dir))?;
    let log = args.study_dir.join(FILES[2]);
    let interval = Duration::from_millis(args.sample_interval);
    let sampler = Sampler::start(interval, Some(&log), move || meters(has_gpu, uuid.as_deref()))?;
    super::bench::run_observed(&args.bench, |rows, spans| {
        let readings = sampler.stop();
        let failed = rows.iter().find(|row| row.status == Status::Failed);
        let outcome = failed.map_or("finished".into(), |row| format!("{} failed: {}", row.op, row.note));
        let study = BenchStudy::new(command_line, args.sample_interval, outcome, rows, spans, readings);
        let value = serde_json::to_value(&study).map_err(|e| Error::Runtime(format!("cannot write a study: {e}")))?;
        write_atomic(&args.study_dir.join(FILES[0]), json_text(&value).as_bytes())?;
        write_atomic(&args.study_dir.join(FILES[1]), study.html().as_bytes())?;
        say(&format!("study in {}", args.study_dir.join(FILES[1]).display()));
        Ok(())
    })
}

/// File of an earlier study in a folder, if there is one.
fn existing_file(folder: &Path) -> Option<&'static str> {
    FILES.into_iter().find(|name| folder.join(name).exists())
}

/// Returns the meters to read, and the unavailable ones with the reasons.
fn meters(has_gpu: bool, uuid: Option<&str>) -> Meters {
    let mut meters: Vec<Box<dyn Meter>> = vec![Box::new(HostMeter::new())];
    let mut missing = Vec::new();
    if !has_gpu {
        missing.push(("card".into(), "this run uses no GPU".into()));
        return (meters, missing);
    }
    // The library is leaked and stays loaded until the process ends, because the meter lives on another thread.
    let gpu = nvml::load().and_then(|library| NvmlGpu::new(Box::leak(Box::new(library)), uuid));
    match gpu {
        Ok(gpu) => meters.push(Box::new(GpuMeter::new(gpu))),
        Err(why) => missing.push(("card".into(), why)),
    }
    (meters, missing)
}

impl StudyArgs {
    fn folder(&self) -> Result<PathBuf> {
        let folder = self.study_dir.clone().unwrap_or_else(|| {
            let mut name = self.train.output_dir.file_name().unwrap_or_default().to_owned();
            name.push("-study");
            self.train.output_dir.with_file_name(name)
        });
        if super::output::same_file(&folder, &self.train.output_dir) {
            return Err(Error::Usage(format!(
                "--study-dir {0} is the output folder of the run; name another folder",
                folder.display()
            )));
        }
        if let (Some(name), false) = (existing_file(&folder), self.train.overwrite_output_dir) {
            return Err(Error::Usage(format!(
                "--study-dir {} already holds {name}; name another folder, or give --overwrite-output-dir",
                folder.display()
            )));
        }
        Ok(folder)
    }

    fn facts(&self, method: Method, command_line: &str, place: &RunDevice) -> Facts {
        let (peak_flops, peak_source) = match (self.peak_tflops, place.bf16) {
            (Some(tera), _) => (Some(tera * 1e12), "--peak-tflops".to_owned()),
            (None, true) => match peak::bf16_flops(&place.hardware) {
                Some(flops) => (Some(flops), "data sheet, dense bf16".to_owned()),
                None => (None, "the data sheet peak of this GPU is not known; give --peak-tflops".to_owned()),
            },
            (None, false) => (None, "data sheet peaks are known only for bf16 on GPUs; give --peak-tflops".to_owned()),
        };
        Facts {
            command: command_line.to_owned(),
            method: method.name().to_owned(),
            backend: place.backend.to_owned(),
            hardware: place.hardware.clone(),
            dtype: place.dtype.to_owned(),
            threads: rayon::current_num_threads(),
            peak_flops,
            peak_source,
            sample_interval_ms: self.sample_interval,
        }
    }
}

/// Device of a run.
struct RunDevice {
    device: Device,
    bf16: bool,
    backend: &'static str,
    dtype: &'static str,
    hardware: String,
    uuid: Option<String>,
}

impl RunDevice {
    fn of(args: DeviceArgs) -> Result<Self> {
        fn known<B: BenchBackend>(on: &B, device: Device) -> RunDevice {
            let dtype = B::PRECISION.name();
            let (backend, hardware, uuid) = (B::NAME, on.hardware(), on.hardware_id());
            RunDevice { device, bf16: dtype == "bf16" && backend == "cuda", backend, dtype, hardware, uuid }
        }
        let ordinal = match args.device {
            Device::Auto => Driver::new(0).ok().map(|driver| (driver, 0)),
            Device::Cuda(ordinal) => Some((Driver::new(ordinal)?, ordinal)),
            Device::Cpu | Device::Emulator | Device::Reference => None,
        };
        Ok(match (ordinal, args.device, args.dtype) {
            (Some((driver, ordinal)), _, Some(Dtype::F32)) => {
                known(&Kernels::<_, f32>::new(driver), Device::Cuda(ordinal))
            }
            (Some((driver, ordinal)), ..) => known(&Kernels::<_, bf16>::new(driver), Device::Cuda(ordinal)),
            (None, Device::Emulator, Some(Dtype::F32)) => known(&Kernels::<_, f32>::new(Emulator::new()?), args.device),
            (None, Device::Emulator, _) => known(&Kernels::<_, bf16>::new(Emulator::new()?), args.device),
            (None, _, Some(Dtype::Bf16)) => known(&Cpu::<bf16>::default(), Device::Cpu),
            (None, ..) => known(&Cpu::new(), Device::Cpu),
        })
    }

    /// Measures the ceilings (peak rates) of the device; `None` for the emulator.
    fn rates(&self) -> Result<Option<Rates>> {
        match (self.device, self.bf16) {
            (Device::Cuda(ordinal), true) => Kernels::<_, bf16>::new(Driver::new(ordinal)?).rates(),
            (Device::Cuda(ordinal), false) => Kernels::<_, f32>::new(Driver::new(ordinal)?).rates(),
            (Device::Emulator, _) => Ok(None),
            _ if self.dtype == "bf16" => {
                let cpu = Cpu::<bf16>::on(Units::chosen()?);
                on_pool(|| cpu.rates())
            }
            _ => on_pool(|| Cpu::new().rates()),
        }
    }
}
