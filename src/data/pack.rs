//! Packs groups into one batch: everything that a step reads from the host, as flat tables without
//! padding.
//!
//! ```text
//! for each group:
//!     check its token ids and references
//!     build its prefix tree
//!     for each segment:    append token ids, positions and ancestors
//!     for each sequence:   if scored by log-probability:
//!                              for each scored token: append (row that predicts it, its id)
//!                          else: append the row of its last token that is not the pad token
//!     for each comparison: append its terms (sequence, sign), kind, scale, margin, weight and
//!                          clip bounds
//! group token rows by token id, head rows by source row, and terms by sequence
//! ```
//!
//! The code departs from this in three points. Tables index the whole batch, so the indices of a
//! group are shifted by the segments, rows and sequences of earlier groups. The three groupings are
//! counting sorts into CSR tables, so each backward sum has one owner and a fixed order. All tables keep their
//! memory from batch to batch.
//!
//! All index values are checked here, once; the ops check only lengths.
//!
//! Errors that name the group: a token id outside the vocabulary, an empty response, and an empty prompt if its
//! last token would have to predict the first response token. Errors that show a bug of the caller: references
//! outside the group, signs other than 1 and -1, more terms than a comparison has slots, and clip bounds in the
//! wrong order. A batch with more than 2^31 table entries is an error, with the advice to make it smaller.

mod batch;
mod limits;

pub use batch::*;
pub use limits::{BatchLimits, GroupSizes};

use super::tokenized::{SequenceComparison, TokenizedGroup};
use super::tree::{PrefixTree, TreeOptions};
use crate::backend::contract::{GroupEnd, KINDS, TERMS};
use crate::{Error, Result};
use std::path::Path;

/// Tokens that contribute their log-probabilities to a sequence's score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogpScope {
    /// The response given its prompt.
    Response,
    /// Prompt and response, except the first token, which has no predecessor to predict it.
    PromptAndResponse,
}

/// Kind of score of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Log-probabilities of its tokens. The last response token is only a target and gets no row.
    LogProb {
        /// Which tokens are scored.
        scope: LogpScope,
    },
    /// Reward at its last token that is not [`PackOptions::pad`].
    Reward,
}

/// Options of [`pack_into`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackOptions {
    /// If false, every sequence has separate rows, as the oracle of tests and the baseline of studies.
    pub share_prefixes: bool,
    /// Kind of score of every sequence.
    pub scoring: Scoring,
    /// Rows of the embedding table; every token id must be smaller.
    pub vocab: usize,
    /// Pad token of a reward model. As in transformers, the reward is read at the rightmost token with a
    /// different id.
    pub pad: Option<u32>,
    /// Whether token rows are grouped by position too, for the gradient of learned positions.
    pub position_runs: bool,
}

/// Values of the comparison table that come from the run settings, not from the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ComparisonOptions {
    /// Factor on `score - reference`, per kind: beta for DPO, 1 for rewards.
    pub scale: [f64; KINDS],
    /// Added to the margin of every comparison.
    pub margin_add: f64,
}

/// Replaces the content of `batch` with `groups`, in order. After an error the batch is empty.
pub fn pack_into(
    batch: &mut Batch,
    groups: &[&TokenizedGroup],
    options: &PackOptions,
    loss: &ComparisonOptions,
) -> Result<()> {
    batch.clear();
    let packed = groups.iter().try_for_each(|group| batch.push_group(group, options, loss));
    if packed.is_err() {
        batch.clear();
        return packed;
    }
    let Batch { ids, id_runs, positions, position_runs, source, head_runs, counters, longest_path, .. } = batch;
    if options.position_runs {
        group_by_key(positions, *longest_path, counters, position_runs);
    }
    group_by_key(ids, options.vocab, counters, id_runs);
    group_by_key(source, ids.len(), counters, head_runs);
    batch.comparisons.index_uses(batch.sequences.len(), &mut batch.counters);
    Ok(())
}

impl Batch {
    fn push_group(&mut self, group: &TokenizedGroup, options: &PackOptions, loss: &ComparisonOptions) -> Result<()> {
        check_sequences(group, options)?;
        let omit_last = options.scoring != Scoring::Reward;
        let omitted = if omit_last { group.sequences.len() } else { 0 };
        let full_tokens: usize =
            group.sequences.iter().map(|s| group.prompt_ids[s.prompt].len() + s.response_ids.len()).sum();
        // The unshared tokens bound the head rows, rows, segments and sequences of the batch.
        to_index("tokens", self.tokens_unshared + self.seqs() + full_tokens)?;
        self.tokens_unshared += full_tokens - omitted;

        let first_segment = self.segments();
        let first_seq = self.seqs();
        let mut tree = std::mem::take(&mut self.prefix_tree);
        tree.build(group, TreeOptions { share: options.share_prefixes, omit_last });
        self.push_segments(group, &tree)?;
        for s in 0..group.sequences.len() {
            self.push_sequence(group, s, &tree, first_segment, options);
        }
        self.prefix_tree = tree;
        for index in 0..group.comparisons.len() {
            self.push_comparison(group, index, first_seq, loss)?;
        }
        self.groups += 1;
        self.group_ends.push(GroupEnd { row: self.head_rows(), seq: self.seqs() });
        Ok(())
    }

    fn push_segments(&mut self, group: &TokenizedGroup, tree: &PrefixTree) -> Result<()> {
        let first_segment = self.segments() as i32;
        for (index, segment) in tree.segments().iter().enumerate() {
            self.ids.extend(group.prompt_ids[segment.prompt][segment.prompt_range.clone()].iter().map(|&id| id as i32));
            if let Some(s) = segment.sequence {
                let response = &group.sequences[s].response_ids[..segment.response_len];
                self.ids.extend(response.iter().map(|&id| id as i32));
            }
            let path = segment.position() + segment.len();
            self.positions.extend(segment.position() as i32..path as i32);
            self.longest_path = self.longest_path.max(path);
            self.pairs += segment.pairs();
            let table = &mut self.tree;
            table.starts.push(self.ids.len() as i32);
            table.ancestors.extend(tree.ancestors(index).iter().map(|&a| first_segment + a as i32));
            table.ancestor_offsets.push(to_index("entries of ancestor lists", table.ancestors.len())?);
        }
        // Each tree ends where the next begins; the last one ends with the group.
        let ends = tree.roots().iter().skip(1).copied().chain([tree.segments().len()]);
        let trees = tree.roots().len();
        self.tree.trees.extend(ends.take(trees).map(|end| first_segment + end as i32));
        Ok(())
    }

    fn push_sequence(
        &mut self,
        group: &TokenizedGroup,
        s: usize,
        tree: &PrefixTree,
        first_segment: usize,
        options: &PackOptions,
    ) {
        let sequence = &group.sequences[s];
        let (prompt, response) = (&group.prompt_ids[sequence.prompt], &sequence.response_ids);
        self.sequences.push(SequenceRef {
            group: self.groups,
            prompt: sequence.prompt,
            response: sequence.response,
            response_tokens: response.len(),
        });
        let end = tree.path_end(s);
        match options.scoring {
            Scoring::Reward => {
                let read = reward_position(prompt, response, options.pad);
                let path = end.map_or(&[][..], |end| tree.ancestors(end)).iter().copied().chain(end);
                let row = path.rev().find_map(|index| {
                    let offset = read.checked_sub(tree.segments()[index].position())?;
                    Some(self.tree.starts[first_segment + index] + offset as i32)
                });
                // Responses are not empty and not shared, so no two of them share a row.
                debug_assert!(read < prompt.len() || row.is_some_and(|row| !self.last_rows.contains(&row)));
                self.last_rows.extend(row);
            }
            Scoring::LogProb { scope } => {
                let first = match scope {
                    LogpScope::Response => prompt.len() - 1,
                    LogpScope::PromptAndResponse => 0,
                };
                // The token at position i of the path predicts the token at i + 1.
                for &index in end.map_or(&[][..], |end| tree.ancestors(end)).iter().chain(&end) {
                    let segment = &tree.segments()[index];
                    let row = self.tree.starts[first_segment + index];
                    let skipped = first.saturating_sub(segment.position());
                    self.source.extend((skipped..segment.len()).map(|i| row + i as i32));
                }
                self.target.extend(prompt[first + 1..].iter().chain(response).map(|&id| id as i32));
                debug_assert_eq!(self.source.len(), self.target.len());
            }
        }
        self.seq_offsets.push(self.source.len() as i32);
    }

    fn push_comparison(
        &mut self,
        group: &TokenizedGroup,
        index: usize,
        first_seq: usize,
        loss: &ComparisonOptions,
    ) -> Result<()> {
        let comparison = &group.comparisons[index];
        check_comparison(comparison, group.sequences.len())?;
        let table = &mut self.comparisons;
        to_index("comparison terms", (table.kind.len() + 1) * TERMS)?;
        for slot in 0..TERMS {
            let (sequence, sign) = match comparison.terms.get(slot) {
                Some(t) => ((first_seq + t.sequence) as i32, i32::from(t.sign) * if t.detached { 2 } else { 1 }),
                None => (-1, 0),
            };
            table.term_sequence.push(sequence);
            table.term_sign.push(sign);
        }
        let kind = comparison.kind.index();
        table.kind.push(kind as i32);
        table.counts[kind] += 1;
        table.scale.push(loss.scale[kind]);
        table.margin.push(comparison.margin + loss.margin_add);
        table.weight.push(comparison.weight);
        let (low, high) = comparison.detached_clip.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        table.detached_clip.extend([low, high]);
        table.refs.push(ComparisonRef { group: self.groups, index });
        Ok(())
    }
}

impl ComparisonTable {
    /// Lists the terms that use each of `seqs` sequences, in comparison order, with `next` as scratch.
    fn index_uses(&mut self, seqs: usize, next: &mut Vec<i32>) {
        next.clear();
        next.resize(seqs + 1, 0);
        let used = |&s: &i32| usize::try_from(s).ok();
        for s in self.term_sequence.iter().filter_map(used) {
            next[s + 1] += 1;
        }
        for s in 1..next.len() {
            next[s] += next[s - 1];
        }
        self.use_offsets.clear();
        self.use_offsets.extend_from_slice(next);
        self.uses.resize(next[seqs] as usize, 0);
        for (item, sequence) in self.term_sequence.iter().enumerate() {
            if let Some(s) = used(sequence) {
                self.uses[next[s] as usize] = item as i32;
                next[s] += 1;
            }
        }
    }
}

/// Stable counting sort of the items `0..keys.len()` by key, with `next` as scratch. All keys are
/// in `0..bound`.
fn group_by_key(keys: &[i32], bound: usize, next: &mut Vec<i32>, runs: &mut RunTable) {
    next.clear();
    next.resize(bound, 0);
    for &key in keys {
        next[key as usize] += 1;
    }
    let mut placed = 0;
    for (key, count) in next.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
        runs.keys.push(key as i32);
        placed += std::mem::replace(count, placed);
        runs.offsets.push(placed);
    }
    runs.order.resize(keys.len(), 0);
    for (item, &key) in keys.iter().enumerate() {
        let place = &mut next[key as usize];
        runs.order[*place as usize] = item as i32;
        *place += 1;
    }
}

/// Converts `n` to an index of a batch.
fn to_index(what: &str, n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| {
        Error::Usage(format!(
            "the batch has {n} {what}, above the limit of its 32-bit indices ({}); use fewer groups per device \
             (--per-device-train-batch-size)",
            i32::MAX
        ))
    })
}

fn contract_error(what: &'static str, expected: impl Into<String>, got: impl ToString) -> Error {
    Error::Contract { op: "pack_into", what, expected: expected.into(), got: got.to_string() }
}

/// Position in a sequence at which its reward is read: the rightmost token that is not the pad token,
/// as in transformers, which reads position 0 if there is none.
pub fn reward_position(prompt: &[u32], response: &[u32], pad: Option<u32>) -> usize {
    let ids = prompt.iter().chain(response);
    let padding = ids.rev().take_while(|id| Some(**id) == pad).count();
    (prompt.len() + response.len()).saturating_sub(padding + 1)
}

/// Checks the prompt indices and token ids of a group's sequences.
fn check_sequences(group: &TokenizedGroup, options: &PackOptions) -> Result<()> {
    let refuse = |why: String| Err(Error::data(Path::new("batch"), 0, Some(&group.group.id), why));
    if i32::try_from(options.vocab).is_err() {
        return Err(contract_error("vocab", "a size below 2^31", options.vocab));
    }
    for sequence in &group.sequences {
        let Some(prompt) = group.prompt_ids.get(sequence.prompt) else {
            return Err(contract_error("prompt", format!("below {}", group.prompt_ids.len()), sequence.prompt));
        };
        let pair = || format!("prompt {} with response {}", sequence.prompt, sequence.response);
        if sequence.response_ids.is_empty() {
            return refuse(format!("{} has no response tokens, so there is nothing to score; drop the row", pair()));
        }
        if prompt.is_empty() && options.scoring != Scoring::Reward {
            return refuse(format!(
                "prompt {} has no tokens, so nothing predicts the first token of its responses; \
                 give it text or use a tokenizer with a beginning-of-sequence token",
                sequence.prompt
            ));
        }
        let largest = prompt.iter().chain(&sequence.response_ids).fold(0, |a, &b| a.max(b));
        if largest as usize >= options.vocab {
            return refuse(format!(
                "{} contains token id {largest}, but the model's vocabulary has {} entries; \
                 use the tokenizer of the model's own folder",
                pair(),
                options.vocab
            ));
        }
    }
    Ok(())
}

/// Checks the terms and clip bounds of a comparison.
fn check_comparison(comparison: &SequenceComparison, seqs: usize) -> Result<()> {
    if comparison.terms.len() > TERMS {
        return Err(contract_error("terms", format!("at most {TERMS}"), comparison.terms.len()));
    }
    for term in &comparison.terms {
        if term.sequence >= seqs {
            return Err(contract_error("term.sequence", format!("below {seqs}"), term.sequence));
        }
        if term.sign != 1 && term.sign != -1 {
            return Err(contract_error("term.sign", "1 or -1", term.sign));
        }
    }
    match comparison.detached_clip {
        // A NaN bound is unordered and rejected here too.
        Some((low, high)) if low.partial_cmp(&high).is_none_or(|order| order.is_gt()) => {
            Err(contract_error("detached_clip", "low <= high", format!("{low}, {high}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_32_bits_are_refused() {
        assert_eq!(to_index("tokens", i32::MAX as usize).unwrap(), i32::MAX);
        let error = to_index("tokens", i32::MAX as usize + 1).unwrap_err().to_string();
        assert!(error.contains("2147483648 tokens") && error.contains("fewer groups"), "{error}");
    }

    #[test]
    fn runs_are_a_stable_sort() {
        let (mut runs, mut next) = (RunTable::default(), vec![9; 3]);
        runs.offsets.push(0);
        group_by_key(&[5, 2, 5, 0, 2], 7, &mut next, &mut runs);
        assert_eq!(runs, RunTable { order: vec![3, 1, 4, 0, 2], offsets: vec![0, 1, 3, 5], keys: vec![0, 2, 5] });
    }
}
