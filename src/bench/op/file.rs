//! Kernel files of ops. They are compiled as in the build, launched by the op's contract, verified against
//! the op's reference, and timed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::super::measure::Effort;
use super::super::row::{Row, Status};
use super::super::sheet::launch::{Argument, Launch};
use super::super::sheet::run::{SheetRun, rounded};
use super::super::sheet::{Expected, Fill, SheetCall, SheetOperand};
use super::plan::{self, Plan};
use super::{Op, Operand, Role, Values, checked_operands, reference, wrong};
use crate::backend::contract::Precision;
use crate::backend::kernels::device::Device;
use crate::backend::kernels::emulator::{Emulator, Schedule};
use crate::backend::kernels::own::{
    AxisKind, Declaration, Kind, OwnKernels, ParameterElement as Element, Resources, Target,
};
use crate::data::template::frozen_date;
use crate::{Error, Result};

/// Orders of threads in which an emulated kernel must give the same bits.
const SCHEDULES: [Schedule; 3] = [Schedule::Rising, Schedule::Falling, Schedule::Random(7)];
/// Multiprocessors of an emulated GPU.
const PROCESSORS: usize = 4;

/// A kernel file (`.cu`), which is checked, and compiled at run time.
#[derive(Debug)]
pub struct KernelFile {
    kernels: OwnKernels,
    name: String,
    /// Temporary folder of a file that was given as text.
    _folder: Option<TempDir>,
}

/// A verified entry point.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// Name of the entry point.
    pub kernel: &'static str,
    /// Precision in which the entry point stores activations.
    pub precision: Precision,
    /// Largest error as a share of its tolerance.
    pub error_share: f64,
}

impl KernelFile {
    /// Reads and checks a `.cu` file. Headers in its folder take precedence over the program's headers.
    /// [`Error::Data`] with the line of a KERNEL that cannot be parsed.
    pub fn read(path: &Path) -> Result<Self> {
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Ok(Self { kernels: OwnKernels::read_file(path)?, name, _folder: None })
    }

    /// Like [`KernelFile::read`], but for a source text, which is stored as `STEM.cu`.
    pub fn text(stem: &str, text: &str) -> Result<Self> {
        let within = std::env::temp_dir();
        let folder = tempfile::Builder::new().prefix("mapl-op").tempdir();
        let folder = folder.map_err(Error::io("create a folder in", &within))?;
        let path: PathBuf = folder.path().join(format!("{stem}.cu"));
        std::fs::write(&path, text).map_err(Error::io("write", &path))?;
        Ok(Self { _folder: Some(folder), ..Self::read(&path)? })
    }

    /// Verifies every entry point of the op on a device: one launch, compared with the reference.
    /// [`Error::Runtime`] with the operand, the element and both values of the first wrong element.
    pub fn verify<D: Device>(&self, op: &dyn Op, device: &D) -> Result<Vec<Verified>> {
        let verified = |call: &SheetCall| {
            let (error_share, _) = call.verified(device).map_err(|e| at_kernel(call, e))?;
            Ok(Verified { kernel: call.name(), precision: call.precision, error_share })
        };
        self.calls::<D>(op)?.iter().map(verified).collect()
    }

    /// Like [`KernelFile::verify`], but on the emulator, in three orders of threads that must give the same
    /// bits. Writing outside of an operand is an error too.
    pub fn verify_emulated(&self, op: &dyn Op) -> Result<Vec<Verified>> {
        let mut found = Vec::new();
        for call in self.calls::<Emulator>(op)? {
            let mut first: Option<(f64, Vec<Vec<u8>>)> = None;
            for schedule in SCHEDULES {
                let device = Emulator::with(schedule, PROCESSORS)?;
                let (share, results) = call.verified(&device).map_err(|e| at_kernel(&call, e))?;
                match &first {
                    None => first = Some((share, results)),
                    Some((_, bits)) if *bits == results => {}
                    Some(_) => {
                        let usual = SCHEDULES[0];
                        let why = format!("different bits with threads in the order {schedule:?} and {usual:?}");
                        return Err(at_kernel(&call, Error::Runtime(why)));
                    }
                }
            }
            let error_share = first.map_or(f64::NAN, |(share, _)| share);
            found.push(Verified { kernel: call.name(), precision: call.precision, error_share });
        }
        Ok(found)
    }

    /// Returns rows of a record. Every entry point is verified, then timed for about `time`. A wrong result
    /// is a row with [`Status::Failed`]. Times of the emulator say nothing about a GPU. `row::write` of
    /// `bench` stores the rows, and `mapl bench --compare` reads them.
    pub fn rows<D: Device>(&self, op: &dyn Op, device: &D, time: Duration) -> Result<Vec<Row>> {
        let emulated = D::NAME == Emulator::NAME;
        let sample = if emulated { Duration::ZERO } else { Duration::from_millis(2) };
        let effort = Effort { repeats: 30, warm_up: 3, sample, min_samples: 5, budget: time };
        let date = frozen_date();
        let run = SheetRun { effort, date: &date, commit: crate::COMMIT, model: "own" };
        let row = |call: &SheetCall| {
            let mut row = call.row(device, &[], &run, (&self.name, self.kernels.label()))?;
            if row.status == Status::Measured && !emulated {
                row.predicted_us = plan::of(call, &device.properties().name, None).ok().map(|plan| plan.predicted_us);
            }
            Ok(row)
        };
        self.calls::<D>(op)?.iter().map(row).collect()
    }

    /// Compiles the file with nvcc, so that plans know the registers and shared memory of its kernels.
    /// [`Error::Device`] without nvcc.
    pub fn compile_for_gpu(&self) -> Result<()> {
        self.kernels.prepare(Target::Gpu)
    }

    /// Reports of ptxas on every entry point, after [`KernelFile::compile_for_gpu`].
    pub fn resources(&self) -> Option<&[Resources]> {
        self.kernels.resources()
    }

    /// Floor and predicted time of every entry point on a GPU that need not be present, by a name such
    /// as `h200` or `rtx-4090`. [`Error::Usage`] for a GPU that is not known.
    pub fn plan(&self, op: &dyn Op, gpu: &str) -> Result<Vec<Plan>> {
        let plan = |call: &SheetCall| plan::of(call, gpu, self.kernels.resources());
        self.launches(op)?.iter().map(plan).collect()
    }

    /// The launches of an op on a device, with compiled kernels.
    fn calls<D: Device>(&self, op: &dyn Op) -> Result<Vec<SheetCall>> {
        self.kernels.prepare(if D::NAME == Emulator::NAME { Target::Emulator } else { Target::Gpu })?;
        self.launches(op)
    }

    fn launches(&self, op: &dyn Op) -> Result<Vec<SheetCall>> {
        let Some(declaration) = self.kernels.new_declarations().find(|d| d.name == op.name()) else {
            let known: Vec<&str> = self.kernels.new_declarations().map(|d| d.name.as_str()).collect();
            return Err(wrong(
                op,
                format!(
                    "{} has no new KERNEL or KERNELS line of this name; its new ones are {} (a shipped kernel is replaced \
                     with `mapl bench --kernel` or MAPL_KERNELS)",
                    self.name,
                    if known.is_empty() { "none".into() } else { known.join(", ") }
                ),
            ));
        };
        let operands = checked_operands(op)?;
        let mut calls = Vec::new();
        for index in 0..declaration.kernels.len() {
            if let Some(storage) = storage(op, declaration, index)? {
                calls.push(self.launch(op, &operands, declaration, index, storage)?);
            }
        }
        if calls.is_empty() {
            return Err(wrong(op, format!("no entry point of {} has the sizes of this op", declaration.name)));
        }
        Ok(calls)
    }

    fn launch(
        &self,
        op: &dyn Op,
        operands: &[Operand],
        declaration: &Declaration,
        index: usize,
        storage: Option<Element>,
    ) -> Result<SheetCall> {
        let kernel = self.kernels.kernel(declaration, index)?;
        let wrong = |why: String| wrong(op, format!("{}: {why}", declaration.name));
        let element = |of: Element| if of == Element::Storage { storage.unwrap_or(of) } else { of };
        // Rounds the contents to the kernel's element types, then computes the reference on them.
        let (mut given, mut elements) = (Values::default(), Vec::new());
        for operand in operands {
            let kind = declaration.parameters.iter().find(|p| p.name == operand.name).map(|p| p.kind.clone());
            let element = match kind {
                Some(Kind::Read(of)) if !operand.is_written() => element(of),
                Some(Kind::Write(of)) if operand.is_written() => element(of),
                Some(Kind::Read(_)) => return Err(wrong(format!("{} is const, but the op writes it", operand.name))),
                Some(Kind::Write(_)) => return Err(wrong(format!("{} is not const, but an input", operand.name))),
                _ => return Err(wrong(format!("has no pointer {}", operand.name))),
            };
            let contents = operand.drawn(op.name()).into_iter().map(|x| rounded(element, x)).collect();
            given.set(operand.name, contents);
            elements.push(element);
        }
        let expected = reference(op, operands, &given)?;
        let precision = if elements.contains(&Element::Bf16) { Precision::Bf16 } else { Precision::F32 };
        let mut sheet_operands = Vec::new();
        for (operand, &element) in operands.iter().zip(&elements) {
            let tolerance = match element {
                Element::I32 => (0.0, 0.0),
                _ => {
                    let of = op.tolerance(operand.name, precision_of(element));
                    (of.atol, of.rtol)
                }
            };
            let times = match operand.role {
                Role::InOut => 2,
                Role::Scratch => 0,
                Role::Input | Role::Output => 1,
            };
            sheet_operands.push(SheetOperand {
                name: operand.name.into(),
                element,
                shape: operand.shape.clone(),
                fill: match operand.role {
                    Role::Output | Role::Scratch => Fill::Unwritten,
                    Role::Input | Role::InOut => Fill::Given(given.of(operand.name)?.to_vec()),
                },
                expected: match operand.is_compared() {
                    true => Expected::Given(expected.of(operand.name)?.to_vec()),
                    false => Expected::Nothing,
                },
                tolerance,
                moved: operand.moved.map_or(times * operand.len() as u64, |elements| elements as u64),
            });
        }
        let numbers = numbers(op);
        let mut arguments = Vec::new();
        for parameter in &declaration.parameters {
            let name = &parameter.name;
            let number = || {
                let found = numbers.iter().find(|(known, _)| known == name);
                found
                    .map(|(_, x)| *x)
                    .ok_or_else(|| wrong(format!("parameter {name} is neither a size nor a scalar of the op")))
            };
            let whole = |x: f64, most: f64| match x.fract() == 0.0 && x.abs() <= most {
                true => Ok(x),
                false => Err(wrong(format!("parameter {name}: {x} is not a whole number up to {most}"))),
            };
            arguments.push(match parameter.kind {
                Kind::Read(_) | Kind::Write(_) => match operands.iter().position(|o| o.name == *name) {
                    Some(at) => Argument::Operand(at),
                    None => return Err(wrong(format!("pointer {name} is not an operand of the op"))),
                },
                Kind::Int => Argument::Int(whole(number()?, f64::from(i32::MAX))? as i32),
                Kind::Long => Argument::Long(whole(number()?, 9e15)? as i64),
                Kind::Float => Argument::Float(number()? as f32),
                Kind::Double => Argument::Double(number()?),
                Kind::TensorMap | Kind::Enum(_) => {
                    return Err(wrong(format!(
                        "parameter {name}: tensor maps and enums cannot be passed; use numbers"
                    )));
                }
            });
        }
        let grid = op.grid(kernel.threads as usize);
        if grid.0.contains(&0) {
            return Err(wrong(format!("a grid of {:?} blocks does nothing", grid.0)));
        }
        let shape: Vec<String> = op.sizes().iter().map(|(name, size)| format!("{name}={size}")).collect();
        Ok(SheetCall {
            launches: vec![Launch { kernel, grid, shared_bytes: op.shared_bytes(), arguments }],
            precision,
            shape: if shape.is_empty() { "none".into() } else { shape.join(" ") },
            flops: op.flops(),
            operands: sheet_operands,
        })
    }
}

/// Sizes and scalars of an op.
fn numbers(op: &dyn Op) -> Vec<(&'static str, f64)> {
    op.sizes().into_iter().map(|(name, size)| (name, size as f64)).chain(op.scalars()).collect()
}

/// Returns the storage of an entry point, or `Some(None)` if it has no storage axis. `None` if the entry
/// point is for different sizes.
fn storage(op: &dyn Op, declaration: &Declaration, index: usize) -> Result<Option<Option<Element>>> {
    let numbers = numbers(op);
    let mut storage = None;
    for (axis, &value) in declaration.axes.iter().zip(&declaration.kernels[index].values) {
        match axis.kind {
            AxisKind::Storage => storage = Some([Element::F32, Element::Bf16][value]),
            AxisKind::Int => {
                let Some((_, wanted)) = numbers.iter().find(|(name, _)| *name == axis.name) else {
                    return Err(wrong(op, format!("FOR has the axis {}, which is not a size of the op", axis.name)));
                };
                if axis.values[value].argument.parse() != Ok(*wanted) {
                    return Ok(None);
                }
            }
            AxisKind::Enum(_) => {
                return Err(wrong(op, format!("FOR has the enum {}; an op selects numbers only", axis.name)));
            }
        }
    }
    Ok(Some(storage))
}

fn precision_of(element: Element) -> Precision {
    match element {
        Element::F64 => Precision::F64,
        Element::Bf16 => Precision::Bf16,
        Element::F32 | Element::I32 | Element::Storage => Precision::F32,
    }
}

/// Adds the name of the entry point to an error.
fn at_kernel(call: &SheetCall, error: Error) -> Error {
    match error {
        Error::Runtime(why) => Error::Runtime(format!("{} ({}): {why}", call.name(), call.shape)),
        other => other,
    }
}
