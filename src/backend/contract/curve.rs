//! Loss curves f(z) of a comparison with their slopes f'(z), in f64. Every backend follows these
//! definitions.

use super::{Result, expect};

/// Loss of a comparison as a function of its argument z.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// `(1-e) softplus(-z) + e softplus(z)`; e = 0 is the logistic loss, e > 0 cDPO.
    Sigmoid { smoothing: f64 },
    /// `((1-e) softplus(-z) - e softplus(z)) / (1-2e)`, robust DPO (arXiv 2403.00409); e < 1/2.
    Robust { smoothing: f64 },
    /// `max(0, 1 - z)`.
    Hinge,
    /// `((z - 1/2) / beta)²`, IPO (arXiv 2310.12036), with z = beta * D and the comparison's scale
    /// as beta.
    Ipo,
}

impl Curve {
    /// Checks the range of the curve's parameter.
    pub(super) fn check(self, op: &'static str) -> Result<()> {
        match self {
            Curve::Sigmoid { smoothing } => {
                expect(op, "smoothing", (0.0..=0.5).contains(&smoothing), "0 to 0.5", smoothing)
            }
            Curve::Robust { smoothing } => {
                expect(op, "smoothing", (0.0..0.5).contains(&smoothing), "at least 0, below 0.5", smoothing)
            }
            Curve::Hinge | Curve::Ipo => Ok(()),
        }
    }
}

/// `log(1 + exp(x))` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `1 / (1 + exp(-x))`, computed from exp(-|x|) so that both tails keep their relative precision.
fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// f(z) and f'(z). `beta` is the comparison's scale; only IPO uses it.
pub(crate) fn value_and_slope(curve: Curve, z: f64, beta: f64) -> (f64, f64) {
    match curve {
        // At e = 0 the smoothed terms are omitted, because 0 * softplus(inf) is NaN.
        Curve::Sigmoid { smoothing: 0.0 } => (softplus(-z), -sigmoid(-z)),
        Curve::Sigmoid { smoothing: e } => {
            ((1.0 - e) * softplus(-z) + e * softplus(z), -(1.0 - e) * sigmoid(-z) + e * sigmoid(z))
        }
        Curve::Robust { smoothing: e } => {
            let norm = 1.0 - 2.0 * e;
            (((1.0 - e) * softplus(-z) - e * softplus(z)) / norm, (-(1.0 - e) * sigmoid(-z) - e * sigmoid(z)) / norm)
        }
        Curve::Hinge => ((1.0 - z).max(0.0), if z < 1.0 { -1.0 } else { 0.0 }),
        Curve::Ipo => {
            let distance = (z - 0.5) / beta;
            (distance * distance, 2.0 * distance / beta)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURVES: [Curve; 6] = [
        Curve::Sigmoid { smoothing: 0.0 },
        Curve::Sigmoid { smoothing: 0.1 },
        Curve::Robust { smoothing: 0.0 },
        Curve::Robust { smoothing: 0.2 },
        Curve::Hinge,
        Curve::Ipo,
    ];

    #[test]
    fn slopes_equal_central_differences() {
        for curve in CURVES {
            for z in [-30.0, -3.0, -0.4, 0.0, 0.3, 0.9, 1.1, 2.0, 30.0] {
                let h = 1e-6;
                let at = |z| value_and_slope(curve, z, 0.1).0;
                let difference = (at(z + h) - at(z - h)) / (2.0 * h);
                let slope = value_and_slope(curve, z, 0.1).1;
                assert!(
                    (slope - difference).abs() < 1e-6 * (1.0 + slope.abs()),
                    "{curve:?} at {z}: {slope} {difference}"
                );
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for curve in CURVES {
            for z in [-1e4, 1e4] {
                let (f, df) = value_and_slope(curve, z, 0.1);
                assert!(f.is_finite() && df.is_finite(), "{curve:?} at {z}");
            }
        }
        assert_eq!(value_and_slope(CURVES[0], 0.0, 1.0), (std::f64::consts::LN_2, -0.5));
    }
}
