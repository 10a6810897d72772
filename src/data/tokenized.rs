//! A preference group as token ids: the input of packing and caching.

use super::group::{Kind, PreferenceGroup};
use super::pack::LogpScope;

/// One (prompt, response) pair as token ids. The model is scored on `response` given `prompt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Index into the group's prompts.
    pub prompt: usize,
    /// Index into the group's responses.
    pub response: usize,
    /// Token ids of the response as it follows this prompt, end-of-turn included; never empty.
    pub response_ids: Vec<u32>,
}

/// A signed reference to a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceTerm {
    /// Index into [`TokenizedGroup::sequences`].
    pub sequence: usize,
    /// +1 or -1.
    pub sign: i8,
    /// If true, the term enters the loss as a constant and gets no gradient.
    pub detached: bool,
}

/// A comparison over sequences of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceComparison {
    /// Base, intra or inter.
    pub kind: Kind,
    /// Signed sequences.
    pub terms: Vec<SequenceTerm>,
    /// Subtracted from the logit.
    pub margin: f64,
    /// Factor on the loss.
    pub weight: f64,
    /// Bounds (low, high) on the signed sum of the detached terms (`--pop-clip`).
    pub detached_clip: Option<(f64, f64)>,
}

/// A tokenised group.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizedGroup {
    /// Source text, for metrics by instruction and for printing.
    pub group: std::sync::Arc<PreferenceGroup>,
    /// Token ids of each prompt, generation prompt included; empty for prompts that no comparison
    /// uses.
    pub prompt_ids: Vec<Vec<u32>>,
    /// Distinct (prompt, response) pairs in the order of [`PreferenceGroup::sequences`].
    pub sequences: Vec<Sequence>,
    /// Comparisons of its sequences.
    pub comparisons: Vec<SequenceComparison>,
}

impl TokenizedGroup {
    /// Length of the longest sequence in tokens, prompt included.
    pub fn longest(&self) -> usize {
        self.sequences.iter().map(|s| self.prompt_ids[s.prompt].len() + s.response_ids.len()).max().unwrap_or(0)
    }

    /// Number of tokens whose log-probs are summed in the score of a sequence. The first token of a prompt has
    /// no log-prob.
    pub fn scored_tokens(&self, sequence: usize, scope: LogpScope) -> usize {
        let Sequence { prompt, ref response_ids, .. } = self.sequences[sequence];
        let before = match scope {
            LogpScope::Response => 0,
            LogpScope::PromptAndResponse => self.prompt_ids[prompt].len().saturating_sub(1),
        };
        before + response_ids.len()
    }

    /// Response tokens over all sequences: the number of LM-head rows that this group needs.
    pub fn response_tokens(&self) -> usize {
        self.sequences.iter().map(|s| s.response_ids.len()).sum()
    }
}
