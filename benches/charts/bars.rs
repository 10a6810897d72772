//! Horizontal bar charts: a name, a bar and its value per row, in groups with headings.

use std::fmt::Write;

use mapl::report::escape;

/// Width of a figure in user units; legible at the width of a phone.
pub const WIDTH: f64 = 460.0;
/// Left edges of text and of bars, and right end of the longest bar.
const LEFT: f64 = 12.0;
const BARS: f64 = 178.0;
const END: f64 = 352.0;
/// Heights of the title block, a group's heading, a row, and a bar.
const TITLE: f64 = 54.0;
const HEADING: f64 = 30.0;
const ROW: f64 = 28.0;
const BAR: f64 = 18.0;

/// A named quantity.
pub struct Bar {
    pub name: String,
    /// Parts of the value, drawn end to end.
    pub parts: Vec<f64>,
    /// Value as text after the bar, and a remark after the value. An empty remark is not drawn.
    pub label: String,
    pub remark: String,
    /// Whether the name and the value are bold.
    pub strong: bool,
    /// Colour index: `n` selects the CSS class `sn` of the report's charts.
    pub style: usize,
}

/// Bars under a heading; an empty heading takes no space.
pub struct Group {
    pub heading: String,
    pub bars: Vec<Bar>,
}

/// Horizontal bar chart with one scale for all groups.
pub struct HorizontalBars {
    pub title: String,
    pub subtitle: String,
    pub groups: Vec<Group>,
}

impl HorizontalBars {
    /// Chart as one `<svg>` element.
    pub fn to_svg(&self) -> String {
        let sum = |bar: &Bar| bar.parts.iter().sum::<f64>();
        let largest = self.groups.iter().flat_map(|g| &g.bars).map(sum).fold(f64::MIN_POSITIVE, f64::max);
        let (mut body, mut y) = (String::new(), TITLE);
        for group in &self.groups {
            if !group.heading.is_empty() {
                text(&mut body, "heading", "start", LEFT, y + 19.0, &group.heading);
                y += HEADING;
            }
            for bar in &group.bars {
                let class = if bar.strong { "strong" } else { "name" };
                text(&mut body, class, "start", LEFT, y + 15.0, &bar.name);
                let mut x = BARS;
                for part in &bar.parts {
                    let width = (END - BARS) * part / largest;
                    // A gap separates the parts.
                    let shown = (width - if bar.parts.len() > 1 { 1.5 } else { 0.0 }).max(1.0);
                    let _ = write!(
                        body,
                        r#"<rect class="bar s{}" x="{x:.1}" y="{y:.1}" width="{shown:.1}" height="{BAR}"/>"#,
                        bar.style
                    );
                    x += width;
                }
                text(&mut body, class, "start", x + 7.0, y + 15.0, &bar.label);
                if !bar.remark.is_empty() {
                    text(&mut body, "quiet", "start", x + 49.0, y + 15.0, &bar.remark);
                }
                y += ROW;
            }
            y += 6.0;
        }
        open(&self.title, &self.described(), y) + &subtitle(&self.subtitle) + &body + "</svg>"
    }

    /// The values as a sentence, for screen readers.
    fn described(&self) -> String {
        let bars = self.groups.iter().flat_map(|g| &g.bars).map(|bar| format!("{}: {}", bar.name, bar.label));
        format!("{}. {}.", self.subtitle, bars.collect::<Vec<_>>().join("; "))
    }
}

/// Returns the start of a figure: the opening `<svg>` tag, the text for screen readers, and the title.
pub fn open(title: &str, description: &str, height: f64) -> String {
    let (title, description) = (escape(title), escape(description));
    format!(
        concat!(
            r#"<svg class="chart" viewBox="0 0 {} {:.0}" role="img" aria-label="{}"><title>{}</title><desc>{}</desc>"#,
            r#"<text class="title" x="{}" y="24">{}</text>"#
        ),
        WIDTH, height, title, title, description, LEFT, title
    )
}

/// Returns `line` as the subtitle of a figure.
pub fn subtitle(line: &str) -> String {
    let mut out = String::new();
    text(&mut out, "subtitle", "start", LEFT, 44.0, line);
    out
}

/// Appends `line` as a `<text>` element at (`x`, `y`).
pub fn text(out: &mut String, class: &str, anchor: &str, x: f64, y: f64, line: &str) {
    let _ =
        write!(out, r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(line));
}
