//! Prefix tree of a group: every run of prompt tokens that several prompts begin with is stored once, and each
//! response hangs below the end of its prompt.
//!
//! Sharing is exact: a shared token has the same ancestors in every sequence that holds it, so its hidden state is the
//! same. Sharing stops at the end of a prompt; every response token belongs to one sequence.

use std::ops::Range;

use super::tokenized::TokenizedGroup;

/// Where a run of tokens comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Tokens `range` of a prompt.
    Prompt { prompt: usize, range: Range<usize> },
    /// The first `len` tokens of a sequence's response.
    Response { sequence: usize, len: usize },
    /// A whole prompt and the first `len` tokens of a response, where nothing is shared.
    Whole { sequence: usize, len: usize },
}

/// One edge of the tree: a run of tokens without a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Segment it continues; always an earlier one.
    pub parent: Option<usize>,
    /// Position of its first token, counted along the path from the root.
    pub position: usize,
    pub len: usize,
    pub piece: Piece,
}

/// Segments of a group in depth-first order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupTree {
    pub segments: Vec<Segment>,
    /// Per sequence: the segment that ends with its prompt's last token, if any token precedes the response.
    pub prompt_ends: Vec<Option<usize>>,
    /// Per sequence: the segment of its response, absent when no response token is stored.
    pub responses: Vec<Option<usize>>,
}

impl GroupTree {
    /// Builds the tree. `omit_last` leaves out each response's last token, whose prediction nobody needs when log-probs
    /// are scored. Without `share`, each sequence is one segment of its own.
    pub fn build(group: &TokenizedGroup, share: bool, omit_last: bool) -> Self {
        let sequences = group.sequences.len();
        let mut tree =
            Self { segments: Vec::new(), prompt_ends: vec![None; sequences], responses: vec![None; sequences] };
        let stored = |s: usize| group.sequences[s].response_ids.len() - usize::from(omit_last);
        if !share {
            for s in 0..sequences {
                let len = group.prompt_ids[group.sequences[s].prompt].len() + stored(s);
                let piece = Piece::Whole { sequence: s, len: stored(s) };
                let place = tree.push(Segment { parent: None, position: 0, len, piece });
                (tree.prompt_ends[s], tree.responses[s]) = (place, place);
            }
            return tree;
        }
        let mut prompts: Vec<usize> = group.sequences.iter().map(|s| s.prompt).collect();
        prompts.sort_unstable();
        prompts.dedup();
        tree.grow(group, &prompts, None, 0, &stored);
        tree
    }

    /// Adds a segment unless it is empty.
    fn push(&mut self, segment: Segment) -> Option<usize> {
        if segment.len == 0 {
            return None;
        }
        self.segments.push(segment);
        Some(self.segments.len() - 1)
    }

    /// Adds everything below `parent`, where the prompts agree on their first `depth` tokens. The recursion is no
    /// deeper than there are prompts, because every level below the first separates at least two.
    fn grow(
        &mut self,
        group: &TokenizedGroup,
        prompts: &[usize],
        parent: Option<usize>,
        depth: usize,
        stored: &dyn Fn(usize) -> usize,
    ) {
        let ids = |p: usize| &group.prompt_ids[p][depth..];
        let first = prompts[0];
        let shared = prompts.iter().map(|&p| common_prefix(ids(first), ids(p))).min().unwrap_or(0);
        let end = depth + shared;
        let piece = Piece::Prompt { prompt: first, range: depth..end };
        let here = self.push(Segment { parent, position: depth, len: shared, piece }).or(parent);

        let (ended, open): (Vec<usize>, Vec<usize>) = prompts.iter().partition(|&&p| group.prompt_ids[p].len() == end);
        for p in ended {
            for (s, _) in group.sequences.iter().enumerate().filter(|(_, s)| s.prompt == p) {
                let piece = Piece::Response { sequence: s, len: stored(s) };
                self.prompt_ends[s] = here;
                self.responses[s] = self.push(Segment { parent: here, position: end, len: stored(s), piece });
            }
        }
        let mut rest = open;
        while let Some(&lead) = rest.first() {
            let token = group.prompt_ids[lead][end];
            let (branch, others): (Vec<usize>, Vec<usize>) =
                rest.iter().partition(|&&p| group.prompt_ids[p][end] == token);
            self.grow(group, &branch, here, end, stored);
            rest = others;
        }
    }

    /// The segments above `segment`, root first.
    pub fn ancestors(&self, segment: usize) -> Vec<usize> {
        let mut path = Vec::new();
        let mut at = self.segments[segment].parent;
        while let Some(parent) = at {
            path.push(parent);
            at = self.segments[parent].parent;
        }
        path.reverse();
        path
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}
