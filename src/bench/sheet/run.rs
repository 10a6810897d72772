//! Runs the launches that a sheet (a TOML file for a kernel without a launcher) describes: fills the operands,
//! launches, compares the results with the expected elements, and times the launches.

use std::ffi::c_void;
use std::time::Instant;

use half::bf16;
use rayon::prelude::*;

use super::super::measure::{Effort, Samples, Timing};
use super::super::row::{Cache, Row, Status};
use super::expression::{Formula, Numbers};
use super::launch::{Argument, Launch};
use super::{Element, Expected, Fill, SheetCall, SheetOperand};
use crate::backend::kernels::device::{Device, Kernel};
use crate::backend::kernels::emulator::Emulator;
use crate::backend::kernels::emulator::accesses::{LaunchAccesses, count_accesses};
use crate::rng::Rng;
use crate::{Error, Result};

/// Sampling effort of a run, and values for columns of its rows.
pub(crate) struct SheetRun<'a> {
    pub effort: Effort,
    pub date: &'a str,
    pub commit: &'a str,
    /// Column `model`: where the sizes come from.
    pub model: &'a str,
}

/// Bytes of an element.
pub(in crate::bench) fn bytes_of(element: Element) -> usize {
    match element {
        Element::F64 => 8,
        Element::F32 | Element::I32 => 4,
        Element::Bf16 | Element::Storage => 2,
    }
}

/// Rounds a number to the element type.
pub(in crate::bench) fn rounded(element: Element, x: f64) -> f64 {
    match element {
        Element::F64 => x,
        Element::F32 => f64::from(x as f32),
        Element::Bf16 | Element::Storage => bf16::from_f64(x).to_f64(),
        Element::I32 => f64::from(x as i32),
    }
}

fn stored(element: Element, values: &[f64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(values.len() * bytes_of(element));
    for &x in values {
        match element {
            Element::F64 => bytes.extend(x.to_ne_bytes()),
            Element::F32 => bytes.extend((x as f32).to_ne_bytes()),
            Element::Bf16 | Element::Storage => bytes.extend(bf16::from_f64(x).to_ne_bytes()),
            Element::I32 => bytes.extend((x as i32).to_ne_bytes()),
        }
    }
    bytes
}

fn numbers(element: Element, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.chunks_exact(N).map(|chunk| value(std::array::from_fn(|i| chunk[i]))).collect()
    }
    match element {
        Element::F64 => each(bytes, f64::from_ne_bytes),
        Element::F32 => each(bytes, |b| f64::from(f32::from_ne_bytes(b))),
        Element::Bf16 | Element::Storage => each(bytes, |b| bf16::from_ne_bytes(b).to_f64()),
        Element::I32 => each(bytes, |b| f64::from(i32::from_ne_bytes(b))),
    }
}

/// Converts the row-major index `flat` to one index per axis.
fn place(shape: &[usize], mut flat: usize) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for (at, &length) in place.iter_mut().zip(shape).rev() {
        (*at, flat) = (flat % length, flat / length);
    }
    place
}

/// Evaluates a formula for every element of a shape.
fn evaluated(formula: &Formula, shape: &[usize], operands: &[Vec<f64>], shapes: &[(String, Vec<usize>)]) -> Vec<f64> {
    let count = shape.iter().product();
    let value = |flat: usize| {
        let place = place(shape, flat);
        formula.value(&Numbers { operands, shapes, place: &place, result: shape })
    };
    (0..count).into_par_iter().with_min_len(1 << 10).map(value).collect()
}

impl SheetOperand {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Contents before the call, rounded to the element type.
    fn contents(&self) -> Vec<f64> {
        let mut rng = Rng::keyed(1, &["sheet", &self.name]);
        let values = match &self.fill {
            Fill::Normal => (0..self.len()).map(|_| rng.normal()).collect(),
            Fill::Uniform => (0..self.len()).map(|_| rng.unit()).collect(),
            Fill::Formula(formula) => evaluated(formula, &self.shape, &[], &[]),
            Fill::Given(values) => values.clone(),
            Fill::Unwritten => vec![f64::NAN; self.len()],
        };
        values.into_iter().map(|x| rounded(self.element, x)).collect()
    }
}

/// Elements of every operand before a launch.
type Contents = Vec<Vec<f64>>;

impl SheetCall {
    /// Bytes that the operands move.
    pub(in crate::bench) fn bytes(&self) -> u64 {
        self.operands.iter().map(|o| o.moved * bytes_of(o.element) as u64).sum()
    }

    fn fill<D: Device>(&self, device: &D, memory: &mut [D::Memory], contents: &[Vec<f64>]) -> Result<()> {
        for ((operand, memory), values) in self.operands.iter().zip(memory).zip(contents) {
            match operand.fill {
                Fill::Unwritten => device.upload(memory, 0, &vec![0xff; operand.len() * bytes_of(operand.element)])?,
                _ => device.upload(memory, 0, &stored(operand.element, values))?,
            }
        }
        Ok(())
    }

    fn launch<D: Device>(&self, device: &D, memory: &[D::Memory]) -> Result<()> {
        let word = |argument: &Argument| {
            let mut bytes = [0; 8];
            match argument {
                Argument::Operand(at) => bytes = D::address(&memory[*at]).to_ne_bytes(),
                Argument::Long(x) => bytes = x.to_ne_bytes(),
                Argument::Double(x) => bytes = x.to_ne_bytes(),
                Argument::Int(x) => bytes[..4].copy_from_slice(&x.to_ne_bytes()),
                Argument::Float(x) => bytes[..4].copy_from_slice(&x.to_ne_bytes()),
            }
            u64::from_ne_bytes(bytes)
        };
        for Launch { kernel, grid, shared_bytes, arguments } in &self.launches {
            // A u64 has the alignment of every kind of parameter.
            let mut words: Vec<u64> = arguments.iter().map(word).collect();
            let mut parameters: Vec<*mut c_void> = words.iter_mut().map(|word| (&raw mut *word).cast()).collect();
            // SAFETY: number, order and types of the parameters are those of the kernel's line. The pointers
            // address memory with the shapes of the sheet. The author of the kernel guarantees that its
            // accesses stay inside.
            unsafe { device.launch(kernel, *grid, *shared_bytes, &mut parameters)? };
        }
        Ok(())
    }

    /// Largest error as a share of its tolerance. [`Error::Runtime`] if an error exceeds its tolerance.
    fn verify<D: Device>(&self, device: &D, memory: &[D::Memory], contents: &[Vec<f64>]) -> Result<f64> {
        let shapes: Vec<(String, Vec<usize>)> =
            self.operands.iter().map(|operand| (operand.name.clone(), operand.shape.clone())).collect();
        let mut worst = 0.0f64;
        for (operand, memory) in self.operands.iter().zip(memory) {
            let expected = match &operand.expected {
                Expected::Nothing => continue,
                Expected::Given(values) => values.clone(),
                Expected::Formula(formula) => evaluated(formula, &operand.shape, contents, &shapes),
            };
            let mut bytes = vec![0; operand.len() * bytes_of(operand.element)];
            device.download(memory, 0, &mut bytes)?;
            let (absolute, relative) = operand.tolerance;
            for (flat, (got, value)) in numbers(operand.element, &bytes).into_iter().zip(expected).enumerate() {
                let error = if got == value { 0.0 } else { (got - value).abs() };
                let share = if error == 0.0 { 0.0 } else { error / (absolute + relative * value.abs()) };
                // NaN exceeds every tolerance.
                if share.is_nan() || share > 1.0 {
                    return Err(Error::Runtime(format!(
                        "{} is wrong at {:?}: {got} instead of {value}, {share:.2} times the tolerance",
                        operand.name,
                        place(&operand.shape, flat)
                    )));
                }
                worst = worst.max(share);
            }
        }
        Ok(worst)
    }

    fn sample<D: Device>(&self, device: &D, memory: &[D::Memory], calls: usize) -> Result<f64> {
        let from = device.stamp()?;
        for _ in 0..calls {
            self.launch(device, memory)?;
        }
        let to = device.stamp()?;
        Ok(device.seconds_between(&from, &to)? / calls as f64)
    }

    fn times<D: Device>(&self, device: &D, memory: &[D::Memory], effort: &Effort) -> Result<Timing> {
        for _ in 0..effort.warm_up.max(1) {
            self.launch(device, memory)?;
        }
        let one = self.sample(device, memory, 1)?;
        let calls = (effort.sample.as_secs_f64() / one.max(1e-9)).ceil().clamp(1.0, 1e5) as usize;
        let (began, mut seconds) = (Instant::now(), Vec::new());
        while seconds.len() < effort.repeats && (seconds.len() < effort.min_samples || began.elapsed() < effort.budget)
        {
            seconds.push(self.sample(device, memory, calls)?);
        }
        Ok(Timing::of(&Samples { seconds, calls }))
    }

    /// Allocates and fills the operands. Returns them with their contents.
    fn prepared<D: Device>(&self, device: &D) -> Result<(Vec<D::Memory>, Contents)> {
        let contents: Vec<Vec<f64>> = self.operands.iter().map(SheetOperand::contents).collect();
        let memory = self.operands.iter().map(|o| device.allocate(o.len() * bytes_of(o.element)));
        let mut memory = memory.collect::<Result<Vec<_>>>()?;
        self.fill(device, &mut memory, &contents)?;
        Ok((memory, contents))
    }

    /// Launches once and verifies. Returns the largest error as a share of its tolerance, and the
    /// bytes of the compared operands.
    pub(in crate::bench) fn verified<D: Device>(&self, device: &D) -> Result<(f64, Vec<Vec<u8>>)> {
        let (memory, contents) = self.prepared(device)?;
        self.launch(device, &memory)?;
        let share = self.verify(device, &memory, &contents)?;
        let mut results = Vec::new();
        for (operand, memory) in self.operands.iter().zip(&memory) {
            if !matches!(operand.expected, Expected::Nothing) {
                let mut bytes = vec![0; operand.len() * bytes_of(operand.element)];
                device.download(memory, 0, &mut bytes)?;
                results.push(bytes);
            }
        }
        Ok((share, results))
    }

    /// Verifies and times the launches on `device`, and verifies them on the emulators `others`. A wrong
    /// result gives a row with [`Status::Failed`].
    pub fn row<D: Device>(
        &self,
        device: &D,
        others: &[Emulator],
        run: &SheetRun<'_>,
        (variant, label): (&str, String),
    ) -> Result<Row> {
        let (memory, contents) = self.prepared(device)?;
        let checked = self.launch(device, &memory).and_then(|()| self.verify(device, &memory, &contents));
        let checked = checked.and_then(|share| {
            let shares = others.iter().map(|other| self.verified(other).map(|(share, _)| share));
            let shares = shares.collect::<Result<Vec<_>>>();
            let shares =
                shares.map_err(|why| Error::Runtime(format!("in a different order of threads and copies: {why}")))?;
            Ok(shares.into_iter().fold(share, f64::max))
        });
        let mut row = self.empty_row::<D>(device, run, variant);
        match checked {
            Err(why) => (row.status, row.note) = (Status::Failed, why.to_string()),
            Ok(share) => {
                let timing = self.times(device, &memory, &run.effort)?;
                row.note = label;
                row.cache = Some(Cache::Warm);
                row.error_share = Some(share);
                row.samples = Some(timing.samples as u64);
                row.calls = Some(timing.calls as u64);
                row.median_us = Some(1e6 * timing.median);
                row.p20_us = Some(1e6 * timing.p20);
                row.p80_us = Some(1e6 * timing.p80);
                row.least_us = Some(1e6 * timing.min);
                row.gb_per_s = Some(1e-9 * self.bytes() as f64 / timing.median);
                row.tflop_per_s = Some(1e-12 * self.flops as f64 / timing.median);
            }
        }
        Ok(row)
    }

    fn empty_row<D: Device>(&self, device: &D, run: &SheetRun<'_>, variant: &str) -> Row {
        Row {
            date: run.date.to_owned(),
            commit: run.commit.to_owned(),
            device: device.properties().name.clone(),
            backend: D::NAME.into(),
            variant: variant.into(),
            dtype: self.precision.name().into(),
            op: self.name().into(),
            model: run.model.to_owned(),
            layer: "own".into(),
            shape: self.shape.clone(),
            bytes: Some(self.bytes()),
            flops: Some(self.flops),
            ..Row::blank(Status::Measured)
        }
    }

    /// Name of the first kernel.
    pub fn name(&self) -> &'static str {
        self.launches[0].kernel.name
    }

    /// Kernels, and dynamic shared memory of their blocks in bytes.
    pub fn kernels(&self) -> impl Iterator<Item = (&'static Kernel, usize)> {
        self.launches.iter().map(|launch| (launch.kernel, launch.shared_bytes))
    }

    /// Median seconds of the launches, without verification. Operands that the launches only write are not
    /// filled before.
    pub fn median<D: Device>(&self, device: &D, effort: &Effort) -> Result<f64> {
        let mut memory = Vec::new();
        for operand in &self.operands {
            let mut bytes = device.allocate(operand.len() * bytes_of(operand.element))?;
            if !matches!(operand.fill, Fill::Unwritten) {
                device.upload(&mut bytes, 0, &stored(operand.element, &operand.contents()))?;
            }
            memory.push(bytes);
        }
        Ok(self.times(device, &memory, effort)?.median)
    }

    /// Like [`SheetCall::verified`], but returns the accesses of every launch on the emulator instead of the
    /// bytes.
    pub fn counted<D: Device>(&self, device: &D) -> Result<(f64, Vec<LaunchAccesses>)> {
        let (share, accesses) = count_accesses(|| self.verified(device));
        Ok((share?.0, accesses))
    }
}
