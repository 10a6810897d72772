//! `mapl bench`: times every op, next to ceilings measured in the same run. With `--plan` it
//! predicts the floor of a training step on a GPU that need not be present.

mod cpu;
mod explain;
mod lab;
mod own;
mod selection;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args};
use half::bf16;

use self::lab::LabArgs;
use self::selection::no_call;
use self::table::{header, line};
use super::device::{Device, Dtype};
use super::inputs::Inputs;
use super::plan::StepPlanArgs;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::Emulator;
use crate::bench::compare::{self, RowComparison, Verdict};
use crate::bench::measure::Effort;
use crate::bench::own::OwnContender;
use crate::bench::rates::BenchBackend;
use crate::bench::row::{self, Row, Status};
use crate::bench::run::{BenchOptions, Progress, run as bench};
use crate::bench::shapes::{MODELS, SQUARE, SizeLimits};
use crate::bench::work::Call as _;
use crate::data::template::frozen_date;
use crate::error::refuse_given;
use crate::study::bench::Span;
use crate::terminal::{complain, emit, say};
use crate::{Error, Result};

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("compared").args(["compare", "kernel"]))]
pub struct BenchArgs {
    #[command(flatten)]
    plan: StepPlanArgs,
    /// Devices to benchmark, in this order: auto, cpu, cuda, cuda:N, emulator
    #[arg(long, conflicts_with = "StepPlanArgs", value_delimiter = ',', default_value = "auto")]
    device: Vec<Device>,
    /// Storage of activations and weights [default: bf16 and f32 on cuda, bf16 on the emulator, f32
    /// on the cpu]
    #[arg(long, conflicts_with = "StepPlanArgs", value_delimiter = ',')]
    dtype: Vec<Dtype>,
    /// Ops to benchmark, by name prefix (`mapl env` lists the ops) [default: all]
    #[arg(long, conflicts_with = "StepPlanArgs", value_delimiter = ',')]
    op: Vec<String>,
    /// Models whose layer sizes are benchmarked; `square` stands for square GEMMs [default: all
    /// published models, on cuda also square; tiny on the emulator]
    #[arg(long, conflicts_with = "StepPlanArgs", value_delimiter = ',', value_parser = model)]
    model: Vec<String>,
    /// Tokens per batch [default: 2048, 8192 and 32768 on cuda; 512 on the cpu; 128 on the
    /// emulator]
    #[arg(long, conflicts_with = "StepPlanArgs", value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Calls to benchmark, by layer name (qkv, head) or by one of the sizes that --list prints
    /// (hidden=896) [default: all]
    #[arg(long, conflicts_with = "StepPlanArgs", value_delimiter = ',')]
    shape: Vec<String>,
    /// Implementations to time, by name prefix: mapl, cuBLASLt [default: all]
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"], value_delimiter = ',')]
    variant: Vec<String>,
    /// Samples per implementation, over all passes
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"], default_value_t = 30)]
    repeats: usize,
    /// Passes over all calls; each takes its share of the samples. With --compare, further passes
    /// repeat calls that differ or were disturbed [default: 3 on the cpu, else 1]
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"])]
    passes: Option<usize>,
    /// Seconds of sampling per call; at least 5 samples are taken
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"], default_value_t = 2.0)]
    seconds: f64,
    /// Skip calls whose minimum samples would exceed this many seconds
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"], default_value_t = 20.0)]
    longest: f64,
    /// MiB of operand sets that calls rotate over, so that no call finds its operands in a cache; not
    /// on the emulator [default: 256]
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"])]
    rotate_mib: Option<u64>,
    /// Seconds for which a call is repeated to measure its energy on a GPU; 0 measures none [default: 0.2]
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"])]
    energy_seconds: Option<f64>,
    /// Seconds after which no further call starts; finished calls stay in the record
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"])]
    limit: Option<f64>,
    /// File to write the rows to, as CSV or, if the name ends in .json, JSON; can be repeated
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"])]
    output: Vec<PathBuf>,
    /// Custom kernel file (docs/kernels.md) to compile, verify and time next to the shipped kernels of the
    /// same names; a TOML file with the same stem describes kernels with new names
    #[arg(long, value_name = "FILE.cu", conflicts_with_all = ["StepPlanArgs", "list", "variant"])]
    kernel: Option<PathBuf>,
    /// Compare with the rows of an earlier file
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"])]
    compare: Option<PathBuf>,
    /// Relative time difference that a comparison ignores
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"], default_value_t = 0.05, requires = "compared")]
    threshold: f64,
    /// Exit with code 1 if a row is slower than in the earlier file, or than the shipped kernel
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"], requires = "compared")]
    fail_if_slower: bool,
    /// Version of the program to store in the rows [default: commit of the git checkout in the
    /// working directory]
    #[arg(long, conflicts_with_all = ["StepPlanArgs", "list"])]
    commit: Option<String>,
    /// Explain the calls of ops with this prefix: floor, launches, occupancy, loops, prediction and the
    /// limit that binds, for qwen2.5-0.5b and 8192 tokens without --model and --tokens
    #[arg(long, value_name = "OP", conflicts_with_all = ["StepPlanArgs", "list", "op", "kernel", "compare", "output", "device"])]
    explain: Option<String>,
    /// GPU to explain for, such as h200 or a100 [default: that of this machine, else h200]
    #[arg(long, requires = "explain", conflicts_with_all = ["StepPlanArgs", "list"])]
    gpu: Option<String>,
    /// Print the command of NVIDIA's profiler for each explained call; if ncu and the GPU are present, also
    /// run it and join its metrics to the call
    #[arg(long, requires = "explain", conflicts_with_all = ["StepPlanArgs", "list"])]
    ncu: bool,
    /// Join the metrics of a profile that the command of --ncu wrote elsewhere to the explained call
    #[arg(long, value_name = "FILE", requires = "explain", conflicts_with_all = ["StepPlanArgs", "list", "ncu"])]
    ncu_csv: Option<PathBuf>,
    /// List the calls without running them
    #[arg(long, conflicts_with = "StepPlanArgs")]
    list: bool,
    #[command(flatten)]
    lab: LabArgs,
}

impl BenchArgs {
    /// Files that the benchmark reads.
    pub fn inputs(&self) -> Inputs {
        Inputs::default()
            .with("--compare", &self.compare)
            .with("--kernel", &self.kernel)
            .with("--ncu-csv", &self.ncu_csv)
    }

    /// Returns an error for options that time no rows, because a study observes rows.
    pub fn check_timed(&self) -> Result<()> {
        if self.list || self.plan.wanted() || self.explain.is_some() || self.lab.times_nothing() {
            return Err(Error::Usage(
                "--list, --plan, --explain, --ladder and --tune have no rows that a study could observe; leave them out".into(),
            ));
        }
        self.check()
    }

    /// The device whose GPU is observed: the first one given.
    pub fn first_device(&self) -> Device {
        self.device.first().copied().unwrap_or(Device::Auto)
    }
}

/// Rows so far, and rows of an earlier run.
struct RunRecord {
    /// Whether stdout holds the only copy of the rows, so that failing to print them is an error.
    printed: bool,
    rows: Vec<Row>,
    earlier: Option<Vec<Row>>,
    /// Time spans in which rows were sampled.
    spans: Vec<Span>,
    /// Kernels of `--kernel`, and whether one is slower than the shipped kernel.
    own: Option<OwnContender>,
    slower: bool,
}

impl RunRecord {
    /// A record whose rows the caller shows.
    fn silent() -> Self {
        Self { printed: false, rows: Vec::new(), earlier: None, spans: Vec::new(), own: None, slower: false }
    }

    fn tell(&self, text: &str) -> Result<()> {
        if self.printed {
            return emit(text);
        }
        say(text);
        Ok(())
    }

    /// Inserts rows, replacing earlier rows of the same calls.
    fn put(&mut self, new: &[Row]) {
        for row in new {
            match self.rows.iter_mut().find(|old| old.key() == row.key()) {
                Some(old) => *old = row.clone(),
                None => self.rows.push(row.clone()),
            }
        }
    }
}

fn model(text: &str) -> Result<String, String> {
    let names: Vec<&str> = MODELS.iter().map(|model| model.name).chain([SQUARE]).collect();
    if names.contains(&text) { Ok(text.to_owned()) } else { Err(format!("one of {}", names.join(", "))) }
}

/// Benchmarks, or prints the plan.
pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some(op) = &args.explain {
        return args.explain_calls(op);
    }
    if let Some(name) = &args.lab.ladder {
        return args.climb(name);
    }
    if args.lab.tune {
        return args.tune();
    }
    if args.plan.wanted() { args.plan.print() } else { bench_rows(args, args.output.is_empty(), |_, _| Ok(())) }
}

/// Benchmarks for a study. `see` receives the rows and their time spans before failures and slower
/// rows end the command.
pub fn run_observed(args: &BenchArgs, see: impl FnOnce(&[Row], &[Span]) -> Result<()>) -> Result<()> {
    bench_rows(args, false, see)
}

fn bench_rows(args: &BenchArgs, printed: bool, see: impl FnOnce(&[Row], &[Span]) -> Result<()>) -> Result<()> {
    let (args, own) = args.with_own()?;
    args.check()?;
    let earlier = args.compare.as_deref().map(read_earlier).transpose()?;
    let mut record = RunRecord { printed, rows: Vec::new(), earlier, spans: Vec::new(), own, slower: false };
    for &device in &args.device {
        args.on_device(device, &mut record)?;
    }
    if args.list {
        return Ok(());
    }
    own::check_launched(&record)?;
    let rows = &record.rows;
    args.write(rows, true)?;
    see(rows, &record.spans)?;
    let count = |status| rows.iter().filter(|row| row.status == status).count();
    let measured = count(Status::Measured);
    let others = format!(
        "{} absent, {} skipped, {} failed",
        count(Status::Absent),
        count(Status::Skipped),
        count(Status::Failed)
    );
    record.tell(&format!("{measured} rows measured, {others}"))?;
    let pairs = record.earlier.as_ref().map(|earlier| compare::compare(rows, earlier, args.threshold));
    if let Some(pairs) = &pairs {
        record.tell(&compare::text(pairs))?;
    }
    if let Some(row) = rows.iter().find(|row| row.status == Status::Failed) {
        return Err(Error::Runtime(format!("{} {} {} failed: {}", row.op, row.model, row.shape, row.note)));
    }
    if measured == 0 {
        return Err(Error::Runtime(format!(
            "no row was measured ({others}); the notes of the rows say why; --variant, --longest and --limit decide what \
             is measured"
        )));
    }
    if args.fail_if_slower && record.slower {
        return Err(Error::Runtime("a kernel is slower than the shipped kernel (--fail-if-slower)".into()));
    }
    pairs.map_or(Ok(()), |pairs| args.judge(&pairs))
}

/// Rows to compare with.
fn read_earlier(path: &Path) -> Result<Vec<Row>> {
    let rows = row::read(path)?;
    if rows.is_empty() {
        return Err(Error::data(path, 0, None, "holds no rows to compare with; write them with `mapl bench --output`"));
    }
    Ok(rows)
}

impl BenchArgs {
    /// Returns an error if no row was compared, and for slower rows with `--fail-if-slower`.
    fn judge(&self, pairs: &[RowComparison]) -> Result<()> {
        let count = |verdicts: &[Verdict]| pairs.iter().filter(|pair| verdicts.contains(&pair.verdict)).count();
        let judged = count(&[Verdict::Same, Verdict::Faster, Verdict::Slower]);
        let fail = |why: &str| Err(Error::Runtime(why.into()));
        if judged + count(&[Verdict::Disturbed]) == 0 {
            return fail(
                "no row was compared: no call is measured in both records; compare with rows of this device, dtype, \
                 --model and --tokens",
            );
        }
        if self.fail_if_slower && count(&[Verdict::Slower]) > 0 {
            return fail("a row is slower than in the earlier record (--fail-if-slower)");
        }
        if self.fail_if_slower && judged == 0 {
            return fail(
                "--fail-if-slower: other programs disturbed every compared row, so none was judged; run it again on an \
                 idle machine",
            );
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let usage = |text: String| Err(Error::Usage(text));
        for (flag, value) in [
            ("--seconds", self.seconds),
            ("--longest", self.longest),
            ("--energy-seconds", self.energy_seconds.unwrap_or(0.0)),
            ("--threshold", self.threshold),
            ("--limit", self.limit.unwrap_or(0.0)),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return usage(format!("{flag} {value}: a number of at least 0 is needed"));
            }
        }
        for (flag, value) in [("--repeats", self.repeats), ("--passes", self.passes.unwrap_or(1))] {
            if !(1..=10_000).contains(&value) {
                return usage(format!("{flag} {value}: a number from 1 to 10000 is needed"));
            }
        }
        if let Some(tokens) = self.tokens.iter().find(|&&tokens| !(16..=1 << 20).contains(&tokens)) {
            return usage(format!("--tokens {tokens}: a number from 16 to {} is needed", 1 << 20));
        }
        for path in &self.output {
            super::output::check_output("--output", path, &self.inputs())?;
        }
        let only = |devices: &[Device]| self.device.iter().all(|device| devices.contains(device));
        let energy = self.energy_seconds.is_some_and(|seconds| seconds > 0.0);
        refuse_given(&[("--energy-seconds", energy && only(&[Device::Cpu, Device::Emulator]))], "without a GPU")?;
        refuse_given(&[("--rotate-mib", self.rotate_mib.is_some() && only(&[Device::Emulator]))], "on the emulator")?;
        self.check_lab()?;
        self.check_selection()
    }

    /// Writes the rows so far. A pipe or device receives them once, when all are measured.
    fn write(&self, rows: &[Row], all: bool) -> Result<()> {
        let replaced = |path: &&PathBuf| all || path.is_file() || !path.exists();
        self.output.iter().filter(replaced).try_for_each(|path| row::write(path, rows))
    }

    fn options(&self, cuda: bool, emulated: bool) -> BenchOptions {
        let or = |given: &[usize], default: &[usize]| if given.is_empty() { default.to_vec() } else { given.to_vec() };
        let published = MODELS.iter().map(|model| model.name).filter(|&name| name != "tiny");
        let models: Vec<String> = match (self.model.is_empty(), emulated) {
            (false, _) => self.model.clone(),
            (true, true) => vec!["tiny".into()],
            (true, false) => published.chain(cuda.then_some(SQUARE)).map(String::from).collect(),
        };
        let tokens = match (cuda, emulated) {
            (true, _) => or(&self.tokens, &[2048, 8192, 32_768]),
            (_, true) => or(&self.tokens, &[128]),
            _ => or(&self.tokens, &[512]),
        };
        let sample = if cuda { Duration::from_millis(2) } else { Duration::from_millis(10) };
        BenchOptions {
            ops: self.op.clone(),
            models,
            tokens,
            shapes: self.shape.clone(),
            variants: self.variant.clone(),
            effort: Effort {
                repeats: self.repeats,
                warm_up: 3,
                min_samples: 5,
                sample: if emulated { Duration::ZERO } else { sample },
                budget: Duration::from_secs_f64(self.seconds),
            },
            passes: self.passes.unwrap_or(if cuda || emulated { 1 } else { 3 }),
            max_duration: Duration::from_secs_f64(self.longest),
            rotated_bytes: if emulated { 0 } else { self.rotate_mib.unwrap_or(256) << 20 },
            size_limits: match cuda {
                true => SizeLimits { parameters: 1 << 29, logits: 1 << 31 },
                false => SizeLimits { parameters: 1 << 25, logits: 1 << 26 },
            },
            energy_seconds: self.energy_seconds.unwrap_or(0.2),
            limit: self.limit.map(Duration::from_secs_f64),
            date: frozen_date(),
            commit: self.commit.clone().unwrap_or_else(commit),
            own: None,
        }
    }

    fn on_device(&self, device: Device, record: &mut RunRecord) -> Result<()> {
        let both = |default: &[Dtype]| self.dtypes(default);
        let refuse = |text: &str| Err(Error::Usage(text.into()));
        match device {
            Device::Reference => {
                refuse("--device reference: it is the oracle that other devices are verified against, and is not timed")
            }
            Device::Auto => match Driver::new(0) {
                Ok(driver) => self.on_cuda(driver, &both(&[Dtype::Bf16, Dtype::F32]), record),
                Err(_) => self.on_device(Device::Cpu, record),
            },
            Device::Cuda(ordinal) => self.on_cuda(Driver::new(ordinal)?, &both(&[Dtype::Bf16, Dtype::F32]), record),
            Device::Cpu => self.on_cpu(&both(&[Dtype::F32]), record),
            Device::Emulator => {
                let options = self.options(false, true);
                for dtype in both(&[Dtype::Bf16]) {
                    match dtype {
                        Dtype::Bf16 => self.on_kernels(&Kernels::<_, bf16>::new(Emulator::new()?), &options, record)?,
                        Dtype::F32 => self.on_kernels(&Kernels::<_, f32>::new(Emulator::new()?), &options, record)?,
                        Dtype::F64 => return refuse("--dtype f64: kernels compute in bf16 or f32; choose one of them"),
                    }
                }
                Ok(())
            }
        }
    }

    fn on_cuda(&self, driver: Driver, dtypes: &[Dtype], record: &mut RunRecord) -> Result<()> {
        let options = self.options(true, false);
        let mut driver = Some(driver);
        for dtype in dtypes {
            let Some(device) = driver.take() else { break };
            driver = Some(match dtype {
                Dtype::Bf16 => {
                    let on = Kernels::<_, bf16>::new(device);
                    self.on_kernels(&on, &options, record)?;
                    on.into_device()
                }
                Dtype::F32 => {
                    let on = Kernels::<_, f32>::new(device);
                    self.on_kernels(&on, &options, record)?;
                    on.into_device()
                }
                Dtype::F64 => {
                    return Err(Error::Usage("--dtype f64: kernels compute in bf16 or f32; choose one of them".into()));
                }
            });
        }
        Ok(())
    }

    fn on<B: BenchBackend>(&self, on: &B, options: &BenchOptions, record: &mut RunRecord) -> Result<()> {
        let cases = options.cases_on(on)?;
        if cases.is_empty() {
            return Err(no_call(B::NAME));
        }
        if self.list {
            for case in cases {
                emit(&format!("{:<18} {:<14} {:<14} {}", case.work.op(), case.model, case.layer, case.shape()))?;
            }
            return Ok(());
        }
        if options.effort.sample.is_zero() {
            complain("note: emulator times say nothing about a GPU; this run only verifies the results");
        }
        record.tell(&format!("{} ({}, {})", on.hardware(), B::NAME, B::PRECISION.name()))?;
        record.tell(&header())?;
        let done = std::mem::take(&mut record.rows);
        let earlier = record.earlier.take();
        let before = earlier.as_deref().map(|rows| (rows, self.threshold));
        let mut at = None;
        let measured = bench(on, options, before, |Progress { pass, timed }, new| {
            if at.replace(pass) != Some(pass) && options.passes > 1 {
                record.tell(&match pass < options.passes {
                    true => format!("pass {} of {}", pass + 1, options.passes),
                    false => "repeated: rows that differ from the earlier record or were disturbed".to_owned(),
                })?;
            }
            // Measured rows are printed in the last pass only, with medians over all passes.
            let shown = |row: &&Row| pass + 1 >= options.passes || row.status != Status::Measured;
            new.iter().filter(shown).try_for_each(|row| record.tell(&line(row)))?;
            record.put(new);
            record.spans.extend(timed.map(|(from, to)| Span { from, to, rows: new.to_vec() }));
            // An interrupted run loses only the call it was measuring.
            self.write(&[done.as_slice(), record.rows.as_slice()].concat(), false)
        })?;
        (record.rows, record.earlier) = (done, earlier);
        if let Some(row) = measured.iter().find(|row| row.share.is_some_and(|share| share > 1.05)) {
            complain(&format!(
                "warning: {} {} reaches {:.2} of its ceiling; either other work ran while the ceilings were measured, or a \
                 cache holds the operands; run it again",
                row.op,
                row.shape,
                row.share.unwrap_or_default()
            ));
        }
        record.rows.extend(measured);
        Ok(())
    }
}

/// Commit of the checkout in the working directory, marked with `+` if files were changed.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short=7", "HEAD"]) {
        Some(commit) => match git(&["status", "--porcelain", "--untracked-files=no"]) {
            Some(changes) if changes.is_empty() => commit,
            _ => format!("{commit}+"),
        },
        None => "unknown".into(),
    }
}
