//! Sequences over a KV cache, for the tests of cached attention.

use std::ops::Range;

use mapl::backend::contract::AttentionCachedDims;

/// Index tables of a cached-attention call, on the host, and the path of each sequence. A path is the cache
/// rows that hold a sequence, in order.
#[derive(Clone, Debug)]
pub struct HostPaths {
    pub starts: Vec<i32>,
    pub span_offsets: Vec<i32>,
    pub spans: Vec<i32>,
    pub slots: Vec<i32>,
    /// Cache rows of each sequence's path, and the number of its new tokens.
    pub paths: Vec<(Vec<usize>, usize)>,
    /// Number of rows of the cache.
    pub rows: usize,
}

impl HostPaths {
    pub fn new(rows: usize) -> Self {
        Self { starts: vec![0], span_offsets: vec![0], spans: vec![], slots: vec![], paths: vec![], rows }
    }

    /// Adds a sequence whose path consists of these spans of cache rows. The last `new` rows of the path are
    /// new tokens.
    pub fn sequence(mut self, spans: &[Range<usize>], new: usize) -> Self {
        let path: Vec<usize> = spans.iter().cloned().flatten().collect();
        self.starts.push(self.starts.last().unwrap() + new as i32);
        self.spans.extend(spans.iter().flat_map(|span| [span.start as i32, span.end as i32]));
        self.span_offsets.push(self.spans.len() as i32 / 2);
        self.slots.extend(path[path.len() - new..].iter().map(|&row| row as i32));
        self.paths.push((path, new));
        self
    }

    pub fn tokens(&self) -> usize {
        self.slots.len()
    }

    pub fn dims(&self, heads: usize, kv_heads: usize, head_dim: usize) -> AttentionCachedDims {
        let seen = |(path, new): &(Vec<usize>, usize)| (path.len() - new + 1..=path.len()).sum::<usize>() as u64;
        AttentionCachedDims {
            tokens: self.tokens(),
            heads,
            kv_heads,
            head_dim,
            sequences: self.paths.len(),
            spans: self.spans.len() / 2,
            slots: self.rows,
            pairs: self.paths.iter().map(seen).sum(),
            keys: self.paths.iter().map(|(path, _)| path.len() as u64).sum(),
            longest_path: self.paths.iter().map(|(path, _)| path.len()).max().unwrap_or(0),
            scale: 1.0 / (head_dim as f64).sqrt(),
            window: None,
            softcap: None,
        }
    }
}

impl HostPaths {
    /// Returns the sizes of the call with a sliding window.
    pub fn windowed(&self, heads: (usize, usize, usize), window: usize) -> AttentionCachedDims {
        let seen = |(path, new): &(Vec<usize>, usize)| {
            (path.len() - new + 1..=path.len()).map(|seen| seen.min(window)).sum::<usize>() as u64
        };
        let pairs = self.paths.iter().map(seen).sum();
        AttentionCachedDims { pairs, window: Some(window), ..self.dims(heads.0, heads.1, heads.2) }
    }
}

/// Returns named calls, one for each kind of path.
pub fn calls() -> Vec<(&'static str, HostPaths)> {
    vec![
        ("no sequences", HostPaths::new(4)),
        ("the first token", HostPaths::new(3).sequence(&[1..2], 1)),
        ("a whole prompt", HostPaths::new(40).sequence(&[3..40], 37)),
        ("one new token each", HostPaths::new(90).sequence(&[0..41], 1).sequence(&[41..42], 1).sequence(&[60..77], 1)),
        (
            "samples of one prompt, and a piece of another one",
            HostPaths::new(120)
                .sequence(&[10..43, 43..50], 1)
                .sequence(&[10..43, 80..81], 1)
                .sequence(&[10..43, 0..5], 3)
                .sequence(&[90..120, 50..70], 20),
        ),
        ("a long path in three spans", HostPaths::new(800).sequence(&[500..800, 0..230, 400..415], 2)),
        (
            "a sequence without new tokens",
            HostPaths::new(30).sequence(&[0..5], 1).sequence(&[5..9], 0).sequence(&[9..20], 4),
        ),
    ]
}
