//! Canvas of a chart: its geometry, title, axes, and the legend below the plot, where it covers no
//! curve.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::escape;

/// Widths in user units (pixels at full size): a chart that is legible on a phone, and one across
/// the page.
pub(super) const NARROW: Canvas = Canvas { width: 460.0, class: "chart narrow" };
pub(super) const WIDE: Canvas = Canvas { width: 980.0, class: "chart wide" };
/// Space for the title, the y labels, the right margin, the x labels, and one row of the legend.
pub(super) const TOP: f64 = 46.0;
pub(super) const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
pub(super) const BOTTOM: f64 = 44.0;
pub(super) const LEGEND_ROW: f64 = 22.0;
/// Left edge of the legend, which may extend below the y labels.
const LEGEND_LEFT: f64 = 8.0;
/// Height of the plotting area.
pub(super) const PLOT: f64 = 210.0;
/// Estimated width of a character in the legend.
const CHARACTER_WIDTH: f64 = 7.4;
/// Distance below which a tick label would touch the label of a reference line.
const LABEL_DISTANCE: f64 = 13.0;
/// Number of styles that the page defines: eight for runs and lines, and the rest for [`method_style`].
const STYLES: usize = 17;
const RUN_STYLES: usize = 8;

/// Shade of a method's colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shade {
    /// Trained on base pairs only.
    Base,
    /// Trained on base pairs only, with as many tokens as the run with MAPL.
    BaseEqual,
    /// Trained with MAPL.
    Mapl,
}

/// Style of a run: the hue shows the method, the shade its objective.
pub fn method_style(method: &str, shade: Shade) -> usize {
    let hue = match method {
        "reward" => 0,
        "dpo" | "kto" => 1,
        _ => 2,
    };
    RUN_STYLES + 3 * hue + shade as usize
}

/// Size of a chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Canvas {
    pub width: f64,
    class: &'static str,
}

impl Canvas {
    /// Canvas of a chart that has only one size.
    pub const fn only(self) -> Self {
        Self { class: "chart", ..self }
    }

    pub fn right(&self) -> f64 {
        self.width - RIGHT
    }

    pub fn plot_width(&self) -> f64 {
        self.right() - LEFT
    }

    pub fn to_x(self, scale: &Scale, value: f64) -> f64 {
        LEFT + self.plot_width() * scale.fraction(value)
    }

    /// Returns the start of the `<svg>` element, with text for screen readers.
    pub fn open(&self, title: &str, description: &str, legend: f64) -> String {
        let height = TOP + PLOT + BOTTOM + legend;
        let title = escape(title);
        format!(
            concat!(
                r#"<svg class="{}" viewBox="0 0 {} {:.0}" role="img" aria-label="{}">"#,
                r#"<title>{}</title><desc>{}</desc><text class="title" x="{}" y="20">{}</text>"#
            ),
            self.class,
            self.width,
            height,
            title,
            title,
            escape(description),
            8,
            title
        )
    }

    /// Horizontal grid lines with labels, and the axis title, rotated to read upwards. A tick label that
    /// would touch `label` (a value and its text) is left out.
    pub fn draw_y_axis(&self, out: &mut String, axis: &Axis, scale: &Scale, label: Option<(f64, &str)>) {
        for (value, text) in scale.ticks() {
            let at = to_y(scale, value);
            let _ = write!(
                out,
                r#"<line class="grid" x1="{LEFT:.1}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}"/>"#,
                self.right()
            );
            if label.is_none_or(|(other, _)| (to_y(scale, other) - at).abs() >= LABEL_DISTANCE) {
                put_text(out, "tick-label", "end", LEFT - 5.0, at + 4.5, &text);
            }
        }
        if let Some((value, text)) = label {
            put_text(out, "reference-label", "end", LEFT - 5.0, to_y(scale, value) + 4.5, text);
        }
        let middle = TOP + PLOT / 2.0;
        let _ = write!(
            out,
            r#"<text class="axis" text-anchor="middle" transform="translate(13 {middle:.1}) rotate(-90)">{}</text>"#,
            escape(&axis.title())
        );
        let bottom = TOP + PLOT;
        let _ = write!(
            out,
            r#"<line class="tick" x1="{LEFT:.1}" y1="{bottom:.1}" x2="{:.1}" y2="{bottom:.1}"/>"#,
            self.right()
        );
    }

    /// Ticks with labels below the plot, and the axis title below them.
    pub fn draw_x_axis(&self, out: &mut String, axis: &Axis, scale: &Scale) {
        for (value, label) in scale.ticks() {
            let at = self.to_x(scale, value);
            let _ = write!(
                out,
                r#"<line class="tick" x1="{at:.1}" y1="{0:.1}" x2="{at:.1}" y2="{1:.1}"/>"#,
                TOP + PLOT,
                TOP + PLOT + 4.0
            );
            put_text(out, "tick-label", "middle", at, TOP + PLOT + 17.0, &label);
        }
        put_text(out, "axis", "middle", LEFT + self.plot_width() / 2.0, TOP + PLOT + 36.0, &axis.title());
    }

    pub fn put_no_values(&self, out: &mut String) {
        put_text(out, "axis", "middle", LEFT + self.plot_width() / 2.0, TOP + PLOT / 2.0, "no values");
    }
}

pub(super) fn to_y(scale: &Scale, value: f64) -> f64 {
    TOP + PLOT * (1.0 - scale.fraction(value))
}

pub(super) fn style_index(index: usize) -> usize {
    index % STYLES
}

pub(super) fn describe<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "No series.".to_owned() } else { format!("Series: {}.", names.join(", ")) }
}

pub(super) fn put_text(out: &mut String, class: &str, anchor: &str, x: f64, y: f64, text: &str) {
    let _ =
        write!(out, r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text));
}

/// Symbol before a name in the legend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Swatch {
    Line,
    Bar,
    Area,
    Mark,
}

/// Names below the plot, with as many per row as fit.
pub(super) struct Legend<'a> {
    /// Name, style, left edge, row.
    entries: Vec<(&'a str, usize, f64, usize)>,
}

impl<'a> Legend<'a> {
    pub(super) fn new(canvas: &Canvas, names: impl Iterator<Item = (&'a str, usize)>) -> Self {
        let mut entries = Vec::new();
        let (mut left, mut row) = (LEGEND_LEFT, 0);
        for (name, style) in names {
            let width = 38.0 + CHARACTER_WIDTH * name.chars().count() as f64;
            if left > LEGEND_LEFT && left + width > canvas.width {
                (left, row) = (LEGEND_LEFT, row + 1);
            }
            entries.push((name, style, left, row));
            left += width;
        }
        Self { entries }
    }

    pub(super) fn height(&self) -> f64 {
        self.entries.last().map_or(0.0, |e| LEGEND_ROW * (e.3 + 1) as f64)
    }

    pub(super) fn draw(&self, out: &mut String, swatch: Swatch) {
        for &(name, index, left, row) in &self.entries {
            let y = TOP + PLOT + BOTTOM + 8.0 + LEGEND_ROW * row as f64;
            let style = style_index(index);
            match swatch {
                Swatch::Line => {
                    let (y, right) = (y - 4.5, left + 22.0);
                    let _ = write!(out, r#"<path class="line s{style}" d="M{left:.1} {y:.1}L{right:.1} {y:.1}"/>"#);
                }
                Swatch::Bar | Swatch::Area => {
                    let class = if swatch == Swatch::Bar { "bar" } else { "area" };
                    let (left, y) = (left + 4.0, y - 11.0);
                    let _ = write!(
                        out,
                        r#"<rect class="{class} s{style}" x="{left:.1}" y="{y:.1}" width="13" height="13"/>"#
                    );
                }
                Swatch::Mark => draw_mark(out, index, left + 12.0, y - 4.5),
            }
            put_text(out, "legend", "start", left + 27.0, y, name);
        }
    }
}

/// Mark of a scatter chart: a disc for even styles, an open diamond for odd ones.
pub(super) fn draw_mark(out: &mut String, index: usize, x: f64, y: f64) {
    let style = style_index(index);
    let _ = match index % 2 {
        0 => write!(out, r#"<circle class="dot s{style}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#),
        _ => write!(out, r#"<path class="ring s{style}" d="M{x:.1} {:.1}l4 4l-4 4l-4 -4z"/>"#, y - 4.0),
    };
}
