//! Gradients against central differences, through one helper.

use mapl::backend::Write;
use mapl::backend::contract::Precision;
use mapl::backend::reference::Reference;

use common::{On, normal};

/// The backend under test.
pub const ORACLE: On<'static, Reference> = On { backend: &Reference, inputs: Precision::F64, before: 5 };

/// Step of the differences.
const STEP: f64 = 1e-4;
/// Error allowed, absolute plus relative. The four-point formula is off by h⁴ f⁽⁵⁾ / 30, 3e-15 for a fifth derivative of
/// 1e3, and rounds at about 1.5 * 2⁻⁵³ |f| / h, 2e-11 for an objective of 10; the bound leaves a factor of fifty. A wrong
/// sign, factor or term is off by the size of the gradient, which [`check`] requires to be at least [`MOVED`].
const BOUND: f64 = 1e-9;
/// Size that some element of every gradient must reach, or the comparison would prove nothing.
const MOVED: f64 = 1e-2;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Four-point central differences of `objective` for every element of `inputs[which]`.
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

/// Requires two gradients to agree within [`BOUND`].
pub fn agree(label: &str, gradient: &[f64], expected: &[f64]) {
    assert_eq!(gradient.len(), expected.len(), "{label}: length");
    for (i, (g, e)) in gradient.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= BOUND * (1.0 + e.abs()), "{label}, element {i}: gradient {g}, difference {e}");
    }
}

/// Compares an op's gradient with the differences of `objective = <dy, forward(inputs)>`, `dy` random.
///
/// `backward(inputs, dy, start)` returns the gradient of each input; `start[k]` is what its output buffer must hold
/// before. Where `writes[k]` is `Add` the result must contain it, which is the gradient of `objective + <start, input>`;
/// where it is `Overwrite` it must leave no trace.
pub fn check(
    label: &str,
    inputs: &[Vec<f64>],
    writes: &[Write],
    forward: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    backward: impl Fn(&[Vec<f64>], &[f64], &[Vec<f64>]) -> Vec<Vec<f64>>,
) {
    assert_eq!(inputs.len(), writes.len(), "{label}: one mode for each input");
    let dy = normal(&format!("{label} dy"), forward(inputs).len(), 1.0);
    let start: Vec<Vec<f64>> =
        inputs.iter().enumerate().map(|(k, x)| normal(&format!("{label} start {k}"), x.len(), 1.0)).collect();
    let gradients = backward(inputs, &dy, &start);
    assert_eq!(gradients.len(), inputs.len(), "{label}: one gradient for each input");
    for (k, gradient) in gradients.iter().enumerate() {
        let expected = differences(inputs, k, |inputs| {
            let other_paths = if writes[k] == Write::Add { dot(&start[k], &inputs[k]) } else { 0.0 };
            dot(&dy, &forward(inputs)) + other_paths
        });
        let label = format!("{label}, input {k}, {:?}", writes[k]);
        agree(&label, gradient, &expected);
        assert!(gradient.iter().any(|g| g.abs() > MOVED), "{label}: the gradient vanishes everywhere");
    }
}
