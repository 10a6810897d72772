//! Length bias: whether the longer response is the chosen one, in characters, words and (with a
//! tokenizer) tokens, and the accuracy of a rule that uses only lengths.

use serde::Serialize;

use super::corpus::{Corpus, Pair};
use super::finding::{Finding, Level, Place};
use super::holdout::{Examples, SignedValue, sign_rule};
use super::interval::{Mean, Share, mean, share};

/// Share of pairs with a longer chosen response, or with a longer rejected one, above which the
/// check warns; the whole interval must be above. Nearly all real data has a smaller length bias,
/// with little effect.
const LIMIT: f64 = 0.55;

/// Lengths of the two sides in one unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    /// `characters`, `words` or `tokens`.
    pub unit: &'static str,
    pub chosen_longer: usize,
    pub rejected_longer: usize,
    pub ties: usize,
    /// Share of pairs with a longer chosen response among pairs of different lengths.
    pub longer_share: Option<Share>,
    pub mean_chosen: f64,
    pub mean_rejected: f64,
    /// Mean of chosen minus rejected length.
    pub difference: Option<Mean>,
    /// Held-out accuracy of "the longer one wins" or "the shorter one wins"; a tie counts one half.
    pub accuracy: Option<Share>,
}

/// Lengths of the chosen and the rejected response of every pair, in the order of [`Corpus::pairs`]; `None` for
/// a pair of unknown lengths.
pub(super) type PairLengths = Vec<Option<[usize; 2]>>;

/// Measures lengths in characters and words, and in tokens if `tokens` is given.
pub(super) fn check(
    train: &Corpus,
    test: Option<&Corpus>,
    tokens: Option<(PairLengths, Option<PairLengths>)>,
    findings: &mut Vec<Finding>,
) -> Vec<Lengths> {
    let measure = |unit, measure: fn(&str) -> usize| {
        let of = |corpus: &Corpus| -> PairLengths {
            let lengths = |pair| Some([0, 1].map(|side| measure(&corpus.response(pair, side))));
            corpus.pairs.iter().map(lengths).collect()
        };
        lengths(unit, (train, &of(train)), test.map(|test| (test, of(test))))
    };
    let mut all =
        vec![measure("characters", |text| text.chars().count()), measure("words", |t| t.split_whitespace().count())];
    if let Some((of_train, of_test)) = tokens {
        all.push(lengths("tokens", (train, &of_train), test.zip(of_test)));
    }
    // A model sees tokens; without a tokenizer, characters approximate them.
    let unit = if all.len() > 2 { 2 } else { 0 };
    if let Some(finding) = finding(train, &all[unit], &all[1]) {
        findings.push(finding);
    }
    all
}

fn lengths(unit: &'static str, train: (&Corpus, &PairLengths), test: Option<(&Corpus, PairLengths)>) -> Lengths {
    let known: Vec<(u32, [usize; 2])> =
        train.0.pairs.iter().zip(train.1).filter_map(|(pair, lengths)| Some((pair.cluster(), (*lengths)?))).collect();
    let count = |test: fn(usize, usize) -> bool| known.iter().filter(|(_, [a, b])| test(*a, *b)).count();
    let different = known.iter().filter(|(_, [a, b])| a != b);
    let average = |side: usize| match known.len() {
        0 => 0.0,
        n => known.iter().map(|(_, lengths)| lengths[side]).sum::<usize>() as f64 / n as f64,
    };
    let difference = |[chosen, rejected]: [usize; 2]| chosen as f64 - rejected as f64;
    let signed_values = |pairs: &[Pair], lengths: &PairLengths| -> Vec<SignedValue> {
        let known = pairs.iter().zip(lengths).filter_map(|(pair, lengths)| Some((pair.cluster(), (*lengths)?)));
        known.map(|(cluster, lengths)| SignedValue { cluster, value: difference(lengths) }).collect()
    };
    let of_train = signed_values(&train.0.pairs, train.1);
    let of_test = test.map(|(corpus, lengths)| signed_values(&corpus.pairs, &lengths));
    Lengths {
        unit,
        chosen_longer: count(|a, b| a > b),
        rejected_longer: count(|a, b| a < b),
        ties: count(|a, b| a == b),
        longer_share: share(different.map(|(cluster, [a, b])| (*cluster, f64::from(u8::from(a > b))))),
        mean_chosen: average(0),
        mean_rejected: average(1),
        difference: mean(known.iter().map(|(cluster, lengths)| (*cluster, difference(*lengths)))),
        accuracy: sign_rule(Examples { train: &of_train, test: of_test.as_deref() }),
    }
}

fn finding(corpus: &Corpus, lengths: &Lengths, words: &Lengths) -> Option<Finding> {
    let share = lengths.longer_share?;
    let (count, side, other) = if share.above(LIMIT) {
        (lengths.chosen_longer, "chosen", "rejected")
    } else if share.below(1.0 - LIMIT) {
        (lengths.rejected_longer, "rejected", "chosen")
    } else {
        return None;
    };
    let of = lengths.chosen_longer + lengths.rejected_longer;
    let accuracy = lengths
        .accuracy
        .map_or(String::new(), |a| format!("; a rule that uses only length predicts {a} of held-out pairs correctly"));
    let what = format!(
        "the {side} response is longer than the {other} one in {count} of {of} pairs of different lengths ({}), measured \
         in {}; mean lengths {:.0} and {:.0} words{accuracy}",
        super::finding::share_percent(count as f64 / of as f64),
        lengths.unit,
        words.mean_chosen,
        words.mean_rejected
    );
    // The pairs with the largest difference serve as examples.
    let mut order: Vec<(usize, &Pair)> = corpus
        .pairs
        .iter()
        .map(|pair| {
            let [a, b] = [0, 1].map(|side| corpus.response(pair, side).len());
            (if side == "chosen" { a.saturating_sub(b) } else { b.saturating_sub(a) }, pair)
        })
        .collect();
    order.sort_by_key(|&(excess, _)| std::cmp::Reverse(excess));
    let place = |(_, pair): &(usize, &Pair)| {
        let [a, b] = [0, 1].map(|side| corpus.response(pair, side).chars().count());
        Place::row(corpus, pair.row).with(format!("chosen {a}, rejected {b} characters"))
    };
    let finding = Finding::new(Level::Warning, "length-bias", (count, of), what)
        .why("reward models and DPO policies learn length first: answers become longer without becoming better")
        .advice(
            "also evaluate on pairs of similar lengths; drop the pairs with the largest difference; train with \
             --objective rc or mapl, which add comparisons in which the prompt decides the right length",
        )
        .places(order.iter().map(place));
    Some(finding)
}
