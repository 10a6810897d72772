//! One optimiser step: the calls of the whole program, in order. A step is begun ([`Trainer::begin`]) without waiting for
//! anything, and finished ([`Trainer::finish`]) when its results have come back; between the two another may be begun.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use super::evaluate::{Evaluator, GroupScores};
use super::losses::LossBuffers;
use super::metrics::Tally;
use super::packing::{Outcome, PackedMicroBatch, PackedStep, Packer};
use super::padding::Shapes;
use super::reference::{Completed, Frozen, ReferenceCache};
use super::score::Scorer;
use super::upload::{Arrival, DeviceBatch};
use crate::backend::contract::*;
use crate::backend::{Backend, View, Write};
use crate::data::pack::{Batch, BatchLimits, ComparisonOptions, GroupSizes};
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{Loss, Method};
use crate::model::activations::Mode;
use crate::model::decoder::Model;
use crate::model::decoder_grad::GradientsOut;
use crate::optim::adamw::{AdamWSettings, AdamWState, UpdateReport};
use crate::{Error, Result};

/// A model under training: policy, frozen reference, optimiser, and every buffer of a step.
pub struct Trainer<'b, B: Backend> {
    pub backend: &'b B,
    pub loss: Loss,
    pub policy: Model<B>,
    reference: Option<Frozen<B>>,
    pub optimizer: AdamWState<B>,
    scorer: Scorer<B>,
    /// Whether the backward recomputes activations.
    mode: Mode,
    /// (layout.len)
    pub grads: B::Acc,
    /// (layout.norms) norms of the gradients of the layers' products, once a step's last micro-batch is through
    norms: B::Acc,
    packer: Packer,
    /// Micro-batches on their way to the device, used in turn.
    arrivals: Vec<Arrival<B>>,
    next_arrival: usize,
    batch: DeviceBatch<B>,
    losses: LossBuffers<B>,
    /// Room for results, and host batches, of steps that are finished.
    spare_outlets: Vec<(B::Outlet, usize)>,
    spare_steps: Vec<PackedStep>,
    /// Recorded micro-batches by shape and by where they are in a step.
    recorded: HashMap<(usize, Place), Recorded<B>>,
    replays: bool,
}

/// Where a micro-batch is in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    /// The first overwrites gradients, the others add to them.
    write: Write,
    /// After the last, gradients are whole and have a norm.
    last: bool,
}

/// A micro-batch of one shape that has been met before.
enum Recorded<B: Backend> {
    /// It has run once, so that everything it needs is there.
    Met,
    Graph(B::Graph),
    /// The device records nothing.
    Never,
}

/// What one step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    pub tally: Tally,
    pub update: UpdateReport,
    /// Ids of groups with a comparison whose argument was not finite.
    pub not_finite: Vec<String>,
}

/// A step that has been begun.
pub struct Pending<B: Backend> {
    packed: PackedStep,
    results: B::Outlet,
    room: usize,
}

/// Steps that may be under way at once: one runs while the next is sent.
const STEPS_UNDER_WAY: usize = 2;

impl<'b, B: Backend> Trainer<'b, B> {
    /// Prepares training of `policy`; `reference` is the frozen model of DPO.
    pub fn new(
        backend: &'b B,
        policy: Model<B>,
        reference: Option<Model<B>>,
        loss: Loss,
        settings: AdamWSettings,
    ) -> Result<Self> {
        let packer = Packer {
            pack: super::pack_options(&loss, policy.config.vocab),
            comparison: ComparisonOptions { scale: loss.scale, margin_add: loss.margin },
            loss: loss.clone(),
            stored: None,
            shapes: None,
        };
        Ok(Self {
            optimizer: AdamWState::new(backend, &policy, settings)?,
            scorer: Scorer::new(backend, &policy, Mode::Train)?,
            mode: Mode::Train,
            grads: backend.zeros_acc(policy.layout.len)?,
            norms: backend.zeros_acc(policy.layout.norms)?,
            arrivals: Vec::new(),
            next_arrival: 0,
            batch: DeviceBatch::new(backend)?,
            losses: LossBuffers::new(backend)?,
            spare_outlets: Vec::new(),
            spare_steps: Vec::new(),
            recorded: HashMap::new(),
            replays: false,
            reference: reference.map(|model| Frozen::online(backend, model)).transpose()?,
            backend,
            loss,
            policy,
            packer,
        })
    }

    /// Stores every sequence whole instead of sharing prompt tokens: the baseline of studies and the oracle of tests.
    pub fn share_prefixes(&mut self, share: bool) {
        self.packer.pack.share_prefixes = share;
    }

    /// Takes log-probs of the reference that were computed before in place of a model.
    pub fn use_stored_reference(&mut self, cache: ReferenceCache) {
        let cache = Arc::new(RwLock::new(cache));
        self.packer.stored = Some(cache.clone());
        self.reference = Some(Frozen::Stored { cache });
    }

    /// Computes the stored reference log-probs that `groups` lack; nothing where the reference runs online.
    pub fn complete_reference(&mut self, groups: &[TokenizedGroup]) -> Result<Option<Completed>> {
        match &mut self.reference {
            Some(Frozen::Stored { cache }) => {
                let mut cache = cache.write().unwrap_or_else(|e| e.into_inner());
                cache.complete(self.backend, &[groups]).map(Some)
            }
            Some(Frozen::Online { .. }) | None => Ok(None),
        }
    }

    /// Bounds on the batches of `micro_batch` of these groups.
    pub fn limits(&self, groups: &[TokenizedGroup], micro_batch: usize) -> Result<BatchLimits> {
        Ok(GroupSizes::of(groups, &self.packer.pack, &self.packer.comparison)?.limits(micro_batch))
    }

    /// Records the ops of a micro-batch once for each of a few shapes and replays them for every batch that fits the shape,
    /// from the next [`Trainer::reserve`] on. Results are the same bits.
    pub fn replay_steps(&mut self, replay: bool) {
        self.replays = replay;
    }

    /// Keeps one activation of every layer and computes the rest again in the backward. Results are the same bits.
    pub fn recompute_activations(&mut self) -> Result<()> {
        self.mode = Mode::Recompute;
        self.scorer = Scorer::new(self.backend, &self.policy, self.mode)?;
        Ok(())
    }

    /// Makes room for every batch within `limits`, `accumulation` of them a step: no step over such batches allocates on
    /// the device.
    pub fn reserve(&mut self, limits: &BatchLimits, accumulation: usize) -> Result<()> {
        let backend = self.backend;
        let rows_at_once = self.policy.head_rows_at_once(backend);
        self.packer.shapes = self.replays.then(|| Shapes::of(*limits, rows_at_once));
        let limits = &self.packer.shapes.map_or(*limits, |shapes| shapes.limits());
        self.recorded.clear();
        self.policy.reserve_positions(backend, limits.longest_path)?;
        if let Some(reference) = &mut self.reference {
            reference.reserve(backend, limits)?;
        }
        self.scorer.reserve(backend, &self.policy, self.mode, limits)?;
        self.batch.reserve(backend, limits)?;
        self.losses.reserve(backend, limits)?;
        for arrival in &mut self.arrivals {
            arrival.reserve(backend, limits)?;
        }
        while self.arrivals.len() < if B::ASYNCHRONOUS { arrivals(accumulation) } else { 1 } {
            self.arrivals.push(Arrival::new(backend, limits)?);
        }
        let room = CONTROL + accumulation * (2 * limits.seqs + 2 * limits.comparisons);
        self.spare_outlets.retain(|(_, len)| *len >= room);
        while self.spare_outlets.len() < STEPS_UNDER_WAY {
            self.spare_outlets.push((backend.outlet(room)?, room));
        }
        Ok(())
    }

    /// What packs batches for this trainer.
    pub fn packer(&self) -> &Packer {
        &self.packer
    }

    /// A host batch to fill.
    pub fn spare_step(&mut self) -> PackedStep {
        self.spare_steps.pop().unwrap_or_default()
    }

    /// One update from the micro-batches of a global batch. Losses and gradients are means over the global batch:
    /// the counts are known before the first forward, so the split does not matter.
    pub fn step(&mut self, micro_batches: &[Vec<&TokenizedGroup>], learning_rate: f64) -> Result<StepReport> {
        let mut packed = self.spare_step();
        self.packer.pack(micro_batches, &mut packed)?;
        let pending = self.begin(packed, learning_rate)?;
        self.finish(pending)
    }

    /// Enqueues an update; waits for nothing that runs.
    pub fn begin(&mut self, packed: PackedStep, learning_rate: f64) -> Result<Pending<B>> {
        let mut pending = self.enqueue(packed)?;
        let known = Some(self.policy.layout.known_norms(&self.norms));
        self.optimizer.update(self.backend, &mut self.policy.weights, (&self.grads, known), learning_rate)?;
        self.backend.fetch(View::first(&self.optimizer.control, CONTROL), &mut pending.results, 0)?;
        Ok(pending)
    }

    /// Waits for a step and tells what it did. Steps are finished in the order they were begun in.
    pub fn finish(&mut self, pending: Pending<B>) -> Result<StepReport> {
        let mut report = StepReport {
            tally: Tally::default(),
            update: UpdateReport { grad_norm: 0.0, applied: false, skipped: 0 },
            not_finite: Vec::new(),
        };
        let control = self.collect(pending, &mut report.tally, &mut report.not_finite)?;
        report.update = UpdateReport::of(&control);
        Ok(report)
    }

    /// Loss and gradient of a global batch, without an update.
    pub fn accumulate(
        &mut self,
        micro_batches: &[Vec<&TokenizedGroup>],
        tally: &mut Tally,
        not_finite: &mut Vec<String>,
    ) -> Result<()> {
        let mut packed = self.spare_step();
        self.packer.pack(micro_batches, &mut packed)?;
        let pending = self.enqueue(packed)?;
        self.collect(pending, tally, not_finite).map(|_| ())
    }

    /// Enqueues loss and gradient of every micro-batch, and bringing the results back.
    fn enqueue(&mut self, packed: PackedStep) -> Result<Pending<B>> {
        let count = |p: &PackedMicroBatch| 2 * p.batch.seqs() + 2 * p.batch.comparison_count();
        let room = CONTROL + packed.micro_batches().iter().map(count).sum::<usize>();
        let spare = self.spare_outlets.iter().position(|(_, len)| *len >= room);
        let (mut results, room) = match spare {
            Some(i) => self.spare_outlets.swap_remove(i),
            None => (self.backend.outlet(room)?, room),
        };
        let mut at = CONTROL;
        for (i, micro_batch) in packed.micro_batches().iter().enumerate() {
            self.load(micro_batch)?;
            let write = if i == 0 { Write::Overwrite } else { Write::Add };
            let place = Place { write, last: i + 1 == packed.micro_batches().len() };
            self.compute_or_replay(micro_batch.level, place)?;
            at = self.fetch(&micro_batch.batch, &mut results, at)?;
        }
        Ok(Pending { packed, results, room })
    }

    /// Brings a micro-batch to the device.
    fn load(&mut self, packed: &PackedMicroBatch) -> Result<()> {
        let (backend, longest) = (self.backend, packed.batch.longest_path);
        self.policy.reserve_positions(backend, longest)?;
        if let Some(reference) = &mut self.reference {
            reference.reserve_positions(backend, longest)?;
        }
        if self.arrivals.is_empty() {
            self.arrivals.push(Arrival::new(backend, &BatchLimits::default())?);
        }
        self.next_arrival %= self.arrivals.len();
        let arrival = &mut self.arrivals[self.next_arrival];
        self.next_arrival += 1;
        arrival.send(backend, &packed.host)?;
        self.batch.receive(backend, arrival, &packed.host)
    }

    /// As [`Trainer::compute`]. A batch of a shape that has been met twice is recorded, and replayed from then on.
    fn compute_or_replay(&mut self, level: Option<usize>, place: Place) -> Result<()> {
        let Some(level) = level else { return self.compute(place) };
        match self.recorded.get(&(level, place)) {
            Some(Recorded::Graph(graph)) => {
                if self.backend.replay(graph)? {
                    return Ok(());
                }
                // Memory has been freed since, for instance by an evaluation.
                self.recorded.insert((level, place), Recorded::Met);
                self.compute(place)
            }
            Some(Recorded::Met) => {
                let backend = self.backend;
                let Some(graph) = backend.record(&mut || self.compute(place))? else {
                    self.recorded.insert((level, place), Recorded::Never);
                    return self.compute(place);
                };
                backend.replay(&graph)?;
                self.recorded.insert((level, place), Recorded::Graph(graph));
                Ok(())
            }
            Some(Recorded::Never) => self.compute(place),
            None => {
                self.recorded.insert((level, place), Recorded::Met);
                self.compute(place)
            }
        }
    }

    /// Loss and gradient of the loaded micro-batch: ops alone, which can be recorded.
    fn compute(&mut self, Place { write, last }: Place) -> Result<()> {
        let (backend, policy, batch) = (self.backend, &self.policy, &self.batch);
        let reduce = self.loss.reduce;
        if let Some(reference) = &mut self.reference {
            reference.forward(backend, batch, reduce)?;
        }
        self.scorer.run_model(backend, policy, batch)?;
        let reference = self.reference.as_ref().map(|r| r.scores(batch));
        let losses = self.losses.of_batch(backend, &self.loss, batch, reference)?;
        self.scorer.head_and_losses(backend, policy, batch, reduce, losses, (&mut self.grads, write))?;
        let norms = last.then_some(&mut self.norms);
        self.scorer.model_backward(backend, policy, batch, GradientsOut { grads: &mut self.grads, write, norms })
    }

    /// Enqueues bringing the micro-batch's results to elements of the outlet from `at` on; where the next begin.
    fn fetch(&mut self, batch: &Batch, results: &mut B::Outlet, mut at: usize) -> Result<usize> {
        let (backend, seqs, comparisons) = (self.backend, batch.seqs(), batch.comparison_count());
        let mut fetch = |view: View<'_, B::Acc>| {
            let start = at;
            at += view.len;
            backend.fetch(view, results, start)
        };
        fetch(View::first(&self.scorer.score, seqs))?;
        if self.loss.method != Method::Sft {
            if let Some(reference) = &self.reference {
                fetch(reference.scores(&self.batch).part(0, seqs))?;
            }
            self.losses.results(comparisons).into_iter().try_for_each(fetch)?;
        }
        Ok(at)
    }

    /// Waits for a step's results and adds them up; the control vector after it.
    fn collect(
        &mut self,
        mut pending: Pending<B>,
        tally: &mut Tally,
        not_finite: &mut Vec<String>,
    ) -> Result<[f64; CONTROL]> {
        let with_comparisons = self.loss.method != Method::Sft;
        let lengths = |p: &PackedMicroBatch| {
            let (seqs, comparisons) = (p.batch.seqs(), p.batch.comparison_count());
            let reference = if self.reference.is_some() { seqs } else { 0 };
            if with_comparisons { [seqs, reference, comparisons, comparisons] } else { [seqs, 0, 0, 0] }
        };
        let len = pending.packed.micro_batches().iter().map(|p| lengths(p).iter().sum::<usize>()).sum::<usize>();
        let mut values = vec![0.0; CONTROL + len];
        self.backend.open(&mut pending.results, &mut values)?;
        let (control, mut rest) = values.split_at(CONTROL);
        for packed in pending.packed.micro_batches() {
            let [score, reference, loss, logit] = lengths(packed).map(|len| {
                let (part, after) = rest.split_at(len);
                rest = after;
                part
            });
            let (part, ids) = packed.tally(self.loss.method, &Outcome { score, reference, loss, logit });
            tally.merge(&part);
            not_finite.extend(ids.into_iter().map(str::to_owned));
        }
        let control = std::array::from_fn(|i| control[i]);
        self.spare_outlets.push((pending.results, pending.room));
        self.spare_steps.push(pending.packed);
        Ok(control)
    }

    /// Scores of policy and reference over groups that are not trained on, and the sums over them.
    pub fn evaluate(
        &mut self,
        evaluator: &mut Evaluator<B>,
        groups: &[TokenizedGroup],
    ) -> Result<(Vec<GroupScores>, Tally)> {
        let models = (&mut self.policy, self.reference.as_mut());
        evaluator.run_beside(self.backend, models, &self.loss, groups, |_| ())
    }

    /// An evaluator for this trainer's policy; the reference is the trainer's own.
    pub fn evaluator(&self) -> Result<Evaluator<B>> {
        Evaluator::new(self.backend, &self.policy, None)
    }

    /// DPO's start-up check: when policy and reference hold the same weights, every score difference is exactly 0 and
    /// every logistic comparison without a margin costs exactly ln 2. Anything else means that the two passes differ.
    pub fn identity_check(&mut self, groups: &[&TokenizedGroup]) -> Result<()> {
        let mut packed = self.spare_step();
        self.packer.pack(&[groups.to_vec()], &mut packed)?;
        let first = &packed.micro_batches()[0];
        self.load(first)?;
        if let Some(reference) = &mut self.reference {
            reference.forward(self.backend, &self.batch, self.loss.reduce)?;
        }
        self.scorer.forward(self.backend, &self.policy, &self.batch, self.loss.reduce)?;
        let seqs = first.batch.seqs();
        let Some(reference) = &self.reference else {
            return Err(Error::Runtime("the identity check needs a reference model".into()));
        };
        let from = reference.file().map_or(String::new(), |path| {
            format!("; the reference's log-probs came from {}, delete it to have them computed again", path.display())
        });
        let (policy, reference) =
            (self.scorer.read_score(self.backend, seqs)?, reference.read(self.backend, &self.batch, seqs)?);
        if let Some(i) = policy.iter().chain(&reference).position(|score| !score.is_finite()) {
            return Err(Error::Diverged(format!(
                "the start model scores sequence {} of the first batch as {}: its weights overflow; start from a model \
                 that did not diverge",
                i % seqs.max(1),
                policy.iter().chain(&reference).nth(i).copied().unwrap_or(f64::NAN)
            )));
        }
        match policy.iter().zip(&reference).position(|(p, r)| p != r) {
            None => Ok(()),
            Some(i) => Err(Error::Runtime(format!(
                "identity check failed: policy and reference hold the same weights but score sequence {i} as {} and \
                 {}; the first loss would not be ln 2{from}",
                policy[i], reference[i]
            ))),
        }
    }
}

/// Micro-batches on their way at once to a device that works by itself, so that none waits for another of the same steps.
pub(super) fn arrivals(accumulation: usize) -> usize {
    STEPS_UNDER_WAY * accumulation
}
