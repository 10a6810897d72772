//! Rows with one response and a label, for KTO (arXiv 2402.01306). A row is a comparison with one term that
//! gets a gradient; the sign of the term is +1 for a desirable row and -1 for an undesirable row.
//!
//! The divergence of policy and reference is estimated from mismatched sequences: the prompt of a row with
//! the response of a different row. As in TRL, the rows are split into blocks of one micro-batch in the order
//! of the file. Each row is paired with the response of the row before it in its block, and the first row
//! with that of the last. A block of one row is paired with the row before the block. Mismatched sequences
//! above the length limit are cut at their end.

use std::sync::Arc;

use super::loss_type::LossType;
use super::objective::{Loss, Method};
use crate::data::tokenized::{Sequence, SequenceTerm, TokenizedGroup};

impl Loss {
    /// Whether the loss estimates the divergence, for which every row needs a mismatched response.
    pub fn estimates_divergence(&self) -> bool {
        self.types.iter().any(|(of, _)| *of == LossType::Kto)
    }

    /// Prepares rows for KTO: sets the weights of rows by their labels and, for the loss `kto`, adds a
    /// mismatched sequence of at most `max_length` tokens to each row. `block` is the number of rows of a
    /// micro-batch. Has no effect for other methods.
    pub fn prepare_unpaired(&self, groups: &mut [TokenizedGroup], block: usize, max_length: usize) {
        if self.method != Method::Kto {
            return;
        }
        for comparison in groups.iter_mut().flat_map(|group| &mut group.comparisons) {
            let undesirable = comparison.terms.iter().any(|term| term.sign < 0);
            comparison.weight = self.label_weights[usize::from(undesirable)];
        }
        if !self.estimates_divergence() {
            return;
        }
        // The responses are copied before mismatched ones are added.
        let responses: Vec<_> = groups.iter().map(|group| group.sequences[0].response_ids.clone()).collect();
        let texts: Vec<_> = groups.iter().map(|group| group.group.responses.first().cloned()).collect();
        let (rows, block) = (groups.len(), block.max(1));
        for (row, group) in groups.iter_mut().enumerate() {
            let start = row - row % block;
            let end = rows.min(start + block);
            let other = match row {
                _ if row > start => row - 1,
                _ if end - start == 1 => start.saturating_sub(1),
                _ => end - 1,
            };
            add_mismatched(group, &responses[other], max_length);
            Arc::make_mut(&mut group.group).responses.extend(texts[other].clone());
        }
    }
}

/// Adds the prompt of a group with the response of a different row, as a detached term that does not affect
/// the logit.
fn add_mismatched(group: &mut TokenizedGroup, response: &[u32], max_length: usize) {
    let prompt = group.sequences[0].prompt;
    // The limit leaves room for at least one token, because the row's response has one.
    let room = max_length.saturating_sub(group.prompt_ids[prompt].len()).max(1);
    let response_ids = response[..response.len().min(room)].to_vec();
    let sequence = group.sequences.len();
    group.sequences.push(Sequence { prompt, response: group.group.responses.len(), response_ids });
    for comparison in &mut group.comparisons {
        let sign = comparison.terms.first().map_or(1, |term| term.sign);
        comparison.terms.push(SequenceTerm { sequence, sign, detached: true });
        comparison.detached_clip = Some((0.0, 0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::contract::KINDS;
    use crate::data::group::{Comparison, Kind, PreferenceGroup, Prompt, Response, Term};
    use crate::data::tokenized::SequenceComparison;
    use crate::loss::options::LossOptions;

    fn row(number: u32, sign: i8) -> TokenizedGroup {
        let term = Term { prompt: 0, response: 0, sign };
        let of = Comparison { terms: vec![term], ..Comparison::pair(Kind::Base, (0, 0), (0, 0), 0.0) };
        let (prompt, response) = (Prompt::Text(format!("p{number}")), Response::Text(format!("r{number}")));
        TokenizedGroup {
            group: Arc::new(PreferenceGroup::new(number.to_string(), vec![prompt], vec![response], vec![of])),
            prompt_ids: vec![vec![1; 3]],
            sequences: vec![Sequence { prompt: 0, response: 0, response_ids: vec![number; number as usize] }],
            comparisons: vec![SequenceComparison {
                kind: Kind::Base,
                terms: vec![SequenceTerm { sequence: 0, sign, detached: false }],
                margin: 0.0,
                weight: 1.0,
                detached_clip: None,
            }],
        }
    }

    fn prepared(options: LossOptions, rows: u32, block: usize) -> Vec<TokenizedGroup> {
        let loss = options.resolve(Method::Kto, [1.0; KINDS], false).unwrap();
        let mut groups: Vec<_> = (1..=rows).map(|i| row(i, if i % 2 == 0 { -1 } else { 1 })).collect();
        loss.prepare_unpaired(&mut groups, block, 8);
        groups
    }

    #[test]
    fn responses_rotate_within_blocks_and_are_cut_at_the_limit() {
        let groups = prepared(LossOptions::default(), 7, 3);
        let others: Vec<u32> = groups.iter().map(|group| group.sequences[1].response_ids[0]).collect();
        assert_eq!(others, [3, 1, 2, 6, 4, 5, 6], "the last block has one row");
        // Prompts have 3 tokens, and the limit is 8.
        assert_eq!(groups[3].sequences[1].response_ids, [6; 5]);
        assert_eq!(groups[3].group.responses[1], Response::Text("r6".into()));
        for group in &groups {
            let terms = &group.comparisons[0].terms;
            assert!(!terms[0].detached && terms[1].detached && terms[0].sign == terms[1].sign);
        }
    }

    #[test]
    fn labels_have_weights_and_apo_has_no_mismatched_rows() {
        let options = LossOptions {
            desirable_weight: Some(1.5),
            undesirable_weight: Some(0.25),
            loss_type: vec![LossType::ApoZeroUnpaired],
            ..LossOptions::default()
        };
        let groups = prepared(options, 4, 2);
        let weights: Vec<f64> = groups.iter().map(|group| group.comparisons[0].weight).collect();
        assert_eq!(weights, [1.5, 0.25, 1.5, 0.25]);
        assert!(groups.iter().all(|group| group.sequences.len() == 1));
    }
}
