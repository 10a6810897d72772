//! Artificial language of the quick start. It gives ordinary preference pairs: the preferred
//! response is on the requested subject, and the instruction functions can check the form of both.
//!
//! A prompt asks for one of ten topics (`Write a note about the garden for visitors on Monday.`). A
//! response has one to four sentences, each with a capitalised opener and words of a topic (`The
//! rose moss fern. Our tulip rose.`). At least two thirds of the chosen response's topic words
//! belong to the requested topic, and at most one third of the rejected response's. Everything else
//! is drawn from the same distribution for both responses: the number of words (4 to 14) and of
//! sentences, the choice of topic words and their repetitions, the ending, and whether a third of
//! the words strays to another topic. Neither length nor coherence nor any other property of the
//! responses reveals the chosen one without the prompt.
//!
//! Prompts of the training split never occur in the test split, whatever the seeds.

mod words;

#[cfg(test)]
mod tests;

use super::group::{PreferenceGroup, Prompt, Response};
use crate::rng::Rng;
use crate::{Error, Result};
use words::{AUDIENCES, DAYS, OPENERS, REQUESTS, TOPICS};

/// Minimum and maximum number of words of a response.
const RESPONSE_WORDS: (usize, usize) = (4, 14);
/// Maximum number of sentences of a response; each has an opener and at least one topic word.
const MAX_SENTENCES: usize = 4;
/// Maximum number of distinct topic words of a response. Responses with more topic words repeat
/// some of them.
const MAX_DISTINCT: usize = 6;
/// Share of pairs in which the chosen response strays to the other topic, and share in which the
/// rejected one does. With two different shares, "all words from one topic" would predict the chosen response
/// without the prompt.
const STRAY: f64 = 0.2;
/// One in `TEST_ONE_IN` prompts belongs to the test split.
const TEST_ONE_IN: usize = 5;

/// Set of prompts that the rows are drawn from.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "clap would print the texts in --help")]
pub enum Split {
    Train,
    Test,
}

impl Split {
    /// Lower-case name; prefix of its row ids.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

/// Options of [`generate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynthOptions {
    /// Number of pairs.
    pub rows: usize,
    /// Seed.
    pub seed: u64,
    /// Split from which the prompts are drawn.
    pub split: Split,
}

/// Generates pairs with one base comparison each, with ids `train-000000` and so on. Row `i`
/// depends only on the seed, the split and `i`, so a longer set starts with the shorter one.
pub fn generate(options: &SynthOptions) -> Vec<PreferenceGroup> {
    (0..options.rows).map(|row| pair(options, row)).collect()
}

/// Groups as JSON lines.
///
/// # Errors
/// [`Error::Runtime`] if a group has no JSON form; generated ones have.
pub fn to_jsonl(groups: &[PreferenceGroup]) -> Result<String> {
    let mut text = String::new();
    for group in groups {
        let line = serde_json::to_string(group).map_err(|e| Error::Runtime(format!("cannot write a pair: {e}")))?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

fn pair(options: &SynthOptions, row: usize) -> PreferenceGroup {
    let id = format!("{}-{row:06}", options.split.name());
    let mut rng = Rng::keyed(options.seed, &["synth", &id]);
    let (topic, prompt) = loop {
        let topic = rng.below(TOPICS.len());
        let prompt = format!(
            "{} {} for {} on {}.",
            REQUESTS[rng.below(REQUESTS.len())],
            TOPICS[topic].name,
            AUDIENCES[rng.below(AUDIENCES.len())],
            DAYS[rng.below(DAYS.len())]
        );
        if split_of(&prompt) == options.split {
            break (topic, prompt);
        }
    };
    let other = (topic + rng.range(1, TOPICS.len() - 1)) % TOPICS.len();
    let draw = rng.unit();
    let chosen = response(&mut rng, topic, (draw < STRAY).then_some(other));
    let rejected = response(&mut rng, other, (draw >= 1.0 - STRAY).then_some(topic));
    PreferenceGroup::pair(id, Prompt::Text(prompt), Response::Text(chosen), Response::Text(rejected), 0.0)
}

/// Split of a prompt. It depends only on the text, so no seed can change it.
fn split_of(prompt: &str) -> Split {
    match Rng::keyed(0, &["synth-split", prompt]).below(TEST_ONE_IN) {
        0 => Split::Test,
        _ => Split::Train,
    }
}

/// Generates sentences with words of `topic`; a third of the words (rounded down) comes from
/// `stray`.
fn response(rng: &mut Rng, topic: usize, stray: Option<usize>) -> String {
    let words = rng.range(RESPONSE_WORDS.0, RESPONSE_WORDS.1);
    let sentences = rng.range(1, MAX_SENTENCES.min(words / 2));
    let content = words - sentences;
    let mut content_words = match stray {
        None => topic_words(rng, topic, content),
        Some(stray) => {
            let strayed = content / 3;
            let mut content_words = topic_words(rng, topic, content - strayed);
            content_words.extend(topic_words(rng, stray, strayed));
            content_words
        }
    };
    rng.shuffle(&mut content_words);

    // Every sentence gets one topic word; each further word goes to a random sentence.
    let mut lengths = vec![1; sentences];
    for _ in sentences..content {
        lengths[rng.below(sentences)] += 1;
    }
    let mut text = String::new();
    let mut rest = content_words.as_slice();
    for length in lengths {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(OPENERS[rng.below(OPENERS.len())]);
        let (sentence, after) = rest.split_at(length);
        for word in sentence {
            text.push(' ');
            text.push_str(word);
        }
        text.push('.');
        rest = after;
    }
    text
}

/// Draws `count` words of a topic: a few distinct words, each at least once, and random repetitions
/// of them.
fn topic_words(rng: &mut Rng, topic: usize, count: usize) -> Vec<&'static str> {
    let mut pool = TOPICS[topic].words;
    rng.shuffle(&mut pool);
    let distinct = if count < 2 { count } else { rng.range(2, MAX_DISTINCT.min(count)) };
    (0..count).map(|i| if i < distinct { pool[i] } else { pool[rng.below(distinct)] }).collect()
}
