//! Lower-case words of a text as 64-bit hashes, for the bag-of-words baselines. Counting needs no
//! vocabulary, so all rows are counted in parallel.

use std::collections::HashMap;

use rayon::prelude::*;

/// Maximum number of words in a vocabulary, which keeps the most frequent ones.
const MAX_WORDS: usize = 50_000;
/// Minimum number of examples with a word. A rarer word could be memorised and says nothing about
/// other prompts.
const MIN_EXAMPLES: u32 = 3;

/// Calls `f` with every word: a run of letters, digits and underscores, or a single character in
/// scripts without spaces.
pub(super) fn each_word(text: &str, mut f: impl FnMut(&str)) {
    let mut word = String::new();
    for c in text.chars() {
        if (c.is_alphanumeric() || c == '_') && !is_unspaced(c) {
            word.extend(c.to_lowercase());
            continue;
        }
        if !word.is_empty() {
            f(&word);
            word.clear();
        }
        if is_unspaced(c) {
            f(c.encode_utf8(&mut [0; 4]));
        }
    }
    if !word.is_empty() {
        f(&word);
    }
}

/// True for characters of Chinese, Japanese and Thai, which are written without spaces between
/// words.
fn is_unspaced(c: char) -> bool {
    matches!(c as u32, 0x0e01..=0x0e30 | 0x3041..=0x30ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff
        | 0x20000..=0x323af)
}

/// 64-bit FNV-1a hash.
pub(super) fn hash(word: &str) -> u64 {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Word hashes of a text with their counts, in ascending order of hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WordCounts(pub Vec<(u64, u32)>);

impl WordCounts {
    pub fn new(text: &str) -> Self {
        let mut words = Vec::new();
        each_word(text, |word| words.push(hash(word)));
        words.sort_unstable();
        let mut counts: Vec<(u64, u32)> = Vec::new();
        for word in words {
            match counts.last_mut() {
                Some((last, count)) if *last == word => *count += 1,
                _ => counts.push((word, 1)),
            }
        }
        Self(counts)
    }

    /// Counts the words of the two texts of every example in parallel.
    pub fn of_pairs<'a, T: Sync>(
        examples: &[T],
        texts: impl Fn(&T) -> [std::borrow::Cow<'a, str>; 2] + Sync,
    ) -> Vec<[Self; 2]> {
        examples.par_iter().map(|example| texts(example).map(|text| Self::new(&text))).collect()
    }
}

/// Maps the hash of each kept word to its index.
pub(super) struct Vocabulary(HashMap<u64, u32>);

impl Vocabulary {
    /// Keeps the words of at least [`MIN_EXAMPLES`] examples, most frequent first.
    pub fn new(examples: &[[WordCounts; 2]]) -> Self {
        let mut frequency: HashMap<u64, u32> = HashMap::new();
        for [a, b] in examples {
            for (word, _) in a.0.iter().chain(b.0.iter().filter(|(w, _)| a.0.binary_search_by_key(w, |x| x.0).is_err()))
            {
                *frequency.entry(*word).or_default() += 1;
            }
        }
        let mut kept: Vec<(u32, u64)> =
            frequency.into_iter().filter(|&(_, n)| n >= MIN_EXAMPLES).map(|(word, n)| (n, word)).collect();
        kept.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        kept.truncate(MAX_WORDS);
        Self(kept.into_iter().enumerate().map(|(i, (_, word))| (word, i as u32)).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the index of a kept word.
    pub fn index(&self, word: &str) -> Option<u32> {
        self.0.get(&hash(word)).copied()
    }

    /// Returns `ln(1 + count)` of each word of the first text minus the same of the second, with
    /// indices from `offset`. The logarithm makes the tenth use of a word count less than the
    /// first.
    pub fn difference(&self, [a, b]: &[WordCounts; 2], offset: u32) -> Vec<(u32, f64)> {
        let signed = [(a, 1.0), (b, -1.0)];
        let one = |(counts, sign): (&WordCounts, f64)| -> Vec<(u32, f64)> {
            let known = counts.0.iter().filter_map(|&(word, n)| Some((self.0.get(&word)? + offset, n)));
            known.map(|(index, n)| (index, sign * f64::from(n).ln_1p())).collect()
        };
        signed.into_iter().flat_map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_lower_case_runs_and_single_characters_of_unspaced_scripts() {
        let mut words = Vec::new();
        each_word("Don't STOP, x_1: 漢字と wörd", |word| words.push(word.to_owned()));
        assert_eq!(words, ["don", "t", "stop", "x_1", "漢", "字", "と", "wörd"]);
    }

    #[test]
    fn rare_words_are_left_out_and_equal_counts_cancel() {
        let pair = |a: &str, b: &str| [a, b].map(WordCounts::new);
        let examples = vec![pair("one two", "two"), pair("one", "two one"), pair("two one", "rare")];
        let vocabulary = Vocabulary::new(&examples);
        assert_eq!((vocabulary.len(), vocabulary.index("rare")), (2, None));
        let sum = |pair: &[WordCounts; 2]| vocabulary.difference(pair, 0).iter().map(|(_, v)| v).sum::<f64>();
        assert_eq!(sum(&pair("one two", "two one")), 0.0);
        assert!((sum(&pair("one one one", "")) - 4f64.ln()).abs() < 1e-12);
    }
}
