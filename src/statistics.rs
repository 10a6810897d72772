//! Closed-form interval that data checks and reports share.

/// Normal quantile of a two-sided 95 % interval.
pub const Z95: f64 = 1.959_964;

/// 95 % score interval (Wilson 1927) of a share `p` of `n` independent outcomes. `n` may be
/// fractional and must be above 0.
pub fn wilson_interval(p: f64, n: f64) -> [f64; 2] {
    let z2 = Z95 * Z95 / n;
    let middle = (p + z2 / 2.0) / (1.0 + z2);
    let half = Z95 / (1.0 + z2) * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_has_the_values_of_the_formula_and_stays_within_zero_and_one() {
        // 8 of 10: 0.4902 to 0.9433, computed by hand from the formula.
        let [low, high] = wilson_interval(0.8, 10.0);
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
        let [low, high] = wilson_interval(1.0, 10.0);
        assert!(low > 0.7 && high > 1.0 - 1e-9 && high <= 1.0, "{low} {high}");
        let [low, high] = wilson_interval(0.0, 10.0);
        assert!((0.0..1e-9).contains(&low) && high < 0.3, "{low} {high}");
    }
}
