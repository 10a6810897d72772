//! Reports: one self-contained HTML file with inline SVG and CSS, without scripts.
//!
//! - [`svg`]: [`LineChart`] and [`BarChart`] as SVG; `axis`: axis ranges and round ticks;
//!   `canvas`: sizes, axes drawn, legends
//! - `plots`: histograms and scatter charts as SVG; `distribution`: bins and correlation
//! - `roofline`: [`Roofline`], the rates of ops under the ceilings of a machine
//! - `page`: [`Table`], [`Section`] and [`Page`] as HTML
//! - `summary`: [`QuickstartSummary`], the content of the quick start's `summary.json`
//! - `scores`: accuracies over seeds, and MAPL's gain
//! - `quickstart`: the quick start's report, and its tables for the terminal
//! - `run`: the report of one or several training runs
//!
//! All text on a page is escaped here. Numbers that are not finite are shown as a dash.

mod axis;
mod canvas;
mod distribution;
mod labels;
pub(crate) mod page;
mod plots;
pub(crate) mod quickstart;
pub(crate) mod roofline;
pub(crate) mod run;
pub(crate) mod scores;
pub(crate) mod summary;
pub mod svg;

#[cfg(test)]
mod tests;

pub use axis::Axis;
pub use page::{Block, Figure, Page, Section, Table};
pub use quickstart::{quickstart_report, quickstart_table};
pub use roofline::{Roofline, RooflinePoint};
pub use summary::QuickstartSummary;
pub use svg::{BarChart, LineChart, ReferenceLine};

/// Placeholder for a missing number in tables and charts.
const NO_VALUE: &str = "–";
/// Digits of an accuracy in tables and on charts.
const ACCURACY_DECIMALS: usize = 3;

/// Escapes a text for HTML, SVG and quoted attributes. Control characters that neither format
/// allows become the replacement character.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Formats a number with a fixed number of decimals; a dash if it is not finite. Zero has no sign.
pub fn decimal(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return NO_VALUE.to_owned();
    }
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(digits) if digits.bytes().all(|b| b == b'0' || b == b'.') => digits.to_owned(),
        _ => text,
    }
}

/// Formats a number with four significant digits, with an exponent if it is very small or large; a
/// dash if it is not finite.
pub fn significant(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() || value == 0.0 {
        return decimal(value, 0);
    }
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.3e}");
    }
    decimal(value, (3 - size.log10().floor() as i32).clamp(0, 6) as usize)
}
