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

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use super::score::Scorer;
use super::upload::DeviceBatch;
use crate::Result;
use crate::backend::contract::Reduce;
use crate::backend::{Backend, View};
use crate::data::pack::BatchLimits;
use crate::data::tokenized::TokenizedGroup;
use crate::model::activations::Mode;
use crate::model::decoder::Model;

/// Source of a trainer's reference scores.
pub(super) enum Frozen<B: Backend> {
    /// A model that runs on every batch.
    Online { model: Box<Model<B>>, scorer: Box<Scorer<B>> },
    /// Log-probs by sequence. Those of a batch lie in the batch.
    Stored { cache: Arc<RwLock<ReferenceCache>> },
}

impl<B: Backend> Frozen<B> {
    /// A model that runs beside the policy.
    pub fn online(backend: &B, model: Model<B>) -> Result<Self> {
        let scorer = Scorer::new(backend, &model, Mode::Infer)?;
        Ok(Self::Online { model: Box::new(model), scorer: Box::new(scorer) })
    }

    /// Makes room for every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, limits: &BatchLimits) -> Result<()> {
        self.reserve_positions(backend, limits.longest_path)?;
        match self {
            Self::Online { model, scorer } => scorer.reserve(backend, model, Mode::Infer, limits),
            Self::Stored { .. } => Ok(()),
        }
    }

    /// Gets ready for sequences of up to `longest` tokens.
    pub fn reserve_positions(&mut self, backend: &B, longest: usize) -> Result<()> {
        match self {
            Self::Online { model, .. } => model.reserve_positions(backend, longest),
            Self::Stored { .. } => Ok(()),
        }
    }

    /// The cache file of stored log-probs.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Online { .. } => None,
            Self::Stored { cache } => Some(cache.read().unwrap_or_else(|e| e.into_inner()).path().to_path_buf()),
        }
    }

    /// Computes the scores of a batch where they are not in it.
    pub fn forward(&mut self, backend: &B, batch: &DeviceBatch<B>, reduce: Reduce) -> Result<()> {
        match self {
            Self::Online { model, scorer } => scorer.forward(backend, model, batch, reduce),
            Self::Stored { .. } => Ok(()),
        }
    }

    /// Scores of the current batch (seqs).
    pub fn scores<'a>(&'a self, batch: &'a DeviceBatch<B>) -> View<'a, B::Acc> {
        match self {
            Self::Online { scorer, .. } => View::first(&scorer.score, batch.sizes.seqs),
            Self::Stored { .. } => batch.frozen_scores(),
        }
    }

    /// Scores of the first `seqs` sequences of the current batch on the host; waits for them.
    pub fn read(&self, backend: &B, batch: &DeviceBatch<B>, seqs: usize) -> Result<Vec<f64>> {
        let view = self.scores(batch).part(0, seqs);
        let mut values = vec![0.0; view.len];
        backend.read_acc(view, &mut values)?;
        Ok(values)
    }

    /// Scores of `groups`, which `batch` holds without scores of a reference, on the host; waits for them. The longest
    /// sequence has `longest` tokens.
    pub fn score(
        &mut self,
        backend: &B,
        (groups, longest): (&[&TokenizedGroup], usize),
        batch: &DeviceBatch<B>,
        reduce: Reduce,
    ) -> Result<Vec<f64>> {
        match self {
            Self::Online { model, scorer } => {
                model.reserve_positions(backend, longest)?;
                scorer.forward(backend, model, batch, reduce)?;
                scorer.read_score(backend, batch.sizes.seqs)
            }
            Self::Stored { cache } => {
                let (cache, mut scores) = (cache.read().unwrap_or_else(|e| e.into_inner()), Vec::new());
                groups.iter().try_for_each(|group| cache.append_scores(group, &mut scores))?;
                Ok(scores)
            }
        }
    }
}
