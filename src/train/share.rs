//! A step that several ranks share. Every rank knows the whole global batch and computes its part.
//!
//! ```text
//! assign    groups of the batch, most tokens first, each to the rank with the fewest tokens so far
//! pack      local groups; counts of the whole batch, so losses are means over the whole batch
//! sum       gradients over the ranks, bucket by bucket, in the order of the ranks
//! update    every rank updates its copy of the weights, with the same bits
//! report    sums of the whole batch; requests of signals to any rank
//! ```
//!
//! A rank without groups takes part with a gradient of zeros. Ranks whose weights differ are an error.

use serde::{Deserialize, Serialize};

use super::metrics::{KindTally, Tally};
use super::token_stats::TokenTally;
use crate::backend::contract::KINDS;
use crate::data::tokenized::TokenizedGroup;
use crate::data::tree::token_counts;
use crate::ranks::collective::{Collective, Wire};
use crate::ranks::world::{host_of, named_with_hosts};
use crate::{Error, Result};

/// The groups of a global batch that a rank computes, and their split into micro-batches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub rank: usize,
    pub size: usize,
    /// Maximum number of groups of a micro-batch.
    pub micro_batch: usize,
    /// Whether the micro-batches are those of a single-process run, because the loss depends on them.
    pub whole: bool,
}

impl Share {
    /// Micro-batches of this rank: indices into `groups`. `batch` is the global batch.
    pub fn micro_batches(&self, groups: &[TokenizedGroup], batch: &[usize]) -> Vec<Vec<usize>> {
        let chunks = || batch.chunks(self.micro_batch);
        if self.size == 1 {
            return chunks().map(<[usize]>::to_vec).collect();
        }
        let tokens = |indices: &[usize]| indices.iter().map(|&i| token_counts(&groups[i]).tree).sum();
        if self.whole {
            let sizes: Vec<usize> = chunks().map(tokens).collect();
            let own = assigned(&sizes, self.size).into_iter().zip(chunks());
            return own.filter(|(rank, _)| *rank == self.rank).map(|(_, chunk)| chunk.to_vec()).collect();
        }
        let sizes: Vec<usize> = batch.iter().map(|&i| tokens(&[i])).collect();
        let own = assigned(&sizes, self.size).into_iter().zip(batch);
        let own: Vec<usize> = own.filter(|(rank, _)| *rank == self.rank).map(|(_, &i)| i).collect();
        own.chunks(self.micro_batch).map(<[usize]>::to_vec).collect()
    }
}

/// Returns the rank of every part (group or micro-batch) of a batch; `sizes` holds the parts' token counts.
/// The largest parts are assigned first, each to the rank with the fewest tokens so far.
fn assigned(sizes: &[usize], ranks: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(sizes[i]), i));
    let (mut load, mut rank_of) = (vec![0; ranks], vec![0; sizes.len()]);
    for i in order {
        let rank = (0..ranks).min_by_key(|&rank| (load[rank], rank)).unwrap_or(0);
        load[rank] += sizes[i];
        rank_of[i] = rank;
    }
    rank_of
}

/// Results of a step on one rank.
#[derive(Serialize, Deserialize)]
pub(super) struct Part {
    tally: Vec<u64>,
    not_finite: Vec<String>,
    /// Whether the rank's local gradient is finite.
    finite: bool,
    /// Bits of the norm of the summed gradient, the same on every rank.
    norm: u64,
}

/// The results of a step over all ranks.
pub(super) struct Whole {
    pub tally: Tally,
    pub not_finite: Vec<String>,
    /// Ranks whose local loss or gradient is not finite.
    pub odd_ranks: Vec<usize>,
}

/// Merges the results of a step over the ranks, in rank order.
pub(super) fn merge(
    ranks: &dyn Collective,
    tally: &Tally,
    not_finite: Vec<String>,
    (finite, norm): (bool, f64),
) -> Result<Whole> {
    let norm = if norm.is_nan() { f64::NAN } else { norm };
    let part = Part { tally: numbers(tally), not_finite, finite, norm: norm.to_bits() };
    let parts: Vec<Part> = gathered(ranks, &part)?;
    let others: Vec<usize> = (0..parts.len()).filter(|&rank| parts[rank].norm != parts[0].norm).collect();
    if let Some(&other) = others.first() {
        let norm = |rank: usize| f64::from_bits(parts[rank].norm);
        return Err(Error::Runtime(format!(
            "{} computed a different gradient norm ({}) from rank 0 on {} ({}), although the sums are the same: the \
             memory or the processor of one of them is at fault; resume from a checkpoint without that host",
            named_with_hosts(&others),
            norm(other),
            host_of(0),
            norm(0)
        )));
    }
    let mut whole = Whole { tally: Tally::default(), not_finite: Vec::new(), odd_ranks: Vec::new() };
    for (rank, part) in parts.into_iter().enumerate() {
        if !part.finite || !part.not_finite.is_empty() {
            whole.odd_ranks.push(rank);
        }
        whole.tally.merge(&tally_of(&part.tally));
        whole.not_finite.extend(part.not_finite);
    }
    Ok(whole)
}

/// Returns an error if the hash of a rank differs from that of rank 0; `what` names the hashed bytes.
pub(super) fn check_equal(ranks: &dyn Collective, what: &str, hash: &blake3::Hash) -> Result<()> {
    let hashes = ranks.all_gather(hash.as_bytes())?;
    let others: Vec<usize> = (0..hashes.len()).filter(|&rank| hashes[rank] != hashes[0]).collect();
    if others.is_empty() {
        return Ok(());
    }
    Err(Error::Diverged(format!(
        "the {what} of {} differ from those of rank 0 on {}: the memory or the processor of one of them is at fault; \
         resume from the last checkpoint without that host",
        named_with_hosts(&others),
        host_of(0)
    )))
}

/// Gathers a value from every rank, in rank order.
pub(super) fn gathered<T: Serialize + for<'a> Deserialize<'a>>(ranks: &dyn Collective, own: &T) -> Result<Vec<T>> {
    let failed = |e: serde_json::Error| Error::Runtime(format!("ranks cannot exchange results: {e}"));
    let bytes = serde_json::to_vec(own).map_err(failed)?;
    ranks.all_gather(&bytes)?.iter().map(|bytes| serde_json::from_slice(bytes).map_err(failed)).collect()
}

/// Gathers numbers from every rank, in rank order and without rounding.
pub(super) fn gathered_numbers(ranks: &dyn Collective, own: &[f64]) -> Result<Vec<Vec<f64>>> {
    let of_ranks = ranks.all_gather(&Wire::F64.encode(own))?;
    Ok(of_ranks.iter().map(|bytes| Wire::F64.decode(bytes)).collect())
}

/// Returns the numbers of a tally as bits, so that they are exchanged without rounding.
fn numbers(tally: &Tally) -> Vec<u64> {
    // The pattern names every field, so a field that is added later cannot be left out.
    let Tally {
        kinds,
        losses,
        chosen_reward,
        rejected_reward,
        chosen_score,
        rejected_score,
        sides,
        divergence,
        divergences,
        min_score,
        max_score,
        score_sum,
        sequences,
        nll,
        logp,
        response_tokens,
        tokens,
        of_tokens: TokenTally { entropy, logits, correct, tokens: of_sides },
    } = tally;
    let mut out: Vec<u64> = Vec::new();
    for KindTally { loss, count, correct, ties, logit } in kinds {
        out.extend([loss.to_bits(), *count as u64, *correct as u64, *ties as u64, logit.to_bits()]);
    }
    let sums = [chosen_reward, rejected_reward, chosen_score, rejected_score, divergence, min_score, max_score];
    let of_tokens = [entropy, &logits[0], &logits[1], &correct[0], &correct[1]];
    out.extend(sums.into_iter().chain([score_sum, nll, logp]).chain(of_tokens).map(|x| x.to_bits()));
    let counts = [sides[0], sides[1], *divergences, *sequences, *response_tokens, *tokens, of_sides[0], of_sides[1]];
    out.extend(counts.map(|count| count as u64));
    out.extend(losses.iter().flatten().map(|x| x.to_bits()));
    out
}

/// Restores the tally from the output of [`numbers`].
fn tally_of(numbers: &[u64]) -> Tally {
    let mut all = numbers.iter().copied();
    let mut next = || all.next().unwrap_or(0);
    let mut tally = Tally::default();
    for kind in &mut tally.kinds {
        let loss = f64::from_bits(next());
        let [count, correct, ties] = std::array::from_fn(|_| next() as usize);
        *kind = KindTally { loss, count, correct, ties, logit: f64::from_bits(next()) };
    }
    let [logits_chosen, logits_rejected] = &mut tally.of_tokens.logits;
    let [correct_chosen, correct_rejected] = &mut tally.of_tokens.correct;
    for sum in [
        &mut tally.chosen_reward,
        &mut tally.rejected_reward,
        &mut tally.chosen_score,
        &mut tally.rejected_score,
        &mut tally.divergence,
        &mut tally.min_score,
        &mut tally.max_score,
        &mut tally.score_sum,
        &mut tally.nll,
        &mut tally.logp,
        &mut tally.of_tokens.entropy,
        logits_chosen,
        logits_rejected,
        correct_chosen,
        correct_rejected,
    ] {
        *sum = f64::from_bits(next());
    }
    let [first, second] = &mut tally.sides;
    let [chosen, rejected] = &mut tally.of_tokens.tokens;
    for count in [
        first,
        second,
        &mut tally.divergences,
        &mut tally.sequences,
        &mut tally.response_tokens,
        &mut tally.tokens,
        chosen,
        rejected,
    ] {
        *count = next() as usize;
    }
    let losses: Vec<f64> = all.map(f64::from_bits).collect();
    tally.losses = losses.as_chunks::<KINDS>().0.to_vec();
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_balanced_and_every_part_has_one_rank() {
        assert_eq!(assigned(&[5, 1, 1, 1, 1, 1], 2), [0, 1, 1, 1, 1, 1]);
        assert_eq!(assigned(&[2, 2, 2, 2], 2), [0, 1, 0, 1]);
        // With more ranks than parts, some ranks have none.
        assert_eq!(assigned(&[3, 9], 4), [1, 0]);
        assert!(assigned(&[], 2).is_empty());
    }

    #[test]
    fn a_tally_passes_between_ranks_unchanged() {
        let mut tally = Tally { sides: [3, 4], tokens: 99, nll: 0.1, min_score: -7.5, ..Tally::default() };
        tally.kinds[1].add(0.7, -0.25);
        tally.losses = vec![[1.0, 2.0, 3.0], [0.1, f64::INFINITY, -0.0]];
        tally.divergences = 2;
        tally.of_tokens = TokenTally { entropy: 0.3, logits: [1.5, -2.0], correct: [4.0, 5.0], tokens: [6, 7] };
        assert_eq!(tally_of(&numbers(&tally)), tally);
        assert_eq!(tally_of(&numbers(&Tally::default())), Tally::default());
        // There are as many numbers as fields, so no two fields share a position.
        assert_eq!(numbers(&Tally::default()).len(), 5 * KINDS + 23);
    }
}
