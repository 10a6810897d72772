//! IFEval family `combination`: two responses in one answer; the request repeated before the answer.

use super::wording::pick;
use super::{Function, FunctionKind, kwargs, no_arguments, text_argument};

pub(super) static FUNCTIONS: [Function; 2] = [
    Function {
        id: "combination:two_responses",
        kind: FunctionKind::Fixed,
        approximate: false,
        triggers: &["two responses", "two answers", "two different", "asterisks"],
        draw: no_arguments,
        phrase: |_, variant| {
            pick(
                variant,
                [
                    "Give two different answers with ****** between them.".to_owned(),
                    "Answer twice, in different ways; divide the answers by ******.".to_owned(),
                ],
            )
        },
        check: |_, response| Some(holds_two_responses(response.text())),
    },
    Function {
        id: "combination:repeat_prompt",
        kind: FunctionKind::Fixed,
        approximate: false,
        triggers: &["repeat"],
        draw: |request, _| {
            let prompt = request.prompt.text().trim();
            (!prompt.is_empty()).then(|| kwargs([("prompt_to_repeat", prompt.into())]))
        },
        phrase: |_, variant| {
            pick(
                variant,
                [
                    "Before you answer, repeat the request above word for word.".to_owned(),
                    "Start with an exact copy of the request, then answer it.".to_owned(),
                ],
            )
        },
        check: |kwargs, response| {
            let prompt = text_argument(kwargs, "prompt_to_repeat")?.trim().to_lowercase();
            Some(response.lower().trim_start().starts_with(&prompt))
        },
    },
];

fn holds_two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").collect();
    let empty = |part: &&str| part.trim().is_empty();
    if parts.len() > 2 && parts[1..parts.len() - 1].iter().any(empty) {
        return false;
    }
    let filled: Vec<&str> = parts.into_iter().filter(|part| !empty(part)).map(str::trim).collect();
    matches!(filled[..], [first, second] if first != second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::instructions::Analysis;

    #[test]
    fn two_responses_differ_and_have_one_divider() {
        assert!(holds_two_responses("a\n******\nb") && holds_two_responses("******a******b******"));
        assert!(!holds_two_responses("a ****** a") && !holds_two_responses("a"));
        assert!(!holds_two_responses("a ****** ****** b") && !holds_two_responses(""));
    }

    #[test]
    fn the_prompt_must_open_the_response() {
        let args = kwargs([("prompt_to_repeat", " Name a (tree). ".into())]);
        let check = |text| FUNCTIONS[1].check(&args, &Analysis::new(text));
        assert_eq!(check("name a (TREE). Oak."), Some(true));
        assert_eq!(check("Oak. Name a (tree)."), Some(false));
    }
}
