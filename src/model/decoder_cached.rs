//! The decoder's forward for generation: only the new tokens of each sequence run, and attention
//! reads the keys and values of earlier tokens from a cache.
//!
//! ```text
//! stream[0] = embedding[ids of the new tokens]
//! for each layer: as in `decoder`, with attention over the layer's part of the cache
//! last = norm(stream[2 layers])[last new token of each sequence]
//! logits = last W_headᵀ, soft-capped on the host
//! ```
//!
//! Keys are cached after their norm and rotation, so that no later step touches them again.

use super::activations::Activations;
use super::config::{Head, ModelConfig};
use super::decoder::Model;
use crate::backend::contract::*;
use crate::backend::{Backend, View, ViewMut};
use crate::{Error, Result};

/// Keys and values of all layers. A row holds one token, and the caller assigns the rows.
pub struct KvCache<B: Backend> {
    slots: usize,
    /// One buffer a layer, (slots, 2 kv_heads, head_dim).
    layers: Vec<B::Act>,
}

impl<B: Backend> KvCache<B> {
    /// Allocates a cache of `slots` rows.
    pub fn new(backend: &B, config: &ModelConfig, slots: usize) -> Result<Self> {
        let layer = |_| backend.zeros_act(slots * 2 * config.kv_width());
        Ok(Self { slots, layers: (0..config.layers).map(layer).collect::<Result<_>>()? })
    }

    /// Bytes of one row in all layers.
    pub fn row_bytes(config: &ModelConfig) -> u64 {
        (2 * config.kv_width() * config.layers) as u64 * B::PRECISION.act_bytes()
    }

    /// Number of rows.
    pub fn slots(&self) -> usize {
        self.slots
    }
}

/// Numbers of (query, key) pairs and of keys in the attention of the new tokens of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// (query, key) pairs.
    pub pairs: u64,
    /// Keys that at least one new token of their sequence attends to.
    pub keys: u64,
}

impl Seen {
    /// Adds the counts of one sequence. Its path has `rows` rows, and the last `new` of them are new tokens. A query
    /// sees at most `window` keys.
    pub fn add(&mut self, rows: usize, new: usize, window: usize) {
        self.pairs += (rows - new + 1..=rows).map(|seen| seen.min(window) as u64).sum::<u64>();
        self.keys += if new == 0 { 0 } else { rows.min(window.saturating_add(new - 1)) as u64 };
    }
}

/// New tokens of sequences, and the cache rows of each sequence.
pub struct CachedInputs<'a, B: Backend> {
    /// (tokens)
    pub ids: View<'a, B::Idx>,
    /// (tokens)
    pub positions: View<'a, B::Idx>,
    pub paths: Paths<'a, B::Idx>,
    /// (sequences) index of the last new token of each sequence
    pub last: View<'a, B::Idx>,
    pub sequences: usize,
    pub spans: usize,
    /// Numbers for attention without a window.
    pub seen: Seen,
    /// Numbers for attention within the window of the model.
    pub seen_in_window: Seen,
    pub longest_path: usize,
}

/// Last hidden states and logits of a step.
pub struct LastLogits<B: Backend> {
    /// Capacity in sequences.
    capacity: usize,
    /// (sequences, hidden)
    hidden: B::Act,
    /// (sequences, vocab) before the soft cap
    logits: B::Act,
}

impl<B: Backend> LastLogits<B> {
    /// Creates empty buffers, which grow on demand.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self { capacity: 0, hidden: backend.zeros_act(0)?, logits: backend.zeros_act(0)? })
    }

    /// Copies the logits of the first sequences to the host, with the model's soft cap; `to` is
    /// (sequences, vocab).
    pub fn read(&self, backend: &B, config: &ModelConfig, to: &mut [f64]) -> Result<()> {
        backend.read_act(View::first(&self.logits, to.len()), to)?;
        if let cap @ Some(_) = config.softcaps.logits {
            to.iter_mut().for_each(|logit| *logit = capped(cap, *logit).0);
        }
        Ok(())
    }

    /// Ensures room for `sequences`.
    pub(crate) fn grow(&mut self, backend: &B, config: &ModelConfig, sequences: usize) -> Result<()> {
        if sequences > self.capacity {
            *self = Self::new(backend)?;
            self.hidden = backend.zeros_act(sequences * config.hidden)?;
            self.logits = backend.zeros_act(sequences * config.vocab)?;
            self.capacity = sequences;
        }
        Ok(())
    }
}

impl<B: Backend> Model<B> {
    /// Runs the new tokens of a batch and writes the logits of each sequence's last new token. `acts` must not
    /// be for training.
    ///
    /// # Errors
    /// [`Error::Usage`] for a reward model, which has no logits.
    pub fn forward_cached(
        &self,
        backend: &B,
        inputs: &CachedInputs<'_, B>,
        acts: &mut Activations<B>,
        cache: &mut KvCache<B>,
        out: &mut LastLogits<B>,
    ) -> Result<()> {
        let config = &self.config;
        if config.head != Head::LanguageModel {
            return Err(Error::Usage("a reward model has no vocabulary head, so it generates no text".into()));
        }
        let tokens = inputs.ids.len;
        let (query, fused) = (config.query_width(), config.query_width() + 2 * config.kv_width());
        let dims = AttentionCachedDims {
            tokens,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            sequences: inputs.sequences,
            spans: inputs.spans,
            slots: cache.slots,
            pairs: inputs.seen.pairs,
            keys: inputs.seen.keys,
            longest_path: inputs.longest_path,
            scale: config.attention_scale(0),
            window: None,
            softcap: config.softcaps.attention,
        };
        self.embed(backend, inputs.ids, inputs.positions, acts)?;
        for i in 0..config.layers {
            self.project(backend, inputs.positions, acts, i)?;
            let layer = acts.layer_index(i);
            let saved = &mut acts.layers[layer];
            let window = config.window(i);
            let Seen { pairs, keys } = if window.is_some() { inputs.seen_in_window } else { inputs.seen };
            backend.attention_cached_fwd(AttentionCachedFwd {
                dims: AttentionCachedDims { pairs, keys, window, scale: config.attention_scale(i), ..dims },
                qkv: View::first(&saved.qkv, tokens * fused),
                paths: inputs.paths,
                cache: ViewMut::first(&mut cache.layers[i], dims.slots * dims.cache_width()),
                o: ViewMut::first(&mut saved.attention, tokens * query),
            })?;
            self.run_mlp(backend, tokens, acts, i)?;
            self.close_layer(backend, tokens, acts, i)?;
        }
        self.normalise_last(backend, tokens, acts)?;
        out.grow(backend, config, inputs.sequences)?;
        // An embedding lookup gathers the last hidden states, with all hidden states as its table.
        backend.embedding_fwd(EmbeddingFwd {
            dims: EmbeddingDims { tokens: inputs.sequences, vocab: tokens, hidden: config.hidden },
            ids: inputs.last,
            table: View::first(&acts.hidden, tokens * config.hidden),
            x: ViewMut::first(&mut out.hidden, inputs.sequences * config.hidden),
        })?;
        let head = self.layout.lm_head.as_ref().unwrap_or(&self.layout.embedding);
        backend.linear_fwd(LinearFwd {
            dims: LinearDims { tokens: inputs.sequences, inputs: config.hidden, outputs: config.vocab },
            x: View::first(&out.hidden, inputs.sequences * config.hidden),
            weight: self.weight(head),
            bias: None,
            residual: None,
            y: ViewMut::first(&mut out.logits, inputs.sequences * config.vocab),
        })
    }
}
