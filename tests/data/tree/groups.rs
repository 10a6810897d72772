//! Groups for the tests of trees and batches: random groups with shared prompt prefixes, and the
//! documented example.

use mapl::data::group::{Comparison, Kind, PreferenceGroup, Prompt, Response, Term};
use mapl::data::tokenized::{Sequence, SequenceComparison, SequenceTerm, TokenizedGroup};
use mapl::rng::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A group with the given prompts, sequences (prompt, response ids) and comparisons. Response
/// indices count the sequences of a prompt.
pub fn group(
    prompts: Vec<Vec<u32>>,
    pairs: &[(usize, Vec<u32>)],
    comparisons: Vec<SequenceComparison>,
) -> TokenizedGroup {
    let text = |s: &str| Response::Text(s.into());
    let source = PreferenceGroup::pair("row-7".into(), Prompt::Text("p".into()), text("a"), text("b"), 0.0);
    let mut seen = BTreeMap::new();
    let sequences = pairs.iter().map(|(prompt, ids)| {
        let next = seen.entry(*prompt).or_insert(0);
        *next += 1;
        Sequence { prompt: *prompt, response: *next - 1, response_ids: ids.clone() }
    });
    TokenizedGroup { group: Arc::new(source), sequences: sequences.collect(), prompt_ids: prompts, comparisons }
}

fn random_ids(rng: &mut Rng, low: usize, high: usize) -> Vec<u32> {
    (0..rng.range(low, high)).map(|_| rng.below(3) as u32).collect()
}

pub fn random_group(rng: &mut Rng) -> TokenizedGroup {
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for _ in 0..rng.range(1, 6) {
        let mut prompt = match rng.choose(&prompts).cloned() {
            // Extends an earlier prompt, truncated at a random length; often equal to it or a
            // prefix of it.
            Some(mut earlier) if rng.below(4) > 0 => {
                earlier.truncate(rng.range(1, earlier.len() + 2));
                earlier
            }
            _ => random_ids(rng, 1, 6),
        };
        if rng.flip() {
            prompt.extend(random_ids(rng, 0, 3));
        }
        prompts.push(prompt);
    }
    let mut pairs: Vec<_> = (0..rng.range(1, 8)).map(|_| (rng.below(prompts.len()), random_ids(rng, 1, 4))).collect();
    pairs.sort_by_key(|(prompt, _)| *prompt);
    // Prompts that no comparison uses have no ids.
    for (p, prompt) in prompts.iter_mut().enumerate().filter(|(p, _)| pairs.iter().all(|(q, _)| q != p)) {
        if p % 2 == 0 {
            prompt.clear();
        }
    }
    let comparisons = (0..rng.below(5)).map(|c| SequenceComparison {
        kind: Kind::ALL[rng.below(3)],
        terms: (0..[2, 4][c % 2])
            .map(|_| SequenceTerm {
                sequence: rng.below(pairs.len()),
                sign: if rng.flip() { 1 } else { -1 },
                detached: rng.below(4) == 0,
            })
            .collect(),
        margin: rng.unit(),
        weight: rng.unit(),
        detached_clip: rng.flip().then_some((0.0, 5.0)),
    });
    let comparisons = comparisons.collect();
    group(prompts, &pairs, comparisons)
}

/// 300 seeded batches of one to five random groups.
pub fn random_batches() -> impl Iterator<Item = Vec<TokenizedGroup>> {
    (0..300).map(|seed| {
        let mut rng = Rng::keyed(seed, &["tree test"]);
        (0..rng.range(1, 5)).map(|_| random_group(&mut rng)).collect()
    })
}

/// One id per word or punctuation mark, numbered in order of appearance; id 0 ends a response.
fn tokenize(text: &str, known: &mut Vec<String>) -> Vec<u32> {
    let spaced: String =
        text.chars().flat_map(|c| if c.is_alphanumeric() { vec![c] } else { vec![' ', c, ' '] }).collect();
    let mut id = |word: &str| match known.iter().position(|k| k == word) {
        Some(at) => at as u32 + 1,
        None => {
            known.push(word.into());
            known.len() as u32
        }
    };
    spaced.split_whitespace().map(&mut id).collect()
}

/// The bakery row that documents the group format: prompts x, up, 1l, down, 2l and the two
/// responses.
pub fn bakery() -> TokenizedGroup {
    let x = "Suggest a name for a small neighbourhood bakery and say why it fits.";
    let prompt = |keys: &str, words: &str, end: &str| {
        format!("{x} Include the keywords {keys}. Use {words} words. Finish with the exact phrase \"{end}\"")
    };
    let prompts = [
        x.to_owned(),
        prompt("dough and mornings", "at least 25", "on a sign."),
        prompt("dough and mornings", "less than 29", "on a sign."),
        prompt("bread and friends", "less than 25", "friends first!"),
        prompt("bread and dough", "less than 25", "on a sign."),
    ];
    let responses = [
        "Call it Rise and Shine. The words point to rising dough and to early mornings, so customers remember what you \
         sell and when you open. It is short, cheerful and easy to paint on a sign.",
        "Golden Crust is a good name, because bread has a crust. Ask your friends first!",
    ];
    // Terms as (prompt, response, sign).
    type Terms = &'static [(usize, usize, i8)];
    let comparisons: [(Kind, Terms); 5] = [
        (Kind::Base, &[(0, 0, 1), (0, 1, -1)]),
        (Kind::Intra, &[(1, 0, 1), (2, 0, -1)]),
        (Kind::Intra, &[(3, 1, 1), (4, 1, -1)]),
        (Kind::Inter, &[(1, 0, 1), (0, 1, 1), (1, 1, -1), (0, 0, -1)]),
        (Kind::Inter, &[(3, 1, 1), (0, 0, 1), (3, 0, -1), (0, 1, -1)]),
    ];
    let mut group = PreferenceGroup::pair(
        "bakery-1".into(),
        Prompt::Text(x.into()),
        Response::Text(responses[0].into()),
        Response::Text(responses[1].into()),
        0.0,
    );
    group.prompts = prompts.iter().map(|p| Prompt::Text(p.clone())).collect();
    group.comparisons = comparisons
        .iter()
        .map(|&(kind, terms)| Comparison {
            kind,
            terms: terms.iter().map(|&(prompt, response, sign)| Term { prompt, response, sign }).collect(),
            margin: 0.0,
            weight: 1.0,
            rule: None,
            direction: None,
        })
        .collect();
    group.validate().unwrap();

    let mut known = Vec::new();
    let prompt_ids = prompts.iter().map(|p| tokenize(p, &mut known)).collect();
    let response_ids = responses.map(|r| [tokenize(r, &mut known), vec![0]].concat());
    let pairs = group.sequences();
    let sequence = |&(prompt, response): &(usize, usize)| Sequence {
        prompt,
        response,
        response_ids: response_ids[response].clone(),
    };
    let comparisons = group.comparisons.iter().map(|c| SequenceComparison {
        kind: c.kind,
        terms: c
            .terms
            .iter()
            .map(|t| SequenceTerm {
                sequence: pairs.iter().position(|&pair| pair == (t.prompt, t.response)).unwrap(),
                sign: t.sign,
                detached: false,
            })
            .collect(),
        margin: c.margin,
        weight: c.weight,
        detached_clip: None,
    });
    let comparisons = comparisons.collect();
    TokenizedGroup { sequences: pairs.iter().map(sequence).collect(), group: Arc::new(group), prompt_ids, comparisons }
}
