//! Baseline accuracy of a bag-of-words model: a linear model that sees no prompt and no word order.
//! A trained model can reach the same accuracy without reading the prompt.

use std::collections::BTreeMap;

use serde::Serialize;

use super::corpus::{Corpus, Pair};
use super::finding::{Finding, Level};
use super::holdout::{Example, Examples, correctness, held_out};
use super::interval::Share;
use super::linear::{self, Features};
use super::words::{Vocabulary, WordCounts, each_word};

/// The check warns if the lower end of the accuracy's 95 % interval is above this limit. A baseline that orders
/// fewer than three pairs in five correctly leaves most of the learning to other features.
const LIMIT: f64 = 0.6;
/// Maximum number of pairs used, spaced evenly over the data. More pairs change the accuracy by
/// less than a point.
const MAX_PAIRS: usize = 20_000;
/// Maximum number of words named per side.
const MAX_NAMED: usize = 8;

/// Result of the baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BagOfWords {
    /// Accuracy on held-out pairs; `None` with too little data.
    pub accuracy: Option<Share>,
    /// Number of pairs the model was fitted to, and size of its vocabulary.
    pub pairs: usize,
    pub words: usize,
    /// Words with the largest weights towards the chosen and the rejected side.
    pub chosen_words: Vec<String>,
    pub rejected_words: Vec<String>,
}

/// Fits and evaluates the baseline.
pub(super) fn check(train: &Corpus, test: Option<&Corpus>, findings: &mut Vec<Finding>) -> BagOfWords {
    let pairs = subsample(&train.pairs);
    let counts = count(train, &pairs);
    let vocabulary = Vocabulary::new(&counts);
    let examples = examples(&pairs, &counts, &vocabulary);
    let test = test.map(|corpus| {
        let pairs = subsample(&corpus.pairs);
        self::examples(&pairs, &count(corpus, &pairs), &vocabulary)
    });
    let width = vocabulary.len();
    let fit = |examples: &[&Example<Features>]| linear::fit(examples.iter().map(|e| &e.value), width);
    let accuracy = held_out(Examples { train: &examples, test: test.as_deref() }, fit, |weights, example| {
        correctness(example.value.dot(weights))
    });
    let weights = linear::fit(examples.iter().map(|e| &e.value), width);
    let [chosen_words, rejected_words] = named(train, &pairs, &vocabulary, &weights);
    if let Some(accuracy) = accuracy.filter(|a| a.above(LIMIT)) {
        let right = (accuracy.share * accuracy.of as f64).round() as usize;
        let what = format!(
            "a bag-of-words model without the prompt separates chosen from rejected in {accuracy} of held-out pairs; words \
             for chosen: {}; for rejected: {}",
            chosen_words.join(" "),
            rejected_words.join(" ")
        );
        let finding = Finding::new(Level::Warning, "bag-of-words", (right, accuracy.of), what)
            .why(
                "a trained model can reach this accuracy by style only; accuracy above it shows that the model reads \
                 the prompt",
            )
            .advice(
                "compare every result with this figure; balance the sources of the two sides; add comparisons that \
                 only the prompt decides (`mapl data build`)",
            );
        findings.push(finding);
    }
    BagOfWords { accuracy, pairs: pairs.len(), words: width, chosen_words, rejected_words }
}

/// Selects at most [`MAX_PAIRS`] pairs, spaced evenly over the data.
fn subsample(pairs: &[Pair]) -> Vec<Pair> {
    let kept = pairs.len().min(MAX_PAIRS);
    (0..kept).map(|i| pairs[i * pairs.len() / kept]).collect()
}

fn count(corpus: &Corpus, pairs: &[Pair]) -> Vec<[WordCounts; 2]> {
    WordCounts::of_pairs(pairs, |pair| [0, 1].map(|side| corpus.response(pair, side)))
}

fn examples(pairs: &[Pair], counts: &[[WordCounts; 2]], vocabulary: &Vocabulary) -> Vec<Example<Features>> {
    let example = |(pair, counts): (&Pair, &[WordCounts; 2])| Example {
        cluster: pair.cluster(),
        value: Features::new(vocabulary.difference(counts, 0)),
    };
    pairs.iter().zip(counts).map(example).collect()
}

/// Returns the words with the largest and the smallest weights. The vocabulary stores hashes, so
/// the spelling is looked up in the texts.
fn named(corpus: &Corpus, pairs: &[Pair], vocabulary: &Vocabulary, weights: &[f64]) -> [Vec<String>; 2] {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let best: Vec<usize> = order.iter().copied().filter(|&i| weights[i] > 0.0).take(MAX_NAMED).collect();
    let worst: Vec<usize> = order.iter().rev().copied().filter(|&i| weights[i] < 0.0).take(MAX_NAMED).collect();
    let mut spelling: BTreeMap<usize, String> = BTreeMap::new();
    let wanted = best.len() + worst.len();
    for pair in pairs {
        if spelling.len() == wanted {
            break;
        }
        for side in 0..2 {
            each_word(&corpus.response(pair, side), |word| {
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
