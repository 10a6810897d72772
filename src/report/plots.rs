//! Histograms and scatter charts as SVG. Series differ in outline or mark as well as in colour.

use std::fmt::Write;

use super::axis::{Axis, drawable};
use super::canvas::{LEFT, Legend, NARROW, PLOT, Swatch, TOP, describe, draw_mark, style_index, to_y};
use super::distribution::Bins;
use super::svg::Series;

/// Counts of several sets of values in common bins, one outline per set.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    pub title: String,
    pub x: Axis,
    /// Name and style of each set in `bins`; styles as in [`super::svg::Series`].
    pub series: Vec<(String, usize)>,
    /// Bins of the values; `None` if there is no value.
    pub bins: Option<Bins>,
}

/// Scatter chart of two quantities.
#[derive(Clone, Debug, PartialEq)]
pub struct Scatter {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    /// Sets of points in any order; even styles are discs, odd styles diamonds.
    pub series: Vec<Series>,
}

impl Histogram {
    /// Chart as one `<svg>` element.
    pub fn to_svg(&self) -> String {
        let canvas = &NARROW.only();
        let names = || self.series.iter().map(|(name, style)| (name.as_str(), *style));
        let legend = Legend::new(canvas, names());
        let mut out = canvas.open(&self.title, &describe(names().map(|s| s.0)), legend.height());
        let Some(bins) = &self.bins else {
            canvas.put_no_values(&mut out);
            out.push_str("</svg>");
            return out;
        };
        let number = bins.counts.first().map_or(0, Vec::len);
        let x = self.x.scale([bins.edge(0), bins.edge(number)].into_iter());
        let count = Axis::new("count", "");
        let y = count.scale(bins.counts.iter().flatten().map(|&n| n as f64).chain([0.0]));
        canvas.draw_y_axis(&mut out, &count, &y, None);
        canvas.draw_x_axis(&mut out, &self.x, &x);
        for ((_, index), counts) in self.series.iter().zip(&bins.counts) {
            let mut path = format!("M{:.1} {:.1}", canvas.to_x(&x, bins.edge(0)), TOP + PLOT);
            for (bin, &n) in counts.iter().enumerate() {
                let _ = write!(path, "V{:.1}H{:.1}", to_y(&y, n as f64), canvas.to_x(&x, bins.edge(bin + 1)));
            }
            let _ = write!(out, r#"<path class="area s{}" d="{path}V{:.1}z"/>"#, style_index(*index), TOP + PLOT);
        }
        legend.draw(&mut out, Swatch::Area);
        out.push_str("</svg>");
        out
    }
}

impl Scatter {
    /// Chart as one `<svg>` element, without points that are not finite.
    pub fn to_svg(&self) -> String {
        let canvas = &NARROW.only();
        let names = || self.series.iter().map(|s| (s.name.as_str(), s.style));
        let values = |pick: fn(&(f64, f64)) -> f64| self.series.iter().flat_map(move |s| s.points.iter().map(pick));
        let (x, y) = (self.x.scale(values(|p| p.0)), self.y.scale(values(|p| p.1)));
        let legend = Legend::new(canvas, names());
        let mut out = canvas.open(&self.title, &describe(names().map(|s| s.0)), legend.height());
        canvas.draw_y_axis(&mut out, &self.y, &y, None);
        canvas.draw_x_axis(&mut out, &self.x, &x);
        // Line at y = 0 if it is in range, because rewards change their sign there.
        if y.low < 0.0 && y.high > 0.0 {
            let (at, right) = (to_y(&y, 0.0), canvas.right());
            let _ = write!(out, r#"<line class="tick" x1="{LEFT:.1}" y1="{at:.1}" x2="{right:.1}" y2="{at:.1}"/>"#);
        }
        let mut empty = true;
        // The first series is drawn last, on top: its discs are translucent, the diamonds are not.
        for series in self.series.iter().rev() {
            for &(px, py) in series.points.iter().filter(|(px, py)| drawable(*px) && drawable(*py)) {
                draw_mark(&mut out, series.style, canvas.to_x(&x, px), to_y(&y, py));
                empty = false;
            }
        }
        if empty {
            canvas.put_no_values(&mut out);
        }
        legend.draw(&mut out, Swatch::Mark);
        out.push_str("</svg>");
        out
    }
}
