//! Bytes per rank for each sharding choice, and the first choice that fits. Choices with less sharding come
//! first, because they have less traffic.

use super::{MemoryInputs, Sharded, mib, parts_of, total};
use crate::Result;
use crate::data::pack::GroupSizes;

/// The choices, each with the flag that selects it.
pub(crate) const CHOICES: [(Sharded, &str); 3] = [
    (Sharded::Nothing, "--shard-optimizer off"),
    (Sharded::Optimizer, "--shard-optimizer"),
    (Sharded::Weights, "--shard-weights"),
];

/// For each sharding choice, bytes of the rank that needs the most memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ByRank {
    ranks: usize,
    bytes: [u64; CHOICES.len()],
}

impl ByRank {
    /// Plans every choice; `None` with one rank, and for f64.
    pub fn plan(subject: &MemoryInputs<'_>, sizes: &GroupSizes, micro_batch: usize) -> Result<Option<Self>> {
        let mut bytes = [0; CHOICES.len()];
        if subject.ranks == 1 {
            return Ok(None);
        }
        for ((sharded, _), bytes) in CHOICES.into_iter().zip(&mut bytes) {
            let subject = MemoryInputs { sharded, ..*subject };
            let Some(parts) = parts_of(&subject, sizes, micro_batch)? else { return Ok(None) };
            *bytes = total(&parts);
        }
        Ok(Some(Self { ranks: subject.ranks, bytes }))
    }

    /// Flag and bytes of the first choice within `available` bytes.
    pub fn first_within(&self, available: u64) -> Option<(&'static str, u64)> {
        let mut all = CHOICES.into_iter().zip(self.bytes).map(|((_, flag), bytes)| (flag, bytes));
        all.find(|(_, bytes)| *bytes <= available)
    }

    /// Bytes of every choice on one line.
    pub fn line(&self) -> String {
        let each = CHOICES.iter().zip(self.bytes).map(|((_, flag), bytes)| format!("{} MiB with {flag}", mib(bytes)));
        format!("each of {} ranks: {}", self.ranks, each.collect::<Vec<_>>().join(", "))
    }
}
