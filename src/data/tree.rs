//! Prefix tree of one group: token runs shared by several of its sequences are stored once.
//!
//! ```text
//! stack = [node (all used prompts, depth 0, no parent)]
//! while stack is not empty:
//!     node   = pop(stack)
//!     end    = length of the longest common prefix of the node's prompts
//!     ending = prompts of length `end`
//!     groups = the other prompts, grouped by their token at `end`
//!     if groups is empty and exactly one response starts at `end`:
//!         emit one segment: prompt tokens node.depth..end, then the response
//!     else:
//!         run = emit a segment: prompt tokens node.depth..end
//!         emit a segment below `run` for each response of the prompts in `ending`
//!         push a node (group, depth end, parent run) for each group
//! ```
//!
//! The code departs from this in four points. The prompts of a node are a range of one array, which
//! is partitioned in place. Child nodes are pushed in reverse, so segments come out in depth-first
//! order. An empty segment is not emitted; its children attach to its parent, so prompts that
//! differ in their first token give several trees. Without sharing, each sequence is emitted as one
//! segment.
//!
//! Prompts form a compressed trie over their token ids; responses are leaves below the end of their prompt.
//! Responses never share tokens, even if they start alike: each response token belongs to one sequence, so only
//! that sequence contributes to its gradient. Sharing is exact, because a shared token has the same ancestors
//! in every sequence that contains it.
//!
//! At a node, the responses that start there come first, in sequence order, then the longer
//! prompts, ordered by their smallest prompt index. Prompts that no sequence uses are left out. A
//! segment is never empty. A prompt with a single response below it continues into that response,
//! so a group of one sequence is the same with sharing and without.
//!
//! This module does not check its input, because [`super::pack`] checks the groups before it builds their
//! trees.

use super::tokenized::TokenizedGroup;
use std::collections::BTreeSet;
use std::ops::Range;

/// A run of tokens without a branch: a range of a prompt, optionally followed by the start of one
/// sequence's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index of the prompt that holds the ids; the smallest index if several prompts share them.
    pub prompt: usize,
    /// Token range in the prompt; empty if the segment holds only response tokens. Its start is the position of
    /// the segment's first token.
    pub prompt_range: Range<usize>,
    /// Index of the sequence whose response tokens the segment holds; `None` if `response_len` is 0.
    pub sequence: Option<usize>,
    /// Number of leading response tokens in the segment.
    pub response_len: usize,
}

impl Segment {
    /// Number of tokens; never 0 in a tree.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.prompt_range.len() + self.response_len
    }

    /// Position of the first token, counted along the path from the root.
    pub(crate) fn position(&self) -> usize {
        self.prompt_range.start
    }

    /// Number of (query, key) pairs in the attention of the segment's tokens, which attend to all ancestors and
    /// causally to the segment itself.
    pub(crate) fn pairs(&self) -> u64 {
        let (len, before) = (self.len() as u64, self.position() as u64);
        len * before + len * (len + 1) / 2
    }
}

/// Options of [`PrefixTree::build`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeOptions {
    /// If false, each sequence is a separate segment without ancestors, in sequence order.
    pub share: bool,
    /// Leaves out the last token of every response, because its next-token prediction is not used.
    pub omit_last: bool,
}

/// Prefix trees of one group. Rebuilding reuses the memory of earlier groups.
#[derive(Clone, Debug, Default)]
pub struct PrefixTree {
    segments: Vec<Segment>,
    /// (segments) end of each segment's list in `ancestors`
    ancestor_ends: Vec<usize>,
    ancestors: Vec<usize>,
    roots: Vec<usize>,
    path_ends: Vec<Option<usize>>,
    scratch: Scratch,
}

#[derive(Clone, Debug, Default)]
struct Scratch {
    /// (prompts + 2) CSR offsets into `sequences`; the last entry is only used while counting.
    sequence_offsets: Vec<usize>,
    /// Sequence indices grouped by prompt, ascending within a prompt.
    sequences: Vec<usize>,
    /// Indices of used prompts; the prompts below a node are contiguous and ascending.
    prompts: Vec<usize>,
    /// Prompts of the current node that are not assigned to a child yet.
    unassigned: Vec<usize>,
    nodes: Vec<Node>,
}

/// Prompts with a common prefix of `depth` tokens; `parent` is the segment that ends there.
#[derive(Clone, Debug)]
struct Node {
    prompts: Range<usize>,
    depth: usize,
    parent: Option<usize>,
}

impl PrefixTree {
    /// Replaces the content with the trees of `group`. Prompts that differ in their first token
    /// give several trees.
    pub fn build(&mut self, group: &TokenizedGroup, layout: TreeOptions) {
        self.segments.clear();
        self.ancestor_ends.clear();
        self.ancestors.clear();
        self.roots.clear();
        self.path_ends.clear();
        self.path_ends.resize(group.sequences.len(), None);
        let mut scratch = std::mem::take(&mut self.scratch);
        if layout.share {
            scratch.reset(group);
            while let Some(node) = scratch.nodes.pop() {
                self.expand(group, layout, &mut scratch, node);
            }
        } else {
            for (s, sequence) in group.sequences.iter().enumerate() {
                let prompt_range = 0..group.prompt_ids[sequence.prompt].len();
                self.add_response(group, layout, prompt_range, s, None);
            }
        }
        self.scratch = scratch;
    }

    /// Segments in depth-first order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Ancestors of a segment, root first, as indices into [`PrefixTree::segments`].
    pub fn ancestors(&self, segment: usize) -> &[usize] {
        let start = if segment == 0 { 0 } else { self.ancestor_ends[segment - 1] };
        &self.ancestors[start..self.ancestor_ends[segment]]
    }

    /// First segment of each tree; a tree's segments are contiguous.
    pub(crate) fn roots(&self) -> &[usize] {
        &self.roots
    }

    /// Last segment on the path of a sequence; the ancestors of that segment are the rest of the path. `None`
    /// for a path without tokens.
    pub fn path_end(&self, sequence: usize) -> Option<usize> {
        self.path_ends[sequence]
    }

    /// Number of tokens in all segments.
    pub fn tokens(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }

    /// Expands a node into the run shared by its prompts, the responses that start at the end of the run, and
    /// one child node per next token. The time is one read of the prompts, plus (prompts of the node) x (its
    /// branches) per node.
    fn expand(&mut self, group: &TokenizedGroup, layout: TreeOptions, scratch: &mut Scratch, node: Node) {
        let ids = |prompt: usize| group.prompt_ids[prompt].as_slice();
        let Scratch { sequence_offsets, sequences, prompts, unassigned, nodes } = scratch;
        let sequences_of = |p: usize| &sequences[sequence_offsets[p]..sequence_offsets[p + 1]];

        let first = prompts[node.prompts.start];
        let end = prompts[node.prompts.clone()].iter().fold(ids(first).len(), |end, &other| {
            let (a, b) = (&ids(first)[node.depth..end], &ids(other)[node.depth..]);
            node.depth + a.iter().zip(b).take_while(|(x, y)| x == y).count()
        });

        // Stable partition in place: prompts that end here, then one range per next token in order
        // of appearance.
        unassigned.clear();
        unassigned.extend_from_slice(&prompts[node.prompts.clone()]);
        let mut next = node.prompts.start;
        let mut take = |unassigned: &mut Vec<usize>, belongs: &dyn Fn(usize) -> bool| {
            let from = next;
            unassigned.retain(|&prompt| {
                let taken = belongs(prompt);
                if taken {
                    prompts[next] = prompt;
                    next += 1;
                }
                !taken
            });
            from..next
        };
        let ending = take(unassigned, &|p| ids(p).len() == end);
        let first_child = nodes.len();
        while let Some(&prompt) = unassigned.first() {
            let token = ids(prompt)[end];
            let prompts = take(unassigned, &|p| ids(p)[end] == token);
            nodes.push(Node { prompts, depth: end, parent: None });
        }

        let mut starting = prompts[ending].iter().flat_map(|&p| sequences_of(p)).copied();
        let run = node.depth..end;
        if nodes.len() == first_child
            && let (Some(only), None) = (starting.clone().next(), starting.clone().nth(1))
        {
            self.add_response(group, layout, run, only, node.parent);
            return;
        }
        let branch =
            self.add(Segment { prompt: first, prompt_range: run, sequence: None, response_len: 0 }, node.parent);
        starting.by_ref().for_each(|s| self.add_response(group, layout, end..end, s, branch));
        for child in &mut nodes[first_child..] {
            child.parent = branch;
        }
        // The stack pops the last node first, so the children are reversed.
        nodes[first_child..].reverse();
    }

    /// Appends the last segment of a sequence's path: part of its prompt and its response.
    fn add_response(
        &mut self,
        group: &TokenizedGroup,
        layout: TreeOptions,
        prompt_range: Range<usize>,
        sequence: usize,
        parent: Option<usize>,
    ) {
        let prompt = group.sequences[sequence].prompt;
        let response_len = group.sequences[sequence].response_ids.len().saturating_sub(usize::from(layout.omit_last));
        let sequence_held = (response_len > 0).then_some(sequence);
        let segment = Segment { prompt, prompt_range, sequence: sequence_held, response_len };
        self.path_ends[sequence] = self.add(segment, parent);
    }

    /// Appends a segment below `parent` and returns its index. An empty segment is not added and
    /// `parent` is returned.
    fn add(&mut self, segment: Segment, parent: Option<usize>) -> Option<usize> {
        if segment.len() == 0 {
            return parent;
        }
        let index = self.segments.len();
        match parent {
            None => self.roots.push(index),
            Some(parent) => {
                let start = if parent == 0 { 0 } else { self.ancestor_ends[parent - 1] };
                self.ancestors.extend_from_within(start..self.ancestor_ends[parent]);
                self.ancestors.push(parent);
            }
        }
        self.segments.push(segment);
        self.ancestor_ends.push(self.ancestors.len());
        Some(index)
    }
}

impl Scratch {
    /// Groups the sequences by prompt and pushes a root node with all used prompts.
    fn reset(&mut self, group: &TokenizedGroup) {
        let prompts = group.prompt_ids.len();
        // Counting sort with the count of prompt p at index p + 2. The fill advances entry p + 1 from the
        // start to the end of prompt p, so that afterwards entry p is the start of prompt p.
        self.sequence_offsets.clear();
        self.sequence_offsets.resize(prompts + 2, 0);
        for sequence in &group.sequences {
            self.sequence_offsets[sequence.prompt + 2] += 1;
        }
        for p in 1..prompts + 2 {
            self.sequence_offsets[p] += self.sequence_offsets[p - 1];
        }
        self.sequences.clear();
        self.sequences.resize(group.sequences.len(), 0);
        for (s, sequence) in group.sequences.iter().enumerate() {
            let next = &mut self.sequence_offsets[sequence.prompt + 1];
            self.sequences[*next] = s;
            *next += 1;
        }
        self.prompts.clear();
        let offsets = &self.sequence_offsets;
        self.prompts.extend((0..prompts).filter(|&p| offsets[p] < offsets[p + 1]));
        self.nodes.clear();
        if !self.prompts.is_empty() {
            self.nodes.push(Node { prompts: 0..self.prompts.len(), depth: 0, parent: None });
        }
    }
}

/// Token counts of a group in four layouts; responses include their last token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCounts {
    /// Every term of every comparison is computed as a separate sequence.
    pub per_term: usize,
    /// Each distinct (prompt, response) pair once.
    pub per_sequence: usize,
    /// Each distinct prompt once, plus all responses.
    pub per_prompt: usize,
    /// Prefix tree.
    pub tree: usize,
}

/// Counts the tokens of `group` in four layouts. The differences are the savings by sharing.
pub fn token_counts(group: &TokenizedGroup) -> TokenCounts {
    let prompt = |s: usize| group.prompt_ids[group.sequences[s].prompt].as_slice();
    let length = |s: usize| prompt(s).len() + group.sequences[s].response_ids.len();
    let all = 0..group.sequences.len();
    let prompts: BTreeSet<&[u32]> = all.clone().map(prompt).collect();
    let mut tree = PrefixTree::default();
    tree.build(group, TreeOptions { share: true, omit_last: false });
    TokenCounts {
        per_term: group.comparisons.iter().flat_map(|c| &c.terms).map(|t| length(t.sequence)).sum(),
        per_sequence: all.map(length).sum(),
        per_prompt: prompts.iter().map(|p| p.len()).sum::<usize>() + group.response_tokens(),
        tree: tree.tokens(),
    }
}
