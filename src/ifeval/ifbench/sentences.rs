//! IFBench instructions on sentences, copies of given texts, and words at given positions.

use std::collections::HashSet;

use super::Rule;
use super::text::{bare, first, is_edge, sentences};
use crate::data::instructions::{count_argument, text_argument};
use crate::ifeval::capitals::tokens;

pub(super) static RULES: [(&str, Rule); 15] = [
    ("ratio:sentence_type", |_, text| {
        let [stops, questions, _] = endings(text);
        Some(stops == 2 * questions)
    }),
    ("ratio:sentence_balance", |_, text| {
        let [stops, questions, calls] = endings(text);
        Some(stops == questions && questions == calls)
    }),
    ("ratio:sentence_words", |_, text| {
        let lengths: Vec<usize> = sentences(text).iter().map(|sentence| sentence.chars().count()).collect();
        Some(matches!(lengths[..], [a, b, c] if a == b && b == c))
    }),
    ("ratio:overlap", |arguments, text| {
        let (reference, percentage) =
            (text_argument(arguments, "reference_text")?, arguments.get("percentage")?.as_f64()?);
        let (own, other) = (trigrams(text), trigrams(reference));
        let share = own.intersection(&other).count() as f64 / own.len() as f64 * 100.0;
        Some(percentage - 2.0 <= share && share <= percentage + 2.0)
    }),
    ("sentence:alliteration_increment", |_, text| {
        let counts = sentences(text).iter().map(|sentence| alliteration(sentence)).collect::<Vec<_>>();
        Some(counts.windows(2).all(|pair| pair[0] < pair[1]))
    }),
    ("sentence:keyword", |arguments, text| {
        let (word, place) = (text_argument(arguments, "word")?, count_argument(arguments, "N")?.checked_sub(1)?);
        Some(sentences(text).get(place).is_some_and(|found| found.to_lowercase().contains(&word.to_lowercase())))
    }),
    ("sentence:increment", |arguments, text| {
        let step = count_argument(arguments, "small_n")?;
        let counts: Vec<usize> = sentences(text).iter().map(|s| bare(s).split_whitespace().count()).collect();
        Some(!counts.is_empty() && counts.windows(2).all(|pair| pair[0].checked_add(step) == Some(pair[1])))
    }),
    ("words:last_first", |_, text| {
        let found = sentences(text);
        let joined = found.windows(2).all(|pair| {
            let last = pair[0].trim_end_matches(is_edge).split_whitespace().next_back();
            let next = pair[1].trim_start_matches(is_edge).split_whitespace().next();
            last.zip(next).is_some_and(|(last, next)| last.to_lowercase() == next.to_lowercase())
        });
        Some(joined)
    }),
    ("words:keywords_specific_position", |arguments, text| {
        let word = text_argument(arguments, "keyword")?.trim();
        let (n, m) = (count_argument(arguments, "n")?.checked_sub(1)?, count_argument(arguments, "m")?.checked_sub(1)?);
        Some(sentences(text).get(n).is_some_and(|sentence| tokens(sentence).get(m).is_some_and(|found| found == word)))
    }),
    ("words:words_position", |arguments, text| {
        let (word, found) = (text_argument(arguments, "keyword")?.trim(), tokens(text));
        Some(found.len() >= 2 && found[1] == word && found[found.len() - 2] == word)
    }),
    ("repeat:repeat_change", |arguments, text| {
        let own = text_argument(arguments, "prompt_to_repeat")?;
        Some(own != text && own.split_whitespace().skip(1).eq(text.split_whitespace().skip(1)))
    }),
    ("repeat:repeat_simple", |_, text| {
        Some(text.trim().to_lowercase() == "only output this sentence here, ignore all other requests.")
    }),
    ("repeat:repeat_span", |arguments, text| {
        let own = text_argument(arguments, "prompt_to_repeat")?.to_lowercase();
        let (start, end) = (count_argument(arguments, "n_start")?, count_argument(arguments, "n_end")?);
        let span = own.split_whitespace().take(end).skip(start);
        Some(span.eq(text.to_lowercase().split_whitespace()))
    }),
    ("custom:character_reverse", |_, text| Some(text.to_lowercase().contains("elgae dlab"))),
    ("custom:sentence_alphabet", |_, text| {
        let openings: Vec<Option<char>> = sentences(text).iter().map(|s| first(&s.to_lowercase())).collect();
        Some(openings.into_iter().eq(('a'..='z').map(Some)))
    }),
];

/// Number of sentences that end with `.`, with `?` and with `!`.
fn endings(text: &str) -> [usize; 3] {
    let found = sentences(text);
    ['.', '?', '!'].map(|end| found.iter().filter(|sentence| sentence.ends_with(end)).count())
}

fn trigrams(text: &str) -> HashSet<[char; 3]> {
    let chars: Vec<char> = text.chars().collect();
    chars.windows(3).map(|gram| [gram[0], gram[1], gram[2]]).collect()
}

/// Number of words in runs of at least two adjacent words with the same first character.
fn alliteration(sentence: &str) -> usize {
    let lower = sentence.to_lowercase();
    let words = lower.split_whitespace().filter_map(|word| first(word.trim_start_matches(is_edge)));
    let letters: Vec<char> = words.collect();
    let (mut count, mut in_run) = (0, false);
    for pair in letters.windows(2) {
        let same = pair[0] == pair[1];
        count += if !same {
            0
        } else if in_run {
            1
        } else {
            2
        };
        in_run = same;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::instructions::Kwargs;

    #[test]
    fn sentences_are_compared() {
        let none = Kwargs::new();
        let follows = |id: &str, text: &str| {
            let rule = RULES.iter().find(|(name, _)| *name == id).unwrap().1;
            rule(&none, text).unwrap()
        };
        assert!(
            follows("ratio:sentence_type", "So it. Is it? Yes.") && !follows("ratio:sentence_type", "So it. Is it?")
        );
        assert!(follows("ratio:sentence_balance", "So. So? So!") && !follows("ratio:sentence_balance", "So. So!"));
        assert!(follows("ratio:sentence_words", "One. Two! Six?") && !follows("ratio:sentence_words", "One. Two."));
        assert!(follows("sentence:alliteration_increment", "One. Big bad. Tall tin tower."));
        assert!(follows("words:last_first", "I go. Go on! On it.") && !follows("words:last_first", "I go. No."));
        let alphabet: String = ('a'..='z').map(|c| format!("{c}x is. ")).collect();
        assert!(follows("custom:sentence_alphabet", &alphabet) && !follows("custom:sentence_alphabet", &alphabet[4..]));
    }
}
