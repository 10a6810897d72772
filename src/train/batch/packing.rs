//! What a step needs from the host, made without a device: packed micro-batches, the weights of their comparisons and the
//! gradient of their likelihood terms. A worker thread can do it while the step before runs.

use std::sync::{Arc, RwLock};

use super::padding::Shapes;
use super::upload::{HostBatch, SequenceNumbers};
use crate::Result;
use crate::backend::contract::*;
use crate::data::group::Kind;
use crate::data::pack::{Batch, ComparisonOptions, PackOptions, pack_into};
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{Loss, Method};
use crate::train::frozen::ReferenceCache;
use crate::train::metrics::{Tally, tally_scores};

/// Packs micro-batches for one loss.
#[derive(Clone)]
pub struct Packer {
    pub(in crate::train) loss: Loss,
    pub(in crate::train) pack: PackOptions,
    pub(in crate::train) comparison: ComparisonOptions,
    /// Scores of the reference that were computed before.
    pub(in crate::train) stored: Option<Arc<RwLock<ReferenceCache>>>,
    /// Fill batches up to one of these.
    pub(in crate::train) shapes: Option<Shapes>,
}

/// A micro-batch on the host.
#[derive(Default)]
pub struct PackedMicroBatch {
    pub batch: Batch,
    pub host: HostBatch,
    /// Ids of its groups.
    ids: Vec<String>,
    direct: Vec<f64>,
    reference: Vec<f64>,
    /// The shape that `host` has been filled up to.
    pub(in crate::train) level: Option<usize>,
}

/// All micro-batches of one update. Kept and filled again, so that a step allocates little.
#[derive(Default)]
pub struct PackedStep {
    micro_batches: Vec<PackedMicroBatch>,
    count: usize,
}

impl PackedStep {
    /// The micro-batches in order.
    pub fn micro_batches(&self) -> &[PackedMicroBatch] {
        &self.micro_batches[..self.count]
    }
}

impl Packer {
    /// Packs the micro-batches of a global batch. Losses and gradients are means over the global batch, whose counts are
    /// known here, so the split does not matter.
    ///
    /// # Errors
    /// As [`pack_into`]; and when a stored score is missing.
    pub fn pack(&self, micro_batches: &[Vec<&TokenizedGroup>], into: &mut PackedStep) -> Result<()> {
        let totals = Totals::of(micro_batches);
        let kind_scale = self.loss.kind_scale(totals.comparisons);
        into.count = micro_batches.len();
        if into.micro_batches.len() < into.count {
            into.micro_batches.resize_with(into.count, PackedMicroBatch::default);
        }
        for (groups, packed) in micro_batches.iter().zip(&mut into.micro_batches) {
            pack_into(&mut packed.batch, groups, &self.pack, &self.comparison)?;
            packed.ids.clear();
            packed.ids.extend(groups.iter().map(|group| group.group.id.clone()));
            self.slopes(&totals, &packed.batch, &mut packed.direct);
            packed.reference.clear();
            if let Some(cache) = &self.stored {
                let cache = cache.read().unwrap_or_else(|e| e.into_inner());
                groups.iter().try_for_each(|group| cache.append_scores(group, &mut packed.reference))?;
            }
            let of_seqs = SequenceNumbers { direct: &packed.direct, reference: &packed.reference };
            packed.host.lay_out(&packed.batch, kind_scale, of_seqs);
            packed.level = self.shapes.and_then(|shapes| shapes.level(&packed.host.sizes));
            if let (Some(shapes), Some(level)) = (self.shapes, packed.level) {
                packed.host.pad(&shapes.shape(level));
            }
        }
        Ok(())
    }

    /// Gradient of each score that does not come from comparisons. Next-token likelihood: the same on every response token.
    /// Likelihood term: `-weight / tokens` for preferred sequences of base and intra comparisons, times the length where a
    /// score is a mean. None otherwise.
    fn slopes(&self, totals: &Totals, batch: &Batch, slopes: &mut Vec<f64>) {
        slopes.clear();
        if self.loss.method == Method::Sft {
            slopes.resize(batch.sequences.len(), -1.0 / totals.response_tokens.max(1) as f64);
            return;
        }
        if self.loss.nll_weight == 0.0 {
            return;
        }
        slopes.resize(batch.sequences.len(), 0.0);
        let per_token = -self.loss.nll_weight / totals.preferred_tokens.max(1) as f64;
        let table = &batch.comparisons;
        for c in 0..table.kind.len() {
            if table.kind[c] as usize == Kind::Inter.index() {
                continue;
            }
            for slot in c * TERMS..(c + 1) * TERMS {
                if table.term_sequence[slot] >= 0 && table.term_sign[slot] > 0 {
                    let s = table.term_sequence[slot] as usize;
                    let length = batch.sequences[s].response_tokens as f64;
                    slopes[s] += per_token * if self.loss.reduce == Reduce::Mean { length } else { 1.0 };
                }
            }
        }
    }
}

/// What a device computed of a micro-batch. `reference` is (seqs) or empty; `loss` and `logit` are (comparisons), empty in
/// likelihood training.
pub struct Outcome<'a> {
    pub score: &'a [f64],
    pub reference: &'a [f64],
    pub loss: &'a [f64],
    pub logit: &'a [f64],
}

impl PackedMicroBatch {
    /// Sums over the micro-batch, and the ids of groups with a comparison whose loss is not finite.
    pub fn tally(&self, method: Method, outcome: &Outcome<'_>) -> (Tally, Vec<&str>) {
        let mut tally = Tally {
            tokens: self.batch.tokens(),
            response_tokens: self.batch.sequences.iter().map(|s| s.response_tokens).sum(),
            ..Tally::default()
        };
        let mut not_finite = Vec::new();
        if method == Method::Sft {
            tally.logp = outcome.score.iter().sum();
            return (tally, not_finite);
        }
        let table = &self.batch.comparisons;
        for (c, (&loss, &logit)) in outcome.loss.iter().zip(outcome.logit).enumerate() {
            tally.kinds[table.kind[c] as usize].add(loss, logit);
            let id = self.ids[table.refs[c].group].as_str();
            if !loss.is_finite() && not_finite.last() != Some(&id) {
                not_finite.push(id);
            }
        }
        tally.nll = self.direct.iter().zip(outcome.score).map(|(d, score)| d * score).sum();
        let zeros = vec![0.0; if outcome.reference.is_empty() { outcome.score.len() } else { 0 }];
        let reference = if outcome.reference.is_empty() { &zeros } else { outcome.reference };
        tally_scores(&mut tally, &self.batch, outcome.score, reference);
        (tally, not_finite)
    }
}

/// Counts over a global batch.
struct Totals {
    comparisons: [usize; KINDS],
    response_tokens: usize,
    /// Tokens of preferred sequences in base and intra comparisons, a sequence counted once per use.
    preferred_tokens: usize,
}

impl Totals {
    fn of(micro_batches: &[Vec<&TokenizedGroup>]) -> Self {
        let mut totals = Self { comparisons: [0; KINDS], response_tokens: 0, preferred_tokens: 0 };
        for group in micro_batches.iter().flatten() {
            totals.response_tokens += group.response_tokens();
            for comparison in &group.comparisons {
                totals.comparisons[comparison.kind.index()] += 1;
                if comparison.kind != Kind::Inter {
                    let preferred = comparison.terms.iter().filter(|t| t.sign > 0);
                    totals.preferred_tokens +=
                        preferred.map(|t| group.sequences[t.sequence].response_ids.len()).sum::<usize>();
                }
            }
        }
        totals
    }
}
