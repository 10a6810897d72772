//! Attention over causal sequences and over prefix trees of pairs.

use std::sync::Arc;

use super::{Call, Part};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, Operand, Selection};
use crate::perf::predict::attention::{Family, Heads, Segments, seconds};

/// Shape of every tree in the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A sequence of this many tokens.
    Causal(usize),
    /// A prompt with two responses as children.
    Pair {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of each response.
        response: usize,
    },
}

impl Shape {
    /// Length and parent of each segment.
    fn segments(self) -> Vec<(usize, Option<usize>)> {
        match self {
            Shape::Causal(len) => vec![(len, None)],
            Shape::Pair { prompt, response } => vec![(prompt, None), (response, Some(0)), (response, Some(0))],
        }
    }

    /// Number of tokens of a tree.
    pub fn tokens(self) -> usize {
        self.segments().iter().map(|segment| segment.0).sum()
    }

    /// Number of keys that each token of a tree attends to.
    fn visible(self) -> Vec<usize> {
        let segments = self.segments();
        let above = |parent: Option<usize>| parent.map_or(0, |p| segments[p].0);
        segments.iter().flat_map(|&(len, parent)| (1..=len).map(move |i| above(parent) + i)).collect()
    }
}

/// Attention, or its gradient.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Whether the call is the gradient.
    pub backward: bool,
    /// Shape of every tree.
    pub shape: Shape,
    /// Number of trees.
    pub trees: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Attention {
    pub(super) fn tokens(&self) -> usize {
        self.trees * self.shape.tokens()
    }

    fn dims(&self) -> AttentionDims {
        let (visible, segments) = (self.shape.visible(), self.shape.segments());
        AttentionDims {
            tokens: self.tokens(),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            segments: self.trees * segments.len(),
            ancestors: self.trees * segments.iter().filter(|segment| segment.1.is_some()).count(),
            trees: self.trees,
            pairs: self.trees as u64 * visible.iter().map(|&n| n as u64).sum::<u64>(),
            longest_path: visible.into_iter().max().unwrap_or(0),
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            window: None,
            softcap: None,
        }
    }

    /// Predicted seconds of the call, if the kernels support its heads.
    pub(crate) fn predicted(&self, family: Family, processors: usize) -> Option<f64> {
        let [starts, offsets, ancestors, trees] = &self.lists();
        let heads = Heads { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim };
        seconds(family, self.backward, &Segments { starts, offsets, ancestors, trees }, heads, processors)
    }

    /// Tables of [`Tree`]: starts, offsets of ancestors, ancestors, trees.
    fn lists(&self) -> [Vec<i32>; 4] {
        let segments = self.shape.segments();
        let (mut starts, mut offsets, mut ancestors) = (vec![0i32], vec![0i32], Vec::new());
        for tree in 0..self.trees {
            for &(len, parent) in &segments {
                starts.push(starts[starts.len() - 1] + len as i32);
                ancestors.extend(parent.map(|p| (tree * segments.len() + p) as i32));
                offsets.push(ancestors.len() as i32);
            }
        }
        let trees = (0..=self.trees).map(|tree| (tree * segments.len()) as i32).collect();
        [starts, offsets, ancestors, trees]
    }

    /// Arguments of the gradient.
    pub(super) fn gradient<'a, B: Backend>(&self, o: &mut Cursor<'a, B>) -> Result<AttentionBwd<'a, B>> {
        let (dims, do_, qkv, out, lse) = (self.dims(), o.act()?, o.act()?, o.act()?, o.acc()?);
        Ok(AttentionBwd { dims, do_, qkv, o: out, lse, tree: tree(o)?, dqkv: o.act_out()? })
    }

    /// Operands of the tables of [`Tree`].
    fn tables(&self) -> [Operand; 4] {
        let names = ["starts", "ancestor_offsets", "ancestors", "trees"];
        let [a, b, c, d] = self.lists().map(Arc::new);
        [&a, &b, &c, &d].map({
            let mut names = names.into_iter();
            move |table| Operand::idx(names.next().unwrap_or_default(), table)
        })
    }
}

impl Call for Attention {
    fn op(&self) -> &'static str {
        if self.backward { "attention_bwd" } else { "attention_fwd" }
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        let mut sizes = vec![
            ("tokens", self.tokens()),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ];
        match self.shape {
            Shape::Causal(len) => sizes.push(("length", len)),
            Shape::Pair { prompt, response } => sizes.extend([("prompt", prompt), ("response", response)]),
        }
        sizes
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims();
        let t = (Axis::Token, d.tokens);
        let fused = (Axis::Fused, d.fused_heads() * d.head_dim);
        let query = (Axis::Query, d.heads * d.head_dim);
        let qkv = Operand::act("qkv", t, fused, Fill::Normal(1.0));
        let lse = |fill| Operand::acc("lse", (Axis::Head, d.heads), t, fill);
        let mut operands = Vec::new();
        if self.backward {
            operands.push(Operand::act("do", t, query, Fill::Normal(1.0)));
        }
        operands.push(qkv);
        if self.backward {
            operands.extend([Operand::act("o", t, query, Fill::Computed), lse(Fill::Computed)]);
        }
        operands.extend(self.tables());
        match self.backward {
            false => operands.extend([
                Operand::act("o", t, query, Fill::Constant(0.0)).written(),
                lse(Fill::Constant(0.0)).written(),
            ]),
            true => operands.push(Operand::act("dqkv", t, fused, Fill::Constant(0.0)).written()),
        }
        operands
    }

    /// Runs the forward pass, whose results the backward pass reads.
    fn compute_inputs<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        if !self.backward {
            return Ok(());
        }
        let (_, qkv, out, lse) = (o.act()?, o.act()?, o.act_out()?, o.acc_out()?);
        on.attention_fwd(AttentionFwd { dims: self.dims(), qkv, tree: tree(&mut o)?, o: out, lse })
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let dims = self.dims();
        match self.backward {
            false => {
                let qkv = o.act()?;
                let tree = tree(&mut o)?;
                on.attention_fwd(AttentionFwd { dims, qkv, tree, o: o.act_out()?, lse: o.acc_out()? })
            }
            true => on.attention_bwd(self.gradient(&mut o)?),
        }
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        let d = AttentionDims { tokens: self.shape.tokens(), ..self.dims() };
        match name {
            "lse" => d.lse_tolerance(precision),
            "dqkv" => d.gradient_tolerance(precision),
            _ => d.tolerance(precision),
        }
    }

    /// Checks the last tree and its last query head. A backward pass is checked on all query heads of the
    /// last key-value head, because their gradients are summed.
    fn parts(&self) -> Vec<Part<Self>> {
        let len = self.shape.tokens();
        let group = self.heads / self.kv_heads.max(1);
        let heads = if self.backward { group } else { 1 };
        let first = self.heads - heads;
        let of_head = |head: usize| head * self.head_dim..(head + 1) * self.head_dim;
        let query: Vec<usize> = (first..self.heads).flat_map(of_head).collect();
        let (key, value) = (self.heads + self.kv_heads - 1, self.heads + 2 * self.kv_heads - 1);
        let fused = query.iter().copied().chain(of_head(key)).chain(of_head(value)).collect();
        let selection = Selection::default()
            .with(Axis::Token, ((self.trees - 1) * len..self.trees * len).collect())
            .with(Axis::Head, (first..self.heads).collect())
            .with(Axis::Query, query)
            .with(Axis::Fused, fused);
        vec![Part { call: Self { trees: 1, heads, kv_heads: 1, ..*self }, selection, compared: &[] }]
    }
}

fn tree<'a, B: Backend>(o: &mut Cursor<'a, B>) -> Result<Tree<'a, B::Idx>> {
    Ok(Tree { starts: o.idx()?, ancestor_offsets: o.idx()?, ancestors: o.idx()?, trees: o.idx()? })
}
