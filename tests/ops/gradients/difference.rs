//! Helper that compares gradients with central differences.

use mapl::backend::Write;
use mapl::backend::contract::Precision;
use mapl::backend::reference::Reference;

use common::{On, normal};

/// The backend under test.
pub const ORACLE: On<'static, Reference> = On { backend: &Reference, inputs: Precision::F64, before: 5 };

/// Step size of the differences.
const STEP: f64 = 1e-4;
/// Tolerance, absolute plus relative. The truncation error of the four-point formula is
/// h⁴ f⁽⁵⁾ / 30: 3e-15 for a fifth derivative of 1e3. Its rounding error is about
/// 1.5 * 2⁻⁵³ |f| / h: 2e-11 for an objective of 10. The bound leaves a factor of fifty. A wrong
/// sign, factor or term causes an error as large as the gradient, and [`check`] requires a gradient
/// of at least [`MOVED`].
const BOUND: f64 = 1e-9;
/// Magnitude that at least one element of every gradient must exceed. Otherwise the comparison
/// proves nothing.
const MOVED: f64 = 1e-2;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Computes four-point central differences of `objective` for every element of `inputs[which]`.
pub fn differences(inputs: &[Vec<f64>], which: usize, objective: impl Fn(&[Vec<f64>]) -> f64) -> Vec<f64> {
    let mut inputs = inputs.to_vec();
    (0..inputs[which].len())
        .map(|i| {
            let value = inputs[which][i];
            let mut at = |steps: f64| {
                inputs[which][i] = value + steps * STEP;
                objective(&inputs)
            };
            let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP);
            inputs[which][i] = value;
            slope
        })
        .collect()
}

/// Asserts that two gradients agree within [`BOUND`].
pub fn agree(label: &str, gradient: &[f64], expected: &[f64]) {
    assert_eq!(gradient.len(), expected.len(), "{label}: length");
    for (i, (g, e)) in gradient.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= BOUND * (1.0 + e.abs()), "{label}, element {i}: gradient {g}, finite difference {e}");
    }
}

/// Compares an op's gradient with the differences of `objective = <dy, forward(inputs)>`, with
/// random `dy`.
///
/// `backward(inputs, dy, start)` returns the gradient of each input. `start[k]` is the initial
/// content of the gradient buffer of input `k`. If `writes[k]` is `Add`, the result must include
/// it: it is the gradient of `objective + <start, input>`. If `writes[k]` is `Overwrite`,
/// `start[k]` must not affect the result.
pub fn check(
    label: &str,
    inputs: &[Vec<f64>],
    writes: &[Write],
    forward: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    backward: impl Fn(&[Vec<f64>], &[f64], &[Vec<f64>]) -> Vec<Vec<f64>>,
) {
    assert_eq!(inputs.len(), writes.len(), "{label}: number of write modes");
    let dy = normal(&format!("{label} dy"), forward(inputs).len(), 1.0);
    let start: Vec<Vec<f64>> =
        inputs.iter().enumerate().map(|(k, x)| normal(&format!("{label} start {k}"), x.len(), 1.0)).collect();
    let gradients = backward(inputs, &dy, &start);
    assert_eq!(gradients.len(), inputs.len(), "{label}: number of gradients");
    for (k, gradient) in gradients.iter().enumerate() {
        let expected = differences(inputs, k, |inputs| {
            let other_paths = if writes[k] == Write::Add { dot(&start[k], &inputs[k]) } else { 0.0 };
            dot(&dy, &forward(inputs)) + other_paths
        });
        let label = format!("{label}, input {k}, {:?}", writes[k]);
        agree(&label, gradient, &expected);
        assert!(gradient.iter().any(|g| g.abs() > MOVED), "{label}: no gradient element exceeds {MOVED}");
    }
}
