//! Synthetic pairs of a planned step.

use std::sync::Arc;

use super::Workload;
use crate::data::group::{Kind, PreferenceGroup, Prompt, Response};
use crate::data::tokenized::{Sequence, SequenceComparison, SequenceTerm, TokenizedGroup};

/// A synthetic pair. Its responses share the prompt; it shares no tokens with other pairs.
pub(super) fn synthetic_pair(pair: usize, workload: &Workload, vocab: usize) -> TokenizedGroup {
    let ids = |from: usize, count: usize| (0..count).map(|i| ((from + i) % vocab) as u32).collect::<Vec<u32>>();
    let start = pair * (workload.prompt + 2 * workload.response);
    let text = || Response::Text(String::new());
    let source = PreferenceGroup::pair(pair.to_string(), Prompt::Text(String::new()), text(), text(), 0.0);
    let response = |index: usize| {
        let mut ids = ids(start + workload.prompt + index * workload.response, workload.response);
        // The responses differ from their first token on.
        ids[0] = (pair + index) as u32 % vocab as u32;
        Sequence { prompt: 0, response: index, response_ids: ids }
    };
    let term = |sequence, sign| SequenceTerm { sequence, sign, detached: false };
    TokenizedGroup {
        group: Arc::new(source),
        prompt_ids: vec![ids(start, workload.prompt)],
        sequences: vec![response(0), response(1)],
        comparisons: vec![SequenceComparison {
            kind: Kind::Base,
            terms: vec![term(0, 1), term(1, -1)],
            margin: 0.0,
            weight: 1.0,
            detached_clip: None,
        }],
    }
}
