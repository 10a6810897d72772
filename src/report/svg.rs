//! Line and bar charts as SVG. Colours are CSS variables of the page, so the same chart serves the
//! light and the dark theme. Series also differ in dash pattern, so colour is not needed to
//! distinguish them.
//!
//! Values that are not finite leave a gap. A chart without values says so.

use std::fmt::Write;

use super::axis::{Axis, Scale, drawable};
use super::canvas::{Canvas, LEFT, Legend, NARROW, PLOT, Swatch, TOP, WIDE, describe, put_text, style_index, to_y};
pub use super::canvas::{Shade, method_style};
use super::{ACCURACY_DECIMALS, NO_VALUE, decimal};

/// Maximum number of points drawn per series; longer series are drawn as means of consecutive
/// points.
const MAX_POINTS: usize = 400;
/// Maximum number of points of a series in which every point is drawn as a circle.
const MAX_MARKED_POINTS: usize = 30;
/// Width of the widest bar, and distance between a bar's end and its label.
const MAX_BAR: f64 = 48.0;
const LABEL_GAP: f64 = 5.0;

/// Named line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Index of colour and dash pattern: 0 to 7 by position, or a [`method_style`]. A run should
    /// have the same style in every chart.
    pub style: usize,
    /// (x, y) in ascending x.
    pub points: Vec<(f64, f64)>,
}

/// Horizontal line at a value of interest, such as chance level.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceLine {
    /// Value on the y axis.
    pub value: f64,
    /// Label.
    pub label: String,
}

/// Line chart.
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    /// Title.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Series.
    pub series: Vec<Series>,
    /// A line across the chart.
    pub reference: Option<ReferenceLine>,
}

/// Bar of a bar chart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// Height of the bar; NaN is shown as a dash.
    pub value: f64,
    /// Bounds of the interval, which is drawn as a whisker over the bar.
    pub interval: Option<(f64, f64)>,
}

/// Set of bars, one per category.
#[derive(Clone, Debug, PartialEq)]
pub struct BarSeries {
    /// Name in the legend.
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
    /// Title.
    pub title: String,
    /// Names of the groups of bars.
    pub categories: Vec<String>,
    /// Vertical axis.
    pub y: Axis,
    /// Series.
    pub series: Vec<BarSeries>,
    /// A line across the chart.
    pub reference: Option<ReferenceLine>,
}

impl LineChart {
    /// Chart as one `<svg>` element.
    pub fn to_svg(&self) -> String {
        self.draw(&NARROW.only())
    }

    /// Chart in two sizes: across a wide page, and for phones. The style sheet shows one of them.
    pub fn to_wide_svg(&self) -> String {
        self.draw(&WIDE) + &self.draw(&NARROW)
    }

    fn draw(&self, canvas: &Canvas) -> String {
        let values = |pick: fn(&(f64, f64)) -> f64| self.series.iter().flat_map(move |s| s.points.iter().map(pick));
        let x = self.x.scale(values(|p| p.0));
        let y = self.y.scale(values(|p| p.1).chain(self.reference.iter().map(|r| r.value)));
        let legend = Legend::new(canvas, self.series.iter().map(|s| (s.name.as_str(), s.style)));
        let names = describe(self.series.iter().map(|s| s.name.as_str()));
        let mut out = canvas.open(&self.title, &names, legend.height());
        canvas.draw_y_axis(&mut out, &self.y, &y, label(self.reference.as_ref(), &y));
        canvas.draw_x_axis(&mut out, &self.x, &x);
        let mut empty = true;
        for series in &self.series {
            empty &= !draw_line(&mut out, canvas, series, &x, &y);
        }
        if empty {
            canvas.put_no_values(&mut out);
        }
        draw_reference(&mut out, canvas, self.reference.as_ref(), &y);
        legend.draw(&mut out, Swatch::Line);
        out.push_str("</svg>");
        out
    }
}

impl BarChart {
    /// Chart as one `<svg>` element.
    pub fn to_svg(&self) -> String {
        let canvas = &NARROW.only();
        let ends = self.series.iter().flat_map(|s| &s.bars).flat_map(|b| {
            let (low, high) = b.interval.unwrap_or((b.value, b.value));
            [b.value, low, high]
        });
        let y = self.y.scale(ends.chain(self.reference.iter().map(|r| r.value)).chain([0.0]));
        let legend = Legend::new(canvas, self.series.iter().map(|s| (s.name.as_str(), s.style)));
        let names = describe(self.series.iter().map(|s| s.name.as_str()));
        let mut out = canvas.open(&self.title, &names, legend.height());
        canvas.draw_y_axis(&mut out, &self.y, &y, label(self.reference.as_ref(), &y));
        let group = canvas.plot_width() / self.categories.len().max(1) as f64;
        // Three or more bars per category fill most of its width, so that their labels do not touch.
        let filled = if self.series.len() > 2 { 0.95 } else { 0.86 };
        let width = (group * filled / self.series.len().max(1) as f64).min(MAX_BAR);
        let mut labels = String::new();
        for (c, category) in self.categories.iter().enumerate() {
            let middle = LEFT + group * (c as f64 + 0.5);
            put_text(&mut out, "axis", "middle", middle, TOP + PLOT + 19.0, category);
            let left = middle - width * self.series.len() as f64 / 2.0;
            for (s, series) in self.series.iter().enumerate() {
                let bar = series.bars.get(c).copied().unwrap_or(Bar { value: f64::NAN, interval: None });
                draw_bar((&mut out, &mut labels), &bar, series.style, left + width * s as f64, width, &y);
            }
        }
        if self.categories.is_empty() || self.series.is_empty() {
            canvas.put_no_values(&mut out);
        }
        draw_reference(&mut out, canvas, self.reference.as_ref(), &y);
        out.push_str(&labels);
        legend.draw(&mut out, Swatch::Bar);
        out.push_str("</svg>");
        out
    }
}

/// Returns the reference line if its value is within the axis.
fn within<'a>(reference: Option<&'a ReferenceLine>, y: &Scale) -> Option<&'a ReferenceLine> {
    reference.filter(|r| r.value >= y.low && r.value <= y.high)
}

/// Returns the value and label of a reference line. The label is drawn among the tick labels, where it covers
/// no value.
fn label<'a>(reference: Option<&'a ReferenceLine>, y: &Scale) -> Option<(f64, &'a str)> {
    within(reference, y).filter(|r| !r.label.is_empty()).map(|r| (r.value, r.label.as_str()))
}

/// Draws the reference line over the data, because bars would hide it.
fn draw_reference(out: &mut String, canvas: &Canvas, reference: Option<&ReferenceLine>, y: &Scale) {
    let Some(reference) = within(reference, y) else { return };
    let (at, right) = (to_y(y, reference.value), canvas.right());
    let _ = write!(out, r#"<line class="reference" x1="{LEFT:.1}" y1="{at:.1}" x2="{right:.1}" y2="{at:.1}"/>"#);
}

/// Draws a line with its gaps; returns false if there was nothing to draw.
fn draw_line(out: &mut String, canvas: &Canvas, series: &Series, x: &Scale, y: &Scale) -> bool {
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
        let (left, top) = (canvas.to_x(x, px), to_y(y, py));
        let _ = write!(path, "{}{left:.1} {top:.1}", if pen_down { "L" } else { "M" });
        // A point without neighbours has no line segment, so it is drawn as a circle.
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

/// Returns at most [`MAX_POINTS`] points, each the mean of a chunk of consecutive points. A chunk without
/// drawable points stays a gap.
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

/// Draws a bar into `out` and its label into `labels`.
fn draw_bar((out, labels): (&mut String, &mut String), bar: &Bar, index: usize, left: f64, width: f64, y: &Scale) {
    let middle = left + width / 2.0;
    let zero = to_y(y, 0.0);
    if !drawable(bar.value) {
        put_text(labels, "bar-label", "middle", middle, zero - LABEL_GAP, NO_VALUE);
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
    put_text(labels, "bar-label", "middle", middle, label - LABEL_GAP, &decimal(bar.value, ACCURACY_DECIMALS));
}
