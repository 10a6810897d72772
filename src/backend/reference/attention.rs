//! Softmax attention over prefix trees, and over a cache. Every query attends to an explicit list of
//! its visible rows, in the order of the path from the root.

use super::{Reference, at, dot};
use crate::backend::contract::*;

/// Rows that the token `row` of `segment` attends to: all rows of the segment's ancestors, then the rows of
/// the segment up to the token itself. With a `window`, only the last `window` of these rows.
fn visible(tree: &Tree<'_, Vec<i32>>, segment: usize, row: usize, window: Option<usize>) -> Vec<usize> {
    let (starts, offsets, ancestors) = (tree.starts.slice(), tree.ancestor_offsets.slice(), tree.ancestors.slice());
    let mut rows = Vec::new();
    for i in at(offsets, segment)..at(offsets, segment + 1) {
        let ancestor = at(ancestors, i);
        rows.extend(at(starts, ancestor)..at(starts, ancestor + 1));
    }
    rows.extend(at(starts, segment)..=row);
    last(&rows, window).to_vec()
}

/// The last `window` rows of a path up to a query.
fn last(rows: &[usize], window: Option<usize>) -> &[usize] {
    &rows[rows.len() - window.unwrap_or(rows.len()).min(rows.len())..]
}

/// Ranges of the query, key and value of a row and query head in the fused buffer.
struct Layout(AttentionDims);

impl Layout {
    fn q(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        let start = (row * self.0.fused_heads() + head) * self.0.head_dim;
        start..start + self.0.head_dim
    }
    fn k(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        self.q(row, self.0.heads + head / (self.0.heads / self.0.kv_heads))
    }
    fn v(&self, row: usize, head: usize) -> std::ops::Range<usize> {
        self.q(row, self.0.heads + self.0.kv_heads + head / (self.0.heads / self.0.kv_heads))
    }
}

pub fn attention_fwd(a: AttentionFwd<'_, Reference>) {
    let (d, qkv, layout) = (a.dims, a.qkv.slice(), Layout(a.dims));
    let (o, lse) = (a.o.into_slice(), a.lse.into_slice());
    let starts = a.tree.starts.slice();
    for segment in 0..d.segments {
        for row in at(starts, segment)..at(starts, segment + 1) {
            let rows = visible(&a.tree, segment, row, d.window);
            for head in 0..d.heads {
                let query = &qkv[layout.q(row, head)];
                let scores: Vec<f64> =
                    rows.iter().map(|&r| capped(d.softcap, d.scale * dot(query, &qkv[layout.k(r, head)])).0).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                lse[head * d.tokens + row] = max + sum.ln();
                let out = &mut o[(row * d.heads + head) * d.head_dim..][..d.head_dim];
                out.fill(0.0);
                for (&r, s) in rows.iter().zip(&scores) {
                    for (out, v) in out.iter_mut().zip(&qkv[layout.v(r, head)]) {
                        *out += (s - max).exp() / sum * v;
                    }
                }
            }
        }
    }
}

/// With the probabilities P and dP = do · v:
///
/// - dS = P (dP - sum of P dP), times the slope of the soft cap
/// - dq = scale dS k, dk = scale dS q, dv = P do
pub fn attention_bwd(a: AttentionBwd<'_, Reference>) {
    let (d, qkv, layout, do_) = (a.dims, a.qkv.slice(), Layout(a.dims), a.do_.slice());
    let (lse, dqkv) = (a.lse.slice(), a.dqkv.into_slice());
    let starts = a.tree.starts.slice();
    dqkv.fill(0.0);
    for segment in 0..d.segments {
        for row in at(starts, segment)..at(starts, segment + 1) {
            let rows = visible(&a.tree, segment, row, d.window);
            for head in 0..d.heads {
                let query = &qkv[layout.q(row, head)];
                let dout = &do_[(row * d.heads + head) * d.head_dim..][..d.head_dim];
                let scores: Vec<(f64, f64)> =
                    rows.iter().map(|&r| capped(d.softcap, d.scale * dot(query, &qkv[layout.k(r, head)]))).collect();
                let p: Vec<f64> = scores.iter().map(|(s, _)| (s - lse[head * d.tokens + row]).exp()).collect();
                let dp: Vec<f64> = rows.iter().map(|&r| dot(dout, &qkv[layout.v(r, head)])).collect();
                let delta = dot(&p, &dp);
                for (i, &r) in rows.iter().enumerate() {
                    let ds = d.scale * scores[i].1 * p[i] * (dp[i] - delta);
                    for c in 0..d.head_dim {
                        dqkv[layout.q(row, head).start + c] += ds * qkv[layout.k(r, head).start + c];
                        dqkv[layout.k(r, head).start + c] += ds * query[c];
                        dqkv[layout.v(r, head).start + c] += p[i] * dout[c];
                    }
                }
            }
        }
    }
}

pub fn attention_cached_fwd(a: AttentionCachedFwd<'_, Reference>) {
    let (d, qkv) = (a.dims, a.qkv.slice());
    let (cache, o) = (a.cache.into_slice(), a.o.into_slice());
    let [starts, offsets, spans, slots] =
        [a.paths.starts, a.paths.span_offsets, a.paths.spans, a.paths.slots].map(|table| table.slice());
    let (width, wide) = (d.cache_width(), d.fused_heads() * d.head_dim);
    for token in 0..d.tokens {
        let new = &qkv[(token + 1) * wide - width..(token + 1) * wide];
        cache[at(slots, token) * width..][..width].copy_from_slice(new);
    }
    for sequence in 0..d.sequences {
        let tokens = at(starts, sequence)..at(starts, sequence + 1);
        let path: Vec<usize> = (at(offsets, sequence)..at(offsets, sequence + 1))
            .flat_map(|span| at(spans, 2 * span)..at(spans, 2 * span + 1))
            .collect();
        let earlier = path.len() - tokens.len();
        for (i, token) in tokens.enumerate() {
            let rows = last(&path[..earlier + i + 1], d.window);
            for head in 0..d.heads {
                let kv_head = head / (d.heads / d.kv_heads);
                let query = &qkv[token * wide + head * d.head_dim..][..d.head_dim];
                let of_row = |row: usize, head: usize| &cache[row * width + head * d.head_dim..][..d.head_dim];
                let scores: Vec<f64> =
                    rows.iter().map(|&r| capped(d.softcap, d.scale * dot(query, of_row(r, kv_head))).0).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let out = &mut o[(token * d.heads + head) * d.head_dim..][..d.head_dim];
                out.fill(0.0);
                for (&r, s) in rows.iter().zip(&scores) {
                    for (out, v) in out.iter_mut().zip(of_row(r, d.kv_heads + kv_head)) {
                        *out += (s - max).exp() / sum * v;
                    }
                }
            }
        }
    }
}
