//! Conflicts between instructions of one prompt: pairs of functions (IFEval's list, made symmetric)
//! and pairs of arguments that no response can satisfy together.

use super::{Analysis, Kwargs, Relation, count_argument, text_argument, words_argument};

/// True if the two functions must not be in one prompt. The relation is symmetric, and every id conflicts with
/// itself.
pub fn conflicts(a: &str, b: &str) -> bool {
    a == b || lists(a, b) || lists(b, a)
}

/// True if IFEval's list names `b` as a conflict of `a`; it need not name `a` as a conflict of `b`.
fn lists(a: &str, b: &str) -> bool {
    match a {
        "detectable_format:constrained_response" => true,
        "detectable_format:json_format" => !matches!(b, "keywords:existence" | "keywords:forbidden_words"),
        "combination:two_responses" => !matches!(
            b,
            "keywords:existence"
                | "keywords:forbidden_words"
                | "language:response_language"
                | "detectable_format:title"
                | "punctuation:no_comma"
        ),
        "combination:repeat_prompt" => {
            !matches!(b, "keywords:existence" | "detectable_format:title" | "punctuation:no_comma")
        }
        "language:response_language" => matches!(
            b,
            "detectable_format:multiple_sections"
                | "keywords:existence"
                | "keywords:frequency"
                | "keywords:forbidden_words"
                | "startend:end_checker"
                | "change_case:english_capital"
                | "change_case:english_lowercase"
        ),
        "length_constraints:number_paragraphs" => {
            matches!(b, "length_constraints:nth_paragraph_first_word" | "length_constraints:number_sentences")
        }
        "detectable_format:multiple_sections" => {
            matches!(b, "detectable_format:number_highlighted_sections" | "language:response_language")
        }
        "change_case:capital_word_frequency" => {
            matches!(b, "change_case:english_capital" | "change_case:english_lowercase")
        }
        "change_case:english_lowercase" => b == "change_case:english_capital",
        "startend:quotation" => b == "detectable_format:title",
        _ => false,
    }
}

/// True if no response can satisfy both instructions. One instruction forbids a word that the other requires,
/// also in an end phrase or as an opening word. Or the required words exceed a limit on the number of words, of
/// a keyword or of a letter. The relation is symmetric.
pub fn clash(a: (&str, &Kwargs), b: (&str, &Kwargs)) -> bool {
    one_way(a.1, b.1) || one_way(b.1, a.1)
}

fn one_way(demand: &Kwargs, limit: &Kwargs) -> bool {
    let required = required_text(demand);
    if required.is_empty() {
        return false;
    }
    let required = Analysis::new(&required);
    if words_argument(limit, "forbidden_words").is_some_and(|words| words.iter().any(|w| required.contains_whole(w))) {
        return true;
    }
    if Relation::of(limit) != Some(Relation::LessThan) {
        return false;
    }
    let occurrences = |key| text_argument(limit, key).map(|text| required.occurrences(text.trim()));
    let held = [
        ("num_words", Some(required.word_count())),
        ("frequency", occurrences("keyword")),
        ("let_frequency", occurrences("letter")),
    ];
    let reached = |(key, held)| count_argument(limit, key).zip(held).is_some_and(|(threshold, held)| held >= threshold);
    held.into_iter().any(reached)
}

/// Returns text that a response must contain to satisfy the arguments.
fn required_text(kwargs: &Kwargs) -> String {
    if let Some(words) = words_argument(kwargs, "keywords") {
        return words.join(" ");
    }
    if let (Some(keyword), Some(times), Some(Relation::AtLeast)) =
        (text_argument(kwargs, "keyword"), count_argument(kwargs, "frequency"), Relation::of(kwargs))
    {
        // The caps bound the allocation: a row may hold any number and any text, but no realistic limit
        // is above 10,000 words or 1 MiB.
        return vec![keyword; times.min(10_000).min((1 << 20) / (keyword.len() + 1) + 1)].join(" ");
    }
    text_argument(kwargs, "end_phrase").or_else(|| text_argument(kwargs, "first_word")).unwrap_or("").to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::{all, kwargs};
    use super::*;

    #[test]
    fn conflicts_are_symmetric_and_hold_with_oneself() {
        for a in all() {
            assert!(conflicts(a.id, a.id), "{}", a.id);
            for b in all() {
                assert_eq!(conflicts(a.id, b.id), conflicts(b.id, a.id), "{} {}", a.id, b.id);
            }
        }
    }

    #[test]
    fn the_closure_wins_over_exceptions() {
        assert!(!conflicts("detectable_format:json_format", "keywords:existence"));
        // Two functions conflict if either of them lists the other: repeat_prompt lists forbidden words, and
        // json_format lists the title.
        assert!(conflicts("combination:repeat_prompt", "keywords:forbidden_words"));
        assert!(conflicts("detectable_format:title", "detectable_format:json_format"));
        assert!(conflicts("startend:quotation", "detectable_format:title"));
        assert!(!conflicts("keywords:existence", "keywords:forbidden_words"));
        assert!(!conflicts("length_constraints:number_words", "length_constraints:number_sentences"));
    }

    #[test]
    fn arguments_clash_in_either_order() {
        let need = kwargs([("keywords", vec!["dough", "oven"].into())]);
        let forbid = kwargs([("forbidden_words", vec!["OVEN"].into())]);
        let end = kwargs([("end_phrase", "from the oven.".into())]);
        let short = kwargs([("num_words", 2.into()), ("relation", "less than".into())]);
        let long = kwargs([("num_words", 3.into()), ("relation", "less than".into())]);
        let rare = kwargs([("keyword", "oven".into()), ("frequency", 1.into()), ("relation", "less than".into())]);
        let letter = |n: usize| {
            kwargs([("letter", "o".into()), ("let_frequency", n.into()), ("let_relation", "less than".into())])
        };
        for (a, b, expected) in [
            (&need, &forbid, true),
            (&end, &forbid, true),
            (&need, &short, true),
            (&need, &long, false),
            (&need, &end, false),
            (&need, &rare, true),
            (&need, &letter(2), true),
            (&need, &letter(3), false),
        ] {
            assert_eq!((clash(("", a), ("", b)), clash(("", b), ("", a))), (expected, expected), "{a:?} {b:?}");
        }
    }
}
