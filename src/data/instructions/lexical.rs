//! Words drawn from responses: words that some responses contain and others lack.

use super::{Analysis, Request};
use crate::rng::Rng;

/// Fallback words if neither response nor prompt offers a word. They are common and not specific to a topic.
const PLAIN_WORDS: [&str; 16] = [
    "example", "reason", "detail", "result", "moment", "option", "purpose", "picture", "answer", "measure", "history",
    "nature", "problem", "question", "material", "choice",
];

/// Maximum number of keywords in one instruction.
const MAX_KEYWORDS: usize = 3;

/// Returns the content words of a response that the prompt lacks, because any answer can contain
/// words of the prompt.
pub(super) fn words_not_in_prompt<'a>(response: &'a Analysis<'a>, request: &Request) -> Vec<&'a str> {
    response.content_words().filter(|w| !request.prompt.has_word(w)).take(most_candidates(request)).collect()
}

/// Maximum number of words that are tried, because each word is searched in the responses. Only responses of
/// many kilobytes have more words.
fn most_candidates(request: &Request) -> usize {
    const MAX_BYTES_SEARCHED: usize = 1 << 28;
    let bytes: usize = request.targets.iter().map(|target| target.response.text().len()).sum();
    MAX_BYTES_SEARCHED / bytes.max(1) + 1
}

/// Returns fallback words in order of preference: from responses without a flag, from the prompt,
/// plain words.
fn fallback_words<'a>(request: &Request<'a>) -> [Vec<&'a str>; 3] {
    let free = request.free().flat_map(|r| words_not_in_prompt(r, request)).collect();
    let prompt = request.prompt.content_words().take(most_candidates(request)).collect();
    [free, prompt, PLAIN_WORDS.to_vec()]
}

/// Draws one word that passes `fits`, from the first source with such a word.
fn choose<'a>(sources: &[Vec<&'a str>], fits: impl Fn(&str) -> bool, rng: &mut Rng) -> Option<&'a str> {
    sources.iter().find_map(|source| {
        let candidates: Vec<&str> = source.iter().copied().filter(|w| fits(w)).collect();
        rng.choose(&candidates).copied()
    })
}

/// Adds words of `pool` that pass `fits` until there are `count`, or fewer if the pool is
/// exhausted.
fn fill<'a>(words: &mut Vec<&'a str>, count: usize, pool: &[&'a str], fits: impl Fn(&str) -> bool, rng: &mut Rng) {
    let mut rest: Vec<&str> = pool.iter().copied().filter(|w| !words.contains(w) && fits(w)).collect();
    rest.sort_unstable();
    rest.dedup();
    rng.shuffle(&mut rest);
    rest.truncate(count.saturating_sub(words.len()));
    words.extend(rest);
}

/// Draws keywords that every satisfying response contains. Each violating response lacks at least one of them.
pub(super) fn required_words(request: &Request, rng: &mut Rng) -> Option<Vec<String>> {
    let count = rng.range(1, MAX_KEYWORDS);
    let in_all_satisfied = |w: &str| request.satisfied().all(|r| r.contains(w));
    let available: Vec<&str> = request.satisfied().flat_map(|r| words_not_in_prompt(r, request)).collect();
    let satisfied = request.satisfied().next().is_some();
    let mut words: Vec<&str> = Vec::new();
    for violating in request.violated() {
        if words.iter().any(|w| !violating.contains(w)) {
            continue;
        }
        let missing = |w: &str| !violating.contains(w) && in_all_satisfied(w);
        let fallback_words = fallback_words(request);
        let sources = if satisfied { std::slice::from_ref(&available) } else { fallback_words.as_slice() };
        words.push(choose(sources, missing, rng)?);
    }
    // Further keywords may occur in a violating response. The instruction is then partly met, which is
    // visible only if both prompt and response are read.
    let pool =
        if satisfied { available } else { request.violated().flat_map(|r| words_not_in_prompt(r, request)).collect() };
    fill(&mut words, count, &pool, in_all_satisfied, rng);
    rng.shuffle(&mut words);
    (!words.is_empty()).then(|| words.into_iter().map(str::to_owned).collect())
}

/// Draws words that no satisfying response contains. Each violating response contains at least one of them.
pub(super) fn forbidden_words(request: &Request, rng: &mut Rng) -> Option<Vec<String>> {
    let count = rng.range(1, MAX_KEYWORDS);
    let in_no_satisfied = |w: &str| !request.satisfied().any(|r| r.contains_whole(w));
    let mut words: Vec<&str> = Vec::new();
    for violating in request.violated() {
        if words.iter().any(|w| violating.contains_whole(w)) {
            continue;
        }
        words.push(choose(&[words_not_in_prompt(violating, request)], in_no_satisfied, rng)?);
    }
    if words.is_empty() {
        words.push(choose(&fallback_words(request), in_no_satisfied, rng)?);
    }
    let others = request.violated().chain(request.free());
    let pool: Vec<&str> = others.flat_map(|r| words_not_in_prompt(r, request)).collect();
    fill(&mut words, count, &pool, in_no_satisfied, rng);
    rng.shuffle(&mut words);
    Some(words.into_iter().map(str::to_owned).collect())
}
