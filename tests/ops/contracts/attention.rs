//! Lengths of the arguments of attention, over a batch and over cached keys.

use std::collections::BTreeSet;

use mapl::backend::contract::*;
use mapl::backend::{Backend, View, ViewMut};

use super::{LEN, Lengths, acc, act, probe};

/// Probes every argument of the attention ops.
pub fn every_argument<B: Backend>(b: &B, c: &mut BTreeSet<&'static str>) {
    let (a, s, i) = (&act(b), &acc(b), &b.zeros_idx(LEN).unwrap());
    let d = AttentionDims {
        tokens: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        segments: 2,
        ancestors: 1,
        trees: 1,
        pairs: 0,
        longest_path: 0,
        scale: 1.0,
        window: None,
        softcap: None,
    };
    // All segments are empty: offsets of 0 are a valid tree.
    let tree = |l: &Lengths| Tree {
        starts: View::first(i, l.of("tree.starts", 3)),
        ancestor_offsets: View::first(i, l.of("tree.ancestor_offsets", 3)),
        ancestors: View::first(i, l.of("tree.ancestors", 1)),
        trees: View::first(i, l.of("tree.trees", 2)),
    };
    probe("attention_fwd", c, |l| {
        let (mut o, mut lse) = (act(b), acc(b));
        b.attention_fwd(AttentionFwd {
            dims: d,
            qkv: View::first(a, l.of("qkv", 48)),
            tree: tree(l),
            o: ViewMut::first(&mut o, l.of("o", 24)),
            lse: ViewMut::first(&mut lse, l.of("lse", 12)),
        })
    });
    probe("attention_cached_fwd", c, |l| {
        let (mut cache, mut o) = (act(b), act(b));
        let (heads, kv_heads, head_dim) = (d.heads, d.kv_heads, d.head_dim);
        b.attention_cached_fwd(AttentionCachedFwd {
            dims: AttentionCachedDims {
                tokens: 0,
                heads,
                kv_heads,
                head_dim,
                sequences: 2,
                spans: 1,
                slots: 3,
                pairs: 0,
                keys: 0,
                longest_path: 0,
                scale: 0.5,
                window: None,
                softcap: None,
            },
            qkv: View::first(a, l.of("qkv", 0)),
            paths: Paths {
                starts: View::first(i, l.of("paths.starts", 3)),
                span_offsets: View::first(i, l.of("paths.span_offsets", 3)),
                spans: View::first(i, l.of("paths.spans", 2)),
                slots: View::first(i, l.of("paths.slots", 0)),
            },
            cache: ViewMut::first(&mut cache, l.of("cache", 3 * 2 * kv_heads * head_dim)),
            o: ViewMut::first(&mut o, l.of("o", 0)),
        })
    });
    for rotated in [false, true] {
        let op = if rotated { "attention_rope_bwd" } else { "attention_bwd" };
        probe(op, c, |l| {
            let mut dqkv = act(b);
            let attention = AttentionBwd {
                dims: d,
                do_: View::first(a, l.of("do", 24)),
                qkv: View::first(a, l.of("qkv", 48)),
                o: View::first(a, l.of("o", 24)),
                lse: View::first(s, l.of("lse", 12)),
                tree: tree(l),
                dqkv: ViewMut::first(&mut dqkv, l.of("dqkv", 48)),
            };
            if !rotated {
                return b.attention_bwd(attention);
            }
            let rotation = Rotation {
                dims: RopeDims { tokens: 3, heads: 6, unrotated_heads: 2, head_dim: 2, rotated: 2, positions: 6 },
                positions: View::first(i, l.of("positions", 3)),
                cos: View::first(s, l.of("cos", 6)),
                sin: View::first(s, l.of("sin", 6)),
            };
            b.attention_rope_bwd(AttentionRopeBwd { attention, rotation })
        });
    }
}
