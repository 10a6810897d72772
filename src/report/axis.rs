//! Axes: range of the data, round ticks (1, 2 or 5 times a power of ten), and tick labels.

use super::decimal;

/// Largest magnitude that is drawn; keeps the arithmetic of scales finite.
pub(super) const MAX_DRAWN: f64 = 1e30;

/// Label, unit and range of an axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// Text next to the axis.
    pub label: String,
    /// Unit, shown in parentheses after the label; empty for a pure number.
    pub unit: String,
    /// Fixed lowest and highest value; `None` for the range of the data.
    pub range: Option<(f64, f64)>,
    /// Logarithmic scale; values must be above 0.
    pub logarithmic: bool,
}

impl Axis {
    /// Axis with the range of its data.
    pub fn new(label: impl Into<String>, unit: impl Into<String>) -> Self {
        Self { label: label.into(), unit: unit.into(), range: None, logarithmic: false }
    }

    /// Sets a fixed range.
    pub fn within(self, low: f64, high: f64) -> Self {
        Self { range: Some((low, high)), ..self }
    }

    /// Makes the scale logarithmic.
    pub fn logarithmic(self) -> Self {
        Self { logarithmic: true, ..self }
    }

    /// Label and unit.
    pub(super) fn title(&self) -> String {
        if self.unit.is_empty() { self.label.clone() } else { format!("{} ({})", self.label, self.unit) }
    }

    /// Scale for the given values; values that cannot be drawn are ignored.
    pub(super) fn scale(&self, values: impl Iterator<Item = f64>) -> Scale {
        if self.logarithmic {
            let exponents: Vec<f64> = values.filter(|&v| v > 0.0 && drawable(v)).map(f64::log10).collect();
            let low = exponents.iter().copied().fold(f64::INFINITY, f64::min).min(1e9).floor();
            let high = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max).max(-1e9).ceil();
            let (low, high) = if exponents.is_empty() { (0.0, 1.0) } else { (low, high.max(low + 1.0)) };
            return Scale { low, high, step: ((high - low) / 8.0).ceil(), logarithmic: true };
        }
        if let Some((low, high)) = self.range
            && drawable(low)
            && drawable(high)
            && low < high
        {
            return Scale { low, high, step: round_step(high - low), logarithmic: false };
        }
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|&v| drawable(v)) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low <= 1e-9 * low.abs().max(high.abs()) || high == low {
            // One value, or values that tick labels cannot distinguish: show a band around them.
            let half = if low == 0.0 { 0.5 } else { 0.1 * low.abs().max(high.abs()) };
            (low, high) = (low - half, high + half);
        }
        let step = round_step(high - low);
        let (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        Scale { low, high, step, logarithmic: false }
    }
}

/// Whether a chart can show the value.
pub(super) fn drawable(value: f64) -> bool {
    value.abs() <= MAX_DRAWN
}

/// Range and tick distance of an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    pub low: f64,
    pub high: f64,
    pub step: f64,
    /// Whether `low`, `high` and `step` are exponents of ten.
    pub logarithmic: bool,
}

impl Scale {
    /// Position of a value: 0 at the low end, 1 at the high end, clamped to the range.
    pub fn fraction(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.log10() } else { value };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round values in range with their labels, ascending.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        // The tolerance keeps a tick at either end despite rounding errors.
        let first = (self.low / self.step - 1e-6).ceil() as i64;
        let last = (self.high / self.step + 1e-6).floor() as i64;
        let values = (first..=last).map(|i| i as f64 * self.step);
        if self.logarithmic {
            let label = |power: f64| match power as i32 {
                power @ -3..=4 => decimal(10f64.powi(power), (-power).max(0) as usize),
                power => format!("1e{power}"),
            };
            return values.map(|power| (10f64.powf(power), label(power))).collect();
        }
        values.map(|v| (v, self.label(v))).collect()
    }

    fn label(&self, value: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        let tiny = self.step < 1e-4 && largest < 1e-2;
        if largest >= 1e6 || tiny || self.step < 1e-6 {
            return if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") };
        }
        decimal(value, (-self.step.log10() - 1e-9).ceil().max(0.0) as usize)
    }
}

/// Round tick distance that divides `span` into three to nine intervals.
fn round_step(span: f64) -> f64 {
    let rough = span / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = match rough / power {
        m if m < 1.5 => 1.0,
        m if m < 3.5 => 2.0,
        m if m < 7.5 => 5.0,
        _ => 10.0,
    };
    step * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64]) -> Vec<String> {
        Axis::default().scale(values.iter().copied()).ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_data() {
        assert_eq!(labels(&[0.0, 1.0]), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[0.0, 400.0]), ["0", "100", "200", "300", "400"]);
        assert_eq!(labels(&[0.413, 0.692]), ["0.40", "0.45", "0.50", "0.55", "0.60", "0.65", "0.70"]);
        // For learning rates, plain decimals would overlap the axis title.
        assert_eq!(labels(&[0.0, 5e-5]), ["0", "1.0e-5", "2.0e-5", "3.0e-5", "4.0e-5", "5.0e-5"]);
        assert_eq!(labels(&[-3.0, 3.0]), ["-3", "-2", "-1", "0", "1", "2", "3"]);
        for (low, high) in [(1e-9, 3e-9), (0.0, 7e8), (-2.5e4, 1.0), (0.999, 1.0), (1e20, 1e29)] {
            let scale = Axis::default().scale([low, high].into_iter());
            let ulps = 1e-12 * high;
            assert!(scale.low <= low + ulps && scale.high >= high - ulps, "{low} {high} {scale:?}");
            assert!((3..=11).contains(&scale.ticks().len()), "{low} {high} {scale:?}");
        }
    }

    #[test]
    fn empty_constant_and_broken_data_still_give_a_scale() {
        for values in [&[][..], &[0.0], &[5.0, 5.0], &[f64::NAN, f64::INFINITY], &[f64::MAX, f64::MIN], &[1e-300]] {
            let scale = Axis::default().scale(values.iter().copied());
            assert!(scale.low < scale.high && scale.step > 0.0, "{values:?} {scale:?}");
            assert!((2..=12).contains(&scale.ticks().len()), "{values:?} {scale:?}");
        }
    }

    #[test]
    fn powers_of_ten_are_equidistant() {
        let scale = Axis::new("rate", "").logarithmic().scale([0.02, 3000.0, 0.0, -1.0].into_iter());
        let ticks = scale.ticks();
        let labels: Vec<&str> = ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["0.01", "0.1", "1", "10", "100", "1000", "10000"]);
        assert!((scale.fraction(10.0) - 0.5).abs() < 1e-12);
        assert_eq!(Axis::new("", "").logarithmic().scale([].into_iter()).ticks().len(), 2);
        assert_eq!(Axis::new("", "").logarithmic().scale([1e9, 1e12].into_iter()).ticks()[0].1, "1e9");
    }

    #[test]
    fn a_fixed_range_is_kept_and_values_outside_are_clamped() {
        let scale = Axis::new("accuracy", "").within(0.0, 1.0).scale([7.0].into_iter());
        assert_eq!((scale.low, scale.high), (0.0, 1.0));
        assert_eq!((scale.fraction(7.0), scale.fraction(-7.0), scale.fraction(0.25)), (1.0, 0.0, 0.25));
    }
}
