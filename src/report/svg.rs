//! Line and bar charts as SVG. Colours are CSS variables of the page, so the same chart serves the
//! light and the dark theme. Series also differ in dash pattern, so colour is not needed to
//! distinguish them.
//!
//! Values that are not finite leave a gap. A chart without values says so.

use std::fmt::Write;

use super::axis::{Axis, Scale, drawable};
use super::{NO_VALUE, decimal, escape};

/// Width of every chart in user units (pixels at full size); small enough to be legible on a phone.
pub(super) const WIDTH: f64 = 460.0;
/// Space for the title, the y labels, the right margin, the x labels, and one row of the legend.
pub(super) const TOP: f64 = 46.0;
pub(super) const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 44.0;
const LEGEND_ROW: f64 = 22.0;
/// Left edge of the legend, which may extend below the y labels.
const LEGEND_LEFT: f64 = 8.0;
/// Height of the plotting area.
pub(super) const PLOT: f64 = 210.0;
/// Estimated width of a character in the legend.
const CHARACTER_WIDTH: f64 = 7.4;
/// Number of styles that the page defines.
const STYLES: usize = 8;
/// Maximum number of points drawn per series; longer series are drawn as means of consecutive
/// points.
const MAX_POINTS: usize = 400;
/// Maximum number of points for which every point gets a mark.
const MAX_MARKED_POINTS: usize = 30;

/// Named line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    /// Index of colour and dash pattern, modulo 8. A run should have the same style in every chart.
    pub style: usize,
    /// (x, y) in ascending x.
    pub points: Vec<(f64, f64)>,
}

/// Horizontal line at a value of interest, such as chance level.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceLine {
    pub value: f64,
    pub label: String,
}

/// Line chart.
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    pub reference: Option<ReferenceLine>,
}

/// Value of a bar chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// Height of the bar; NaN is shown as a dash.
    pub value: f64,
    /// Ends of the interval drawn over the bar.
    pub interval: Option<(f64, f64)>,
}

/// Set of bars, one per category.
#[derive(Clone, Debug, PartialEq)]
pub struct BarSeries {
    pub name: String,
    /// Style, as in [`Series::style`].
    pub style: usize,
    /// One bar per category; missing bars are shown as a dash.
    pub bars: Vec<Bar>,
}

/// Bar chart with bars side by side in each category. The y axis starts at zero unless its range is
/// fixed.
#[derive(Clone, Debug, PartialEq)]
pub struct BarChart {
    pub title: String,
    pub categories: Vec<String>,
    pub y: Axis,
    pub series: Vec<BarSeries>,
    pub reference: Option<ReferenceLine>,
}

impl LineChart {
    /// Chart as one `<svg>` element.
    pub fn to_svg(&self) -> String {
        let values = |pick: fn(&(f64, f64)) -> f64| self.series.iter().flat_map(move |s| s.points.iter().map(pick));
        let x = self.x.scale(values(|p| p.0));
        let y = self.y.scale(values(|p| p.1).chain(self.reference.iter().map(|r| r.value)));
        let legend = Legend::new(self.series.iter().map(|s| (s.name.as_str(), s.style)));
        let mut out = open_svg(&self.title, &describe(self.series.iter().map(|s| s.name.as_str())), legend.height());
        draw_y_axis(&mut out, &self.y, &y);
        draw_x_axis(&mut out, &self.x, &x);
        let mut empty = true;
        for series in &self.series {
            empty &= !draw_line(&mut out, series, &x, &y);
        }
        if empty {
            put_no_values(&mut out);
        }
        draw_reference(&mut out, self.reference.as_ref(), &y);
        legend.draw(&mut out, Swatch::Line);
        out.push_str("</svg>");
        out
    }
}

impl BarChart {
    /// Chart as one `<svg>` element.
    pub fn to_svg(&self) -> String {
        let ends = self.series.iter().flat_map(|s| &s.bars).flat_map(|b| {
            let (low, high) = b.interval.unwrap_or((b.value, b.value));
            [b.value, low, high]
        });
        let y = self.y.scale(ends.chain(self.reference.iter().map(|r| r.value)).chain([0.0]));
        let legend = Legend::new(self.series.iter().map(|s| (s.name.as_str(), s.style)));
        let mut out = open_svg(&self.title, &describe(self.series.iter().map(|s| s.name.as_str())), legend.height());
        draw_y_axis(&mut out, &self.y, &y);
        let group = plot_width() / self.categories.len().max(1) as f64;
        let width = (group * 0.86 / self.series.len().max(1) as f64).min(48.0);
        for (c, category) in self.categories.iter().enumerate() {
            let middle = LEFT + group * (c as f64 + 0.5);
            put_text(&mut out, "axis", "middle", middle, TOP + PLOT + 19.0, category);
            let left = middle - width * self.series.len() as f64 / 2.0;
            for (s, series) in self.series.iter().enumerate() {
                let bar = series.bars.get(c).copied().unwrap_or(Bar { value: f64::NAN, interval: None });
                draw_bar(&mut out, &bar, series.style, left + width * s as f64, width, &y);
            }
        }
        if self.categories.is_empty() || self.series.is_empty() {
            put_no_values(&mut out);
        }
        draw_reference(&mut out, self.reference.as_ref(), &y);
        legend.draw(&mut out, Swatch::Bar);
        out.push_str("</svg>");
        out
    }
}

pub(super) fn plot_width() -> f64 {
    WIDTH - LEFT - RIGHT
}

pub(super) fn to_x(scale: &Scale, value: f64) -> f64 {
    LEFT + plot_width() * scale.fraction(value)
}

pub(super) fn to_y(scale: &Scale, value: f64) -> f64 {
    TOP + PLOT * (1.0 - scale.fraction(value))
}

pub(super) fn style_index(index: usize) -> usize {
    index % STYLES
}

/// Start of the element, with text for screen readers.
pub(super) fn open_svg(title: &str, description: &str, legend: f64) -> String {
    let height = TOP + PLOT + BOTTOM + legend;
    let title = escape(title);
    format!(
        concat!(
            r#"<svg class="chart" viewBox="0 0 {} {:.0}" role="img" aria-label="{}">"#,
            r#"<title>{}</title><desc>{}</desc><text class="title" x="{}" y="20">{}</text>"#
        ),
        WIDTH,
        height,
        title,
        title,
        escape(description),
        8,
        title
    )
}

pub(super) fn describe<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "No series.".to_owned() } else { format!("Series: {}.", names.join(", ")) }
}

fn put_text(out: &mut String, class: &str, anchor: &str, x: f64, y: f64, text: &str) {
    let _ =
        write!(out, r#"<text class="{class}" text-anchor="{anchor}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text));
}

/// Horizontal grid lines with labels, and the axis title, rotated to read upwards.
pub(super) fn draw_y_axis(out: &mut String, axis: &Axis, scale: &Scale) {
    for (value, label) in scale.ticks() {
        let at = to_y(scale, value);
        let _ =
            write!(out, r#"<line class="grid" x1="{LEFT:.1}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}"/>"#, WIDTH - RIGHT);
        put_text(out, "tick-label", "end", LEFT - 5.0, at + 4.5, &label);
    }
    let middle = TOP + PLOT / 2.0;
    let _ = write!(
        out,
        r#"<text class="axis" text-anchor="middle" transform="translate(10 {middle:.1}) rotate(-90)">{}</text>"#,
        escape(&axis.title())
    );
    let bottom = TOP + PLOT;
    let _ = write!(
        out,
        r#"<line class="tick" x1="{LEFT:.1}" y1="{bottom:.1}" x2="{:.1}" y2="{bottom:.1}"/>"#,
        WIDTH - RIGHT
    );
}

/// Ticks with labels below the plot, and the axis title below them.
pub(super) fn draw_x_axis(out: &mut String, axis: &Axis, scale: &Scale) {
    for (value, label) in scale.ticks() {
        let at = to_x(scale, value);
        let _ = write!(
            out,
            r#"<line class="tick" x1="{at:.1}" y1="{0:.1}" x2="{at:.1}" y2="{1:.1}"/>"#,
            TOP + PLOT,
            TOP + PLOT + 4.0
        );
        put_text(out, "tick-label", "middle", at, TOP + PLOT + 17.0, &label);
    }
    put_text(out, "axis", "middle", LEFT + plot_width() / 2.0, TOP + PLOT + 36.0, &axis.title());
}

pub(super) fn put_no_values(out: &mut String) {
    put_text(out, "axis", "middle", LEFT + plot_width() / 2.0, TOP + PLOT / 2.0, "no values");
}

/// Drawn over the data, because bars would hide the line. The label has an outline in the
/// background colour (chart.css).
fn draw_reference(out: &mut String, reference: Option<&ReferenceLine>, y: &Scale) {
    let Some(reference) = reference.filter(|r| r.value >= y.low && r.value <= y.high) else { return };
    let (at, right) = (to_y(y, reference.value), WIDTH - RIGHT);
    let _ = write!(out, r#"<line class="reference" x1="{LEFT:.1}" y1="{at:.1}" x2="{right:.1}" y2="{at:.1}"/>"#);
    put_text(out, "reference-label", "end", right - 2.0, at - 4.0, &reference.label);
}

/// Draws a line with its gaps; returns false if there was nothing to draw.
fn draw_line(out: &mut String, series: &Series, x: &Scale, y: &Scale) -> bool {
    let style = style_index(series.style);
    let points = thinned(&series.points);
    let marked = points.len() <= MAX_MARKED_POINTS;
    let (mut path, mut marks) = (String::new(), String::new());
    let mut pen_down = false;
    for (i, &(px, py)) in points.iter().enumerate() {
        if !(drawable(px) && drawable(py)) {
            pen_down = false;
            continue;
        }
        let (left, top) = (to_x(x, px), to_y(y, py));
        let _ = write!(path, "{}{left:.1} {top:.1}", if pen_down { "L" } else { "M" });
        // A point without neighbours has no line segment, so it needs a mark.
        let alone = !pen_down && points.get(i + 1).is_none_or(|n| !(drawable(n.0) && drawable(n.1)));
        if marked || alone {
            let _ = write!(marks, r#"<circle class="mark s{style}" cx="{left:.1}" cy="{top:.1}" r="3"/>"#);
        }
        pen_down = true;
    }
    if path.is_empty() {
        return false;
    }
    let _ = write!(out, r#"<path class="line s{style}" d="{path}"/>{marks}"#);
    true
}

/// At most [`MAX_POINTS`] points: means over equal runs of points. A run without drawable points
/// stays a gap.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let run = points.len().div_ceil(MAX_POINTS).max(1);
    if run == 1 {
        return points.to_vec();
    }
    let mean = |run: &[(f64, f64)]| {
        let kept: Vec<_> = run.iter().filter(|p| drawable(p.0) && drawable(p.1)).collect();
        // 0 / 0 is NaN, which is drawn as a gap.
        let count = kept.len() as f64;
        (kept.iter().map(|p| p.0).sum::<f64>() / count, kept.iter().map(|p| p.1).sum::<f64>() / count)
    };
    points.chunks(run).map(mean).collect()
}

fn draw_bar(out: &mut String, bar: &Bar, index: usize, left: f64, width: f64, y: &Scale) {
    let middle = left + width / 2.0;
    let zero = to_y(y, 0.0);
    if !drawable(bar.value) {
        put_text(out, "bar-label", "middle", middle, zero - 5.0, NO_VALUE);
        return;
    }
    let at = to_y(y, bar.value);
    let (top, height) = (at.min(zero), (at - zero).abs());
    let _ = write!(
        out,
        r#"<rect class="bar s{}" x="{:.1}" y="{top:.1}" width="{:.1}" height="{height:.1}"/>"#,
        style_index(index),
        left + 1.0,
        (width - 2.0).max(1.0)
    );
    let mut label = top;
    if let Some((low, high)) = bar.interval.filter(|(low, high)| drawable(*low) && drawable(*high)) {
        let (low, high) = (to_y(y, low), to_y(y, high));
        let _ =
            write!(out, r#"<line class="whisker" x1="{middle:.1}" y1="{low:.1}" x2="{middle:.1}" y2="{high:.1}"/>"#);
        label = label.min(high);
    }
    put_text(out, "bar-label", "middle", middle, label - 5.0, &decimal(bar.value, 2));
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
    pub(super) fn new(names: impl Iterator<Item = (&'a str, usize)>) -> Self {
        let mut entries = Vec::new();
        let (mut left, mut row) = (LEGEND_LEFT, 0);
        for (name, style) in names {
            let width = 38.0 + CHARACTER_WIDTH * name.chars().count() as f64;
            if left > LEGEND_LEFT && left + width > WIDTH {
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
