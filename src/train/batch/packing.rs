//! Host work of a step, done without a device: packed micro-batches, comparison weights, and the
//! direct gradients of likelihood terms. A worker thread runs it while the previous step runs.
//!
//! ```text
//! totals     = counts over the global batch
//! kind_scale = weight of each comparison kind / its count
//! for each micro-batch:
//!     batch  = pack_into(groups)                     token tree, head rows, comparison table
//!     direct = gradient of the likelihood terms      one number per sequence
//!     frozen = cached scores of the frozen reference, if any
//!     host   = one index array and one number array of batch, kind_scale, direct, frozen
//!     if a shape has room for host: pad host to the smallest such shape
//! ```

use std::sync::{Arc, RwLock};

use super::padding::Shapes;
use super::upload::{HostBatch, SequenceNumbers};
use crate::Result;
use crate::backend::contract::*;
use crate::data::group::Kind;
use crate::data::pack::{Batch, ComparisonOptions, LogpScope, PackOptions, pack_into};
use crate::data::tokenized::TokenizedGroup;
use crate::loss::objective::{Loss, Method};
use crate::loss::value::{ScoredComparison, ScoredTerm, batch_divergence};
use crate::train::frozen::FrozenCache;
use crate::train::metrics::{Tally, tally_responses, tally_scores};

/// Packs the micro-batches of one loss.
#[derive(Clone)]
pub struct Packer {
    pub(in crate::train) loss: Loss,
    pub(in crate::train) pack: PackOptions,
    pub(in crate::train) comparison: ComparisonOptions,
    /// Cached scores of the frozen reference.
    pub(in crate::train) frozen_cache: Option<Arc<RwLock<FrozenCache>>>,
    /// Shapes to which batches are padded.
    pub(in crate::train) shapes: Option<Shapes>,
}

/// Micro-batch on the host.
#[derive(Default)]
pub struct PackedMicroBatch {
    /// The packed batch.
    pub batch: Batch,
    /// The batch as arrays.
    pub host: HostBatch,
    /// Ids of its groups.
    ids: Vec<String>,
    direct: Vec<f64>,
    frozen: Vec<f64>,
    inverse_rows: Vec<f64>,
    tail_starts: Vec<f64>,
    /// Shape level to which `host` is padded.
    pub(in crate::train) level: Option<usize>,
}

/// All micro-batches of one update. Reused from step to step, so that packing allocates little.
#[derive(Default)]
pub struct PackedStep {
    micro_batches: Vec<PackedMicroBatch>,
    count: usize,
}

impl PackedStep {
    /// Micro-batches in order.
    pub fn micro_batches(&self) -> &[PackedMicroBatch] {
        &self.micro_batches[..self.count]
    }
}

impl Packer {
    /// Packs the micro-batches of a global batch. Losses and gradients are means over the global
    /// batch. Its counts are known here, so the split into micro-batches does not matter.
    ///
    /// # Errors
    /// Errors of [`pack_into`] and [`Loss::check_split`], and [`crate::Error::Runtime`] for a sequence
    /// without a cached score.
    pub fn pack(&self, micro_batches: &[Vec<&TokenizedGroup>], into: &mut PackedStep) -> Result<()> {
        self.pack_part(micro_batches.iter().flatten().copied(), micro_batches, into)
    }

    /// Like [`Packer::pack`] for one rank's micro-batches of the global `batch`.
    pub(in crate::train) fn pack_part<'a>(
        &self,
        batch: impl Iterator<Item = &'a TokenizedGroup>,
        micro_batches: &[Vec<&TokenizedGroup>],
        into: &mut PackedStep,
    ) -> Result<()> {
        self.loss.check_split(micro_batches.len())?;
        let totals = Totals::of(batch, self.loss.scope);
        let kind_scale = self.loss.kind_scale(totals.comparisons);
        into.count = micro_batches.len();
        if into.micro_batches.len() < into.count {
            into.micro_batches.resize_with(into.count, PackedMicroBatch::default);
        }
        for (groups, packed) in micro_batches.iter().zip(&mut into.micro_batches) {
            pack_into(&mut packed.batch, groups, &self.pack, &self.comparison)?;
            packed.ids.clear();
            packed.ids.extend(groups.iter().map(|group| group.group.id.clone()));
            self.direct_gradients(&totals, &packed.batch, &mut packed.direct);
            packed.frozen.clear();
            if let Some(cache) = &self.frozen_cache {
                let cache = cache.read().unwrap_or_else(|e| e.into_inner());
                groups.iter().try_for_each(|group| cache.append_scores(group, &mut packed.frozen))?;
            }
            packed.inverse_rows.clear();
            if self.loss.needs_rows() {
                packed.inverse_rows.extend(rows_of(&packed.batch).map(|rows| 1.0 / rows.max(1) as f64));
            }
            self.loss.tail_starts(groups, &mut packed.tail_starts);
            let of_seqs = SequenceNumbers {
                direct: &packed.direct,
                frozen: &packed.frozen,
                inverse_rows: &packed.inverse_rows,
                tail_starts: &packed.tail_starts,
                tail_alpha: self.loss.ld_alpha,
            };
            packed.host.lay_out(&packed.batch, kind_scale, of_seqs);
            packed.level = self.shapes.and_then(|shapes| shapes.level(&packed.host.sizes));
            if let (Some(shapes), Some(level)) = (self.shapes, packed.level) {
                packed.host.pad(&shapes.shape(level));
            }
        }
        Ok(())
    }

    /// Computes the direct gradient of each score: the part that does not come from comparisons.
    ///
    /// - SFT: `-1 / response tokens` for every sequence.
    /// - Likelihood term: `-weight / tokens` for each use as the preferred sequence of a base or
    ///   intra comparison, times the length if a score is a mean.
    /// - Otherwise empty.
    fn direct_gradients(&self, totals: &Totals, batch: &Batch, direct: &mut Vec<f64>) {
        direct.clear();
        if self.loss.method == Method::Sft {
            direct.resize(batch.sequences.len(), -1.0 / totals.response_tokens.max(1) as f64);
            return;
        }
        if self.loss.nll_weight == 0.0 {
            return;
        }
        direct.resize(batch.sequences.len(), 0.0);
        let per_token = -self.loss.nll_weight / totals.preferred_tokens.max(1) as f64;
        let table = &batch.comparisons;
        let rows: Vec<usize> = rows_of(batch).collect();
        for c in 0..table.kind.len() {
            if table.kind[c] as usize == Kind::Inter.index() {
                continue;
            }
            for slot in c * TERMS..(c + 1) * TERMS {
                if table.term_sequence[slot] >= 0 && table.term_sign[slot] > 0 {
                    let s = table.term_sequence[slot] as usize;
                    direct[s] += per_token * if self.loss.reduce == Reduce::Mean { rows[s] as f64 } else { 1.0 };
                }
            }
        }
    }
}

/// Device results of a micro-batch. `frozen` is (seqs) or empty; `loss` and `logit` are
/// (comparisons), empty for SFT.
pub(in crate::train) struct MicroBatchResults<'a> {
    pub score: &'a [f64],
    pub frozen: &'a [f64],
    pub loss: &'a [f64],
    pub logit: &'a [f64],
    /// (ROW_STATS, seqs), empty unless tokens are measured
    pub stats: &'a [f64],
}

impl PackedMicroBatch {
    /// Sums over the micro-batch, and the ids of groups with a non-finite comparison loss.
    pub(in crate::train) fn tally(&self, loss: &Loss, results: &MicroBatchResults<'_>) -> (Tally, Vec<&str>) {
        let mut tally = Tally {
            tokens: self.batch.tokens(),
            response_tokens: self.batch.sequences.iter().map(|s| s.response_tokens).sum(),
            ..Tally::default()
        };
        let mut not_finite = Vec::new();
        if loss.method == Method::Sft {
            tally.logp = results.score.iter().sum();
            tally_responses(&mut tally, &self.batch, results.stats);
            return (tally, not_finite);
        }
        let table = &self.batch.comparisons;
        for (c, (&value, &logit)) in results.loss.iter().zip(results.logit).enumerate() {
            tally.kinds[table.kind[c] as usize].add(value, logit);
            let id = self.ids[table.refs[c].group].as_str();
            if !value.is_finite() && not_finite.last() != Some(&id) {
                not_finite.push(id);
            }
        }
        tally.nll = self.direct.iter().zip(results.score).map(|(d, score)| d * score).sum();
        let zeros = vec![0.0; if results.frozen.is_empty() { results.score.len() } else { 0 }];
        let frozen = if results.frozen.is_empty() { &zeros } else { results.frozen };
        tally_scores(&mut tally, &self.batch, results.score, frozen, results.stats);
        if loss.estimates_divergence() {
            tally.add_divergence(batch_divergence(&self.scored((results.score, frozen))));
        }
        if loss.curves.len() > 1 {
            self.tally_losses(&mut tally, loss, (results.score, frozen));
        }
        (tally, not_finite)
    }

    /// For a loss with several curves, adds the value of each curve to `tally`. The device returns only the
    /// sum of the curves, so the host computes each value from the scores. `score` and `reference` are
    /// (seqs).
    fn tally_losses(&self, tally: &mut Tally, loss: &Loss, scores: (&[f64], &[f64])) {
        let comparisons = self.scored(scores);
        for (c, of) in comparisons.iter().zip(loss.values_of(&comparisons)).filter(|(c, _)| c.weight != 0.0) {
            tally.add_losses(c.kind, c.weight, &of.values);
        }
    }

    /// Returns the comparisons of the unpadded batch, with the scores of their sequences.
    fn scored(&self, (score, reference): (&[f64], &[f64])) -> Vec<ScoredComparison> {
        let table = &self.batch.comparisons;
        let rows: Vec<usize> = rows_of(&self.batch).collect();
        let term = |slot: usize| {
            let (s, sign) = (table.term_sequence[slot] as usize, table.term_sign[slot]);
            ScoredTerm {
                prompt: self.batch.sequences[s].prompt,
                sign: f64::from(sign.signum()),
                detached: sign.abs() == 2,
                score: score[s],
                reference: reference[s],
                rows: rows[s],
            }
        };
        let comparison = |c: usize| ScoredComparison {
            kind: table.kind[c] as usize,
            weight: table.weight[c],
            margins: [table.margin[c], 0.0],
            clip: Some((table.detached_clip[2 * c], table.detached_clip[2 * c + 1])),
            terms: (c * TERMS..(c + 1) * TERMS).filter(|&slot| table.term_sequence[slot] >= 0).map(term).collect(),
        };
        (0..table.kind.len()).map(comparison).collect()
    }
}

/// Head rows of each sequence.
fn rows_of(batch: &Batch) -> impl Iterator<Item = usize> {
    batch.seq_offsets.windows(2).map(|ends| (ends[1] - ends[0]) as usize)
}

/// Counts over a global batch.
struct Totals {
    comparisons: [usize; KINDS],
    response_tokens: usize,
    /// Scored tokens of preferred sequences in base and intra comparisons, counted once per comparison.
    preferred_tokens: usize,
}

impl Totals {
    fn of<'a>(batch: impl Iterator<Item = &'a TokenizedGroup>, scope: LogpScope) -> Self {
        let mut totals = Self { comparisons: [0; KINDS], response_tokens: 0, preferred_tokens: 0 };
        for group in batch {
            totals.response_tokens += group.response_tokens();
            for comparison in &group.comparisons {
                totals.comparisons[comparison.kind.index()] += 1;
                if comparison.kind != Kind::Inter {
                    let preferred = comparison.terms.iter().filter(|t| t.sign > 0);
                    totals.preferred_tokens += preferred.map(|t| group.scored_tokens(t.sequence, scope)).sum::<usize>();
                }
            }
        }
        totals
    }
}
