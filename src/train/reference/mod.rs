//! The frozen reference of DPO: run beside the policy, or represented by log-probs that were computed before training
//! (`--precompute-ref-log-probs`). Both give the same bits, because a sequence's log-prob does not depend on the batch
//! it is computed in.
//!
//! - [`cache`]: the log-probs of a run's sequences, found or computed
//! - [`mod@file`]: the cache file
//! - [`key`]: what decides a value, as hashes
//! - [`pass`]: a forward-only pass

pub mod cache;
pub mod file;
pub mod key;
pub mod pass;

pub use cache::{CacheOptions, Completed, ReferenceCache};

use std::path::Path;

use super::score::{Scorer, grow, read, reserve};
use super::upload::DeviceBatch;
use crate::Result;
use crate::backend::contract::Reduce;
use crate::backend::{Backend, View, ViewMut};
use crate::data::pack::BatchLimits;
use crate::data::tokenized::TokenizedGroup;
use crate::model::activations::Mode;
use crate::model::decoder::Model;

/// Source of a trainer's reference scores.
pub(super) enum Frozen<B: Backend> {
    /// A model that runs on every batch.
    Online { model: Box<Model<B>>, scorer: Box<Scorer<B>> },
    /// Log-probs by sequence, and those of the current batch: `scores` (seqs).
    Stored { cache: Box<ReferenceCache>, scores: B::Acc, staging: Vec<f64> },
}

impl<B: Backend> Frozen<B> {
    /// A model that runs beside the policy.
    pub fn online(backend: &B, model: Model<B>) -> Result<Self> {
        let scorer = Scorer::new(backend, &model, Mode::Infer)?;
        Ok(Self::Online { model: Box::new(model), scorer: Box::new(scorer) })
    }

    /// Log-probs that were computed before.
    pub fn stored(backend: &B, cache: ReferenceCache) -> Result<Self> {
        Ok(Self::Stored { cache: Box::new(cache), scores: backend.zeros_acc(0)?, staging: Vec::new() })
    }

    /// Makes room for every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        match self {
            Self::Online { model, scorer } => {
                model.reserve_positions(backend, limits.longest_path)?;
                scorer.reserve(backend, model, Mode::Infer, limits)
            }
            Self::Stored { scores, staging, .. } => {
                staging.reserve(limits.seqs);
                reserve(backend, scores, limits.seqs)
            }
        }
    }

    /// The cache file of stored log-probs.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Online { .. } => None,
            Self::Stored { cache, .. } => Some(cache.path()),
        }
    }

    /// Gets ready for a batch of `groups` whose longest sequence has `longest` tokens.
    pub fn load(&mut self, backend: &B, groups: &[&TokenizedGroup], longest: usize) -> Result<()> {
        match self {
            Self::Online { model, .. } => model.reserve_positions(backend, longest),
            Self::Stored { cache, scores, staging } => {
                staging.clear();
                groups.iter().try_for_each(|group| cache.append_scores(group, staging))?;
                grow(backend, scores, staging.len())?;
                backend.write_acc(ViewMut::first(scores, staging.len()), staging)
            }
        }
    }

    /// Computes the scores of the loaded batch where they are not there yet.
    pub fn forward(&mut self, backend: &B, batch: &DeviceBatch<B>, reduce: Reduce) -> Result<()> {
        match self {
            Self::Online { model, scorer } => scorer.forward(backend, model, batch, reduce),
            Self::Stored { .. } => Ok(()),
        }
    }

    /// Scores of the current batch (seqs).
    pub fn scores(&self, seqs: usize) -> View<'_, B::Acc> {
        match self {
            Self::Online { scorer, .. } => View::first(&scorer.score, seqs),
            Self::Stored { scores, .. } => View::first(scores, seqs),
        }
    }

    /// Scores of the current batch (seqs) on the host; waits for them.
    pub fn read(&self, backend: &B, seqs: usize) -> Result<Vec<f64>> {
        match self {
            Self::Online { scorer, .. } => scorer.read_score(backend, seqs),
            Self::Stored { scores, .. } => read(backend, scores, seqs),
        }
    }
}
