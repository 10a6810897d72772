//! The artificial language of the quick start: ordinary preference pairs whose quality is their subject and whose
//! form can be checked by the instruction functions.
//!
//! A prompt asks for one of ten topics (`Write a note about the garden for visitors on Monday.`). A response is one
//! to four sentences of a capitalised opener and words of a topic (`The rose moss fern. Our tulip rose.`). At least
//! two thirds of the chosen response's topic words belong to the topic asked for, at most one third of the rejected
//! one's. Everything else is drawn from the same distribution for both responses: words (4 to 14), sentences, which
//! words of the topic, how often one is repeated, the ending, and whether a third of the words strays to another
//! topic. So neither length nor coherence nor any other property of the responses alone tells chosen from rejected.
//!
//! Prompts of the training split never occur in the test split, whatever the seeds.

mod words;

#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::Path;

use super::group::{PreferenceGroup, Prompt, Response};
use crate::files::{Unfinished, sync_parent};
use crate::rng::Rng;
use crate::{Error, Result};
use words::{AUDIENCES, DAYS, OPENERS, REQUESTS, TOPICS};

/// Fewest and most words of a response.
const RESPONSE_WORDS: (usize, usize) = (4, 14);
/// Most sentences of a response; each has an opener and at least one topic word.
const MAX_SENTENCES: usize = 4;
/// Most distinct topic words of a response. Fewer distinct than written words is what repeats a keyword.
const MAX_DISTINCT: usize = 6;
/// Share of pairs whose chosen response strays to the other topic, and of those whose rejected response does. The two
/// are equal: otherwise "all words of one topic" would predict the side without a look at the prompt.
const STRAY: f64 = 0.2;
/// One prompt in this many belongs to the test split.
const TEST_ONE_IN: usize = 5;

/// Which half of the prompts the rows are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

impl Split {
    /// Lower-case name; begins the ids of its rows.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

/// What [`generate`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynthOptions {
    /// Number of pairs.
    pub rows: usize,
    pub seed: u64,
    pub split: Split,
}

/// Pairs with one base comparison each, ids `train-000000` and so on. Row `i` depends on the seed, the split and `i`
/// alone, so a longer set begins with the shorter one.
pub fn generate(options: &SynthOptions) -> Vec<PreferenceGroup> {
    (0..options.rows).map(|row| pair(options, row)).collect()
}

/// Writes one group row a line. The file appears complete or not at all.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be written.
pub fn write_jsonl(groups: &[PreferenceGroup], path: &Path) -> Result<()> {
    let file = Unfinished::write(path, |out| {
        for group in groups {
            serde_json::to_writer(&mut *out, group).map_err(|e| Error::io("write", path)(e.into()))?;
            out.write_all(b"\n").map_err(Error::io("write", path))?;
        }
        Ok(())
    })?;
    file.rename()?;
    sync_parent(path)
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

/// The split a prompt belongs to: a property of its text, so that no seed can move it.
fn split_of(prompt: &str) -> Split {
    match Rng::keyed(0, &["synth-split", prompt]).below(TEST_ONE_IN) {
        0 => Split::Test,
        _ => Split::Train,
    }
}

/// Sentences with words of `topic`; a third of them (rounded down) is replaced by words of `stray`.
fn response(rng: &mut Rng, topic: usize, stray: Option<usize>) -> String {
    let words = rng.range(RESPONSE_WORDS.0, RESPONSE_WORDS.1);
    let sentences = rng.range(1, MAX_SENTENCES.min(words / 2));
    let content = words - sentences;
    let mut written = match stray {
        None => topic_words(rng, topic, content),
        Some(stray) => {
            let strayed = content / 3;
            let mut written = topic_words(rng, topic, content - strayed);
            written.extend(topic_words(rng, stray, strayed));
            written
        }
    };
    rng.shuffle(&mut written);

    // Every sentence takes one word; each further word goes to a random sentence.
    let mut lengths = vec![1; sentences];
    for _ in sentences..content {
        lengths[rng.below(sentences)] += 1;
    }
    let mut text = String::new();
    let mut rest = written.as_slice();
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

/// `count` words of a topic: a few distinct ones, each at least once, the rest repeated at random.
fn topic_words(rng: &mut Rng, topic: usize, count: usize) -> Vec<&'static str> {
    let mut pool = TOPICS[topic].words;
    rng.shuffle(&mut pool);
    let distinct = if count < 2 { count } else { rng.range(2, MAX_DISTINCT.min(count)) };
    (0..count).map(|i| if i < distinct { pool[i] } else { pool[rng.below(distinct)] }).collect()
}
