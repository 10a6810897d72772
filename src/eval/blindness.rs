//! Prompt-blindness probes: the same response tokens after a different prompt. The accuracy of a
//! model that follows the prompt falls to one half. A model that prefers responses by length or
//! style keeps its accuracy.
//!
//! - emptied: a conversation becomes one user message without content, rendered with the model's template. The
//!   ids are the common prefix of the rendered generation prompt and the rendered conversation with a response.
//!   Plain text becomes the BOS token, or the EOS token if there is no BOS
//! - shuffled: the distinct prompts of the original pairs are arranged in a seeded random cycle,
//!   and each is replaced by its successor, so no pair keeps its prompt
//!
//! A pair that would exceed the length limit with its new prompt is left out and counted. A probe has
//! separate groups, with only the sequences it needs.

use std::collections::BTreeMap;

use super::breakdown::length_label;
use super::measure::{Measure, Quantity};
use crate::Result;
use crate::data::group::{Kind, Message, Prompt, Response};
use crate::data::tokenize::common_prefix;
use crate::data::tokenized::{Sequence, SequenceComparison, TokenizedGroup};
use crate::data::tokenizer::Tokenizer;
use crate::rng::Rng;
use crate::train::evaluate::GroupScores;

/// Groups to score instead of the originals.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probe {
    /// Groups with the changed prompts.
    pub groups: Vec<TokenizedGroup>,
    /// Index of the original group of each group.
    pub origin: Vec<usize>,
    /// Number of pairs that exceed the length limit with their new prompt.
    pub left_out: usize,
}

impl Probe {
    /// Adds the comparisons of a group that `keep` accepts, with the prompts `prompt_ids`.
    fn add(
        &mut self,
        origin: usize,
        group: &TokenizedGroup,
        prompt_ids: Vec<Vec<u32>>,
        keep: impl Fn(&SequenceComparison) -> bool,
    ) {
        let mut sequences: Vec<Sequence> = Vec::new();
        let mut place = vec![None; group.sequences.len()];
        let mut comparisons = Vec::new();
        for comparison in group.comparisons.iter().filter(|c| keep(c)) {
            let mut comparison = comparison.clone();
            for term in &mut comparison.terms {
                term.sequence = *place[term.sequence].get_or_insert_with(|| {
                    sequences.push(group.sequences[term.sequence].clone());
                    sequences.len() - 1
                });
            }
            comparisons.push(comparison);
        }
        if !comparisons.is_empty() {
            self.groups.push(TokenizedGroup { group: group.group.clone(), prompt_ids, sequences, comparisons });
            self.origin.push(origin);
        }
    }

    /// Returns the measure of one kind of the probe's comparisons, from their scores.
    pub fn measure(&self, quantity: Quantity, kind: Kind, scores: &[GroupScores]) -> Measure {
        let mut measure = Measure::new(quantity);
        for ((group, scores), &origin) in self.groups.iter().zip(scores).zip(&self.origin) {
            for (comparison, &logit) in group.comparisons.iter().zip(&scores.logits).filter(|(c, _)| c.kind == kind) {
                let labels = match sides(group, comparison) {
                    Some((_, [better, worse])) if kind == Kind::Base => vec![length_label(&group.group, better, worse)],
                    _ => Vec::new(),
                };
                measure.add(origin, logit, labels);
            }
        }
        measure
    }
}

/// Returns the indices of the prompts and of the responses of a two-sequence comparison, the preferred side
/// first.
fn sides(group: &TokenizedGroup, comparison: &SequenceComparison) -> Option<([usize; 2], [usize; 2])> {
    let (a, b) = match comparison.terms[..] {
        [a, b] if a.sign > 0 => (a, b),
        [a, b] => (b, a),
        _ => return None,
    };
    let [a, b] = [a, b].map(|term| &group.sequences[term.sequence]);
    Some(([a.prompt, b.prompt], [a.response, b.response]))
}

/// Returns the prompt index of an original pair: a base comparison of two responses to one prompt.
fn pair_prompt(group: &TokenizedGroup, comparison: &SequenceComparison) -> Option<usize> {
    let ([a, b], _) = sides(group, comparison).filter(|_| comparison.kind == Kind::Base)?;
    (a == b).then_some(a)
}

/// True for an intra comparison of one response under two prompts.
fn one_response(group: &TokenizedGroup, comparison: &SequenceComparison) -> bool {
    comparison.kind == Kind::Intra && sides(group, comparison).is_some_and(|(_, [a, b])| a == b)
}

/// Number of tokens of the longest response in a comparison.
fn longest_response(group: &TokenizedGroup, comparison: &SequenceComparison) -> usize {
    comparison.terms.iter().map(|t| group.sequences[t.sequence].response_ids.len()).max().unwrap_or(0)
}

/// Builds the probe of original pairs and intra comparisons with emptied prompts. `longest` is the
/// maximum number of tokens of a sequence.
pub fn emptied(groups: &[TokenizedGroup], tokenizer: &Tokenizer, longest: usize) -> Result<Probe> {
    let mut probe = Probe::default();
    for (origin, group) in groups.iter().enumerate() {
        let wanted = |c: &SequenceComparison| pair_prompt(group, c).is_some() || one_response(group, c);
        let Some(first) = group.comparisons.iter().find(|c| wanted(c)) else { continue };
        let empty = empty_prompt(&group.sequences[first.terms[0].sequence], group, tokenizer)?;
        let fits = |c: &SequenceComparison| empty.len() + longest_response(group, c) <= longest;
        probe.left_out += group.comparisons.iter().filter(|c| wanted(c) && !fits(c)).count();
        let prompt_ids = vec![empty.clone(); group.prompt_ids.len()];
        probe.add(origin, group, prompt_ids, |c| wanted(c) && fits(c));
    }
    Ok(probe)
}

/// Returns the token ids of an empty prompt.
fn empty_prompt(sequence: &Sequence, group: &TokenizedGroup, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let ids = match &group.group.prompts[sequence.prompt] {
        Prompt::Text(_) => tokenizer.encode_prefix("")?,
        Prompt::Messages(_) => {
            let turn = |role: &str, content: &str| Message::new(role, content);
            let response = match &group.group.responses[sequence.response] {
                Response::Text(text) => turn("assistant", text),
                Response::Message(message) => message.clone(),
            };
            let turns = [turn("user", ""), response];
            let kwargs = tokenizer.kwargs_of(group.group.chat_template_kwargs.as_ref());
            let render = |turns: &[Message], open: bool| -> Result<Vec<u32>> {
                let text = tokenizer.require_template()?.render(turns, open, None, kwargs.as_ref()).map_err(|why| {
                    crate::Error::Usage(format!(
                        "--prompt-blindness: the chat template does not render a user message without content: {why}"
                    ))
                })?;
                tokenizer.encode(&text, false)
            };
            // Only the ids with which the whole conversation starts are kept; the response follows them.
            let (mut opening, whole) = (render(&turns[..1], true)?, render(&turns, false)?);
            opening.truncate(common_prefix(&opening, &whole));
            opening
        }
    };
    // The first token of a response needs a preceding token.
    if ids.is_empty() { Ok(vec![tokenizer.require_eos()?]) } else { Ok(ids) }
}

/// Builds the probe of original pairs with exchanged prompts. The probe is empty if there is only one distinct
/// prompt.
pub fn shuffled(groups: &[TokenizedGroup], seed: u64, longest: usize) -> Probe {
    let mut probe = Probe::default();
    let ids =
        |group: &'_ TokenizedGroup, c: &SequenceComparison| pair_prompt(group, c).map(|p| group.prompt_ids[p].clone());
    let mut number: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for prompt in groups.iter().flat_map(|group| group.comparisons.iter().filter_map(move |c| ids(group, c))) {
        number.entry(prompt).or_insert_with_key(|prompt| {
            prompts.push(prompt.clone());
            prompts.len() - 1
        });
    }
    if prompts.len() < 2 {
        return probe;
    }
    let mut circle: Vec<usize> = (0..prompts.len()).collect();
    Rng::keyed(seed, &["shuffled prompts"]).shuffle(&mut circle);
    let mut neighbour = vec![0; prompts.len()];
    for (place, &prompt) in circle.iter().enumerate() {
        neighbour[prompt] = circle[(place + 1) % circle.len()];
    }
    for (origin, group) in groups.iter().enumerate() {
        let exchange = |ids: &Vec<u32>| number.get(ids).map_or_else(|| ids.clone(), |&n| prompts[neighbour[n]].clone());
        let prompt_ids: Vec<Vec<u32>> = group.prompt_ids.iter().map(exchange).collect();
        let fits = |c: &SequenceComparison, p: usize| prompt_ids[p].len() + longest_response(group, c) <= longest;
        let pairs = group.comparisons.iter().filter_map(|c| Some((c, pair_prompt(group, c)?)));
        probe.left_out += pairs.filter(|(c, p)| !fits(c, *p)).count();
        let keep = |c: &SequenceComparison| pair_prompt(group, c).is_some_and(|p| fits(c, p));
        probe.add(origin, group, prompt_ids.clone(), keep);
    }
    probe
}
