//! IFEval family `startend`: last phrase of a response; quotation marks around the response.

use super::wording::pick;
use super::{Analysis, Function, FunctionKind, Kwargs, Request, kwargs, no_arguments, text_argument};
use crate::rng::Rng;

pub(super) static FUNCTIONS: [Function; 2] = [
    Function {
        id: "startend:end_checker",
        kind: FunctionKind::Lexical,
        approximate: false,
        triggers: &["end with", "ends with", "ending", "finish with", "conclude with", "last word", "last sentence"],
        draw: draw_ending,
        phrase: ending_phrase,
        check: |kwargs, response| Some(ends_with(response, text_argument(kwargs, "end_phrase")?)),
    },
    Function {
        id: "startend:quotation",
        kind: FunctionKind::Fixed,
        approximate: false,
        triggers: &["quotation", "quotation marks", "quotes", "quote"],
        draw: no_arguments,
        phrase: |_, variant| {
            pick(
                variant,
                [
                    "Put the whole answer in double quotation marks.".to_owned(),
                    "Begin and end your answer with a double quotation mark.".to_owned(),
                    "Your entire answer should stand between double quotation marks.".to_owned(),
                ],
            )
        },
        check: |_, response| {
            let text = response.text().trim();
            Some(text.chars().count() > 1 && text.starts_with('"') && text.ends_with('"'))
        },
    },
];

/// Fallback endings if there is no satisfying response and no unconstrained response offers an ending.
const PLAIN_ENDINGS: [&str; 4] = ["and that is all.", "so much for that.", "the rest is up to you.", "I rest my case."];

/// Minimum and maximum number of words of an end phrase; a shorter last line yields fewer.
const PHRASE_WORDS: (usize, usize) = (2, 5);

fn ends_with(response: &Analysis, phrase: &str) -> bool {
    response.lower().trim().trim_matches('"').ends_with(&phrase.trim().to_lowercase())
}

/// Returns the last words of the last line as written: at most `count`, all from its last sentence. `None`
/// for a line without letters or digits, and for a phrase with quotation marks, because the instruction
/// quotes the phrase.
fn tail<'a>(response: &Analysis<'a>, count: usize) -> Option<&'a str> {
    let line = response.text().trim().trim_matches('"').lines().next_back()?;
    let mut words = line.split_whitespace().rev();
    let last = words.next()?;
    let taken = words.take(count.saturating_sub(1)).take_while(|word| !word.ends_with(['.', '!', '?'])).last();
    let start = taken.unwrap_or(last).as_ptr() as usize - line.as_ptr() as usize;
    let phrase = line[start..].trim_end();
    (phrase.chars().any(char::is_alphanumeric) && !phrase.contains('"')).then_some(phrase)
}

/// Draws an ending that all satisfying responses and no violating responses have. It comes from a satisfying
/// response. If there is none, it comes from an unconstrained response or from the fallbacks.
fn draw_ending(request: &Request, rng: &mut Rng) -> Option<Kwargs> {
    let mut counts: Vec<usize> = (PHRASE_WORDS.0..=PHRASE_WORDS.1).chain([1]).collect();
    let last = counts.len() - 1;
    rng.shuffle(&mut counts[..last]);
    let fits = |phrase: &&str| {
        request.satisfied().all(|r| ends_with(r, phrase)) && !request.violated().any(|r| ends_with(r, phrase))
    };
    let source = request.satisfied().next();
    let mut sources = source.into_iter().chain(request.free().filter(|_| source.is_none()));
    let own = sources.find_map(|r| counts.iter().filter_map(|&n| tail(r, n)).find(fits));
    let phrase = match own {
        Some(phrase) => phrase,
        None if source.is_some() => return None,
        None => {
            let plain: Vec<&str> = PLAIN_ENDINGS.iter().copied().filter(|p| fits(p)).collect();
            *rng.choose(&plain)?
        }
    };
    Some(kwargs([("end_phrase", phrase.into())]))
}

fn ending_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let phrase = text_argument(kwargs, "end_phrase")?;
    pick(
        variant,
        [
            format!("Finish with the exact phrase \"{phrase}\""),
            format!("End your answer with \"{phrase}\""),
            format!("The last words must be \"{phrase}\""),
            format!("Let the answer close with the words \"{phrase}\""),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_ignore_case_space_and_outer_quotes() {
        let ends = |text, phrase| ends_with(&Analysis::new(text), phrase);
        assert!(ends("Paint it ON A SIGN. \r\n", " on a sign."));
        assert!(ends("\"Paint it on a sign.\"", "a sign."));
        assert!(!ends("Paint it on a sign", "on a sign."));
    }

    #[test]
    fn tails_are_whole_words_of_the_last_line() {
        let of = |text, n| tail(&Analysis::new(text), n);
        assert_eq!(of("easy to paint on a sign.\n", 3), Some("on a sign."));
        assert_eq!(of("first line\r\nAsk me!", 5), Some("Ask me!"));
        assert_eq!(of("ba lo. ti mu.", 4), Some("ti mu."));
        assert_eq!(of("", 2), None);
        assert_eq!(of("* * *", 2), None);
        assert_eq!(of("he said \"no\" twice", 3), None);
        assert_eq!(of("今天 天气 很好。", 2), Some("天气 很好。"));
    }
}
