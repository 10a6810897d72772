//! IFEval family `detectable_content`: placeholders in square brackets; a postscript.

use std::sync::LazyLock;

use regex::Regex;

use super::analysis::compile;
use super::quantity::draw_minimum;
use super::wording::{noun, pick};
use super::{Analysis, Function, FunctionKind, Kwargs, Request, count_argument, kwargs, text_argument};
use crate::rng::Rng;

pub(super) static FUNCTIONS: [Function; 2] = [
    Function {
        id: "detectable_content:number_placeholders",
        kind: FunctionKind::AtLeast,
        approximate: false,
        triggers: &["placeholder", "placeholders", "brackets", "template"],
        draw: |request, rng| Some(kwargs([("num_placeholders", draw_minimum(request, rng, placeholders)?)])),
        phrase: placeholders_phrase,
        check: |kwargs, response| Some(placeholders(response) >= count_argument(kwargs, "num_placeholders")?),
    },
    Function {
        id: "detectable_content:postscript",
        kind: FunctionKind::Fixed,
        approximate: false,
        triggers: &["postscript", "p.s", "ps"],
        draw: draw_postscript,
        phrase: postscript_phrase,
        check: |kwargs, response| Some(has_postscript(text_argument(kwargs, "postscript_marker")?, response)),
    },
];

fn placeholders(response: &Analysis) -> usize {
    static PLACEHOLDER: LazyLock<Regex> = LazyLock::new(|| compile(r"\[.*?\]"));
    PLACEHOLDER.find_iter(response.text()).count()
}

fn placeholders_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let n = count_argument(kwargs, "num_placeholders")?;
    let placeholders = noun(n, "placeholder", "placeholders");
    pick(
        variant,
        [
            format!("Include at least {n} {placeholders} in square brackets, such as [name]."),
            format!("Leave at least {n} {placeholders} to fill in, written like [date]."),
            format!("Use square brackets, as in [place], for at least {n} {placeholders}."),
        ],
    )
}

const MARKERS: [&str; 2] = ["P.S.", "P.P.S"];

/// Draws a marker that every satisfying response contains and every violating response lacks. If both markers
/// fit, one is drawn at random.
fn draw_postscript(request: &Request, rng: &mut Rng) -> Option<Kwargs> {
    let fits = |marker: &&&str| {
        request.satisfied().all(|r| has_postscript(marker, r)) && !request.violated().any(|r| has_postscript(marker, r))
    };
    let markers: Vec<&str> = MARKERS.iter().filter(fits).copied().collect();
    Some(kwargs([("postscript_marker", (*rng.choose(&markers)?).into())]))
}

fn has_postscript(marker: &str, response: &Analysis) -> bool {
    static PS: LazyLock<Regex> = LazyLock::new(|| compile(r"p\.\s?s\."));
    static PPS: LazyLock<Regex> = LazyLock::new(|| compile(r"p\.\s?p\.\s?s"));
    match marker.trim() {
        "P.S." => PS.is_match(response.lower()),
        "P.P.S" => PPS.is_match(response.lower()),
        other => response.contains(other),
    }
}

fn postscript_phrase(kwargs: &Kwargs, variant: usize) -> Option<String> {
    let marker = text_argument(kwargs, "postscript_marker")?;
    pick(
        variant,
        [
            format!("Close with a postscript that begins with {marker}"),
            format!("After the answer, add a postscript marked {marker}"),
            format!("Put a postscript at the end, starting with {marker}"),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_and_postscripts_are_found() {
        assert_eq!(placeholders(&Analysis::new("[a] [b\n] [] x]")), 2);
        let has = |marker, text| has_postscript(marker, &Analysis::new(text));
        assert!(has("P.S.", "Bye.\np. s. more") && !has("P.S.", "PS more"));
        assert!(has("P.P.S", "P.P.S. more") && !has("P.P.S", "P.S. more"));
        assert!(has("NB (x)", "nb (X) more"));
    }
}
