//! Dot charts: one row per setting, with one dot and its interval per measure.

use std::fmt::Write;

use mapl::report::decimal;

use super::bars::{WIDTH, open, subtitle, text};

/// Left edge of text, and the ends of the axis.
const LEFT: f64 = 12.0;
const START: f64 = 196.0;
const END: f64 = 444.0;
/// Top of the first row, the gap between rows, and the height of a measure in a row.
const TOP: f64 = 84.0;
const GAP: f64 = 12.0;
const LINE: f64 = 9.0;

/// A value with its interval.
#[derive(Clone, Copy)]
pub struct Dot {
    pub value: f64,
    pub interval: Option<[f64; 2]>,
}

/// Dots of several measures, one row per setting.
pub struct Dots {
    pub title: String,
    pub subtitle: String,
    /// Ends of the axis, and the distance between its ticks.
    pub axis: [f64; 3],
    /// Measures: name, and colour index (`n` selects the CSS class `sn` of the report's charts).
    pub measures: Vec<(String, usize)>,
    /// Rows: name, and a dot per measure.
    pub rows: Vec<(String, Vec<Option<Dot>>)>,
}

impl Dots {
    /// Chart as one `<svg>` element.
    pub fn to_svg(&self) -> String {
        let [low, high, tick] = self.axis;
        let x = |value: f64| START + (END - START) * ((value - low) / (high - low)).clamp(0.0, 1.0);
        let row = GAP + LINE * self.measures.len() as f64;
        let bottom = TOP + row * self.rows.len() as f64;
        let mut body = String::new();
        let mut left = LEFT + 6.0;
        for (name, style) in &self.measures {
            let _ = write!(body, r#"<circle class="bar s{style}" cx="{left:.1}" cy="62" r="4.5"/>"#);
            text(&mut body, "quiet", "start", left + 10.0, 67.0, name);
            left += 30.0 + 7.6 * name.len() as f64;
        }
        for at in 0..=((high - low) / tick).round() as usize {
            let value = low + tick * at as f64;
            let place = x(value);
            let _ = write!(body, r#"<path class="rule" d="M{place:.1} {TOP}V{bottom:.1}"/>"#);
            text(&mut body, "tick-label", "middle", place, bottom + 18.0, &decimal(value, 1));
        }
        for (at, (name, dots)) in self.rows.iter().enumerate() {
            let top = TOP + row * at as f64;
            text(&mut body, "name", "start", LEFT, top + row / 2.0 + 5.0, name);
            for (at, (dot, (_, style))) in dots.iter().zip(&self.measures).enumerate() {
                let Some(dot) = dot else { continue };
                let y = top + (GAP + LINE) / 2.0 + LINE * at as f64;
                if let Some([from, to]) = dot.interval {
                    let _ = write!(
                        body,
                        r#"<rect class="bar s{style}" x="{:.1}" y="{:.1}" width="{:.1}" height="2"/>"#,
                        x(from),
                        y - 1.0,
                        x(to) - x(from)
                    );
                }
                let _ = write!(body, r#"<circle class="bar s{style}" cx="{:.1}" cy="{y:.1}" r="4"/>"#, x(dot.value));
            }
        }
        open(&self.title, &self.described(), bottom + 30.0) + &subtitle(&self.subtitle) + &body + "</svg>"
    }

    /// The values as a sentence, for screen readers.
    fn described(&self) -> String {
        let row = |(name, dots): &(String, Vec<Option<Dot>>)| {
            let dots = dots.iter().zip(&self.measures);
            let values =
                dots.filter_map(|(dot, (name, _))| Some(format!("{name} {}", decimal(dot.as_ref()?.value, 2))));
            format!("{name}: {}", values.collect::<Vec<_>>().join(", "))
        };
        format!("{}. {}.", self.subtitle, self.rows.iter().map(row).collect::<Vec<_>>().join("; "))
    }
}

const _: () = assert!(WIDTH > END);
