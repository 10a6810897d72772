//! IFEval family `punctuation`: a response without commas.

use super::wording::pick;
use super::{Function, FunctionKind, no_arguments};

pub(super) static FUNCTIONS: [Function; 1] = [Function {
    id: "punctuation:no_comma",
    kind: FunctionKind::Fixed,
    approximate: false,
    triggers: &["comma", "commas", "punctuation"],
    draw: no_arguments,
    phrase: |_, variant| {
        pick(
            variant,
            [
                "Do not use any comma.".to_owned(),
                "Write the answer without commas.".to_owned(),
                "Avoid commas altogether.".to_owned(),
            ],
        )
    },
    check: |_, response| Some(!response.text().contains(',')),
}];
