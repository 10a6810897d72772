//! Giveaways: whether the start or end of a response reveals its side, by the first or last word,
//! character or token. A model can then learn this one position and nothing about the answer.
//!
//! A rule scores each text at a position by its counts on the chosen and on the rejected side, and
//! is evaluated on held-out pairs. Single words are tested by prompt instead of by pair, because
//! one response can occur in many pairs of its prompt. A word is reported if its sign test is
//! significant after Bonferroni correction for the number of words tested.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::corpus::{Corpus, Pair};
use super::finding::{Finding, Level, MAX_PLACES, Place, share_percent};
use super::holdout::{Example, Examples, correctness, held_out};
use super::interval::{Share, SignTest};

/// Held-out accuracy of one position above which the check warns; the whole interval must be above.
const LIMIT: f64 = 0.6;
/// Significance level of the sign tests over all words.
const ALPHA: f64 = 0.01;
/// Minimum share of all pairs that have a word on exactly one side, for a warning about this word.
const COVERAGE: f64 = 0.05;
/// Minimum share of these pairs that have the word on the same side, for a warning about this word.
const PURITY: f64 = 0.9;
/// Minimum number of prompts of a tested word. Rarer words would only make the correction stricter
/// for the others.
const MIN_PROMPTS: usize = 10;
/// Maximum number of words listed.
const MAX_LISTED: usize = 10;
/// Maximum number of words named in the finding.
const MAX_NAMED: usize = 3;
/// Number of characters of a word that are compared and shown.
const MAX_WORD: usize = 24;

/// One position of a response, with its text on the chosen and on the rejected side of every pair.
pub(super) struct Position {
    /// Name, such as `first word`.
    pub name: &'static str,
    pub train: Vec<[String; 2]>,
    pub test: Option<Vec<[String; 2]>>,
}

/// Result for one position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PositionReport {
    pub position: &'static str,
    /// Held-out accuracy of the rule on this position.
    pub accuracy: Option<Share>,
}

/// A word that indicates one side.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Offender {
    pub position: &'static str,
    pub text: String,
    /// Pairs with the word only on the chosen side, and pairs with the word only on the rejected
    /// side.
    pub chosen: usize,
    pub rejected: usize,
    /// Prompts in which the word is more frequent on the chosen side, and on the rejected side.
    pub prompts_chosen: usize,
    pub prompts_rejected: usize,
    /// P-value of the two-sided sign test over prompts, times the number of words tested.
    pub p_value: f64,
}

/// Results for all positions.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Giveaways {
    pub positions: Vec<PositionReport>,
    /// Number of words tested.
    pub tested: usize,
    /// Words that indicate a side significantly, most frequent first, at most `MAX_LISTED`.
    pub offenders: Vec<Offender>,
}

/// Ids of the texts at a position of the chosen and of the rejected response.
type Keys = [u32; 2];

/// Extracts the first and last words and characters of the responses of `train` and `test`.
pub(super) fn positions(train: &Corpus, test: Option<&Corpus>) -> Vec<Position> {
    let position = |name, at: fn(&str) -> String| {
        let of = |corpus: &Corpus| -> Vec<[String; 2]> {
            corpus.pairs.iter().map(|pair| [0, 1].map(|side| at(&corpus.response(pair, side)))).collect()
        };
        Position { name, train: of(train), test: test.map(of) }
    };
    vec![
        position("first word", |text| shorten(text.split_whitespace().next().unwrap_or(""))),
        position("last word", |text| shorten(text.split_whitespace().next_back().unwrap_or(""))),
        position("first character", |text| text.chars().next().map(String::from).unwrap_or_default()),
        position("last character", |text| text.chars().next_back().map(String::from).unwrap_or_default()),
    ]
}

fn shorten(word: &str) -> String {
    word.chars().take(MAX_WORD).collect()
}

/// Evaluates every position.
pub(super) fn check(
    train: &Corpus,
    test: Option<&Corpus>,
    positions: Vec<Position>,
    findings: &mut Vec<Finding>,
) -> Giveaways {
    let mut report = Giveaways::default();
    let mut offenders = Vec::new();
    let sign_test = SignTest::new(train.pairs.len());
    for position in &positions {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut texts: Vec<&str> = Vec::new();
        let of_train = numbered(&train.pairs, &position.train, &mut numbers, &mut texts);
        let of_test = test.zip(position.test.as_ref());
        let of_test = of_test.map(|(corpus, keys)| numbered(&corpus.pairs, keys, &mut numbers, &mut texts));
        let words = texts.len();
        let fit = |examples: &[&Example<Keys>]| -> Vec<f64> {
            let mut counts = vec![[1.0f64; 2]; words];
            for [chosen, rejected] in examples.iter().map(|e| e.value).filter(|[a, b]| a != b) {
                counts[chosen as usize][0] += 1.0;
                counts[rejected as usize][1] += 1.0;
            }
            counts.into_iter().map(|[chosen, rejected]| (chosen / rejected).ln()).collect()
        };
        let accuracy = held_out(Examples { train: &of_train, test: of_test.as_deref() }, fit, |scores, example| {
            let [chosen, rejected] = example.value.map(|key| scores[key as usize]);
            correctness(chosen - rejected)
        });
        report.positions.push(PositionReport { position: position.name, accuracy });
        for (key, counts) in tally(&of_train) {
            if counts.prompts.iter().sum::<usize>() >= MIN_PROMPTS {
                report.tested += 1;
                let [prompts_chosen, prompts_rejected] = counts.prompts;
                offenders.push(Offender {
                    position: position.name,
                    text: texts[key as usize].to_owned(),
                    chosen: counts.pairs[0],
                    rejected: counts.pairs[1],
                    prompts_chosen,
                    prompts_rejected,
                    p_value: sign_test.p_value(prompts_chosen, prompts_rejected),
                });
            }
        }
    }
    for offender in &mut offenders {
        offender.p_value = (offender.p_value * report.tested as f64).min(1.0);
    }
    offenders.retain(|offender| offender.p_value < ALPHA);
    // The sort is stable: words with equal counts keep the order of positions and of first
    // appearance.
    offenders.sort_by_key(|offender| std::cmp::Reverse(offender.chosen + offender.rejected));
    add_findings(train, &report, &offenders, &positions, findings);
    offenders.truncate(MAX_LISTED);
    report.offenders = offenders;
    report
}

fn numbered<'a>(
    pairs: &[Pair],
    keys: &'a [[String; 2]],
    numbers: &mut HashMap<&'a str, u32>,
    texts: &mut Vec<&'a str>,
) -> Vec<Example<Keys>> {
    let mut number = |text: &'a str| {
        *numbers.entry(text).or_insert_with(|| {
            texts.push(text);
            texts.len() as u32 - 1
        })
    };
    let example =
        |(pair, [a, b]): (&Pair, &'a [String; 2])| Example { cluster: pair.cluster(), value: [number(a), number(b)] };
    pairs.iter().zip(keys).map(example).collect()
}

/// Counts of one word, chosen side first.
#[derive(Clone, Copy, Default)]
struct Counts {
    pairs: [usize; 2],
    prompts: [usize; 2],
}

fn tally(examples: &[Example<Keys>]) -> BTreeMap<u32, Counts> {
    let mut uses: Vec<(u32, u32, usize)> = Vec::new();
    for example in examples.iter().filter(|e| e.value[0] != e.value[1]) {
        uses.extend([0, 1].map(|side| (example.value[side], example.cluster, side)));
    }
    uses.sort_unstable();
    let mut counts: BTreeMap<u32, Counts> = BTreeMap::new();
    for of_prompt in uses.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let rejected = of_prompt.iter().map(|u| u.2).sum::<usize>();
        let sides = [of_prompt.len() - rejected, rejected];
        let word = counts.entry(of_prompt[0].0).or_default();
        for side in 0..2 {
            word.pairs[side] += sides[side];
            word.prompts[side] += usize::from(sides[side] > sides[1 - side]);
        }
    }
    counts
}

fn add_findings(
    corpus: &Corpus,
    report: &Giveaways,
    offenders: &[Offender],
    positions: &[Position],
    findings: &mut Vec<Finding>,
) {
    let pairs = corpus.pairs.len();
    let pure = |o: &&Offender| {
        let both = (o.chosen + o.rejected) as f64;
        both >= COVERAGE * pairs as f64 && o.chosen.max(o.rejected) as f64 >= PURITY * both
    };
    let single: Vec<&Offender> = offenders.iter().filter(pure).collect();
    let strong = report.positions.iter().filter_map(|p| p.accuracy.filter(|a| a.above(LIMIT)).map(|a| (p.position, a)));
    let strong: Vec<(&str, Share)> = strong.collect();
    if single.is_empty() && strong.is_empty() {
        return;
    }
    // Words that separate the sides on their own come first, then words of a position with high
    // accuracy, by p-value.
    let mut named = single.clone();
    let mut carrying: Vec<&Offender> = offenders
        .iter()
        .filter(|o| !single.contains(o) && strong.iter().any(|(position, _)| *position == o.position))
        .collect();
    carrying.sort_by(|a, b| a.p_value.total_cmp(&b.p_value));
    named.extend(carrying);
    named.truncate(MAX_NAMED);
    let mut parts: Vec<String> = strong
        .iter()
        .map(|(name, accuracy)| format!("the {name} predicts the side in {accuracy} of held-out pairs"))
        .collect();
    for offender in &named {
        let of = offender.chosen + offender.rejected;
        let (most, side) = match offender.chosen > offender.rejected {
            true => (offender.chosen, "chosen"),
            false => (offender.rejected, "rejected"),
        };
        parts.push(format!(
            "{} {:?} is on the {side} side in {most} of {of} pairs ({})",
            offender.position,
            offender.text,
            share_percent(most as f64 / of as f64)
        ));
    }
    // Rows that show the first named word.
    let mut places = Vec::new();
    let mut count = strong.first().map_or(0, |(_, a)| (a.share * a.of as f64).round() as usize);
    if let Some(shown) = named.first()
        && let Some(position) = positions.iter().find(|p| p.name == shown.position)
    {
        count = shown.chosen + shown.rejected;
        let side = usize::from(shown.chosen < shown.rejected);
        let shows = |keys: &[String; 2]| keys[side] == shown.text && keys[1 - side] != shown.text;
        let with = corpus.pairs.iter().zip(&position.train).filter(|(_, keys)| shows(keys)).take(MAX_PLACES);
        places.extend(with.map(|(pair, keys)| {
            Place::row(corpus, pair.row).with(format!("chosen {:?}, rejected {:?}", keys[0], keys[1]))
        }));
    }
    let finding = Finding::new(Level::Warning, "giveaway", (count, pairs), parts.join("; "))
        .why("a model can score well by this text alone, without reading the rest of the answer or the prompt")
        .advice(
            "check whether the two sides come from different sources, or whether processing added or removed a \
             prefix or suffix; strip text that a source always adds",
        )
        .places(places);
    findings.push(finding);
}
