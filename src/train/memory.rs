//! What memory a run takes, by part, known before any of it is taken: sizes of the model, and a rehearsal of the largest
//! step on a device that only counts ([`crate::backend::kernels::rehearsal`]).

use std::fmt;

use crate::backend::contract::*;
use crate::backend::kernels::Kernels;
use crate::backend::kernels::device::{Element, Properties};
use crate::backend::kernels::rehearsal::Rehearsal;
use crate::backend::{Backend, View, ViewMut, Write};
use crate::data::pack::{BatchLimits, GroupSizes};
use crate::loss::objective::Loss;
use crate::model::activations::Mode;
use crate::model::config::ModelConfig;
use crate::model::decoder::Model;
use crate::model::decoder_grad::GradientsOut;
use crate::{Error, Result};

use super::losses::LossBuffers;
use super::padding::Shapes;
use super::score::Scorer;
use super::step::arrivals;
use super::upload::{Arrival, DeviceBatch};

/// What is trained, as far as memory goes.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub config: &'a ModelConfig,
    /// A reference that runs beside the policy.
    pub reference: Option<&'a ModelConfig>,
    pub loss: &'a Loss,
    /// Storage of `Act`.
    pub precision: Precision,
    /// Whether activations are computed again in the backward.
    pub recompute: bool,
    /// Whether recorded steps are replayed, which fills batches up.
    pub replays: bool,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// What grids are chosen by; `None` on a device that needs no workspace of kernels.
    pub kernels: Option<&'a Properties>,
}

/// The part that ops hold within a call.
const WORKSPACE: &str = "workspace of ops";

/// Bytes of every part of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub parts: Parts,
    /// Bytes that can be had; `None` where the system does not say.
    pub available: Option<u64>,
    /// Groups of a micro-batch, and how many fit at most.
    pub groups: usize,
    pub most_groups: Option<usize>,
    /// Whether activations are computed again in the backward.
    pub recompute: bool,
    /// Bytes in all, and groups that fit, with that choice turned round.
    pub otherwise: (u64, Option<usize>),
}

impl MemoryPlan {
    /// The plan of a run whose micro-batches hold `micro_batch` of the measured groups. `None` for f64, which is for small
    /// checks.
    pub fn new(
        subject: &Subject<'_>,
        sizes: &GroupSizes,
        micro_batch: usize,
        available: Option<u64>,
    ) -> Result<Option<Self>> {
        let Some((parts, most_groups)) = of_mode(subject, sizes, micro_batch, available)? else { return Ok(None) };
        let turned = Subject { recompute: !subject.recompute, ..*subject };
        let otherwise = of_mode(&turned, sizes, micro_batch, available)?;
        Ok(Some(Self {
            parts,
            available,
            groups: micro_batch,
            most_groups,
            recompute: subject.recompute,
            otherwise: otherwise.map_or((0, None), |(parts, most)| (total(&parts), most)),
        }))
    }

    /// Bytes of all parts.
    pub fn total(&self) -> u64 {
        total(&self.parts)
    }

    /// Parts by name, in bytes.
    pub fn named_parts(&self) -> Vec<(String, u64)> {
        self.parts.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    /// Bytes that ops need within a call.
    pub fn workspace(&self) -> usize {
        self.parts.iter().find(|(name, _)| *name == WORKSPACE).map_or(0, |(_, bytes)| *bytes as usize)
    }

    /// [`Error::Memory`] with the plan where it does not fit.
    pub fn check(&self) -> Result<()> {
        match (self.available, self.most_groups) {
            (Some(available), Some(most)) if self.total() > available => Err(Error::Memory(format!(
                "the run does not fit in memory\n{self}\n{}",
                match most {
                    0 if !self.recompute && self.otherwise.1.is_some_and(|most| most > 0) => format!(
                        "not even one group fits; with --gradient-checkpointing {} would",
                        self.otherwise.1.unwrap_or(0)
                    ),
                    0 => "not even one group fits: choose a smaller model, lower --max-length, or use a device with more \
                          memory"
                        .to_owned(),
                    most => format!(
                        "--per-device-train-batch-size {most} fits; raise --gradient-accumulation-steps to keep the batch"
                    ),
                }
            ))),
            _ => Ok(()),
        }
    }
}

/// Bytes by part, and how many groups fit. `None` for f64.
fn of_mode(
    subject: &Subject<'_>,
    sizes: &GroupSizes,
    micro_batch: usize,
    available: Option<u64>,
) -> Result<Option<(Parts, Option<usize>)>> {
    let limits = |batch: usize| match subject.replays {
        true => Shapes::of(sizes.limits(batch), usize::MAX).limits(),
        false => sizes.limits(batch),
    };
    let parts = |batch: usize| match subject.precision {
        Precision::F64 => Ok(None),
        Precision::F32 => rehearse::<f32>(subject, &limits(batch)).map(Some),
        Precision::Bf16 => rehearse::<half::bf16>(subject, &limits(batch)).map(Some),
    };
    let Some(now) = parts(micro_batch)? else { return Ok(None) };
    let mut most_groups = None;
    if let Some(available) = available {
        let fits = |batch: usize| -> Result<bool> { Ok(parts(batch)?.is_some_and(|p| total(&p) <= available)) };
        let (mut low, mut high) = (0, sizes.groups());
        // A rehearsal costs microseconds; all groups at once is the largest batch there is.
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if fits(middle)? { low = middle } else { high = middle - 1 }
        }
        most_groups = Some(low);
    }
    Ok(Some((now, most_groups)))
}

/// Names and bytes.
type Parts = Vec<(&'static str, u64)>;

fn total(parts: &[(&str, u64)]) -> u64 {
    parts.iter().map(|(_, bytes)| bytes).sum()
}

/// Mebibytes, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for MemoryPlan {
    /// One line a part, a line for the sum, one for what is there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bytes) in self.parts.iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(f, "  {name:<24} {:>9} MiB", mib(*bytes))?;
        }
        write!(f, "  {:<24} {:>9} MiB", "in all", mib(self.total()))?;
        if let Some(available) = self.available {
            write!(f, " of {} MiB free", available >> 20)?;
        }
        if let Some(most) = self.most_groups {
            write!(f, "; micro-batches of {} groups, at most {most} fit", self.groups)?;
        }
        let (bytes, most) = self.otherwise;
        let choice = if self.recompute { "without" } else { "with" };
        write!(f, "\n  {choice} --gradient-checkpointing {} MiB in all", mib(bytes))?;
        if let Some(most) = most {
            write!(f, ", at most {most} groups")?;
        }
        Ok(())
    }
}

/// Bytes by part. Buffers are those of the run itself, made on a device that only counts.
fn rehearse<A: Element>(subject: &Subject<'_>, limits: &BatchLimits) -> Result<Parts> {
    let none = Properties { name: String::new(), processors: 1, shared_bytes: 0, compute_capability: (0, 0) };
    let backend = Kernels::<_, A>::new(Rehearsal::of(subject.kernels.unwrap_or(&none)));
    let mut parts = Vec::new();
    let mut seen = 0;
    let mut part = |name: &'static str, backend: &Kernels<Rehearsal, A>| {
        let now = backend.device().bytes();
        parts.push((name, now - seen));
        seen = now;
    };
    let positions = limits.longest_path.max(1);
    let policy = Model::zeros(&backend, subject.config.clone(), positions)?;
    part("weights", &backend);
    let len = policy.layout.len;
    let _master = match A::PRECISION {
        Precision::Bf16 => Some(backend.zeros_acc(len)?),
        Precision::F32 | Precision::F64 => None,
    };
    part("weights in full precision", &backend);
    let mut grads = backend.zeros_acc(len)?;
    let mut norms = backend.zeros_acc(policy.layout.norms)?;
    part("gradients", &backend);
    let _moments = (backend.zeros_acc(len)?, backend.zeros_acc(len)?);
    part("AdamW moments", &backend);
    let reference = subject.reference.map(|config| Model::zeros(&backend, config.clone(), positions)).transpose()?;
    part("reference weights", &backend);
    let mode = if subject.recompute { Mode::Recompute } else { Mode::Train };
    let mut scorer = Scorer::new(&backend, &policy, mode)?;
    scorer.reserve(&backend, &policy, mode, limits)?;
    part("activations", &backend);
    let mut reference_scorer = match &reference {
        Some(model) => {
            let mut scorer = Scorer::new(&backend, model, Mode::Infer)?;
            scorer.reserve(&backend, model, Mode::Infer, limits)?;
            Some(scorer)
        }
        None => None,
    };
    part("reference activations", &backend);
    let batch = DeviceBatch::of_limits(&backend, limits, policy.head_rows_at_once(&backend))?;
    let on_their_way = if subject.kernels.is_some() { arrivals(subject.accumulation) } else { 0 };
    let _arrivals = (0..on_their_way).map(|_| Arrival::new(&backend, limits)).collect::<Result<Vec<_>>>()?;
    let mut scores = backend.zeros_acc(2 * limits.seqs + 2 * limits.comparisons + CONTROL)?;
    backend.reserve_turns()?;
    part("batch", &backend);
    if subject.kernels.is_some() {
        let reduce = subject.loss.reduce;
        if let (Some(model), Some(scorer)) = (&reference, &mut reference_scorer) {
            scorer.forward(&backend, model, &batch, reduce)?;
        }
        scorer.run_model(&backend, &policy, &batch)?;
        let reference = reference_scorer.as_ref().map(|scorer| View::first(&scorer.score, limits.seqs));
        let mut buffers = LossBuffers::new(&backend)?;
        let losses = buffers.of_batch(&backend, subject.loss, &batch, reference)?;
        scorer.head_and_losses(&backend, &policy, &batch, reduce, losses, (&mut grads, Write::Overwrite))?;
        let out = GradientsOut { grads: &mut grads, write: Write::Overwrite, norms: Some(&mut norms) };
        scorer.model_backward(&backend, &policy, &batch, out)?;
        backend.grad_norm(GradNorm {
            len,
            max_norm: 1.0,
            grads: View::first(&grads, len),
            known: Some(policy.layout.known_norms(&norms)),
            control: ViewMut::first(&mut scores, CONTROL),
        })?;
        parts.push((WORKSPACE, backend.scratch_bytes() as u64));
    }
    Ok(parts)
}
