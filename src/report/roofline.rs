//! Roofline plot: rate of each op over its arithmetic intensity, under the ceilings of the machine.

use std::fmt::Write;

use super::axis::{Axis, Scale};
use super::canvas::{Canvas, LEFT, NARROW, PLOT, TOP, WIDE, describe, draw_mark, put_text, to_y};
use super::labels::{Frame, Label, LabelledPoint, place};

/// Number of points that are labelled by name: those that take the most time.
const NAMED: usize = 5;

/// Op of a roofline plot.
#[derive(Clone, Debug, PartialEq)]
pub struct RooflinePoint {
    /// Full name, for screen readers.
    pub name: String,
    /// Short name, for the label of a point with a long time.
    pub label: String,
    /// FLOP per byte.
    pub intensity: f64,
    /// FLOP/s.
    pub rate: f64,
    /// Seconds of all calls.
    pub seconds: f64,
}

/// Ops as points under a roof. The slope is the memory bandwidth, the flat part the GEMM rate. The five
/// points with the longest times are labelled by name, the others by number.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// Title.
    pub title: String,
    /// Memory bandwidth in bytes per second.
    pub memory: f64,
    /// Rate of GEMMs in FLOP/s.
    pub product: f64,
    /// Ops, numbered from 1 in this order.
    pub points: Vec<RooflinePoint>,
}

impl Roofline {
    /// Chart without points that have no FLOPs, in two sizes: across a wide page, and for phones.
    pub fn to_wide_svg(&self) -> String {
        self.draw(&WIDE) + &self.draw(&NARROW)
    }

    fn draw(&self, canvas: &Canvas) -> String {
        let x_axis = Axis::new("intensity", "FLOP/byte").logarithmic();
        let y_axis = Axis::new("rate", "FLOP/s").logarithmic();
        let is_shown =
            |p: &RooflinePoint| p.intensity > 0.0 && p.rate > 0.0 && p.intensity.is_finite() && p.rate.is_finite();
        let points: Vec<(usize, &RooflinePoint)> =
            self.points.iter().enumerate().filter(|(_, point)| is_shown(point)).collect();
        let mut longest = points.clone();
        longest.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        longest.truncate(NAMED);
        let ridge = self.product / self.memory;
        let x = x_axis.scale(points.iter().map(|(_, p)| p.intensity).chain([ridge / 10.0, ridge * 10.0]));
        let y = y_axis.scale(points.iter().map(|(_, p)| p.rate).chain([self.product, self.product / 1e3]));
        let mut out = canvas.open(&self.title, &describe(self.points.iter().map(|p| p.name.as_str())), 0.0);
        canvas.draw_y_axis(&mut out, &y_axis, &y, None);
        canvas.draw_x_axis(&mut out, &x_axis, &x);
        let roof_labels = self.draw_roof(&mut out, canvas, &x, &y, ridge);
        if points.is_empty() {
            canvas.put_no_values(&mut out);
        }
        // Names are placed in the order of time, so that the op with the longest time gets the nearest position.
        let is_longest = |at: usize| longest.iter().any(|(other, _)| *other == at);
        let others = points.iter().filter(|(at, _)| !is_longest(*at));
        let placed: Vec<LabelledPoint> = (longest.iter().map(|point| (point, true)))
            .chain(others.map(|point| (point, false)))
            .map(|((at, point), is_named)| LabelledPoint {
                number: at + 1,
                name: is_named.then(|| point.label.clone()),
                x: canvas.to_x(&x, point.intensity),
                y: to_y(&y, point.rate),
            })
            .collect();
        for point in &placed {
            draw_mark(&mut out, 1, point.x, point.y);
        }
        let frame = Frame { left: LEFT, top: TOP, right: canvas.width, bottom: TOP + PLOT };
        for (label, px, py) in place(&placed, &roof_labels, &frame) {
            if label.is_far_from(py) {
                let end = if label.left > px { label.left - 2.0 } else { label.right() + 2.0 };
                let base = label.base - 4.0;
                let _ = write!(out, r#"<line class="leader" x1="{px:.1}" y1="{py:.1}" x2="{end:.1}" y2="{base:.1}"/>"#);
            }
            put_text(&mut out, "point-label", "start", label.left, label.base, &label.text);
        }
        out.push_str("</svg>");
        out
    }

    /// Draws the roof and returns the labels of its parts.
    fn draw_roof(&self, out: &mut String, canvas: &Canvas, x: &Scale, y: &Scale, ridge: f64) -> [Label; 2] {
        // The slope starts at the left or bottom edge of the plot, at the edge it crosses.
        let from = 10f64.powf(x.low).max(10f64.powf(y.low) / self.memory);
        let corners = [(from, from * self.memory), (ridge, self.product), (10f64.powf(x.high), self.product)];
        let path: Vec<String> =
            corners.iter().map(|&(px, py)| format!("{:.1} {:.1}", canvas.to_x(x, px), to_y(y, py))).collect();
        let _ = write!(out, r#"<path class="line s0" d="M{}"/>"#, path.join(" L"));
        let middle = (from * ridge).sqrt();
        let (left, height) = (canvas.to_x(x, middle), to_y(y, middle * self.memory));
        let labels = [
            Label::ending_at(canvas.right() - 2.0, to_y(y, self.product) - 6.0, "GEMM"),
            Label::ending_at((left - 8.0).max(LEFT + 52.0), height - 6.0, "memory"),
        ];
        for label in &labels {
            put_text(out, "reference-label", "end", label.right(), label.base, &label.text);
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_labelled_and_the_roof_is_drawn() {
        let point = |name: &str, intensity: f64, rate: f64, seconds: f64| RooflinePoint {
            name: format!("{name} in full"),
            label: name.to_owned(),
            intensity,
            rate,
            seconds,
        };
        // Eight ops. Of those with FLOPs, the fifth longest takes 5 s; the op that takes longest has no FLOPs.
        let mut points = vec![
            point("linear & more", 300.0, 6e14, 9.0),
            point("none", 0.0, 0.0, 99.0),
            point("norm", 1.25, 4e12, 1.0),
        ];
        points.extend((4..=8).map(|n| point(&format!("op{n}"), 20.0 * f64::from(n), 3e13, f64::from(n))));
        let plot = Roofline { title: "ops".into(), memory: 4e12, product: 8e14, points };
        let svgs = plot.to_wide_svg();
        for svg in svgs.split_inclusive("</svg>") {
            assert!(svg.contains("intensity (FLOP/byte)") && svg.contains("rate (FLOP/s)"), "{svg}");
            for name in ["linear &amp; more", "op8", "op7", "op6", "op5"] {
                assert!(svg.contains(&format!(">{name}</text>")), "{name} is not labelled: {svg}");
            }
            let labels: Vec<&str> =
                svg.split("\"point-label\"").skip(1).map(|label| label.split(['>', '<']).nth(1).unwrap()).collect();
            assert_eq!(labels, ["linear &amp; more", "op8", "op7", "op6", "op5", "3", "4"]);
            assert!(svg.contains("linear &amp; more in full"), "the description has whole names");
        }
        assert_eq!(svgs.matches("<svg").count(), 2);
        // Points at the same position share one label, and the label stays inside the plot.
        let many = (0..30).map(|n| point("same", 300.0, 6e14 + 1e12 * f64::from(n), 1.0)).collect();
        let many = Roofline { points: many, ..plot.clone() }.to_wide_svg();
        assert!(many.contains(">6–30</text>") && many.matches(">same</text>").count() == 2 * NAMED, "{many}");
        let empty = Roofline { points: Vec::new(), ..plot };
        assert!(empty.to_wide_svg().ends_with("</svg>"));
    }
}
