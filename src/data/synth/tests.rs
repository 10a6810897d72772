//! Properties of the artificial language: only the subject makes a response better, nothing else predicts the
//! better response, and instruction functions are feasible in both directions.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn rows(rows: usize, seed: u64, split: Split) -> Vec<PreferenceGroup> {
    generate(&SynthOptions { rows, seed, split })
}

fn prompt(group: &PreferenceGroup) -> &str {
    match &group.prompts[0] {
        Prompt::Text(text) => text,
        Prompt::Messages(_) => panic!("the language has plain prompts"),
    }
}

fn both(group: &PreferenceGroup) -> (&str, &str) {
    (group.responses[0].text(), group.responses[1].text())
}

fn topic_asked(prompt: &str) -> usize {
    let found: Vec<_> = (0..TOPICS.len()).filter(|&t| prompt.contains(&format!("about {} ", TOPICS[t].name))).collect();
    assert_eq!(found.len(), 1, "{prompt}");
    found[0]
}

/// Words without punctuation.
fn tokens(text: &str) -> Vec<&str> {
    text.split_whitespace().map(|w| w.trim_end_matches('.')).collect()
}

/// Topic of each content word of a response.
fn topics_of(text: &str) -> Vec<usize> {
    let openers: BTreeSet<_> = OPENERS.into_iter().collect();
    tokens(text)
        .into_iter()
        .filter(|w| !openers.contains(w))
        .map(|w| TOPICS.iter().position(|t| t.words.contains(&w)).unwrap_or_else(|| panic!("{w} has no topic")))
        .collect()
}

/// Share of content words on the requested topic.
fn share(topic: usize, text: &str) -> f64 {
    let topics = topics_of(text);
    topics.iter().filter(|&&t| t == topic).count() as f64 / topics.len() as f64
}

fn sentences(text: &str) -> usize {
    text.matches('.').count()
}

#[test]
fn content_words_are_distinct_long_enough_and_not_contained_in_each_other() {
    let content: Vec<&str> = TOPICS.iter().flat_map(|t| t.words).collect();
    assert_eq!(content.iter().collect::<BTreeSet<_>>().len(), 120);
    for (i, word) in content.iter().enumerate() {
        assert!(word.len() >= 4 && word.bytes().all(|b| b.is_ascii_lowercase()), "{word}");
        for (j, other) in content.iter().enumerate() {
            assert!(i == j || !other.contains(word), "{other} contains {word}");
        }
        // Keywords that occur in the prompt as substrings are excluded; this must not exclude a
        // topic word.
        let prompt_parts = TOPICS.iter().map(|t| t.name).chain(REQUESTS).chain(AUDIENCES).chain(DAYS);
        for part in prompt_parts {
            assert!(!part.to_lowercase().contains(word), "{part} contains {word}");
        }
    }
    assert!(OPENERS.iter().all(|o| o.len() <= 3));
}

#[test]
fn rows_are_valid_ordinary_pairs_in_bounds() {
    for group in rows(2000, 1, Split::Train) {
        group.validate().unwrap();
        assert_eq!((group.prompts.len(), group.responses.len(), group.comparisons.len()), (1, 2, 1));
        assert!(group.instructions.is_empty());
        assert!((7..=12).contains(&tokens(prompt(&group)).len()), "{}", prompt(&group));
        for response in &group.responses {
            let text = response.text();
            assert!((4..=14).contains(&tokens(text).len()), "{text}");
            assert!((1..=4).contains(&sentences(text)) && text.ends_with('.'), "{text}");
            for sentence in text.split_terminator('.') {
                assert!(sentence.trim().starts_with(|c: char| c.is_ascii_uppercase()), "{text}");
                assert!(tokens(sentence).len() >= 2, "{text}");
            }
        }
    }
}

#[test]
fn the_chosen_response_is_on_topic_and_the_rejected_one_is_not() {
    let mut strayed = 0;
    for group in rows(4000, 2, Split::Train) {
        let (topic, (chosen, rejected)) = (topic_asked(prompt(&group)), both(&group));
        let (good, bad) = (share(topic, chosen), share(topic, rejected));
        assert!(good >= 2.0 / 3.0 && bad <= 1.0 / 3.0, "{good} {bad} {group:?}");
        strayed += usize::from(good < 1.0) + usize::from(bad > 0.0);
    }
    // In 40 % of the pairs one response strays, except for the few responses too short to replace a third of
    // the words.
    assert!((1300..1700).contains(&strayed), "{strayed}");
}

/// Share of pairs in which the chosen response has the larger value, among pairs with different
/// values.
fn larger_when_chosen(groups: &[PreferenceGroup], measure: impl Fn(&str) -> usize) -> f64 {
    let (mut larger, mut differ) = (0usize, 0usize);
    for group in groups {
        let (chosen, rejected) = both(group);
        let (c, r) = (measure(chosen), measure(rejected));
        larger += usize::from(c > r);
        differ += usize::from(c != r);
    }
    assert!(differ * 5 > groups.len(), "the values differ in too few pairs: {differ}");
    larger as f64 / differ as f64
}

#[test]
fn nothing_in_the_responses_predicts_the_side_without_the_prompt() {
    let groups = rows(10_000, 3, Split::Train);
    let distinct = |text: &str| topics_of(text).into_iter().collect::<BTreeSet<_>>().len();
    let vocabulary = |text: &str| tokens(text).into_iter().collect::<BTreeSet<_>>().len();
    // At least 3,000 pairs differ in each measure, so three standard deviations of the share are below 0.03.
    for (name, p) in [
        ("words", larger_when_chosen(&groups, |t| tokens(t).len())),
        ("bytes", larger_when_chosen(&groups, str::len)),
        ("sentences", larger_when_chosen(&groups, sentences)),
        ("topics", larger_when_chosen(&groups, distinct)),
        ("distinct words", larger_when_chosen(&groups, vocabulary)),
        ("first topic", larger_when_chosen(&groups, |t| topics_of(t)[0])),
    ] {
        assert!((p - 0.5).abs() < 0.03, "{name} predicts the chosen response: {p}");
    }
    // Every word of the language is as often chosen as rejected.
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for group in &groups {
        let (chosen, rejected) = both(group);
        tokens(chosen).into_iter().for_each(|w| counts.entry(w).or_default().0 += 1);
        tokens(rejected).into_iter().for_each(|w| counts.entry(w).or_default().1 += 1);
    }
    assert_eq!(counts.len(), 120 + OPENERS.len());
    for (word, (chosen, rejected)) in counts {
        let p = chosen as f64 / (chosen + rejected) as f64;
        assert!((p - 0.5).abs() < 0.12, "{word}: {chosen} {rejected}");
    }
}

#[test]
fn equal_options_give_equal_rows_and_a_longer_set_begins_with_the_shorter() {
    let long = rows(300, 4, Split::Test);
    assert_eq!(long, rows(300, 4, Split::Test));
    assert_eq!(long[..50], rows(50, 4, Split::Test));
    assert_ne!(long[..50], rows(50, 5, Split::Test));
    let text = to_jsonl(&long).unwrap();
    let read: Vec<PreferenceGroup> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, long);
    assert_eq!(text, to_jsonl(&rows(300, 4, Split::Test)).unwrap());
}

#[test]
fn splits_share_no_prompt_and_no_row_whatever_the_seeds() {
    let prompts = |groups: &[PreferenceGroup]| groups.iter().map(|g| prompt(g).to_owned()).collect::<BTreeSet<_>>();
    let ids = |groups: &[PreferenceGroup]| groups.iter().map(|g| g.id.clone()).collect::<BTreeSet<_>>();
    let mut train = rows(6000, 6, Split::Train);
    train.extend(rows(6000, 7, Split::Train));
    let test = rows(1500, 6, Split::Test);
    assert!(prompts(&train).is_disjoint(&prompts(&test)));
    assert!(ids(&train).is_disjoint(&ids(&test)));
    assert!(prompts(&test).len() > 900, "the test split has too few prompts: {}", prompts(&test).len());
    for groups in [&train, &test] {
        let asked: BTreeSet<_> = groups.iter().map(|g| topic_asked(prompt(g))).collect();
        assert_eq!(asked.len(), TOPICS.len(), "every topic occurs in both splits");
    }
}

#[test]
fn most_pairs_admit_each_instruction_function_in_both_directions() {
    let groups = rows(3000, 8, Split::Train);
    let percent = |feasible: &dyn Fn(&str, &str) -> bool| {
        let count = groups.iter().filter(|g| feasible(both(g).0, both(g).1) && feasible(both(g).1, both(g).0)).count();
        100 * count / groups.len()
    };
    fn keywords(text: &str) -> BTreeSet<&str> {
        tokens(text).into_iter().filter(|w| w.len() >= 4).collect()
    }
    let last = |text: &str| tokens(text).last().unwrap().to_string();
    // A two-sided threshold is between the counts, so different counts give both directions.
    assert!(percent(&|a, b| tokens(a).len() != tokens(b).len()) >= 85);
    assert!(percent(&|a, b| sentences(a) != sentences(b)) >= 65);
    // A keyword that only one response has is enough for the functions existence, forbidden words and frequency.
    assert!(percent(&|a, b| keywords(a).difference(&keywords(b)).count() >= 1) >= 99);
    assert!(percent(&|a, b| keywords(a).difference(&keywords(b)).count() >= 2) >= 90);
    assert!(percent(&|a, b| last(a) != last(b)) >= 97);
    // A keyword that occurs at least twice lets the frequency function use numbers above one.
    let repeats = groups.iter().filter(|g| keywords(both(g).0).len() + 2 <= topics_of(both(g).0).len()).count();
    assert!(repeats * 5 > groups.len() * 2, "{repeats}");
}

/// With a small byte-level vocabulary almost every word is one token, so word counts are token
/// counts.
#[test]
fn a_vocabulary_of_768_tokens_makes_almost_every_word_one_token() {
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{Model, PreTokenizedString, PreTokenizer, Trainer};

    let groups = rows(2000, 9, Split::Train);
    let texts: Vec<String> = groups.iter().flat_map(|g| [prompt(g), both(g).0, both(g).1].map(str::to_owned)).collect();
    let split = |text: &str| -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        ByteLevel::default().add_prefix_space(false).pre_tokenize(&mut pieces).unwrap();
        let offsets = tokenizers::OffsetReferential::Normalized;
        pieces.get_splits(offsets, tokenizers::OffsetType::Byte).into_iter().map(|(s, _, _)| s.to_owned()).collect()
    };
    let mut trainer = BpeTrainer::builder()
        .vocab_size(768)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    trainer.feed(texts.iter(), |text| Ok(split(text))).unwrap();
    let mut model = BPE::default();
    trainer.train(&mut model).unwrap();
    let counts: Vec<usize> = texts.iter().flat_map(|t| split(t)).map(|w| model.tokenize(&w).unwrap().len()).collect();
    let single = counts.iter().filter(|&&n| n == 1).count();
    assert!(single * 100 >= counts.len() * 97, "{single} of {} words are one token", counts.len());
}
