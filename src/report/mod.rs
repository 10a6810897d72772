//! Reports: one HTML file with inline SVG and CSS, no script and nothing loaded from elsewhere.
//!
//! - [`svg`]: [`LineChart`] and [`BarChart`] to SVG text; [`axis`] finds their round ticks
//! - [`plots`]: [`Histogram`] and [`Scatter`] to SVG text; [`distribution`]: bins and correlation
//! - [`roofline`]: [`Roofline`], rates of ops under the ceilings of a machine
//! - [`page`]: [`Table`], [`Section`] and [`Page`] to HTML text
//! - [`summary`]: [`QuickstartSummary`], the content of the quick start's `summary.json`
//! - [`quickstart`]: the quick start's report and its table for the terminal
//! - [`run`]: the report of one or several training runs
//!
//! Every text that enters a page is escaped here; a number that is not finite is shown as a dash.

pub mod axis;
pub mod distribution;
mod labels;
pub mod page;
pub mod plots;
pub mod quickstart;
pub mod roofline;
pub mod run;
pub mod summary;
pub mod svg;

#[cfg(test)]
mod tests;

pub use axis::Axis;
pub use page::{Block, Figure, Page, Section, Table};
pub use plots::{Histogram, Scatter};
pub use quickstart::{quickstart_report, quickstart_table};
pub use roofline::Roofline;
pub use summary::QuickstartSummary;
pub use svg::{BarChart, LineChart, ReferenceLine};

/// What stands in a table or chart where there is no number.
const NO_VALUE: &str = "–";

/// Text made safe for HTML and SVG content and for quoted attributes. Control characters that neither format allows
/// become the replacement character.
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

/// A number with a fixed count of decimals; a dash when it is not finite. Zero has no sign.
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

/// A number with four significant digits, small and large ones with an exponent; a dash when it is not finite.
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
