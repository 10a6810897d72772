//! IFBench instructions on counts, lengths and orders of words.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use regex::Regex;

use super::Rule;
use super::text::{bare, first, pattern, trimmed};
use crate::data::instructions::{Analysis, count_argument, text_argument};

pub(super) static RULES: [(&str, Rule); 18] = [
    ("count:word_count_range", |arguments, text| {
        let count = Analysis::new(text).word_count();
        Some((count_argument(arguments, "min_words")?..=count_argument(arguments, "max_words")?).contains(&count))
    }),
    ("count:unique_word_count", |arguments, text| {
        let lower = text.to_lowercase();
        let words: HashSet<&str> = lower.split_whitespace().map(trimmed).collect();
        Some(words.len() >= count_argument(arguments, "N")?)
    }),
    ("count:conjunctions", |arguments, text| {
        let is_one =
            |word: &&str| matches!(&*trimmed(word).to_lowercase(), "and" | "but" | "for" | "nor" | "or" | "so" | "yet");
        // Words are compared as written, because the checker counts `and` and `and,` as two.
        let words: HashSet<&str> = text.split_whitespace().filter(is_one).collect();
        Some(words.len() >= count_argument(arguments, "small_n")?)
    }),
    ("count:person_names", |arguments, text| {
        Some(NAMES.iter().filter(|name| text.contains(**name)).count() >= count_argument(arguments, "N")?)
    }),
    ("count:numbers", |arguments, text| {
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"\d+"));
        Some(NUMBER.find_iter(&bare(text)).count() == count_argument(arguments, "N")?)
    }),
    ("count:pronouns", |arguments, text| {
        let text = bare(&text.replace('/', " ").to_lowercase());
        let count = text.split_whitespace().filter(|word| PRONOUNS.contains(word)).count();
        Some(count >= count_argument(arguments, "N")?)
    }),
    ("count:keywords_multiple", |arguments, text| {
        let lower = text.to_lowercase();
        let keys = ["keyword1", "keyword2", "keyword3", "keyword4", "keyword5"];
        let words = keys.iter().map(|key| text_argument(arguments, key)).collect::<Option<Vec<_>>>()?;
        let counts = words.iter().map(|word| lower.matches(&word.trim().to_lowercase()).count());
        Some(counts.eq([1, 2, 3, 5, 7]))
    }),
    ("count:words_japanese", |arguments, text| {
        let every = count_argument(arguments, "N")?.max(1);
        let japanese = |c: char| matches!(c, '\u{3040}'..='\u{30FF}' | '\u{4E00}'..='\u{9FFF}');
        let mut words = text.split_whitespace().map(trimmed).skip(every - 1).step_by(every);
        Some(words.all(|word| word.contains(japanese) || word.chars().all(char::is_numeric)))
    }),
    ("words:alphabet", |_, text| {
        let lower = bare(text).to_lowercase();
        let mut letters = lower.split_whitespace().filter_map(first);
        let Some(start) = letters.next().filter(char::is_ascii_lowercase) else { return Some(false) };
        let following = (u8::try_from(start).ok()?..=b'z').chain((b'a'..=b'z').cycle()).skip(1);
        Some(letters.zip(following).all(|(letter, wanted)| letter == char::from(wanted)))
    }),
    ("words:vowel", |_, text| {
        let text = text.trim().to_lowercase();
        let vowels: HashSet<char> = text.chars().filter(|c| "aeiou".contains(*c)).collect();
        Some(!text.contains('\n') && vowels.len() <= 3)
    }),
    ("words:consonants", |_, text| {
        static CLUSTER: LazyLock<Regex> = LazyLock::new(|| pattern("[bcdfghj-np-tv-z]{2}"));
        Some(text.to_lowercase().split_whitespace().all(|word| CLUSTER.is_match(word)))
    }),
    ("words:palindrome", |_, text| {
        let lower = bare(text).to_lowercase();
        let is_one = |word: &&str| word.chars().nth(4).is_some() && word.chars().eq(word.chars().rev());
        Some(lower.split_whitespace().filter(is_one).count() >= 10)
    }),
    ("words:prime_lengths", |_, text| {
        let prime = |n: usize| (2..=97).contains(&n) && (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        Some(bare(text).split_whitespace().all(|word| prime(word.chars().count())))
    }),
    ("words:repeats", |arguments, text| {
        let most = count_argument(arguments, "small_n")?;
        let lower = bare(&text.to_lowercase());
        let mut counts: HashMap<&str, usize> = HashMap::new();
        lower.split_whitespace().for_each(|word| *counts.entry(word).or_default() += 1);
        Some(counts.values().all(|count| *count <= most))
    }),
    ("words:no_consecutive", |_, text| {
        let lower = bare(&text.to_lowercase());
        let letters: Vec<Option<char>> = lower.split_whitespace().map(first).collect();
        Some(letters.windows(2).all(|pair| pair[0] != pair[1]))
    }),
    ("words:paragraph_last_first", |_, text| {
        let same = |paragraph: &str| {
            let lower = paragraph.trim().to_lowercase();
            let mut words = trimmed(&lower).split_whitespace();
            let opening = words.next();
            lower.is_empty() || (opening.is_some() && opening == words.next_back().or(opening))
        };
        Some(text.split('\n').all(same))
    }),
    ("custom:multiples", |_, text| {
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"\d+"));
        Some(NUMBER.find_iter(text).map(|found| found.as_str()).eq(["14", "21", "28", "35", "42", "49"]))
    }),
    ("custom:word_reverse", |_, text| {
        let lower = bare(text.to_lowercase().trim());
        let words: Vec<&str> = lower.split_whitespace().rev().collect();
        Some(words.join(" ").contains("bald eagle"))
    }),
];

const NAMES: [&str; 50] = [
    "Emma",
    "Liam",
    "Sophia",
    "Jackson",
    "Olivia",
    "Noah",
    "Ava",
    "Lucas",
    "Isabella",
    "Mason",
    "Mia",
    "Ethan",
    "Charlotte",
    "Alexander",
    "Amelia",
    "Benjamin",
    "Harper",
    "Leo",
    "Zoe",
    "Daniel",
    "Chloe",
    "Samuel",
    "Lily",
    "Matthew",
    "Grace",
    "Owen",
    "Abigail",
    "Gabriel",
    "Ella",
    "Jacob",
    "Scarlett",
    "Nathan",
    "Victoria",
    "Elijah",
    "Layla",
    "Nicholas",
    "Audrey",
    "David",
    "Hannah",
    "Christopher",
    "Penelope",
    "Thomas",
    "Nora",
    "Andrew",
    "Aria",
    "Joseph",
    "Claire",
    "Ryan",
    "Stella",
    "Jonathan",
];

const PRONOUNS: [&str; 31] = [
    "i",
    "me",
    "my",
    "mine",
    "myself",
    "we",
    "us",
    "our",
    "ours",
    "ourselves",
    "you",
    "your",
    "yours",
    "yourself",
    "yourselves",
    "he",
    "him",
    "his",
    "himself",
    "she",
    "her",
    "hers",
    "herself",
    "it",
    "its",
    "itself",
    "they",
    "them",
    "their",
    "theirs",
    "themselves",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::instructions::Kwargs;

    #[test]
    fn words_are_counted_and_ordered() {
        let none = Kwargs::new();
        let follows = |id: &str, text: &str| {
            let rule = RULES.iter().find(|(name, _)| *name == id).unwrap().1;
            rule(&none, text).unwrap()
        };
        assert!(follows("words:alphabet", "Yes, zebras ate (big) cats.") && !follows("words:alphabet", "a c"));
        assert!(!follows("words:alphabet", "1 a") && !follows("words:alphabet", "..."));
        assert!(
            follows("words:vowel", "a e i AEI")
                && !follows("words:vowel", "a e i o")
                && !follows("words:vowel", "a\nb")
        );
        assert!(follows("words:consonants", "strong plants") && !follows("words:consonants", "strong tea"));
        assert!(
            follows("words:palindrome", &"Level, ".repeat(10)) && !follows("words:palindrome", &"noon ".repeat(10))
        );
        assert!(follows("words:prime_lengths", "it was, there") && !follows("words:prime_lengths", "a four"));
        assert!(follows("words:no_consecutive", "one two") && !follows("words:no_consecutive", "two, Ten"));
        assert!(
            follows("words:paragraph_last_first", "so it was so.\n\nBye")
                && !follows("words:paragraph_last_first", "***")
        );
        assert!(follows("custom:multiples", "14, 21,28 35 42 49") && !follows("custom:multiples", "14 21"));
        assert!(follows("custom:word_reverse", "Eagle bald the is it."));
    }
}
