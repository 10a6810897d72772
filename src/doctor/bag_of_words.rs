//! How far the words of the responses alone go: a linear model that sees no prompt and no order of words. What it gets
//! right, a trained model can get right without reading the prompt.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use super::corpus::{Corpus, Pair};
use super::finding::{Finding, Level};
use super::holdout::{Clustered, Examples, decided, held_out};
use super::interval::Share;
use super::linear::{self, Features};
use super::words::{Vocabulary, WordCounts, each_word};

/// Accuracy that gives rise to a warning when even the lower end of its interval is above: with less, three pairs in
/// five at best, most of what a model learns must come from elsewhere.
const LIMIT: f64 = 0.6;
/// Pairs used at most, spread evenly over the data: more change the accuracy by less than a point.
const MAX_PAIRS: usize = 20_000;
/// Words named for each side.
const NAMED: usize = 8;

/// The baseline's result.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BagOfWords {
    /// Accuracy on held-out pairs; `None` with too little data.
    pub accuracy: Option<Share>,
    /// Pairs it was fitted to and words it knows.
    pub pairs: usize,
    pub words: usize,
    /// Words that speak most for the chosen and for the rejected side.
    pub chosen_words: Vec<String>,
    pub rejected_words: Vec<String>,
}

struct Example {
    cluster: u32,
    features: Features,
}

impl Clustered for Example {
    fn cluster(&self) -> u32 {
        self.cluster
    }
}

/// Fits and judges the baseline.
pub fn check(train: &Corpus, test: Option<&Corpus>, findings: &mut Vec<Finding>) -> BagOfWords {
    let pairs = spread(&train.pairs);
    let counts = count(train, &pairs);
    let vocabulary = Vocabulary::new(&counts);
    let examples = examples(&pairs, &counts, &vocabulary);
    let test = test.map(|corpus| {
        let pairs = spread(&corpus.pairs);
        self::examples(&pairs, &count(corpus, &pairs), &vocabulary)
    });
    let width = vocabulary.len();
    let fit = |examples: &[&Example]| linear::fit(examples.iter().map(|e| &e.features), width);
    let accuracy = held_out(Examples { train: &examples, test: test.as_deref() }, fit, |weights, example| {
        decided(example.features.dot(weights))
    });
    let weights = linear::fit(examples.iter().map(|e| &e.features), width);
    let [chosen_words, rejected_words] = named(train, &pairs, &vocabulary, &weights);
    if let Some(accuracy) = accuracy.filter(|a| a.above(LIMIT)) {
        let right = (accuracy.share * accuracy.of as f64).round() as usize;
        let what = format!(
            "a bag of words that sees no prompt tells chosen from rejected in {accuracy} of held-out pairs; for chosen: \
             {}; for rejected: {}",
            chosen_words.join(" "),
            rejected_words.join(" ")
        );
        let finding = Finding::new(Level::Warning, "bag-of-words", (right, accuracy.of), what)
            .why(
                "a trained model may score as well by style alone: only accuracy above this shows that it reads the \
                  prompt",
            )
            .advice(
                "hold every result against this figure; balance the sources of the two sides; add comparisons \
                     that only the prompt decides (`mapl data build`)",
            );
        findings.push(finding);
    }
    BagOfWords { accuracy, pairs: pairs.len(), words: width, chosen_words, rejected_words }
}

/// At most [`MAX_PAIRS`] pairs, evenly over the data.
fn spread(pairs: &[Pair]) -> Vec<Pair> {
    let kept = pairs.len().min(MAX_PAIRS);
    (0..kept).map(|i| pairs[i * pairs.len() / kept]).collect()
}

fn count(corpus: &Corpus, pairs: &[Pair]) -> Vec<[WordCounts; 2]> {
    WordCounts::of_pairs(pairs, |pair| [0, 1].map(|side| Cow::from(corpus.response(pair, side))))
}

fn examples(pairs: &[Pair], counts: &[[WordCounts; 2]], vocabulary: &Vocabulary) -> Vec<Example> {
    let example = |(pair, counts): (&Pair, &[WordCounts; 2])| Example {
        cluster: pair.cluster(),
        features: Features::new(vocabulary.difference(counts, 0)),
    };
    pairs.iter().zip(counts).map(example).collect()
}

/// The words of largest and of smallest weight. The vocabulary knows words by number, so their spelling is looked up
/// in the texts.
fn named(corpus: &Corpus, pairs: &[Pair], vocabulary: &Vocabulary, weights: &[f64]) -> [Vec<String>; 2] {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let best: Vec<usize> = order.iter().copied().filter(|&i| weights[i] > 0.0).take(NAMED).collect();
    let worst: Vec<usize> = order.iter().rev().copied().filter(|&i| weights[i] < 0.0).take(NAMED).collect();
    let mut spelling: BTreeMap<usize, String> = BTreeMap::new();
    let wanted = best.len() + worst.len();
    for pair in pairs {
        if spelling.len() == wanted {
            break;
        }
        for side in 0..2 {
            each_word(corpus.response(pair, side), |word| {
                if let Some(index) = vocabulary.index(word).map(|i| i as usize)
                    && (best.contains(&index) || worst.contains(&index))
                {
                    spelling.entry(index).or_insert_with(|| word.to_owned());
                }
            });
        }
    }
    [best, worst].map(|words| words.iter().filter_map(|index| spelling.get(index).cloned()).collect())
}
