//! Language of a text as langdetect 1.0.9 finds it (Nakatani Shuyo's language-detection): a naive
//! Bayes classifier over n-grams of one to three characters.
//!
//! ```text
//! clean the text; list its n-grams that some profile has
//! 7 times, with a smoothing a = 0.5 + 0.05 * normal:
//!     p = 1/55 each
//!     repeat: p[l] *= a / 10000 + share of a random n-gram in language l
//!             every fifth time: normalise p; stop at max p > 0.99999 or after 1000
//! the language with the largest mean of p, if above 0.1
//! ```
//!
//! langdetect draws from an unseeded generator unless `DetectorFactory.seed` is set, so a text in two
//! languages can get different verdicts in two runs. Here the seed is 0 and the draws are those of Python, so
//! the result equals langdetect's with seed 0.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

use super::mersenne::Random;
use super::tables::{Cursor, unpack};

/// Number of languages.
const LANGUAGES: usize = 55;
/// Maximum number of characters of a text that are read.
const MAX_CHARS: usize = 10_000;
const TRIALS: usize = 7;
const MAX_DRAWS: usize = 1000;
const CONVERGED: f64 = 0.99999;
const LEAST_PROBABILITY: f64 = 0.1;

/// Share of an n-gram among all n-grams of its length in one language.
struct Share {
    language: u8,
    share: f64,
}

struct Profiles {
    codes: Vec<String>,
    /// Maps the key of an n-gram to its range of `shares`.
    grams: HashMap<u64, (u32, u32)>,
    shares: Vec<Share>,
    /// Maps each ideograph to the first character of its class.
    classes: HashMap<char, char>,
}

static PROFILES: LazyLock<Profiles> = LazyLock::new(|| {
    Profiles::read(&unpack(include_bytes!("tables/languages.xz"))).expect("the committed table is complete")
});

impl Profiles {
    fn read(data: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let codes: Vec<String> = cursor.text()?.lines().map(str::to_owned).collect();
        let names: Vec<&str> = cursor.text()?.split('\n').collect();
        let mut classes = HashMap::new();
        for class in cursor.text()?.lines() {
            let first = class.chars().next()?;
            classes.extend(class.chars().map(|member| (member, first)));
        }
        let lengths: Vec<usize> = names.iter().map(|name| name.chars().count()).collect();
        let mut sizes = Vec::new();
        for _ in &codes {
            sizes.push(([cursor.number()?, cursor.number()?, cursor.number()?], cursor.number()?));
        }
        let mut places = Vec::new();
        for (totals, count) in sizes {
            let (mut at, mut list) = (0, Vec::new());
            for _ in 0..count {
                at += cursor.number()? as usize + 1;
                list.push(at - 1);
            }
            places.push((totals, list));
        }
        let mut by_gram: Vec<Vec<Share>> = names.iter().map(|_| Vec::new()).collect();
        for (language, (totals, list)) in places.into_iter().enumerate() {
            for at in list {
                let share = cursor.number()? as f64 / *totals.get(lengths.get(at)?.checked_sub(1)?)? as f64;
                by_gram.get_mut(at)?.push(Share { language: u8::try_from(language).ok()?, share });
            }
        }
        let (mut grams, mut shares) = (HashMap::with_capacity(names.len()), Vec::new());
        for (name, found) in names.into_iter().zip(by_gram) {
            let start = shares.len() as u32;
            shares.extend(found);
            grams.insert(key(name.chars()), (start, shares.len() as u32));
        }
        (codes.len() == LANGUAGES).then_some(Self { codes, grams, shares, classes })
    }
}

/// Packs an n-gram into a number, with 21 bits per character.
fn key(chars: impl Iterator<Item = char>) -> u64 {
    chars.fold(0, |key, c| (key << 21) | (u64::from(u32::from(c)) + 1))
}

/// Outcome of a detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detected {
    /// Code of a language, such as `en` or `zh-cn`.
    Language(&'static str),
    /// No language has a probability above [`LEAST_PROBABILITY`].
    Unknown,
    /// The text has no n-gram of any language; the official checkers count this as followed.
    NoFeatures,
}

impl Detected {
    /// Whether this result satisfies a checker that asks for language `code`.
    pub(super) fn is(self, code: &str) -> bool {
        match self {
            Self::Language(found) => found == code,
            Self::Unknown => code == "unknown",
            Self::NoFeatures => true,
        }
    }
}

/// Detects the language of a text. Except for the cleaning, the time is bounded for texts of any length.
pub(super) fn detect(text: &str) -> Detected {
    let profiles = &*PROFILES;
    let grams = grams(&cleaned(text), profiles);
    if grams.is_empty() {
        return Detected::NoFeatures;
    }
    let mut random = Random::new(0);
    let mut mean = [0.0; LANGUAGES];
    for _ in 0..TRIALS {
        let mut p = [1.0 / LANGUAGES as f64; LANGUAGES];
        let smoothing = 0.5 + random.normal() * 0.05;
        for draw in 0.. {
            let (start, end) = grams[random.below(grams.len())];
            let mut factor = [smoothing / 10_000.0; LANGUAGES];
            for found in &profiles.shares[start as usize..end as usize] {
                factor[usize::from(found.language)] += found.share;
            }
            p.iter_mut().zip(factor).for_each(|(p, factor)| *p *= factor);
            if draw % 5 == 0 && (normalise(&mut p) > CONVERGED || draw >= MAX_DRAWS) {
                break;
            }
        }
        mean.iter_mut().zip(p).for_each(|(mean, p)| *mean += p / TRIALS as f64);
    }
    let mut best = Detected::Unknown;
    let mut highest = LEAST_PROBABILITY;
    for (code, p) in profiles.codes.iter().zip(mean) {
        if p > highest {
            (best, highest) = (Detected::Language(code), p);
        }
    }
    best
}

/// Divides the probabilities by their sum, and returns the largest of them.
fn normalise(p: &mut [f64; LANGUAGES]) -> f64 {
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p.iter().copied().fold(0.0, f64::max)
}

/// Removes addresses, composes Vietnamese letters, merges spaces, and removes Latin letters from
/// text that is mostly in another script.
fn cleaned(text: &str) -> Vec<char> {
    static URL: LazyLock<Regex> = LazyLock::new(|| pattern(r"https?://[-_.?&~;+=/#0-9A-Za-z]{1,2076}"));
    static MAIL: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"[-_.0-9A-Za-z]{1,64}@[-_0-9A-Za-z]{1,255}[-_.0-9A-Za-z]{1,255}"));
    let text = URL.replace_all(text, " ");
    let text = MAIL.replace_all(&text, " ");
    let mut kept = Vec::new();
    let mut before = None;
    for c in composed(&text).take(MAX_CHARS) {
        if c != ' ' || before != Some(' ') {
            kept.push(c);
        }
        before = Some(c);
    }
    let latin = |c: char| ('A'..='z').contains(&c);
    let other = |c: char| c >= '\u{300}' && !('\u{1E00}'..='\u{1EFF}').contains(&c);
    let count = |is: &dyn Fn(char) -> bool| kept.iter().filter(|&&c| is(c)).count();
    if count(&latin) * 2 < count(&other) {
        kept.retain(|&c| !latin(c));
    }
    kept
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is constant and valid")
}

/// Vietnamese letters that combine with a tone mark, and the composed letters for each tone mark.
const BASES: &str = "AEIOUYaeiouyÂÊÔâêôĂăƠơƯư";
const TONES: [(char, &str); 5] = [
    ('\u{300}', "ÀÈÌÒÙỲàèìòùỳẦỀỒầềồẰằỜờỪừ"),
    ('\u{301}', "ÁÉÍÓÚÝáéíóúýẤẾỐấếốẮắỚớỨứ"),
    ('\u{303}', "ÃẼĨÕŨỸãẽĩõũỹẪỄỖẫễỗẴẵỠỡỮữ"),
    ('\u{309}', "ẢẺỈỎỦỶảẻỉỏủỷẨỂỔẩểổẲẳỞởỬử"),
    ('\u{323}', "ẠẸỊỌỤỴạẹịọụỵẬỆỘậệộẶặỢợỰự"),
];

fn composed(text: &str) -> impl Iterator<Item = char> + '_ {
    let mut chars = text.chars().peekable();
    std::iter::from_fn(move || {
        let c = chars.next()?;
        let both = chars.peek().and_then(|mark| {
            let (_, results) = TONES.iter().find(|(tone, _)| tone == mark)?;
            results.chars().nth(BASES.chars().position(|base| base == c)?)
        });
        if both.is_some() {
            chars.next();
        }
        Some(both.unwrap_or(c))
    })
}

/// Returns the range of `shares` of each n-gram of the text that a profile has, in order. A word in capitals
/// gives no n-gram after its first letter.
fn grams(text: &[char], profiles: &Profiles) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    let mut last = vec![' '];
    let mut capitals = false;
    for &c in text {
        let c = normal_form(c, profiles);
        let before = *last.last().unwrap_or(&' ');
        if before == ' ' {
            last.clear();
            last.push(' ');
            capitals = false;
            if c == ' ' {
                continue;
            }
        } else if last.len() == 3 {
            last.remove(0);
        }
        last.push(c);
        capitals = c.is_uppercase() && (before.is_uppercase() || capitals);
        if capitals {
            continue;
        }
        for length in 1..=last.len() {
            let gram = &last[last.len() - length..];
            if gram != [' '] {
                found.extend(profiles.grams.get(&key(gram.iter().copied())));
            }
        }
    }
    found
}

/// Maps characters that do not distinguish languages to one representative.
fn normal_form(c: char, profiles: &Profiles) -> char {
    match c {
        'A'..='Z' | 'a'..='z' => c,
        '\0'..='\u{7F}' => ' ',
        '\u{A0}' | '«' | '°' | '»' => ' ',
        // Romanian letters with a comma below become letters with a cedilla.
        'ș' => 'ş',
        'ț' => 'ţ',
        '\u{2000}'..='\u{206F}' => ' ',
        // Persian yeh becomes Arabic yeh.
        '\u{6CC}' => '\u{64A}',
        '\u{1EA0}'..='\u{1EFF}' => 'ể',
        '\u{3040}'..='\u{309F}' => 'あ',
        '\u{30A0}'..='\u{30FF}' => 'ア',
        '\u{3100}'..='\u{312F}' | '\u{31A0}'..='\u{31BF}' => 'ㄅ',
        '\u{4E00}'..='\u{9FFF}' => profiles.classes.get(&c).copied().unwrap_or(c),
        '\u{AC00}'..='\u{D7AF}' => '가',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_those_of_langdetect() {
        for (text, expected) in [
            ("War doesn't show who's right, just who's left.", "en"),
            ("Ein, zwei, drei, vier", "de"),
            ("यह एक वाक्य है", "hi"),
            ("हे एक वाक्य आहे आणि मी मराठी बोलतो", "mr"),
            ("今天天气很好，我们去公园吧", "zh-cn"),
            ("오늘 날씨가 좋다", "ko"),
        ] {
            assert_eq!(detect(text), Detected::Language(expected), "{text}");
        }
        for text in ["", "123 ?!", "* * *"] {
            assert_eq!(detect(text), Detected::NoFeatures, "{text}");
        }
    }
}
