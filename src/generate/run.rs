//! The generation loop.
//!
//! ```text
//! while a prompt waits or a row runs:
//!     start samples of prompts that have run, then let prompts enter, while rows and cache have room
//!     step: the last token of every running row, and the next tokens of the prompts that entered
//!     for each row of logits: choose a token; the row ends, or runs on
//! ```
//!
//! A prompt enters with cache rows for itself and for one sample. A prefix that it shares with prompts that
//! have entered is run and kept once (`prefix`). All samples of a prompt read the same rows of the prompt. A
//! sample that ends leaves its rows to the prompt's next sample, so that every prompt completes, however
//! small the cache is. Long prompts run in pieces, which bounds the activations.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use rayon::prelude::*;

use super::prefix::{Piece, Prefixes};
use super::sampling::Sampler;
use super::slots::Slots;
use super::step::Tables;
use crate::backend::Backend;
use crate::model::activations::{Activations, Mode};
use crate::model::config::ModelConfig;
use crate::model::decoder::Model;
use crate::model::decoder_cached::{KvCache, LastLogits};
use crate::rng::Rng;
use crate::{Error, Result};

/// Maximum number of prompt tokens per step. No result depends on this number.
pub(super) const PROMPT_TOKENS: usize = 1024;

/// Maximum share of the free device memory that the cache uses.
const MEMORY_SHARE: f64 = 0.7;

/// A prompt and the number of its samples.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Token ids of the prompt; not empty.
    pub ids: Vec<u32>,
    /// Number of responses to draw.
    pub samples: usize,
}

/// Reason why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The sample ended with an EOS id or a stop text.
    Stop,
    /// The sample reached the maximum number of new tokens.
    Length,
}

impl Finish {
    /// Name in output rows.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// A finished sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, including a final EOS id.
    pub tokens: Vec<u32>,
    /// Reason why the sample ended.
    pub finish: Finish,
}

/// Limits of a run.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum number of new tokens of a sample; at least 1. A sample also ends at the position limit of the
    /// model.
    pub new_tokens: usize,
    /// Maximum number of samples that run at a time; at least 1.
    pub rows: usize,
    /// EOS ids, which end a sample.
    pub ends: Vec<u32>,
    /// Seed of the draws.
    pub seed: u64,
}

/// Decides after each token whether the text of a sample ends. Receives the index of the prompt and the new
/// tokens.
pub type Stop<'a> = &'a (dyn Fn(usize, &[u32]) -> Result<bool> + Sync);

/// A model with the sampler and the limits of generation.
pub struct Engine<'a, B: Backend> {
    backend: &'a B,
    model: &'a mut Model<B>,
    sampler: Sampler,
    limits: Limits,
    /// Number of prompt tokens that were run, and number of those that were not run because an earlier prompt
    /// shares them.
    prompt_tokens: (usize, usize),
}

/// Sizes of the buffers of a run on a device with enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the cache.
    pub slots: usize,
    /// Maximum number of tokens per step.
    pub tokens: usize,
    /// Maximum number of running samples per step.
    pub rows: usize,
}

impl Sizes {
    /// Sizes of the buffers for these prompts.
    pub fn of(limits: &Limits, config: &ModelConfig, prompts: &[Prompt]) -> Self {
        let mut needs = Vec::new();
        for prompt in prompts {
            let own = own_rows(limits, config, prompt);
            needs.push(prompt.ids.len() + own);
            // At most `limits.rows` samples run at a time.
            needs.extend(std::iter::repeat_n(own, prompt.samples.min(limits.rows).saturating_sub(1)));
        }
        needs.sort_unstable_by(|a, b| b.cmp(a));
        let rows = limits.rows.min(needs.len());
        let prompt_tokens: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        Self { slots: needs.iter().take(limits.rows).sum(), tokens: prompt_tokens.min(PROMPT_TOKENS) + rows, rows }
    }
}

/// Maximum number of new tokens for a prompt.
fn room(limits: &Limits, config: &ModelConfig, prompt: &Prompt) -> usize {
    limits.new_tokens.min(config.max_positions.saturating_sub(prompt.ids.len()))
}

/// Number of cache rows that a sample needs for its new tokens. The last token needs none, because no token
/// follows it.
fn own_rows(limits: &Limits, config: &ModelConfig, prompt: &Prompt) -> usize {
    room(limits, config, prompt).saturating_sub(1)
}

/// A prompt that has entered.
struct Entered {
    /// Leaf of the prompt in the prefix tree.
    leaf: usize,
    /// Logits after the last prompt token, from which the first token of each sample is chosen; empty until the
    /// prompt has run, and again after the last sample has started.
    logits: Vec<f64>,
    /// Cache rows of the first sample, until it starts.
    own: Option<Range<usize>>,
    started: usize,
    finished: usize,
}

/// A running sample.
struct Row {
    prompt: usize,
    sample: usize,
    tokens: Vec<u32>,
    /// Cache rows of the new tokens. The last token has none, because no token follows it.
    own: Range<usize>,
    rng: Rng,
}

impl<'a, B: Backend> Engine<'a, B> {
    /// # Errors
    /// [`Error::Usage`] for limits of 0.
    pub fn new(backend: &'a B, model: &'a mut Model<B>, sampler: Sampler, limits: Limits) -> Result<Self> {
        if limits.new_tokens == 0 || limits.rows == 0 {
            return Err(Error::Usage("at least one new token and one row at a time are needed".into()));
        }
        Ok(Self { backend, model, sampler, limits, prompt_tokens: (0, 0) })
    }

    /// Number of prompt tokens that were run so far, and number of those that were not run because an earlier
    /// prompt shares them.
    pub fn prompt_tokens(&self) -> (usize, usize) {
        self.prompt_tokens
    }

    /// Maximum number of new tokens for a prompt.
    pub fn room(&self, prompt: &Prompt) -> usize {
        room(&self.limits, &self.model.config, prompt)
    }

    /// Number of cache rows that a sample needs for its new tokens.
    fn own_rows(&self, prompt: &Prompt) -> usize {
        own_rows(&self.limits, &self.model.config, prompt)
    }

    /// Returns the number of cache rows: enough for the samples that run at a time, or as many as fit into
    /// memory.
    fn capacity(&self, prompts: &[Prompt]) -> Result<usize> {
        let wanted = Sizes::of(&self.limits, &self.model.config, prompts).slots;
        let least = prompts.iter().map(|prompt| prompt.ids.len() + self.own_rows(prompt)).max().unwrap_or(0);
        let row = KvCache::<B>::row_bytes(&self.model.config).max(1);
        let free = self.backend.memory_free();
        let held = free.map_or(usize::MAX, |free| (free as f64 * MEMORY_SHARE / row as f64) as usize);
        if held < least {
            return Err(Error::Memory(format!(
                "the cache of the longest prompt needs {:.1} GiB for {least} tokens, and {:.1} GiB are free; lower \
                 --max-new-tokens, or shorten the prompt",
                (least as u64 * row) as f64 / (1u64 << 30) as f64,
                free.unwrap_or(0) as f64 / (1u64 << 30) as f64
            )));
        }
        Ok(wanted.min(held).max(least))
    }

    /// Generates all samples of all prompts. The result is indexed by prompt and sample.
    ///
    /// # Errors
    /// [`Error::Usage`] for a prompt without tokens, or without room for a new one.
    pub fn run(&mut self, prompts: &[Prompt], stop: Option<Stop<'_>>) -> Result<Vec<Vec<Generated>>> {
        for prompt in prompts {
            if prompt.ids.is_empty() || self.room(prompt) == 0 {
                let (len, longest) = (prompt.ids.len(), self.model.config.longest_text());
                return Err(Error::Usage(format!(
                    "a prompt has {len} tokens; generation needs at least one, and less than the model's {longest}"
                )));
            }
        }
        let longest = prompts.iter().map(|prompt| prompt.ids.len() + self.room(prompt)).max().unwrap_or(0);
        self.model.reserve_positions(self.backend, longest)?;
        let capacity = self.capacity(prompts)?;
        let mut state = State {
            prompts,
            cache: KvCache::new(self.backend, &self.model.config, capacity)?,
            slots: Slots::new(capacity),
            queue: (0..prompts.len()).filter(|&i| prompts[i].samples > 0).collect(),
            entered: BTreeMap::new(),
            prefixes: Prefixes::default(),
            rows: Vec::new(),
            results: prompts.iter().map(|prompt| vec![None; prompt.samples]).collect(),
        };
        let adapters = self.model.lora.as_ref().map(|lora| lora.layout.clone());
        let mut acts = Activations::with_adapters(self.backend, &self.model.config, adapters, Mode::Infer, 0)?;
        let mut out = LastLogits::new(self.backend)?;
        let mut device = self.backend.zeros_idx(0)?;
        let (mut tables, mut logits) =
            (Tables::new(self.model.config.window.as_ref().map(|window| window.length)), Vec::new());
        loop {
            self.start_samples(&mut state, stop)?;
            self.let_prompts_enter(&mut state);
            tables.clear();
            let pieces = self.fill(&state, &mut tables);
            if tables.sequences() == 0 {
                break;
            }
            let inputs = tables.upload(self.backend, &mut device)?;
            self.model.forward_cached(self.backend, &inputs, &mut acts, &mut state.cache, &mut out)?;
            let vocab = self.model.config.vocab;
            logits.resize(tables.sequences() * vocab, 0.0);
            out.read(self.backend, &self.model.config, &mut logits)?;
            let count = state.rows.len();
            self.advance(&mut state, &logits[..count * vocab], stop)?;
            for (piece, logits) in pieces.iter().zip(logits[count * vocab..].chunks_exact(vocab)) {
                state.prefixes.ran(piece);
                self.prompt_tokens.0 += piece.tokens;
                if let Some(entered) = state.entered.values_mut().find(|entered| entered.leaf == piece.node)
                    && state.prefixes.has_run(piece.node)
                {
                    entered.logits = logits.to_vec();
                }
            }
        }
        let whole = |sample: Option<Generated>| sample.ok_or_else(|| Error::Runtime("a sample did not end".into()));
        state.results.into_iter().map(|of| of.into_iter().map(whole).collect()).collect()
    }

    /// Fills the tables of a step: the last token of every running row, then pieces of prompts.
    fn fill(&self, state: &State<'_, B>, tables: &mut Tables) -> Vec<Piece> {
        for row in &state.rows {
            let Some(entered) = state.entered.get(&row.prompt) else { continue };
            let last = &row.tokens[row.tokens.len() - 1..];
            let mut path = state.prefixes.path(entered.leaf);
            path.push(row.own.start..row.own.start + row.tokens.len());
            tables.add(last, &path);
        }
        let pieces = state.prefixes.pieces(PROMPT_TOKENS);
        pieces.iter().for_each(|piece| tables.add(state.prefixes.ids(piece), &piece.path));
        pieces
    }

    /// Starts waiting samples of prompts that have run, while rows and cache have room.
    fn start_samples(&self, state: &mut State<'_, B>, stop: Option<Stop<'_>>) -> Result<()> {
        let ready: Vec<usize> = state.entered.iter().filter(|(_, e)| !e.logits.is_empty()).map(|(&i, _)| i).collect();
        for prompt in ready {
            while state.rows.len() < self.limits.rows {
                let own = self.own_rows(&state.prompts[prompt]);
                let Some(entered) = state.entered.get_mut(&prompt) else { break };
                if entered.started == state.prompts[prompt].samples {
                    break;
                }
                let Some(own) = entered.own.take().or_else(|| state.slots.take(own)) else { break };
                self.start(state, prompt, own, stop)?;
            }
        }
        Ok(())
    }

    /// Starts the next sample of a prompt in the cache rows `own`. If the sample ends with its first token, the
    /// next one starts in the same rows.
    fn start(&self, state: &mut State<'_, B>, prompt: usize, own: Range<usize>, stop: Option<Stop<'_>>) -> Result<()> {
        let Prompt { ids, samples } = &state.prompts[prompt];
        loop {
            let Some(entered) = state.entered.get_mut(&prompt) else { return Ok(()) };
            if entered.started == *samples {
                state.slots.give_back(own);
                if entered.finished == *samples {
                    let leaf = entered.leaf;
                    state.entered.remove(&prompt);
                    state.prefixes.leave(leaf).into_iter().for_each(|rows| state.slots.give_back(rows));
                }
                return Ok(());
            }
            let sample = entered.started;
            entered.started += 1;
            let mut rng = sample_rng(self.limits.seed, ids, sample);
            let token = self.sampler.next(&entered.logits, &[ids], &mut rng)?;
            let tokens = vec![token];
            match self.ended(state.prompts, prompt, &tokens, stop)? {
                None => {
                    if entered.started == *samples {
                        entered.logits = Vec::new();
                    }
                    state.rows.push(Row { prompt, sample, tokens, own, rng });
                    return Ok(());
                }
                Some(finish) => {
                    state.results[prompt][sample] = Some(Generated { tokens, finish });
                    entered.finished += 1;
                }
            }
        }
    }

    /// Lets prompts enter in order while rows and cache have room for their first samples.
    fn let_prompts_enter(&mut self, state: &mut State<'_, B>) {
        // Samples that wait for room come before new prompts.
        let waiting = |state: &State<'_, B>| -> usize {
            state.entered.iter().map(|(&i, e)| state.prompts[i].samples - e.started).sum()
        };
        while let Some(&prompt) = state.queue.front()
            && state.rows.len() + waiting(state) < self.limits.rows
        {
            let (ids, own) = (&state.prompts[prompt].ids, self.own_rows(&state.prompts[prompt]));
            let shared = state.prefixes.shared(ids);
            let len = ids.len() - shared;
            let Some(rows) = state.slots.take(len + own) else { return };
            let (rows, own) = (rows.start..rows.start + len, rows.start + len..rows.end);
            self.prompt_tokens.1 += shared;
            let leaf = state.prefixes.enter(ids, rows);
            let entered = Entered { leaf, logits: Vec::new(), own: Some(own), started: 0, finished: 0 };
            state.entered.insert(prompt, entered);
            state.queue.pop_front();
        }
    }

    /// Chooses the next token of every running row.
    fn advance(&self, state: &mut State<'_, B>, logits: &[f64], stop: Option<Stop<'_>>) -> Result<()> {
        let (prompts, vocab) = (state.prompts, self.model.config.vocab);
        let rows = std::mem::take(&mut state.rows);
        let next = rows.into_par_iter().zip(logits.par_chunks_exact(vocab)).map(|(mut row, logits)| {
            let token = self.sampler.next(logits, &[&prompts[row.prompt].ids, &row.tokens], &mut row.rng)?;
            row.tokens.push(token);
            let finish = self.ended(prompts, row.prompt, &row.tokens, stop)?;
            Ok((row, finish))
        });
        let next: Vec<(Row, Option<Finish>)> = next.collect::<Result<_>>()?;
        let mut ended = Vec::new();
        for (row, finish) in next {
            match finish {
                None => state.rows.push(row),
                Some(finish) => {
                    state.results[row.prompt][row.sample] = Some(Generated { tokens: row.tokens, finish });
                    ended.push((row.prompt, row.own));
                }
            }
        }
        for (prompt, own) in ended {
            if let Some(entered) = state.entered.get_mut(&prompt) {
                entered.finished += 1;
            }
            self.start(state, prompt, own, stop)?;
        }
        Ok(())
    }

    fn ended(
        &self,
        prompts: &[Prompt],
        prompt: usize,
        tokens: &[u32],
        stop: Option<Stop<'_>>,
    ) -> Result<Option<Finish>> {
        if tokens.last().is_some_and(|last| self.limits.ends.contains(last)) {
            return Ok(Some(Finish::Stop));
        }
        if let Some(stop) = stop
            && stop(prompt, tokens)?
        {
            return Ok(Some(Finish::Stop));
        }
        Ok((tokens.len() >= self.room(&prompts[prompt])).then_some(Finish::Length))
    }
}

/// Prompts, rows and cache of a run.
struct State<'p, B: Backend> {
    prompts: &'p [Prompt],
    cache: KvCache<B>,
    slots: Slots,
    /// Prompts that have not entered, in order.
    queue: VecDeque<usize>,
    entered: BTreeMap<usize, Entered>,
    prefixes: Prefixes,
    rows: Vec<Row>,
    results: Vec<Vec<Option<Generated>>>,
}

/// Returns the random stream of a sample, keyed by the seed, the prompt and the sample's index. Every sampled
/// token draws one random number.
pub(super) fn sample_rng(seed: u64, prompt: &[u32], sample: usize) -> Rng {
    let ids: Vec<String> = prompt.iter().map(u32::to_string).collect();
    Rng::keyed(seed, &["generate", &ids.join(" "), &sample.to_string()])
}
