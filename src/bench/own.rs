//! Custom kernels next to the shipped kernels: the calls that launch them, the verdict on their times, and
//! the resources of both.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use half::bf16;

use super::compare::{Verdict, compare};
use super::explain::resources_of;
use super::occupancy::{BlockNeeds, Multiprocessor};
use super::operand::OperandSet;
use super::row::Row;
use super::run::OWN_VARIANT;
use super::shapes::Case;
use super::work::{Call, Work};
use crate::Result;
use crate::backend::contract::Precision;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Element, Kernel, Properties};
use crate::backend::kernels::emulator::shared_arrays;
use crate::backend::kernels::launchers::KERNELS;
use crate::backend::kernels::own::{self, OwnKernels};
use crate::backend::kernels::rehearsal::{Launched, Rehearsal};

/// Kernels that are timed next to the shipped ones.
#[derive(Clone, Debug)]
pub(crate) struct OwnContender {
    pub kernels: &'static OwnKernels,
    /// Name of the variant in rows, which is the name of the kernel file.
    pub name: String,
}

/// Launches of a call on a GPU with these properties.
pub(crate) fn launches(work: &Work, gpu: &Properties, precision: Precision) -> Result<Vec<Launched>> {
    fn of<A: Element>(work: &Work, gpu: &Properties) -> Result<Vec<Launched>> {
        let on = Kernels::<_, A>::new(Rehearsal::of(gpu));
        let mut set = OperandSet::new(&on, &work.operands())?;
        work.call(&on, set.cursor())?;
        Ok(on.device().take_launches())
    }
    if precision == Precision::Bf16 { of::<bf16>(work, gpu) } else { of::<f32>(work, gpu) }
}

/// Returns the calls that launch one of these kernels, and the maximum dynamic shared memory of each kernel.
pub(crate) fn launching(
    cases: Vec<Case>,
    kernels: &OwnKernels,
    gpu: &Properties,
    precision: Precision,
) -> Result<(Vec<Case>, BTreeMap<&'static str, usize>)> {
    let names = kernels.replaced();
    let (mut kept, mut dynamic) = (Vec::new(), BTreeMap::new());
    for case in cases {
        let mut launches = launches(&case.work, gpu, precision)?;
        launches.retain(|launch| names.contains(&launch.kernel));
        if launches.is_empty() {
            continue;
        }
        for launch in launches {
            let bytes = dynamic.entry(launch.kernel).or_insert(0);
            *bytes = launch.shared_bytes.max(*bytes);
        }
        kept.push(case);
    }
    Ok((kept, dynamic))
}

/// Verdicts on rows of the variant `name` against the shipped rows of the same run: one line each,
/// and whether one of them is slower.
pub(crate) fn verdicts(rows: &[Row], name: &str, threshold: f64) -> (String, bool) {
    let new: Vec<Row> = rows
        .iter()
        .filter(|row| row.variant == name)
        .map(|row| Row { variant: OWN_VARIANT.into(), ..row.clone() })
        .collect();
    let shipped: Vec<Row> = rows.iter().filter(|row| row.variant == OWN_VARIANT).cloned().collect();
    let (mut text, mut slower) = (String::new(), false);
    for pair in compare(&new, &shipped, threshold) {
        let words = match pair.verdict {
            Verdict::Slower => "is slower than the shipped kernel",
            Verdict::Faster => "is faster than the shipped kernel",
            Verdict::Same => "is as fast as the shipped kernel, within the noise",
            Verdict::Disturbed => "was disturbed by other programs",
            Verdict::New | Verdict::Gone | Verdict::Unknown => "has no verdict: one of the two was not measured",
        };
        slower |= pair.verdict == Verdict::Slower;
        let _ = write!(text, "{name} {words}: {} {} {} {}", pair.op, pair.model, pair.layer, pair.shape);
        if let (Some(ratio), Some(noise)) = (pair.ratio, pair.noise) {
            let _ = write!(text, ", {ratio:.3}x its median (noise {noise:.3}x)");
        }
        text.push('\n');
    }
    (text.trim_end().to_owned(), slower)
}

/// Compilation targets of kernels.
const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// Known resources of a kernel.
struct Known {
    target: Option<&'static str>,
    registers: Option<u32>,
    /// Bytes of spill stores and loads.
    spills: Option<u32>,
    /// Bytes of static shared memory.
    fixed: Option<usize>,
}

impl From<&own::Resources> for Known {
    fn from(r: &own::Resources) -> Self {
        Self {
            target: TARGETS.into_iter().find(|target| *target == r.target),
            registers: Some(r.registers),
            spills: Some(r.spill_stores + r.spill_loads),
            fixed: Some(r.shared as usize),
        }
    }
}

/// Resources of the shipped and the custom version of kernels, with their dynamic shared memory: one line for
/// each version and compilation target.
pub(crate) fn resources(
    contender: &OwnContender,
    dynamic: &BTreeMap<&'static str, usize>,
    gpu: &Properties,
    emulated: bool,
) -> String {
    let mut text = String::from("resources of a block:");
    for kernel in KERNELS {
        let Some(&bytes) = dynamic.get(kernel.name) else { continue };
        // The committed table also covers builds without nvcc; a test compares it with the report of ptxas.
        let shipped = TARGETS.into_iter().filter_map(|target| {
            let (registers, spills, fixed) = resources_of(kernel.name, target)?;
            Some(Known { target: Some(target), registers: Some(registers), spills: Some(spills), fixed: Some(fixed) })
        });
        lines(&mut text, OWN_VARIANT, kernel, bytes, shipped.collect(), gpu, emulated);
        let own = of_own(contender, kernel);
        own::with(contender.kernels, || lines(&mut text, &contender.name, kernel, bytes, own, gpu, emulated));
    }
    text
}

/// Like [`resources`], for kernels without a launcher.
pub(crate) fn sheet_resources(
    contender: &OwnContender,
    launched: impl Iterator<Item = (&'static Kernel, usize)>,
    gpu: &Properties,
    emulated: bool,
) -> String {
    let mut text = String::from("resources of a block:");
    for (kernel, bytes) in launched {
        lines(&mut text, &contender.name, kernel, bytes, of_own(contender, kernel), gpu, emulated);
    }
    text
}

fn of_own(contender: &OwnContender, kernel: &Kernel) -> Vec<Known> {
    let reports = contender.kernels.resources().unwrap_or_default();
    reports.iter().filter(|r| r.kernel == kernel.name).map(Known::from).collect()
}

/// Appends a line for each target. Without a report of ptxas, appends one line with the shared arrays that
/// the emulator has seen.
fn lines(
    text: &mut String,
    variant: &str,
    kernel: &Kernel,
    dynamic: usize,
    mut known: Vec<Known>,
    gpu: &Properties,
    emulated: bool,
) {
    if known.is_empty() {
        let fixed = if emulated { shared_arrays(kernel) } else { None };
        known.push(Known { target: None, registers: None, spills: None, fixed });
    }
    for known in known {
        let _ = write!(text, "\n  {:<28} {variant:<12} {}", kernel.name, line(&known, kernel.threads, dynamic, gpu));
    }
}

fn line(known: &Known, threads: u32, dynamic: usize, gpu: &Properties) -> String {
    let capability = match known.target {
        Some("sm_90a") => (9, 0),
        Some(_) => (8, 0),
        None => gpu.compute_capability,
    };
    let target = known.target.map_or_else(|| format!("sm_{}{}", capability.0, capability.1), str::to_owned);
    let registers = match (known.registers, known.spills) {
        (Some(registers), Some(spills)) => format!("{registers} registers, {spills} bytes spilled"),
        _ => "registers and spills unknown (no ptxas report)".into(),
    };
    let shared = match known.fixed {
        Some(fixed) => format!("{fixed} + {dynamic} bytes of shared memory"),
        None => format!("{dynamic} bytes of dynamic shared memory, static unknown"),
    };
    let sm = Multiprocessor::of(capability);
    let needs = BlockNeeds { threads, registers: known.registers, shared: known.fixed.unwrap_or(0) + dynamic };
    let (blocks, limit) = sm.blocks(needs);
    let most = if known.registers.is_some() && known.fixed.is_some() { "" } else { "at most " };
    format!(
        "{target}: {threads} threads, {registers}, {shared}; {most}{blocks} blocks per multiprocessor, {:.0}% of its warps (limit: \
         {limit})",
        100.0 * sm.occupancy(blocks, threads)
    )
}
