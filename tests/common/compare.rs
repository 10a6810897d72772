//! Comparison with the oracle. It reports the largest error, its index, both values, the error as a
//! share of the tolerance, and the cosine similarity, since one number can hide one bad element.

use mapl::backend::contract::Tolerance;

use super::Outputs;

/// Compares name, length and values of every output.
pub fn outputs(label: &str, got: &Outputs, expected: &Outputs, tolerance: impl Fn(&str) -> Tolerance) {
    assert_eq!(got.len(), expected.len(), "{label}: number of outputs");
    for ((name, got), (expected_name, expected)) in got.iter().zip(expected) {
        assert_eq!(name, expected_name, "{label}");
        values(&format!("{label}: {name}"), got, expected, tolerance(name));
    }
}

/// Fails if the error of an element exceeds the tolerance. NaN equals NaN, and an infinity equals
/// itself.
pub fn values(label: &str, got: &[f64], expected: &[f64], tolerance: Tolerance) {
    assert_eq!(got.len(), expected.len(), "{label}: length");
    let mut worst = (0.0, 0.0, 0);
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let error = if g == e || (g.is_nan() && e.is_nan()) { 0.0 } else { (g - e).abs() };
        let share = if error == 0.0 { 0.0 } else { error / tolerance.allowed(e) };
        // An error of NaN (only one side is NaN) counts as infinite.
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
        "{label}: max abs error {error:.3e} at {at} ({} against {}), {:.0} % of the tolerance, similarity {similarity:.9}",
        got[at],
        expected[at],
        100.0 * share,
    );
    println!("{report}");
    assert!(share <= 1.0, "{report}");
}

/// Fails at the first element with different bits.
pub fn bits(label: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{label}: length");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(g.to_bits() == e.to_bits() || (g.is_nan() && e.is_nan()), "{label}: element {i}: {g:e} against {e:e}");
    }
}

/// Fails at the first element of any output with different bits.
pub fn same_bits(label: &str, got: &Outputs, expected: &Outputs) {
    assert_eq!(got.len(), expected.len(), "{label}: number of outputs");
    for ((name, got), (_, expected)) in got.iter().zip(expected) {
        bits(&format!("{label}: {name}"), got, expected);
    }
}
