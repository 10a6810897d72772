//! Generates one text at a time in a growing conversation; the KV cache keeps the prefix that the next prompt
//! shares.
//!
//! ```text
//! answer(prompt): keep the cached tokens that the prompt starts with, at most all but its last one
//!                 run the rest of the prompt in pieces
//!                 until the text ends: choose a token, show it, run it
//! ```
//!
//! The tokens are those of [`super::Engine`] for the same prompt, seed and settings.

use super::run::{Finish, Generated, Limits, PROMPT_TOKENS, sample_rng};
use super::sampling::Sampler;
use super::step::Tables;
use crate::backend::Backend;
use crate::model::activations::{Activations, Mode};
use crate::model::decoder::Model;
use crate::model::decoder_cached::{KvCache, LastLogits};
use crate::{Error, Result};

/// Minimum number of rows of the cache. The number doubles when a conversation needs more.
const SLOTS: usize = 512;

/// A model with the cache of a conversation.
pub struct Session<'a, B: Backend> {
    backend: &'a B,
    model: &'a mut Model<B>,
    acts: Activations<B>,
    out: LastLogits<B>,
    cache: KvCache<B>,
    /// Tokens in the cache, from row 0 on.
    cached: Vec<u32>,
    device: B::Idx,
    tables: Tables,
    logits: Vec<f64>,
    /// Number of prompt tokens computed, and number of prompt tokens found in the cache.
    prompt_tokens: (usize, usize),
}

impl<'a, B: Backend> Session<'a, B> {
    /// Creates a session with an empty cache, which [`Session::answer`] enlarges.
    pub fn new(backend: &'a B, model: &'a mut Model<B>) -> Result<Self> {
        let adapters = model.lora.as_ref().map(|lora| lora.layout.clone());
        Ok(Self {
            acts: Activations::with_adapters(backend, &model.config, adapters, Mode::Infer, 0)?,
            out: LastLogits::new(backend)?,
            cache: KvCache::new(backend, &model.config, 0)?,
            cached: Vec::new(),
            device: backend.zeros_idx(0)?,
            tables: Tables::new(model.config.window.as_ref().map(|window| window.length)),
            logits: Vec::new(),
            prompt_tokens: (0, 0),
            backend,
            model,
        })
    }

    /// Number of prompt tokens that were run so far, and number of prompt tokens that were found in the cache.
    pub fn prompt_tokens(&self) -> (usize, usize) {
        self.prompt_tokens
    }

    /// Generates the text after a prompt. After each token that is not an EOS id, `shown` receives all new
    /// tokens; generation stops if it returns true. `limits.rows` has no effect.
    ///
    /// # Errors
    /// [`Error::Usage`] for a prompt without tokens, or without room for a new one; the session stays
    /// usable.
    pub fn answer(
        &mut self,
        prompt: &[u32],
        sampler: &Sampler,
        limits: &Limits,
        mut shown: impl FnMut(&[u32]) -> Result<bool>,
    ) -> Result<Generated> {
        let most = self.model.config.max_positions;
        if prompt.is_empty() || prompt.len() >= most {
            return Err(Error::Usage(format!(
                "the conversation has {} tokens, which leaves no room for an answer within the model's {}",
                prompt.len(),
                self.model.config.longest_text()
            )));
        }
        let room = limits.new_tokens.min(most - prompt.len());
        let known = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        self.cached.truncate(known);
        self.reserve(prompt.len() + room)?;
        let known = self.cached.len();
        self.prompt_tokens.0 += prompt.len() - known;
        self.prompt_tokens.1 += known;
        for piece in prompt[known..].chunks(PROMPT_TOKENS) {
            self.step(piece)?;
        }
        let mut rng = sample_rng(limits.seed, prompt, 0);
        let mut tokens = Vec::new();
        loop {
            let token = sampler.next(&self.logits, &[prompt, &tokens], &mut rng)?;
            tokens.push(token);
            if limits.ends.contains(&token) || shown(&tokens)? {
                return Ok(Generated { tokens, finish: Finish::Stop });
            }
            if tokens.len() == room {
                return Ok(Generated { tokens, finish: Finish::Length });
            }
            self.step(&[token])?;
        }
    }

    /// Ensures that the cache has rows for `tokens` tokens. A larger cache starts empty.
    fn reserve(&mut self, tokens: usize) -> Result<()> {
        self.model.reserve_positions(self.backend, tokens)?;
        if tokens > self.cache.slots() {
            let most = self.model.config.max_positions.max(tokens);
            let slots = tokens.max(2 * self.cache.slots()).max(SLOTS).min(most);
            self.cached.clear();
            // The old cache is freed first, because the memory may not suffice for both.
            self.cache = KvCache::new(self.backend, &self.model.config, 0)?;
            self.cache = KvCache::new(self.backend, &self.model.config, slots)?;
        }
        Ok(())
    }

    /// Runs further tokens of the text and reads the logits after the last one.
    fn step(&mut self, ids: &[u32]) -> Result<()> {
        let end = self.cached.len() + ids.len();
        self.tables.clear();
        self.tables.add(ids, std::slice::from_ref(&(0..end)));
        let inputs = self.tables.upload(self.backend, &mut self.device)?;
        self.model.forward_cached(self.backend, &inputs, &mut self.acts, &mut self.cache, &mut self.out)?;
        self.cached.extend(ids);
        self.logits.resize(self.model.config.vocab, 0.0);
        self.out.read(self.backend, &self.model.config, &mut self.logits)
    }
}
