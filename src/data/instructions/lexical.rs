//! Words drawn from responses: which ones a response has and others lack.

use super::{Analysis, Request};
use crate::rng::Rng;

/// Words for the case that neither response nor prompt offers one: common, and of no topic.
const PLAIN_WORDS: [&str; 16] = [
    "example", "reason", "detail", "result", "moment", "option", "purpose", "picture", "answer", "measure", "history",
    "nature", "problem", "question", "material", "choice",
];

/// Largest number of keywords in one instruction.
pub const MAX_KEYWORDS: usize = 3;

/// Content words of a response that the prompt does not hold, because a word of the prompt occurs in any answer.
pub fn own_words<'a>(response: &'a Analysis<'a>, prompt: &Analysis) -> Vec<&'a str> {
    response.content_words().iter().map(String::as_str).filter(|w| !prompt.has_word(w)).collect()
}

/// Words to fall back on, in the order of preference: of responses without a flag, of the prompt, plain ones.
fn reserves<'a>(request: &Request<'a>) -> [Vec<&'a str>; 3] {
    let free = request.free().flat_map(|r| own_words(r, request.prompt)).collect();
    let prompt = request.prompt.content_words().iter().map(String::as_str).collect();
    [free, prompt, PLAIN_WORDS.to_vec()]
}

/// One word that passes `fits`, from the first source that has any.
fn one_of<'a>(sources: &[Vec<&'a str>], fits: impl Fn(&str) -> bool, rng: &mut Rng) -> Option<&'a str> {
    sources.iter().find_map(|source| {
        let candidates: Vec<&str> = source.iter().copied().filter(|w| fits(w)).collect();
        rng.choose(&candidates).copied()
    })
}

/// Adds words of `pool` that pass `fits` until there are `count`; fewer where the pool ends.
fn fill<'a>(words: &mut Vec<&'a str>, count: usize, pool: &[&'a str], fits: impl Fn(&str) -> bool, rng: &mut Rng) {
    let mut rest: Vec<&str> = pool.iter().copied().filter(|w| !words.contains(w) && fits(w)).collect();
    rest.sort_unstable();
    rest.dedup();
    rng.shuffle(&mut rest);
    rest.truncate(count.saturating_sub(words.len()));
    words.extend(rest);
}

/// Keywords that every satisfied response has and of which each violating response lacks at least one.
pub fn required_words(request: &Request, rng: &mut Rng) -> Option<Vec<String>> {
    let count = rng.range(1, MAX_KEYWORDS);
    let in_all_satisfied = |w: &str| request.satisfied().all(|r| r.contains(w));
    let own: Vec<&str> = request.satisfied().flat_map(|r| own_words(r, request.prompt)).collect();
    let satisfied = request.satisfied().next().is_some();
    let mut words: Vec<&str> = Vec::new();
    for violating in request.violated() {
        if words.iter().any(|w| !violating.contains(w)) {
            continue;
        }
        let missing = |w: &str| !violating.contains(w) && in_all_satisfied(w);
        let reserves = reserves(request);
        let sources = if satisfied { std::slice::from_ref(&own) } else { reserves.as_slice() };
        words.push(one_of(sources, missing, rng)?);
    }
    // Words that a violating response does have make the instruction half met, which only a reader of both can tell.
    let pool = if satisfied { own } else { request.violated().flat_map(|r| own_words(r, request.prompt)).collect() };
    fill(&mut words, count, &pool, in_all_satisfied, rng);
    rng.shuffle(&mut words);
    (!words.is_empty()).then(|| words.into_iter().map(str::to_owned).collect())
}

/// Words of which no satisfied response has any and each violating response has at least one.
pub fn forbidden_words(request: &Request, rng: &mut Rng) -> Option<Vec<String>> {
    let count = rng.range(1, MAX_KEYWORDS);
    let in_no_satisfied = |w: &str| !request.satisfied().any(|r| r.contains_whole(w));
    let mut words: Vec<&str> = Vec::new();
    for violating in request.violated() {
        if words.iter().any(|w| violating.contains_whole(w)) {
            continue;
        }
        words.push(one_of(&[own_words(violating, request.prompt)], in_no_satisfied, rng)?);
    }
    if words.is_empty() {
        words.push(one_of(&reserves(request), in_no_satisfied, rng)?);
    }
    let others = request.violated().chain(request.free());
    let pool: Vec<&str> = others.flat_map(|r| own_words(r, request.prompt)).collect();
    fill(&mut words, count, &pool, in_no_satisfied, rng);
    rng.shuffle(&mut words);
    Some(words.into_iter().map(str::to_owned).collect())
}
