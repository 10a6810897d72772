//! Closed-form confidence intervals that data checks and reports share.

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

/// Student's t, 97.5 % quantile, for 1 to 19 degrees of freedom (Student 1908).
const T975: [f64; 19] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093,
];
/// Largest number of values of a [`t_interval`].
pub const MAX_T_VALUES: usize = T975.len() + 1;

/// 95 % t interval of the mean of independent values; `None` for fewer than 2 or more than
/// [`MAX_T_VALUES`] values.
pub fn t_interval(values: &[f64]) -> Option<[f64; 2]> {
    let n = values.len() as f64;
    let quantile = T975.get(values.len().checked_sub(2)?)?;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = quantile * (variance / n).sqrt();
    Some([mean - half, mean + half])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_t_interval_has_the_values_of_the_formula() {
        // Mean 2, standard deviation 1, standard error 1/sqrt(3), 2 degrees of freedom: 4.303.
        let [low, high] = t_interval(&[1.0, 2.0, 3.0]).unwrap();
        assert!((low - (2.0 - 2.4843)).abs() < 1e-4 && (high - 4.4843).abs() < 1e-4, "{low} {high}");
        assert_eq!(t_interval(&[0.5; 4]), Some([0.5, 0.5]));
        assert_eq!((t_interval(&[1.0]), t_interval(&[]), t_interval(&[0.0; MAX_T_VALUES + 1])), (None, None, None));
        assert!(t_interval(&[0.0; MAX_T_VALUES]).is_some());
    }

    #[test]
    fn the_interval_has_the_values_of_the_formula_and_stays_within_zero_and_one() {
        // For 8 of 10, the interval is 0.4902 to 0.9433, computed by hand from the formula.
        let [low, high] = wilson_interval(0.8, 10.0);
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} {high}");
        let [low, high] = wilson_interval(1.0, 10.0);
        assert!(low > 0.7 && high > 1.0 - 1e-9 && high <= 1.0, "{low} {high}");
        let [low, high] = wilson_interval(0.0, 10.0);
        assert!((0.0..1e-9).contains(&low) && high < 0.3, "{low} {high}");
    }
}
