//! A packed batch as model input: views of index buffers on the device, and the sizes known to the
//! host.

use crate::backend::contract::{AttentionDims, Runs, Tree};
use crate::backend::{Backend, View};
use crate::model::config::ModelConfig;

/// Tokens, positions and prefix trees of a batch.
pub struct Inputs<'a, B: Backend> {
    pub tokens: usize,
    pub segments: usize,
    pub ancestors: usize,
    pub trees: usize,
    /// Number of visible (query, key) pairs.
    pub pairs: u64,
    /// (longest_path) number of pairs at each distance on the path, from 0 on
    pub distances: &'a [u32],
    /// Number of tokens on the longest path.
    pub longest_path: usize,
    /// (tokens)
    pub ids: View<'a, B::Idx>,
    /// (tokens), each below `longest_path`
    pub positions: View<'a, B::Idx>,
    /// token rows grouped by id
    pub id_runs: Runs<'a, B::Idx>,
    /// token rows grouped by position; empty unless the model has a table of positions
    pub position_runs: Runs<'a, B::Idx>,
    pub tree: Tree<'a, B::Idx>,
}

impl<B: Backend> Inputs<'_, B> {
    /// Returns the attention sizes of this batch in layer i of a model.
    pub(super) fn attention_dims(&self, config: &ModelConfig, i: usize) -> AttentionDims {
        let window = config.window(i);
        let within = |window: usize| self.distances.iter().take(window).map(|&pairs| u64::from(pairs)).sum();
        AttentionDims {
            tokens: self.tokens,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            segments: self.segments,
            ancestors: self.ancestors,
            trees: self.trees,
            pairs: window.map_or(self.pairs, within),
            longest_path: self.longest_path,
            scale: config.attention_scale(i),
            window,
            softcap: config.softcaps.attention,
        }
    }
}
