//! DPO's frozen reference: a model that runs on every batch, the policy without its adapters, or
//! log-probs computed before training (`--precompute-ref-log-probs`). All give the same bits, because the
//! log-prob of a sequence does not depend on its batch.
//!
//! - `cache`: log-probs of a run's sequences, read or computed
//! - [`mod@file`]: the cache file
//! - [`key`]: hashes of everything a log-prob depends on
//! - `pass`: the forward-only pass

pub(crate) mod cache;
pub mod file;
pub mod key;
mod pass;

pub use cache::{CacheOptions, CacheReport, FrozenCache};

use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use super::score::Scorer;
use crate::Result;
use crate::backend::contract::Reduce;
use crate::backend::{Backend, View};
use crate::data::pack::BatchLimits;
use crate::data::tokenized::TokenizedGroup;
use crate::model::activations::Mode;
use crate::model::decoder::Model;
use crate::train::batch::upload::DeviceBatch;

/// Source of a trainer's frozen-reference scores.
pub(super) enum Frozen<B: Backend> {
    /// Model that runs on every batch.
    Online { model: Box<Model<B>>, scorer: Box<Scorer<B>> },
    /// The base of the policy, without its adapters.
    Base { scorer: Box<Scorer<B>> },
    /// Cached log-probs; the packer adds them to each batch.
    Cached { cache: Arc<RwLock<FrozenCache>> },
}

impl<B: Backend> Frozen<B> {
    /// Frozen reference that runs on every batch.
    pub fn online(backend: &B, model: Model<B>) -> Result<Self> {
        let scorer = Scorer::new(backend, &model, Mode::Infer)?;
        Ok(Self::Online { model: Box::new(model), scorer: Box::new(scorer) })
    }

    /// The base of a policy with adapters as reference.
    pub fn base(backend: &B, policy: &Model<B>) -> Result<Self> {
        Ok(Self::Base { scorer: Box::new(Scorer::of_base(backend, policy)?) })
    }

    /// Reserves buffers for every batch within `limits`.
    pub fn reserve(&mut self, backend: &B, policy: &mut Model<B>, limits: &BatchLimits) -> Result<()> {
        self.reserve_positions(backend, limits.longest_path)?;
        match self {
            Self::Online { model, scorer } => {
                // Policy and reference share one set of windows (buffers for gathered weights), which fits
                // the larger model.
                model.swap_windows(policy);
                model.reserve_windows(backend)?;
                model.swap_windows(policy);
                scorer.reserve(backend, model, Mode::Infer, limits)
            }
            Self::Base { scorer } => scorer.reserve(backend, policy, Mode::Infer, limits),
            Self::Cached { .. } => Ok(()),
        }
    }

    /// Prepares the reference model for sequences of up to `longest` tokens. The policy is prepared
    /// separately.
    pub fn reserve_positions(&mut self, backend: &B, longest: usize) -> Result<()> {
        match self {
            Self::Online { model, .. } => model.reserve_positions(backend, longest),
            Self::Base { .. } | Self::Cached { .. } => Ok(()),
        }
    }

    /// Path of the cache file, if there is a cache.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Online { .. } | Self::Base { .. } => None,
            Self::Cached { cache } => Some(cache.read().unwrap_or_else(|e| e.into_inner()).path().to_path_buf()),
        }
    }

    /// Computes the scores of a batch; no-op with a cache. A model with sharded weights gathers them into the
    /// windows of the policy.
    pub fn forward(
        &mut self,
        backend: &B,
        policy: &mut Model<B>,
        batch: &DeviceBatch<B>,
        reduce: Reduce,
    ) -> Result<()> {
        match self {
            Self::Online { model, scorer } => {
                model.swap_windows(policy);
                let done = scorer.forward(backend, model, batch, reduce);
                model.swap_windows(policy);
                done
            }
            Self::Base { scorer } => scorer.forward(backend, policy, batch, reduce),
            Self::Cached { .. } => Ok(()),
        }
    }

    /// Takes part in the weight gathers of [`Frozen::forward`] on the other ranks, without a batch.
    pub fn forward_idle(&mut self, backend: &B, policy: &mut Model<B>) -> Result<()> {
        match self {
            Self::Online { model, .. } => {
                model.swap_windows(policy);
                let done = model.forward_idle(backend);
                model.swap_windows(policy);
                done
            }
            Self::Base { .. } => policy.forward_idle(backend),
            Self::Cached { .. } => Ok(()),
        }
    }

    /// (seqs) scores of the current batch.
    pub fn scores<'a>(&'a self, batch: &'a DeviceBatch<B>) -> View<'a, B::Acc> {
        match self {
            Self::Online { scorer, .. } | Self::Base { scorer } => View::first(&scorer.score, batch.sizes.seqs),
            Self::Cached { .. } => batch.frozen_scores(),
        }
    }

    /// Reads the scores of the first `seqs` sequences of the current batch; waits for them.
    pub fn read(&self, backend: &B, batch: &DeviceBatch<B>, seqs: usize) -> Result<Vec<f64>> {
        let view = self.scores(batch).part(0, seqs);
        let mut values = vec![0.0; view.len];
        backend.read_acc(view, &mut values)?;
        Ok(values)
    }

    /// Scores `groups`, which `batch` holds without cached scores, and returns the scores on the
    /// host. The longest sequence has `longest` tokens.
    pub fn score(
        &mut self,
        backend: &B,
        policy: &mut Model<B>,
        (groups, longest): (&[&TokenizedGroup], usize),
        batch: &DeviceBatch<B>,
        reduce: Reduce,
    ) -> Result<Vec<f64>> {
        self.reserve_positions(backend, longest)?;
        self.forward(backend, policy, batch, reduce)?;
        match self {
            Self::Online { scorer, .. } | Self::Base { scorer } => scorer.read_score(backend, batch.sizes.seqs),
            Self::Cached { cache } => {
                let (cache, mut scores) = (cache.read().unwrap_or_else(|e| e.into_inner()), Vec::new());
                groups.iter().try_for_each(|group| cache.append_scores(group, &mut scores))?;
                Ok(scores)
            }
        }
    }
}
