//! The comparisons that MAPL builds from one preference pair.

use std::fmt::Write;

use super::bars::{WIDTH, open, subtitle, text};

/// Left edges of the two cards of a comparison, and the width and height of a card.
const LEFT: f64 = 12.0;
const RIGHT: f64 = 246.0;
const CARD: f64 = 202.0;
const HEIGHT: f64 = 64.0;
/// Top of the first comparison, and the distance to the next.
const FIRST: f64 = 150.0;
const STEP: f64 = 116.0;

const LESS: &str = "x + less than 4 words";
const MORE: &str = "x + at least 4 words";
const CHOSEN: &str = "Rise and Shine Bakery.";
const REJECTED: &str = "Crust.";

/// Figure as one `<svg>` element.
pub fn to_svg() -> String {
    let height = FIRST + 3.0 * STEP - 28.0;
    let description = "The base comparison ranks two responses under one prompt. The intra comparison ranks one response \
                       under two prompts. The inter comparison ranks the gap between two responses with and without an \
                       added instruction.";
    let mut out = open("What MAPL adds to a preference pair", description, height);
    out += &subtitle("The left card must score higher. Programs check instructions.");
    let _ = write!(out, r#"<rect class="card" x="{LEFT}" y="58" width="436" height="62" rx="6"/>"#);
    text(&mut out, "prompt", "start", 24.0, 83.0, "prompt x");
    text(&mut out, "name", "start", 100.0, 83.0, "Suggest a name for a bakery.");
    dot(&mut out, 2, 30.0, 103.0);
    text(&mut out, "quiet", "start", 42.0, 108.0, "chosen");
    text(&mut out, "strong", "start", 93.0, 108.0, CHOSEN);
    dot(&mut out, 5, 298.0, 103.0);
    text(&mut out, "quiet", "start", 310.0, 108.0, "rejected");
    text(&mut out, "strong", "start", 372.0, 108.0, REJECTED);

    let mut y = FIRST;
    heading(&mut out, y, "base", "two responses, one prompt");
    card(&mut out, LEFT, y, true, "x", Some(CHOSEN));
    card(&mut out, RIGHT, y, false, "x", Some(REJECTED));
    y += STEP;
    heading(&mut out, y, "+ intra", "one response, two prompts");
    card(&mut out, LEFT, y, true, MORE, Some(CHOSEN));
    card(&mut out, RIGHT, y, false, LESS, Some(CHOSEN));
    y += STEP;
    heading(&mut out, y, "+ inter", "one pair, with and without an instruction");
    card(&mut out, LEFT, y, true, MORE, None);
    card(&mut out, RIGHT, y, false, "x", None);
    gap(&mut out, LEFT, y, 150.0);
    gap(&mut out, RIGHT, y, 66.0);
    out + "</svg>"
}

/// Draws a comparison's name and description above its cards, and the sign `>` between the cards.
fn heading(out: &mut String, y: f64, name: &str, description: &str) {
    let width = 18.0 + 8.0 * name.len() as f64;
    let _ = write!(out, r#"<rect class="badge" x="{LEFT}" y="{:.1}" width="{width}" height="22" rx="11"/>"#, y - 17.0);
    text(out, "badge-text", "middle", LEFT + width / 2.0, y - 1.0, name);
    text(out, "quiet", "start", LEFT + width + 10.0, y - 1.0, description);
    text(out, "more", "middle", WIDTH / 2.0, y + 12.0 + HEIGHT / 2.0 + 9.0, ">");
}

/// Draws a prompt with a response. `better` marks the side that must score higher.
fn card(out: &mut String, x: f64, y: f64, better: bool, prompt: &str, response: Option<&str>) {
    let (top, class) = (y + 12.0, if better { "better" } else { "worse" });
    let _ = write!(out, r#"<rect class="card" x="{x}" y="{top}" width="{CARD}" height="{HEIGHT}" rx="6"/>"#);
    let _ = write!(out, r#"<rect class="{class}" x="{x}" y="{top}" width="{CARD}" height="{HEIGHT}" rx="6"/>"#);
    text(out, "prompt", "start", x + 12.0, top + 23.0, prompt);
    if let Some(response) = response {
        text(out, "strong", "start", x + 12.0, top + 48.0, response);
    }
}

/// Draws the difference between the scores of the two responses as the distance between two circles.
fn gap(out: &mut String, x: f64, y: f64, width: f64) {
    let (middle, y) = (x + CARD / 2.0, y + 12.0 + 51.0);
    let (left, right) = (middle - width / 2.0, middle + width / 2.0);
    let _ = write!(out, r#"<line class="gap" x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}"/>"#);
    dot(out, 5, left, y);
    dot(out, 2, right, y);
    text(out, "quiet", "middle", middle, y - 6.0, "gap");
}

/// Draws a circle that stands for a response, in the colour of `style`.
fn dot(out: &mut String, style: usize, x: f64, y: f64) {
    let _ = write!(out, r#"<circle class="mark s{style}" cx="{x:.1}" cy="{y:.1}" r="6"/>"#);
}
