//! The ladders of `benches/ladder`. A ladder leads from the textbook loop to the shipped kernel, and each
//! rung adds one idea. A rung is a kernel file with a sheet, which describes its launch (`sheet`). The last rung
//! is the shipped op.
//!
//! ```text
//! for each rung:
//!   verify it against the f64 reference at small sizes, on the emulator in three schedules
//!   on a GPU: time it at the recorded sizes
//!   on the emulator: count its accesses at these sizes, and with twice the inner size
//!   floor at the recorded sizes: counts per step of the inner size, times the steps and the tiles
//! ```

mod files;

use std::time::Duration;

use half::bf16;

use super::accesses::total;
use super::measure::Effort;
use super::operand::OperandSet;
use super::run::predict;
use super::sheet::{Sheet, SheetCall};
use super::verify::Oracle;
use super::work::head::Head;
use super::work::linear::{Linear, Pass};
use super::work::{Call as _, Work};
use crate::backend::contract::LinearDims;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::Properties;
use crate::backend::kernels::driver::Driver;
use crate::backend::kernels::emulator::accesses::{Counts, LaunchAccesses, count_accesses};
use crate::backend::kernels::emulator::{Emulator, Schedule};
use crate::backend::kernels::hopper::Hopper;
use crate::backend::kernels::own::{OwnKernels, Target, unpacked};
use crate::perf::predict::counted::{CountedCall, GpuFloor};
use crate::{Error, Result};

/// Sizes by name.
type Sizes = &'static [(&'static str, usize)];

/// A ladder.
#[derive(Debug)]
pub(crate) struct Ladder {
    pub name: &'static str,
    /// Formula that all rungs compute.
    pub computes: &'static str,
    rungs: &'static [RungFile],
    /// Sizes of the recorded times.
    pub recorded: Sizes,
    /// Size that the innermost loop runs over.
    inner: &'static str,
    /// Sizes that are divided into tiles.
    outer: [&'static str; 2],
    /// Files of the rungs and their headers.
    files: &'static [(&'static str, &'static str)],
    /// Name and idea of the last rung. `record` has the op and the shape of its recorded time.
    shipped: (&'static str, &'static str),
    record: (&'static str, &'static str),
}

/// A rung with a separate kernel file.
#[derive(Debug)]
struct RungFile {
    stem: &'static str,
    idea: &'static str,
    tensor_cores: bool,
}

const fn rung(stem: &'static str, idea: &'static str, tensor_cores: bool) -> RungFile {
    RungFile { stem, idea, tensor_cores }
}

/// The ladders.
pub(crate) const LADDERS: [Ladder; 2] = [
    Ladder {
        name: "product",
        computes: "y = x weightᵀ in bf16 with f32 sums",
        rungs: &[
            rung("product_1_naive", "a thread per element", false),
            rung("product_2_coalesced", "a warp per element, lanes along k", false),
            rung("product_3_shared_tiles", "tiles in shared memory", false),
            rung("product_4_register_tiles", "4 x 4 elements per thread", false),
            rung("product_5_swizzled_vectors", "16-byte accesses, swizzled", false),
            rung("product_6_tensor_cores", "mma.sync", true),
            rung("product_7_pipeline", "cp.async, three stages", true),
        ],
        recorded: &[("tokens", 8192), ("inputs", 896), ("outputs", 151_936)],
        inner: "inputs",
        outer: ["tokens", "outputs"],
        files: files::PRODUCT,
        shipped: ("product_8_hopper", "wgmma, TMA: kernels/linear_sm90.cu"),
        record: ("linear_fwd", "tokens=8192 inputs=896 outputs=151936"),
    },
    Ladder {
        name: "head",
        computes: "logp and lse of head rows over the vocabulary",
        rungs: &[
            rung("head_1_stored_logits", "stored logits, two passes", false),
            rung("head_2_online", "stored logits, one pass", false),
            rung("head_3_fused", "product and logsumexp fused", false),
            rung("head_4_tensor_cores", "mma.sync", true),
            rung("head_5_split", "slices of the vocabulary", true),
            rung("head_6_pipeline", "cp.async, three stages", true),
        ],
        recorded: &[("rows", 8192), ("hidden", 896), ("vocab", 151_936), ("slices", 149)],
        inner: "hidden",
        outer: ["rows", "vocab"],
        files: files::HEAD,
        shipped: ("head_7_hopper", "wgmma, TMA: kernels/head_sm90.cu"),
        record: ("head_logprob_fwd", "rows=8192 hidden=896 vocab=151936"),
    },
];

/// Record that has the times of both shipped kernels from one run.
const RECORD: &str = include_str!("../../benches/record/nvidia-h200/2026-11-27-707e5bc.csv");
/// GPU and commit of the record.
pub(crate) const RECORDED_ON: (&str, &str) = ("h200", "707e5bc");

/// Sampling effort for a rung on a GPU.
const EFFORT: Effort = Effort {
    repeats: 10,
    warm_up: 1,
    sample: Duration::from_millis(2),
    min_samples: 2,
    budget: Duration::from_secs(2),
};

/// A verified rung.
#[derive(Debug, Default)]
pub(crate) struct Rung {
    pub name: &'static str,
    pub idea: &'static str,
    /// Largest error divided by its tolerance.
    pub error_share: f64,
    /// Counts in shared and in global memory at the small sizes, on the emulator.
    pub counts: Option<[Counts; 2]>,
    /// Predicted seconds at the recorded sizes on the GPU of the record, and the source of the prediction:
    /// the bound of a floor, or `tiles` for the shipped kernel.
    pub predicted: Option<(f64, &'static str)>,
    /// Recorded seconds.
    pub recorded: Option<f64>,
    /// Seconds on the GPU of this machine. If the rung could not be timed, `note` has the reason.
    pub measured: Option<f64>,
    pub note: Option<String>,
}

impl Ladder {
    /// Returns the ladder with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        LADDERS.iter().find(|ladder| ladder.name == name)
    }

    fn recorded_size(&self, name: &str) -> f64 {
        self.recorded.iter().find(|(known, _)| *known == name).map_or(1.0, |&(_, size)| size as f64)
    }

    /// Kernels and sheets of the rungs, compiled several at a time.
    fn open(&'static self, gpu: bool, emulator: bool) -> Result<Vec<(&'static RungFile, OwnKernels, Sheet)>> {
        let (folder, _) = unpacked(&format!("ladder-{}", self.name), self.files)?;
        let open = |rung: &'static RungFile| -> Result<_> {
            let path = folder.join(format!("{}.cu", rung.stem));
            let kernels = OwnKernels::read_file(&path)?;
            for (_, target) in
                [(gpu, Target::Gpu), (emulator, Target::Emulator)].into_iter().filter(|(wanted, _)| *wanted)
            {
                kernels.prepare(target)?;
            }
            Ok((rung, kernels, Sheet::beside(&path)?))
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut opened = Vec::new();
        for some in self.rungs.chunks(threads) {
            opened.extend(std::thread::scope(|scope| {
                let started: Vec<_> = some.iter().map(|rung| scope.spawn(move || open(rung))).collect();
                let stopped = |_| Err(Error::Runtime("a thread that compiled a rung panicked".into()));
                started.into_iter().map(|thread| thread.join().unwrap_or_else(stopped)).collect::<Result<Vec<_>>>()
            })?);
        }
        Ok(opened)
    }

    /// Verifies every rung on the given devices, and calls `tell` for each rung. Rungs are timed on a GPU and
    /// counted on the first emulator. The other emulators have different schedules, which reveal a missing
    /// barrier or wait.
    pub fn climb(
        &'static self,
        driver: Option<&Driver>,
        emulators: &[Emulator],
        gpu: (&Properties, GpuFloor),
        mut tell: impl FnMut(&Rung) -> Result<()>,
    ) -> Result<()> {
        for (file, kernels, sheet) in self.open(driver.is_some(), !emulators.is_empty())? {
            let in_rung = |e: Error| match e {
                Error::Runtime(why) => Error::Runtime(format!("{}: {why}", file.stem)),
                other => other,
            };
            let kernels: &'static OwnKernels = Box::leak(Box::new(kernels));
            let mut rung = Rung { name: file.stem, idea: file.idea, ..Rung::default() };
            if let Some((emulator, others)) = emulators.split_first() {
                let once = call(&sheet, kernels)?;
                let (share, accesses) = once.counted(emulator).map_err(in_rung)?;
                rung.error_share = share;
                for other in others {
                    rung.error_share = rung.error_share.max(once.verified(other).map_err(in_rung)?.0);
                }
                let mut deeper = sheet.clone();
                deeper.resize(self.inner, 2 * sheet.size(self.inner));
                let (_, twice) = call(&deeper, kernels)?.counted(emulator).map_err(in_rung)?;
                rung.predicted = Some(self.counted(file, &sheet, kernels, &accesses, &twice)?.floor(&gpu.1));
                rung.counts = Some([total(&accesses, true), total(&accesses, false)]);
            }
            if let Some(driver) = driver {
                let share = call(&sheet, kernels)?.verified(driver).map_err(in_rung)?.0;
                rung.error_share = rung.error_share.max(share);
                // The reference would take hours at the recorded sizes.
                let mut large = sheet.clone().unverified();
                self.recorded.iter().for_each(|&(name, size)| large.resize(name, size));
                match call(&large, kernels).and_then(|call| call.median(driver, &EFFORT)) {
                    Ok(seconds) => rung.measured = Some(seconds),
                    Err(why) => rung.note = Some(format!("not timed: {why}")),
                }
            }
            tell(&rung)?;
        }
        tell(&self.shipped_rung(gpu.0, !emulators.is_empty())?)
    }

    /// Counts at the recorded sizes, extrapolated from the counts at the sheet's sizes and at twice the inner
    /// size.
    fn counted(
        &self,
        file: &RungFile,
        sheet: &Sheet,
        kernels: &OwnKernels,
        once: &[LaunchAccesses],
        twice: &[LaunchAccesses],
    ) -> Result<CountedCall> {
        let tiles: f64 = self.outer.iter().map(|size| self.recorded_size(size) / sheet.size(size) as f64).product();
        let steps = self.recorded_size(self.inner) / sheet.size(self.inner) as f64;
        let units = |shared: bool| {
            let (once, twice) = (total(once, shared).units as f64, total(twice, shared).units as f64);
            tiles * (once + (steps - 1.0) * (twice - once))
        };
        let mut large = sheet.clone();
        self.recorded.iter().for_each(|&(name, size)| large.resize(name, size));
        let declaration = kernels.new_declarations().next().ok_or(Error::Runtime("a rung without a kernel".into()))?;
        let [m, n] = self.outer.map(|size| self.recorded_size(size));
        let k = self.recorded_size(self.inner);
        // Bytes of the results: bf16 elements, or two f32 per row.
        let results = if self.name == "product" { 2.0 * m * n } else { 8.0 * m };
        // Stored logits are written, then read by one or two passes.
        let reads = [("head_1_stored_logits", 2.0), ("head_2_online", 1.0)];
        let stored =
            reads.iter().find(|(stem, _)| *stem == file.stem).map_or(0.0, |(_, reads)| 4.0 * m * n * (1.0 + reads));
        Ok(CountedCall {
            launches: once.len() as f64,
            blocks: large.blocks(kernels, declaration)?,
            bytes: 2.0 * (m + n) * k + results + stored,
            flops: 2.0 * m * n * k,
            tensor_cores: file.tensor_cores,
            passes: units(true),
            sectors: units(false),
        })
    }

    /// The shipped op at small or at the recorded sizes.
    fn work(&self, small: bool) -> Work {
        match (self.name, small) {
            ("product", true) => linear(128, 64, 128),
            ("product", false) => linear(8192, 896, 151_936),
            (_, true) => Head::new(false, 128, 64, 512).into(),
            (_, false) => Head::new(false, 8192, 896, 151_936).into(),
        }
    }

    /// Rung of the shipped Hopper kernels. If `count` is true, they are verified and their accesses are
    /// counted on the emulator.
    fn shipped_rung(&self, gpu: &Properties, count: bool) -> Result<Rung> {
        let (name, idea) = self.shipped;
        let predicted = predict(&self.work(false), gpu, 0)?.microseconds.map(|us| (1e-6 * us, "tiles"));
        let recorded = recorded(self.record).map(|us| 1e-6 * us);
        let mut rung = Rung { name, idea, predicted, recorded, ..Rung::default() };
        if count {
            let work = self.work(true);
            let on = Kernels::<_, bf16>::new(Emulator::with(Schedule::Rising, 4)?).with_hopper(Hopper::Chosen);
            let mut set = OperandSet::new(&on, &work.operands())?;
            set.initialise(&on, &work, &work.operands())?;
            let oracle = Oracle::new(&on, &work, &set)?;
            oracle.reset(&on, &work, &mut set)?;
            let (called, accesses) = count_accesses(|| work.call(&on, set.cursor()));
            called?;
            rung.error_share = oracle.check(&on, &work, &set)?;
            rung.counts = Some([total(&accesses, true), total(&accesses, false)]);
        }
        Ok(rung)
    }
}

/// The call of a rung's first kernel.
fn call(sheet: &Sheet, kernels: &OwnKernels) -> Result<SheetCall> {
    let mut calls = Vec::new();
    for declaration in kernels.new_declarations() {
        calls.extend(sheet.calls(kernels, declaration)?);
    }
    calls.into_iter().next().ok_or(Error::Runtime("a rung without a call".into()))
}

fn linear(tokens: usize, inputs: usize, outputs: usize) -> Work {
    Linear { pass: Pass::Forward, dims: LinearDims { tokens, inputs, outputs } }.into()
}

/// Recorded median of a shipped op in microseconds.
fn recorded((op, shape): (&str, &str)) -> Option<f64> {
    let mut rows = csv::Reader::from_reader(RECORD.as_bytes());
    let headers = rows.headers().ok()?.clone();
    let at = |name: &str| headers.iter().position(|header| header == name);
    let (ops, shapes, variants, medians) = (at("op")?, at("shape")?, at("variant")?, at("median_us")?);
    let row =
        rows.records().flatten().find(|row| &row[ops] == op && &row[shapes] == shape && &row[variants] == "mapl")?;
    row[medians].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_kernels_have_a_recorded_time() {
        assert_eq!(LADDERS.map(|ladder| recorded(ladder.record).map(|us| us.round())), [Some(2887.0), Some(2731.0)]);
    }

    #[test]
    fn every_file_of_a_ladder_is_in_the_program() {
        for ladder in &LADDERS {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ladder").join(ladder.name);
            let mut found: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort();
            let mut known: Vec<&str> = ladder.files.iter().map(|(name, _)| *name).collect();
            known.sort_unstable();
            assert_eq!(found, known);
            assert!(ladder.rungs.iter().all(|rung| known.contains(&&*format!("{}.cu", rung.stem))));
        }
    }
}
