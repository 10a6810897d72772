//! Attention over a cache, with one new token for each of several sequences.

use std::sync::Arc;

use super::{Call, Part};
use crate::Result;
use crate::backend::Backend;
use crate::backend::contract::*;
use crate::bench::operand::{Axis, Cursor, Fill, Operand, Selection};

/// Samples of one prompt. Each has separate tokens after the prompt, of which the last one is new.
#[derive(Clone, Debug)]
pub struct AttentionCached {
    pub sequences: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of each sequence after the prompt, including the new one.
    pub own: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl AttentionCached {
    fn dims(&self) -> AttentionCachedDims {
        let path = self.prompt + self.own;
        AttentionCachedDims {
            tokens: self.sequences,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            sequences: self.sequences,
            spans: 2 * self.sequences,
            slots: self.prompt + self.sequences * self.own,
            pairs: (self.sequences * path) as u64,
            keys: (self.sequences * path) as u64,
            longest_path: path,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            window: None,
            softcap: None,
        }
    }

    /// Operands of the tables of [`Paths`].
    fn tables(&self) -> [Operand; 4] {
        let each = |count: usize, step: usize| Arc::new((0..count).map(|i| (i * step) as i32).collect::<Vec<i32>>());
        let end = |sequence: usize| self.prompt + sequence * self.own;
        let spans = (0..self.sequences).flat_map(|s| [0, self.prompt, end(s), end(s + 1)]).map(|row| row as i32);
        let slots = (0..self.sequences).map(|s| end(s + 1) as i32 - 1);
        [
            Operand::idx("starts", &each(self.sequences + 1, 1)),
            Operand::idx("span_offsets", &each(self.sequences + 1, 2)),
            Operand::idx("spans", &Arc::new(spans.collect())),
            Operand::idx("slots", &Arc::new(slots.collect())),
        ]
    }
}

impl Call for AttentionCached {
    fn op(&self) -> &'static str {
        "attention_cached_fwd"
    }

    fn sizes(&self) -> Vec<(&'static str, usize)> {
        vec![
            ("sequences", self.sequences),
            ("prompt", self.prompt),
            ("own", self.own),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        let d = self.dims();
        let t = (Axis::Whole, d.tokens);
        let qkv = Operand::act("qkv", t, (Axis::Fused, d.fused_heads() * d.head_dim), Fill::Normal(1.0));
        let columns = (Axis::Input, d.cache_width());
        let cache = Operand::act("cache", (Axis::Whole, d.slots), columns, Fill::Normal(1.0)).written();
        let o = Operand::act("o", t, (Axis::Query, d.heads * d.head_dim), Fill::Constant(0.0)).written();
        [qkv].into_iter().chain(self.tables()).chain([cache, o]).collect()
    }

    fn call<B: Backend>(&self, on: &B, mut o: Cursor<'_, B>) -> Result<()> {
        let qkv = o.act()?;
        let paths = Paths { starts: o.idx()?, span_offsets: o.idx()?, spans: o.idx()?, slots: o.idx()? };
        on.attention_cached_fwd(AttentionCachedFwd {
            dims: self.dims(),
            qkv,
            paths,
            cache: o.act_out()?,
            o: o.act_out()?,
        })
    }

    fn tolerance(&self, precision: Precision, name: &str) -> Tolerance {
        if name == "cache" { Tolerance::dot(precision, 1) } else { self.dims().tolerance(precision) }
    }

    /// Checks the last query head, with its key-value head.
    fn parts(&self) -> Vec<Part<Self>> {
        let of_head = |head: usize| head * self.head_dim..(head + 1) * self.head_dim;
        let (key, value) = (self.heads + self.kv_heads - 1, self.heads + 2 * self.kv_heads - 1);
        let fused = of_head(self.heads - 1).chain(of_head(key)).chain(of_head(value)).collect();
        let stored = of_head(self.kv_heads - 1).chain(of_head(2 * self.kv_heads - 1)).collect();
        let selection = Selection::default()
            .with(Axis::Query, of_head(self.heads - 1).collect())
            .with(Axis::Fused, fused)
            .with(Axis::Input, stored);
        vec![Part { call: Self { heads: 1, kv_heads: 1, ..*self }, selection, compared: &[] }]
    }
}
