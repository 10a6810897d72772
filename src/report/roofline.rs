//! Roofline plot: rate of each op over its arithmetic intensity, under the ceilings of the machine.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::escape;
use super::labels::{Frame, Label, place};
use super::svg::{
    LEFT, PLOT, TOP, WIDTH, describe, draw_mark, draw_x_axis, draw_y_axis, open_svg, put_no_values, to_x, to_y,
};

/// Ops as numbered points under a roof. The slope is the memory bandwidth, the flat part the GEMM
/// rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    pub title: String,
    /// Memory bandwidth (bytes/s) and GEMM rate (FLOP/s).
    pub memory: f64,
    pub product: f64,
    /// Name, FLOP/byte and FLOP/s of each op; numbered from 1 in this order.
    pub points: Vec<(String, f64, f64)>,
}

impl Roofline {
    /// Chart as one `<svg>` element, without points that have no FLOPs.
    pub fn to_svg(&self) -> String {
        let x_axis = Axis::new("intensity", "FLOP/byte").logarithmic();
        let y_axis = Axis::new("rate", "FLOP/s").logarithmic();
        let points: Vec<(usize, f64, f64)> = (self.points.iter().enumerate())
            .map(|(at, (_, x, y))| (at + 1, *x, *y))
            .filter(|(_, x, y)| *x > 0.0 && *y > 0.0 && x.is_finite() && y.is_finite())
            .collect();
        let ridge = self.product / self.memory;
        let x = x_axis.scale(points.iter().map(|p| p.1).chain([ridge / 10.0, ridge * 10.0]));
        let y = y_axis.scale(points.iter().map(|p| p.2).chain([self.product, self.product / 1e3]));
        let names = self.points.iter().map(|p| p.0.as_str());
        let mut out = open_svg(&self.title, &describe(names), 0.0);
        draw_y_axis(&mut out, &y_axis, &y);
        draw_x_axis(&mut out, &x_axis, &x);
        self.draw_roof(&mut out, &x, &y, ridge);
        if points.is_empty() {
            put_no_values(&mut out);
        }
        let placed: Vec<(usize, f64, f64)> =
            points.iter().map(|&(number, px, py)| (number, to_x(&x, px), to_y(&y, py))).collect();
        for &(_, px, py) in &placed {
            draw_mark(&mut out, 1, px, py);
        }
        let frame = Frame { left: LEFT, top: TOP, right: WIDTH, bottom: TOP + PLOT };
        for Label { text, left, base } in place(&placed, &frame) {
            let _ = write!(out, r#"<text class="bar-label" x="{left:.1}" y="{base:.1}">{text}</text>"#);
        }
        out.push_str("</svg>");
        out
    }

    fn draw_roof(&self, out: &mut String, x: &Scale, y: &Scale, ridge: f64) {
        // The slope starts at the left or bottom edge of the plot, at the edge it crosses.
        let from = 10f64.powf(x.low).max(10f64.powf(y.low) / self.memory);
        let corners = [(from, from * self.memory), (ridge, self.product), (10f64.powf(x.high), self.product)];
        let path: Vec<String> =
            corners.iter().map(|&(px, py)| format!("{:.1} {:.1}", to_x(x, px), to_y(y, py))).collect();
        let _ = write!(out, r#"<path class="line s0" d="M{}"/>"#, path.join(" L"));
        let label = |text: &str, left: f64, top: f64, anchor: &str| {
            let text = escape(text);
            format!(r#"<text class="reference-label" x="{left:.1}" y="{top:.1}" text-anchor="{anchor}">{text}</text>"#)
        };
        let top = to_y(y, self.product) - 6.0;
        out.push_str(&label("GEMM", WIDTH - 16.0, top, "end"));
        let middle = (from * ridge).sqrt();
        let (left, height) = (to_x(x, middle), to_y(y, middle * self.memory));
        out.push_str(&label("memory", (left - 8.0).max(LEFT + 52.0), height - 6.0, "end"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_numbered_and_the_roof_is_drawn() {
        let point = |name: &str, x: f64, y: f64| (name.to_owned(), x, y);
        let plot = Roofline {
            title: "ops".into(),
            memory: 4e12,
            product: 8e14,
            points: vec![point("linear & more", 300.0, 6e14), point("none", 0.0, 0.0), point("norm", 1.25, 4e12)],
        };
        let svg = plot.to_svg();
        assert!(svg.contains("intensity (FLOP/byte)") && svg.contains("rate (FLOP/s)"), "{svg}");
        assert!(svg.contains(">1</text>") && svg.contains(">3</text>") && !svg.contains(">2</text>"));
        assert!(svg.contains("linear &amp; more"));
        // Points at the same place share one label, and the label stays inside the plot.
        let many = (0..30).map(|n| point("same", 300.0, 6e14 + 1e12 * f64::from(n))).collect();
        assert!(Roofline { points: many, ..plot.clone() }.to_svg().contains(">1–30</text>"));
        let empty = Roofline { points: Vec::new(), ..plot };
        assert!(empty.to_svg().ends_with("</svg>"));
    }
}
