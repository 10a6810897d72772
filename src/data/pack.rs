//! Packs groups into a batch without padding: token rows in prefix-tree order, head rows, and comparison tables, as the
//! flat arrays that ops read. Index values are checked here, once, on the host.

use super::group::Kind;
use super::tokenized::TokenizedGroup;
use super::tree::{GroupTree, Piece};
use crate::backend::contract::{KINDS, TERMS};
use crate::{Error, Result};

/// Tokens whose log-probabilities make a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogpScope {
    Response,
    /// The prompt's tokens too, but for the first, which nothing predicts.
    PromptAndResponse,
}

/// What is read off the last hidden states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Log-probabilities of tokens; the last response token is not run through the model.
    LogProb { scope: LogpScope },
    /// A scalar at the last response token.
    Reward,
}

/// How a batch is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// False stores every sequence whole: the oracle of tests, and a baseline for studies.
    pub share_prefixes: bool,
    pub scoring: Scoring,
    /// Every token id must be below it.
    pub vocab: usize,
}

/// Numbers that enter the comparison table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ComparisonOptions {
    /// Factor on scores by kind.
    pub scale: [f64; KINDS],
    /// Added to every margin.
    pub margin_add: f64,
}

/// Items grouped by key, as the contract's `Runs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunTable {
    /// Items sorted by key, then by item.
    pub order: Vec<i32>,
    /// (keys + 1)
    pub offsets: Vec<i32>,
    /// Distinct keys, ascending.
    pub keys: Vec<i32>,
}

impl RunTable {
    /// Groups items 0.. by `key[item]`.
    fn fill(&mut self, key: &[i32]) {
        self.order.clear();
        self.order.extend(0..key.len() as i32);
        self.order.sort_unstable_by_key(|&i| (key[i as usize], i));
        self.offsets.clear();
        self.keys.clear();
        for (at, &item) in self.order.iter().enumerate() {
            if self.keys.last() != Some(&key[item as usize]) {
                self.keys.push(key[item as usize]);
                self.offsets.push(at as i32);
            }
        }
        self.offsets.push(key.len() as i32);
    }
}

/// Segments of a batch, as the contract's `Tree`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeTable {
    /// (segments + 1)
    pub starts: Vec<i32>,
    /// (segments + 1)
    pub ancestor_offsets: Vec<i32>,
    /// Root first.
    pub ancestors: Vec<i32>,
    /// (trees + 1)
    pub trees: Vec<i32>,
}

/// A sequence of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRef {
    /// Index of its group in the batch.
    pub group: usize,
    pub prompt: usize,
    pub response: usize,
    /// Tokens of the response.
    pub response_tokens: usize,
}

/// A comparison of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparisonRef {
    /// Index of its group in the batch.
    pub group: usize,
    /// Index within the group.
    pub comparison: usize,
}

/// A packed batch on the host. Vectors keep their room when the batch is filled again.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// (tokens)
    pub ids: Vec<i32>,
    /// (tokens), counted along the path
    pub positions: Vec<i32>,
    /// token rows by id
    pub id_runs: RunTable,
    pub tree: TreeTable,
    /// Visible (query, key) pairs.
    pub pairs: u64,
    /// Most tokens on a path.
    pub longest_path: usize,
    /// (rows) token row that predicts
    pub source: Vec<i32>,
    /// (rows) token id predicted
    pub target: Vec<i32>,
    /// head rows by source
    pub head_runs: RunTable,
    /// (seqs + 1) head rows of each sequence
    pub seq_offsets: Vec<i32>,
    /// (seqs) last row of each sequence; empty unless rewards are scored
    pub last_rows: Vec<i32>,
    pub sequences: Vec<SequenceRef>,
    /// (comparisons, TERMS), -1 in unused slots
    pub term_sequence: Vec<i32>,
    /// (comparisons, TERMS), doubled for detached terms
    pub term_sign: Vec<i32>,
    /// (comparisons)
    pub kind: Vec<i32>,
    pub scale: Vec<f64>,
    pub margin: Vec<f64>,
    pub weight: Vec<f64>,
    /// (comparisons, 2)
    pub detached_clip: Vec<f64>,
    /// (seqs + 1)
    pub use_offsets: Vec<i32>,
    /// (terms) `comparison * TERMS + slot` by sequence, in comparison order
    pub uses: Vec<i32>,
    pub comparison_refs: Vec<ComparisonRef>,
}

impl Batch {
    /// Empties every array, keeping its room.
    fn clear(&mut self) {
        let Self { ids, positions, tree, source, target, seq_offsets, last_rows, term_sequence, .. } = self;
        for list in [ids, positions, source, target, seq_offsets, last_rows, term_sequence] {
            list.clear();
        }
        for list in [&mut tree.starts, &mut tree.ancestor_offsets, &mut tree.ancestors, &mut tree.trees] {
            list.clear();
        }
        for list in [&mut self.term_sign, &mut self.kind, &mut self.use_offsets, &mut self.uses] {
            list.clear();
        }
        for list in [&mut self.scale, &mut self.margin, &mut self.weight, &mut self.detached_clip] {
            list.clear();
        }
        self.sequences.clear();
        self.comparison_refs.clear();
        (self.pairs, self.longest_path) = (0, 0);
    }

    /// Comparisons of each kind.
    pub fn counts(&self) -> [usize; KINDS] {
        let mut counts = [0; KINDS];
        for &kind in &self.kind {
            counts[kind as usize] += 1;
        }
        counts
    }
}

/// Replaces the batch by `groups`. Refuses ids outside the vocabulary, prompts without a token where one must predict
/// the response, and batches whose indices would not fit 32 bits.
pub fn pack_into(
    batch: &mut Batch,
    groups: &[&TokenizedGroup],
    options: &PackOptions,
    comparisons: &ComparisonOptions,
) -> Result<()> {
    batch.clear();
    batch.seq_offsets.push(0);
    batch.tree.ancestor_offsets.push(0);
    for (g, group) in groups.iter().enumerate() {
        check(group, options)?;
        let first = batch.sequences.len();
        add_tokens(batch, g, group, options);
        add_comparisons(batch, g, group, first, comparisons);
    }
    batch.tree.starts.push(batch.ids.len() as i32);
    batch.tree.trees.push(batch.tree.starts.len() as i32 - 1);
    let rows = batch.source.len().max(batch.ids.len());
    if rows > i32::MAX as usize / 2 {
        return Err(Error::Usage(format!("a batch of {rows} rows is too large; lower the batch size")));
    }
    batch.id_runs.fill(&batch.ids);
    batch.head_runs.fill(&batch.source);
    fill_uses(batch);
    Ok(())
}

fn check(group: &TokenizedGroup, options: &PackOptions) -> Result<()> {
    let fail = |why: String| Err(Error::Usage(format!("group {}: {why}", group.group.id)));
    for sequence in &group.sequences {
        let prompt = &group.prompt_ids[sequence.prompt];
        if sequence.response_ids.is_empty() {
            return fail(format!("response {} has no token", sequence.response));
        }
        if prompt.is_empty() && options.scoring != Scoring::Reward {
            return fail(format!(
                "prompt {} has no token, so nothing predicts the response's first; use a tokenizer with a \
                 beginning-of-sequence token or a chat template",
                sequence.prompt
            ));
        }
        let outside = prompt.iter().chain(&sequence.response_ids).find(|&&id| id as usize >= options.vocab);
        if let Some(id) = outside {
            return fail(format!(
                "token id {id} lies outside the model's vocabulary of {}; tokenizer and model do not belong together",
                options.vocab
            ));
        }
    }
    Ok(())
}

/// Appends token rows, segments, head rows and sequences of one group.
fn add_tokens(batch: &mut Batch, g: usize, group: &TokenizedGroup, options: &PackOptions) {
    let reward = options.scoring == Scoring::Reward;
    let tree = GroupTree::build(group, options.share_prefixes, !reward);
    let base = batch.tree.starts.len();
    let mut starts = Vec::with_capacity(tree.segments.len());
    for (i, segment) in tree.segments.iter().enumerate() {
        if segment.parent.is_none() {
            batch.tree.trees.push((base + i) as i32);
        }
        starts.push(batch.ids.len());
        batch.tree.starts.push(batch.ids.len() as i32);
        let ancestors = tree.ancestors(i);
        batch.tree.ancestors.extend(ancestors.iter().map(|a| (base + a) as i32));
        batch.tree.ancestor_offsets.push(batch.tree.ancestors.len() as i32);
        let sequence_ids = |s: usize, len: usize| group.sequences[s].response_ids[..len].iter();
        let ids = &mut batch.ids;
        match &segment.piece {
            Piece::Prompt { prompt, range } => {
                ids.extend(group.prompt_ids[*prompt][range.clone()].iter().map(|&id| id as i32));
            }
            Piece::Response { sequence, len } => ids.extend(sequence_ids(*sequence, *len).map(|&id| id as i32)),
            Piece::Whole { sequence, len } => {
                let prompt = &group.prompt_ids[group.sequences[*sequence].prompt];
                ids.extend(prompt.iter().chain(sequence_ids(*sequence, *len)).map(|&id| id as i32));
            }
        }
        let (position, len) = (segment.position, segment.len);
        batch.positions.extend((position..position + len).map(|p| p as i32));
        batch.pairs += (len * position + len * (len + 1) / 2) as u64;
        batch.longest_path = batch.longest_path.max(position + len);
    }
    for (s, sequence) in group.sequences.iter().enumerate() {
        batch.sequences.push(SequenceRef {
            group: g,
            prompt: sequence.prompt,
            response: sequence.response,
            response_tokens: sequence.response_ids.len(),
        });
        let rows = path_rows(&tree, &starts, s);
        match options.scoring {
            Scoring::Reward => batch.last_rows.push(rows[rows.len() - 1] as i32),
            Scoring::LogProb { scope } => {
                let prompt = &group.prompt_ids[sequence.prompt];
                let first = match scope {
                    LogpScope::Response => prompt.len(),
                    LogpScope::PromptAndResponse => 1,
                };
                let ids: Vec<u32> = prompt.iter().chain(&sequence.response_ids).copied().collect();
                for t in first..ids.len() {
                    batch.source.push(rows[t - 1] as i32);
                    batch.target.push(ids[t] as i32);
                }
            }
        }
        batch.seq_offsets.push(batch.source.len() as i32);
    }
}

/// Token rows of a sequence, from its first prompt token to its last stored token.
fn path_rows(tree: &GroupTree, starts: &[usize], sequence: usize) -> Vec<usize> {
    let Some(last) = tree.responses[sequence].or(tree.prompt_ends[sequence]) else {
        return Vec::new();
    };
    let mut path = tree.ancestors(last);
    path.push(last);
    path.into_iter().flat_map(|i| starts[i]..starts[i] + tree.segments[i].len).collect()
}

/// Appends the comparison table of one group, whose sequences start at `first`.
fn add_comparisons(batch: &mut Batch, g: usize, group: &TokenizedGroup, first: usize, options: &ComparisonOptions) {
    for (c, comparison) in group.comparisons.iter().enumerate() {
        for slot in 0..TERMS {
            let term = comparison.terms.get(slot);
            batch.term_sequence.push(term.map_or(-1, |t| (first + t.sequence) as i32));
            batch.term_sign.push(term.map_or(0, |t| i32::from(t.sign) * if t.detached { 2 } else { 1 }));
        }
        let (low, high) = comparison.detached_clip.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        let kind: Kind = comparison.kind;
        batch.kind.push(kind.index() as i32);
        batch.scale.push(options.scale[kind.index()]);
        batch.margin.push(comparison.margin + options.margin_add);
        batch.weight.push(comparison.weight);
        batch.detached_clip.extend([low, high]);
        batch.comparison_refs.push(ComparisonRef { group: g, comparison: c });
    }
}

/// Lists the uses of every sequence in comparison order.
fn fill_uses(batch: &mut Batch) {
    let seqs = batch.sequences.len();
    batch.use_offsets.resize(seqs + 1, 0);
    for &s in batch.term_sequence.iter().filter(|&&s| s >= 0) {
        batch.use_offsets[s as usize + 1] += 1;
    }
    for s in 0..seqs {
        batch.use_offsets[s + 1] += batch.use_offsets[s];
    }
    let mut next = batch.use_offsets.clone();
    batch.uses.resize(batch.use_offsets[seqs] as usize, 0);
    for (i, &s) in batch.term_sequence.iter().enumerate() {
        if s >= 0 {
            batch.uses[next[s as usize] as usize] = i as i32;
            next[s as usize] += 1;
        }
    }
}

/// Tokens of a group under four layouts, all response tokens counted: what sharing saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCounts {
    /// Every term of every comparison on its own.
    pub per_term: usize,
    /// Each distinct sequence once.
    pub per_sequence: usize,
    /// Each distinct prompt once, responses below it.
    pub per_prompt: usize,
    /// The prefix tree.
    pub tree: usize,
}

/// Counts the tokens of a group under each layout.
pub fn token_counts(group: &TokenizedGroup) -> TokenCounts {
    let length = |s: usize| {
        let sequence = &group.sequences[s];
        group.prompt_ids[sequence.prompt].len() + sequence.response_ids.len()
    };
    let mut prompts: Vec<&[u32]> = group.sequences.iter().map(|s| &group.prompt_ids[s.prompt][..]).collect();
    prompts.sort_unstable();
    prompts.dedup();
    TokenCounts {
        per_term: group.comparisons.iter().flat_map(|c| &c.terms).map(|t| length(t.sequence)).sum(),
        per_sequence: (0..group.sequences.len()).map(length).sum(),
        per_prompt: prompts.iter().map(|p| p.len()).sum::<usize>() + group.response_tokens(),
        tree: GroupTree::build(group, true, false).segments.iter().map(|s| s.len).sum(),
    }
}
