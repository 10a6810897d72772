//! Gradients of an op against finite differences, both on the reference in f64:
//!
//! ```text
//! L(x) = sum of dy y(x)                                    dy normal, one number for every result y
//! dL/dx[i] = sum of dy (8 (y(x + h) - y(x - h)) - (y(x + 2h) - y(x - 2h))) / 12 h
//! ```
//!
//! A kink within 2h of an element would spoil its difference. Two steps are therefore tried, and the
//! difference that is nearer to the op's gradient counts.

use super::{Op, Operand, Role, Values, checked_operands, reference, wrong};
use crate::Result;
use crate::rng::Rng;

/// Step sizes, relative to 1 + the magnitude of an element.
const STEPS: [f64; 2] = [1e-4, 1e-6];
/// Maximum error, relative to 1 + the magnitude of the gradient.
const TOLERANCE: f64 = 1e-7;
/// Number of compared elements of an input, evenly spread.
const COMPARED: usize = 48;

/// A gradient that agrees with finite differences.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientCheck {
    /// Name of the operand of the backward op that holds the gradient.
    pub gradient: &'static str,
    /// Name of the input of the forward op.
    pub of: &'static str,
    /// Elements that were compared.
    pub compared: usize,
    /// Largest error as a share of the tolerance, 1e-7 (1 + the gradient's size).
    pub error_share: f64,
}

/// Operand of the backward op that holds the gradient of an input.
fn gradient_of<'a>(operands: &'a [Operand], input: &str) -> Option<&'a Operand> {
    operands.iter().filter(|o| o.is_compared()).find(|o| match o.gradient_of {
        Some(of) => of == input,
        None => o.name.strip_prefix('d') == Some(input),
    })
}

/// Compares every gradient of `backward` with finite differences of `forward`, on their references. The
/// backward op reads the forward's inputs and results by name, and the gradient `dy` of each result `y`. A
/// gradient that the op adds to starts at 0. An error names the element and both numbers, or the input whose
/// gradient is missing.
pub fn check_gradient(forward: &dyn Op, backward: &dyn Op) -> Result<Vec<GradientCheck>> {
    let (inputs, operands) = (checked_operands(forward)?, checked_operands(backward)?);
    let mut given = Values::default();
    inputs.iter().for_each(|o| given.set(o.name, o.drawn(forward.name())));
    let results = reference(forward, &inputs, &given)?;
    let mut upstream = Values::default();
    for (name, values) in results.iter() {
        let mut rng = Rng::keyed(1, &["gradient", forward.name(), name]);
        upstream.set(name, values.iter().map(|_| rng.normal()).collect());
    }
    let read = |operand: &Operand| -> Result<Vec<f64>> {
        let name = operand.name;
        let of_result = name.strip_prefix('d').and_then(|result| upstream.of(result).ok());
        let of_input = inputs.iter().any(|o| o.is_input() && name.strip_prefix('d') == Some(o.name));
        let found = match (results.of(name), given.of(name), of_result) {
            _ if !operand.is_input() && operand.role != Role::InOut => return Ok(vec![f64::NAN; operand.len()]),
            (Ok(values), ..) | (_, Ok(values), _) | (.., Some(values)) => values.to_vec(),
            _ if operand.role == Role::InOut && of_input => vec![0.0; operand.len()],
            _ => {
                return Err(wrong(
                    backward,
                    format!(
                        "{name} is neither an operand of {} nor the gradient of one of its results",
                        forward.name()
                    ),
                ));
            }
        };
        if found.len() == operand.len() {
            return Ok(found);
        }
        Err(wrong(backward, format!("{name} has {} elements, in {} {}", operand.len(), forward.name(), found.len())))
    };
    let mut of_backward = Values::default();
    for operand in &operands {
        of_backward.set(operand.name, read(operand)?);
    }
    let gradients = reference(backward, &operands, &of_backward)?;
    let mut checks = Vec::new();
    for input in inputs.iter().filter(|o| o.role != Role::Output && o.role != Role::Scratch && o.differentiable) {
        let Some(operand) = gradient_of(&operands, input.name) else {
            return Err(wrong(
                backward,
                format!(
                    "no operand holds the gradient of {0}; call one d{0}, mark one with gradient_of(\"{0}\"), or mark {0} with \
                     without_gradient()",
                    input.name
                ),
            ));
        };
        let gradient = gradients.of(operand.name)?;
        let places = super::super::operand::spread(input.len(), COMPARED);
        let mut check =
            GradientCheck { gradient: operand.name, of: input.name, compared: places.len(), error_share: 0.0 };
        for at in places {
            let got = gradient.get(at).copied().unwrap_or(f64::NAN);
            let mut nearest = (f64::INFINITY, f64::NAN);
            for step in STEPS {
                let expected = difference(forward, &inputs, &given, &upstream, (input.name, at), step)?;
                let share = (got - expected).abs() / (TOLERANCE * (1.0 + expected.abs()));
                if share < nearest.0 || nearest.1.is_nan() {
                    nearest = (share, expected);
                }
            }
            // NaN exceeds every tolerance.
            if nearest.0.is_nan() || nearest.0 > 1.0 {
                return Err(wrong(
                    backward,
                    format!(
                        "{} is {got} at element {at}, but finite differences of {} by {} are {}",
                        operand.name,
                        forward.name(),
                        input.name,
                        nearest.1
                    ),
                ));
            }
            check.error_share = check.error_share.max(nearest.0);
        }
        checks.push(check);
    }
    Ok(checks)
}

/// Derivative of the sum of all results times their upstream gradients, with respect to one element.
fn difference(
    forward: &dyn Op,
    operands: &[Operand],
    given: &Values,
    upstream: &Values,
    (name, at): (&str, usize),
    step: f64,
) -> Result<f64> {
    let center = given.of(name)?[at];
    let step = step * (1.0 + center.abs());
    let at_distance = |distance: f64| {
        let mut moved = given.clone();
        let mut values = given.of(name)?.to_vec();
        values[at] = center + distance;
        moved.set(name, values);
        reference(forward, operands, &moved)
    };
    // Differences of results before their sum, so that results that do not depend on the element cancel.
    let between = |distance: f64| -> Result<f64> {
        let (above, below) = (at_distance(distance)?, at_distance(-distance)?);
        let mut sum = 0.0;
        for (name, dy) in upstream.iter() {
            let pairs = above.of(name)?.iter().zip(below.of(name)?);
            sum += pairs.zip(dy).map(|((above, below), dy)| dy * (above - below)).sum::<f64>();
        }
        Ok(sum)
    };
    Ok((8.0 * between(step)? - between(2.0 * step)?) / (12.0 * step))
}

impl Operand {
    fn is_input(&self) -> bool {
        self.role == Role::Input
    }
}
