//! `--kernel`: a custom kernel file, verified and timed next to the shipped kernels of the same names.
//! Kernels without a launcher run as the TOML file next to it describes.

use std::ffi::OsStr;

use super::super::device::{Device, Dtype};
use super::table::{header, line};
use super::{BenchArgs, RunRecord};
use crate::backend::kernels::device::{Device as KernelDevice, Element};
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::{Emulator, Schedule};
use crate::backend::kernels::own::{self, OwnKernels, Target};
use crate::backend::kernels::{Kernels, launchers};
use crate::bench::accesses::text;
use crate::bench::own::{OwnContender, launching, resources, sheet_resources, verdicts};
use crate::bench::rates::BenchBackend;
use crate::bench::row::Status;
use crate::bench::run::BenchOptions;
use crate::bench::sheet::run::SheetRun;
use crate::bench::sheet::{Sheet, SheetCall};
use crate::terminal::complain;
use crate::{Error, Result};

impl BenchArgs {
    /// Returns the arguments with `auto` devices replaced by devices that run kernels, and the kernels of
    /// `--kernel`. Without `--kernel`, returns the arguments unchanged and `None`.
    pub(super) fn with_own(&self) -> Result<(Self, Option<OwnContender>)> {
        let Some(path) = &self.kernel else { return Ok((self.clone(), None)) };
        if std::env::var_os(own::VARIABLE).is_some_and(|folder| !folder.is_empty()) {
            return Err(Error::Usage(format!(
                "--kernel compares with the shipped kernels, which {} replaces; unset it",
                own::VARIABLE
            )));
        }
        let mut args = self.clone();
        for device in &mut args.device {
            *device = match *device {
                Device::Auto if Driver::new(0).is_ok() => Device::Cuda(0),
                Device::Auto => Device::Emulator,
                Device::Cpu | Device::Reference => {
                    return Err(Error::Usage(format!(
                        "--kernel with --device {device}: kernels run on cuda and emulator"
                    )));
                }
                kept => kept,
            };
        }
        let kernels: &'static OwnKernels = Box::leak(Box::new(OwnKernels::read_file(path)?));
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), OsStr::to_string_lossy).into_owned();
        Ok((args, Some(OwnContender { kernels, name })))
    }

    /// Storage types of the run. Without `--dtype`, they are `default`, or with `--kernel` both storages that
    /// kernels have.
    pub(super) fn dtypes(&self, default: &[Dtype]) -> Vec<Dtype> {
        match (self.dtype.is_empty(), &self.kernel) {
            (false, _) => self.dtype.clone(),
            (true, Some(_)) => vec![Dtype::Bf16, Dtype::F32],
            (true, None) => default.to_vec(),
        }
    }

    /// Benchmarks the calls that launch the kernels of `--kernel`, or without it all selected calls.
    pub(super) fn on_kernels<D: KernelDevice, A: Element>(
        &self,
        on: &Kernels<D, A>,
        options: &BenchOptions,
        record: &mut RunRecord,
    ) -> Result<()>
    where
        Kernels<D, A>: BenchBackend,
    {
        let Some(contender) = record.own.clone() else {
            self.on(on, options, record)?;
            return if self.lab.count_accesses { self.count_calls(on, options, record, None) } else { Ok(()) };
        };
        let (kernels, name) = (contender.kernels, contender.name.as_str());
        let emulated = D::NAME == Emulator::NAME;
        kernels.prepare(if emulated { Target::Emulator } else { Target::Gpu })?;
        // A build for GPUs gives the report of ptxas on the kernel's resources.
        if emulated && own::has_nvcc() {
            kernels.prepare(Target::Gpu)?;
        }
        let gpu = on.device().properties().clone();
        let (cases, dynamic) = launching(options.cases(A::PRECISION), kernels, &gpu, A::PRECISION)?;
        if !cases.is_empty() {
            let before = record.rows.len();
            let options = BenchOptions { own: Some(contender.clone()), ..options.clone() };
            self.on(on, &options, record)?;
            if self.lab.count_accesses {
                self.count_calls(on, &options, record, Some(&contender))?;
            }
            let (text, slower) = verdicts(&record.rows[before..], name, self.threshold);
            record.slower |= slower;
            record.tell(&text)?;
            record.tell(&resources(&contender, &dynamic, &gpu, emulated))?;
            for kernel in kernels.replaced().into_iter().filter(|kernel| !dynamic.contains_key(kernel)) {
                let other = launchers::KERNELS.iter().any(|k| k.name == kernel);
                if other && kernel.contains(A::PRECISION.name()) {
                    complain(&format!("note: no selected call launches {kernel} on this device; it was not verified"));
                }
            }
        }
        self.on_sheet(on, options, record, &contender)
    }

    /// Verifies and times the kernels without a launcher.
    fn on_sheet<D: KernelDevice, A: Element>(
        &self,
        on: &Kernels<D, A>,
        options: &BenchOptions,
        record: &mut RunRecord,
        contender: &OwnContender,
    ) -> Result<()> {
        let names: Vec<&str> = contender.kernels.new_declarations().map(|d| d.name.as_str()).collect();
        let Some(path) = self.kernel.as_deref().filter(|_| !names.is_empty()) else { return Ok(()) };
        if !path.with_extension("toml").is_file() {
            return Err(Error::data(
                path,
                0,
                None,
                format!(
                    "no launcher has the kernel {}; give it the name of a shipped kernel (`mapl env --kernels`), or describe \
                     its launch in {}",
                    names.join(", "),
                    path.with_extension("toml").display()
                ),
            ));
        }
        let sheet = Sheet::beside(path)?;
        sheet.check_names(&names)?;
        let mut calls = Vec::new();
        for declaration in contender.kernels.new_declarations() {
            calls.extend(sheet.calls(contender.kernels, declaration)?);
        }
        calls.retain(|call| call.precision == A::PRECISION);
        if calls.is_empty() {
            return Ok(());
        }
        record.tell(&format!("{} ({}, {})", on.device().properties().name, D::NAME, A::PRECISION.name()))?;
        record.tell(&header())?;
        // Different orders of threads and copies reveal a missing barrier or wait.
        let others = match D::NAME == Emulator::NAME {
            true => vec![Emulator::with(Schedule::Falling, 4)?, Emulator::with(Schedule::Random(1), 4)?],
            false => Vec::new(),
        };
        let run = SheetRun { effort: options.effort, date: &options.date, commit: &options.commit, model: "sheet" };
        for call in &calls {
            let row = call.row(on.device(), &others, &run, (&contender.name, contender.kernels.label()))?;
            record.tell(&line(&row))?;
            if self.lab.count_accesses && row.status == Status::Measured {
                let (_, launches) = call.counted(on.device())?;
                record.tell(&text(&format!("{} {}", row.op, row.shape), &launches))?;
            }
            record.rows.push(row);
        }
        let launched = calls.iter().flat_map(SheetCall::kernels);
        record.tell(&sheet_resources(contender, launched, on.device().properties(), D::NAME == Emulator::NAME))
    }
}

/// Returns [`Error::Usage`] if `--kernel` produced no row.
pub(super) fn check_launched(record: &RunRecord) -> Result<()> {
    match &record.own {
        Some(contender) if record.rows.is_empty() => Err(Error::Usage(format!(
            "no selected call launches a kernel of {} ({}); choose other --op, --model, --tokens and --dtype; the emulator \
             launches the Hopper kernels only with MAPL_SM90=1",
            contender.name,
            contender.kernels.files().iter().flat_map(|file| file.kernels()).collect::<Vec<_>>().join(", ")
        ))),
        _ => Ok(()),
    }
}
