//! Comparison with the oracle: largest error, its place, both values, the share of the allowance used, and the cosine
//! similarity, since one number alone can hide one bad element.

use mapl::backend::contract::Tolerance;

use super::Outputs;

/// Compares every output by name and length and value.
pub fn outputs(label: &str, got: &Outputs, expected: &Outputs, tolerance: impl Fn(&str) -> Tolerance) {
    assert_eq!(got.len(), expected.len(), "{label}: number of outputs");
    for ((name, got), (expected_name, expected)) in got.iter().zip(expected) {
        assert_eq!(name, expected_name, "{label}");
        values(&format!("{label}: {name}"), got, expected, tolerance(name));
    }
}

/// Fails when an element is off by more than is allowed; NaN equals NaN, and an infinity equals itself.
pub fn values(label: &str, got: &[f64], expected: &[f64], tolerance: Tolerance) {
    assert_eq!(got.len(), expected.len(), "{label}: length");
    let mut worst = (0.0, 0.0, 0);
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let error = if g == e || (g.is_nan() && e.is_nan()) { 0.0 } else { (g - e).abs() };
        let share = if error == 0.0 { 0.0 } else { error / tolerance.allowed(e) };
        // An error of NaN, from one side being NaN, counts as infinite.
        let share = if share.is_nan() { f64::INFINITY } else { share };
        if share > worst.0 {
            worst = (share, error, i);
        }
    }
    let (share, error, at) = worst;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let similarity = dot(got, expected) / (dot(got, got) * dot(expected, expected)).sqrt();
    if got.is_empty() {
        return;
    }
    let report = format!(
        "{label}: max abs error {error:.3e} at {at} ({} against {}), {:.0} % of the allowance, similarity {similarity:.9}",
        got[at],
        expected[at],
        100.0 * share,
    );
    println!("{report}");
    assert!(share <= 1.0, "{report}");
}

/// Fails at the first element whose bits differ.
pub fn bits(label: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{label}: length");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(g.to_bits() == e.to_bits() || (g.is_nan() && e.is_nan()), "{label}: element {i}: {g:e} against {e:e}");
    }
}

/// As [`bits`], for every output.
pub fn same_bits(label: &str, got: &Outputs, expected: &Outputs) {
    assert_eq!(got.len(), expected.len(), "{label}: number of outputs");
    for ((name, got), (_, expected)) in got.iter().zip(expected) {
        bits(&format!("{label}: {name}"), got, expected);
    }
}
