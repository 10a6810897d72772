//! Applies the length limit. A unit (a comparison, or one pair in supervised fine-tuning) is kept or dropped as
//! a whole, and all uses of a prompt or response are cut alike:
//!
//! - `drop`: units with a sequence above the limit are dropped
//! - `truncate-prompt-left`: all prompts of the row lose the same number of tokens from their
//!   start, so shared tokens stay shared; a leading BOS and at least one more token are kept
//! - `truncate-completion-right`: a response loses its end, down to the length that fits after its
//!   longest prompt; at least one token is kept
//!
//! A unit that still does not fit is dropped, and so is a unit with two sides that became equal by
//! cutting.

use super::super::group::PreferenceGroup;
use super::super::tokenized::Sequence;
use super::encode::Encoded;
use super::{OnTooLong, TokenizeReport};

/// Sequence indices that are kept or dropped together, with the signs of their terms.
pub(super) type Unit = Vec<(usize, i8)>;

/// A group within the limit.
pub(super) struct Fitted {
    /// Empty for prompts that no kept sequence uses.
    pub prompt_ids: Vec<Vec<u32>>,
    /// Sequences of kept units, in their original order.
    pub sequences: Vec<Sequence>,
    /// One entry per unit.
    pub kept: Vec<bool>,
}

/// Returns one unit per comparison of a group. Its sequence indices are positions in `pairs`, which must be
/// sorted.
pub(super) fn comparison_units(group: &PreferenceGroup, pairs: &[(usize, usize)]) -> Vec<Unit> {
    let unit = |terms: &[super::super::group::Term]| {
        terms.iter().filter_map(|t| Some((pairs.binary_search(&(t.prompt, t.response)).ok()?, t.sign))).collect()
    };
    group.comparisons.iter().map(|c| unit(&c.terms)).collect()
}

/// One unit per pair.
pub(super) fn single_units(pairs: usize) -> Vec<Unit> {
    (0..pairs).map(|i| vec![(i, 1)]).collect()
}

/// Applies the limit of `max` tokens; counts cuts and drops in `report`. Fails only under [`OnTooLong::Error`].
pub(super) fn fit(
    mut encoded: Encoded,
    units: &[Unit],
    (max, on_too_long): (usize, OnTooLong),
    bos: Option<u32>,
    report: &mut TokenizeReport,
) -> Result<Fitted, String> {
    let min_prompt = |ids: &[u32]| ids.len().min(if bos.is_some() && ids.first().copied() == bos { 2 } else { 1 });
    // Length of a sequence after the largest cut that `on_too_long` allows.
    let min_length = |s: &Sequence| {
        let (prompt, response) = (&encoded.prompt_ids[s.prompt], s.response_ids.len());
        match on_too_long {
            OnTooLong::Drop | OnTooLong::Error => prompt.len() + response,
            OnTooLong::TruncatePromptLeft => min_prompt(prompt) + response,
            OnTooLong::TruncateCompletionRight => prompt.len() + 1,
        }
    };
    if on_too_long == OnTooLong::Error
        && let Some(long) = encoded.sequences.iter().find(|s| encoded.length(s) > max)
    {
        return Err(format!(
            "prompt {} with response {} has {} tokens, above --max-length {max}; raise it or choose another \
             --on-too-long",
            long.prompt,
            long.response,
            encoded.length(long)
        ));
    }
    let fits: Vec<bool> = encoded.sequences.iter().map(|s| min_length(s) <= max).collect();
    let mut kept: Vec<bool> = units.iter().map(|unit| unit.iter().all(|&(s, _)| fits[s])).collect();
    let dropped = kept.iter().filter(|&&kept| !kept).count();
    match on_too_long {
        OnTooLong::Drop | OnTooLong::Error => report.dropped_too_long += dropped,
        OnTooLong::TruncatePromptLeft | OnTooLong::TruncateCompletionRight => report.dropped_no_room += dropped,
    }
    let used = used_sequences(units, &kept, encoded.sequences.len());
    let cut = match on_too_long {
        OnTooLong::Drop | OnTooLong::Error => 0,
        OnTooLong::TruncatePromptLeft => cut_prompts(&mut encoded, &used, max, min_prompt, report),
        OnTooLong::TruncateCompletionRight => cut_responses(&mut encoded, &used, max, report),
    };
    if cut > 0 {
        for (unit, kept) in units.iter().zip(&mut kept) {
            if *kept && sides_equal(&encoded, unit) {
                *kept = false;
                report.dropped_sides_equal += 1;
            }
        }
    }
    let used = used_sequences(units, &kept, encoded.sequences.len());
    let mut used = used.iter();
    encoded.sequences.retain(|_| used.next().copied().unwrap_or(false));
    for (i, ids) in encoded.prompt_ids.iter_mut().enumerate() {
        if !encoded.sequences.iter().any(|s| s.prompt == i) {
            ids.clear();
        }
    }
    Ok(Fitted { prompt_ids: encoded.prompt_ids, sequences: encoded.sequences, kept })
}

/// Marks the sequences that kept units use.
fn used_sequences(units: &[Unit], kept: &[bool], sequences: usize) -> Vec<bool> {
    let mut used = vec![false; sequences];
    for (unit, _) in units.iter().zip(kept).filter(|&(_, &kept)| kept) {
        for &(sequence, _) in unit {
            used[sequence] = true;
        }
    }
    used
}

/// Cuts all used prompts by the largest excess; returns the number of cut prompts.
fn cut_prompts(
    encoded: &mut Encoded,
    used: &[bool],
    max: usize,
    min_prompt: impl Fn(&[u32]) -> usize,
    report: &mut TokenizeReport,
) -> usize {
    let in_use = || encoded.sequences.iter().zip(used).filter(|&(_, &used)| used).map(|(s, _)| s);
    let excess = in_use().map(|s| encoded.length(s).saturating_sub(max)).max().unwrap_or(0);
    let mut prompts: Vec<usize> = in_use().map(|s| s.prompt).collect();
    prompts.sort_unstable();
    prompts.dedup();
    let mut cut = 0;
    for prompt in prompts {
        let ids = &mut encoded.prompt_ids[prompt];
        let min = min_prompt(ids);
        let remove = excess.min(ids.len() - min);
        if remove == 0 {
            continue;
        }
        // With a leading BOS at least two tokens are kept, and the cut starts after the BOS.
        ids.drain(min - 1..min - 1 + remove);
        cut += 1;
    }
    report.truncated_prompts += cut;
    cut
}

/// Cuts each used response to the length that fits after its longest prompt; returns the number of
/// cut responses.
fn cut_responses(encoded: &mut Encoded, used: &[bool], max: usize, report: &mut TokenizeReport) -> usize {
    let mut free_tokens: Vec<(usize, usize)> = Vec::new();
    for (sequence, _) in encoded.sequences.iter().zip(used).filter(|&(_, &used)| used) {
        let free = max - encoded.prompt_ids[sequence.prompt].len();
        match free_tokens.iter_mut().find(|(response, _)| *response == sequence.response) {
            Some((_, smallest)) => *smallest = free.min(*smallest),
            None => free_tokens.push((sequence.response, free)),
        }
    }
    let mut cut = Vec::new();
    for (sequence, _) in encoded.sequences.iter_mut().zip(used).filter(|&(_, &used)| used) {
        let free =
            free_tokens.iter().find(|(response, _)| *response == sequence.response).map_or(max, |&(_, free)| free);
        if sequence.response_ids.len() > free {
            sequence.response_ids.truncate(free);
            cut.push(sequence.response);
        }
    }
    cut.sort_unstable();
    cut.dedup();
    report.truncated_responses += cut.len();
    cut.len()
}

/// True if every positive term has an equal negative term, so that the comparison is constant.
pub(super) fn sides_equal(encoded: &Encoded, unit: &Unit) -> bool {
    let side = |sign: i8| {
        let mut side: Vec<(&[u32], &[u32])> = unit
            .iter()
            .filter(|term| term.1 == sign)
            .map(|&(s, _)| &encoded.sequences[s])
            .map(|s| (&encoded.prompt_ids[s.prompt][..], &s.response_ids[..]))
            .collect();
        side.sort_unstable();
        side
    };
    side(1) == side(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(prompts: &[&[u32]], sequences: &[(usize, usize, &[u32])]) -> Encoded {
        let sequence = |&(prompt, response, ids): &(usize, usize, &[u32])| Sequence {
            prompt,
            response,
            response_ids: ids.to_vec(),
        };
        Encoded {
            prompt_ids: prompts.iter().map(|ids| ids.to_vec()).collect(),
            sequences: sequences.iter().map(sequence).collect(),
            ..Encoded::default()
        }
    }

    #[test]
    fn prompts_of_a_row_lose_the_same_tokens_and_keep_their_bos() {
        // One response follows two prompts that share the ids 0 1 2 3. The sequences are one and two tokens too
        // long.
        let group = encoded(&[&[0, 1, 2, 3, 4], &[0, 1, 2, 3, 5, 6]], &[(0, 0, &[9, 8]), (1, 0, &[9, 8])]);
        let mut report = TokenizeReport::default();
        let units = vec![vec![(0, 1), (1, -1)]];
        let fitted = fit(group, &units, (6, OnTooLong::TruncatePromptLeft), Some(0), &mut report).unwrap();
        assert_eq!(fitted.prompt_ids, [vec![0, 3, 4], vec![0, 3, 5, 6]]);
        assert_eq!((report.truncated_prompts, report.truncated_responses), (2, 0));
    }

    #[test]
    fn a_response_is_cut_alike_under_every_prompt() {
        let group = encoded(&[&[0], &[0, 1, 2]], &[(0, 0, &[5, 6, 7, 8]), (1, 0, &[5, 6, 7, 8])]);
        let mut report = TokenizeReport::default();
        let units = vec![vec![(0, 1), (1, -1)]];
        let rule = (5, OnTooLong::TruncateCompletionRight);
        let fitted = fit(group, &units, rule, None, &mut report).unwrap();
        assert!(fitted.sequences.iter().all(|s| s.response_ids == [5, 6]));
        assert_eq!(report.truncated_responses, 1);
    }

    #[test]
    fn a_comparison_with_equal_sides_after_cutting_is_dropped() {
        let group = encoded(&[&[1, 1]], &[(0, 0, &[5, 6, 7]), (0, 1, &[5, 6, 8])]);
        let mut report = TokenizeReport::default();
        let rule = (4, OnTooLong::TruncateCompletionRight);
        let fitted = fit(group, &[vec![(0, 1), (1, -1)]], rule, None, &mut report).unwrap();
        assert_eq!((fitted.kept, report.dropped_sides_equal), (vec![false], 1));
        assert!(fitted.sequences.is_empty() && fitted.prompt_ids[0].is_empty());
    }

    #[test]
    fn dropping_a_comparison_keeps_the_others() {
        let group = encoded(&[&[1], &[1, 2, 3, 4]], &[(0, 0, &[5]), (0, 1, &[6, 6]), (1, 0, &[5])]);
        let mut report = TokenizeReport::default();
        let units = vec![vec![(0, 1), (1, -1)], vec![(2, 1), (0, -1)]];
        let fitted = fit(group, &units, (4, OnTooLong::Drop), None, &mut report).unwrap();
        assert_eq!(fitted.kept, [true, false]);
        assert_eq!((fitted.sequences.len(), report.dropped_too_long), (2, 1));
        assert!(fitted.prompt_ids[1].is_empty());
    }
}
