//! Batches of prefix trees for the tests of attention.

use mapl::backend::contract::AttentionDims;

/// Index tables of a batch, on the host.
#[derive(Clone, Default, Debug)]
pub struct HostTree {
    pub starts: Vec<i32>,
    pub ancestor_offsets: Vec<i32>,
    pub ancestors: Vec<i32>,
    pub trees: Vec<i32>,
}

impl HostTree {
    pub fn new() -> Self {
        Self { starts: vec![0], ancestor_offsets: vec![0], ancestors: vec![], trees: vec![0] }
    }

    /// Adds a tree: (length, parent segment within the tree) of each segment.
    pub fn tree(mut self, segments: &[(usize, Option<usize>)]) -> Self {
        let first = self.starts.len() as i32 - 1;
        for &(length, parent) in segments {
            self.starts.push(self.starts.last().unwrap() + length as i32);
            let mut path = Vec::new();
            let mut next = parent;
            while let Some(s) = next {
                path.push(first + s as i32);
                next = segments[s].1;
            }
            self.ancestors.extend(path.iter().rev());
            self.ancestor_offsets.push(self.ancestors.len() as i32);
        }
        self.trees.push(self.starts.len() as i32 - 1);
        self
    }

    pub fn tokens(&self) -> usize {
        *self.starts.last().unwrap() as usize
    }

    pub fn dims(&self, heads: usize, kv_heads: usize, head_dim: usize) -> AttentionDims {
        let length = |s: usize| (self.starts[s + 1] - self.starts[s]) as usize;
        let (mut pairs, mut longest_path) = (0, 0);
        for s in 0..self.starts.len() - 1 {
            let range = self.ancestor_offsets[s] as usize..self.ancestor_offsets[s + 1] as usize;
            let above: usize = self.ancestors[range].iter().map(|&a| length(a as usize)).sum();
            pairs += (above * length(s) + length(s) * (length(s) + 1) / 2) as u64;
            longest_path = longest_path.max(above + length(s));
        }
        AttentionDims {
            tokens: self.tokens(),
            heads,
            kv_heads,
            head_dim,
            segments: self.starts.len() - 1,
            ancestors: self.ancestors.len(),
            trees: self.trees.len() - 1,
            pairs,
            longest_path,
            scale: 1.0 / (head_dim as f64).sqrt(),
            window: None,
            softcap: None,
        }
    }
}

impl HostTree {
    /// Returns the sizes of the batch with a sliding window.
    pub fn windowed(&self, (heads, kv_heads, head_dim): (usize, usize, usize), window: usize) -> AttentionDims {
        let length = |s: usize| (self.starts[s + 1] - self.starts[s]) as usize;
        let pairs = (0..self.starts.len() - 1).flat_map(|s| {
            let range = self.ancestor_offsets[s] as usize..self.ancestor_offsets[s + 1] as usize;
            let above: usize = self.ancestors[range].iter().map(|&a| length(a as usize)).sum();
            (above + 1..=above + length(s)).map(|seen| seen.min(window) as u64)
        });
        let (window, pairs) = (Some(window), pairs.sum());
        AttentionDims { pairs, window, ..self.dims(heads, kv_heads, head_dim) }
    }
}

/// Returns named batches, one for each kind of tree.
pub fn batches() -> Vec<(&'static str, HostTree)> {
    let root = None;
    vec![
        ("no trees", HostTree::new()),
        ("one token", HostTree::new().tree(&[(1, root)])),
        ("two sequences without a shared prefix", HostTree::new().tree(&[(17, root), (1, root)])),
        ("two sequences with a shared prefix", HostTree::new().tree(&[(12, root), (5, Some(0)), (7, Some(0))])),
        (
            "eight sequences, prefixes of two lengths, segments of one token",
            HostTree::new().tree(&[
                (9, root),
                (6, Some(0)),
                (3, Some(1)),
                (1, Some(1)),
                (1, Some(0)),
                (8, Some(4)),
                (15, Some(4)),
                (2, root),
                (4, Some(7)),
                (1, Some(7)),
                (20, Some(7)),
            ]),
        ),
        ("segments longer than a task and a block", HostTree::new().tree(&[(150, root), (90, Some(0)), (33, Some(0))])),
        (
            "several trees, breadth first",
            HostTree::new()
                .tree(&[(5, root), (4, Some(0)), (4, Some(0)), (3, Some(1)), (3, Some(2)), (2, Some(1))])
                .tree(&[(70, root)])
                .tree(&[(1, root), (1, Some(0)), (64, Some(1))]),
        ),
        ("path longer than one block of K", HostTree::new().tree(&[(500, root), (40, Some(0)), (13, Some(1))])),
    ]
}
