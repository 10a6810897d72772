//! Memory plan of a run, by part, made before any allocation. Sizes come from the run's own buffers
//! and from a rehearsal of the largest step, on a device that only counts bytes
//! (`backend::kernels::rehearsal`).

mod by_rank;
mod rehearse;

use std::fmt;

use half::bf16;

use crate::backend::contract::Precision;
use crate::backend::kernels::device::Properties;
use crate::data::pack::GroupSizes;
use crate::loss::objective::Loss;
use crate::model::config::ModelConfig;
use crate::model::lora::LoraSpec;
use crate::terminal::{agreeing, counted};
use crate::{Error, Result};

use super::batch::padding::Shapes;
use by_rank::ByRank;
pub(crate) use by_rank::CHOICES;
use rehearse::rehearse;

/// Settings of a run that affect its memory.
#[derive(Clone, Copy)]
pub struct MemoryInputs<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Adapters that are trained instead of the weights.
    pub lora: Option<&'a LoraSpec>,
    /// Frozen reference that runs on every batch.
    pub reference: PlannedReference<'a>,
    /// The loss.
    pub loss: &'a Loss,
    /// Storage format of `Act`.
    pub precision: Precision,
    /// Whether the backward recomputes activations.
    pub recompute: bool,
    /// Whether steps are replayed as CUDA graphs, which pads batches.
    pub replays: bool,
    /// Micro-batches per step.
    pub accumulation: usize,
    /// Device properties that select launch grids; `None` if ops need no workspace.
    pub kernels: Option<&'a Properties>,
    /// Buffers for text that the policy generates at evaluations.
    pub generation: Option<PlannedGeneration>,
    /// Maximum number of head rows at once ([`crate::backend::Backend::set_max_head_rows`]); 0 for the
    /// default.
    pub head_rows: usize,
    /// Ranks that share the run.
    pub ranks: usize,
    /// State that is sharded over the ranks.
    pub sharded: Sharded,
}

/// State that is sharded over several ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharded {
    /// Nothing: every rank holds everything, like a single-process run.
    Nothing,
    /// The optimiser state of the trained parameters.
    Optimizer,
    /// The optimiser state, the gradients, and the weights, which are gathered unit by unit. Adapters are
    /// unsharded on every rank, with a sharded optimiser state.
    Weights,
}

/// Buffers of generation at evaluations.
#[derive(Clone, Copy, Debug)]
pub struct PlannedGeneration {
    /// Rows of the KV cache.
    pub slots: usize,
    /// Maximum number of tokens of a step.
    pub tokens: usize,
    /// Maximum number of rows of a step.
    pub rows: usize,
    /// Length of the longest sequence.
    pub longest: usize,
}

/// Kind of a run's frozen reference, which determines the memory of the reference.
#[derive(Clone, Copy)]
pub enum PlannedReference<'a> {
    /// No reference model in memory: the run has none, or its log-probs are computed before training.
    None,
    /// The base of a policy with adapters.
    Base,
    /// A separate model.
    Model(&'a ModelConfig),
}

/// Name of the part for memory that ops use within a call.
const WORKSPACE: &str = "workspace of ops";

/// Bytes of every part of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes by part.
    pub parts: Parts,
    /// Available bytes; `None` if the system does not report them.
    pub available: Option<u64>,
    /// Groups per micro-batch.
    pub groups: usize,
    /// Largest number of groups per micro-batch that fits, if the available memory is known.
    pub max_groups: Option<usize>,
    /// Whether the backward recomputes activations.
    pub recompute: bool,
    /// Total bytes and largest number of groups with `recompute` inverted.
    pub other_mode: (u64, Option<usize>),
    /// Maximum number of head rows at once; 0 for the default.
    pub head_rows: usize,
    /// Bytes of each sharding choice, if the run has several ranks.
    by_rank: Option<ByRank>,
}

/// Planned and free device memory of a run.
#[derive(Clone, Copy, Debug)]
pub struct PlannedMemory {
    /// Bytes of the plan.
    pub planned_bytes: u64,
    /// Free bytes at the start.
    pub free_bytes: u64,
}

impl MemoryPlan {
    /// Plans a run with `micro_batch` of the measured groups per micro-batch. `None` for f64, which
    /// only serves small checks.
    pub fn new(
        subject: &MemoryInputs<'_>,
        sizes: &GroupSizes,
        micro_batch: usize,
        available: Option<u64>,
    ) -> Result<Option<Self>> {
        let Some((parts, max_groups)) = plan_parts(subject, sizes, micro_batch, available)? else { return Ok(None) };
        let inverted = MemoryInputs { recompute: !subject.recompute, ..*subject };
        let other_mode = plan_parts(&inverted, sizes, micro_batch, available)?;
        Ok(Some(Self {
            parts,
            available,
            groups: micro_batch,
            max_groups,
            recompute: subject.recompute,
            other_mode: other_mode.map_or((0, None), |(parts, most)| (total(&parts), most)),
            head_rows: subject.head_rows,
            by_rank: ByRank::plan(subject, sizes, micro_batch)?,
        }))
    }

    /// Like [`MemoryPlan::new`], with the first number of head rows in `choices` for which the run fits in
    /// memory, or the last number if none fits. `subject.head_rows` is not used.
    pub fn with_fitting_head_rows(
        subject: &MemoryInputs<'_>,
        choices: &[usize],
        sizes: &GroupSizes,
        micro_batch: usize,
        available: Option<u64>,
    ) -> Result<Option<Self>> {
        let plan = |head_rows| Self::new(&MemoryInputs { head_rows, ..*subject }, sizes, micro_batch, available);
        let Some((&last, others)) = choices.split_last() else { return plan(0) };
        for &rows in others {
            match plan(rows)? {
                Some(plan) if available.is_some_and(|free| plan.total() > free) => {}
                fits => return Ok(fits),
            }
        }
        plan(last)
    }

    /// Bytes of all parts.
    pub fn total(&self) -> u64 {
        total(&self.parts)
    }

    /// The plan on one line: total, largest parts, and how many groups fit.
    pub fn summary(&self) -> String {
        let mut parts: Vec<_> = self.parts.iter().filter(|(_, bytes)| *bytes > 0).collect();
        parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let largest: Vec<String> =
            parts.iter().take(3).map(|(name, bytes)| format!("{name} {}", mib(*bytes))).collect();
        let free = self.available.map_or(String::new(), |free| format!(" of {} free", free >> 20));
        let fit = self.max_groups.map_or(String::new(), |most| format!("; at most {most} groups per micro-batch fit"));
        let rows = if self.head_rows > 0 {
            format!("; head processes at most {} rows at once", self.head_rows)
        } else {
            String::new()
        };
        let ranks = self.by_rank.as_ref().map_or(String::new(), |by_rank| format!("; {}", by_rank.line()));
        format!("{} MiB planned{free} ({}){fit}{rows}{ranks}", mib(self.total()), largest.join(", "))
    }

    /// Name and bytes of each part.
    pub fn named_parts(&self) -> Vec<(String, u64)> {
        self.parts.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    /// Workspace of ops, in bytes.
    pub fn workspace(&self) -> usize {
        self.parts.iter().find(|(name, _)| *name == WORKSPACE).map_or(0, |(_, bytes)| *bytes as usize)
    }

    /// Fails with [`Error::Memory`] and the plan if the run does not fit.
    pub fn check(&self) -> Result<()> {
        match (self.available, self.max_groups) {
            (Some(available), Some(most)) if self.total() > available => Err(Error::Memory(format!(
                "the run does not fit in memory\n{self}\n{}{}",
                match self.by_rank.as_ref().and_then(|by_rank| by_rank.first_within(available)) {
                    Some((flag, bytes)) => format!("with {flag} each rank needs {} MiB, which fits; otherwise ", mib(bytes)),
                    None => String::new(),
                },
                match most {
                    0 if !self.recompute && self.other_mode.1.is_some_and(|most| most > 0) => format!(
                        "not even one group fits; with --gradient-checkpointing, {} would",
                        self.other_mode.1.unwrap_or(0)
                    ),
                    0 => "not even one group fits: choose a smaller model, lower --max-length, or use a device with more \
                          memory"
                        .to_owned(),
                    most => format!(
                        "--per-device-train-batch-size {most} fits; raise --gradient-accumulation-steps to keep the \
                         batch size"
                    ),
                }
            ))),
            _ => Ok(()),
        }
    }
}

/// Bytes by part, and the largest number of groups that fits. `None` for f64.
fn plan_parts(
    subject: &MemoryInputs<'_>,
    sizes: &GroupSizes,
    micro_batch: usize,
    available: Option<u64>,
) -> Result<Option<(Parts, Option<usize>)>> {
    let parts = |batch: usize| parts_of(subject, sizes, batch);
    let Some(now) = parts(micro_batch)? else { return Ok(None) };
    let mut max_groups = None;
    if let Some(available) = available {
        let fits = |batch: usize| -> Result<bool> { Ok(parts(batch)?.is_some_and(|p| total(&p) <= available)) };
        let (mut low, mut high) = (0, sizes.groups());
        // Bisection over the number of groups. A rehearsal needs only microseconds; the largest possible
        // batch holds all groups.
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle)? { low = middle } else { high = middle - 1 }
        }
        max_groups = Some(low);
    }
    Ok(Some((now, max_groups)))
}

/// Bytes by part of a run with `batch` groups per micro-batch. `None` for f64.
fn parts_of(subject: &MemoryInputs<'_>, sizes: &GroupSizes, batch: usize) -> Result<Option<Parts>> {
    let limits = match subject.replays {
        true => Shapes::of(sizes.limits(batch), usize::MAX).limits(),
        false => sizes.limits(batch),
    };
    match subject.precision {
        Precision::F64 => Ok(None),
        Precision::F32 => rehearse::<f32>(subject, &limits).map(Some),
        Precision::Bf16 => rehearse::<bf16>(subject, &limits).map(Some),
    }
}

/// Name and bytes of each part.
type Parts = Vec<(&'static str, u64)>;

fn total(parts: &[(&str, u64)]) -> u64 {
    parts.iter().map(|(_, bytes)| bytes).sum()
}

/// Mebibytes, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for MemoryPlan {
    /// One line per part, one for the total and the available memory, one for the opposite setting of
    /// activation recomputation, and one for the sharding choices if the run has several ranks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bytes) in self.parts.iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(f, "  {name:<24} {:>9} MiB", mib(*bytes))?;
        }
        write!(f, "  {:<24} {:>9} MiB", "total", mib(self.total()))?;
        if let Some(available) = self.available {
            write!(f, " of {} MiB free", available >> 20)?;
        }
        if let Some(most) = self.max_groups {
            let groups = counted(self.groups, "group");
            write!(f, "; micro-batches of {groups}, at most {most} {}", agreeing(most, "fits", "fit"))?;
        }
        let (bytes, most) = self.other_mode;
        let choice = if self.recompute { "without" } else { "with" };
        write!(f, "\n  {choice} --gradient-checkpointing {} MiB in total", mib(bytes))?;
        if let Some(most) = most {
            write!(f, ", at most {}", counted(most, "group"))?;
        }
        self.by_rank.as_ref().map_or(Ok(()), |by_rank| write!(f, "\n  {}", by_rank.line()))
    }
}
